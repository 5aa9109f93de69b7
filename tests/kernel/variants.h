/* The variants of attention and loss that this CPU can run, plain C first; with TEST_CUDA those of CUDA devices. */
#include "libtrain/kernel/attention.h"
#include "train_config.h"

struct variant {
    const char *name;
    void (*attention)(struct tr_tensor *, struct tr_tensor *, const struct tr_tensor *, const struct tr_layout *, const struct tr_attention *);
    void (*backward)(struct tr_tensor *, const struct tr_tensor *, const struct tr_tensor *, const struct tr_tensor *,
                     const struct tr_tensor *, const struct tr_layout *, const struct tr_attention *, struct tr_tensor *);
    size_t (*work)(const struct tr_layout *, const struct tr_attention *, enum tr_dtype, bool);
    void (*cached)(struct tr_tensor *, const struct tr_tensor *, const struct tr_tensor *, const struct tr_tensor *, int64_t, int64_t,
                   const struct tr_attention *);
    void (*cross_entropy)(struct tr_tensor *, struct tr_tensor *, const struct tr_tensor *, const struct tr_tensor *, float);
};

#define VARIANT(isa) { #isa, tr_##isa##_attention, tr_##isa##_attention_backward, tr_##isa##_attention_work, \
                       tr_##isa##_attention_cached, tr_##isa##_cross_entropy }

#ifdef TEST_CUDA
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/kernel.h"
static const struct tr_device_module *device;
static void cuda_attention(struct tr_tensor *o, struct tr_tensor *lse, const struct tr_tensor *qkv, const struct tr_layout *layout, const struct tr_attention *a)
{
    device->kernels->attention(o, lse, qkv, layout, a);
}
static void cuda_backward(struct tr_tensor *dqkv, const struct tr_tensor *g, const struct tr_tensor *o, const struct tr_tensor *lse, const struct tr_tensor *qkv,
                          const struct tr_layout *layout, const struct tr_attention *a, struct tr_tensor *work)
{
    device->kernels->attention_backward(dqkv, g, o, lse, qkv, layout, a, work);
}
static size_t cuda_work(const struct tr_layout *layout, const struct tr_attention *a, enum tr_dtype dtype, bool backward)
{
    return device->kernels->attention_work(layout, a, dtype, backward);
}
static void cuda_cached(struct tr_tensor *o, const struct tr_tensor *q, const struct tr_tensor *k, const struct tr_tensor *v, int64_t first, int64_t n, const struct tr_attention *a)
{
    device->kernels->attention_cached(o, q, k, v, first, n, a);
}
static void cuda_cross_entropy(struct tr_tensor *loss, struct tr_tensor *d, const struct tr_tensor *x, const struct tr_tensor *t, float scale)
{
    device->kernels->cross_entropy(loss, d, x, t, scale);
}
#endif

static const struct variant variants[] = {
    VARIANT(ref),
#ifdef TEST_CUDA
    { "cuda", cuda_attention, cuda_backward, cuda_work, cuda_cached, cuda_cross_entropy },
#elif HAVE_X86
    VARIANT(avx2),
    VARIANT(avx512),
    { "amx", tr_amx_attention, tr_amx_attention_backward, tr_amx_attention_work, tr_avx512_attention_cached, tr_avx512_cross_entropy },
#endif
};

/* Before anything else. */
static inline void variants_open(void)
{
#ifdef TEST_CUDA
    device = test_module();
#endif
}

static inline int variant_count(void)
{
#ifdef TEST_CUDA
    return 2;
#elif HAVE_X86
    __builtin_cpu_init();
    if (tr_cpu().amx_bf16) return 4;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq")) return 3;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 2 : 1;
#else
    return 1;
#endif
}
