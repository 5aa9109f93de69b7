/* Every loop of the kernel table: each vectorised table against plain C over awkward sizes, types and strides, and the
 * same bits with one and two threads. A failure names table, entry and shape. With TEST_CUDA the table is that of CUDA
 * devices, its kernels run by tests/emulate. */
#include "tests/support/support.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef TEST_CUDA
enum { MOST = 132 * 1610 };
#else
enum { MOST = 3 * 1600 * 130 };
#endif
static const struct tr_kernels *ref, *fast;
static char where[160];

/* Plain C first. */
#ifdef TEST_CUDA
#include "libtrain/kernel/device.h"
static const struct tr_device_module *device;
static const char *const names[] = { "ref", "cuda" };
static const struct tr_kernels *table(const char *name) { return strcmp(name, "cuda") ? tr_kernels_named(name) : device->kernels; }
static const char *table_error(void) { return device->error(); }
#else
static const char *const names[] = { "ref", "avx2", "avx512" };
static const struct tr_kernels *table(const char *name) { return tr_kernels_named(name); }
static const char *table_error(void) { return NULL; }
#endif
enum { TABLES = sizeof names / sizeof *names };

/* Tensors over static buffers; `ld` beyond the row shows a kernel that forgets it. */
struct space { float f[8][MOST]; uint16_t h[8][MOST]; };
static struct space *spaces[2];   /* ref's and fast's */

static struct tr_tensor at(int side, int slot, enum tr_dtype dtype, int64_t rows, int64_t cols, int64_t pad)
{
    struct tr_tensor t = tr_tensor_view(dtype == TR_F32 ? (void *)spaces[side]->f[slot] : (void *)spaces[side]->h[slot], dtype, TR_DIMS(rows, cols));
    t.ld = cols + pad;
    return t;
}

static void fill(int slot, float std, uint64_t seed)
{
    test_normal(spaces[0]->f[slot], MOST, seed, std);
    for (int i = 0; i < MOST; i++) {
        spaces[0]->h[slot][i] = tr_f32_to_bf16(spaces[0]->f[slot][i]);
        if (std > 1e30f) spaces[0]->f[slot][i] = i % 7 ? spaces[0]->f[slot][i] : INFINITY;
    }
    memcpy(spaces[1]->f[slot], spaces[0]->f[slot], sizeof spaces[0]->f[slot]);
    memcpy(spaces[1]->h[slot], spaces[0]->h[slot], sizeof spaces[0]->h[slot]);
}

static float get(const struct tr_tensor *t, int64_t r, int64_t c)
{
    int64_t i = r * t->ld + c;
    return t->dtype == TR_F32 ? ((float *)t->data)[i] : tr_bf16_to_f32(((uint16_t *)t->data)[i]);
}

static void close_to(const struct tr_tensor *a, const struct tr_tensor *b, double tolerance, const char *entry)
{
    double t = a->dtype == TR_F32 ? tolerance : 0.008; /* one step of bf16 */
    for (int64_t r = 0; r < tr_rows(a); r++)
        for (int64_t c = 0; c < tr_cols(a); c++) {
            double x = (double)get(a, r, c), y = (double)get(b, r, c);
            if (isnan(x) && isnan(y)) continue;
            if (!(fabs(x - y) <= t * (fabs(x) + 0.05)) && x != y) fail_msg("%s %s: row %ld column %ld is %g, plain C has %g", where, entry, (long)r, (long)c, y, x);
        }
}

struct shape { int64_t rows, cols, pad; };
#ifdef TEST_CUDA   /* fewer rows: a thread of a block costs more than a loop of the CPU */
static const struct shape shapes[] = { { 1, 1, 0 }, { 3, 7, 2 }, { 17, 63, 0 }, { 2, 64, 5 }, { 18, 65, 0 }, { 5, 200, 3 }, { 9, 576, 16 }, { 3, 1536, 0 }, { 1, 1600, 3 } };
#else
static const struct shape shapes[] = { { 1, 1, 0 }, { 3, 7, 2 }, { 65, 63, 0 }, { 2, 64, 5 }, { 130, 65, 0 }, { 64, 576, 16 }, { 3, 1536, 0 }, { 1, 1600, 3 } };
#endif

#define BOTH(call) for (int s = 0; s < 2; s++) { const struct tr_kernels *k = s ? fast : ref; call; }
#define T(slot, dt, r, c, p) struct tr_tensor T##slot[2] = { at(0, slot, dt, r, c, p), at(1, slot, dt, r, c, p) }

