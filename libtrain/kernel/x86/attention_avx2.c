#include "libtrain/kernel/x86/attention_cached_tmpl.h"

#define PAIRS 0
#define FN(name) f32_##name
#include "libtrain/kernel/x86/attention_tmpl.h"

void tr_avx2_attention(struct tr_tensor *o_NHD, struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ,
                       const struct tr_layout *layout, const struct tr_attention *a)
{
    if (fits(a)) f32_forward(o_NHD, lse_NH, qkv_NQ, layout, a);
    else tr_ref_attention(o_NHD, lse_NH, qkv_NQ, layout, a);
}

void tr_avx2_attention_backward(struct tr_tensor *dqkv_NQ, const struct tr_tensor *do_NHD, const struct tr_tensor *o_NHD,
                                const struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ, const struct tr_layout *layout,
                                const struct tr_attention *a, struct tr_tensor *work)
{
    if (fits(a)) f32_backward(dqkv_NQ, do_NHD, o_NHD, lse_NH, qkv_NQ, layout, a, work->data);
    else tr_ref_attention_backward(dqkv_NQ, do_NHD, o_NHD, lse_NH, qkv_NQ, layout, a, work);
}

size_t tr_avx2_attention_work(const struct tr_layout *layout, const struct tr_attention *a, enum tr_dtype dtype, bool backward)
{
    return backward && fits(a) ? work_bytes(layout, a) : 0;
}

void tr_avx2_attention_cached(struct tr_tensor *o_HD, const struct tr_tensor *q_Q, const struct tr_tensor *k_PKD,
                              const struct tr_tensor *v_PKD, int64_t first, int64_t n, const struct tr_attention *a)
{
    if (cached_fits(a)) attend_cached(o_HD, q_Q, k_PKD, v_PKD, first, n, a);
    else tr_ref_attention_cached(o_HD, q_Q, k_PKD, v_PKD, first, n, a);
}
