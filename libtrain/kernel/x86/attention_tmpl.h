/* Causal attention whose lanes are queries. Compiled once for f32 (PAIRS 0) and once for bf16 (PAIRS 1); FN(name) gives
 * each its own names.
 *
 * A tile holds WIDTH lanes: the query positions of all heads of one KV group side by side. Everything is kept transposed,
 * S^T[key, lane] = K Q^T, so that maximum, sum and logsumexp are vectors over lanes, no operation is horizontal, and one
 * tile of keys serves all heads of the group. Scores of a tile of KEYS keys stay in the caches; nothing is T x T.
 *
 * Sums are f32. With PAIRS the operands of the products are bf16, P and dS rounded to it. Each sum has an order given by
 * the shape alone: queries of a sequence in order, long sequences in RANGES ranges whose dK and dV are added in order. */
#define PACK (PAIRS ? 2 : 1)    /* elements of a word */
#define DEGREE (PAIRS ? 5 : 6)  /* of the polynomial in exp2 */

struct FN(tile) {
    int32_t first[WIDTH], last[WIDTH];                        /* keys that a lane sees; none: 1 and 0 */
    float max[WIDTH], sum[WIDTH], lse[WIDTH], delta[WIDTH];
    tr_word q_rows[WIDTH * MAX_D / PACK], q[WIDTH * MAX_D / PACK];     /* [lane][D], [D][lane] in words along D */
    tr_word g_rows[WIDTH * MAX_D / PACK], g[WIDTH * MAX_D / PACK];     /* the same of dO */
    tr_word k_rows[KEYS * MAX_D / PACK], v_rows[KEYS * MAX_D / PACK];  /* [key][D], words along D */
#if PAIRS
    tr_word q_pairs[WIDTH * MAX_D / 2], g_pairs[WIDTH * MAX_D / 2];    /* [lane / 2][D], a word holds two lanes */
    tr_word cols[KEYS * MAX_D / 2];                                    /* [key / 2][D], a word holds two keys: K or V */
    tr_word p_rows[KEYS * WIDTH / 2], ds_rows[KEYS * WIDTH / 2];       /* [key][lane] bf16 */
    tr_word p_pairs[KEYS * WIDTH / 2];                                 /* [key / 2][lane], a word holds two keys: P or dS */
#if defined(__AMX_BF16__)
    tr_word turned[KEYS * MAX_D / 2];                                  /* [D][key / 2]: cols, for tiles want rows of words */
#endif
#endif
    float s[KEYS * WIDTH], dp[KEYS * WIDTH];                  /* [key][lane] */
    float acc[MAX_D * WIDTH], out[WIDTH * MAX_D];             /* O^T or dQ^T, and turned back */
} __attribute__((aligned(64)));

/* ---- moving rows */

static inline void FN(get_row)(tr_word *w, const void *row, enum tr_dtype dtype, int64_t dim, int64_t pad)
{
#if PAIRS
    memcpy(w, row, (size_t)dim * 2);
    memset((uint16_t *)w + dim, 0, (size_t)(pad - dim) * 2);
#else
    widen_row((float *)w, row, dtype, dim, pad);
#endif
}

#if PAIRS
/* Two rows woven: word d holds element d of both. */
static inline void FN(weave)(tr_word *w, const tr_word *low, const tr_word *high, int64_t pad)
{
    for (int64_t d = 0; d < pad; d += 16) {
        __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)((const uint16_t *)low + d)));
        __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)((const uint16_t *)high + d)));
        _mm512_storeu_si512(w + d, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
}

/* Two vectors rounded, side by side; stored as rows WIDTH apart; and woven, so that word l holds lane l of both. */
static inline __m512i FN(round_two)(vf low, vf high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

static inline void FN(store_rows)(tr_word *w, __m512i two)
{
    _mm256_storeu_si256((__m256i *)w, _mm512_castsi512_si256(two));
    _mm256_storeu_si256((__m256i *)(w + WIDTH / 2), _mm512_extracti64x4_epi64(two, 1));
}

static inline void FN(store_pairs)(tr_word *w, __m512i two)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(w, _mm512_permutexvar_epi16(order, two));
}

