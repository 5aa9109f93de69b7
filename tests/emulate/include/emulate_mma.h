/* kernel/cuda/mma.cuh on the CPU. A copy from global memory is done as late as CUDA allows, at the wait. */
#ifndef EMULATE_MMA_H
#define EMULATE_MMA_H
#include <cuda_runtime.h>
#include <vector>

static inline float tr_emulate_half(unsigned pair, int high) { return __uint_as_float(high ? pair & 0xffff0000u : pair << 16); }

static inline void tr_mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    unsigned mine[6] = { a[0], a[1], a[2], a[3], b0, b1 }, all[32][6], lane = threadIdx.x % 32;
    tr_emulate_gather(mine, all, sizeof mine);
    for (unsigned e = 0; e < 4; e++) {
        unsigned row = lane / 4 + e / 2 * 8, col = lane % 4 * 2 + e % 2;
        for (unsigned k = 0; k < 16; k++) {
            float x = tr_emulate_half(all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
            float y = tr_emulate_half(all[col * 4 + k % 8 / 2][4 + k / 8], k % 2);
            d[e] = fmaf(x, y, d[e]);
        }
    }
}

static inline void tr_emulate_matrices(unsigned (&r)[4], const void *row, bool transposed)
{
    unsigned short mine[8], all[32][8];
    unsigned lane = threadIdx.x % 32;
    if ((uintptr_t)row % 16) __builtin_trap();
    memcpy(mine, row, sizeof mine);
    tr_emulate_gather(mine, all, sizeof mine);
    for (unsigned m = 0; m < 4; m++) {
        unsigned i = lane / 4, j = lane % 4 * 2;
        r[m] = transposed ? all[8 * m + j][i] | (unsigned)all[8 * m + j + 1][i] << 16 : all[8 * m + i][j] | (unsigned)all[8 * m + i][j + 1] << 16;
    }
}

static inline void tr_load_matrices(unsigned (&r)[4], const void *row) { tr_emulate_matrices(r, row, false); }
static inline void tr_load_transposed(unsigned (&r)[4], const void *row) { tr_emulate_matrices(r, row, true); }

struct tr_emulate_copy { void *to; const void *from; bool there; unsigned group; };
struct tr_emulate_copies { std::vector<tr_emulate_copy> list; unsigned group; };
inline tr_emulate_copies tr_emulate_pending[1024];   /* of each thread of the running block */

static inline void tr_copy16(void *to, const void *from, bool there)
{
    tr_emulate_copies &p = tr_emulate_pending[threadIdx.x];
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) __builtin_trap();
    memset(to, 0xff, 16);
    p.list.push_back({ to, from, there, p.group });
}

static inline void tr_copy_commit() { tr_emulate_pending[threadIdx.x].group++; }

template <int N> static inline void tr_copy_wait()
{
    tr_emulate_copies &p = tr_emulate_pending[threadIdx.x];
    size_t done = 0;
    for (; done < p.list.size() && p.list[done].group + N < p.group; done++) {
        if (p.list[done].there) memcpy(p.list[done].to, p.list[done].from, 16);
        else memset(p.list[done].to, 0, 16);
    }
    p.list.erase(p.list.begin(), p.list.begin() + (ptrdiff_t)done);
}

#endif