static void elementwise(const struct shape *sh, enum tr_dtype dt)
{
    int64_t R = sh->rows, C = sh->cols;
    fill(0, 1, 1), fill(1, 2, 2), fill(2, 1, 3);
    T(0, dt, R, C, sh->pad);
    T(1, dt, R, C, 0);
    T(2, dt, R, C, sh->pad + 1);
    BOTH(k->add(&T0[s], &T1[s], &T2[s]));
    close_to(&T0[0], &T0[1], 1e-6, "add");
    BOTH(k->axpy(&T0[s], 0.3f, &T2[s]));
    close_to(&T0[0], &T0[1], 1e-6, "axpy");
    BOTH(k->scale(&T0[s], 1.7f));
    close_to(&T0[0], &T0[1], 1e-6, "scale");
    BOTH(k->copy(&T1[s], &T0[s]));
    close_to(&T1[0], &T1[1], 1e-6, "copy");
    assert_true(fabs(ref->sum_squares(&T0[0]) - fast->sum_squares(&T0[1])) <= 0.01 * ref->sum_squares(&T0[0]));
    assert_true(fast->all_finite(&T0[1]));
    BOTH(k->gelu(&T0[s], &T1[s]));
    close_to(&T0[0], &T0[1], 2e-5, "gelu");
    BOTH(k->gelu_backward(&T0[s], &T2[s], &T1[s]));
    close_to(&T0[0], &T0[1], 4e-4, "gelu_backward");
    BOTH(k->random_normal(&T0[s], tr_key(3, TR_RNG_INIT, 0, 0), 0.7f));
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++)
            if (get(&T0[0], r, c) != get(&T0[1], r, c)) fail_msg("%s random_normal: row %ld column %ld has other bits", where, (long)r, (long)c);
    BOTH(k->fill(&T0[s], 2.5f));
    close_to(&T0[0], &T0[1], 0, "fill");
    T(3, TR_F32, 1, C, 0);
    fill(3, 1, 4);
    BOTH(k->add_bias(&T1[s], &T3[s]));
    close_to(&T1[0], &T1[1], 1e-6, "add_bias");
    BOTH(k->bias_backward(&T3[s], &T2[s]));
    close_to(&T3[0], &T3[1], 1e-4, "bias_backward");
}

static void gated(const struct shape *sh, enum tr_dtype dt)
{
    int64_t R = sh->rows, I = sh->cols;
    fill(0, 2, 5), fill(1, 2, 6), fill(2, 1, 7);
    T(0, dt, R, 2 * I, sh->pad);
    T(1, dt, R, I, 0);
    T(2, dt, R, I, sh->pad);
    T(4, dt, R, 2 * I, 0);
    BOTH(k->swiglu(&T1[s], &T0[s]));
    close_to(&T1[0], &T1[1], 1e-5, "swiglu");
    BOTH(k->swiglu_backward(&T4[s], &T2[s], &T0[s]));
    close_to(&T4[0], &T4[1], 1e-4, "swiglu_backward");
    BOTH(k->swiglu_backward(&T0[s], &T2[s], &T0[s]));
    close_to(&T0[0], &T0[1], 1e-4, "swiglu_backward in place");
}

