/* GGUF v2 and v3: magic, version, counts, key/value metadata, tensor infos, aligned data. Everything is checked against
 * the file's size before it is used. */
#include "libtrain/base/status.h"
#include "libtrain/model/preset.h"
#include "libtrain/model/weights_impl.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reader { const unsigned char *p, *end; const char *path; };

static int cut(const struct reader *r) { return tr_fail(TR_EINPUT, "'%s': it ends inside its header; the file is truncated or damaged, fetch it again", r->path); }

static int get(struct reader *r, void *out, size_t n)
{
    if ((size_t)(r->end - r->p) < n) return cut(r);
    memcpy(out, r->p, n);
    r->p += n;
    return TR_OK;
}

static int get_text(struct reader *r, const char **text, size_t *n)
{
    uint64_t size;
    TR_TRY(get(r, &size, 8));
    if (size > (uint64_t)(r->end - r->p)) return cut(r);
    *text = (const char *)r->p;
    *n = (size_t)size;
    r->p += size;
    return TR_OK;
}

/* ---- metadata */

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

static int scalar(struct reader *r, uint32_t type, json_t **out)
{
    uint8_t u8; int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32; uint64_t u64; int64_t i64; float f; double d;
    const char *s;
    size_t n;
    switch (type) {
    case U8: TR_TRY(get(r, &u8, 1)); *out = json_integer(u8); break;
    case I8: TR_TRY(get(r, &i8, 1)); *out = json_integer(i8); break;
    case U16: TR_TRY(get(r, &u16, 2)); *out = json_integer(u16); break;
    case I16: TR_TRY(get(r, &i16, 2)); *out = json_integer(i16); break;
    case U32: TR_TRY(get(r, &u32, 4)); *out = json_integer(u32); break;
    case I32: TR_TRY(get(r, &i32, 4)); *out = json_integer(i32); break;
    case U64: TR_TRY(get(r, &u64, 8)); *out = json_integer((json_int_t)u64); break;
    case I64: TR_TRY(get(r, &i64, 8)); *out = json_integer(i64); break;
    case F32: TR_TRY(get(r, &f, 4)); *out = json_real(isfinite(f) ? (double)f : 0); break;
    case F64: TR_TRY(get(r, &d, 8)); *out = json_real(isfinite(d) ? d : 0); break;
    case BOOL: TR_TRY(get(r, &u8, 1)); *out = json_boolean(u8); break;
    case STRING:
        TR_TRY(get_text(r, &s, &n));
        *out = json_stringn(s, n);
        if (!*out) *out = json_stringn_nocheck("", 0); /* not UTF-8: nobody can use it, but the file may be fine without */
        break;
    default: return tr_fail(TR_EINPUT, "'%s': value type %u is unknown; the file is damaged", r->path, type);
    }
    return *out ? TR_OK : tr_fail(TR_EFAIL, "no memory for the metadata of '%s'", r->path);
}

static int value(struct reader *r, uint32_t type, json_t **out)
{
    uint32_t of;
    uint64_t n;
    if (type != ARRAY) return scalar(r, type, out);
    TR_TRY(get(r, &of, 4));
    TR_TRY(get(r, &n, 8));
    if (of == ARRAY) return tr_fail(TR_EINPUT, "'%s': arrays of arrays are not supported", r->path);
    if (n > (uint64_t)(r->end - r->p)) return cut(r); /* an element takes a byte at least */
    json_t *a = json_array();
    int rc = a ? TR_OK : tr_fail(TR_EFAIL, "no memory for the metadata of '%s'", r->path);
    for (uint64_t i = 0; i < n && rc == TR_OK; i++) {
        json_t *v = NULL;
        rc = scalar(r, of, &v);
        if (rc == TR_OK && json_array_append_new(a, v)) rc = tr_fail(TR_EFAIL, "no memory for the metadata of '%s'", r->path);
    }
    if (rc != TR_OK) json_decref(a);
    else *out = a;
    return rc;
}

