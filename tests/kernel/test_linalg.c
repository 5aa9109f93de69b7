/* Singular vectors: orthonormal, eigenvectors of the Gram matrix, in order, with their signs; also of poor matrices. */
#include "tests/support/support.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/linalg.h"
#include "train_config.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GAP = 3, LARGEST = 40 };

static struct tr_tensor matrix(float *data, int64_t m, int64_t n, int64_t rank, uint64_t seed)
{
    float a[LARGEST * LARGEST], b[LARGEST * LARGEST];
    test_normal(a, m * rank, seed, 1);
    test_normal(b, rank * n, seed + 1, 1);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n + GAP; j++) {
            double sum = j < n ? 0 : NAN;
            for (int64_t k = 0; j < n && k < rank; k++) sum += (double)a[i * rank + k] * (double)b[k * n + j] / (double)(1 + k);
            data[i * (n + GAP) + j] = (float)sum;
        }
    struct tr_tensor g = tr_tensor_view(data, TR_F32, TR_DIMS(m, n));
    g.ld = n + GAP;
    return g;
}

static double at(const struct tr_tensor *t, int64_t r, int64_t c) { return (double)((float *)t->data)[r * t->ld + c]; }
static double vector(const struct tr_tensor *p, bool right, int64_t i, int64_t c) { return right ? at(p, i, c) : at(p, c, i); }

static void assert_basis(const struct tr_tensor *p, const struct tr_tensor *g, bool right, int64_t r, int64_t true_rank)
{
    int64_t m = tr_rows(g), n = tr_cols(g), l = right ? n : m, o = right ? m : n;
    double before = INFINITY, first = 0;
    for (int64_t i = 0; i < r; i++) {
        for (int64_t k = 0; k <= i; k++) {
            double dot = 0;
            for (int64_t c = 0; c < l; c++) dot += vector(p, right, i, c) * vector(p, right, k, c);
            assert_true(fabs(dot - (i == k)) < 2e-6);
        }
        double image[LARGEST], value = 0, off = 0; /* G v, |G v| = sigma, G^T G v = sigma^2 v */
        for (int64_t a = 0; a < o; a++) {
            image[a] = 0;
            for (int64_t c = 0; c < l; c++) image[a] += (right ? at(g, a, c) : at(g, c, a)) * vector(p, right, i, c);
            value += image[a] * image[a];
        }
        if (i == 0) first = value;
        for (int64_t c = 0; c < l; c++) {
            double y = 0;
            for (int64_t a = 0; a < o; a++) y += (right ? at(g, a, c) : at(g, c, a)) * image[a];
            off = fmax(off, fabs(y - value * vector(p, right, i, c)));
        }
        assert_true(off <= 1e-5 * first);
        if (i < true_rank) assert_true(value <= before * (1 + 1e-5));
        else assert_true(value <= 1e-9 * first);
        before = value;
    }
}

static void vectors(void **state)
{
    static const int64_t sizes[][4] = { { 20, 13, 5, 13 }, { 13, 20, 5, 13 }, { 16, 16, 16, 16 }, { 30, 9, 9, 9 }, { 9, 30, 1, 9 }, { 40, 12, 8, 4 }, { 12, 40, 8, 4 }, { 1, 7, 1, 1 } };
    float data[LARGEST * (LARGEST + GAP)], x[LARGEST * LARGEST], y[LARGEST * LARGEST];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int right = 0; right < 2; right++) {
            int64_t m = sizes[s][0], n = sizes[s][1], r = sizes[s][2];
            struct tr_tensor g = matrix(data, m, n, sizes[s][3], s), p, q;
            p = tr_tensor_view(x, TR_F32, TR_DIMS(right ? r : m, right ? n : r));
            q = tr_tensor_view(y, TR_F32, TR_DIMS(right ? r : m, right ? n : r));
            assert_ok(tr_singular_vectors(&p, &g, right, NULL));
            assert_basis(&p, &g, right, r, sizes[s][3]);
            /* Signs follow the old basis: from its negative comes its negative. */
            float old[LARGEST * LARGEST];
            for (int64_t i = 0; i < tr_count(&p); i++) old[i] = -x[i];
            struct tr_tensor o = tr_tensor_view(old, TR_F32, 2, p.dim);
            assert_ok(tr_singular_vectors(&q, &g, right, &o));
            assert_memory_equal(y, old, (size_t)tr_count(&p) * 4);
            /* A factor changes nothing. */
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) data[i * g.ld + j] *= 4;
            assert_ok(tr_singular_vectors(&q, &g, right, NULL));
            for (int64_t i = 0; i < r && i < sizes[s][3]; i++)
                for (int64_t c = 0; c < (right ? n : m); c++) assert_true(fabs(vector(&p, right, i, c) - vector(&q, right, i, c)) < 1e-5);
        }
}