static void norms(const struct shape *sh, enum tr_dtype dt, enum tr_dtype weights, int64_t groups)
{
    int64_t R = sh->rows, C = sh->cols, W = C * groups;
    fill(0, 1, 8), fill(1, 1, 9), fill(2, 1, 10), fill(3, 1, 11), fill(5, 0, 12), fill(6, 1, 13);
    T(0, dt, R, W, sh->pad);
    T(1, dt, R, W, 0);
    T(2, weights, 1, C, 0);
    T(3, dt, R, W, sh->pad);
    T(4, TR_F32, R, groups, 0);
    T(5, TR_F32, 1, C, 0);
    T(6, weights, 1, C, 0);
    T(7, TR_F32, R, 2, 0);
    for (int i = 0; i < 2; i++) T2[i].ndim = T5[i].ndim = T6[i].ndim = 1, T2[i].dim[0] = T5[i].dim[0] = T6[i].dim[0] = C;
    BOTH(k->rms_norm(&T1[s], &T4[s], &T0[s], &T2[s], 1e-5f));
    close_to(&T4[0], &T4[1], 1e-6, "rms_norm r");
    close_to(&T1[0], &T1[1], 1e-5, "rms_norm");
    BOTH(k->rms_norm_rebuild(&T1[s], &T4[s], &T0[s], &T2[s]));
    close_to(&T1[0], &T1[1], 1e-5, "rms_norm_rebuild");
    for (int acc = 0; acc < 2; acc++) {
        BOTH(k->rms_norm_backward(&T1[s], acc, &T5[s], &T3[s], &T0[s], &T4[s], &T2[s]));
        close_to(&T1[0], &T1[1], 2e-4, "rms_norm_backward dx");
        close_to(&T5[0], &T5[1], 1e-3, "rms_norm_backward dg");
    }
    if (groups > 1) return;
    BOTH(k->layer_norm(&T1[s], &T7[s], &T0[s], &T2[s], &T6[s], 1e-5f));
    if (C > 1) close_to(&T1[0], &T1[1], 1e-4, "layer_norm");
    BOTH(k->layer_norm_rebuild(&T1[s], &T7[0], &T0[s], &T2[s], &T6[s]));
    close_to(&T1[0], &T1[1], 1e-5, "layer_norm_rebuild");
    struct tr_tensor db[2] = { T5[0], T5[1] };
    BOTH(k->layer_norm_backward(&T1[s], false, &T5[s], &db[s], &T3[s], &T0[s], &T7[0], &T2[s]));
    if (C > 1) close_to(&T1[0], &T1[1], 2e-3, "layer_norm_backward dx");
}

static void gathers(const struct shape *sh, enum tr_dtype dt, enum tr_dtype weights)
{
    int32_t ids[130];
    int64_t R = sh->rows, C = sh->cols, V = 11;
    for (int i = 0; i < 130; i++) ids[i] = i * 7 % 11;
    struct tr_tensor id = tr_tensor_view(ids, TR_I32, TR_DIMS(R));
    fill(0, 1, 14), fill(1, 1, 15), fill(2, 0, 16);
    T(0, dt, R, C, sh->pad);
    T(1, weights, V, C, 0);
    T(2, TR_F32, V, C, 16);
    BOTH(k->embed(&T0[s], &T1[s], &id, false));
    close_to(&T0[0], &T0[1], 0, "embed");
    BOTH(k->embed(&T0[s], &T1[s], &id, true));
    close_to(&T0[0], &T0[1], 1e-6, "embed acc");
    BOTH(k->embed_backward(&T2[s], &T0[s], &id));
    close_to(&T2[0], &T2[1], 1e-5, "embed_backward");
    for (int i = 0; i < 130; i++) ids[i] = 129 - i;
    T(3, dt, 130, C, 0);
    BOTH(k->scatter(&T3[s], &T0[s], &id));
    close_to(&T3[0], &T3[1], 0, "scatter");
}

/* Quantised to the same bits, scales and zeros too; read back, gathered, and moved to the host and back unchanged. */
static void int8_weights(const struct shape *sh, enum tr_dtype dt)
{
    static int8_t q[2][MOST], host[MOST];
    static float scale[2][MOST];
    static int8_t zero[2][MOST];
    int32_t ids[5] = { 0, (int32_t)(sh->rows - 1), 0, (int32_t)(sh->rows / 2), 0 };
    int64_t R = sh->rows, C = sh->cols, groups = (C + TR_QUANT_GROUP - 1) / TR_QUANT_GROUP;
    fill(0, 1, 31), fill(1, 0, 32), fill(2, 0, 33);
    if (R > 1) for (int s = 0; s < 2; s++) for (int64_t c = 0; c < C; c++) spaces[s]->f[0][c] = 0, spaces[s]->h[0][c] = 0;   /* a row of zeros */
    T(0, dt, R, C, sh->pad);
    T(1, dt, R, C, sh->pad);
    T(2, dt, 5, C, 1);
    struct tr_tensor w[2], id = tr_tensor_view(ids, TR_I32, TR_DIMS(5));
    for (int s = 0; s < 2; s++) w[s] = tr_tensor_view(q[s], TR_INT8, TR_DIMS(R, C)), w[s].quant = (struct tr_quant){ scale[s], zero[s], TR_QUANT_GROUP, false };
    BOTH(k->copy(&w[s], &T0[s]));
    if (memcmp(q[0], q[1], (size_t)(R * C)) || memcmp(scale[0], scale[1], (size_t)(R * groups) * 4) || memcmp(zero[0], zero[1], (size_t)(R * groups))) fail_msg("%s int8 weights differ", where);
    BOTH(k->copy(&T1[s], &w[s]));
    close_to(&T1[0], &T1[1], 0, "copy of int8");
    BOTH(k->embed(&T2[s], &w[s], &id, false));
    close_to(&T2[0], &T2[1], 0, "embed of int8");
    fast->read(&w[1], host);
    memset(q[1], 0, (size_t)(R * C));
    fast->write(&w[1], host);
    if (memcmp(q[0], q[1], (size_t)(R * C))) fail_msg("%s write after read changes bytes", where);
}

