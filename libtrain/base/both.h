/* Marks functions of one element that the CPU's loops and the kernels for CUDA devices share: one source, the same bits. */
#ifndef TR_BOTH_H
#define TR_BOTH_H
#ifdef __CUDACC__
#define TR_BOTH __host__ __device__ static inline
#else
#define TR_BOTH static inline
#endif
#endif
