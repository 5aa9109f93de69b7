/* The kernels for CUDA devices as C++ for the CPU. */
#include "libtrain/kernel/cuda/cross_entropy.cu"
#include "libtrain/kernel/cuda/elementwise.cu"
#include "libtrain/kernel/cuda/norm.cu"
#include "libtrain/kernel/cuda/rows.cu"
