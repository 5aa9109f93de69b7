/* Attention for any type and head size by plain products; the tensor-core forms are asked first. A few lanes share a row: lane l of L
 * holds columns 4 l .. 4 l + 3, then 4 L further, in registers. Tiles of the other side's rows lie in shared memory as f32. */
#include "libtrain/kernel/cuda/attention.cuh"

enum { PARTS = 8, HELD = 4 * PARTS /* columns in a lane's registers */, THREADS_PLAIN = 128, TILE = THREADS_PLAIN * HELD, AT_ONCE = 8 };

struct plain_shared { float a[TILE], b[TILE]; };

/* Four columns, `left` of them there, the others 0. */
static __device__ inline float4 get4(const tr_mat &t, int row, int col, int left)
{
    int64_t i = row * t.ld + col;
    if (left >= 4 && t.dtype == TR_CUDA_F32) {
        const float *p = static_cast<const float *>(t.data) + i;
        if (reinterpret_cast<uintptr_t>(p) % 16 == 0) return *reinterpret_cast<const float4 *>(p);
    }
    if (left >= 4 && t.dtype == TR_CUDA_BF16) {
        const unsigned short *p = static_cast<const unsigned short *>(t.data) + i;
        if (reinterpret_cast<uintptr_t>(p) % 8 == 0) {
            uint2 v = *reinterpret_cast<const uint2 *>(p);
            return float4{ __uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u) };
        }
    }
    return float4{ left > 0 ? tr_get(t, row, col) : 0, left > 1 ? tr_get(t, row, col + 1) : 0, left > 2 ? tr_get(t, row, col + 2) : 0, left > 3 ? tr_get(t, row, col + 3) : 0 };
}

template <int L> struct lanes {
    int lane, dim, wide;   /* wide: columns of a row of a tile, zeros from dim on */
    __device__ lanes(int d) : lane((int)threadIdx.x % L), dim(d), wide((d + 4 * L - 1) / (4 * L) * 4 * L) {}

    __device__ void load(float (&x)[HELD], const tr_mat &t, int row, int col, bool there) const
    {
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            int d = p * 4 * L + lane * 4;
            float4 v = get4(t, row, col + d, there ? dim - d : 0);
            x[4 * p] = v.x, x[4 * p + 1] = v.y, x[4 * p + 2] = v.z, x[4 * p + 3] = v.w;
        }
    }

    __device__ void store(const tr_mat &t, int row, int col, const float (&x)[HELD], float by) const
    {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            int d = i / 4 * 4 * L + lane * 4 + i % 4;
            if (d < dim) tr_put(t, row, col + d, x[i] * by);
        }
    }

    /* Rows [row, row + n) of n_rows into shared memory, zeros below. */
    __device__ void tile(float *to, int n_rows, const tr_mat &t, int row, int n, int col) const
    {
        for (int i = (int)threadIdx.x; i < n_rows * wide / 4; i += THREADS_PLAIN) {
            int r = 4 * i / wide, d = 4 * i - r * wide;
            reinterpret_cast<float4 *>(to)[i] = get4(t, row + r, col + d, r < n ? dim - d : 0);
        }
    }

    /* For every lane of the row. */
    __device__ float dot(const float (&x)[HELD], const float *y) const
    {
        float sum = 0;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p * 4 * L < wide) {
                float4 v = reinterpret_cast<const float4 *>(y)[p * L + lane];
                sum = fmaf(x[4 * p], v.x, sum);
                sum = fmaf(x[4 * p + 1], v.y, sum);
                sum = fmaf(x[4 * p + 2], v.z, sum);
                sum = fmaf(x[4 * p + 3], v.w, sum);
            }
