/* What the files of attention share. Rows of qkv are [q heads | k heads | v heads]. Tiles of rows begin anew with each sequence, so
 * that a sequence has the same bits in any batch; start (kernel/kernel.h) says the rest, packed documents and windows too. */
#ifndef TR_CUDA_ATTENTION_CUH
#define TR_CUDA_ATTENTION_CUH
#include "libtrain/kernel/cuda/device.cuh"

/* Sequences, longest first: tokens [begin[s], end[s]). An argument of a kernel: at most 4 KiB in all. */
enum { TR_SEQS = 256 };
struct tr_sequences { int n, begin[TR_SEQS], end[TR_SEQS]; };

struct tr_tile { int row, begin, end; };   /* first row; of its sequence: first row, end */

static __host__ __device__ inline int tr_tiles(const tr_sequences &q, int s, int rows) { return (q.end[s] - q.begin[s] + rows - 1) / rows; }

/* Tile b in the order of their work, most first: a tile of queries sees the more keys the more tiles of its sequence lie
 * before it, a tile of keys is seen by the more queries the more lie behind. The tiles with `depth` such tiles are those of the
 * sequences that have more than depth, which come first. For every lane of the warp. */
static __device__ inline tr_tile tr_find_tile(const tr_sequences &q, int b, int rows, bool of_keys)
{
    int low = 0, high = tr_tiles(q, 0, rows) - 1, before = 0;
    while (low < high) {   /* the least depth with at most b tiles that lie deeper */
        int depth = (low + high) / 2, deeper = 0;
        for (int s = (int)threadIdx.x % 32; s < q.n; s += 32) {
            int more = tr_tiles(q, s, rows) - 1 - depth;
            deeper += more > 0 ? more : 0;
        }
        for (int o = 16; o; o /= 2) deeper += __shfl_xor_sync(0xffffffffu, deeper, o);
        if (deeper <= b) high = depth, before = deeper;
        else low = depth + 1;
    }
    int s = b - before, tile = of_keys ? tr_tiles(q, s, rows) - 1 - low : low;
    return { q.begin[s] + tile * rows, q.begin[s], q.end[s] };
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

/* One launch for every TR_SEQS sequences: launch(sequences, tiles). */
template <class F> static inline int tr_for_sequences(const int64_t *seq, int64_t n_seqs, int rows, F launch)
{
    int err = 0;
    for (int64_t first = 0; first < n_seqs && !err; first += TR_SEQS) {
        tr_sequences q = {};
        int tiles = 0;
        for (int64_t s = first; s < n_seqs && s < first + TR_SEQS; s++) {
            int at = q.n++, length = (int)(seq[s + 1] - seq[s]);
            for (; at && q.end[at - 1] - q.begin[at - 1] < length; at--) q.begin[at] = q.begin[at - 1], q.end[at] = q.end[at - 1];
            q.begin[at] = (int)seq[s], q.end[at] = (int)seq[s + 1];
            tiles += (length + rows - 1) / rows;
        }
        err = launch(q, tiles);
    }
    return err;
}

/* The tensor-core forms (attention_mma.cu) take bf16, head sizes 64 and 128, rows that begin at 16 bytes. */
bool tr_attention_mma_takes(tr_mat qkv, tr_mat o, const tr_cuda_heads *a);
int tr_attention_mma(tr_mat o, float *lse, int64_t lse_ld, tr_mat qkv, const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s);
int tr_attention_mma_backward(tr_mat dqkv, tr_mat dout, const float *lse, int64_t lse_ld, const float *delta, tr_mat qkv,
                              const int32_t *start, const tr_cuda_heads *a, tr_cuda_stream s);

#endif
