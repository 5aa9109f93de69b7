/* Products by cuBLASLt, in f32 and bf16 with sums in f32 (no TF32); what it does not take, by an own plain kernel. It counts
 * columns first: our row-major [R,S] is its S x R, so c^T = op(b)^T op(a)^T. Algorithms are its first proposal for a shape and
 * alignment, so the same product has the same bits. Sums over tokens and over a vocabulary, whose results are too small to keep a device busy, may
 * be split: parts in f32 in our workspace, added in a fixed order. Weights of another type than the activations are
 * converted right before their product, at most WIDE bytes at a time. */
#include "libtrain/kernel/cuda/matmul.h"
#include "libtrain/kernel/cuda/launch.h"
#include "libtrain/kernel/cuda/table.h"
#include <cublasLt.h>
#include <string.h>

enum { LIBRARY = 32 << 20, WIDE = 64 << 20, KEPT = 256, LONG = 16384 };

/* What an algorithm is chosen for. Compared as bytes: no gaps. */
struct key { int64_t m, n, k, a_ld, b_ld, c_ld; uint32_t a_align, b_align, c_align; unsigned char a_type, c_type, ta, tb; };
_Static_assert(sizeof(struct key) == 64, "no gaps");

struct plan { struct key key; cublasLtMatmulDesc_t op; cublasLtMatrixLayout_t a, b, c; cublasLtMatmulAlgo_t algo; bool made, taken; };

static cublasLtHandle_t handle;
static cudaStream_t stream;
static struct plan plans[KEPT];
static int next_plan;

int tr_cuda_matmul_open(void *s)
{
    stream = s;
    return (int)cublasLtCreate(&handle);
}

static cudaDataType type_of(enum tr_dtype d) { return d == TR_F32 ? CUDA_R_32F : CUDA_R_16BF; }

/* The largest power of two that divides an address, up to 256. */
static uint32_t alignment(const void *p)
{
    uintptr_t x = (uintptr_t)p | 256;
    return (uint32_t)(x & (~x + 1));
}

static struct key key_of(const struct tr_product *p)
{
    return (struct key){ p->m, p->n, p->k, p->a.ld, p->b.ld, p->c_ld, alignment(p->a.data), alignment(p->b.data), alignment(p->c),
                         (unsigned char)p->a.dtype, (unsigned char)p->c_dtype, p->a.transposed, p->b.transposed };
}

static bool layout(cublasLtMatrixLayout_t *out, enum tr_dtype d, int64_t stored_cols, int64_t stored_rows, int64_t ld)
{
    return cublasLtMatrixLayoutCreate(out, type_of(d), (uint64_t)stored_cols, (uint64_t)stored_rows, ld) == CUBLAS_STATUS_SUCCESS;
}

static bool choose(struct plan *t)
{
    cublasLtMatmulPreference_t want;
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    size_t bytes = LIBRARY;
    const struct key *k = &t->key;
    uint32_t sums = k->ta || k->k > LONG ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
    if (cublasLtMatmulPreferenceCreate(&want) != CUBLAS_STATUS_SUCCESS) return false;
    const struct { cublasLtMatmulPreferenceAttributes_t name; const void *value; size_t size; } set[] = {
        { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes }, { CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &k->b_align, sizeof k->b_align }, { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &k->a_align, sizeof k->a_align },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &k->c_align, sizeof k->c_align }, { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &k->c_align, sizeof k->c_align } };
    bool ok = true;
    for (size_t i = 0; i < sizeof set / sizeof *set; i++) ok &= cublasLtMatmulPreferenceSetAttribute(want, set[i].name, set[i].value, set[i].size) == CUBLAS_STATUS_SUCCESS;
    ok = ok && cublasLtMatmulAlgoGetHeuristic(handle, t->op, t->b, t->a, t->c, t->c, want, 1, &found, &n) == CUBLAS_STATUS_SUCCESS && n == 1 && found.state == CUBLAS_STATUS_SUCCESS;
    if (ok) t->algo = found.algo;
    cublasLtMatmulPreferenceDestroy(want);
    return ok;
}

static void plan_release(struct plan *t)
{
    if (t->op) cublasLtMatmulDescDestroy(t->op);
    if (t->a) cublasLtMatrixLayoutDestroy(t->a);
    if (t->b) cublasLtMatrixLayoutDestroy(t->b);
    if (t->c) cublasLtMatrixLayoutDestroy(t->c);
    *t = (struct plan){ 0 };
}

