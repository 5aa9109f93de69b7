#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/impl.h"
#include "libtrain/kernel/kernel.h"
#include "train_config.h"
#include <inttypes.h>
#include <time.h>

const struct tr_gemm_impl *const tr_gemm_list[] = {
#if HAVE_ONEDNN
    &tr_gemm_onednn,
#endif
#if HAVE_BLAS
    &tr_gemm_cblas,
#endif
    &tr_gemm_ref,
    NULL,
};

enum { DW_SEGMENT = 512 /* tokens; part of what a dW's bits mean */, TILE_ROWS = 256 /* weight rows widened at a time */ };

size_t tr_gemm_scratch(void)
{
    size_t bytes = 0;
    for (const struct tr_gemm_impl *const *g = tr_gemm_list; *g; g++) if ((*g)->held) bytes += (*g)->held();
    return bytes;
}

bool tr_gemm_has_bf16(void)
{
    struct tr_cpu cpu = tr_cpu();
    return HAVE_ONEDNN && (cpu.avx512_bf16 || cpu.amx_bf16);
}

int tr_gemm_run(const struct tr_product *p)
{
    static bool counted;
    if (!counted) tr_mem_count(TR_WORKSPACE, (int64_t)tr_gemm_scratch());
    counted = true;
    const struct tr_gemm_impl *const *g = tr_gemm_list;
    while (!(*g)->takes(p)) g++;
    return (*g)->run(p, tr_mem_is_dry());
}

static int bad(const char *op, const char *why, const struct tr_tensor *y, const struct tr_tensor *a, const struct tr_tensor *b)
{
    return tr_fail(TR_EFAIL, "%s (%s %s, %s %s, %s %s): %s; this is a defect of the program", op,
                   tr_dtype_name(y->dtype), tr_shape_text(y), tr_dtype_name(a->dtype), tr_shape_text(a),
                   tr_dtype_name(b->dtype), tr_shape_text(b), why);
}

static bool is_float(const struct tr_tensor *t) { return t->dtype == TR_F32 || t->dtype == TR_BF16; }

static struct tr_operand operand(const struct tr_tensor *t, bool transposed)
{
    return (struct tr_operand){ .data = t->data, .dtype = t->dtype, .ld = t->ld, .transposed = transposed };
}

static struct tr_product product(struct tr_tensor *c, const struct tr_tensor *a, bool ta, const struct tr_tensor *b, bool tb, bool acc)
{
    return (struct tr_product){ .m = tr_rows(c), .n = tr_cols(c), .k = ta ? tr_rows(a) : tr_cols(a), .alpha = 1, .beta = acc,
                                .a = operand(a, ta), .b = operand(b, tb), .c = c->data, .c_dtype = c->dtype, .c_ld = c->ld };
}

/* Widens rows of w into a dense tile of the compute type, taken from the arena. */
static int widen(struct tr_tensor *tile, const struct tr_tensor *w, int64_t begin, int64_t n, enum tr_dtype dtype)
{
    TR_TRY(tr_tensor_arena(tile, TR_WORKSPACE, dtype, TR_DIMS(n, tr_cols(w)), 0));
    struct tr_tensor rows = tr_rows_view(w, begin, n);
    if (!tr_mem_is_dry()) tr_kernels()->copy(tile, &rows);
    return TR_OK;
}

int tr_gemm_forward(struct tr_tensor *y_NO, const struct tr_tensor *x_NC, const struct tr_tensor *w_OC, bool acc)
{
    if (tr_rows(y_NO) != tr_rows(x_NC) || tr_cols(y_NO) != tr_rows(w_OC) || tr_cols(x_NC) != tr_cols(w_OC))
        return bad("gemm forward", "shapes do not match", y_NO, x_NC, w_OC);
    if (!is_float(x_NC) || !is_float(y_NO)) return bad("gemm forward", "types do not match", y_NO, x_NC, w_OC);
    if (tr_count(y_NO) == 0 || tr_cols(x_NC) == 0) return TR_OK;
    if (w_OC->dtype == x_NC->dtype) {
        struct tr_product p = product(y_NO, x_NC, false, w_OC, true, acc);
        return tr_gemm_run(&p);
    }
    for (int64_t o = 0; o < tr_rows(w_OC); o += TILE_ROWS) {
        int64_t n = tr_rows(w_OC) - o < TILE_ROWS ? tr_rows(w_OC) - o : TILE_ROWS;
        struct tr_tensor tile, part = tr_cols_view(y_NO, o, n);
        TR_TRY(widen(&tile, w_OC, o, n, x_NC->dtype));
        struct tr_product p = product(&part, x_NC, false, &tile, true, acc);
        int rc = tr_gemm_run(&p);
        tr_tensor_release(&tile);
        TR_TRY(rc);
    }
    return TR_OK;
}

