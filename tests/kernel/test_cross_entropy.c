#include "tests/support/support.h"
#include "tests/kernel/variants.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>

enum { ROWS = 5 };

static const struct { int64_t cols, ld; float std, shift; const char *name; } cases[] = {
    { 1, 1, 1, 0, "one class" }, { 7, 7, 3, 0, "seven" }, { 16, 16, 3, 0, "one vector" }, { 17, 20, 3, 5, "padded rows" },
    { 64, 64, 3, 0, "" }, { 257, 257, 4, -20, "bytes" }, { 4099, 4099, 2, 0, "past a block" }, { 50257, 50257, 3, 0, "gpt2" },
    { 300, 300, 0, 0, "all equal" }, { 300, 300, 2000, 0, "huge" }, { 300, 300, 1e-20f, 0, "tiny" }, { 300, 304, 3, 30000, "far" },
};

/* Loss and gradient of a row in double. */
static double row_loss(double *d_V, const float *x_V, int64_t n, int64_t target, double scale)
{
    double max = -INFINITY, sum = 0;
    for (int64_t v = 0; v < n; v++) max = fmax(max, x_V[v]);
    for (int64_t v = 0; v < n; v++) sum += exp(x_V[v] - max);
    for (int64_t v = 0; v < n; v++) d_V[v] = (exp(x_V[v] - max) / sum - (v == target)) * scale;
    return max + log(sum) - x_V[target];
}

static void check_case(const struct variant *k, int c, enum tr_dtype dtype, bool in_place)
{
    int64_t n = cases[c].cols, ld = cases[c].ld;
    float *x = malloc(sizeof(float) * (size_t)(ROWS * ld)), loss[ROWS];
    char *d = malloc(4 * (size_t)(ROWS * ld));
    double *want = malloc(sizeof(double) * (size_t)n);
    int32_t target[ROWS] = { 0, (int32_t)(n - 1), -100, (int32_t)(n / 2), 0 };
    test_normal(x, ROWS * ld, 11, cases[c].std);
    for (int64_t i = 0; i < ROWS * ld; i++) x[i] += cases[c].shift;
    float *given = malloc(sizeof(float) * (size_t)(ROWS * ld));
    memcpy(given, x, sizeof(float) * (size_t)(ROWS * ld));

    struct tr_tensor X = tr_tensor_view(x, TR_F32, TR_DIMS(ROWS, n)), L = tr_tensor_view(loss, TR_F32, TR_DIMS(ROWS));
    struct tr_tensor D = tr_tensor_view(in_place ? (void *)x : (void *)d, dtype, TR_DIMS(ROWS, n));
    struct tr_tensor T = tr_tensor_view(target, TR_I32, TR_DIMS(ROWS));
    X.ld = D.ld = ld;
    const float scale = 0.37f;
    k->cross_entropy(&L, NULL, &X, &T, scale);
    float first[ROWS];
    memcpy(first, loss, sizeof loss);
    k->cross_entropy(&L, &D, &X, &T, scale);
    assert_memory_equal(first, loss, sizeof loss);
    for (int i = 0; i < ROWS; i++) {
        double l = target[i] < 0 ? 0 : row_loss(want, given + i * ld, n, target[i], scale);
        double slack = 1e-6 * (1 + fabs(l)) + 1.3e-7 * fabs(cases[c].shift);
        if (!(fabs(loss[i] - l) <= slack)) fail_msg("%s %s row %d: loss %g, want %g", k->name, cases[c].name, i, loss[i], l);
        for (int64_t v = 0; v < n; v++) {
            double w = target[i] < 0 ? 0 : want[v];
            double g = dtype == TR_F32 ? ((float *)D.data)[i * ld + v] : tr_bf16_to_f32(((uint16_t *)D.data)[i * ld + v]);
            /* relative, with the error of a log-sum of this size, and of rounding to bf16 */
            double rel = (dtype == TR_F32 ? 0 : 0x1p-8) + 3e-6 + 1.5e-7 * (fabs(cases[c].shift) + 10 * cases[c].std);
            if (!(fabs(g - w) <= rel * fabs(w) + 1e-7)) fail_msg("%s %s row %d col %d: %g, want %g", k->name, cases[c].name, i, (int)v, g, w);
        }
    }
    free(x);
    free(d);
    free(want);
    free(given);
}

static void test_values(void **state)
{
    for (int k = 0; k < variant_count(); k++)
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            for (int how = 0; how < 3; how++) check_case(&variants[k], (int)c, how == 2 ? TR_BF16 : TR_F32, how == 1);
}

/* A number that is not finite must show in the loss; minus infinity excludes a class. */
static void test_not_finite(void **state)
{
    enum { N = 100 };
    for (int k = 0; k < variant_count(); k++) {
        for (int where = 0; where < N; where += 33) {
            float x[N] = { 0 }, d[N], loss[1];
            int32_t target[1] = { 1 };
            struct tr_tensor X = tr_tensor_view(x, TR_F32, TR_DIMS(1, N)), L = tr_tensor_view(loss, TR_F32, TR_DIMS(1));
            struct tr_tensor D = tr_tensor_view(d, TR_F32, TR_DIMS(1, N)), T = tr_tensor_view(target, TR_I32, TR_DIMS(1));
            x[where] = NAN;
            variants[k].cross_entropy(&L, &D, &X, &T, 1);
            assert_true(isnan(loss[0]));
            assert_true(isnan(d[where]));
            x[where] = INFINITY;
            variants[k].cross_entropy(&L, &D, &X, &T, 1);
            assert_false(isfinite(loss[0]));
            x[where] = -INFINITY;
            variants[k].cross_entropy(&L, &D, &X, &T, 1);
            assert_true(fabsf(loss[0] - logf(N - 1)) < 1e-5f);
            assert_true(d[where] == 0);
        }
    }
}

