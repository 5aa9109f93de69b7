/* Attention in bf16 on tensor cores, sums in f32. Four warps share tiles of rows in shared memory; a warp owns 16 or 32 rows of a product
 * and keeps them in registers, so that the softmax of a row stays within four lanes. */
#include "libtrain/kernel/cuda/attention.cuh"
#include "libtrain/kernel/cuda/mma.cuh"

typedef unsigned short bits;   /* of a bf16 */
enum { THREADS = 128, KEYS = 64, PAD = 8 /* rows of shared memory in different banks */ };
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

/* Rows of the other side that are gone through at once: as many as the registers hold; few in the backward pass, so that three
 * blocks share a multiprocessor with heads of 64. */
template <int D> struct step { enum { ROWS_OF = D > 64 ? 32 : 64 }; };
enum { STEP_BACK = 32 };

/* Rows 0..N-1 of D columns, the first n from `from`, zeros below. */
template <int D, int N> static __device__ inline void load_tile(bits (*to)[D + PAD], const bits *from, int64_t ld, int n)
{
#pragma unroll
    for (int i = 0; i < N * (D / 8) / THREADS; i++) {
        int at = i * THREADS + (int)threadIdx.x, r = at / (D / 8), c = at % (D / 8) * 8;
        tr_copy16(&to[r][c], from + (r < n ? r : 0) * ld + c, r < n);
    }
}

/* s += a b^T: a [16 M, D] the warp's rows, b [N, D]. */
template <int M, int N, int D> static __device__ inline void multiply_rows(float (&s)[M][N / 8][4], const bits (*a)[D + PAD], const bits (*b)[D + PAD])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        unsigned x[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) tr_load_matrices(x[m], &a[m * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            unsigned y[4];
            tr_load_matrices(y, &b[n + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
#pragma unroll
            for (int m = 0; m < M; m++) {
                tr_mma(s[m][n / 8], x[m], y[0], y[1]);
                tr_mma(s[m][n / 8 + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* o += p b, p [16 M, N] rounded to bf16, b [N, D]. */
template <int M, int N, int D> static __device__ inline void multiply_columns(float (&o)[M][D / 8][4], const float (&p)[M][N / 8][4], const bits (*b)[D + PAD])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N; n += 16) {
        unsigned x[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int k = 0; k < 4; k++) x[m][k] = tr_pack_bf16(p[m][n / 8 + k / 2][k % 2 * 2], p[m][n / 8 + k / 2][k % 2 * 2 + 1]);
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            unsigned y[4];
            tr_load_transposed(y, &b[n + lane % 16][d + lane / 16 * 8]);
#pragma unroll
            for (int m = 0; m < M; m++) {
                tr_mma(o[m][d / 8], x[m], y[0], y[1]);
                tr_mma(o[m][d / 8 + 1], x[m], y[2], y[3]);
            }
        }
    }
}

template <int M, int N> static __device__ inline void clear(float (&x)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int k = 0; k < 4; k++) x[m][n][k] = 0;
}

/* A warp's 16 rows times `by`, those before `end`, to columns from `col`; row: of the first. */
template <int D> static __device__ inline void store_rows(tr_mat t, int row, int end, int col, const float (&x)[D / 8][4], float by0, float by1)
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + lane / 4 + 8 * half;
        float by = half ? by1 : by0;
        if (r >= end) continue;
        bits *to = static_cast<bits *>(t.data) + r * t.ld + col + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; n++) *reinterpret_cast<unsigned *>(to + 8 * n) = tr_pack_bf16(x[n][2 * half] * by, x[n][2 * half + 1] * by);
    }
}

template <int M, int D> struct forward_shared { bits q[64 * M][D + PAD], k[2][step<D>::ROWS_OF][D + PAD], v[2][step<D>::ROWS_OF][D + PAD]; };

