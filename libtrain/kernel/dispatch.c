/* Which table is used: dry in dry mode, else the best that the CPU allows under DNNL_MAX_CPU_ISA and TR_KERNELS. */
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/ref/ref.h"
#include "train_config.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#if HAVE_BLAS
void openblas_set_num_threads(int n);
#endif

static const struct tr_kernels ref = {
    .name = "ref", .write = tr_ref_write, .read = tr_ref_read, .copy = tr_ref_copy, .fill = tr_ref_fill, .random_normal = tr_ref_random_normal,
    .add = tr_ref_add, .axpy = tr_ref_axpy, .scale = tr_ref_scale, .sum_squares = tr_ref_sum_squares, .all_finite = tr_ref_all_finite,
    .embed = tr_ref_embed, .embed_backward = tr_ref_embed_backward, .scatter = tr_ref_scatter, .rms_norm = tr_ref_rms_norm,
    .rms_norm_rebuild = tr_ref_rms_norm_rebuild, .rms_norm_backward = tr_ref_rms_norm_backward, .layer_norm = tr_ref_layer_norm,
    .layer_norm_rebuild = tr_ref_layer_norm_rebuild, .layer_norm_backward = tr_ref_layer_norm_backward, .rope = tr_ref_rope,
    .swiglu = tr_ref_swiglu, .swiglu_backward = tr_ref_swiglu_backward, .gelu = tr_ref_gelu, .gelu_backward = tr_ref_gelu_backward,
    .add_bias = tr_ref_add_bias, .bias_backward = tr_ref_bias_backward, .attention = tr_ref_attention,
    .attention_backward = tr_ref_attention_backward, .attention_work = tr_ref_attention_work, .attention_cached = tr_ref_attention_cached,
    .cross_entropy = tr_ref_cross_entropy,
};

typedef struct tr_tensor T;
static void dry_write(T *t, const void *host) {}
static void dry_read(const T *t, void *host) { memset(host, 0, (size_t)tr_count(t) * tr_dtype_size(t->dtype)); }
static void dry_copy(T *y, const T *x) {}
static void dry_fill(T *y, float v) {}
static void dry_random(T *y, struct tr_key k, float std) {}
static void dry_add(T *y, const T *a, const T *b) {}
static void dry_axpy(T *y, float a, const T *x) {}
static double dry_sum(const T *x) { return 0; }
static bool dry_finite(const T *x) { return true; }
static void dry_embed(T *y, const T *w, const T *i, bool acc) {}
static void dry_three(T *y, const T *a, const T *b) {}
static void dry_rms(T *y, T *r, const T *x, const T *g, float eps) {}
static void dry_rebuild(T *y, const T *r, const T *x, const T *g) {}
static void dry_rms_backward(T *dx, bool acc, T *dg, const T *dy, const T *x, const T *r, const T *g) {}
static void dry_ln(T *y, T *s, const T *x, const T *g, const T *b, float eps) {}
static void dry_ln_rebuild(T *y, const T *s, const T *x, const T *g, const T *b) {}
static void dry_ln_backward(T *dx, bool acc, T *dg, T *db, const T *dy, const T *x, const T *s, const T *g) {}
static void dry_rope(T *x, const T *cs, const T *pos, int64_t heads, bool inverse) {}
static void dry_attention(T *o, T *l, const T *q, const struct tr_layout *y, const struct tr_attention *a) {}
static void dry_attention_backward(T *d, const T *e, const T *o, const T *l, const T *q, const struct tr_layout *y, const struct tr_attention *a, T *w) {}
static void dry_cached(T *o, const T *q, const T *k, const T *v, int64_t f, int64_t n, const struct tr_attention *a) {}
static void dry_cross(T *l, T *d, const T *x, const T *t, float s) {}

static struct tr_kernels dry = {
    .name = "dry", .write = dry_write, .read = dry_read, .copy = dry_copy, .fill = dry_fill, .random_normal = dry_random, .add = dry_add,
    .axpy = dry_axpy, .scale = dry_fill, .sum_squares = dry_sum, .all_finite = dry_finite, .embed = dry_embed, .embed_backward = dry_three,
    .scatter = dry_three, .rms_norm = dry_rms, .rms_norm_rebuild = dry_rebuild, .rms_norm_backward = dry_rms_backward, .layer_norm = dry_ln,
    .layer_norm_rebuild = dry_ln_rebuild, .layer_norm_backward = dry_ln_backward, .rope = dry_rope, .swiglu = dry_copy,
    .swiglu_backward = dry_three, .gelu = dry_copy, .gelu_backward = dry_three, .add_bias = dry_copy, .bias_backward = dry_copy,
    .attention = dry_attention, .attention_backward = dry_attention_backward, .attention_work = tr_ref_attention_work,
    .attention_cached = dry_cached, .cross_entropy = dry_cross,
};

const struct tr_kernels *tr_kernels_named(const char *name)
{
    if (!strcmp(name, "ref")) return &ref;
    if (!strcmp(name, "dry")) return &dry;
    return NULL;
}

const struct tr_kernels *tr_kernels(void)
{
    static const struct tr_kernels *best;
    if (!best) best = &ref;
    if (!tr_mem_is_dry()) return best;
    dry.attention_work = best->attention_work;
    return &dry;
}

void tr_set_threads(int n)
{
    if (n > 0) omp_set_num_threads(n);
#if HAVE_BLAS
    openblas_set_num_threads(1); /* products are cut into tiles by us; see gemm/ */
#endif
}

int tr_threads(void) { return omp_get_max_threads(); }

struct tr_cpu tr_cpu(void)
{
    __builtin_cpu_init();
    return (struct tr_cpu){ __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"),
                            __builtin_cpu_supports("avx512bf16"), false };
}

void tr_tensor_write(struct tr_tensor *t, const void *host) { tr_kernels()->write(t, host); }
void tr_tensor_read(const struct tr_tensor *t, void *host) { tr_kernels()->read(t, host); }
