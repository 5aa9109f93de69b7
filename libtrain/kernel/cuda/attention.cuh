/* What the files of attention share. Rows of qkv are [q heads | k heads | v heads]. Tiles of rows begin anew with each sequence, so
 * that a sequence has the same bits in any batch; start (kernel/kernel.h) says the rest, packed documents and windows too. */
#ifndef TR_CUDA_ATTENTION_CUH
#define TR_CUDA_ATTENTION_CUH
#include "libtrain/kernel/cuda/device.cuh"

/* Sequence s: tokens [token[s], token[s + 1]), tiles [tile[s], tile[s + 1]). An argument of a kernel: at most 4 KiB in all. */
enum { TR_SEQS = 256 };
struct tr_sequences { int n, tile[TR_SEQS + 1], token[TR_SEQS + 1]; };

struct tr_tile { int row, begin, end; };   /* first row; of its sequence: first row, end */

static __device__ inline tr_tile tr_find_tile(const tr_sequences &q, int tile, int rows)
{
    int low = 0, high = q.n;
    while (high - low > 1) {
        int mid = (low + high) / 2;
        if (q.tile[mid] <= tile) low = mid;
        else high = mid;
    }
    return { q.token[low] + (tile - q.tile[low]) * rows, q.token[low], q.token[low + 1] };
}

/* Of start over rows [row, row + n), n >= 1: the least; for every lane of the warp. */
static __device__ inline int tr_least_start(const int32_t *start, int row, int n)
{
    int least = 0x7fffffff;
    for (int i = threadIdx.x % 32; i < n; i += 32) least = start[row + i] < least ? start[row + i] : least;
    for (int o = 16; o; o /= 2) {
        int other = __shfl_xor_sync(0xffffffffu, least, o);
        least = other < least ? other : least;
    }
    return least;
}

/* One launch for every TR_SEQS sequences. A block for each tile and head: the last tiles first, since they see the most keys. */
template <class F> static inline int tr_for_sequences(const int64_t *seq, int64_t n_seqs, int rows, F launch)
{
    int err = 0;
    for (int64_t s = 0; s < n_seqs && !err; s += TR_SEQS) {
        tr_sequences q = {};
        q.n = (int)(n_seqs - s < TR_SEQS ? n_seqs - s : (int64_t)TR_SEQS);
        for (int i = 0; i <= q.n; i++) {
            q.token[i] = (int)seq[s + i];
            q.tile[i] = i ? q.tile[i - 1] + (q.token[i] - q.token[i - 1] + rows - 1) / rows : 0;
        }
        err = launch(q);
    }
    return err;
}

/* The tensor-core forms (attention_mma.cu) take bf16, head sizes 64 and 128, rows that begin at 16 bytes. */
bool tr_attention_mma_takes(tr_mat qkv, tr_mat o, const tr_cuda_heads *a);
int tr_attention_mma(tr_mat o, float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s);
int tr_attention_mma_backward(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld, const float *delta, tr_mat qkv,
                              const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s);

#endif