static void turns(enum tr_dtype dt, int64_t D)
{
    static float cs[40 * 128];
    static int32_t pos[9] = { 0, 1, 2, 30, 5, 0, 7, 39, 8 };
    test_normal(cs, 40 * 128, 17, 1);
    fill(0, 1, 18);
    struct tr_tensor table = tr_tensor_view(cs, TR_F32, TR_DIMS(40, D)), p = tr_tensor_view(pos, TR_I32, TR_DIMS(9));
    T(0, dt, 9, 4 * D, 3);
    BOTH(k->rope(&T0[s], &table, &p, 3, false));
    close_to(&T0[0], &T0[1], 1e-5, "rope");
    BOTH(k->rope(&T0[s], &table, &p, 3, true));
    close_to(&T0[0], &T0[1], 1e-5, "rope inverse");
}

static void tables_agree(void **state)
{
    ref = tr_kernels_named("ref");
    for (int n = 1; n < TABLES; n++) {
        if (!(fast = table(names[n]))) {
            print_message("SKIPPED %s: this CPU has no such instructions\n", names[n]);
            continue;
        }
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int dt = TR_F32; dt <= TR_BF16; dt++) {
                snprintf(where, sizeof where, "%s %s [%ld, %ld] ld +%ld:", names[n], tr_dtype_name((enum tr_dtype)dt), (long)shapes[i].rows, (long)shapes[i].cols, (long)shapes[i].pad);
                elementwise(&shapes[i], (enum tr_dtype)dt);
                if (shapes[i].rows * shapes[i].cols * 2 < MOST) gated(&shapes[i], (enum tr_dtype)dt);
                for (int w = TR_F32; w <= TR_BF16; w++) {
                    norms(&shapes[i], (enum tr_dtype)dt, (enum tr_dtype)w, 1);
                    if (shapes[i].cols < 100) norms(&shapes[i], (enum tr_dtype)dt, (enum tr_dtype)w, 3);
                    gathers(&shapes[i], (enum tr_dtype)dt, (enum tr_dtype)w);
                }
                int8_weights(&shapes[i], (enum tr_dtype)dt);
                for (int64_t D = 2; D <= 128; D *= 4) turns((enum tr_dtype)dt, D);
            }
        snprintf(where, sizeof where, "%s [2, 8200]:", names[n]);   /* more than the threads of a device keep in registers */
        for (int dt = TR_F32; dt <= TR_BF16; dt++) norms(&(struct shape){ 2, 8200, 3 }, (enum tr_dtype)dt, TR_F32, 1);
        if (table_error()) fail_msg("%s", table_error());
    }
}

/* Special values pass through as in plain C. */
static void extremes(void **state)
{
    ref = tr_kernels_named("ref");
    for (int n = 1; n < TABLES; n++) {
        if (!(fast = table(names[n]))) continue;
        snprintf(where, sizeof where, "%s extremes:", names[n]);
        float x[16] = { 0, -0.0f, 1e-38f, -1e-38f, 88, -88, 100, -100, 3e38f, -3e38f, INFINITY, -INFINITY, NAN, 1, -1, 15 };
        float one[2][32], out[2][16];
        for (int i = 0; i < 16; i++) one[0][i] = one[1][i] = x[i], one[0][16 + i] = one[1][16 + i] = 1;
        for (int s = 0; s < 2; s++) {
            struct tr_tensor gu = tr_tensor_view(one[s], TR_F32, TR_DIMS(1, 32)), a = tr_tensor_view(out[s], TR_F32, TR_DIMS(1, 16)), v = tr_tensor_view(one[s], TR_F32, TR_DIMS(1, 16));
            (s ? fast : ref)->swiglu(&a, &gu);
            assert_false((s ? fast : ref)->all_finite(&v));
        }
        for (int i = 0; i < 16; i++)
            if (!(isnan(out[0][i]) && isnan(out[1][i])) && fabsf(out[0][i] - out[1][i]) > 1e-5f * fabsf(out[0][i]) + 1e-30f && i != 11)
                fail_msg("%s swiglu of %g is %g, plain C has %g", where, (double)x[i], (double)out[1][i], (double)out[0][i]);
    }
}