/* One tile of keys: the rows' largest scores and sums go on; p in place of the scores. Lane's rows 2 m + half. */
template <int M, int N> static __device__ inline void softmax_step(float (&s)[M][N / 8][4], float (&most)[2 * M], float (&sum)[2 * M], float (&fade)[2 * M], float by)
{
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        float best = most[r];
#pragma unroll
        for (int n = 0; n < N / 8; n++) best = fmaxf(best, fmaxf(s[r / 2][n][r % 2 * 2], s[r / 2][n][r % 2 * 2 + 1]));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
        float base = best == -INFINITY ? 0 : best * by, part = 0;
        fade[r] = best == most[r] ? 1 : tr_exp2(fmaf(most[r], by, -base));   /* exactly 1: a tile that a row does not see leaves no trace */
        most[r] = best;
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int k = r % 2 * 2; k < r % 2 * 2 + 2; k++) part += s[r / 2][n][k] = tr_exp2(fmaf(s[r / 2][n][k], by, -base));
        sum[r] = fmaf(sum[r], fade[r], part);
    }
}

template <int M, int D>
static __global__ __launch_bounds__(THREADS, 2) void forward_kernel(tr_mat o, float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start,
                                                            tr_sequences seqs, int heads, int kv_heads, float by)
{
    enum { ROWS_HERE = 64 * M, STEP = step<D>::ROWS_OF };
    forward_shared<M, D> &sh = tr_shared<forward_shared<M, D>>();
    int head = (int)blockIdx.x % heads, lane = threadIdx.x % 32, warp_row = (int)threadIdx.x / 32 * 16 * M;
    tr_tile at = tr_find_tile(seqs, (int)blockIdx.x / heads, ROWS_HERE, false);
    int rows = at.end - at.row < ROWS_HERE ? at.end - at.row : (int)ROWS_HERE, last = at.row + rows;
    int key = at.begin + (tr_least_start(start, at.row, rows) - at.begin) / STEP * STEP;
    const bits *q = static_cast<const bits *>(qkv.data) + head * D, *k = static_cast<const bits *>(qkv.data) + (heads + head / (heads / kv_heads)) * D, *v = k + kv_heads * D;

    int row[2 * M], first[2 * M], most_start = 0;   /* a lane's rows; those beyond the end see nothing */
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        row[r] = at.row + warp_row + r / 2 * 16 + r % 2 * 8 + lane / 4;
        first[r] = row[r] < last ? start[row[r]] : 0x7fffffff;
        most_start = first[r] > most_start ? first[r] : most_start;
    }
    float out[M][D / 8][4], most[2 * M], sum[2 * M], fade[2 * M];
    clear(out);
#pragma unroll
    for (int r = 0; r < 2 * M; r++) most[r] = -INFINITY, sum[r] = 0;

    load_tile<D, ROWS_HERE>(sh.q, q + at.row * qkv.ld, qkv.ld, rows);
    load_tile<D, STEP>(sh.k[0], k + key * qkv.ld, qkv.ld, last - key);
    load_tile<D, STEP>(sh.v[0], v + key * qkv.ld, qkv.ld, last - key);
    tr_copy_commit();
    for (int stage = 0; key < last; key += STEP, stage ^= 1) {
        if (key + STEP < last) {
            load_tile<D, STEP>(sh.k[stage ^ 1], k + (key + STEP) * qkv.ld, qkv.ld, last - key - STEP);
            load_tile<D, STEP>(sh.v[stage ^ 1], v + (key + STEP) * qkv.ld, qkv.ld, last - key - STEP);
        }
        tr_copy_commit();
        tr_copy_wait<1>();
        __syncthreads();
        float s[M][STEP / 8][4];
        clear(s);
        multiply_rows<M, STEP, D>(s, sh.q + warp_row, sh.k[stage]);
        if (key + STEP > at.row + warp_row || key < most_start) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        int j = key + 8 * n + lane % 4 * 2 + c % 2;
                        if (j > row[2 * m + c / 2] || j < first[2 * m + c / 2]) s[m][n][c] = -INFINITY;
                    }
        }
        softmax_step<M, STEP>(s, most, sum, fade, by);
        bool fades = false;
#pragma unroll
        for (int r = 0; r < 2 * M; r++) fades = fades || fade[r] != 1;
        if (__ballot_sync(0xffffffffu, fades)) {   /* rarely, once the largest scores have been seen */
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < D / 8; n++)
#pragma unroll
                    for (int c = 0; c < 4; c++) out[m][n][c] *= fade[2 * m + c / 2];
        }
        multiply_columns<M, STEP, D>(out, s, sh.v[stage]);
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        if (row[r] < last && lane % 4 == 0) lse[row[r] * lse_ld + head] = LN2 * fmaf(most[r], by, log2f(sum[r]));
    }
