/* The variants of attention and of the loss, for the kernel tables; what they compute is written in kernel.h. */
#ifndef TR_KERNEL_ATTENTION_H
#define TR_KERNEL_ATTENTION_H
#include "libtrain/kernel/kernel.h"

/* Widest head that any variant takes; models with wider ones are refused when they are read. */
enum { TR_MAX_HEAD_DIM = 512 };

#define TR_ATTENTION_VARIANT_CORE(isa) \
    void tr_##isa##_attention(struct tr_tensor *o_NHD, struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ, \
                              const struct tr_layout *layout, const struct tr_attention *a); \
    void tr_##isa##_attention_backward(struct tr_tensor *dqkv_NQ, const struct tr_tensor *do_NHD, \
                                       const struct tr_tensor *o_NHD, const struct tr_tensor *lse_NH, \
                                       const struct tr_tensor *qkv_NQ, const struct tr_layout *layout, \
                                       const struct tr_attention *a, struct tr_tensor *work); \
    size_t tr_##isa##_attention_work(const struct tr_layout *layout, const struct tr_attention *a, enum tr_dtype dtype, \
                                     bool backward)
#define TR_ATTENTION_VARIANT(isa) \
    TR_ATTENTION_VARIANT_CORE(isa); \
    void tr_##isa##_attention_cached(struct tr_tensor *o_HD, const struct tr_tensor *q_Q, const struct tr_tensor *k_PKD, \
                                     const struct tr_tensor *v_PKD, int64_t first, int64_t n, const struct tr_attention *a); \
    void tr_##isa##_cross_entropy(struct tr_tensor *loss_N, struct tr_tensor *dlogits_NV, \
                                  const struct tr_tensor *logits_NV, const struct tr_tensor *target_N, float scale); \
    void tr_##isa##_softmax(struct tr_tensor *q_NV, struct tr_tensor *lse_N, struct tr_tensor *hit_N, \
                            const struct tr_tensor *logits_NV, const struct tr_tensor *target_N)

TR_ATTENTION_VARIANT(ref);
TR_ATTENTION_VARIANT(avx2);
TR_ATTENTION_VARIANT(avx512);    /* bf16 tensors need avx512_bf16 or are widened: both are inside */
TR_ATTENTION_VARIANT_CORE(amx);  /* bf16 tensors by tiles, others as avx512; amx_bf16 and avx512_bf16 */

#endif
