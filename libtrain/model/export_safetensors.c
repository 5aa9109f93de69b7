/* A Hugging Face folder: model.safetensors (shards above 5 GB), config.json, tokenizer. Every file is written beside and
 * renamed; config.json comes last, so that a folder that was cut short does not load. */
#include "libtrain/base/status.h"
#include "libtrain/model/export.h"
#include "libtrain/base/dtype.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t SHARD = 5000000000u;
enum { CHUNK = 1 << 20 };   /* elements at a time */

static enum tr_dtype stored_as(const struct tr_export *e, const struct tr_param *p) { return p->value.ndim == 1 && e->dtype != TR_F32 ? TR_BF16 : e->dtype; }
static uint64_t bytes_of(const struct tr_export *e, const struct tr_param *p) { return (uint64_t)tr_count(&p->value) * tr_dtype_size(stored_as(e, p)); }

static int put(struct tr_tmpfile *f, const void *data, size_t n)
{
    return fwrite(data, 1, n, f->f) == n ? TR_OK : tr_fail(TR_EFAIL, "cannot write '%s': %s", f->path, strerror(errno ? errno : EIO));
}

static int put_floats(struct tr_tmpfile *f, enum tr_dtype dtype, float *x, int64_t n)
{
    if (dtype == TR_BF16) { /* in place: a half never overtakes the float it comes from */
        uint16_t *y = (uint16_t *)(void *)x;
        for (int64_t i = 0; i < n; i++) y[i] = tr_f32_to_bf16(x[i]);
    }
    return put(f, x, (size_t)n * tr_dtype_size(dtype));
}

/* One parameter in its file's shape. Conv1D matrices are turned round, whole. */
static int put_param(struct tr_tmpfile *f, const struct tr_export *e, int64_t i)
{
    const struct tr_param *p = &e->params[i];
    int64_t rows = tr_rows(&p->value), cols = tr_cols(&p->value), step = p->file_transposed ? rows : CHUNK / cols + 1;
    float *x, *turned = NULL;
    if (step > rows) step = rows;
    TR_TRY(tr_calloc(&x, (size_t)(step * cols), sizeof *x));
    int rc = p->file_transposed ? tr_calloc(&turned, (size_t)(rows * cols), sizeof *turned) : TR_OK;
    for (int64_t r = 0; r < rows && rc == TR_OK; r += step) {
        int64_t n = rows - r < step ? rows - r : step;
        rc = e->read(e->self, i, r, n, x);
        if (rc != TR_OK) break;
        for (int64_t a = 0; turned && a < rows; a++)
            for (int64_t b = 0; b < cols; b++) turned[b * rows + a] = x[a * cols + b];
        rc = put_floats(f, stored_as(e, p), turned ? turned : x, n * cols);
    }
    free(turned);
    free(x);
    return rc;
}

/* The file of parameters [begin, end). */
static int write_shard(const struct tr_export *e, const char *path, int64_t begin, int64_t end)
{
    struct tr_tmpfile f = { 0 };
    json_t *header = json_object();
    uint64_t at = 0, size;
    char *text = NULL;
    int rc;
    json_object_set_new(header, "__metadata__", json_pack("{s:s}", "format", "pt"));
    for (int64_t i = begin; i < end; i++) {
        const struct tr_param *p = &e->params[i];
        json_t *shape = json_array();
        for (int k = 0; k < p->value.ndim; k++) json_array_append_new(shape, json_integer(p->value.dim[p->file_transposed ? p->value.ndim - 1 - k : k]));
        json_object_set_new(header, p->name, json_pack("{s:s,s:o,s:[I,I]}", "dtype", stored_as(e, p) == TR_F32 ? "F32" : "BF16", "shape", shape,
                                                       "data_offsets", (json_int_t)at, (json_int_t)(at + bytes_of(e, p))));
        at += bytes_of(e, p);
    }
    text = json_dumps(header, JSON_COMPACT);
    if (!text) TR_GO(tr_fail(TR_EFAIL, "no memory for the header of '%s'", path));
    TR_GO(tr_tmpfile_open(&f, path));
    size = (strlen(text) + 7) / 8 * 8; /* padded with spaces so that the data is aligned */
    TR_GO(put(&f, &size, 8));
    TR_GO(put(&f, text, strlen(text)));
    TR_GO(put(&f, "        ", (size_t)size - strlen(text)));
    for (int64_t i = begin; i < end; i++) TR_GO(put_param(&f, e, i));
    rc = tr_tmpfile_commit(&f);
done:
    tr_tmpfile_release(&f);
    json_decref(header);
    free(text);
    return rc;
}

