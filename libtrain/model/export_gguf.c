/* A GGUF v3 file: metadata (copied from a GGUF origin as it stands, or made from shape and tokenizer), tensor infos,
 * aligned data. Matrices in F32 or BF16, vectors in F32; llama's q and k rows go back to interleaved pairs. */
#include "libtrain/base/status.h"
#include "libtrain/model/export.h"
#include "libtrain/base/dtype.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { U32 = 4, I32 = 5, F32 = 6, BOOL = 7, STRING = 8, ARRAY = 9, ALIGN = 32, GGML_F32 = 0, GGML_BF16 = 30 };

static int add_u32(struct tr_buf *b, uint32_t v) { return tr_buf_add(b, &v, 4); }
static int add_u64(struct tr_buf *b, uint64_t v) { return tr_buf_add(b, &v, 8); }
static int add_text(struct tr_buf *b, const char *s, size_t n)
{
    TR_TRY(add_u64(b, n));
    return tr_buf_add(b, s, n);
}

static int kv_u32(struct tr_buf *b, uint64_t *n, const char *key, int64_t v)
{
    ++*n;
    TR_TRY(add_text(b, key, strlen(key)));
    TR_TRY(add_u32(b, U32));
    return add_u32(b, (uint32_t)v);
}

static int kv_f32(struct tr_buf *b, uint64_t *n, const char *key, double v)
{
    float f = (float)v;
    ++*n;
    TR_TRY(add_text(b, key, strlen(key)));
    TR_TRY(add_u32(b, F32));
    return tr_buf_add(b, &f, 4);
}

static int kv_text(struct tr_buf *b, uint64_t *n, const char *key, const char *v)
{
    ++*n;
    TR_TRY(add_text(b, key, strlen(key)));
    TR_TRY(add_u32(b, STRING));
    return add_text(b, v, strlen(v));
}

/* A JSON value under GGUF's types for tokenizers: text, bool, u32; arrays of text, f32 (scores) or i32. */
static int kv_json(struct tr_buf *b, uint64_t *n, const char *key, const json_t *v)
{
    if (json_is_string(v)) return kv_text(b, n, key, json_string_value(v));
    if (json_is_integer(v)) return kv_u32(b, n, key, json_integer_value(v));
    ++*n;
    TR_TRY(add_text(b, key, strlen(key)));
    if (json_is_boolean(v)) {
        TR_TRY(add_u32(b, BOOL));
        return tr_buf_add(b, json_is_true(v) ? "\1" : "\0", 1);
    }
    const json_t *first = json_array_get(v, 0);
    uint32_t type = json_is_string(first) ? STRING : json_is_real(first) ? F32 : I32;
    TR_TRY(add_u32(b, ARRAY));
    TR_TRY(add_u32(b, type));
    TR_TRY(add_u64(b, json_array_size(v)));
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *e = json_array_get(v, i);
        float f = (float)json_number_value(e);
        if (type == STRING) TR_TRY(add_text(b, json_string_value(e) ? json_string_value(e) : "", json_string_length(e)));
        else if (type == F32) TR_TRY(tr_buf_add(b, &f, 4));
        else TR_TRY(add_u32(b, (uint32_t)(int32_t)json_integer_value(e)));
    }
    return TR_OK;
}

/* llama.cpp knows mistral as llama. */
static const char *arch_of(const struct tr_shape *s) { return s->arch == TR_MISTRAL ? "llama" : tr_arch_name(s->arch); }