/* More rows than a sum over a whole tensor has parts, and a number that is not finite in the last of them. */
static void many_rows(void **state)
{
    enum { ROWS = 2100, COLS = 3 };
    for (int n = 0; n < TABLES; n++) {
        const struct tr_kernels *k = table(names[n]);
        if (!k) continue;
        fill(0, 1, 34);
        struct tr_tensor x = at(0, 0, TR_F32, ROWS, COLS, 1);
        double want = 0;
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < COLS; c++) want += (double)get(&x, r, c) * (double)get(&x, r, c);
        if (!(fabs(k->sum_squares(&x) - want) <= 1e-12 * want)) fail_msg("%s: sum of squares %.17g, want %.17g", names[n], k->sum_squares(&x), want);
        const int64_t begin[] = { 0, 0, 64, 65, 1100, 1100, ROWS };
        double sum[6];
        k->sum_squares_panels(sum, &x, begin, 6);
        for (int i = 0; i < 6; i++) {
            struct tr_tensor panel = tr_rows_view(&x, begin[i], begin[i + 1] - begin[i]);
            double alone = begin[i + 1] > begin[i] ? k->sum_squares(&panel) : 0;
            if (memcmp(&sum[i], &alone, sizeof alone)) fail_msg("%s: panel %d: %.17g, alone %.17g", names[n], i, sum[i], alone);
        }
        assert_true(k->all_finite(&x));
        spaces[0]->f[0][(ROWS - 1) * (COLS + 1) + COLS - 1] = NAN;
        assert_false(k->all_finite(&x));
    }
}

/* One thread and two: the same bits, for every table. */
static void threads_do_not_show(void **state)
{
    for (int n = 0; n < TABLES; n++) {
        const struct tr_kernels *k = table(names[n]);
        if (!k) continue;
        fill(0, 1, 20), fill(1, 1, 21), fill(2, 1, 22), fill(5, 0, 23);
        for (int threads = 1; threads <= 2; threads++) {
            tr_set_threads(threads);
            int s = threads - 1;
            struct tr_tensor x = at(s, 0, TR_BF16, 130, 576, 0), dy = at(s, 1, TR_BF16, 130, 576, 0), g = at(s, 2, TR_F32, 1, 576, 0), r = at(s, 4, TR_F32, 130, 1, 0), dg = at(s, 5, TR_F32, 1, 576, 0), dx = at(s, 3, TR_BF16, 130, 576, 0);
            k->rms_norm(&dx, &r, &x, &g, 1e-5f);
            k->rms_norm_backward(&dx, false, &dg, &dy, &x, &r, &g);
            k->bias_backward(&dg, &dx);
            spaces[s]->f[6][0] = (float)k->sum_squares(&x);
        }
        if (memcmp(spaces[0]->f[5], spaces[1]->f[5], 576 * 4) || memcmp(spaces[0]->h[3], spaces[1]->h[3], 130 * 576 * 2) || spaces[0]->f[6][0] != spaces[1]->f[6][0])
            fail_msg("%s: bits depend on the number of threads", names[n]);
    }
}

