/* Decoding: one query row against a cache of keys and values; TABLE is the instruction set's name. Bound by reading the
 * cache, which is read once for all heads of a group. Keys are cut into at most CHUNKS parts by their number alone; parts
 * have their own maximum, sum and output, joined in order. */
#include "libtrain/kernel/x86/attention_common.h"

enum { CHUNKS = 8, CHUNK_KEYS = 128 /* at least, in steps of this */, STEP = 16 /* keys scored before values are added */,
       CACHED_GROUP = 16 /* most heads of a group here */ };

struct part { float max[CACHED_GROUP], sum[CACHED_GROUP], o[CACHED_GROUP * MAX_D]; };

static inline vf load_any(const char *row, enum tr_dtype dtype, int64_t d)
{
    return dtype == TR_F32 ? v_load((const float *)row + d) : v_load_bf16((const uint16_t *)row + d);
}

/* Keys [begin, end) of KV head kv; q and o are f32 rows of `dim`, a multiple of LANES. */
static void attend_part(struct part *p, const float *q, const struct tr_tensor *k, const struct tr_tensor *v, int64_t kv,
                        int64_t begin, int64_t end, int64_t group, int64_t dim, float scale)
{
    for (int64_t h = 0; h < group; h++) p->max[h] = -INFINITY, p->sum[h] = 0;
    memset(p->o, 0, (size_t)(group * dim) * sizeof *p->o);
    for (int64_t j0 = begin; j0 < end; j0 += STEP) {
        int64_t n = end - j0 < STEP ? end - j0 : STEP;
        float s[CACHED_GROUP][STEP];
        for (int64_t j = 0; j < n; j++) {
            const char *row = element(k, j0 + j, kv * dim);
            for (int64_t h = 0; h < group; h++) {
                vf sum = v_zero();
                for (int64_t d = 0; d < dim; d += LANES) sum = v_fma(v_load(q + h * dim + d), load_any(row, k->dtype, d), sum);
                s[h][j] = scale * v_sum(sum);
            }
        }
        for (int64_t h = 0; h < group; h++) {
            float top = p->max[h];
            for (int64_t j = 0; j < n; j++) top = s[h][j] > top ? s[h][j] : top;
            float factor = expf(p->max[h] - top);
            float *o = p->o + h * dim;
            for (int64_t d = 0; factor != 1 && d < dim; d += LANES) v_store(o + d, v_mul(v_load(o + d), v_set(factor)));
            p->sum[h] *= factor;
            p->max[h] = top;
            for (int64_t j = 0; j < n; j++) p->sum[h] += s[h][j] = expf(s[h][j] - top);
        }
        for (int64_t j = 0; j < n; j++) {
            const char *row = element(v, j0 + j, kv * dim);
            for (int64_t h = 0; h < group; h++)
                for (int64_t d = 0; d < dim; d += LANES)
                    v_store(p->o + h * dim + d, v_fma(v_set(s[h][j]), load_any(row, v->dtype, d), v_load(p->o + h * dim + d)));
        }
    }
}

static void join_parts(struct tr_tensor *o_HD, const struct part *parts, int64_t n, int64_t kv, int64_t group, int64_t dim)
{
    for (int64_t h = 0; h < group; h++) {
        float top = -INFINITY, sum = 0, o[MAX_D] = { 0 };
        for (int64_t c = 0; c < n; c++) top = parts[c].max[h] > top ? parts[c].max[h] : top;
        for (int64_t c = 0; c < n; c++) {
            float factor = expf(parts[c].max[h] - top);
            sum += factor * parts[c].sum[h];
            for (int64_t d = 0; d < dim; d++) o[d] += factor * parts[c].o[h * dim + d];
        }
        put_row(element(o_HD, 0, (kv * group + h) * dim), o_HD->dtype, o, dim, 1 / sum);
    }
}

static bool cached_fits(const struct tr_attention *a)
{
    return a->head_dim <= MAX_D && a->head_dim % LANES == 0 && a->heads / a->kv_heads <= CACHED_GROUP;
}

static void attend_cached(struct tr_tensor *o_HD, const struct tr_tensor *q_Q, const struct tr_tensor *k_PKD,
                          const struct tr_tensor *v_PKD, int64_t first, int64_t n, const struct tr_attention *a)
{
    int64_t group = a->heads / a->kv_heads, dim = a->head_dim, steps = (n - first + CHUNK_KEYS - 1) / CHUNK_KEYS;
    int64_t keys = (steps + CHUNKS - 1) / CHUNKS * CHUNK_KEYS, chunks = (n - first + keys - 1) / keys;
#pragma omp parallel
    {
        static struct part parts[4][CHUNKS];    /* four KV heads at a time */
        for (int64_t k0 = 0; k0 < a->kv_heads; k0 += 4) {
            int64_t heads = a->kv_heads - k0 < 4 ? a->kv_heads - k0 : 4;
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < heads * chunks; unit++) {
                int64_t kv = k0 + unit / chunks, c = unit % chunks, begin = first + c * keys;
                float q[CACHED_GROUP * MAX_D];
                widen_row(q, element(q_Q, 0, kv * group * dim), q_Q->dtype, group * dim, group * dim);
                int64_t end = begin + keys < n ? begin + keys : n;
                attend_part(&parts[unit / chunks][c], q, k_PKD, v_PKD, kv, begin, end, group, dim, a->scale);
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < heads; i++) join_parts(o_HD, parts[i], chunks, k0 + i, group, dim);
        }
    }
}