#pragma unroll
        for (int o = L / 2; o; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        return sum;
    }

    __device__ void add(float (&x)[HELD], float by, const float *y) const
    {
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p * 4 * L < wide) {
                float4 v = reinterpret_cast<const float4 *>(y)[p * L + lane];
                x[4 * p] = fmaf(by, v.x, x[4 * p]);
                x[4 * p + 1] = fmaf(by, v.y, x[4 * p + 1]);
                x[4 * p + 2] = fmaf(by, v.z, x[4 * p + 2]);
                x[4 * p + 3] = fmaf(by, v.w, x[4 * p + 3]);
            }
    }
};

static __device__ inline void clear(float (&x)[HELD])
{
#pragma unroll
    for (int i = 0; i < HELD; i++) x[i] = 0;
}

/* AT_ONCE keys of scores s: the largest, the sum and the output of a row go on. */
template <int L> static __device__ inline void attend(float (&o)[HELD], float &most, float &sum, const float (&s)[AT_ONCE], const lanes<L> &l, const float *v)
{
    float best = most;
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) best = fmaxf(best, s[u]);
    float base = best == -INFINITY ? 0 : best, fade = expf(most - base);
    most = best, sum *= fade;
#pragma unroll
    for (int i = 0; i < HELD; i++) o[i] *= fade;
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
        float p = expf(s[u] - base);
        sum += p;
        l.add(o, p, v + u * l.wide);
    }
}

/* A tile of queries of a head: this thread's, its first key, the columns and the first tile of keys. */
template <int L> struct query_tile {
    enum { ROWS_OF = THREADS_PLAIN / L };
    int head, k_col, v_col, last, row, key, first;
    bool there;

    __device__ query_tile(const int32_t *start, const tr_sequences &seqs, int heads, int kv_heads, int dim)
    {
        head = (int)blockIdx.x % heads;
        k_col = (heads + head / (heads / kv_heads)) * dim;
        v_col = k_col + kv_heads * dim;
        tr_tile at = tr_find_tile(seqs, (int)blockIdx.x / heads, ROWS_OF, false);
        int rows = at.end - at.row < ROWS_OF ? at.end - at.row : (int)ROWS_OF;
        last = at.row + rows;
        row = at.row + (int)threadIdx.x / L;
        key = at.begin + (tr_least_start(start, at.row, rows) - at.begin) / ROWS_OF * ROWS_OF;
        there = row < last;
        first = there ? start[row] : 0x7fffffff;
    }
};

template <int L>
static __global__ __launch_bounds__(THREADS_PLAIN, 3) void attention_kernel(tr_mat o, float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start,
                                                            tr_sequences seqs, int heads, int kv_heads, int dim, float scale)
{
    enum { ROWS_OF = THREADS_PLAIN / L };
    plain_shared &sh = tr_shared<plain_shared>();
    query_tile<L> t(start, seqs, heads, kv_heads, dim);
    lanes<L> l(dim);
    float q[HELD], out[HELD], most = -INFINITY, sum = 0;
    l.load(q, qkv, t.row, t.head * dim, t.there);
    clear(out);
    for (int key = t.key; key < t.last; key += ROWS_OF) {
        __syncthreads();
        l.tile(sh.a, ROWS_OF, qkv, key, t.last - key, t.k_col);
        l.tile(sh.b, ROWS_OF, qkv, key, t.last - key, t.v_col);
        __syncthreads();
        for (int j = 0; j < ROWS_OF; j += AT_ONCE) {
            float s[AT_ONCE];
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                s[u] = scale * l.dot(q, sh.a + (j + u) * l.wide);
                if (key + j + u < t.first || key + j + u > t.row) s[u] = -INFINITY;
            }
            attend(out, most, sum, s, l, sh.b + j * l.wide);
        }
    }
    if (!t.there) return;
    l.store(o, t.row, t.head * dim, out, 1 / sum);
    if (!l.lane) lse[t.row * lse_ld + t.head] = most + logf(sum);
}