static int read_metadata(struct reader *r, uint64_t n, json_t *meta)
{
    for (uint64_t i = 0; i < n; i++) {
        const char *name;
        size_t size;
        uint32_t type;
        json_t *v;
        TR_TRY(get_text(r, &name, &size));
        if (size == 0 || size > 65535) return tr_fail(TR_EINPUT, "'%s': a metadata key of %zu bytes; the file is damaged", r->path, size);
        TR_TRY(get(r, &type, 4));
        TR_TRY(value(r, type, &v));
        if (json_object_setn_new(meta, name, size, v)) return tr_fail(TR_EINPUT, "'%s': a metadata key is not UTF-8; the file is damaged", r->path);
    }
    return TR_OK;
}

/* ---- shape */

struct meta { const json_t *o; const char *arch, *path; };

static double real(const struct meta *m, const char *key, double fallback)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", m->arch, key);
    const json_t *v = json_object_get(m->o, name);
    return json_is_number(v) ? json_number_value(v) : fallback;
}

static int64_t whole(const struct meta *m, const char *key, int64_t fallback)
{
    double v = real(m, key, (double)fallback);
    return v >= 0 && v < 1e15 ? (int64_t)v : -1;
}

static int shape_of(struct tr_shape *s, const struct meta *m, bool tied)
{
    enum tr_arch arch = TR_ARCHS;
    static const struct { const char *name; enum tr_arch arch; } known[] = { { "llama", TR_LLAMA }, { "mistral", TR_MISTRAL }, { "qwen2", TR_QWEN2 }, { "qwen3", TR_QWEN3 }, { "gpt2", TR_GPT2 } };
    for (int i = 0; i < 5; i++)
        if (!strcmp(m->arch, known[i].name)) arch = known[i].arch;
    if (arch == TR_ARCHS) return tr_fail(TR_EINPUT, "architecture '%.40s' ('%s'): supported are llama, mistral, qwen2, qwen3 and gpt2", m->arch, m->path);
    *s = tr_shape_default(arch);
    s->hidden = whole(m, "embedding_length", 0);
    s->layers = whole(m, "block_count", 0);
    s->heads = whole(m, "attention.head_count", 0);
    s->kv_heads = whole(m, "attention.head_count_kv", s->heads);
    s->head_dim = whole(m, "attention.key_length", s->heads > 0 ? s->hidden / s->heads : 0);
    s->intermediate = whole(m, "feed_forward_length", 0);
    s->context = whole(m, "context_length", 2048);
    s->norm_eps = real(m, arch == TR_GPT2 ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", s->norm_eps);
    s->rope_theta = real(m, "rope.freq_base", s->rope_theta);
    s->window = whole(m, "attention.sliding_window", 0);
    s->tied = tied;
    char key[128];
    snprintf(key, sizeof key, "%s.rope.scaling.type", m->arch);
    const char *type = json_string_value(json_object_get(m->o, key));
    if (type && !strcmp(type, "linear")) s->rope_linear = real(m, "rope.scaling.factor", 1);
    else if (type && strcmp(type, "none")) return tr_fail(TR_EINPUT, "rope scaling '%.40s' ('%s'): only linear and llama3 are supported", type, m->path);
    return TR_OK;
}

/* The rope_freqs tensor holds the divisors that llama3 scaling gives each frequency; the parameters behind it are the
 * published ones, of which factor and old context are found from the divisors. */
static int llama3_from(struct tr_weights *w, const struct tr_weight_entry *e)
{
    struct tr_shape *s = &w->shape;
    int64_t half = s->head_dim / 2;
    if (e->ndim != 1 || e->dim[0] != half || half > 256 || strcmp(e->stored, "F32"))
        return tr_fail(TR_EINPUT, "tensor 'rope_freqs.weight' (%s): it does not fit the head size", w->path);
    float divisor[256], last;
    TR_TRY(tr_weights_read(w, e, 0, 1, divisor));
    last = divisor[half - 1];
    if (!(last >= 1)) return tr_fail(TR_EINPUT, "tensor 'rope_freqs.weight' (%s): its values do not make sense", w->path);
    s->rope_llama3.on = true;
    s->rope_llama3.factor = (double)last;
    s->rope_llama3.low_freq = 1;
    s->rope_llama3.high_freq = 4;
    s->rope_llama3.old_context = 8192;
    for (int64_t i = 0; i < half; i++) { /* smooth band: 1/divisor = (1 - t)/factor + t, t = (old/wave - 1)/3 */
        double inv = 1 / pow(s->rope_theta, 2.0 * (double)i / (double)s->head_dim), wave = 2 * M_PI / inv, d = (double)divisor[i];
        if (d <= 1.0001 || d >= (double)last * 0.9999) continue;
        double t = (1 / d - 1 / (double)last) / (1 - 1 / (double)last), old = (1 + 3 * t) * wave;
        s->rope_llama3.old_context = (int64_t)llround(old / 1024) * 1024;
        break;
    }
    return TR_OK;
}

/* ---- names */

static const struct { const char *gguf, *llama, *gpt2; } block_names[] = {
    { "attn_q.weight", "self_attn.q_proj.weight", NULL }, { "attn_k.weight", "self_attn.k_proj.weight", NULL },
    { "attn_v.weight", "self_attn.v_proj.weight", NULL }, { "attn_q.bias", "self_attn.q_proj.bias", NULL },
    { "attn_k.bias", "self_attn.k_proj.bias", NULL }, { "attn_v.bias", "self_attn.v_proj.bias", NULL },
    { "attn_output.weight", "self_attn.o_proj.weight", "attn.c_proj.weight" }, { "attn_output.bias", "self_attn.o_proj.bias", "attn.c_proj.bias" },
    { "attn_q_norm.weight", "self_attn.q_norm.weight", NULL }, { "attn_k_norm.weight", "self_attn.k_norm.weight", NULL },
    { "ffn_gate.weight", "mlp.gate_proj.weight", NULL }, { "ffn_gate.bias", "mlp.gate_proj.bias", NULL },
    { "ffn_up.weight", "mlp.up_proj.weight", "mlp.c_fc.weight" }, { "ffn_up.bias", "mlp.up_proj.bias", "mlp.c_fc.bias" },
    { "ffn_down.weight", "mlp.down_proj.weight", "mlp.c_proj.weight" }, { "ffn_down.bias", "mlp.down_proj.bias", "mlp.c_proj.bias" },
    { "attn_norm.weight", "input_layernorm.weight", "ln_1.weight" }, { "attn_norm.bias", NULL, "ln_1.bias" },
    { "ffn_norm.weight", "post_attention_layernorm.weight", "ln_2.weight" }, { "ffn_norm.bias", NULL, "ln_2.bias" },
    { "attn_qkv.weight", NULL, "attn.c_attn.weight" }, { "attn_qkv.bias", NULL, "attn.c_attn.bias" },
};
static const struct { const char *gguf, *llama, *gpt2; } top_names[] = {
    { "token_embd.weight", "model.embed_tokens.weight", "transformer.wte.weight" }, { "position_embd.weight", NULL, "transformer.wpe.weight" },
    { "output_norm.weight", "model.norm.weight", "transformer.ln_f.weight" }, { "output_norm.bias", NULL, "transformer.ln_f.bias" },
    { "output.weight", "lm_head.weight", "lm_head.weight" },
};

bool tr_gguf_to_hf(char *out, size_t size, const char *name, bool gpt2)
{
    int block, used = 0;
    if (sscanf(name, "blk.%d.%n", &block, &used) == 1 && used > 0 && block >= 0)
        for (size_t i = 0; i < sizeof block_names / sizeof *block_names; i++) {
            const char *to = gpt2 ? block_names[i].gpt2 : block_names[i].llama;
            if (to && !strcmp(name + used, block_names[i].gguf)) return snprintf(out, size, gpt2 ? "transformer.h.%d.%s" : "model.layers.%d.%s", block, to) < (int)size;
        }
    for (size_t i = 0; i < sizeof top_names / sizeof *top_names; i++) {
        const char *to = gpt2 ? top_names[i].gpt2 : top_names[i].llama;
        if (to && !strcmp(name, top_names[i].gguf)) return snprintf(out, size, "%s", to) < (int)size;
    }
    return false;
}

bool tr_hf_to_gguf(char *out, size_t size, const char *name, bool gpt2)
{
    int block, used = 0;
    if (sscanf(name, gpt2 ? "transformer.h.%d.%n" : "model.layers.%d.%n", &block, &used) == 1 && used > 0)
        for (size_t i = 0; i < sizeof block_names / sizeof *block_names; i++) {
            const char *from = gpt2 ? block_names[i].gpt2 : block_names[i].llama;
            if (from && !strcmp(name + used, from)) return snprintf(out, size, "blk.%d.%s", block, block_names[i].gguf) < (int)size;
        }
    for (size_t i = 0; i < sizeof top_names / sizeof *top_names; i++) {
        const char *from = gpt2 ? top_names[i].gpt2 : top_names[i].llama;
        if (from && !strcmp(name, from)) return snprintf(out, size, "%s", top_names[i].gguf) < (int)size;
    }
    return false;
}

/* ---- tensors */

static int type_of(uint32_t ggml, enum tr_stored *out)
{
    static const struct { uint32_t ggml; enum tr_stored type; } types[] = { { 0, ST_F32 }, { 1, ST_F16 }, { 2, ST_Q4_0 }, { 3, ST_Q4_1 }, { 6, ST_Q5_0 },
        { 7, ST_Q5_1 }, { 8, ST_Q8_0 }, { 12, ST_Q4_K }, { 13, ST_Q5_K }, { 14, ST_Q6_K }, { 28, ST_F64 }, { 30, ST_BF16 } };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].ggml == ggml) return *out = types[i].type, TR_OK;
    return TR_EINPUT;
}

