/* The kernels for CUDA devices as C++ for the CPU. */
#include "libtrain/kernel/cuda/attention.cu"
#include "libtrain/kernel/cuda/attention_mma.cu"
#include "libtrain/kernel/cuda/cross_entropy.cu"
#include "libtrain/kernel/cuda/elementwise.cu"
#include "libtrain/kernel/cuda/norm.cu"
#include "libtrain/kernel/cuda/product.cu"
#include "libtrain/kernel/cuda/rows.cu"
