/* What the f32 and the bf16 form of attention_tmpl.h share: tiles of queries, rows, and the cutting of long sequences. */
#ifndef TR_X86_ATTENTION_COMMON_H
#define TR_X86_ATTENTION_COMMON_H
#include "libtrain/kernel/attention.h"
#include "libtrain/kernel/x86/block.h"
#include <math.h>
#include <omp.h>

enum { WIDTH = 96,     /* lanes of a tile: divisible by all common group sizes and by three vectors */
       KEYS = 64,      /* keys of a tile */
       KEY_UNIT = UNIT_ROWS > 8 ? UNIT_ROWS : 8,    /* ... are computed in so many */
       MAX_D = 256,    /* widest head; wider ones go to plain C */
       WHOLE = 1024,   /* tokens: longer sequences are cut, so that one sequence fills several cores */
       RANGES = 4 };   /* ... into so many ranges of queries */

/* Some query positions of all heads of one KV head. Lane i * group + h is head h of the group at position q0 + i, so that
 * the first lanes stop seeing keys first. */
struct query_tile {
    const int32_t *start;
    int64_t q0, n, group, kv, dim, pad, k_col, v_col;
    int64_t key_begin, key_end;      /* keys that any of them sees, key_begin a multiple of KEYS from the first of the sequence */
    int64_t all_begin, all_end;      /* keys that all of them see; lanes without a query make none such */
    float scale;
};

/* Columns of a head in packed rows: whole vectors as columns of a product, whole units of words as what it sums over. */
enum { PAD = UNIT_LANES > 16 ? UNIT_LANES : 16 };
static inline int64_t padded(int64_t dim) { return (dim + PAD - 1) / PAD * PAD; }

static inline char *element(const struct tr_tensor *t, int64_t row, int64_t col)
{
    return (char *)t->data + (size_t)(row * t->ld + col) * tr_dtype_size(t->dtype);
}

/* Queries [q0, end) of a sequence whose first key is at base. */
static inline struct query_tile query_tile(const struct tr_layout *layout, const struct tr_attention *a, int64_t base,
                                           int64_t q0, int64_t end, int64_t kv)
{
    struct query_tile u = { .start = layout->start_N.data, .q0 = q0, .n = end - q0, .group = a->heads / a->kv_heads, .kv = kv,
                            .dim = a->head_dim, .pad = padded(a->head_dim), .scale = a->scale, .key_end = end,
                            .all_end = q0 + 1 };
    u.k_col = (a->heads + kv) * u.dim;
    u.v_col = u.k_col + a->kv_heads * u.dim;
    int64_t least = q0, most = 0;
    for (int64_t i = q0; i < end; i++) {
        if (u.start[i] < least) least = u.start[i];
        if (u.start[i] > most) most = u.start[i];
    }
    u.all_begin = most;
    u.key_begin = base + (least - base) / KEYS * KEYS;
    return u;
}

/* Rows to compute of the tile of keys at k0: up to the last that is seen, in whole blocks. */
static inline int64_t key_rows(const struct query_tile *u, int64_t k0)
{
    int64_t n = u->key_end - k0 < KEYS ? u->key_end - k0 : KEYS;
    return (n + KEY_UNIT - 1) / KEY_UNIT * KEY_UNIT;
}

static inline bool key_masked(const struct query_tile *u, int64_t k0, int64_t rows)
{
    return k0 < u->all_begin || k0 + rows > u->all_end;
}

/* The first lane, in whole units, that may see a key from k0 on; of the first tile all lanes are computed. */
static inline int64_t first_lane(const struct query_tile *u, int64_t k0)
{
    return k0 == u->key_begin || k0 <= u->q0 ? 0 : (k0 - u->q0) * u->group / UNIT_LANES * UNIT_LANES;
}

static inline vf v_div(vf a, vf b)
{
#if defined(__AVX512F__)
    return _mm512_div_ps(a, b);
#else
    return _mm256_div_ps(a, b);
#endif
}

static inline void widen_row(float *x, const void *row, enum tr_dtype dtype, int64_t dim, int64_t pad)
{
    int64_t d = 0;
    if (dtype == TR_F32) memcpy(x, row, (size_t)dim * 4);
    else {
        for (; d + LANES <= dim; d += LANES) v_store(x + d, v_load_bf16((const uint16_t *)row + d));
        for (; d < dim; d++) x[d] = tr_bf16_to_f32(((const uint16_t *)row)[d]);
    }
    memset(x + dim, 0, (size_t)(pad - dim) * 4);
}

