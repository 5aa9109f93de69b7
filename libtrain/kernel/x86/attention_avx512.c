#include "libtrain/kernel/x86/attention_cached_tmpl.h"

#define PAIRS 0
#define FN(name) f32_##name
#include "libtrain/kernel/x86/attention_tmpl.h"
#undef PAIRS
#undef FN
#define PAIRS 1
#define FN(name) bf16_##name
#include "libtrain/kernel/x86/attention_tmpl.h"

/* bf16 products where the CPU has them; elsewhere bf16 rows are widened. */
static bool pairs(const struct tr_tensor *qkv)
{
    return qkv->dtype == TR_BF16 && tr_cpu().avx512_bf16;
}

void tr_avx512_attention(struct tr_tensor *o_NHD, struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ,
                         const struct tr_layout *layout, const struct tr_attention *a)
{
    if (!fits(a)) tr_ref_attention(o_NHD, lse_NH, qkv_NQ, layout, a);
    else if (pairs(qkv_NQ)) bf16_forward(o_NHD, lse_NH, qkv_NQ, layout, a);
    else f32_forward(o_NHD, lse_NH, qkv_NQ, layout, a);
}

void tr_avx512_attention_backward(struct tr_tensor *dqkv_NQ, const struct tr_tensor *do_NHD, const struct tr_tensor *o_NHD,
                                  const struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ, const struct tr_layout *layout,
                                  const struct tr_attention *a, struct tr_tensor *work)
{
    if (!fits(a)) tr_ref_attention_backward(dqkv_NQ, do_NHD, o_NHD, lse_NH, qkv_NQ, layout, a, work);
    else if (pairs(qkv_NQ)) bf16_backward(dqkv_NQ, do_NHD, o_NHD, lse_NH, qkv_NQ, layout, a, work->data);
    else f32_backward(dqkv_NQ, do_NHD, o_NHD, lse_NH, qkv_NQ, layout, a, work->data);
}

size_t tr_avx512_attention_work(const struct tr_layout *layout, const struct tr_attention *a, enum tr_dtype dtype, bool backward)
{
    return backward && fits(a) ? work_bytes(layout, a) : 0;
}

void tr_avx512_attention_cached(struct tr_tensor *o_HD, const struct tr_tensor *q_Q, const struct tr_tensor *k_PKD,
                                const struct tr_tensor *v_PKD, int64_t first, int64_t n, const struct tr_attention *a)
{
    if (cached_fits(a)) attend_cached(o_HD, q_Q, k_PKD, v_PKD, first, n, a);
    else tr_ref_attention_cached(o_HD, q_Q, k_PKD, v_PKD, first, n, a);
}
