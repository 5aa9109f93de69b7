/* Which table is used: dry in dry mode, else the device's, else the best that the CPU allows under DNNL_MAX_CPU_ISA and TR_KERNELS. */
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/attention.h"
#include "libtrain/kernel/device.h"
#include "train_config.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#if HAVE_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if HAVE_BLAS
void openblas_set_num_threads(int n);
#endif

extern const struct tr_kernels tr_ref_loops_table;
#if HAVE_X86
extern const struct tr_kernels tr_avx2_loops_table, tr_avx512_loops_table;
#endif

typedef struct tr_tensor T;
static void dry_write(T *t, const void *host) {}
static void dry_read(const T *t, void *host) { memset(host, 0, (size_t)tr_count(t) * tr_dtype_size(t->dtype)); }
static void dry_copy(T *y, const T *x) {}
static void dry_fill(T *y, float v) {}
static void dry_random(T *y, struct tr_key k, float std) {}
static void dry_add(T *y, const T *a, const T *b) {}
static void dry_axpy(T *y, float a, const T *x) {}
static double dry_sum(const T *x) { return 0; }
static void dry_panels(double *sum, const T *x, const int64_t *begin, int n) { memset(sum, 0, (size_t)n * sizeof *sum); }
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
static void dry_softmax(T *q, T *l, T *h, const T *x, const T *t) {}
static void dry_softmax_gradient(T *q, const T *p, const T *t, float s) {}

static struct tr_kernels dry = {
    .name = "dry", .write = dry_write, .read = dry_read, .copy = dry_copy, .fill = dry_fill, .random_normal = dry_random, .add = dry_add,
    .axpy = dry_axpy, .scale = dry_fill, .sum_squares = dry_sum, .sum_squares_panels = dry_panels, .all_finite = dry_finite, .embed = dry_embed, .embed_backward = dry_three,
    .scatter = dry_three, .rms_norm = dry_rms, .rms_norm_rebuild = dry_rebuild, .rms_norm_backward = dry_rms_backward, .layer_norm = dry_ln,
    .layer_norm_rebuild = dry_ln_rebuild, .layer_norm_backward = dry_ln_backward, .rope = dry_rope, .swiglu = dry_copy,
    .swiglu_backward = dry_three, .gelu = dry_copy, .gelu_backward = dry_three, .add_bias = dry_copy, .bias_backward = dry_copy,
    .attention = dry_attention, .attention_backward = dry_attention_backward, .attention_work = tr_ref_attention_work,
    .attention_cached = dry_cached, .cross_entropy = dry_cross, .softmax = dry_softmax, .softmax_gradient = dry_softmax_gradient,
};

/* ---- what the CPU has, under the limit of DNNL_MAX_CPU_ISA, so that one variable lets a machine play a lesser one */

enum { ISA_NONE, ISA_AVX2, ISA_AVX512, ISA_BF16, ISA_AMX };

static int isa_limit(void)
{
    const char *limit = getenv("ONEDNN_MAX_CPU_ISA");
    if (!limit) limit = getenv("DNNL_MAX_CPU_ISA");
    static const struct { const char *name; int isa; } names[] = { { "SSE41", ISA_NONE }, { "AVX", ISA_NONE }, { "AVX2", ISA_AVX2 }, { "AVX2_VNNI", ISA_AVX2 },
        { "AVX512_MIC", ISA_AVX2 }, { "AVX512_MIC_4OPS", ISA_AVX2 }, { "AVX512_CORE", ISA_AVX512 }, { "AVX512_CORE_VNNI", ISA_AVX512 }, { "AVX512_CORE_BF16", ISA_BF16 } };
    for (size_t i = 0; limit && i < sizeof names / sizeof *names; i++)
        if (!strcasecmp(limit, names[i].name)) return names[i].isa;
    return ISA_AMX;
}

/* AMX is usable when CPUID names it, the system saves its state (XCR0 bits 17 and 18), and grants it to this process. */
static bool has_amx(void)
{
#if HAVE_X86
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    enum { REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    return (low >> 17 & 3) == 3 && syscall(SYS_arch_prctl, REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
    return false;
#endif
}

struct tr_cpu tr_cpu(void)
{
    static struct tr_cpu cpu;
    static bool known;    /* asked for in every product, and CPUID is slow under a hypervisor */
    if (known) return cpu;
#if HAVE_X86
    int limit = isa_limit();
    __builtin_cpu_init();
    cpu.avx2 = limit >= ISA_AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    cpu.avx512 = limit >= ISA_AVX512 && cpu.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    cpu.avx512_bf16 = limit >= ISA_BF16 && cpu.avx512 && __builtin_cpu_supports("avx512bf16");
    cpu.amx_bf16 = limit >= ISA_AMX && cpu.avx512_bf16 && has_amx();
#endif
    known = true;
    return cpu;
}

const struct tr_kernels *tr_kernels_named(const char *name)
{
    if (!strcmp(name, "ref")) return &tr_ref_loops_table;
    if (!strcmp(name, "dry")) return &dry;
#if HAVE_X86
    if (!strcmp(name, "avx2") && tr_cpu().avx2) return &tr_avx2_loops_table;
    if (!strcmp(name, "avx512") && tr_cpu().avx512_bf16) return &tr_avx512_loops_table; /* its files use bf16 instructions */
    if (!strcmp(name, "amx") && tr_cpu().amx_bf16) {
        static struct tr_kernels amx;
        amx = tr_avx512_loops_table;
        amx.name = "amx";
        amx.attention = tr_amx_attention;
        amx.attention_backward = tr_amx_attention_backward;
        amx.attention_work = tr_amx_attention_work;
        return &amx;
    }
#endif
    return NULL;
}

static const struct tr_kernels *choose(void)
{
    static const char *const names[] = { "amx", "avx512", "avx2", "ref" };
    const char *asked = getenv("TR_KERNELS");
    const struct tr_kernels *k = asked && strcmp(asked, "dry") ? tr_kernels_named(asked) : NULL;
    for (int i = 0; !k; i++) k = tr_kernels_named(names[i]);
    return k;
}

const struct tr_kernels *tr_kernels(void)
{
    static const struct tr_kernels *cpu;
    if (!cpu) cpu = choose();
    const struct tr_kernels *best = tr_device() ? tr_device()->kernels : cpu;
    if (!tr_mem_is_dry()) return best;
    dry.attention_work = best->attention_work; /* the forecast counts what the chosen kernels will ask for */
    return &dry;
}

void tr_set_threads(int n)
{
    if (n > 0) omp_set_num_threads(n);
}

/* OpenBLAS built for OpenMP takes its number of threads from OpenMP, and its setter changes OpenMP's own; built for
 * pthreads it keeps a number of its own. */
int tr_blas_begin(void)
{
    int threads = omp_get_max_threads();
#if HAVE_BLAS
    openblas_set_num_threads(1);
#endif
    omp_set_num_threads(1);
    return threads;
}

void tr_blas_end(int threads) { omp_set_num_threads(threads); }

int tr_threads(void) { return omp_get_max_threads(); }

void tr_tensor_write(struct tr_tensor *t, const void *host) { tr_kernels()->write(t, host); }
void tr_tensor_read(const struct tr_tensor *t, void *host) { tr_kernels()->read(t, host); }