static inline void FN(weave_rows)(tr_word *w, const tr_word *rows, int64_t stride, int64_t n, int64_t pad)
{
    for (int64_t i = 0; i < n; i += 2) FN(weave)(w + i / 2 * pad, rows + i * stride, rows + (i + 1) * stride, pad);
}
#endif

/* Rows [k0, k0 + n) of keys or values: where they are, or copied, with zeros from row key_end on. */
struct FN(rows) { const tr_word *w; int64_t stride; };
static inline struct FN(rows) FN(get_keys)(tr_word *copy, const struct tr_tensor *qkv, const struct query_tile *u, int64_t k0,
                                           int64_t n, int64_t col, int64_t dim, int64_t pad)
{
    const void *at = element(qkv, k0, col);
    bool native = qkv->dtype == (PAIRS ? TR_BF16 : TR_F32) && dim == pad;
    if (native && k0 + n <= u->key_end && qkv->ld % PACK == 0 && (uintptr_t)at % 4 == 0)
        return (struct FN(rows)){ at, qkv->ld / PACK };
    for (int64_t j = 0; j < n; j++) {
        if (k0 + j < u->key_end) FN(get_row)(copy + j * pad / PACK, element(qkv, k0 + j, col), qkv->dtype, dim, pad);
        else memset(copy + j * pad / PACK, 0, (size_t)(pad / PACK) * 4);
    }
    return (struct FN(rows)){ copy, pad / PACK };
}

/* Rows of one tensor at the lanes of a tile, and the same turned. */
static inline void FN(get_lanes)(tr_word *rows, tr_word *turned, const struct tr_tensor *x, const struct query_tile *u)
{
    int64_t words = u->pad / PACK;
    for (int lane = 0; lane < WIDTH; lane++) {
        int64_t h = lane % u->group, i = lane / u->group;
        if (i < u->n)
            FN(get_row)(rows + lane * words, element(x, u->q0 + i, (u->kv * u->group + h) * u->dim), x->dtype, u->dim, u->pad);
        else memset(rows + lane * words, 0, (size_t)words * 4);
    }
    transpose((float *)turned, WIDTH, (const float *)rows, words, WIDTH, words);
}

/* Turns acc into rows and stores those of the living lanes, times factor. */
static inline void FN(put_lanes)(struct FN(tile) *t, struct tr_tensor *y, const struct query_tile *u, float factor)
{
    transpose(t->out, u->pad, t->acc, WIDTH, u->pad, WIDTH);
    for (int64_t i = 0; i < u->n; i++)
        for (int64_t h = 0; h < u->group; h++)
            put_row(element(y, u->q0 + i, (u->kv * u->group + h) * u->dim), y->dtype,
                    t->out + (i * u->group + h) * u->pad, u->dim, factor);
}

static inline void FN(begin)(struct FN(tile) *t, const struct query_tile *u)
{
    for (int lane = 0; lane < WIDTH; lane++) {
        int64_t i = lane / u->group;
        bool alive = i < u->n;
        t->first[lane] = alive ? u->start[u->q0 + i] : 1;
        t->last[lane] = alive ? (int32_t)(u->q0 + i) : 0;
        t->max[lane] = -1e30f;    /* finite, so that a lane without a key so far makes no inf - inf */
        t->sum[lane] = 0;
    }
}

#if PAIRS
/* acc += cols^T p_pairs for `rows` keys and nv vectors of lanes from v0. */
static inline __attribute__((always_inline)) void FN(add_keys)(struct FN(tile) *t, int old, int64_t v0, int64_t nv, int64_t rows,
                                                               const int64_t pad)
{
#if defined(__AMX_BF16__)
    transpose((float *)t->turned, KEYS / 2, (const float *)t->cols, pad, rows / 2, pad);
    product(t->acc + v0, WIDTH, old, t->turned, KEYS / 2, 1, t->p_pairs + v0, WIDTH, pad, nv, rows / 2, 1);
#else
    product(t->acc + v0, WIDTH, old, t->cols, 1, pad, t->p_pairs + v0, WIDTH, pad, nv, rows / 2, 1);
#endif
}
#endif