#pragma unroll
    for (int m = 0; m < M; m++) store_rows<D>(o, at.row + warp_row + m * 16, last, head * D, out[m], 1 / sum[2 * m], 1 / sum[2 * m + 1]);
}

template <int D> struct keys_shared {
    bits k[KEYS][D + PAD], v[KEYS][D + PAD], q[2][STEP_BACK][D + PAD], g[2][STEP_BACK][D + PAD];
    float lse[2][STEP_BACK], delta[2][STEP_BACK];   /* lse in powers of 2; infinite where there is no query */
    int start[2][STEP_BACK], last[THREADS / 32];
    unsigned late[2];   /* queries that do not see the first key */
};

/* dk and dv of a tile of keys: over the heads of its group and the queries that see it, in order. */
template <int D>
static __global__ __launch_bounds__(THREADS, D > 64 ? 2 : 3) void keys_kernel(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld,
                                                            const float *delta, tr_mat qkv, const int32_t *start, tr_sequences seqs, int heads,
                                                            int kv_heads, float scale)
{
    keys_shared<D> &sh = tr_shared<keys_shared<D>>();
    int kv = (int)blockIdx.x % kv_heads, group = heads / kv_heads, lane = threadIdx.x % 32, warp_row = (int)threadIdx.x / 32 * 16;
    tr_tile at = tr_find_tile(seqs, (int)blockIdx.x / kv_heads, KEYS, true);
    int keys = at.end - at.row < KEYS ? at.end - at.row : (int)KEYS;
    int64_t ld = qkv.ld;
    const bits *q = static_cast<const bits *>(qkv.data) + kv * group * D, *k = static_cast<const bits *>(qkv.data) + (heads + kv) * D, *v = k + kv_heads * D;
    const bits *g = static_cast<const bits *>(dout.data) + kv * group * D;

    int last = 0;   /* query that sees any of the keys, less the first key */
    for (int i = at.row + (int)threadIdx.x; i < at.end; i += THREADS)
        if (start[i] < at.row + keys) last = i - at.row;
    for (int o = 16; o; o /= 2) {
        int other = __shfl_xor_sync(0xffffffffu, last, o);
        last = other > last ? other : last;
    }
    if (!lane) sh.last[threadIdx.x / 32] = last;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) last = sh.last[w] > last ? sh.last[w] : last;
    int tiles = last / STEP_BACK + 1, steps = tiles * group;

    auto load_queries = [&](int i, int stage) {
        int head = i / tiles;
        int first = at.row + i % tiles * STEP_BACK;
        load_tile<D, STEP_BACK>(sh.q[stage], q + head * D + first * ld, ld, at.end - first);
        load_tile<D, STEP_BACK>(sh.g[stage], g + head * D + first * dout.ld, dout.ld, at.end - first);
        if (threadIdx.x < STEP_BACK) {
            int r = first + (int)threadIdx.x;
            bool there = r < at.end;
            sh.lse[stage][threadIdx.x] = there ? LOG2E * lse[r * lse_ld + kv * group + head] : INFINITY;
            sh.delta[stage][threadIdx.x] = there ? delta[(int64_t)r * heads + kv * group + head] : 0;
            int from = there ? start[r] : 0;
            unsigned late = __ballot_sync(0xffffffffu, from > at.row);
            sh.start[stage][threadIdx.x] = from;
            sh.late[stage] = late;
        }
    };
    load_tile<D, KEYS>(sh.k, k + at.row * ld, ld, keys);
    load_tile<D, KEYS>(sh.v, v + at.row * ld, ld, keys);
    load_queries(0, 0);
    tr_copy_commit();
    float dk[1][D / 8][4], dv[1][D / 8][4];
    clear(dk);
    clear(dv);
    for (int i = 0; i < steps; i++) {
        int stage = i % 2, query = i % tiles * STEP_BACK - warp_row - lane / 4;   /* the first, less the lane's first key */
        if (i + 1 < steps) load_queries(i + 1, stage ^ 1);
        tr_copy_commit();
        tr_copy_wait<1>();
        __syncthreads();
        float p[1][STEP_BACK / 8][4], ds[1][STEP_BACK / 8][4];
        clear(p);
        clear(ds);
        multiply_rows<1, STEP_BACK, D>(p, sh.k + warp_row, sh.q[stage]);
        if (i % tiles * STEP_BACK < warp_row + 15 || sh.late[stage]) {
            int first_key = at.row + warp_row + lane / 4;
#pragma unroll
            for (int n = 0; n < STEP_BACK / 8; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    int j = 8 * n + lane % 4 * 2 + c % 2, below = c / 2 * 8;
                    if (query + j < below || sh.start[stage][j] > first_key + below) p[0][n][c] = -INFINITY;
                }
        }
#pragma unroll
        for (int n = 0; n < STEP_BACK / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) p[0][n][c] = tr_exp2(fmaf(p[0][n][c], scale * LOG2E, -sh.lse[stage][8 * n + lane % 4 * 2 + c % 2]));
        multiply_columns<1, STEP_BACK, D>(dv, p, sh.g[stage]);
        multiply_rows<1, STEP_BACK, D>(ds, sh.v + warp_row, sh.g[stage]);
#pragma unroll
        for (int n = 0; n < STEP_BACK / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) ds[0][n][c] = p[0][n][c] * (ds[0][n][c] - sh.delta[stage][8 * n + lane % 4 * 2 + c % 2]);
        multiply_columns<1, STEP_BACK, D>(dk, ds, sh.q[stage]);
        __syncthreads();
    }
    store_rows<D>(dqkv, at.row + warp_row, at.end, (heads + kv) * D, dk[0], scale, scale);
    store_rows<D>(dqkv, at.row + warp_row, at.end, (heads + kv_heads + kv) * D, dv[0], 1, 1);
}