int tr_gemm_dx(struct tr_tensor *dx_NC, const struct tr_tensor *dy_NO, const struct tr_tensor *w_OC, bool acc)
{
    if (tr_rows(dx_NC) != tr_rows(dy_NO) || tr_cols(dy_NO) != tr_rows(w_OC) || tr_cols(dx_NC) != tr_cols(w_OC))
        return bad("gemm dx", "shapes do not match", dx_NC, dy_NO, w_OC);
    if (!is_float(dx_NC) || !is_float(dy_NO)) return bad("gemm dx", "types do not match", dx_NC, dy_NO, w_OC);
    if (tr_count(dx_NC) == 0 || tr_cols(dy_NO) == 0) return TR_OK;
    if (w_OC->dtype == dy_NO->dtype) {
        struct tr_product p = product(dx_NC, dy_NO, false, w_OC, false, acc);
        return tr_gemm_run(&p);
    }
    struct tr_tensor tile;    /* the whole sum over O in one product, else a bf16 dx would be rounded once per tile */
    TR_TRY(widen(&tile, w_OC, 0, tr_rows(w_OC), dy_NO->dtype));
    struct tr_product p = product(dx_NC, dy_NO, false, &tile, false, acc);
    int rc = tr_gemm_run(&p);
    tr_tensor_release(&tile);
    return rc;
}

int tr_gemm_dw(struct tr_tensor *dw_OC, const struct tr_tensor *dy_NO, const struct tr_tensor *x_NC, bool acc)
{
    if (tr_rows(dw_OC) != tr_cols(dy_NO) || tr_rows(dy_NO) != tr_rows(x_NC) || tr_cols(dw_OC) != tr_cols(x_NC))
        return bad("gemm dw", "shapes do not match", dw_OC, dy_NO, x_NC);
    if (dw_OC->dtype != TR_F32 || !is_float(x_NC) || x_NC->dtype != dy_NO->dtype)
        return bad("gemm dw", "types do not match", dw_OC, dy_NO, x_NC);
    if (tr_count(dw_OC) == 0) return TR_OK;
    for (int64_t i = 0; i < tr_rows(x_NC); i += DW_SEGMENT) {
        int64_t n = tr_rows(x_NC) - i < DW_SEGMENT ? tr_rows(x_NC) - i : DW_SEGMENT;
        struct tr_tensor dy = tr_rows_view(dy_NO, i, n), x = tr_rows_view(x_NC, i, n);
        struct tr_product p = product(dw_OC, &dy, true, &x, false, acc || i > 0);
        TR_TRY(tr_gemm_run(&p));
    }
    if (tr_rows(x_NC) == 0 && !acc && !tr_mem_is_dry()) tr_kernels()->fill(dw_OC, 0);
    return TR_OK;
}

int tr_gemm_f32(struct tr_tensor *c_MN, float alpha, const struct tr_tensor *a, bool ta, const struct tr_tensor *b, bool tb, float beta)
{
    int64_t m = ta ? tr_cols(a) : tr_rows(a), k = ta ? tr_rows(a) : tr_cols(a);
    if (c_MN->dtype != TR_F32 || a->dtype != TR_F32 || b->dtype != TR_F32) return bad("gemm f32", "types do not match", c_MN, a, b);
    if (m != tr_rows(c_MN) || k != (tb ? tr_cols(b) : tr_rows(b)) || tr_cols(c_MN) != (tb ? tr_rows(b) : tr_cols(b)))
        return bad("gemm f32", "shapes do not match", c_MN, a, b);
    if (tr_count(c_MN) == 0) return TR_OK;
    if (k == 0) {
        if (!tr_mem_is_dry()) tr_kernels()->scale(c_MN, beta);
        return TR_OK;
    }
    struct tr_product p = product(c_MN, a, ta, b, tb, false);
    p.alpha = alpha;
    p.beta = beta;
    return tr_gemm_run(&p);
}

double tr_gemm_rate(enum tr_dtype dtype, int64_t n, int64_t o, int64_t c)
{
    struct tr_tensor x = { 0 }, w = { 0 }, y = { 0 };
    double best = 0;
    bool ok = tr_tensor_new(&x, TR_WORKSPACE, dtype, TR_DIMS(n, c)) == TR_OK
           && tr_tensor_new(&w, TR_WORKSPACE, dtype, TR_DIMS(o, c)) == TR_OK
           && tr_tensor_new(&y, TR_WORKSPACE, dtype, TR_DIMS(n, o)) == TR_OK && !tr_mem_is_dry();
    if (ok) {
        tr_kernels()->random_normal(&x, tr_key(1, TR_RNG_PROBE, 0, 0), 1);
        tr_kernels()->random_normal(&w, tr_key(2, TR_RNG_PROBE, 0, 0), 1);
    }
    double flops = 2.0 * (double)n * (double)o * (double)c, spent = 0;
    for (int i = 0; ok && (i < 4 || (spent < 0.1 && i < 1000)); i++) {
        struct timespec t0, t1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        ok = tr_gemm_forward(&y, &x, &w, false) == TR_OK;
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