/* delta[row][head] = do o: eight lanes have one. */
enum { SHARE_HEAD = 8 };
static __global__ __launch_bounds__(TR_BLOCK) void delta_kernel(float *delta, tr_mat dout, tr_mat o, int64_t n, int heads, int dim)
{
    int64_t i = (int64_t)blockIdx.x * (TR_BLOCK / SHARE_HEAD) + threadIdx.x / SHARE_HEAD, row = (unsigned)i / (unsigned)heads;
    int lane = (int)threadIdx.x % SHARE_HEAD, col = (int)(i - row * heads) * dim;
    float sum = 0;
    for (int d = lane * TR_WIDE; i < n && d < dim; d += SHARE_HEAD * TR_WIDE) {
        float x[TR_WIDE], y[TR_WIDE];
        int left = dim - d < TR_WIDE ? dim - d : (int)TR_WIDE;
        tr_get8(x, dout, row, col + d, left);
        tr_get8(y, o, row, col + d, left);
        EIGHT sum = fmaf(x[k], y[k], sum);
    }
    for (int k = SHARE_HEAD / 2; k; k /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, k);
    if (!lane && i < n) delta[i] = sum;
}

template <int L>
static __global__ __launch_bounds__(THREADS_PLAIN) void plain_queries_kernel(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld,
                                                            const float *delta, tr_mat qkv, const int32_t *start, tr_sequences seqs, int heads,
                                                            int kv_heads, int dim, float scale)
{
    enum { ROWS_OF = THREADS_PLAIN / L };
    plain_shared &sh = tr_shared<plain_shared>();
    query_tile<L> t(start, seqs, heads, kv_heads, dim);
    lanes<L> l(dim);
    float q[HELD], g[HELD], dq[HELD], base = t.there ? lse[t.row * lse_ld + t.head] : 0, d = t.there ? delta[(int64_t)t.row * heads + t.head] : 0;
    l.load(q, qkv, t.row, t.head * dim, t.there);
    l.load(g, dout, t.row, t.head * dim, t.there);
    clear(dq);
    for (int key = t.key; key < t.last; key += ROWS_OF) {
        __syncthreads();
        l.tile(sh.a, ROWS_OF, qkv, key, t.last - key, t.k_col);
        l.tile(sh.b, ROWS_OF, qkv, key, t.last - key, t.v_col);
        __syncthreads();
        for (int j = 0; j < ROWS_OF; j++) {
            float s = scale * l.dot(q, sh.a + j * l.wide), dp = l.dot(g, sh.b + j * l.wide);
            bool seen = key + j >= t.first && key + j <= t.row;
            l.add(dq, seen ? scale * expf(s - base) * (dp - d) : 0, sh.a + j * l.wide);
        }
    }
    if (t.there) l.store(dqkv, t.row, t.head * dim, dq, 1);
}