static int write_json(const char *folder, const char *name, json_t *o)
{
    struct tr_tmpfile f = { 0 };
    char *path = NULL;
    int rc;
    TR_GO(tr_path_join(&path, folder, name));
    TR_GO(tr_tmpfile_open(&f, path));
    if (json_dumpf(o, f.f, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) || fputc('\n', f.f) == EOF) TR_GO(tr_fail(TR_EFAIL, "cannot write '%s': %s", path, strerror(errno ? errno : EIO)));
    rc = tr_tmpfile_commit(&f);
done:
    tr_tmpfile_release(&f);
    free(path);
    return rc;
}

static int write_weights(const struct tr_export *e, const char *folder)
{
    uint64_t total = 0;
    int64_t shards = 1, begin = 0;
    char name[64], *path;
    for (int64_t i = 0; i < e->n; i++) total += bytes_of(e, &e->params[i]);
    if (total > SHARD) { /* dealt in order, each as full as it goes */
        uint64_t in = 0;
        for (int64_t i = 0; i < e->n; i++) {
            if (in && in + bytes_of(e, &e->params[i]) > SHARD) shards++, in = 0;
            in += bytes_of(e, &e->params[i]);
        }
    }
    json_t *map = json_object();
    int rc = TR_OK;
    for (int64_t s = 1; s <= shards && rc == TR_OK; s++) {
        int64_t end = begin;
        uint64_t in = 0;
        while (end < e->n && (!in || shards == 1 || in + bytes_of(e, &e->params[end]) <= SHARD)) in += bytes_of(e, &e->params[end++]);
        if (shards == 1) strcpy(name, "model.safetensors");
        else snprintf(name, sizeof name, "model-%05" PRId64 "-of-%05" PRId64 ".safetensors", s, shards);
        for (int64_t i = begin; i < end; i++) json_object_set_new(map, e->params[i].name, json_string(name));
        rc = tr_path_join(&path, folder, name);
        if (rc == TR_OK) rc = write_shard(e, path, begin, end);
        if (rc == TR_OK) free(path);
        begin = end;
    }
    json_t *index = json_pack("{s:{s:I},s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    if (rc == TR_OK && shards > 1) rc = write_json(folder, "model.safetensors.index.json", index);
    json_decref(index);
    json_decref(map);
    return rc;
}

static int copy_file(const char *from, const char *to, const char *name)
{
    struct tr_buf text = { 0 };
    struct tr_tmpfile f = { 0 };
    char *a = NULL, *b = NULL;
    int rc;
    TR_GO(tr_path_join(&a, from, name));
    TR_GO(tr_path_join(&b, to, name));
    if (tr_exists(a)) {
        TR_GO(tr_read_file(&text, a));
        TR_GO(tr_tmpfile_open(&f, b));
        TR_GO(put(&f, text.data ? text.data : "", text.size));
        rc = tr_tmpfile_commit(&f);
    }
done:
    tr_tmpfile_release(&f);
    tr_buf_release(&text);
    free(a);
    free(b);
    return rc;
}

static int write_tokenizer(const struct tr_export *e, const char *folder)
{
    static const char *const files[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json", "merges.txt",
                                         "chat_template.jinja", "generation_config.json", "added_tokens.json" };
    json_t *tokenizer = NULL, *config = NULL;
    int rc = TR_OK;
    if (!e->origin) return TR_OK;
    if (!e->origin->gguf) {
        for (size_t i = 0; i < sizeof files / sizeof *files && rc == TR_OK; i++)
            if (strcmp(e->origin->path, folder)) rc = copy_file(e->origin->path, folder, files[i]);
        return rc;
    }
    TR_TRY(tr_tokenizer_json_from_gguf(&tokenizer, &config, e->origin->meta));
    if (tokenizer) rc = write_json(folder, "tokenizer.json", tokenizer);
    if (rc == TR_OK && config) rc = write_json(folder, "tokenizer_config.json", config);
    json_t *bos = json_object_get(e->origin->meta, "tokenizer.ggml.bos_token_id"), *eos = json_object_get(e->origin->meta, "tokenizer.ggml.eos_token_id");
    json_t *generation = json_object();
    if (bos) json_object_set(generation, "bos_token_id", bos);
    if (eos) json_object_set(generation, "eos_token_id", eos);
    if (rc == TR_OK) rc = write_json(folder, "generation_config.json", generation);
    json_decref(generation);
    json_decref(tokenizer);
    json_decref(config);
    return rc;
}

int tr_export_safetensors(const struct tr_export *e, const char *folder)
{
    json_t *config = NULL;
    int rc;
    TR_GO(tr_mkdirs(folder));
    TR_GO(write_weights(e, folder));
    TR_GO(write_tokenizer(e, folder));
    if (e->origin && !e->origin->gguf) {
        config = json_deep_copy(e->origin->meta);
        json_object_del(config, "torch_dtype");
        json_object_set_new(config, "dtype", json_string(e->dtype == TR_F32 ? "float32" : "bfloat16"));
    } else {
        config = tr_config_from_shape(e->shape, e->dtype);
        static const char *const ids[] = { "bos", "eos" };
        for (int i = 0; e->origin && i < 2; i++) {
            char from[64], to[32];
            snprintf(from, sizeof from, "tokenizer.ggml.%s_token_id", ids[i]);
            snprintf(to, sizeof to, "%s_token_id", ids[i]);
            if (json_object_get(e->origin->meta, from)) json_object_set(config, to, json_object_get(e->origin->meta, from));
        }
    }
    rc = write_json(folder, "config.json", config);
done:
    json_decref(config);
    return rc;
}

json_t *tr_config_from_shape(const struct tr_shape *s, enum tr_dtype dtype)
{
    static const char *const classes[TR_ARCHS] = { "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel" };
    json_t *c = json_pack("{s:[s],s:s,s:I,s:b,s:s,s:f}", "architectures", classes[s->arch], "model_type", tr_arch_name(s->arch), "vocab_size", (json_int_t)s->vocab,
                          "tie_word_embeddings", s->tied, "dtype", dtype == TR_F32 ? "float32" : "bfloat16", "initializer_range", s->init_std);
    struct { const char *key; json_int_t value; } llama[] = { { "hidden_size", s->hidden }, { "num_hidden_layers", s->layers }, { "num_attention_heads", s->heads },
        { "num_key_value_heads", s->kv_heads }, { "head_dim", s->head_dim }, { "intermediate_size", s->intermediate }, { "max_position_embeddings", s->context } },
        gpt2[] = { { "n_embd", s->hidden }, { "n_layer", s->layers }, { "n_head", s->heads }, { "n_inner", s->intermediate }, { "n_positions", s->context }, { "n_ctx", s->context } };
    if (s->arch == TR_GPT2) {
        for (size_t i = 0; i < sizeof gpt2 / sizeof *gpt2; i++) json_object_set_new(c, gpt2[i].key, json_integer(gpt2[i].value));
        json_object_set_new(c, "layer_norm_epsilon", json_real(s->norm_eps));
        json_object_set_new(c, "activation_function", json_string("gelu_new"));
        return c;
    }
    for (size_t i = 0; i < sizeof llama / sizeof *llama; i++) json_object_set_new(c, llama[i].key, json_integer(llama[i].value));
    json_object_set_new(c, "hidden_act", json_string("silu"));
    json_object_set_new(c, "rms_norm_eps", json_real(s->norm_eps));
    json_object_set_new(c, "rope_theta", json_real(s->rope_theta));
    if (s->arch != TR_QWEN2) json_object_set_new(c, "attention_bias", json_boolean(s->out_bias));
    if (s->mlp_bias) json_object_set_new(c, "mlp_bias", json_true());
    if (s->arch == TR_MISTRAL || s->window) json_object_set_new(c, "sliding_window", s->window ? json_integer(s->window) : json_null());
    if (s->window && s->arch != TR_MISTRAL) {
        json_object_set_new(c, "use_sliding_window", json_true());
        json_object_set_new(c, "max_window_layers", json_integer(0));
    }
    if (s->rope_llama3.on)
        json_object_set_new(c, "rope_scaling", json_pack("{s:s,s:f,s:f,s:f,s:I}", "rope_type", "llama3", "factor", s->rope_llama3.factor, "low_freq_factor", s->rope_llama3.low_freq,
                                                         "high_freq_factor", s->rope_llama3.high_freq, "original_max_position_embeddings", (json_int_t)s->rope_llama3.old_context));
    else if (s->rope_linear > 1) json_object_set_new(c, "rope_scaling", json_pack("{s:s,s:f}", "rope_type", "linear", "factor", s->rope_linear));
    return c;
}
