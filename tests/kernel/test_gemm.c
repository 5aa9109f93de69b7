#include "tests/support/support.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/gemm/impl.h"
#include "libtrain/kernel/kernel.h"
#include "train_config.h"
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- implementations, each by itself */

#if HAVE_X86
static int avx2_run(const struct tr_product *p, bool dry) { return tr_avx2_product(p, dry, false); }
static bool avx2_takes(const struct tr_product *p) { return tr_cpu().avx2; }
static const struct tr_gemm_impl avx2 = { .name = "avx2", .takes = avx2_takes, .run = avx2_run, .any_cut = true };
#endif

static const struct tr_gemm_impl *implementation(int i)
{
#if HAVE_X86
    if (i == 0) return &avx2;
    return tr_gemm_list[i - 1];
#else
    return tr_gemm_list[i];
#endif
}

static enum tr_dtype compute_type(const struct tr_gemm_impl *g, enum tr_dtype a)
{
#if HAVE_X86
    if (g == &avx2) return TR_F32;
#endif
    return tr_gemm_has_bf16() && strcmp(g->name, "ref") ? a : TR_F32;
}

/* Numbers in [-2, 2) std, cheaper than normal ones. */
static void numbers(float *x, int64_t n, uint64_t seed, float std)
{
    uint32_t u = (uint32_t)seed * 2654435761u;
    for (int64_t i = 0; i < n; i++) {
        u = u * 1664525u + 1013904223u;
        x[i] = ((float)(u >> 8) * 0x1p-22f - 2) * std;
    }
}

/* ---- matrices with a gap of NaN after each row and after the end */

enum { GAP = 5 };
struct matrix { int64_t rows, cols; struct tr_operand o; double *x; float *scale; int8_t *zero; };

static void set(void *data, enum tr_dtype dtype, int64_t i, float x)
{
    if (dtype == TR_F32) ((float *)data)[i] = x;
    else if (dtype == TR_BF16) ((uint16_t *)data)[i] = tr_f32_to_bf16(x);
    else ((int8_t *)data)[i] = (int8_t)x;
}

static double value(const struct tr_operand *o, int64_t r, int64_t c)
{
    int64_t i = r * o->ld + c;
    if (o->dtype == TR_F32) return ((const float *)o->data)[i];
    if (o->dtype == TR_BF16) return tr_bf16_to_f32(((const uint16_t *)o->data)[i]);
    return o->scale[r * o->groups + c / o->group] * (float)(((const int8_t *)o->data)[i] - o->zero[r * o->groups + c / o->group]);    /* f32 product, as widened */
}

static void matrix_init(struct matrix *m, int64_t rows, int64_t cols, enum tr_dtype dtype, uint64_t seed, enum tr_dtype compute, int64_t gap)
{
    *m = (struct matrix){ .rows = rows, .cols = cols };
    int64_t ld = cols + gap, group = 8, groups = (cols + group - 1) / group;
    void *data = malloc((size_t)(rows * ld + GAP) * tr_dtype_size(dtype));
    float *x = malloc(sizeof *x * (size_t)(rows * cols));
    m->scale = malloc(sizeof *x * (size_t)(rows * groups));
    numbers(x, rows * cols, seed, dtype == TR_INT8 ? 40 : 1);
    m->zero = malloc((size_t)(rows * groups));
    for (int64_t i = 0; i < rows * groups; i++) m->scale[i] = 0.01f + 0.001f * (float)(i % 17), m->zero[i] = (int8_t)(i * 7 % 23 - 11);
    for (int64_t i = 0; i < rows * ld + GAP; i++) set(data, dtype, i, dtype == TR_INT8 ? 127 : NAN);
    for (int64_t i = 0; i < rows * cols; i++) set(data, dtype, i / cols * ld + i % cols, dtype == TR_INT8 ? fmaxf(-127, fminf(127, x[i])) : x[i]);
    m->o = (struct tr_operand){ .data = data, .dtype = dtype, .ld = ld, .scale = m->scale, .zero = m->zero, .group = group, .groups = groups };
    m->x = malloc(sizeof *m->x * (size_t)(rows * cols));
    for (int64_t i = 0; i < rows * cols; i++) {
        double v = value(&m->o, i / cols, i % cols);
        m->x[i] = compute == TR_BF16 ? tr_bf16_to_f32(tr_f32_to_bf16((float)v)) : v;
    }
    free(x);
}