/* dk and dv of a tile of keys: over the heads of the group and the queries after the keys, in order. */
template <int L>
static __global__ __launch_bounds__(THREADS_PLAIN) void plain_keys_kernel(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld,
                                                            const float *delta, tr_mat qkv, const int32_t *start, tr_sequences seqs, int heads,
                                                            int kv_heads, int dim, float scale)
{
    enum { ROWS_OF = THREADS_PLAIN / L };
    plain_shared &sh = tr_shared<plain_shared>();
    int kv = (int)blockIdx.x % kv_heads, group = heads / kv_heads, k_col = (heads + kv) * dim, v_col = k_col + kv_heads * dim;
    tr_tile at = tr_find_tile(seqs, (int)blockIdx.x / kv_heads, ROWS_OF, true);
    int key = at.row + (int)threadIdx.x / L;
    lanes<L> l(dim);
    float k[HELD], v[HELD], dk[HELD], dv[HELD];
    l.load(k, qkv, key, k_col, key < at.end);
    l.load(v, qkv, key, v_col, key < at.end);
    clear(dk);
    clear(dv);
    for (int head = kv * group; head < (kv + 1) * group; head++)
        for (int query = at.row; query < at.end; query += ROWS_OF) {
            int n = at.end - query < ROWS_OF ? at.end - query : (int)ROWS_OF;
            if (tr_least_start(start, query, n) >= at.row + ROWS_OF) continue;   /* the same for every thread */
            __syncthreads();
            l.tile(sh.a, ROWS_OF, qkv, query, n, head * dim);
            l.tile(sh.b, ROWS_OF, dout, query, n, head * dim);
            __syncthreads();
            for (int i = 0; i < n; i++) {
                float s = scale * l.dot(k, sh.a + i * l.wide), dp = l.dot(v, sh.b + i * l.wide);
                bool seen = query + i >= key && start[query + i] <= key;
                float p = seen ? expf(s - lse[(query + i) * lse_ld + head]) : 0;
                l.add(dv, p, sh.b + i * l.wide);
                l.add(dk, seen ? scale * p * (dp - delta[(int64_t)(query + i) * heads + head]) : 0, sh.a + i * l.wide);
            }
        }
    if (key >= at.end) return;
    l.store(dqkv, key, k_col, dk, 1);
    l.store(dqkv, key, v_col, dv, 1);
}

/* One query. Of TR_BLOCK / L teams each takes every so-manieth stretch of AT_ONCE keys; their results are added in order. */
template <int L> struct cached_shared { float most[TR_BLOCK / L], sum[TR_BLOCK / L], o[TR_BLOCK / L][HELD * L]; };

template <int L>
static __global__ __launch_bounds__(TR_BLOCK) void cached_kernel(tr_mat o, tr_mat q, tr_mat k, tr_mat v, int64_t first, int64_t n, int group,
                                                            int dim, float scale)
{
    enum { TEAMS = TR_BLOCK / L };
    cached_shared<L> &sh = tr_shared<cached_shared<L>>();
    int head = (int)blockIdx.x, col = head / group * dim, team = (int)threadIdx.x / L;
    lanes<L> l(dim);
    float x[HELD], out[HELD], most = -INFINITY, sum = 0;
    l.load(x, q, 0, head * dim, true);
    clear(out);
    for (int64_t base = first; base < n; base += TEAMS)   /* the same number of steps for every lane of a warp */
    {
        int64_t j = base + team;
        float y[HELD], s = 0;
        l.load(y, k, (int)j, col, j < n);
#pragma unroll
        for (int i = 0; i < HELD; i++) s = fmaf(x[i], y[i], s);
#pragma unroll
        for (int b = L / 2; b; b /= 2) s += __shfl_xor_sync(0xffffffffu, s, b);
        if (j >= n) continue;
        float best = fmaxf(most, scale * s), fade = expf(most - best), p = expf(scale * s - best);
        most = best, sum = fmaf(sum, fade, p);
        l.load(y, v, (int)j, col, true);
#pragma unroll
        for (int i = 0; i < HELD; i++) out[i] = fmaf(out[i], fade, p * y[i]);
    }
    if (!l.lane) sh.most[team] = most, sh.sum[team] = sum;
#pragma unroll
    for (int i = 0; i < HELD; i++) sh.o[team][i / 4 * 4 * L + l.lane * 4 + i % 4] = out[i];
    __syncthreads();
    for (int t = 0; t < TEAMS; t++) most = fmaxf(most, sh.most[t]);
    float all = 0;
    for (int t = 0; t < TEAMS; t++) all += sh.sum[t] * expf(sh.most[t] - most);
    for (int d = (int)threadIdx.x; d < dim; d += TR_BLOCK) {
        float y = 0;
        for (int t = 0; t < TEAMS; t++) y += sh.o[t][d] * expf(sh.most[t] - most);
        tr_put(o, 0, head * dim + d, y / all);
    }
}

