/* Tensor cores and what feeds them: the product of a warp, rows of shared memory as its operands, copies that run while the
 * warp goes on. PTX under nvcc; tests/emulate/include/emulate_mma.h does the same on the CPU.
 *
 * Lane l holds, with g = l / 4 and t = l % 4, of d [16,8]: rows g (0, 1) and g + 8 (2, 3), columns 2t and 2t + 1; of a [16,16]: rows g,
 * g + 8, g, g + 8, columns 2t and 2t + 1 (0, 1) or 8 more (2, 3); of b [16,8]: rows 2t and 2t + 1 (0) or 8 more (1), column g. */
#ifndef TR_CUDA_MMA_CUH
#define TR_CUDA_MMA_CUH
#include "libtrain/kernel/cuda/device.cuh"
#ifdef __CUDACC__

/* d += a b, bf16 with sums in f32. */
static __device__ __forceinline__ void tr_mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four matrices [8,8] of 16 bits: lane l names row l % 8 of matrix l / 8; lane l gets row l / 4, columns 2 (l % 4) and the next, of each. */
static __device__ __forceinline__ void tr_load_matrices(unsigned (&r)[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}

/* The same with rows and columns exchanged. */
static __device__ __forceinline__ void tr_load_transposed(unsigned (&r)[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}

/* 16 bytes from global to shared memory, zeros instead when !there; visible after the wait and a barrier. */
static __device__ __forceinline__ void tr_copy16(void *to, const void *from, bool there)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void tr_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* Until at most N of the committed groups are under way. */
template <int N> static __device__ __forceinline__ void tr_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#else
#include <emulate_mma.h>
#endif
#endif