static void test_threads(void **state)
{
    enum { R = 33, N = 5000 };
    static float x[R * N], loss[2][R];
    static uint16_t d[2][R * N];
    static int32_t target[R];
    test_normal(x, R * N, 3, 4);
    for (int i = 0; i < R; i++) target[i] = i % 7 ? i * 100 : -100;
    for (int k = 0; k < variant_count(); k++) {
        for (int threads = 1; threads <= 4; threads++) {
            int at = threads > 1;
            omp_set_num_threads(threads);
            struct tr_tensor X = tr_tensor_view(x, TR_F32, TR_DIMS(R, N)), L = tr_tensor_view(loss[at], TR_F32, TR_DIMS(R));
            struct tr_tensor D = tr_tensor_view(d[at], TR_BF16, TR_DIMS(R, N)), T = tr_tensor_view(target, TR_I32, TR_DIMS(R));
            variants[k].cross_entropy(&L, &D, &X, &T, 1);
            assert_memory_equal(loss[0], loss[at], sizeof loss[0]);
            assert_memory_equal(d[0], d[at], sizeof d[0]);
        }
    }
}

/* Columns in two parts, put together by the logarithms of their sums, are the whole. */
static void check_parts(const struct tr_kernels *k, enum tr_dtype dtype)
{
    enum { R = 5, N = 300, CUT = 133 };
    static float x[R * N], loss[R], lse[2][R], hit[2][R], share[R];
    static char whole[4 * R * N], d[4 * R * N];
    int32_t target[R] = { 0, N - 1, CUT - 1, CUT, 7 }, local[R];
    size_t size = tr_dtype_size(dtype);
    const float scale = 0.37f;
    test_normal(x, R * N, 5, 3);
    struct tr_tensor X = tr_tensor_view(x, TR_F32, TR_DIMS(R, N)), W = tr_tensor_view(whole, dtype, TR_DIMS(R, N)), D = tr_tensor_view(d, dtype, TR_DIMS(R, N));
    struct tr_tensor L = tr_tensor_view(loss, TR_F32, TR_DIMS(R)), T = tr_tensor_view(target, TR_I32, TR_DIMS(R)), S = tr_tensor_view(share, TR_F32, TR_DIMS(R));
    struct tr_tensor local_R = tr_tensor_view(local, TR_I32, TR_DIMS(R));
    k->cross_entropy(&L, &W, &X, &T, scale);
    for (int p = 0; p < 2; p++) {
        int64_t begin = p ? CUT : 0, n = p ? N - CUT : CUT;
        struct tr_tensor x_part = tr_cols_view(&X, begin, n), d_part = tr_cols_view(&D, begin, n);
        struct tr_tensor l = tr_tensor_view(lse[p], TR_F32, TR_DIMS(R)), h = tr_tensor_view(hit[p], TR_F32, TR_DIMS(R));
        for (int i = 0; i < R; i++) local[i] = target[i] >= begin && target[i] < begin + n ? (int32_t)(target[i] - begin) : -1;
        k->softmax(&d_part, &l, &h, &x_part, &local_R);
        for (int i = 0; i < R; i++) assert_true(hit[p][i] == (local[i] < 0 ? 0 : x[i * N + target[i]]));
    }
    for (int p = 0; p < 2; p++) {
        int64_t begin = p ? CUT : 0, n = p ? N - CUT : CUT;
        struct tr_tensor d_part = tr_cols_view(&D, begin, n);
        for (int i = 0; i < R; i++) {
            double total = log(exp((double)lse[0][i]) + exp((double)lse[1][i]));
            assert_true(fabs(total - (double)hit[0][i] - (double)hit[1][i] - (double)loss[i]) < 1e-5);
            share[i] = (float)exp((double)lse[p][i] - total);
            local[i] = target[i] >= begin && target[i] < begin + n ? (int32_t)(target[i] - begin) : -1;
        }
        k->softmax_gradient(&d_part, &S, &local_R, scale);
    }
    for (int64_t i = 0; i < R * N; i++) {
        double a = (double)(dtype == TR_F32 ? ((float *)(void *)d)[i] : tr_bf16_to_f32(((uint16_t *)(void *)d)[i]));
        double b = (double)(dtype == TR_F32 ? ((float *)(void *)whole)[i] : tr_bf16_to_f32(((uint16_t *)(void *)whole)[i]));
        if (!(fabs(a - b) <= (size == 4 ? 4e-6 : 0x1p-6) * fabs(b) + 1e-8)) fail_msg("%s: element %d is %g, not %g", k->name, (int)i, a, b);
    }
}

static void test_parts(void **state)
{
    static const char *const names[] = { "ref", "avx2", "avx512" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct tr_kernels *k = tr_kernels_named(names[i]);
        if (!k) continue;
        check_parts(k, TR_F32);
        check_parts(k, TR_BF16);
    }
}

int main(void)
{
    variants_open();
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_values), cmocka_unit_test(test_not_finite), cmocka_unit_test(test_threads),
                                         cmocka_unit_test(test_parts) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