/* ---- forward */

/* Scores of `rows` keys from k0 to probabilities under the running maximum; acc is rescaled where that rose. */
static inline __attribute__((always_inline)) void FN(softmax)(struct FN(tile) *t, int64_t k0, int64_t rows, bool masked,
                                                              bool rescale, float c, int64_t pad, int64_t v0)
{
    for (int64_t v = v0; v < WIDTH; v += LANES) {
        float *s = t->s + v;
        vf old = v_load(t->max + v), top = old, sum = v_load(t->sum + v);
        if (masked) {
            vi first = v_load_int(t->first + v), last = v_load_int(t->last + v);
            for (int64_t j = 0; j < rows; j++) {
                vf x = v_keep(v_load(s + j * WIDTH), (int32_t)(k0 + j), first, last);
                v_store(s + j * WIDTH, x);
                top = v_max(x, top);
            }
        } else {
            vf other = top;
            for (int64_t j = 0; j < rows; j += 2) {
                top = v_max(v_load(s + j * WIDTH), top);
                other = v_max(v_load(s + (j + 1) * WIDTH), other);
            }
            top = v_max(other, top);
        }
        if (v_any_gt(top, old)) {
            vf factor = v_exp2(v_mul(v_sub(old, top), v_set(c)), 6);
            sum = v_mul(sum, factor);
            for (int64_t d = 0; rescale && d < pad; d++)
                v_store(t->acc + d * WIDTH + v, v_mul(v_load(t->acc + d * WIDTH + v), factor));
            v_store(t->max + v, top);
        }
        vf shift = v_mul(top, v_set(-c)), other = v_zero();
        for (int64_t j = 0; j < rows; j += 2) {
            vf p0 = v_exp2(v_fma(v_load(s + j * WIDTH), v_set(c), shift), DEGREE);
            vf p1 = v_exp2(v_fma(v_load(s + (j + 1) * WIDTH), v_set(c), shift), DEGREE);
            sum = v_add(sum, p0);
            other = v_add(other, p1);
#if PAIRS
            FN(store_pairs)(t->p_pairs + j / 2 * WIDTH + v, FN(round_two)(p0, p1));
#else
            v_store(s + j * WIDTH, p0);
            v_store(s + (j + 1) * WIDTH, p1);
#endif
        }
        v_store(t->sum + v, v_add(sum, other));
    }
}

static inline __attribute__((always_inline)) void FN(forward_dim)(struct FN(tile) *t, struct tr_tensor *o, struct tr_tensor *lse,
    const struct tr_tensor *qkv, const struct query_tile *u, const int64_t dim, const int64_t pad)
{
    const int64_t words = pad / PACK;
    const float c = u->scale * LOG2E;
    FN(begin)(t, u);
    FN(get_lanes)(t->q_rows, t->q, qkv, u);
    for (int64_t k0 = u->key_begin; k0 < u->key_end; k0 += KEYS) {
        int64_t rows = key_rows(u, k0), v0 = first_lane(u, k0), nv = (WIDTH - v0) / LANES;
        struct FN(rows) k = FN(get_keys)(t->k_rows, qkv, u, k0, rows, u->k_col, dim, pad);
        struct FN(rows) v = FN(get_keys)(t->v_rows, qkv, u, k0, rows, u->v_col, dim, pad);
        product(t->s + v0, WIDTH, false, k.w, k.stride, 1, t->q + v0, WIDTH, rows, nv, words, PAIRS);
        FN(softmax)(t, k0, rows, key_masked(u, k0, rows), k0 > u->key_begin, c, pad, v0);
#if PAIRS
        FN(weave_rows)(t->cols, v.w, v.stride, rows, pad);
        FN(add_keys)(t, k0 > u->key_begin, v0, nv, rows, pad);
#else
        product(t->acc + v0, WIDTH, k0 > u->key_begin, v.w, 1, v.stride, (tr_word *)t->s + v0, WIDTH, pad, nv, rows, 0);
#endif
    }
    for (int v = 0; v < WIDTH; v += LANES) {
        vf inverse = v_div(v_set(1), v_load(t->sum + v));
        for (int64_t d = 0; d < pad; d++) v_store(t->acc + d * WIDTH + v, v_mul(v_load(t->acc + d * WIDTH + v), inverse));
    }
    FN(put_lanes)(t, o, u, 1);
    for (int64_t i = 0; i < u->n; i++)
        for (int64_t h = 0; h < u->group; h++) {
            int64_t lane = i * u->group + h;
            *(float *)element(lse, u->q0 + i, u->kv * u->group + h) = t->max[lane] * u->scale + logf(t->sum[lane]);
        }
}