static bool plan_make(struct plan *t, const struct tr_product *p)
{
    const cublasOperation_t ta = p->a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, tb = p->b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    return cublasLtMatmulDescCreate(&t->op, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulDescSetAttribute(t->op, CUBLASLT_MATMUL_DESC_TRANSA, &tb, sizeof tb) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulDescSetAttribute(t->op, CUBLASLT_MATMUL_DESC_TRANSB, &ta, sizeof ta) == CUBLAS_STATUS_SUCCESS
        && layout(&t->a, p->a.dtype, p->a.transposed ? p->m : p->k, p->a.transposed ? p->k : p->m, p->a.ld)
        && layout(&t->b, p->b.dtype, p->b.transposed ? p->k : p->n, p->b.transposed ? p->n : p->k, p->b.ld)
        && layout(&t->c, p->c_dtype, p->n, p->m, p->c_ld) && choose(t);
}

/* The oldest of KEPT makes way: batches differ in their number of tokens. */
static const struct plan *plan_of(const struct tr_product *p)
{
    struct key key = key_of(p);
    for (int i = 0; i < KEPT; i++)
        if (plans[i].made && !memcmp(&plans[i].key, &key, sizeof key)) return &plans[i];
    struct plan *t = &plans[next_plan++ % KEPT];
    plan_release(t);
    t->key = key;
    t->made = true;
    t->taken = plan_make(t, p);
    return t;
}

static struct tr_mat mat(const void *data, enum tr_dtype dtype, int64_t rows, int64_t cols, int64_t ld)
{
    return (struct tr_mat){ .data = (void *)(uintptr_t)data, .rows = rows, .cols = cols, .ld = ld, .dtype = dtype == TR_F32 ? TR_CUDA_F32 : TR_CUDA_BF16 };
}

/* a and b of one type. */
static void product(const struct tr_product *p, void *work)
{
    const struct plan *t = plan_of(p);
    if (t->taken && cublasLtMatmul(handle, t->op, &p->alpha, p->b.data, t->b, p->a.data, t->a, &p->beta, p->c, t->c, p->c, t->c, &t->algo, work, LIBRARY, stream) == CUBLAS_STATUS_SUCCESS) return;
    const struct tr_operand *a = &p->a, *b = &p->b;
    tr_cuda_check(tr_cuda_plain_product(mat(p->c, p->c_dtype, p->m, p->n, p->c_ld), mat(a->data, a->dtype, a->transposed ? p->k : p->m, a->transposed ? p->m : p->k, a->ld), a->transposed,
                                        mat(b->data, b->dtype, b->transposed ? p->n : p->k, b->transposed ? p->k : p->n, b->ld), b->transposed, p->alpha, p->beta, stream), "product");
}

/* Columns of c whose part of b is converted at a time: whole groups of int8. */
static int64_t stretch(const struct tr_product *p)
{
    int64_t n = WIDE / (int64_t)tr_dtype_size(p->a.dtype) / p->k;
    if (!p->b.transposed) n -= n % p->b.group;
    n = n < p->b.group ? p->b.group : n;
    return n < p->n ? n : p->n;
}

size_t tr_cuda_product_work(const struct tr_product *p)
{
    return LIBRARY + (p->a.dtype == p->b.dtype ? 0 : (size_t)(stretch(p) * p->k) * tr_dtype_size(p->a.dtype));
}

/* Columns [at, at + n) of op(b), as they are stored. */
static struct tr_mat part_of(const struct tr_operand *b, int64_t k, int64_t at, int64_t n)
{
    bool int8 = b->dtype == TR_INT8;
    int64_t skip = b->transposed ? at * b->ld : at, groups = b->transposed ? at * b->groups : at / b->group;
    struct tr_mat x = mat((const char *)b->data + skip * (int64_t)tr_dtype_size(b->dtype), b->dtype, b->transposed ? n : k, b->transposed ? k : n, b->ld);
    if (!int8) return x;
    x.dtype = TR_CUDA_INT8;
    x.scale = (float *)(uintptr_t)b->scale + groups;
    x.zero = (signed char *)(uintptr_t)b->zero + groups;
    x.group = b->group;
    x.groups = b->groups;
    return x;
}

void tr_cuda_product(const struct tr_product *p, void *work, size_t bytes)
{
    if (p->a.dtype == p->b.dtype) {
        product(p, work);
        return;
    }
    void *wide = (char *)work + LIBRARY;
    int64_t each = stretch(p);
    for (int64_t at = 0; at < p->n; at += each) {
        int64_t n = p->n - at < each ? p->n - at : each, rows = p->b.transposed ? n : p->k, cols = p->b.transposed ? p->k : n;
        struct tr_product q = *p;
        q.n = n;
        q.b = (struct tr_operand){ .data = wide, .dtype = p->a.dtype, .ld = cols, .transposed = p->b.transposed };
        q.c = (char *)p->c + at * (int64_t)tr_dtype_size(p->c_dtype);
        tr_cuda_check(tr_cuda_copy(mat(wide, p->a.dtype, rows, cols, cols), part_of(&p->b, p->k, at, n), stream), "convert");
        product(&q, work);
    }
}