static void matrix_release(struct matrix *m)
{
    free((void *)(uintptr_t)m->o.data);
    free(m->x);
    free(m->scale);
    free(m->zero);
}

/* ---- values */

struct kind { enum tr_dtype a, b, c; bool ta, tb; float alpha, beta; };

static const struct kind kinds[] = {
    { TR_F32, TR_F32, TR_F32, false, true, 1, 0 },   { TR_F32, TR_F32, TR_F32, false, false, 1, 1 },  { TR_F32, TR_F32, TR_F32, true, false, 1, 0 },
    { TR_F32, TR_F32, TR_F32, true, false, 1, 1 },   { TR_F32, TR_F32, TR_F32, true, true, 0.5f, -2 }, { TR_F32, TR_F32, TR_F32, false, false, -1, 0.5f },
    { TR_F32, TR_F32, TR_F32, true, false, 2, 0 },   { TR_BF16, TR_BF16, TR_BF16, false, true, 1, 0 }, { TR_BF16, TR_BF16, TR_BF16, false, true, 1, 1 },
    { TR_BF16, TR_BF16, TR_F32, false, true, 1, 0 }, { TR_BF16, TR_BF16, TR_BF16, false, false, 1, 0 }, { TR_BF16, TR_BF16, TR_BF16, false, false, 1, 1 },
    { TR_BF16, TR_BF16, TR_F32, false, false, 1, 1 }, { TR_BF16, TR_BF16, TR_F32, true, false, 1, 0 }, { TR_BF16, TR_BF16, TR_F32, true, false, 1, 1 },
    { TR_F32, TR_BF16, TR_F32, false, true, 1, 0 },  { TR_F32, TR_BF16, TR_F32, false, false, 1, 0 },  { TR_BF16, TR_F32, TR_BF16, false, true, 1, 0 },
    { TR_BF16, TR_F32, TR_BF16, false, false, 1, 0 }, { TR_F32, TR_INT8, TR_F32, false, true, 1, 0 },  { TR_F32, TR_INT8, TR_F32, false, false, 1, 1 },
    { TR_BF16, TR_INT8, TR_BF16, false, true, 1, 0 }, { TR_BF16, TR_INT8, TR_F32, false, false, 1, 0 },
    { TR_BF16, TR_BF16, TR_BF16, true, false, 1, 0 },
};

static const int64_t shapes[][3] = {    /* m n k */
    { 1, 1, 1 }, { 1, 17, 3 }, { 2, 48, 16 }, { 3, 24, 33 }, { 4, 47, 64 }, { 5, 49, 65 }, { 7, 96, 31 }, { 8, 48, 128 }, { 9, 50, 130 },
    { 16, 300, 20 }, { 33, 95, 257 }, { 64, 192, 100 }, { 70, 16, 576 }, { 130, 145, 77 },
};