static void FN(forward_tile)(struct FN(tile) *t, struct tr_tensor *o, struct tr_tensor *lse, const struct tr_tensor *qkv,
                             const struct query_tile *u)
{
    if (u->dim == 64) FN(forward_dim)(t, o, lse, qkv, u, 64, 64);
    else if (u->dim == 128) FN(forward_dim)(t, o, lse, qkv, u, 128, 128);
    else FN(forward_dim)(t, o, lse, qkv, u, u->dim, u->pad);
}

static void FN(forward)(struct tr_tensor *o, struct tr_tensor *lse, const struct tr_tensor *qkv, const struct tr_layout *layout,
                        const struct tr_attention *a)
{
#pragma omp parallel
    {
        struct FN(tile) t;
        product_begin();
        for (int64_t s = 0; s < layout->n_seqs; s++) {
            int64_t begin = layout->seq[s], end = layout->seq[s + 1], step = WIDTH / (a->heads / a->kv_heads);
            int64_t tiles = (end - begin + step - 1) / step;
#pragma omp for schedule(dynamic) nowait
            for (int64_t unit = 0; unit < tiles * a->kv_heads; unit++) {
                int64_t q0 = begin + (tiles - 1 - unit / a->kv_heads) * step;    /* the longest first */
                struct query_tile u = query_tile(layout, a, begin, q0, q0 + step < end ? q0 + step : end, unit % a->kv_heads);
                FN(forward_tile)(&t, o, lse, qkv, &u);
            }
        }
        product_end();
    }
}

/* ---- backward */

/* P = exp(S - lse) and dS = P (dP - delta) of a tile, in the forms that the products want. */
static inline __attribute__((always_inline)) void FN(slopes)(struct FN(tile) *t, int64_t k0, int64_t rows, bool masked, float c,
                                                             int64_t v0)
{
    for (int64_t v = v0; v < WIDTH; v += LANES) {
        vf shift = v_mul(v_load(t->lse + v), v_set(-LOG2E)), delta = v_load(t->delta + v);
        vi first = v_load_int(t->first + v), last = v_load_int(t->last + v);
        for (int64_t j = 0; j < rows; j += 2) {
            vf p[2], ds[2];
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                vf x = v_load(t->s + (j + i) * WIDTH + v);
                if (masked) x = v_keep(x, (int32_t)(k0 + j + i), first, last);
                p[i] = v_exp2(v_fma(x, v_set(c), shift), DEGREE);
                ds[i] = v_mul(p[i], v_sub(v_load(t->dp + (j + i) * WIDTH + v), delta));
#if !PAIRS
                v_store(t->s + (j + i) * WIDTH + v, p[i]);
                v_store(t->dp + (j + i) * WIDTH + v, ds[i]);
#endif
            }
#if PAIRS
            __m512i two = FN(round_two)(ds[0], ds[1]);
            FN(store_rows)(t->p_rows + (j * WIDTH + v) / 2, FN(round_two)(p[0], p[1]));
            FN(store_rows)(t->ds_rows + (j * WIDTH + v) / 2, two);
            FN(store_pairs)(t->p_pairs + j / 2 * WIDTH + v, two);
#endif
        }
    }
}

