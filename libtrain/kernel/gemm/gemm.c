#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/gemm/impl.h"
#include "libtrain/kernel/kernel.h"
#include "train_config.h"
#include <stdlib.h>
#include <time.h>

/* Every implementation that was built; the order for tests and benchmarks, who may begin it at the one in TR_GEMM. */
const struct tr_gemm_impl *const tr_gemm_list[] = {
#if HAVE_X86
    &tr_gemm_packed,
#endif
#if HAVE_ONEDNN
    &tr_gemm_onednn,
#endif
#if HAVE_BLAS
    &tr_gemm_cblas,
#endif
    &tr_gemm_ref,
    NULL,
};

enum { DW_SEGMENT = 512 }; /* tokens; part of what the bits of a dW mean where the sum's cutting shows in them */

const struct tr_gemm_impl *tr_gemm_choose(const struct tr_product *p)
{
    const struct tr_gemm_impl *const *g = tr_gemm_list;
    const char *begin = getenv("TR_GEMM");
    if (tr_device()) return &tr_gemm_device;
    for (const struct tr_gemm_impl *const *i = g; begin && *i; i++)
        if (!strcmp((*i)->name, begin)) g = i;
    while (!(*g)->takes(p)) g++;
    return *g;
}

size_t tr_gemm_scratch(void)
{
    size_t bytes = 0;
    for (const struct tr_gemm_impl *const *g = tr_gemm_list; *g; g++) {
        bool used = false;
        for (int t = 0; t < 2; t++) {
            enum tr_dtype d = t ? TR_BF16 : TR_F32;
            struct tr_product p = { .m = 64, .n = 64, .k = 64, .alpha = 1, .a.dtype = d, .b.dtype = d, .c_dtype = d };
            used |= tr_gemm_choose(&p) == *g;
        }
        if (used && (*g)->held) bytes += (*g)->held();
    }
    return bytes;
}

bool tr_gemm_has_bf16(void)
{
    struct tr_cpu cpu = tr_cpu();
    return tr_device() || (HAVE_X86 && cpu.avx512 && cpu.avx512_bf16);
}

static int run(const struct tr_product *p)
{
    static bool counted;
    if (!counted) tr_mem_count(TR_WORKSPACE, (int64_t)tr_gemm_scratch());
    counted = true;
    return tr_gemm_choose(p)->run(p, tr_mem_is_dry());
}

static int bad(const char *op, const char *why, const struct tr_tensor *y, const struct tr_tensor *a, const struct tr_tensor *b)
{
    return tr_fail(TR_EFAIL, "%s (%s %s, %s %s, %s %s): %s; this is a defect of the program", op,
                   tr_dtype_name(y->dtype), tr_shape_text(y), tr_dtype_name(a->dtype), tr_shape_text(a),
                   tr_dtype_name(b->dtype), tr_shape_text(b), why);
}

static bool is_float(const struct tr_tensor *t) { return t->dtype == TR_F32 || t->dtype == TR_BF16; }
static bool is_weight(const struct tr_tensor *t) { return is_float(t) || (t->dtype == TR_INT8 && t->quant.group > 0); }

static struct tr_operand operand(const struct tr_tensor *t, bool transposed)
{
    int64_t group = t->quant.group > 0 ? t->quant.group : 1;
    return (struct tr_operand){ .data = t->data, .dtype = t->dtype, .ld = t->ld, .transposed = transposed,
                                .scale = t->quant.scale, .zero = t->quant.zero, .group = group, .groups = (tr_cols(t) + group - 1) / group };
}

static struct tr_product product(struct tr_tensor *c, const struct tr_tensor *a, bool ta, const struct tr_tensor *b, bool tb,
                                 bool acc)
{
    return (struct tr_product){ .m = tr_rows(c), .n = tr_cols(c), .k = ta ? tr_rows(a) : tr_cols(a), .alpha = 1, .beta = acc,
                                .a = operand(a, ta), .b = operand(b, tb), .c = c->data, .c_dtype = c->dtype, .c_ld = c->ld };
}

/* A sum of nothing. */
static int empty(struct tr_tensor *c, float beta)
{
    if (tr_count(c) > 0 && beta == 0) tr_kernels()->fill(c, 0);
    else if (tr_count(c) > 0 && beta != 1) tr_kernels()->scale(c, beta);
    return TR_OK;
}

int tr_gemm_forward(struct tr_tensor *y_NO, const struct tr_tensor *x_NC, const struct tr_tensor *w_OC, bool acc)
{
    if (tr_rows(y_NO) != tr_rows(x_NC) || tr_cols(y_NO) != tr_rows(w_OC) || tr_cols(x_NC) != tr_cols(w_OC))
        return bad("gemm forward", "shapes do not match", y_NO, x_NC, w_OC);
    if (!is_float(x_NC) || !is_float(y_NO) || !is_weight(w_OC))
        return bad("gemm forward", "types do not match", y_NO, x_NC, w_OC);
    struct tr_product p = product(y_NO, x_NC, false, w_OC, true, acc);
    return p.m && p.n && p.k ? run(&p) : empty(y_NO, acc);
}