static void check_product(const struct tr_gemm_impl *g, struct kind q, const int64_t *mnk)
{
    int64_t m = mnk[0], n = mnk[1], k = mnk[2];
    struct matrix a, b, c, before;
    enum tr_dtype compute = compute_type(g, q.a);
    matrix_init(&a, q.ta ? k : m, q.ta ? m : k, q.a, 1, TR_F32, m % 2 ? GAP : 0);
    matrix_init(&b, q.tb ? n : k, q.tb ? k : n, q.b, 2, compute, n % 2 ? GAP : 2);
    matrix_init(&c, m, n, q.c, 3, TR_F32, k % 2 ? GAP : 0);
    matrix_init(&before, m, n, q.c, 3, TR_F32, 0);
    struct tr_product p = { .m = m, .n = n, .k = k, .alpha = q.alpha, .beta = q.beta, .a = a.o, .b = b.o,
                            .c = (void *)(uintptr_t)c.o.data, .c_dtype = q.c, .c_ld = c.o.ld };
    p.a.transposed = q.ta, p.b.transposed = q.tb;
    if (g->takes(&p)) {
        assert_ok(g->run(&p, false));
        int64_t every = 1 + m * n * k / 400000;    /* of large products a sample, corners included */
        for (int64_t i = 0; i < m; i++) {
            for (int64_t j = 0; j < n; j++) {
                if ((i * n + j) % every && (i != m - 1 || j % 16 != n % 16)) continue;
                double sum = 0, size = 0;
                for (int64_t t = 0; t < k; t++) {
                    double x = (q.ta ? a.x[t * m + i] : a.x[i * k + t]) * (q.tb ? b.x[j * k + t] : b.x[t * n + j]);
                    sum += x;
                    size += fabs(x);
                }
                double want = q.alpha * sum + q.beta * before.x[i * n + j], got = value(&c.o, i, j);
                double slack = (q.c == TR_BF16 ? fabs(want) * 0x1p-8 : 0) + (size * fabs(q.alpha) + fabs(before.x[i * n + j] * q.beta)) * 1e-6;
                if (!(fabs(got - want) <= slack))
                    fail_msg("%s %s%s x %s%s -> %s, %d x %d x %d at %d %d: %g, want %g", g->name, tr_dtype_name(q.a), q.ta ? "'" : "",
                             tr_dtype_name(q.b), q.tb ? "'" : "", tr_dtype_name(q.c), (int)m, (int)n, (int)k, (int)i, (int)j, got, want);
            }
        }
        for (int64_t i = 0; i < m * c.o.ld + GAP; i++)    /* nothing is written between rows or past the end */
            if (i >= (m - 1) * c.o.ld + n || i % c.o.ld >= n)
                assert_true(isnan(q.c == TR_F32 ? ((const float *)c.o.data)[i] : tr_bf16_to_f32(((const uint16_t *)c.o.data)[i])));
    }
    matrix_release(&a);
    matrix_release(&b);
    matrix_release(&c);
    matrix_release(&before);
}

static void test_values(void **state)
{
    for (int i = 0; i < 8 && implementation(i); i++)
        for (size_t q = 0; q < sizeof kinds / sizeof *kinds; q++)
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) check_product(implementation(i), kinds[q], shapes[s]);
}

/* Sums longer than a block of K, and enough columns for several groups of panels. */
static void test_large(void **state)
{
    static const int64_t large[][3] = { { 10, 70, 2500 }, { 520, 60, 2100 }, { 9, 1000, 600 }, { 200, 100, 4200 } };
    for (int i = 0; i < 8 && implementation(i); i++) {
        if (!strcmp(implementation(i)->name, "ref")) continue;
        for (size_t q = 0; q < sizeof kinds / sizeof *kinds; q++)
            for (size_t s = 0; s < sizeof large / sizeof *large; s += 1 + q % 3) check_product(implementation(i), kinds[q], large[s]);
    }
}

/* Results that go past the caches, and many rows over several blocks of K. */
static void test_wide(void **state)
{
#if HAVE_X86
    static const struct kind logits = { TR_BF16, TR_BF16, TR_F32, false, true, 1, 0 }, dx = { TR_BF16, TR_BF16, TR_BF16, false, false, 1, 0 };
    if (!tr_cpu().avx2) skip();
    check_product(&tr_gemm_packed, logits, (int64_t[]){ 520, 8200, 40 });
    check_product(&tr_gemm_packed, logits, (int64_t[]){ 530, 8160, 340 });
    check_product(&tr_gemm_packed, dx, (int64_t[]){ 2085, 40, 4200 });
#else
    skip();
#endif
}

/* ---- the three products of a layer: bits */

struct layer { int64_t n, o, c; struct tr_tensor x, dy, w, y, dx, dw; };

static struct tr_tensor random_tensor(enum tr_dtype dtype, int64_t rows, int64_t cols, uint64_t seed)
{
    float *x = malloc(sizeof *x * (size_t)(rows * cols));
    void *data = calloc((size_t)(rows * cols), tr_dtype_size(dtype));
    if (seed) {
        numbers(x, rows * cols, seed, 1);
        for (int64_t i = 0; i < rows * cols; i++) set(data, dtype, i, x[i]);
    }
    free(x);
    return tr_tensor_view(data, dtype, TR_DIMS(rows, cols));
}