/* delta = sum over D of dO O, by lane. */
static inline void FN(get_delta)(struct FN(tile) *t, const struct tr_tensor *g, const struct tr_tensor *o,
                                 const struct tr_tensor *lse, const struct query_tile *u)
{
    for (int lane = 0; lane < WIDTH; lane++) {
        int64_t h = lane % u->group, i = lane / u->group, row = u->q0 + i, head = u->kv * u->group + h;
        t->lse[lane] = t->delta[lane] = 0;
        if (i >= u->n) continue;
        t->lse[lane] = *(const float *)element(lse, row, head);
        t->delta[lane] = dot_rows(element(g, row, head * u->dim), element(o, row, head * u->dim), o->dtype, u->dim);
    }
}

/* One tile of queries; dk and dv are f32 rows [key - base][pad]. */
static inline __attribute__((always_inline)) void FN(backward_dim)(struct FN(tile) *t, struct tr_tensor *dqkv,
    const struct tr_tensor *g, const struct tr_tensor *o, const struct tr_tensor *lse, const struct tr_tensor *qkv,
    const struct query_tile *u, float *dk, float *dv, int64_t base, const int64_t dim, const int64_t pad)
{
    const int64_t words = pad / PACK, lanes = WIDTH / PACK;
    const float c = u->scale * LOG2E;
    FN(begin)(t, u);
    FN(get_lanes)(t->q_rows, t->q, qkv, u);
    FN(get_lanes)(t->g_rows, t->g, g, u);
    FN(get_delta)(t, g, o, lse, u);
#if PAIRS
    FN(weave_rows)(t->q_pairs, t->q_rows, words, WIDTH, pad);
    FN(weave_rows)(t->g_pairs, t->g_rows, words, WIDTH, pad);
    const tr_word *q = t->q_pairs, *gw = t->g_pairs, *p = t->p_rows, *ds = t->ds_rows;
#else
    const tr_word *q = t->q_rows, *gw = t->g_rows, *p = (tr_word *)t->s, *ds = (tr_word *)t->dp;
#endif
    for (int64_t k0 = u->key_begin; k0 < u->key_end; k0 += KEYS) {
        int64_t rows = key_rows(u, k0), v0 = first_lane(u, k0), nv = (WIDTH - v0) / LANES, l0 = v0 / PACK, steps = lanes - l0;
        struct FN(rows) k = FN(get_keys)(t->k_rows, qkv, u, k0, rows, u->k_col, dim, pad);
        struct FN(rows) v = FN(get_keys)(t->v_rows, qkv, u, k0, rows, u->v_col, dim, pad);
        product(t->s + v0, WIDTH, false, k.w, k.stride, 1, t->q + v0, WIDTH, rows, nv, words, PAIRS);
        product(t->dp + v0, WIDTH, false, v.w, v.stride, 1, t->g + v0, WIDTH, rows, nv, words, PAIRS);
        FN(slopes)(t, k0, rows, key_masked(u, k0, rows), c, v0);
        product(dv + (k0 - base) * pad, pad, true, p + l0, lanes, 1, gw + l0 * pad, pad, rows, pad / LANES, steps, PAIRS);
        product(dk + (k0 - base) * pad, pad, true, ds + l0, lanes, 1, q + l0 * pad, pad, rows, pad / LANES, steps, PAIRS);
#if PAIRS
        FN(weave_rows)(t->cols, k.w, k.stride, rows, pad);
        FN(add_keys)(t, k0 > u->key_begin, v0, nv, rows, pad);
#else
        product(t->acc + v0, WIDTH, k0 > u->key_begin, k.w, 1, k.stride, ds + v0, WIDTH, pad, nv, rows, 0);
#endif
    }
    FN(put_lanes)(t, dqkv, u, u->scale);
}

