/* Hugging Face folders: config.json and safetensors files. */
#include "libtrain/base/status.h"
#include "libtrain/model/preset.h"
#include "libtrain/model/weights_impl.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- config.json */

static int number(const json_t *o, const char *key, const char *where, double fallback, double *out)
{
    const json_t *v = json_object_get(o, key);
    *out = fallback;
    if (!v || json_is_null(v)) return TR_OK;
    if (!json_is_number(v)) return tr_fail(TR_EINPUT, "'%s' (%s): it must be a number", key, where);
    *out = json_number_value(v);
    return TR_OK;
}

static int whole(const json_t *o, const char *key, const char *where, int64_t fallback, int64_t *out)
{
    double v;
    TR_TRY(number(o, key, where, (double)fallback, &v));
    if (!(v >= 0 && v < 1e15) || v != (double)(int64_t)v) return tr_fail(TR_EINPUT, "'%s' (%s): it must be a whole number", key, where);
    *out = (int64_t)v;
    return TR_OK;
}

static bool flag(const json_t *o, const char *key, bool fallback)
{
    const json_t *v = json_object_get(o, key);
    return json_is_boolean(v) ? json_is_true(v) : fallback;
}

/* rope_parameters (transformers 5) or rope_theta and rope_scaling (before). */
static int rope(struct tr_shape *s, const json_t *c, const char *where)
{
    const json_t *p = json_object_get(c, "rope_parameters");
    if (!json_is_object(p)) p = json_object_get(c, "rope_scaling");
    TR_TRY(number(c, "rope_theta", where, s->rope_theta, &s->rope_theta));
    if (!json_is_object(p)) return TR_OK;
    TR_TRY(number(p, "rope_theta", where, s->rope_theta, &s->rope_theta));
    const char *type = json_string_value(json_object_get(p, "rope_type"));
    if (!type) type = json_string_value(json_object_get(p, "type"));
    if (!type || !strcmp(type, "default")) return TR_OK;
    if (!strcmp(type, "linear")) return number(p, "factor", where, 1, &s->rope_linear);
    if (strcmp(type, "llama3")) return tr_fail(TR_EINPUT, "rope type '%.40s' (%s): only default, linear and llama3 are supported", type, where);
    s->rope_llama3.on = true;
    TR_TRY(number(p, "factor", where, 8, &s->rope_llama3.factor));
    TR_TRY(number(p, "low_freq_factor", where, 1, &s->rope_llama3.low_freq));
    TR_TRY(number(p, "high_freq_factor", where, 4, &s->rope_llama3.high_freq));
    return whole(p, "original_max_position_embeddings", where, 8192, &s->rope_llama3.old_context);
}

static int gpt2_shape(struct tr_shape *s, const json_t *c, const char *where)
{
    TR_TRY(whole(c, "n_embd", where, 768, &s->hidden));
    TR_TRY(whole(c, "n_layer", where, 12, &s->layers));
    TR_TRY(whole(c, "n_head", where, 12, &s->heads));
    TR_TRY(whole(c, "n_inner", where, 4 * s->hidden, &s->intermediate));
    TR_TRY(whole(c, "n_positions", where, 1024, &s->context));
    TR_TRY(whole(c, "vocab_size", where, 50257, &s->vocab));
    TR_TRY(number(c, "layer_norm_epsilon", where, 1e-5, &s->norm_eps));
    const char *act = json_string_value(json_object_get(c, "activation_function"));
    if (act && strcmp(act, "gelu_new") && strcmp(act, "gelu_pytorch_tanh")) return tr_fail(TR_EINPUT, "activation '%.40s' (%s): only gelu_new is supported for gpt2", act, where);
    s->kv_heads = s->heads;
    if (s->heads > 0) s->head_dim = s->hidden / s->heads;
    s->tied = flag(c, "tie_word_embeddings", true);
    return TR_OK;
}