static void layer_init(struct layer *l, enum tr_dtype dtype, int64_t n, int64_t o, int64_t c)
{
    *l = (struct layer){ n, o, c, random_tensor(dtype, n, c, 1), random_tensor(dtype, n, o, 2), random_tensor(dtype, o, c, 3),
                         random_tensor(dtype, n, o, 0), random_tensor(dtype, n, c, 0), random_tensor(TR_F32, o, c, 0) };
}

static void layer_release(struct layer *l)
{
    struct tr_tensor *all[] = { &l->x, &l->dy, &l->w, &l->y, &l->dx, &l->dw };
    for (int i = 0; i < 6; i++) free(all[i]->data);
}

/* All three, with the tokens cut into pieces of `cut`. */
static void run_layer(struct layer *l, int64_t cut, bool acc)
{
    for (int64_t i = 0; i < l->n; i += cut) {
        int64_t n = l->n - i < cut ? l->n - i : cut;
        struct tr_tensor x = tr_rows_view(&l->x, i, n), dy = tr_rows_view(&l->dy, i, n);
        struct tr_tensor y = tr_rows_view(&l->y, i, n), dx = tr_rows_view(&l->dx, i, n);
        assert_ok(tr_gemm_forward(&y, &x, &l->w, acc));
        assert_ok(tr_gemm_dx(&dx, &dy, &l->w, acc));
        assert_ok(tr_gemm_dw(&l->dw, &dy, &x, acc || i > 0));
    }
}

static void assert_same(const struct tr_tensor *a, const struct tr_tensor *b, const char *what, const struct layer *l, int how)
{
    if (memcmp(a->data, b->data, tr_bytes(a)))
        fail_msg("%s of %d x %d x %d %s: other bits with %d", what, (int)l->n, (int)l->o, (int)l->c, tr_dtype_name(l->x.dtype), how);
}

static const int64_t layers[][3] = { { 1, 7, 5 }, { 2, 64, 64 }, { 5, 100, 36 }, { 8, 192, 64 }, { 31, 33, 65 }, { 64, 576, 192 },
                                     { 200, 48, 100 }, { 65, 1000, 48 }, { 130, 40, 2200 }, { 600, 90, 64 } };

static void test_threads(void **state)
{
    for (int d = 0; d < 2; d++) {
        for (size_t s = 0; s < sizeof layers / sizeof *layers; s++) {
            struct layer one, l;
            layer_init(&one, d ? TR_BF16 : TR_F32, layers[s][0], layers[s][1], layers[s][2]);
            tr_set_threads(1);
            run_layer(&one, one.n, false);
            for (int threads = 2; threads <= 4; threads++) {
                layer_init(&l, d ? TR_BF16 : TR_F32, layers[s][0], layers[s][1], layers[s][2]);
                tr_set_threads(threads);
                run_layer(&l, l.n, false);
                assert_same(&one.y, &l.y, "y", &l, threads);
                assert_same(&one.dx, &l.dx, "dx", &l, threads);
                assert_same(&one.dw, &l.dw, "dw", &l, threads);
                layer_release(&l);
            }
            layer_release(&one);
        }
    }
    tr_set_threads(2);
}

/* Rows do not depend on which rows come with them; the gradient not on where the tokens were cut (AMX: at multiples of 32). Promised
 * of our own products and of oneDNN's for bf16. */