static int metadata_of_shape(struct tr_buf *b, uint64_t *n, const struct tr_shape *s, enum tr_dtype dtype)
{
    const char *a = arch_of(s);
    char key[96];
    TR_TRY(kv_text(b, n, "general.architecture", a));
    TR_TRY(kv_u32(b, n, "general.file_type", dtype == TR_F32 ? 0 : 32));
    struct { const char *key; int64_t value; bool use; } ints[] = {
        { "context_length", s->context, true }, { "embedding_length", s->hidden, true }, { "block_count", s->layers, true }, { "feed_forward_length", s->intermediate, true },
        { "attention.head_count", s->heads, true }, { "attention.head_count_kv", s->kv_heads, true }, { "attention.sliding_window", s->window, s->window > 0 },
        { "attention.key_length", s->head_dim, s->arch != TR_GPT2 }, { "attention.value_length", s->head_dim, s->arch != TR_GPT2 },
        { "rope.dimension_count", s->head_dim, s->arch != TR_GPT2 }, { "vocab_size", s->vocab, true } };
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        snprintf(key, sizeof key, "%s.%s", a, ints[i].key);
        if (ints[i].use) TR_TRY(kv_u32(b, n, key, ints[i].value));
    }
    snprintf(key, sizeof key, "%s.attention.%s", a, s->arch == TR_GPT2 ? "layer_norm_epsilon" : "layer_norm_rms_epsilon");
    TR_TRY(kv_f32(b, n, key, s->norm_eps));
    if (s->arch == TR_GPT2) return TR_OK;
    snprintf(key, sizeof key, "%s.rope.freq_base", a);
    TR_TRY(kv_f32(b, n, key, s->rope_theta));
    if (!(s->rope_linear > 1)) return TR_OK;
    snprintf(key, sizeof key, "%s.rope.scaling.type", a);
    TR_TRY(kv_text(b, n, key, "linear"));
    snprintf(key, sizeof key, "%s.rope.scaling.factor", a);
    return kv_f32(b, n, key, s->rope_linear);
}

/* The origin's key/value bytes as they stand, with general.file_type set to ours. */
static int metadata_of_origin(struct tr_buf *b, uint64_t *n, const struct tr_weights *w, enum tr_dtype dtype)
{
    static const char key[] = "\x11\0\0\0\0\0\0\0general.file_type\4\0\0\0";
    const unsigned char *kv = w->map[0].data + w->kv_begin;
    *n = w->n_kv;
    TR_TRY(tr_buf_add(b, kv, w->kv_end - w->kv_begin));
    char *at = memmem(b->data, b->size, key, sizeof key - 1);
    uint32_t type = dtype == TR_F32 ? 0 : 32;
    if (!at) return kv_u32(b, n, "general.file_type", type);
    memcpy(at + sizeof key - 1, &type, 4);
    return TR_OK;
}

static int metadata(struct tr_buf *b, uint64_t *n, const struct tr_export *e)
{
    if (e->origin && e->origin->gguf) return metadata_of_origin(b, n, e->origin, e->dtype);
    TR_TRY(metadata_of_shape(b, n, e->shape, e->dtype));
    if (!e->origin) return TR_OK;
    json_t *tokenizer, *v;
    const char *key;
    TR_TRY(tr_gguf_tokenizer_from_folder(&tokenizer, e->origin->path));
    int rc = TR_OK;
    json_object_foreach(tokenizer, key, v) if (rc == TR_OK) rc = kv_json(b, n, key, v);
    json_decref(tokenizer);
    return rc;
}

static uint64_t aligned(uint64_t x) { return (x + ALIGN - 1) / ALIGN * ALIGN; }
static enum tr_dtype stored_as(const struct tr_export *e, const struct tr_param *p) { return p->value.ndim == 1 ? TR_F32 : e->dtype; }

static int info(struct tr_buf *b, const char *name, int ndim, const int64_t *dim, uint32_t type, uint64_t offset)
{
    TR_TRY(add_text(b, name, strlen(name)));
    TR_TRY(add_u32(b, (uint32_t)ndim));
    for (int k = ndim; k-- > 0;) TR_TRY(add_u64(b, (uint64_t)dim[k]));
    TR_TRY(add_u32(b, type));
    return add_u64(b, offset);
}

static int put(struct tr_tmpfile *f, const void *data, size_t n)
{
    return fwrite(data, 1, n, f->f) == n ? TR_OK : tr_fail(TR_EFAIL, "cannot write '%s': %s", f->path, strerror(errno ? errno : EIO));
}

static int pad(struct tr_tmpfile *f, uint64_t from)
{
    static const char zeros[ALIGN];
    return put(f, zeros, (size_t)(aligned(from) - from));
}

/* Heads whose rows are interleaved pairs in the file; 0 = none. */
static int64_t pairs(const struct tr_export *e, const struct tr_param *p)
{
    bool llama = e->shape->arch == TR_LLAMA || e->shape->arch == TR_MISTRAL;
    return !llama ? 0 : strstr(p->name, "q_proj.weight") ? e->shape->heads : strstr(p->name, "k_proj.weight") ? e->shape->kv_heads : 0;
}