int tr_gemm_dx(struct tr_tensor *dx_NC, const struct tr_tensor *dy_NO, const struct tr_tensor *w_OC, bool acc)
{
    if (tr_rows(dx_NC) != tr_rows(dy_NO) || tr_cols(dy_NO) != tr_rows(w_OC) || tr_cols(dx_NC) != tr_cols(w_OC))
        return bad("gemm dx", "shapes do not match", dx_NC, dy_NO, w_OC);
    if (!is_float(dx_NC) || !is_float(dy_NO) || !is_weight(w_OC))
        return bad("gemm dx", "types do not match", dx_NC, dy_NO, w_OC);
    struct tr_product p = product(dx_NC, dy_NO, false, w_OC, false, acc);
    return p.m && p.n && p.k ? run(&p) : empty(dx_NC, acc);
}

int tr_gemm_dw(struct tr_tensor *dw_OC, const struct tr_tensor *dy_NO, const struct tr_tensor *x_NC, bool acc)
{
    int64_t tokens = tr_rows(x_NC);
    if (tr_rows(dw_OC) != tr_cols(dy_NO) || tr_rows(dy_NO) != tokens || tr_cols(dw_OC) != tr_cols(x_NC))
        return bad("gemm dw", "shapes do not match", dw_OC, dy_NO, x_NC);
    if (dw_OC->dtype != TR_F32 || !is_float(x_NC) || x_NC->dtype != dy_NO->dtype)
        return bad("gemm dw", "types do not match", dw_OC, dy_NO, x_NC);
    struct tr_product p = product(dw_OC, dy_NO, true, x_NC, false, acc);
    if (!p.m || !p.n || !p.k) return empty(dw_OC, acc);
    int64_t segment = tr_gemm_choose(&p)->any_cut ? tokens : DW_SEGMENT;
    for (int64_t i = 0; i < tokens; i += segment) {
        int64_t n = tokens - i < segment ? tokens - i : segment;
        struct tr_tensor dy = tr_rows_view(dy_NO, i, n), x = tr_rows_view(x_NC, i, n);
        p = product(dw_OC, &dy, true, &x, false, acc || i > 0);
        TR_TRY(run(&p));
    }
    return TR_OK;
}

int tr_gemm_f32(struct tr_tensor *c_MN, float alpha, const struct tr_tensor *a, bool ta, const struct tr_tensor *b, bool tb,
                float beta)
{
    int64_t m = ta ? tr_cols(a) : tr_rows(a), k = ta ? tr_rows(a) : tr_cols(a);
    if (c_MN->dtype != TR_F32 || a->dtype != TR_F32 || b->dtype != TR_F32)
        return bad("gemm f32", "types do not match", c_MN, a, b);
    if (m != tr_rows(c_MN) || k != (tb ? tr_cols(b) : tr_rows(b)) || tr_cols(c_MN) != (tb ? tr_rows(b) : tr_cols(b)))
        return bad("gemm f32", "shapes do not match", c_MN, a, b);
    struct tr_product p = product(c_MN, a, ta, b, tb, false);
    p.alpha = alpha;
    p.beta = beta;
    return p.m && p.n && p.k ? run(&p) : empty(c_MN, beta);
}

double tr_gemm_rate(enum tr_dtype dtype, int64_t n, int64_t o, int64_t c)
{
    struct tr_tensor x = { 0 }, w = { 0 }, y = { 0 };
    double best = 0;
    /* In the arena: between the steps of a bench it is free, so that measuring adds nothing to what is resident. */
    bool ok = tr_tensor_arena(&x, TR_WORKSPACE, dtype, TR_DIMS(n, c), 0) == TR_OK
           && tr_tensor_arena(&w, TR_WORKSPACE, dtype, TR_DIMS(o, c), 0) == TR_OK
           && tr_tensor_arena(&y, TR_WORKSPACE, dtype, TR_DIMS(n, o), 0) == TR_OK && !tr_mem_is_dry();
    if (ok) {
        tr_kernels()->random_normal(&x, tr_key(1, TR_RNG_PROBE, 0, 0), 1);
        tr_kernels()->random_normal(&w, tr_key(2, TR_RNG_PROBE, 0, 0), 1);
    }
    double flops = 2.0 * (double)n * (double)o * (double)c, spent = 0;
    ok = ok && tr_device_check() == TR_OK; /* waits */
    for (int i = 0; ok && (i < 4 || (spent < 0.1 && i < 1000)); i++) {
        struct timespec t0, t1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        ok = tr_gemm_forward(&y, &x, &w, false) == TR_OK && tr_device_check() == TR_OK;
        clock_gettime(CLOCK_MONOTONIC, &t1);
        double s = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
        spent += s;
        if (ok && i > 0 && s > 0 && flops / s * 1e-9 > best) best = flops / s * 1e-9;
    }
    tr_tensor_release(&x);
    tr_tensor_release(&w);
    tr_tensor_release(&y);
    return best;
}