/* int8: nearest rounding is within half a step; stochastic rounding is right on average and within one. */
static void int8_rounding(void **state)
{
    enum { R = 3, C = 200, TRIES = 400 };
    struct tr_tensor w;
    static float x[R * C], back[R * C], mean[R * C], zero[R * C];
    test_normal(x, R * C, 31, 1);
    struct tr_tensor f = tr_tensor_view(x, TR_F32, TR_DIMS(R, C)), b = tr_tensor_view(back, TR_F32, TR_DIMS(R, C)), z = tr_tensor_view(zero, TR_F32, TR_DIMS(R, C));
    assert_ok(tr_tensor_new(&w, TR_WEIGHTS, TR_INT8, 2, f.dim));
    tr_kernels()->copy(&w, &f);
    tr_kernels()->copy(&b, &w);
    for (int i = 0; i < R * C; i++) assert_true(fabsf(back[i] - x[i]) <= 0.5001f * w.quant.scale[i / C * 2 + i % C / 128]);
    for (int t = 0; t < TRIES; t++) { /* a step of a third of a scale, again and again from the same weights */
        struct tr_apply a = { 1, 0, 1, { tr_key(1, TR_RNG_ROUNDING, 2, (uint64_t)t), 0 } };
        tr_kernels()->copy(&w, &f);
        for (int i = 0; i < R * C; i++) zero[i] = -x[i] / 300;
        a.rate = 1;
        tr_updates()->apply(&w, &z, &a);
        tr_kernels()->copy(&b, &w);
        for (int i = 0; i < R * C; i++) mean[i] += back[i] / TRIES;
    }
    tr_kernels()->copy(&w, &f);
    tr_kernels()->copy(&b, &w);
    for (int i = 0; i < R * C; i++) {
        float want = back[i] + x[i] / 300, scale = w.quant.scale[i / C * 2 + i % C / 128];
        if (fabsf(mean[i] - want) > 4 * 0.5f * scale / 20) fail_msg("int8: element %d is %g on average, want %g (scale %g)", i, (double)mean[i], (double)want, (double)scale);
    }
    tr_tensor_release(&w);
}

/* bf16 weights: an update far below their precision still arrives on average; without a key it is lost. */
static void bf16_rounding(void **state)
{
    enum { N = 64, STEPS = 2000 };
    uint16_t w[2][N];
    float g[N];
    for (int i = 0; i < N; i++) w[0][i] = w[1][i] = tr_f32_to_bf16(1), g[i] = 1;
    struct tr_tensor grad = tr_tensor_view(g, TR_F32, TR_DIMS(N));
    for (int t = 0; t < STEPS; t++)
        for (int s = 0; s < 2; s++) {
            struct tr_tensor x = tr_tensor_view(w[s], TR_BF16, TR_DIMS(N));
            struct tr_apply a = { 1, -1e-4f, 1, { s ? tr_key(1, TR_RNG_ROUNDING, 3, (uint64_t)t) : (struct tr_key){ { 0, 0 } }, 0 } };
            tr_updates()->apply(&x, &grad, &a);
        }
    double mean = 0;
    for (int i = 0; i < N; i++) {
        assert_true(tr_bf16_to_f32(w[0][i]) == 1);
        mean += (double)tr_bf16_to_f32(w[1][i]) / N;
    }
    assert_true(fabs(mean - 1.2) < 0.01);
}

/* Rows are summed side by side, each in its own order: the bits of one row after the other, at every edge of their blocks. */
static void row_norms(void **state)
{
    enum { ROWS = 19, COLS = 600, LD = 608 };
    static float x[ROWS * LD];
    float got[ROWS];
    for (int i = 0; i < ROWS * LD; i++) x[i] = (float)sin(i) * (float)(1 + i % 7);
    const int64_t rows[] = { 1, 7, 8, 9, ROWS }, cols[] = { 1, 255, 256, 257, COLS };
    for (int a = 0; a < 5; a++)
        for (int b = 0; b < 5; b++) {
            struct tr_tensor t = tr_tensor_view(x, TR_F32, TR_DIMS(rows[a], cols[b])), n = tr_tensor_view(got, TR_F32, TR_DIMS(rows[a]));
            t.ld = LD;
            tr_updates()->norms(&n, &t, 0);
            for (int64_t r = 0; r < rows[a]; r++) {
                double sum = 0;
                for (int64_t c = 0; c < cols[b]; c++) sum += (double)x[r * LD + c] * (double)x[r * LD + c];
                assert_true(got[r] == (float)sqrt(sum));
            }
        }
}

int main(void)
{
#ifdef TEST_CUDA
    device = test_module();
#endif
    spaces[0] = malloc(sizeof *spaces[0]);
    spaces[1] = malloc(sizeof *spaces[1]);
    const struct CMUnitTest tests[] = { cmocka_unit_test(tables_agree), cmocka_unit_test(extremes), cmocka_unit_test(many_rows), cmocka_unit_test(threads_do_not_show),
                                        cmocka_unit_test(int8_rounding), cmocka_unit_test(bf16_rounding), cmocka_unit_test(row_norms) };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(spaces[0]);
    free(spaces[1]);
    return failed;
}