struct info { char name[128]; uint32_t ndim, type; int64_t dim[4]; uint64_t offset; };

static int read_info(struct reader *r, struct info *t)
{
    const char *name;
    size_t n;
    uint64_t d;
    TR_TRY(get_text(r, &name, &n));
    if (n == 0 || n >= sizeof t->name || memchr(name, 0, n)) return tr_fail(TR_EINPUT, "'%s': a tensor name is damaged", r->path);
    memcpy(t->name, name, n);
    t->name[n] = 0;
    TR_TRY(get(r, &t->ndim, 4));
    if (t->ndim < 1 || t->ndim > 4) return tr_fail(TR_EINPUT, "tensor '%s' ('%s'): %u dimensions; the file is damaged", t->name, r->path, t->ndim);
    for (uint32_t i = 0; i < t->ndim; i++) { /* the file counts from the innermost */
        TR_TRY(get(r, &d, 8));
        if (d == 0 || d > (uint64_t)1 << 40) return tr_fail(TR_EINPUT, "tensor '%s' ('%s'): its dimensions are impossible", t->name, r->path);
        t->dim[t->ndim - 1 - i] = (int64_t)d;
    }
    TR_TRY(get(r, &t->type, 4));
    return get(r, &t->offset, 8);
}

static int add_tensor(struct tr_weights *w, const struct info *t, uint64_t base)
{
    enum tr_stored type;
    char name[160];
    bool gpt2 = w->shape.arch == TR_GPT2;
    if (!tr_gguf_to_hf(name, sizeof name, t->name, gpt2)) {
        if (strcmp(t->name, "rope_freqs.weight")) return TR_OK; /* of no use to us; the model says what it misses */
        strcpy(name, t->name);
    }
    if (type_of(t->type, &type)) return tr_fail(TR_EINPUT, "tensor '%s' ('%s'): element type %u is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K are)", t->name, w->path, t->type);
    if (t->offset > w->map[0].size) return tr_fail(TR_EINPUT, "tensor '%s' ('%s'): its data ends beyond the file; the file is truncated", t->name, w->path);
    TR_TRY(tr_weights_add(w, name, type, (int)t->ndim, t->dim, 0, base + t->offset, false));
    struct tr_weight_entry *e = &w->entry[w->n - 1];
    bool llama = w->shape.arch == TR_LLAMA || w->shape.arch == TR_MISTRAL;
    if (llama && strstr(name, "q_proj.weight")) e->permuted_heads = w->shape.heads;
    if (llama && strstr(name, "k_proj.weight")) e->permuted_heads = w->shape.kv_heads;
    if (e->permuted_heads && (e->ndim != 2 || e->permuted_heads < 1 || e->dim[0] % (2 * e->permuted_heads)))
        return tr_fail(TR_EINPUT, "tensor '%s' ('%s'): its rows do not divide into the heads", t->name, w->path);
    return TR_OK;
}