/* Queries [begin, end) of one sequence and KV head into dq and the sums dk, dv of keys from base. */
static void FN(backward_range)(struct FN(tile) *t, struct tr_tensor *dqkv, const struct tr_tensor *g, const struct tr_tensor *o,
                               const struct tr_tensor *lse, const struct tr_tensor *qkv, const struct tr_layout *layout,
                               const struct tr_attention *a, int64_t base, int64_t begin, int64_t end, int64_t kv, float *sums)
{
    int64_t step = WIDTH / (a->heads / a->kv_heads), pad = padded(a->head_dim);
    float *dk = sums, *dv = sums + sum_floats(end - base, pad) / 2;
    memset(sums, 0, (size_t)sum_floats(end - base, pad) * sizeof *sums);
    for (int64_t q0 = begin; q0 < end; q0 += step) {
        struct query_tile u = query_tile(layout, a, base, q0, q0 + step < end ? q0 + step : end, kv);
        if (u.dim == 64) FN(backward_dim)(t, dqkv, g, o, lse, qkv, &u, dk, dv, base, 64, 64);
        else if (u.dim == 128) FN(backward_dim)(t, dqkv, g, o, lse, qkv, &u, dk, dv, base, 128, 128);
        else FN(backward_dim)(t, dqkv, g, o, lse, qkv, &u, dk, dv, base, u.dim, u.pad);
    }
}

static void FN(backward)(struct tr_tensor *dqkv, const struct tr_tensor *g, const struct tr_tensor *o,
                         const struct tr_tensor *lse, const struct tr_tensor *qkv, const struct tr_layout *layout, const struct tr_attention *a, float *work)
{
    int64_t pad = padded(a->head_dim), per_thread = longest_whole(layout, pad);
#pragma omp parallel
    {
        struct FN(tile) t;
        product_begin();
        float *own = work + omp_get_thread_num() * per_thread;
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < layout->n_seqs * a->kv_heads; unit++) {
            int64_t begin = layout->seq[unit / a->kv_heads], end = layout->seq[unit / a->kv_heads + 1], kv = unit % a->kv_heads;
            if (range_length(end - begin) < end - begin) continue;
            FN(backward_range)(&t, dqkv, g, o, lse, qkv, layout, a, begin, begin, end, kv, own);
            put_sums(dqkv, a, own, begin, end, begin, end, kv);
        }
        for (int64_t s = 0; s < layout->n_seqs; s++) {
            int64_t begin = layout->seq[s], end = layout->seq[s + 1], length = range_length(end - begin);
            if (length >= end - begin) continue;
            int64_t ranges = (end - begin + length - 1) / length, blocks = (end - begin + KEYS - 1) / KEYS;
            int64_t per_head = range_floats(ranges, length, end - begin, pad);
#pragma omp for schedule(dynamic)
            for (int64_t unit = 0; unit < ranges * a->kv_heads; unit++) {
                int64_t r = ranges - 1 - unit / a->kv_heads, kv = unit % a->kv_heads;    /* the longest first */
                int64_t from = begin + r * length, to = from + length < end ? from + length : end;
                float *sums = work + kv * per_head + range_floats(r, length, end - begin, pad);
                FN(backward_range)(&t, dqkv, g, o, lse, qkv, layout, a, begin, from, to, kv, sums);
            }
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < blocks * a->kv_heads; unit++) {
                int64_t kv = unit / blocks, from = begin + unit % blocks * KEYS, to = from + KEYS < end ? from + KEYS : end;
                float *sums = work + kv * per_head, *total = sums + range_floats(ranges - 1, length, end - begin, pad);
                add_ranges(sums, ranges, length, end - begin, pad, from - begin, to - begin);
                put_sums(dqkv, a, total, begin, end, from, to, kv);
            }
        }
        product_end();
    }
}

#undef PACK
#undef DEGREE