template <int D> struct queries_shared { bits q[64][D + PAD], g[64][D + PAD], k[2][STEP_BACK][D + PAD], v[2][STEP_BACK][D + PAD]; };

/* dq of a tile of queries: over the keys that it sees, in order. */
template <int D>
static __global__ __launch_bounds__(THREADS, D > 64 ? 2 : 3) void queries_kernel(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld,
                                                            const float *delta, tr_mat qkv, const int32_t *start, tr_sequences seqs, int heads,
                                                            int kv_heads, float scale)
{
    queries_shared<D> &sh = tr_shared<queries_shared<D>>();
    int head = (int)blockIdx.x % heads, lane = threadIdx.x % 32, warp_row = (int)threadIdx.x / 32 * 16;
    tr_tile at = tr_find_tile(seqs, (int)blockIdx.x / heads, 64, false);
    int rows = at.end - at.row < 64 ? at.end - at.row : 64, last = at.row + rows;
    int64_t ld = qkv.ld;
    int key = at.begin + (tr_least_start(start, at.row, rows) - at.begin) / STEP_BACK * STEP_BACK;
    const bits *q = static_cast<const bits *>(qkv.data) + head * D, *k = static_cast<const bits *>(qkv.data) + (heads + head / (heads / kv_heads)) * D, *v = k + kv_heads * D;
    int row[2], first[2], most_start = 0;
    float base[2], d[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        row[r] = at.row + warp_row + r * 8 + lane / 4;
        bool there = row[r] < last;
        first[r] = there ? start[row[r]] : 0x7fffffff;
        most_start = first[r] > most_start ? first[r] : most_start;
        base[r] = there ? LOG2E * lse[row[r] * lse_ld + head] : 0;
        d[r] = there ? delta[(int64_t)row[r] * heads + head] : 0;
    }
    load_tile<D, 64>(sh.q, q + at.row * ld, ld, rows);
    load_tile<D, 64>(sh.g, static_cast<const bits *>(dout.data) + head * D + at.row * dout.ld, dout.ld, rows);
    load_tile<D, STEP_BACK>(sh.k[0], k + key * ld, ld, last - key);
    load_tile<D, STEP_BACK>(sh.v[0], v + key * ld, ld, last - key);
    tr_copy_commit();
    float dq[1][D / 8][4];
    clear(dq);
    for (int stage = 0; key < last; key += STEP_BACK, stage ^= 1) {
        if (key + STEP_BACK < last) {
            load_tile<D, STEP_BACK>(sh.k[stage ^ 1], k + (key + STEP_BACK) * ld, ld, last - key - STEP_BACK);
            load_tile<D, STEP_BACK>(sh.v[stage ^ 1], v + (key + STEP_BACK) * ld, ld, last - key - STEP_BACK);
        }
        tr_copy_commit();
        tr_copy_wait<1>();
        __syncthreads();
        float p[1][STEP_BACK / 8][4], ds[1][STEP_BACK / 8][4];
        clear(p);
        clear(ds);
        multiply_rows<1, STEP_BACK, D>(p, sh.q + warp_row, sh.k[stage]);
        multiply_rows<1, STEP_BACK, D>(ds, sh.g + warp_row, sh.v[stage]);
        if (key + STEP_BACK > at.row + warp_row || key < most_start) {
#pragma unroll
            for (int n = 0; n < STEP_BACK / 8; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    int j = key + 8 * n + lane % 4 * 2 + c % 2;
                    if (j > row[c / 2] || j < first[c / 2]) p[0][n][c] = -INFINITY;
                }
        }
#pragma unroll
        for (int n = 0; n < STEP_BACK / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) ds[0][n][c] = tr_exp2(fmaf(p[0][n][c], scale * LOG2E, -base[c / 2])) * (ds[0][n][c] - d[c / 2]);
        multiply_columns<1, STEP_BACK, D>(dq, ds, sh.k[stage]);
        __syncthreads();
    }
    store_rows<D>(dqkv, at.row + warp_row, last, head * D, dq[0], scale, scale);
}