int tr_shape_from_config(struct tr_shape *s, const json_t *c, const char *where)
{
    const char *type = json_string_value(json_object_get(c, "model_type"));
    int arch = 0;
    if (!type) return tr_fail(TR_EINPUT, "'model_type' (%s): it is missing", where);
    while (arch < TR_ARCHS && strcmp(type, tr_arch_name((enum tr_arch)arch))) arch++;
    if (arch == TR_ARCHS) return tr_fail(TR_EINPUT, "model_type '%.40s' (%s): supported are llama, mistral, qwen2, qwen3 and gpt2", type, where);
    *s = tr_shape_default((enum tr_arch)arch);
    TR_TRY(number(c, "initializer_range", where, 0.02, &s->init_std));
    if (arch == TR_GPT2) return gpt2_shape(s, c, where);
    const char *act = json_string_value(json_object_get(c, "hidden_act"));
    if (act && strcmp(act, "silu") && strcmp(act, "swish")) return tr_fail(TR_EINPUT, "activation '%.40s' (%s): only silu is supported", act, where);
    TR_TRY(whole(c, "hidden_size", where, 0, &s->hidden));
    TR_TRY(whole(c, "num_hidden_layers", where, 0, &s->layers));
    TR_TRY(whole(c, "num_attention_heads", where, 0, &s->heads));
    TR_TRY(whole(c, "num_key_value_heads", where, s->heads, &s->kv_heads));
    TR_TRY(whole(c, "head_dim", where, s->heads > 0 ? s->hidden / s->heads : 0, &s->head_dim));
    TR_TRY(whole(c, "intermediate_size", where, 0, &s->intermediate));
    TR_TRY(whole(c, "vocab_size", where, 0, &s->vocab));
    TR_TRY(whole(c, "max_position_embeddings", where, 2048, &s->context));
    TR_TRY(number(c, "rms_norm_eps", where, 1e-6, &s->norm_eps));
    TR_TRY(rope(s, c, where));
    s->tied = flag(c, "tie_word_embeddings", false);
    bool bias = flag(c, "attention_bias", arch == TR_QWEN2);
    s->qkv_bias = bias || arch == TR_QWEN2;
    s->out_bias = bias && arch != TR_QWEN2;
    s->mlp_bias = flag(c, "mlp_bias", false);
    int64_t from_layer;
    if (arch == TR_MISTRAL || flag(c, "use_sliding_window", false)) TR_TRY(whole(c, "sliding_window", where, 0, &s->window));
    TR_TRY(whole(c, "max_window_layers", where, 0, &from_layer));
    if (arch != TR_MISTRAL && s->window && from_layer > 0) {
        if (from_layer >= s->layers) s->window = 0; /* no layer is beyond it */
        else return tr_fail(TR_EINPUT, "'max_window_layers' (%s): a sliding window in only some layers is not supported", where);
    }
    return TR_OK;
}

/* ---- safetensors: 8 bytes of header size, a JSON header, the data */

static int dtype_of(const char *name, enum tr_stored *out)
{
    static const struct { const char *name; enum tr_stored type; } types[] = { { "F32", ST_F32 }, { "F16", ST_F16 }, { "BF16", ST_BF16 }, { "F64", ST_F64 } };
    for (int i = 0; name && i < 4; i++)
        if (!strcmp(name, types[i].name)) return *out = types[i].type, TR_OK;
    return TR_EINPUT;
}

static int add_tensor(struct tr_weights *w, const char *file, int index, const char *name, const json_t *t, uint64_t base)
{
    enum tr_stored type;
    const json_t *shape = json_object_get(t, "shape"), *at = json_object_get(t, "data_offsets");
    const char *dtype = json_string_value(json_object_get(t, "dtype"));
    if (!json_is_array(shape) || json_array_size(at) != 2 || !json_is_integer(json_array_get(at, 0)) || !json_is_integer(json_array_get(at, 1)))
        return tr_fail(TR_EINPUT, "tensor '%.80s' (%s): its header entry is damaged", name, file);
    if (dtype_of(dtype, &type)) return tr_fail(TR_EINPUT, "tensor '%.80s' (%s): its type %.20s is not supported (F32, F16, BF16, F64)", name, file, dtype ? dtype : "?");
    int ndim = (int)json_array_size(shape);
    int64_t dim[4] = { 1 };
    if (json_array_size(shape) > 4) return tr_fail(TR_EINPUT, "tensor '%.80s' (%s): it has more than four dimensions", name, file);
    for (int i = 0; i < ndim; i++) {
        if (!json_is_integer(json_array_get(shape, (size_t)i))) return tr_fail(TR_EINPUT, "tensor '%.80s' (%s): its shape is damaged", name, file);
        dim[i] = json_integer_value(json_array_get(shape, (size_t)i));
    }
    int64_t begin = json_integer_value(json_array_get(at, 0)), end = json_integer_value(json_array_get(at, 1));
    if (begin < 0 || end < begin) return tr_fail(TR_EINPUT, "tensor '%.80s' (%s): its offsets are damaged", name, file);
    char full[160];
    bool gpt2 = w->shape.arch == TR_GPT2, bare = gpt2 && strncmp(name, "transformer.", 12) && strcmp(name, "lm_head.weight");
    if (strlen(name) > 120) return tr_fail(TR_EINPUT, "tensor name '%.60s...' (%s): it is too long", name, file);
    snprintf(full, sizeof full, "%s%s", bare ? "transformer." : "", name);
    bool conv1d = gpt2 && ndim == 2 && strstr(full, ".h.") && (strstr(full, "c_attn.weight") || strstr(full, "c_proj.weight") || strstr(full, "c_fc.weight"));
    TR_TRY(tr_weights_add(w, full, type, ndim ? ndim : 1, dim, index, base + (uint64_t)begin, conv1d));
    if (w->entry[w->n - 1].bytes != (uint64_t)(end - begin)) return tr_fail(TR_EINPUT, "tensor '%.80s' (%s): its offsets do not fit its shape", name, file);
    return TR_OK;
}