template <int L> static int plain(tr_mat o, float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s)
{
    return tr_for_sequences(a->seq, a->n_seqs, THREADS_PLAIN / L, [&](const tr_sequences &q, int tiles) {
        return tr_launch(dim3((unsigned)(tiles * a->heads)), THREADS_PLAIN, sizeof(plain_shared), s, attention_kernel<L>, o, lse, lse_ld, qkv, start, q,
                         a->heads, a->kv_heads, a->head_dim, a->scale);
    });
}

template <int L> static int plain_backward(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld, const float *delta, tr_mat qkv,
                                           const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s)
{
    return tr_for_sequences(a->seq, a->n_seqs, THREADS_PLAIN / L, [&](const tr_sequences &q, int tiles) {
        int err = tr_launch(dim3((unsigned)(tiles * a->heads)), THREADS_PLAIN, sizeof(plain_shared), s, plain_queries_kernel<L>, dqkv, dout, lse, lse_ld, delta,
                            qkv, start, q, a->heads, a->kv_heads, a->head_dim, a->scale);
        return err ? err : tr_launch(dim3((unsigned)(tiles * a->kv_heads)), THREADS_PLAIN, sizeof(plain_shared), s, plain_keys_kernel<L>, dqkv, dout, lse, lse_ld,
                                     delta, qkv, start, q, a->heads, a->kv_heads, a->head_dim, a->scale);
    });
}

template <int L> static int cached(tr_mat o, tr_mat q, tr_mat k, tr_mat v, int64_t first, int64_t n, const tr_cuda_heads *a, tr_cuda_stream s)
{
    return tr_launch(dim3((unsigned)a->heads), TR_BLOCK, sizeof(cached_shared<L>), s, cached_kernel<L>, o, q, k, v, first, n, a->heads / a->kv_heads, a->head_dim, a->scale);
}

/* The call with as many lanes to a row as its columns need. */
#define BY_DIM(call, ...) (a->head_dim <= 4 * HELD ? call<4>(__VA_ARGS__) : a->head_dim <= 8 * HELD ? call<8>(__VA_ARGS__) : call<16>(__VA_ARGS__))
#define FITS(a) ((a)->scale > 0 && (a)->head_dim > 0 && (a)->head_dim <= 16 * HELD)

extern "C" {

int tr_cuda_attention(tr_mat o, float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s)
{
    if (!FITS(a)) return (int)cudaErrorInvalidValue;
    if (tr_attention_mma_takes(qkv, o, a)) return tr_attention_mma(o, lse, lse_ld, qkv, start, a, s);
    return BY_DIM(plain, o, lse, lse_ld, qkv, start, a, s);
}

int tr_cuda_attention_backward(tr_mat dqkv, tr_mat dout, tr_mat o, const float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start,
                               const tr_cuda_heads *a, float *delta, tr_cuda_stream s)
{
    if (!FITS(a)) return (int)cudaErrorInvalidValue;
    int64_t n = o.rows * a->heads;
    int err = tr_launch(dim3((unsigned)((n + TR_BLOCK / SHARE_HEAD - 1) / (TR_BLOCK / SHARE_HEAD))), TR_BLOCK, 0, s, delta_kernel, delta, dout, o, n, a->heads, a->head_dim);
    if (err) return err;
    if (tr_attention_mma_takes(qkv, dout, a) && tr_attention_mma_takes(dqkv, dout, a)) return tr_attention_mma_backward(dqkv, dout, lse, lse_ld, delta, qkv, start, a, s);
    return BY_DIM(plain_backward, dqkv, dout, lse, lse_ld, delta, qkv, start, a, s);
}

int tr_cuda_attention_cached(tr_mat o, tr_mat q, tr_mat k, tr_mat v, int64_t first, int64_t n, const tr_cuda_heads *a, tr_cuda_stream s)
{
    if (!FITS(a)) return (int)cudaErrorInvalidValue;
    return BY_DIM(cached, o, q, k, v, first, n, a, s);
}

}
