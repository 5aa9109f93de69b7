/* Matrix products in plain loops under cuBLASLt's names. It refuses types and shapes that do not fit together, an algorithm
 * chosen for another product, pointers below the promised alignment, and, so that what stands in for the library is used, too,
 * products whose rows are not whole words of 32 bits. */
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

namespace {

uint64_t width(cudaDataType t) { return t == CUDA_R_32F ? 4 : 2; }
template <class T> cublasStatus_t make(T **out) { return (*out = static_cast<T *>(calloc(1, sizeof(T)))) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE; }
cublasStatus_t drop(void *p) { return free(p), CUBLAS_STATUS_SUCCESS; }

cublasLtMatmulAlgo_t algo_of(cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, const uint32_t *align)
{
    cublasLtMatmulAlgo_t x = {};
    x.data[0] = (uint64_t)d->a | (uint64_t)d->b << 1 | (uint64_t)a->type << 8 | (uint64_t)c->type << 16;
    x.data[1] = a->rows << 32 | a->cols, x.data[2] = b->rows << 32 | b->cols;
    x.data[3] = (uint64_t)a->ld, x.data[4] = (uint64_t)b->ld, x.data[5] = (uint64_t)c->ld;
    x.data[6] = (uint64_t)align[0] | (uint64_t)align[1] << 16 | (uint64_t)align[2] << 32 | (uint64_t)align[3] << 48;
    return x;
}

bool legal(cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c)
{
    uint64_t m = d->a ? a->cols : a->rows, k = d->a ? a->rows : a->cols, n = d->b ? b->rows : b->cols;
    return m == c->rows && n == c->cols && k == (d->b ? b->cols : b->rows) && m && n && k && a->ld >= (int64_t)a->rows && b->ld >= (int64_t)b->rows && c->ld >= (int64_t)c->rows;
}

bool supported(cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c)
{
    return a->type == b->type && (c->type == CUDA_R_32F || a->type == CUDA_R_16BF) && (uint64_t)a->ld * width(a->type) % 4 == 0 && (uint64_t)b->ld * width(b->type) % 4 == 0;
}

float get(const void *p, cudaDataType t, uint64_t i)
{
    if (t == CUDA_R_32F) return static_cast<const float *>(p)[i];
    uint32_t u = (uint32_t)static_cast<const uint16_t *>(p)[i] << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

void put(void *p, cudaDataType t, uint64_t i, float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if (t == CUDA_R_32F) static_cast<float *>(p)[i] = f;
    else static_cast<uint16_t *>(p)[i] = (uint16_t)(f != f ? u >> 16 | 64 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

bool aligned(const void *p, uint64_t to) { return to && reinterpret_cast<uintptr_t>(p) % to == 0; }

}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { return make(h); }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale)
{
    return compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F ? make(d) : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return drop(d); }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t name, const void *value, size_t size)
{
    if (size != sizeof(cublasOperation_t)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(name == CUBLASLT_MATMUL_DESC_TRANSA ? &d->a : &d->b, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *m, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld)
{
    if (make(m) != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_INVALID_VALUE;
    (*m)->type = type, (*m)->rows = rows, (*m)->cols = cols, (*m)->ld = ld;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t m) { return drop(m); }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) { return make(p); }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return drop(p); }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t name, const void *value, size_t size)
{
    if (size != (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? sizeof(size_t) : sizeof(uint32_t))) return CUBLAS_STATUS_INVALID_VALUE;
    if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) memcpy(&p->workspace, value, size);
    else if (name == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) memcpy(&p->reduction, value, size);
    else memcpy(&p->align[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t, cublasLtMatmulPreference_t p, int most, cublasLtMatmulHeuristicResult_t *result, int *found)
{
    *found = 0;
    if (!legal(d, a, b, c) || most < 1) return CUBLAS_STATUS_INVALID_VALUE;
    if (!supported(a, b, c)) return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(result, 0, sizeof *result);
    result->algo = algo_of(d, a, b, c, p->align);
    result->workspaceSize = p->workspace;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha, const void *a, cublasLtMatrixLayout_t al, const void *b, cublasLtMatrixLayout_t bl,
                              const void *beta, const void *c, cublasLtMatrixLayout_t cl, void *out, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t bytes, cudaStream_t stream)
{
    uint32_t align[4];
    for (int i = 0; i < 4; i++) align[i] = (uint32_t)(algo->data[6] >> 16 * i & 0xffff);
    cublasLtMatmulAlgo_t made = algo_of(d, al, bl, cl, align);
    if (!legal(d, al, bl, cl) || memcmp(&made, algo, sizeof made) || c != out || !workspace || !stream) return CUBLAS_STATUS_INVALID_VALUE;
    if (!aligned(a, align[0]) || !aligned(b, align[1]) || !aligned(c, align[2]) || !aligned(out, align[3]) || !aligned(workspace, 16)) return CUBLAS_STATUS_INVALID_VALUE;
    float x = *static_cast<const float *>(alpha), y = *static_cast<const float *>(beta);
    tr_emulate_enter();
    memset(workspace, 0xff, bytes < 4096 ? bytes : 4096);
    for (uint64_t j = 0; j < cl->cols; j++)
        for (uint64_t i = 0; i < cl->rows; i++) {
            double sum = 0;
            uint64_t at = i + j * (uint64_t)cl->ld, K = d->a ? al->rows : al->cols;
            for (uint64_t k = 0; k < K; k++)
                sum += (double)get(a, al->type, d->a ? k + i * (uint64_t)al->ld : i + k * (uint64_t)al->ld) * (double)get(b, bl->type, d->b ? j + k * (uint64_t)bl->ld : k + j * (uint64_t)bl->ld);
            put(out, cl->type, at, y != 0 ? (float)sum * x + y * get(c, cl->type, at) : (float)sum * x);
        }
    tr_emulate_leave();
    return CUBLAS_STATUS_SUCCESS;
}
