/* Standard normals: the formula against libm, many at once against one by one, and what their moments say. */
#include "tests/support/support.h"
#include "libtrain/base/rng.h"
#include <math.h>
#include <string.h>

static const struct tr_key key = { { 0x1234567, 0x89abcdef } };

static void box_and_muller(void **state)
{
    for (uint64_t i = 0; i < 20000; i++) {
        uint32_t w[4];
        uint64_t index = i < 10000 ? i : UINT64_C(0xffffffff00) + i; /* over the counter's first word too */
        tr_philox(w, key, index / 2);
        uint64_t hi = (((uint64_t)w[0] << 32) | w[1]) >> 11, lo = (((uint64_t)w[2] << 32) | w[3]) >> 11;
        double radius = sqrt(-2.0 * log(((double)hi + 0.5) * 0x1p-53)), angle = 6.283185307179586 * ((double)lo * 0x1p-53);
        double want = radius * (index % 2 ? sin(angle) : cos(angle)), is = tr_normal(key, index);
        if (!(fabs(is - want) <= 1e-14)) fail_msg("number %llu: %.17g, not %.17g", (unsigned long long)index, is, want);
    }
}

static void many_are_the_same_as_one_by_one(void **state)
{
    float out[70];
    for (uint64_t first = 0; first < 5; first++)
        for (int64_t n = 0; n < 68; n++) {
            for (int i = 0; i < 70; i++) out[i] = 77;
            tr_normals(out, key, first, n, 0.3);
            for (int64_t i = 0; i < n; i++) {
                float want = (float)(0.3 * tr_normal(key, first + (uint64_t)i));
                assert_memory_equal(&out[i], &want, 4);
            }
            assert_true(out[n] == 77);
        }
}

static void moments(void **state)
{
    enum { N = 400000 };
    static float x[N];
    double m1 = 0, m2 = 0, m4 = 0, lag = 0;
    tr_normals(x, key, 0, N, 1);
    for (int i = 0; i < N; i++) {
        double v = x[i];
        m1 += v / N;
        m2 += v * v / N;
        m4 += v * v * v * v / N;
        lag += i ? v * x[i - 1] / N : 0;
    }
    double sigma = 1 / sqrt(N); /* five standard errors of each */
    assert_true(fabs(m1) < 5 * sigma);
    assert_true(fabs(m2 - 1) < 5 * sigma * sqrt(2));
    assert_true(fabs(m4 - 3) < 5 * sigma * sqrt(96));
    assert_true(fabs(lag) < 5 * sigma);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(box_and_muller), cmocka_unit_test(many_are_the_same_as_one_by_one), cmocka_unit_test(moments) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