static int read_tensors(struct tr_weights *w, struct reader *r, uint64_t n, uint64_t align)
{
    struct reader first = *r;
    struct info t;
    bool output = false, gpt2_bias = false;
    for (uint64_t i = 0; i < n; i++) {
        TR_TRY(read_info(r, &t));
        output |= !strcmp(t.name, "output.weight");
        gpt2_bias |= strstr(t.name, "attn_q.bias") != NULL;
    }
    struct meta m = { w->meta, json_string_value(json_object_get(w->meta, "general.architecture")), w->path };
    if (!m.arch || strlen(m.arch) > 40) return tr_fail(TR_EINPUT, "'general.architecture' ('%s'): it is missing; is this a model file?", w->path);
    TR_TRY(shape_of(&w->shape, &m, !output));
    if (w->shape.arch != TR_GPT2) w->shape.qkv_bias = gpt2_bias;
    if (w->shape.heads < 1 || w->shape.heads > 4096 || w->shape.kv_heads < 1) return tr_fail(TR_EINPUT, "'%s.attention.head_count' ('%s'): it is missing or damaged", m.arch, w->path);
    uint64_t base = (uint64_t)(r->p - w->map[0].data);
    base = (base + align - 1) / align * align;
    for (*r = first; n > 0; n--) {
        TR_TRY(read_info(r, &t));
        if (!strcmp(t.name, "token_embd.weight") && t.ndim == 2) w->shape.vocab = t.dim[0];
        TR_TRY(add_tensor(w, &t, base));
    }
    TR_TRY(tr_weights_finish(w));
    const struct tr_weight_entry *freqs = tr_weights_find(w, "rope_freqs.weight");
    return freqs ? llama3_from(w, freqs) : TR_OK;
}