static int open_safetensors(struct tr_weights *w, const char *file)
{
    int index = w->n_maps;
    struct tr_map *more = realloc(w->map, (size_t)(index + 1) * sizeof *more);
    if (!more) return tr_fail(TR_EFAIL, "no memory");
    w->map = more;
    TR_TRY(tr_map_open(&w->map[index], file));
    w->n_maps++;
    const struct tr_map *m = &w->map[index];
    uint64_t size = 0;
    for (int i = 7; m->size >= 8 && i >= 0; i--) size = size << 8 | m->data[i];
    if (m->size < 8 || size > m->size - 8) return tr_fail(TR_EINPUT, "'%s': its header ends beyond the file; the file is truncated or no safetensors file", file);
    json_error_t error;
    json_t *header = json_loadb((const char *)m->data + 8, (size_t)size, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(header)) {
        json_decref(header);
        return tr_fail(TR_EINPUT, "'%s': its header is no JSON object (%.100s); the file is damaged", file, error.text);
    }
    int rc = TR_OK;
    const char *name;
    json_t *t;
    json_object_foreach(header, name, t)
        if (rc == TR_OK && strcmp(name, "__metadata__")) rc = add_tensor(w, file, index, name, t, 8 + size);
    json_decref(header);
    return rc;
}

static int open_in(struct tr_weights *w, const char *folder, const char *name)
{
    char *file;
    if (strchr(name, '/') || !strcmp(name, "..")) return tr_fail(TR_EINPUT, "file name '%.80s' (%s): it leaves the folder", name, folder);
    TR_TRY(tr_path_join(&file, folder, name));
    int rc = open_safetensors(w, file);
    free(file);
    return rc;
}

static int load_json(json_t **out, const char *folder, const char *name)
{
    char *file;
    json_error_t error;
    TR_TRY(tr_path_join(&file, folder, name));
    struct tr_buf text = { 0 };
    int rc = tr_read_file(&text, file);
    if (rc == TR_OK) *out = json_loadb(text.data ? text.data : "", text.size, JSON_REJECT_DUPLICATES, &error);
    if (rc == TR_OK && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        rc = tr_fail(TR_EINPUT, "'%s' (line %d): it is no JSON object: %.100s", file, error.line, error.text);
    }
    tr_buf_release(&text);
    free(file);
    return rc;
}

static int open_shards(struct tr_weights *w, const char *folder)
{
    json_t *index = NULL, *v;
    const char *name;
    TR_TRY(load_json(&index, folder, "model.safetensors.index.json"));
    json_t *map = json_object_get(index, "weight_map"), *files = json_object();
    int rc = json_is_object(map) && files ? TR_OK : tr_fail(TR_EINPUT, "'%s/model.safetensors.index.json': it has no weight_map", folder);
    json_object_foreach(map, name, v) if (json_is_string(v)) json_object_set_new(files, json_string_value(v), json_true());
    json_object_foreach(files, name, v) if (rc == TR_OK) rc = open_in(w, folder, name);
    json_decref(files);
    json_decref(index);
    return rc;
}

int tr_open_hf(struct tr_weights *w, const char *path)
{
    char *folder = NULL, *file = NULL, *config = NULL;
    bool single = !tr_is_dir(path);
    int rc;
    if (single) {
        const char *slash = strrchr(path, '/');
        TR_TRY(slash ? tr_strndup(&folder, path, (size_t)(slash - path)) : tr_strdup(&folder, "."));
    } else TR_TRY(tr_strdup(&folder, path));
    TR_GO(tr_path_join(&config, folder, "config.json"));
    TR_GO(load_json(&w->meta, folder, "config.json"));
    TR_GO(tr_shape_from_config(&w->shape, w->meta, config));
    TR_GO(tr_path_join(&file, folder, "model.safetensors"));
    if (single) TR_GO(open_safetensors(w, path));
    else if (tr_exists(file)) TR_GO(open_safetensors(w, file));
    else TR_GO(open_shards(w, folder));
done:
    free(config);
    free(file);
    free(folder);
    return rc;
}