static int put_param(struct tr_tmpfile *f, const struct tr_export *e, int64_t i)
{
    const struct tr_param *p = &e->params[i];
    int64_t rows = tr_rows(&p->value), cols = tr_cols(&p->value), heads = pairs(e, p), D = heads ? rows / heads : 0;
    int64_t step = D ? D : (1 << 20) / cols + 1;
    enum tr_dtype dtype = stored_as(e, p);
    float *x;
    TR_TRY(tr_calloc(&x, (size_t)(step * cols), sizeof *x));
    int rc = TR_OK;
    for (int64_t r = 0; r < rows && rc == TR_OK; r += step) {
        int64_t n = rows - r < step ? rows - r : step;
        rc = e->read(e->self, i, r, n, x);
        for (int64_t k = 0; k < n && rc == TR_OK; k++) { /* row k of the file: pair k/2, half k%2 */
            float *row = x + (D ? (k % 2) * (D / 2) + k / 2 : k) * cols;
            if (dtype == TR_F32) rc = put(f, row, (size_t)cols * 4);
            else
                for (int64_t c = 0; c < cols && rc == TR_OK; c++) {
                    uint16_t h = tr_f32_to_bf16(row[c]);
                    rc = put(f, &h, 2);
                }
        }
    }
    free(x);
    return rc == TR_OK ? pad(f, (uint64_t)(rows * cols) * tr_dtype_size(dtype)) : rc;
}

/* llama3's divisors of each frequency, which llama.cpp reads as a tensor. */
static void rope_freqs(const struct tr_shape *s, float *out)
{
    double lo = s->rope_llama3.low_freq, hi = s->rope_llama3.high_freq, old = (double)s->rope_llama3.old_context, f = s->rope_llama3.factor;
    for (int64_t i = 0; i < s->head_dim / 2; i++) {
        double wave = 2 * M_PI * pow(s->rope_theta, 2.0 * (double)i / (double)s->head_dim), t = (old / wave - lo) / (hi - lo);
        out[i] = (float)(wave < old / hi ? 1 : wave > old / lo ? f : 1 / ((1 - t) / f + t));
    }
}

int tr_export_gguf(const struct tr_export *e, const char *path)
{
    struct tr_buf kv = { 0 }, infos = { 0 }, head = { 0 };
    struct tr_tmpfile f = { 0 };
    uint64_t n_kv = 0, n = 0, at = 0;
    bool gpt2 = e->shape->arch == TR_GPT2, freqs = e->shape->rope_llama3.on;
    float divisor[256];
    int rc;
    TR_GO(metadata(&kv, &n_kv, e));
    for (int64_t i = 0; i < e->n; i++) {
        const struct tr_param *p = &e->params[i];
        char name[128];
        if (!tr_hf_to_gguf(name, sizeof name, p->name, gpt2)) TR_GO(tr_fail(TR_EFAIL, "parameter '%s' has no name in GGUF; export as safetensors", p->name));
        TR_GO(info(&infos, name, p->value.ndim, p->value.dim, stored_as(e, p) == TR_F32 ? GGML_F32 : GGML_BF16, at));
        at = aligned(at + (uint64_t)tr_count(&p->value) * tr_dtype_size(stored_as(e, p)));
        n++;
    }
    if (freqs) {
        rope_freqs(e->shape, divisor);
        TR_GO(info(&infos, "rope_freqs.weight", 1, (int64_t[]){ e->shape->head_dim / 2 }, GGML_F32, at));
        n++;
    }
    TR_GO(tr_buf_puts(&head, "GGUF"));
    TR_GO(add_u32(&head, 3));
    TR_GO(add_u64(&head, n));
    TR_GO(add_u64(&head, n_kv));
    TR_GO(tr_tmpfile_open(&f, path));
    TR_GO(put(&f, head.data, head.size));
    TR_GO(put(&f, kv.data, kv.size));
    TR_GO(put(&f, infos.data, infos.size));
    TR_GO(pad(&f, head.size + kv.size + infos.size));
    for (int64_t i = 0; i < e->n; i++) TR_GO(put_param(&f, e, i));
    if (freqs) TR_GO(put(&f, divisor, (size_t)(e->shape->head_dim / 2) * 4));
    rc = tr_tmpfile_commit(&f);
done:
    tr_tmpfile_release(&f);
    tr_buf_release(&head);
    tr_buf_release(&infos);
    tr_buf_release(&kv);
    return rc;
}