static void test_cuts(void **state)
{
    if (!tr_cpu().avx2) skip();
    tr_set_threads(1);    /* thousands of small calls: threads are the other test's matter */
    const int64_t cuts[] = { 2, 6, 64, 500, 512 };
    for (int d = 0; d < 2; d++) {
        for (size_t s = 0; s < sizeof layers / sizeof *layers; s++) {
            struct layer whole, l;
            for (int acc = 0; acc < 2; acc++) {
                layer_init(&whole, d ? TR_BF16 : TR_F32, layers[s][0], layers[s][1], layers[s][2]);
                run_layer(&whole, whole.n, false);
                if (acc) run_layer(&whole, whole.n, true);
                for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
                    layer_init(&l, d ? TR_BF16 : TR_F32, layers[s][0], layers[s][1], layers[s][2]);
                    run_layer(&l, cuts[c], false);
                    if (acc) run_layer(&l, cuts[c], true);
                    assert_same(&whole.y, &l.y, "y", &l, (int)cuts[c]);
                    assert_same(&whole.dx, &l.dx, "dx", &l, (int)cuts[c]);
                    if (!(d && tr_cpu().amx_bf16) || cuts[c] % 32 == 0) assert_same(&whole.dw, &l.dw, "dw", &l, (int)cuts[c]);
                    layer_release(&l);
                }
                layer_release(&whole);
            }
        }
    }
}

/* One row alone has the bits it has among others. */
static void test_single_rows(void **state)
{
    if (!tr_cpu().avx2) skip();
    tr_set_threads(1);
    for (int d = 0; d < 2; d++) {
        struct layer whole, l;
        layer_init(&whole, d ? TR_BF16 : TR_F32, 21, 100, 96);
        layer_init(&l, d ? TR_BF16 : TR_F32, 21, 100, 96);
        run_layer(&whole, 21, false);
        for (int64_t n = 1; n <= 9; n++) {
            for (int64_t i = 0; i + n <= 21; i++) {
                struct tr_tensor x = tr_rows_view(&l.x, i, n), y = tr_rows_view(&l.y, i, n), dy = tr_rows_view(&l.dy, i, n), dx = tr_rows_view(&l.dx, i, n);
                assert_ok(tr_gemm_forward(&y, &x, &l.w, false));
                assert_ok(tr_gemm_dx(&dx, &dy, &l.w, false));
            }
            assert_same(&whole.y, &l.y, "y", &l, (int)n);
            assert_same(&whole.dx, &l.dx, "dx", &l, (int)n);
        }
        layer_release(&whole);
        layer_release(&l);
    }
}

static void test_refuses(void **state)
{
    float x[12] = { 0 };
    uint16_t h[12] = { 0 };
    struct tr_tensor a = tr_tensor_view(x, TR_F32, TR_DIMS(3, 4)), b = tr_tensor_view(x, TR_F32, TR_DIMS(2, 4)), y = tr_tensor_view(x, TR_F32, TR_DIMS(3, 2));
    struct tr_tensor wrong = tr_tensor_view(x, TR_F32, TR_DIMS(2, 3)), half = tr_tensor_view(h, TR_BF16, TR_DIMS(3, 4)), ints = tr_tensor_view(x, TR_I32, TR_DIMS(2, 4));
    assert_int_equal(tr_gemm_forward(&wrong, &a, &b, false), TR_EFAIL);
    assert_int_equal(tr_gemm_dx(&wrong, &y, &b, false), TR_EFAIL);
    assert_int_equal(tr_gemm_dw(&wrong, &y, &a, false), TR_EFAIL);
    assert_int_equal(tr_gemm_dw(&half, &a, &half, false), TR_EFAIL);
    assert_int_equal(tr_gemm_f32(&y, 1, &a, true, &b, true, 0), TR_EFAIL);
    assert_int_equal(tr_gemm_f32(&y, 1, &half, false, &b, true, 0), TR_EFAIL);
    assert_int_equal(tr_gemm_forward(&y, &a, &ints, false), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "[2, 4]"));
}

/* No tokens, or a sum of nothing. */
static void test_empty(void **state)
{
    float c[4] = { 1, 2, 3, 4 }, x[4];
    struct tr_tensor none = tr_tensor_view(x, TR_F32, TR_DIMS(0, 2)), dw = tr_tensor_view(c, TR_F32, TR_DIMS(2, 2)), w = tr_tensor_view(x, TR_F32, TR_DIMS(2, 2));
    assert_ok(tr_gemm_forward(&none, &none, &w, false));
    assert_ok(tr_gemm_dw(&dw, &none, &none, true));
    assert_true(c[0] == 1 && c[3] == 4);
    struct tr_tensor tall = tr_tensor_view(x, TR_F32, TR_DIMS(2, 0));
    assert_ok(tr_gemm_f32(&dw, 1, &tall, false, &none, false, 0.5f));
    assert_true(c[0] == 0.5f && c[3] == 2);
    assert_ok(tr_gemm_dw(&dw, &none, &none, false));
    assert_true(c[0] == 0 && c[3] == 0);
}

