/* bf16 attention by AMX tiles; f32 is that of AVX-512. */
#include "libtrain/kernel/x86/attention_common.h"

#define PAIRS 1
#define FN(name) bf16_##name
#include "libtrain/kernel/x86/attention_tmpl.h"

static bool takes(const struct tr_attention *a, enum tr_dtype dtype) { return fits(a) && dtype == TR_BF16; }

void tr_amx_attention(struct tr_tensor *o_NHD, struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ,
                      const struct tr_layout *layout, const struct tr_attention *a)
{
    if (takes(a, qkv_NQ->dtype)) bf16_forward(o_NHD, lse_NH, qkv_NQ, layout, a);
    else tr_avx512_attention(o_NHD, lse_NH, qkv_NQ, layout, a);
}

void tr_amx_attention_backward(struct tr_tensor *dqkv_NQ, const struct tr_tensor *do_NHD, const struct tr_tensor *o_NHD,
                               const struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ, const struct tr_layout *layout,
                               const struct tr_attention *a, struct tr_tensor *work)
{
    if (takes(a, qkv_NQ->dtype)) bf16_backward(dqkv_NQ, do_NHD, o_NHD, lse_NH, qkv_NQ, layout, a, work->data);
    else tr_avx512_attention_backward(dqkv_NQ, do_NHD, o_NHD, lse_NH, qkv_NQ, layout, a, work);
}

size_t tr_amx_attention_work(const struct tr_layout *layout, const struct tr_attention *a, enum tr_dtype dtype, bool backward)
{
    return !takes(a, dtype) ? tr_avx512_attention_work(layout, a, dtype, backward) : backward ? work_bytes(layout, a) : 0;
}