int tr_open_gguf(struct tr_weights *w, const char *path)
{
    TR_TRY(tr_calloc(&w->map, 1, sizeof *w->map));
    TR_TRY(tr_map_open(&w->map[0], path));
    w->n_maps = 1;
    struct reader r = { w->map[0].data, w->map[0].data + w->map[0].size, path };
    char magic[4];
    uint32_t version;
    uint64_t tensors, keys;
    if (w->map[0].size < 24) return tr_fail(TR_EINPUT, "'%s': it is no GGUF file (too short)", path);
    TR_TRY(get(&r, magic, 4));
    if (memcmp(magic, "GGUF", 4)) return tr_fail(TR_EINPUT, "'%s': it is no GGUF file; model.path takes a .gguf file or a Hugging Face folder", path);
    TR_TRY(get(&r, &version, 4));
    if (version != 2 && version != 3) return tr_fail(TR_EINPUT, "'%s': GGUF version %u; versions 2 and 3 are supported", path, version);
    TR_TRY(get(&r, &tensors, 8));
    TR_TRY(get(&r, &keys, 8));
    if (tensors > w->map[0].size / 24 || keys > w->map[0].size / 12) return tr_fail(TR_EINPUT, "'%s': its counts exceed the file; the file is damaged", path);
    if (!(w->meta = json_object())) return tr_fail(TR_EFAIL, "no memory");
    w->kv_begin = (size_t)(r.p - w->map[0].data);
    w->n_kv = keys;
    TR_TRY(read_metadata(&r, keys, w->meta));
    w->kv_end = (size_t)(r.p - w->map[0].data);
    const json_t *align = json_object_get(w->meta, "general.alignment");
    json_int_t a = json_is_integer(align) ? json_integer_value(align) : 32;
    if (a < 1 || a > 1 << 20 || (a & (a - 1))) return tr_fail(TR_EINPUT, "'general.alignment' ('%s'): it must be a power of two", path);
    return read_tensors(w, &r, tensors, (uint64_t)a);
}