static inline void put_row(void *row, enum tr_dtype dtype, const float *x, int64_t dim, float factor)
{
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) {
        vf y = v_mul(v_load(x + d), v_set(factor));
        if (dtype == TR_F32) v_store((float *)row + d, y);
        else v_store_bf16((uint16_t *)row + d, y);
    }
    for (; d < dim; d++) {
        if (dtype == TR_F32) ((float *)row)[d] = x[d] * factor;
        else ((uint16_t *)row)[d] = tr_f32_to_bf16(x[d] * factor);
    }
}

static inline float dot_rows(const void *a, const void *b, enum tr_dtype dtype, int64_t dim)
{
    float x[MAX_D], y[MAX_D];
    widen_row(x, a, dtype, dim, padded(dim));
    widen_row(y, b, dtype, dim, padded(dim));
    vf sum = v_zero();
    for (int64_t d = 0; d < padded(dim); d += LANES) sum = v_fma(v_load(x + d), v_load(y + d), sum);
    return v_sum(sum);
}

/* ---- sums of dK and dV: f32 rows of keys counted from the first of the sequence, dK's and then dV's. A sequence is
 * taken whole or cut into ranges of queries, by its length alone; each range has its own sums. */

static inline int64_t range_length(int64_t tokens)
{
    return tokens <= WHOLE ? tokens : ((tokens + RANGES - 1) / RANGES + WIDTH - 1) / WIDTH * WIDTH;
}

static inline int64_t sum_floats(int64_t keys, int64_t pad) { return 2 * ((keys + KEYS - 1) / KEYS * KEYS) * pad; }

/* Floats of the ranges before range r of a sequence; r = ranges gives the floats of one KV head. */
static inline int64_t range_floats(int64_t r, int64_t length, int64_t tokens, int64_t pad)
{
    int64_t floats = 0;
    for (int64_t i = 0; i < r; i++) floats += sum_floats((i + 1) * length < tokens ? (i + 1) * length : tokens, pad);
    return floats;
}

/* Floats that a thread needs for sequences taken whole. */
static inline int64_t longest_whole(const struct tr_layout *layout, int64_t pad)
{
    int64_t floats = 0;
    for (int64_t s = 0; s < layout->n_seqs; s++) {
        int64_t tokens = layout->seq[s + 1] - layout->seq[s];
        if (tokens <= WHOLE && sum_floats(tokens, pad) > floats) floats = sum_floats(tokens, pad);
    }
    return floats;
}

static inline size_t work_bytes(const struct tr_layout *layout, const struct tr_attention *a)
{
    int64_t pad = padded(a->head_dim), floats = longest_whole(layout, pad) * omp_get_max_threads();
    for (int64_t s = 0; s < layout->n_seqs; s++) {
        int64_t tokens = layout->seq[s + 1] - layout->seq[s], length = range_length(tokens);
        if (tokens <= WHOLE) continue;
        int64_t need = a->kv_heads * range_floats((tokens + length - 1) / length, length, tokens, pad);
        if (need > floats) floats = need;
    }
    return (size_t)floats * sizeof(float);
}

/* Adds the sums of all ranges, in order from the last, into those of the last, for keys [from, to) of the sequence. */
static inline void add_ranges(float *sums, int64_t ranges, int64_t length, int64_t tokens, int64_t pad, int64_t from, int64_t to)
{
    float *total = sums + range_floats(ranges - 1, length, tokens, pad);
    int64_t half = sum_floats(tokens, pad) / 2;
    for (int64_t r = ranges - 2; r >= 0; r--) {
        int64_t keys = (r + 1) * length, n = (to < keys ? to : keys) - from, own_half = sum_floats(keys, pad) / 2;
        const float *own = sums + range_floats(r, length, tokens, pad);
        for (int64_t i = from * pad; i < (from + n) * pad; i += LANES) {
            v_store(total + i, v_add(v_load(total + i), v_load(own + i)));
            v_store(total + half + i, v_add(v_load(total + half + i), v_load(own + own_half + i)));
        }
    }
}

/* Rows [from, to) of dK and dV out of the sums of a sequence [begin, end). */
static inline void put_sums(struct tr_tensor *dqkv, const struct tr_attention *a, const float *sums, int64_t begin, int64_t end,
                            int64_t from, int64_t to, int64_t kv)
{
    int64_t pad = padded(a->head_dim), half = sum_floats(end - begin, pad) / 2, col = (a->heads + kv) * a->head_dim;
    for (int64_t j = from; j < to; j++) {
        put_row(element(dqkv, j, col), dqkv->dtype, sums + (j - begin) * pad, a->head_dim, a->scale);
        put_row(element(dqkv, j, col + a->kv_heads * a->head_dim), dqkv->dtype, sums + half + (j - begin) * pad, a->head_dim, 1);
    }
}

static inline bool fits(const struct tr_attention *a)
{
    return a->head_dim <= MAX_D && a->heads / a->kv_heads <= WIDTH;
}

#endif