/* The randomised range finder: the exact one's vectors where the singular values fall after the R-th, a basis in any case. */
static void random_range(void **state)
{
    static const int64_t sizes[][4] = { { 40, 30, 6, 6 }, { 30, 40, 6, 6 }, { 40, 12, 8, 4 }, { 12, 40, 8, 4 }, { 16, 16, 16, 16 }, { 9, 30, 1, 1 }, { 1, 7, 1, 1 } };
    float data[LARGEST * (LARGEST + GAP)], tail[LARGEST * (LARGEST + GAP)], x[LARGEST * LARGEST], y[LARGEST * LARGEST];
    struct tr_key key = tr_key(3, TR_RNG_PROJECTION, 1, 0);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int right = 0; right < 2; right++) {
            int64_t m = sizes[s][0], n = sizes[s][1], r = sizes[s][2], l = right ? n : m;
            struct tr_tensor g = matrix(data, m, n, sizes[s][3], 20 + s), p, q;
            matrix(tail, m, n, m < n ? m : n, 40 + s);
            for (int64_t i = 0; i < m * (n + GAP) && sizes[s][3] == r; i++) data[i] += 1e-3f * tail[i];
            p = tr_tensor_view(x, TR_F32, TR_DIMS(right ? r : m, right ? n : r));
            q = tr_tensor_view(y, TR_F32, TR_DIMS(right ? r : m, right ? n : r));
            assert_ok(tr_singular_vectors(&p, &g, right, NULL));
            assert_ok(tr_random_range(&q, &g, right, NULL, key));
            assert_basis(&q, &g, right, r, sizes[s][3]);
            double off = 0; /* of the spaces: P P^T - Q Q^T */
            for (int64_t a = 0; a < l && sizes[s][3] == r; a++)
                for (int64_t b = 0; b < l; b++) {
                    double d = 0;
                    for (int64_t i = 0; i < r; i++) d += vector(&p, right, i, a) * vector(&p, right, i, b) - vector(&q, right, i, a) * vector(&q, right, i, b);
                    off = fmax(off, fabs(d));
                }
            assert_true(off < 1e-5);
            /* The same draws, the same bits; from its negative comes its negative. */
            float old[LARGEST * LARGEST];
            for (int64_t i = 0; i < tr_count(&q); i++) old[i] = -y[i];
            struct tr_tensor o = tr_tensor_view(old, TR_F32, 2, q.dim);
            assert_ok(tr_random_range(&p, &g, right, &o, key));
            assert_memory_equal(x, old, (size_t)tr_count(&p) * 4);
        }
}

static void nothing_to_decompose(void **state)
{
    float data[6 * 5] = { 0 }, x[10], old[10];
    struct tr_tensor g = tr_tensor_view(data, TR_F32, TR_DIMS(6, 5)), p = tr_tensor_view(x, TR_F32, TR_DIMS(2, 5)), o = tr_tensor_view(old, TR_F32, TR_DIMS(2, 5));
    for (int i = 0; i < 10; i++) old[i] = (float)i;
    for (int bad = 0; bad < 2; bad++) {
        assert_ok(tr_singular_vectors(&p, &g, true, NULL));
        for (int i = 0; i < 10; i++) assert_true(x[i] == (float)(i % 5 == i / 5));
        assert_ok(tr_singular_vectors(&p, &g, true, &o));
        assert_memory_equal(x, old, sizeof x);
        assert_ok(tr_random_range(&p, &g, true, NULL, (struct tr_key){ { 1, 2 } }));
        for (int i = 0; i < 10; i++) assert_true(x[i] == (float)(i % 5 == i / 5));
        assert_ok(tr_random_range(&p, &g, true, &o, (struct tr_key){ { 1, 2 } }));
        assert_memory_equal(x, old, sizeof x);
        data[7] = NAN;
    }
}

/* OpenBLAS's number of threads is not ours: a call of LAPACK or BLAS leaves what was set, and its bits do not depend on it. */
static void threads_stay(void **state)
{
    int before = tr_threads();
    float data[LARGEST * (LARGEST + GAP)], x[2][LARGEST * LARGEST];
    struct tr_tensor g = matrix(data, 40, 30, 30, 1);
    for (int t = 0; t < 2; t++) {
        struct tr_tensor p = tr_tensor_view(x[t], TR_F32, TR_DIMS(10, 30));
        tr_set_threads(t ? 3 : 1);
        tr_set_threads(0);
        assert_int_equal(tr_threads(), t ? 3 : 1);
        assert_ok(tr_singular_vectors(&p, &g, true, NULL));
        assert_int_equal(tr_threads(), t ? 3 : 1);
        int inside = tr_blas_begin();
        assert_int_equal(inside, t ? 3 : 1);
        assert_int_equal(tr_threads(), 1);
        tr_blas_end(inside);
        assert_int_equal(tr_threads(), t ? 3 : 1);
    }
    assert_memory_equal(x[0], x[1], 10 * 30 * sizeof(float));
    tr_set_threads(before);
}

int main(int argc, char **argv)
{
#if HAVE_BLAS
    const struct CMUnitTest tests[] = { cmocka_unit_test(vectors), cmocka_unit_test(random_range), cmocka_unit_test(nothing_to_decompose), cmocka_unit_test(threads_stay) };
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    return 77; /* this build has no LAPACK */
#endif
}