static bool even(tr_mat t) { return t.dtype == TR_CUDA_BF16 && t.ld % 8 == 0 && (uintptr_t)t.data % 16 == 0; }

bool tr_attention_mma_takes(tr_mat qkv, tr_mat o, const tr_cuda_heads *a) { return even(qkv) && even(o) && (a->head_dim == 64 || a->head_dim == 128); }

template <int M, int D> static int forward(tr_mat o, float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s)
{
    return tr_for_sequences(a->seq, a->n_seqs, 64 * M, [&](const tr_sequences &q, int tiles) {
        return tr_launch(dim3((unsigned)(tiles * a->heads)), THREADS, sizeof(forward_shared<M, D>), s, forward_kernel<M, D>, o, lse, lse_ld, qkv, start, q,
                         a->heads, a->kv_heads, a->scale * LOG2E);
    });
}

/* Tall tiles read keys and values half as often; short ones share out evenly where there are few. The bits are the same. */
enum { MANY_ROWS = 1 << 16 };
int tr_attention_mma(tr_mat o, float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s)
{
    bool tall = o.rows * a->heads >= MANY_ROWS;
    if (a->head_dim == 64) return tall ? forward<2, 64>(o, lse, lse_ld, qkv, start, a, s) : forward<1, 64>(o, lse, lse_ld, qkv, start, a, s);
    return tall ? forward<2, 128>(o, lse, lse_ld, qkv, start, a, s) : forward<1, 128>(o, lse, lse_ld, qkv, start, a, s);
}

template <int D> static int backward(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld, const float *delta, tr_mat qkv,
                                     const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s)
{
    return tr_for_sequences(a->seq, a->n_seqs, KEYS, [&](const tr_sequences &q, int tiles) {
        int err = tr_launch(dim3((unsigned)(tiles * a->kv_heads)), THREADS, sizeof(keys_shared<D>), s, keys_kernel<D>, dqkv, dout, lse, lse_ld, delta, qkv, start, q,
                            a->heads, a->kv_heads, a->scale);
        return err ? err : tr_launch(dim3((unsigned)(tiles * a->heads)), THREADS, sizeof(queries_shared<D>), s, queries_kernel<D>, dqkv, dout, lse, lse_ld, delta, qkv, start, q,
                                     a->heads, a->kv_heads, a->scale);
    });
}

int tr_attention_mma_backward(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld, const float *delta, tr_mat qkv,
                              const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s)
{
    return a->head_dim == 64 ? backward<64>(dqkv, dout, lse, lse_ld, delta, qkv, start, a, s) : backward<128>(dqkv, dout, lse, lse_ld, delta, qkv, start, a, s);
}
