/* Plain C kernels: the specification of all others. What they compute is written in kernel.h. */
#ifndef TR_REF_H
#define TR_REF_H
#include "libtrain/kernel/attention.h"
#include "libtrain/kernel/kernel.h"

typedef struct tr_tensor T_;
void tr_ref_write(T_ *t, const void *host);
void tr_ref_read(const T_ *t, void *host);
void tr_ref_copy(T_ *y, const T_ *x);
void tr_ref_fill(T_ *y, float value);
void tr_ref_random_normal(T_ *y, struct tr_key key, float std);
void tr_ref_add(T_ *y, const T_ *a, const T_ *b);
void tr_ref_axpy(T_ *y, float alpha, const T_ *x);
void tr_ref_scale(T_ *y, float alpha);
double tr_ref_sum_squares(const T_ *x);
bool tr_ref_all_finite(const T_ *x);
void tr_ref_swiglu(T_ *a, const T_ *gu);
void tr_ref_swiglu_backward(T_ *dgu, const T_ *da, const T_ *gu);
void tr_ref_gelu(T_ *y, const T_ *x);
void tr_ref_gelu_backward(T_ *dx, const T_ *dy, const T_ *x);
void tr_ref_add_bias(T_ *y, const T_ *b);
void tr_ref_bias_backward(T_ *db, const T_ *dy);
void tr_ref_rms_norm(T_ *y, T_ *r, const T_ *x, const T_ *g, float eps);
void tr_ref_rms_norm_rebuild(T_ *y, const T_ *r, const T_ *x, const T_ *g);
void tr_ref_rms_norm_backward(T_ *dx, bool acc, T_ *dg, const T_ *dy, const T_ *x, const T_ *r, const T_ *g);
void tr_ref_layer_norm(T_ *y, T_ *stat, const T_ *x, const T_ *g, const T_ *b, float eps);
void tr_ref_layer_norm_rebuild(T_ *y, const T_ *stat, const T_ *x, const T_ *g, const T_ *b);
void tr_ref_layer_norm_backward(T_ *dx, bool acc, T_ *dg, T_ *db, const T_ *dy, const T_ *x, const T_ *stat, const T_ *g);
void tr_ref_embed(T_ *y, const T_ *w, const T_ *ids, bool acc);
void tr_ref_embed_backward(T_ *dw, const T_ *dy, const T_ *ids);
void tr_ref_scatter(T_ *y, const T_ *x, const T_ *rows);
void tr_ref_rope(T_ *x, const T_ *cs, const T_ *pos, int64_t heads, bool inverse);

#endif