/* A dry run counts the bytes of a real one, and touches nothing. */
static void test_dry(void **state)
{
    size_t peak[2];
    for (int dry = 0; dry < 2; dry++) {
        tr_mem_dry(dry);
        tr_arena_reset();
        struct tr_tensor x, w, y, dw;
        assert_ok(tr_tensor_arena(&x, TR_WORKSPACE, TR_BF16, TR_DIMS(700, 96), 0));
        assert_ok(tr_tensor_arena(&w, TR_WORKSPACE, TR_BF16, TR_DIMS(200, 96), 0));
        assert_ok(tr_tensor_arena(&y, TR_WORKSPACE, TR_BF16, TR_DIMS(700, 200), 0));
        assert_ok(tr_tensor_arena(&dw, TR_WORKSPACE, TR_F32, TR_DIMS(200, 96), 16));
        if (!dry) memset(x.data, 0, tr_bytes(&x)), memset(w.data, 0, tr_bytes(&w));
        size_t before = tr_mem_ledger().total;
        tr_mem_reset_peak();
        assert_ok(tr_gemm_forward(&y, &x, &w, false));
        assert_ok(tr_gemm_dx(&x, &y, &w, false));
        assert_ok(tr_gemm_dw(&dw, &y, &x, false));
        peak[dry] = tr_mem_ledger().peak - before;
        tr_tensor_release(&x);
        tr_tensor_release(&w);
        tr_tensor_release(&y);
        tr_tensor_release(&dw);
    }
    tr_mem_dry(false);
    tr_arena_reset();
    if (tr_cpu().avx2) assert_true(peak[0] > 0);
    assert_int_equal(peak[0], peak[1]);
}

/* Forward and dX over a vocabulary: a sum of 49,152 numbers of one sign must not lose more than sums in blocks do. */
static void test_long_sums(void **state)
{
    enum { K = 49152, N = 9 };
    float *a = malloc(sizeof *a * N * K), *b = malloc(sizeof *b * N * K), c[N * N];
    numbers(a, N * K, 5, 0.1f);
    numbers(b, N * K, 6, 0.1f);
    for (int i = 0; i < N * K; i++) a[i] += 1, b[i] += 1;
    for (int g = 0; implementation(g); g++)
        for (int turned = 0; turned < 2; turned++) { /* b [N,K] (forward) or [K,N] (dX) */
            struct tr_product p = { .m = N, .n = N, .k = K, .alpha = 1, .a = { .data = a, .dtype = TR_F32, .ld = K },
                                    .b = { .data = b, .dtype = TR_F32, .ld = turned ? K : N, .transposed = turned }, .c = c, .c_ld = N };
            p.c_dtype = TR_F32;
            if (!implementation(g)->takes(&p)) continue;
            assert_int_equal(implementation(g)->run(&p, false), TR_OK);
            for (int i = 0; i < N; i++)
                for (int j = 0; j < N; j++) {
                    double want = 0;
                    for (int k = 0; k < K; k++) want += (double)a[i * K + k] * (double)b[turned ? j * K + k : k * N + j];
                    if (!(fabs(c[i * N + j] - want) <= 2e-6 * want)) fail_msg("%s %d: %.9g, not %.9g", implementation(g)->name, turned, (double)c[i * N + j], want);
                }
        }
    free(a);
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values), cmocka_unit_test(test_long_sums), cmocka_unit_test(test_large), cmocka_unit_test(test_wide), cmocka_unit_test(test_threads), cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_single_rows), cmocka_unit_test(test_refuses), cmocka_unit_test(test_empty), cmocka_unit_test(test_dry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
