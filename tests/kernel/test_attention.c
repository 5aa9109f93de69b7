#include "tests/support/support.h"
#include "tests/kernel/variants.h"
#include "libtrain/base/rng.h"
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_SEQS = 300 };
#ifdef TEST_CUDA   /* emulated, a thread of a block costs more than a loop of the CPU */
enum { DEVICE = 1 };
#else
enum { DEVICE = 0 };
#endif

/* How tokens see each other inside a sequence: all before them, the last `window`, or their document of that length. */
enum mask { CAUSAL, WINDOW, DOCUMENTS };

struct shape { int64_t heads, kv, dim, seq[MAX_SEQS]; enum mask mask; int64_t span; float std; };

struct problem {
    struct shape p;
    enum tr_dtype dtype;
    int64_t n, q_cols, o_cols;
    int64_t bounds[MAX_SEQS + 1];
    int32_t *start, *pos;
    float *qkv, *g;                       /* as the dtype holds them */
    double *o, *lse, *dqkv;               /* in double */
    struct tr_layout layout;
    struct tr_attention a;
};

static void set_layout(struct problem *b)
{
    int n_seqs = 0;
    for (; n_seqs < MAX_SEQS && b->p.seq[n_seqs]; n_seqs++) b->bounds[n_seqs + 1] = b->bounds[n_seqs] + b->p.seq[n_seqs];
    b->n = b->bounds[n_seqs];
    b->start = calloc((size_t)b->n, 4);
    b->pos = calloc((size_t)b->n, 4);
    for (int s = 0; s < n_seqs; s++) {
        for (int64_t i = b->bounds[s]; i < b->bounds[s + 1]; i++) {
            int64_t at = i - b->bounds[s], first = 0;
            if (b->p.mask == WINDOW && at >= b->p.span) first = at - b->p.span + 1;
            if (b->p.mask == DOCUMENTS) first = at / b->p.span * b->p.span;
            b->start[i] = (int32_t)(b->bounds[s] + first);
        }
    }
    b->layout = (struct tr_layout){ .n_tokens = b->n, .n_seqs = n_seqs, .seq = b->bounds,
        .start_N = tr_tensor_view(b->start, TR_I32, TR_DIMS(b->n)), .pos_N = tr_tensor_view(b->pos, TR_I32, TR_DIMS(b->n)) };
}

static void numbers(float *x, int64_t n, uint64_t seed, float std, enum tr_dtype dtype)
{
    test_normal(x, n, seed, std);
    for (int64_t i = 0; dtype == TR_BF16 && i < n; i++) x[i] = tr_bf16_to_f32(tr_f32_to_bf16(x[i]));
}

/* Forward and backward of one head of one query, in double, all keys at once. */
static void solve_query(struct problem *b, int64_t i, int64_t h)
{
    int64_t dim = b->p.dim, group = b->p.heads / b->p.kv, kc = (b->p.heads + h / group) * dim, vc = kc + b->p.kv * dim;
    int64_t first = b->start[i], n = i + 1 - first;
    double *s = malloc(sizeof *s * (size_t)n), *dp = malloc(sizeof *dp * (size_t)n), max = -INFINITY, sum = 0, delta = 0;
    const float *q = b->qkv + i * b->q_cols + h * dim, *g = b->g + i * b->o_cols + h * dim;
    double *o = b->o + i * b->o_cols + h * dim;
    for (int64_t j = 0; j < n; j++) {
        const float *k = b->qkv + (first + j) * b->q_cols + kc, *v = b->qkv + (first + j) * b->q_cols + vc;
        s[j] = dp[j] = 0;
        for (int64_t d = 0; d < dim; d++) s[j] += (double)q[d] * k[d], dp[j] += (double)g[d] * v[d];
        s[j] *= b->a.scale;
        max = fmax(max, s[j]);
    }
    for (int64_t j = 0; j < n; j++) sum += s[j] = exp(s[j] - max);
    for (int64_t j = 0; j < n; j++) {
        s[j] /= sum;
        delta += s[j] * dp[j];
        for (int64_t d = 0; d < dim; d++) o[d] += s[j] * b->qkv[(first + j) * b->q_cols + vc + d];
    }
    b->lse[i * b->p.heads + h] = max + log(sum);
    for (int64_t j = 0; j < n; j++) {
        double ds = b->a.scale * s[j] * (dp[j] - delta);
        double *to = b->dqkv + (first + j) * b->q_cols;
        for (int64_t d = 0; d < dim; d++) {
            b->dqkv[i * b->q_cols + h * dim + d] += ds * b->qkv[(first + j) * b->q_cols + kc + d];
            to[kc + d] += ds * q[d];
            to[vc + d] += s[j] * g[d];
        }
    }
    free(s);
    free(dp);
}

static void problem_init(struct problem *b, struct shape p, enum tr_dtype dtype)
{
    *b = (struct problem){ .p = p, .dtype = dtype, .q_cols = (p.heads + 2 * p.kv) * p.dim, .o_cols = p.heads * p.dim };
    b->a = (struct tr_attention){ p.heads, p.kv, p.dim, 1 / sqrtf((float)p.dim) };
    set_layout(b);
    b->qkv = calloc((size_t)(b->n * b->q_cols), 4);
    b->g = calloc((size_t)(b->n * b->o_cols), 4);
    b->o = calloc((size_t)(b->n * b->o_cols), 8);
    b->lse = calloc((size_t)(b->n * p.heads), 8);
    b->dqkv = calloc((size_t)(b->n * b->q_cols), 8);
    numbers(b->qkv, b->n * b->q_cols, 1, p.std, dtype);
    numbers(b->g, b->n * b->o_cols, 2, 1, dtype);
    for (int64_t i = 0; i < b->n; i++)
        for (int64_t h = 0; h < p.heads; h++) solve_query(b, i, h);
}

static void problem_release(struct problem *b)
{
    free(b->start);
    free(b->pos);
    free(b->qkv);
    free(b->g);
    free(b->o);
    free(b->lse);
    free(b->dqkv);
}

/* What a variant gives, in f32. */
struct result { float *o, *lse, *dqkv; };

static void *rows_of(struct tr_tensor *t, enum tr_dtype dtype, int64_t rows, int64_t cols, const float *x)
{
    size_t bytes = (size_t)(rows * (cols + 8)) * tr_dtype_size(dtype);
    void *data = malloc(bytes);
    memset(data, 0xff, bytes);    /* NaN wherever nothing is written */
    *t = tr_tensor_view(data, dtype, TR_DIMS(rows, cols));
    t->ld = cols + 8;
    for (int64_t i = 0; x && i < rows * cols; i++) {
        int64_t at = i / cols * t->ld + i % cols;
        if (dtype == TR_F32) ((float *)data)[at] = x[i];
        else ((uint16_t *)data)[at] = tr_f32_to_bf16(x[i]);
    }
    return data;
}

static float *floats_of(struct tr_tensor *t)
{
    int64_t rows = tr_rows(t), cols = tr_cols(t);
    float *x = malloc(sizeof *x * (size_t)(rows * cols));
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t at = i / cols * t->ld + i % cols;
        x[i] = t->dtype == TR_F32 ? ((float *)t->data)[at] : tr_bf16_to_f32(((uint16_t *)t->data)[at]);
    }
    free(t->data);
    return x;
}

static struct result run(const struct variant *k, const struct problem *b)
{
    struct tr_tensor qkv, g, o, lse, dqkv, work;
    rows_of(&qkv, b->dtype, b->n, b->q_cols, b->qkv);
    rows_of(&g, b->dtype, b->n, b->o_cols, b->g);
    rows_of(&o, b->dtype, b->n, b->o_cols, NULL);
    rows_of(&lse, TR_F32, b->n, b->p.heads, NULL);
    rows_of(&dqkv, b->dtype, b->n, b->q_cols, NULL);
    k->attention(&o, &lse, &qkv, &b->layout, &b->a);
    size_t bytes = k->work(&b->layout, &b->a, b->dtype, true);
    void *w = malloc(bytes ? bytes : 1);
    memset(w, 0xff, bytes);
    work = tr_tensor_view(w, TR_U8, TR_DIMS((int64_t)bytes));
    k->backward(&dqkv, &g, &o, &lse, &qkv, &b->layout, &b->a, &work);
    free(w);
    free(qkv.data);
    free(g.data);
    return (struct result){ floats_of(&o), floats_of(&lse), floats_of(&dqkv) };
}

static void result_free(struct result *r)
{
    free(r->o);
    free(r->lse);
    free(r->dqkv);
}

/* Largest error against the largest value of the array (a column range of it), or against the size of what cancels. */
static void check(const char *name, const char *what, const struct problem *b, const float *got, const double *want, int64_t cols,
                  int64_t from, int64_t to, double limit)
{
    double worst = 0, size = 0;
    for (int64_t i = 0; i < b->n; i++) {
        for (int64_t c = from; c < to; c++) {
            double e = fabs(got[i * cols + c] - want[i * cols + c]);
            worst = isnan(e) ? INFINITY : fmax(worst, e);
            size = fmax(size, fabs(want[i * cols + c]));
        }
    }
    if (getenv("SHOW_ERRORS")) printf("%s %s %d: %.2e of %.2e\n", name, what, b->dtype == TR_BF16 ? 16 : 32, worst / (size + 1), size);
    if (!(worst <= limit * (size + 1)))
        fail_msg("%s %s: error %g of %g (heads %d/%d of %d, %d tokens, mask %d)", name, what, worst, size, (int)b->p.heads,
                 (int)b->p.kv, (int)b->p.dim, (int)b->n, b->p.mask);
}

static void check_shape(struct shape p, enum tr_dtype dtype)
{
    struct problem b;
    problem_init(&b, p, dtype);
    int64_t q = p.heads * p.dim, kv = p.kv * p.dim;
    double limit = dtype == TR_BF16 ? 1.2e-2 : 4e-6;
    for (int k = 0; k < variant_count(); k++) {
        struct result r = run(&variants[k], &b);
        check(variants[k].name, "o", &b, r.o, b.o, b.o_cols, 0, b.o_cols, limit);
        check(variants[k].name, "lse", &b, r.lse, b.lse, p.heads, 0, p.heads, 4e-6);
        check(variants[k].name, "dq", &b, r.dqkv, b.dqkv, b.q_cols, 0, q, limit);
        check(variants[k].name, "dk", &b, r.dqkv, b.dqkv, b.q_cols, q, q + kv, limit);
        check(variants[k].name, "dv", &b, r.dqkv, b.dqkv, b.q_cols, q + kv, q + 2 * kv, limit);
        result_free(&r);
    }
    problem_release(&b);
}

static void test_lengths(void **state)
{
    const int64_t lengths[] = { 1, 7, 31, 32, 33, 63, 65, 129, 200 };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i += test_sanitized() ? 2 : 1)
        for (int d = 0; d < 2; d++)
            check_shape((struct shape){ .heads = 3, .kv = 1, .dim = 64, .seq = { lengths[i] }, .std = 1 }, d ? TR_BF16 : TR_F32);
}

static void test_heads(void **state)
{
    const int64_t cases[][3] = { { 2, 2, 64 }, { 6, 2, 64 }, { 4, 1, 128 }, { 8, 1, 16 }, { 7, 1, 32 }, { 3, 3, 80 }, { 2, 1, 96 },
                                 { 2, 1, 24 }, { 2, 2, 256 }, { 5, 1, 20 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i += test_sanitized() ? 2 : 1)
        for (int d = 0; d < 2; d++)
            check_shape((struct shape){ .heads = cases[i][0], .kv = cases[i][1], .dim = cases[i][2], .seq = { 70, 45 }, .std = 1 },
                        d ? TR_BF16 : TR_F32);
    check_shape((struct shape){ .heads = 2, .kv = 1, .dim = 272, .seq = { 20 }, .std = 1 }, TR_F32);    /* plain C takes it */
}

static void test_masks(void **state)
{
    for (int d = 0; d < 2; d++) {
        enum tr_dtype t = d ? TR_BF16 : TR_F32;
        check_shape((struct shape){ .heads = 3, .kv = 1, .dim = 64, .seq = { 200, 1, 130 }, .mask = WINDOW, .span = 5, .std = 1 }, t);
        check_shape((struct shape){ .heads = 3, .kv = 1, .dim = 64, .seq = { 300 }, .mask = WINDOW, .span = 100, .std = 1 }, t);
        check_shape((struct shape){ .heads = 2, .kv = 2, .dim = 32, .seq = { 200, 90 }, .mask = DOCUMENTS, .span = 37, .std = 1 }, t);
        check_shape((struct shape){ .heads = 4, .kv = 2, .dim = 64, .seq = { 100, 100, 100 }, .mask = DOCUMENTS, .span = 1, .std = 1 }, t);
    }
}

/* Hundreds of short sequences. */
static void test_many(void **state)
{
    struct shape p = { .heads = 2, .kv = 1, .dim = 64, .std = 1 };
    for (int s = 0; s < (DEVICE || test_sanitized() ? 60 : MAX_SEQS); s++) p.seq[s] = 1 + s % 3;
    check_shape(p, TR_F32);
    check_shape(p, TR_BF16);
}

/* Long enough to be cut into ranges of queries. */
static void test_ranges(void **state)
{
    check_shape((struct shape){ .heads = 3, .kv = 1, .dim = 16, .seq = { DEVICE ? 300 : 1100, 30 }, .std = 1 }, TR_F32);
    check_shape((struct shape){ .heads = 2, .kv = 2, .dim = 16, .seq = { 20, DEVICE ? 300 : 1300 }, .mask = WINDOW, .span = 200, .std = 1 }, TR_BF16);
}

/* Scores of hundreds: one key takes all, and nothing overflows. */
static void test_extremes(void **state)
{
    for (int k = 0; k < variant_count(); k++) {
        for (int d = 0; d < 2; d++) {
            struct problem b;
            problem_init(&b, (struct shape){ .heads = 3, .kv = 1, .dim = 64, .seq = { 150 }, .std = 12 }, d ? TR_BF16 : TR_F32);
            struct result r = run(&variants[k], &b);
            check(variants[k].name, "o", &b, r.o, b.o, b.o_cols, 0, b.o_cols, d ? 1e-2 : 1e-4);
            check(variants[k].name, "lse", &b, r.lse, b.lse, 3, 0, 3, 1e-5);
            for (int64_t i = 0; i < b.n * b.q_cols; i++) assert_true(isfinite(r.dqkv[i]));
            result_free(&r);
            b.qkv[20 * b.q_cols] = NAN;    /* a query of token 20: nobody else sees it */
            r = run(&variants[k], &b);
            assert_true(isnan(r.o[20 * b.o_cols]));
            assert_true(isfinite(r.o[19 * b.o_cols]) && isfinite(r.o[21 * b.o_cols]));
            result_free(&r);
            problem_release(&b);
        }
    }
}

static void test_threads(void **state)
{
    if (DEVICE) skip(); /* it has none of these threads */
    const struct shape shapes[] = { { .heads = 6, .kv = 2, .dim = 64, .seq = { 200, 65, 7 }, .std = 1 },
                                    { .heads = 3, .kv = 1, .dim = 32, .seq = { 1200 }, .std = 1 } };
    for (size_t i = 0; i < (test_sanitized() ? 1 : 2); i++) {
        for (int d = 0; d < 2; d++) {
            struct problem b;
            problem_init(&b, shapes[i], d ? TR_BF16 : TR_F32);
            for (int k = 0; k < variant_count(); k++) {
                omp_set_num_threads(1);
                struct result one = run(&variants[k], &b);
                for (int threads = 2; threads <= 4; threads++) {
                    omp_set_num_threads(threads);
                    struct result r = run(&variants[k], &b);
                    assert_memory_equal(one.o, r.o, (size_t)(b.n * b.o_cols) * 4);
                    assert_memory_equal(one.lse, r.lse, (size_t)(b.n * b.p.heads) * 4);
                    assert_memory_equal(one.dqkv, r.dqkv, (size_t)(b.n * b.q_cols) * 4);
                    result_free(&r);
                }
                result_free(&one);
            }
            problem_release(&b);
        }
    }
}

/* A sequence computed alone has the bits it has in a batch. */
static void test_batch(void **state)
{
    for (int k = 0; k < variant_count(); k++) {
        for (int d = 0; d < 2; d++) {
            struct problem both, one;
            problem_init(&both, (struct shape){ .heads = 3, .kv = 1, .dim = 64, .seq = { 77, 150 }, .std = 1 }, d ? TR_BF16 : TR_F32);
            problem_init(&one, (struct shape){ .heads = 3, .kv = 1, .dim = 64, .seq = { 150 }, .std = 1 }, d ? TR_BF16 : TR_F32);
            memcpy(one.qkv, both.qkv + 77 * both.q_cols, (size_t)(150 * both.q_cols) * 4);
            memcpy(one.g, both.g + 77 * both.o_cols, (size_t)(150 * both.o_cols) * 4);
            struct result r = run(&variants[k], &both), s = run(&variants[k], &one);
            assert_memory_equal(r.o + 77 * both.o_cols, s.o, (size_t)(150 * one.o_cols) * 4);
            assert_memory_equal(r.dqkv + 77 * both.q_cols, s.dqkv, (size_t)(150 * one.q_cols) * 4);
            result_free(&r);
            result_free(&s);
            problem_release(&both);
            problem_release(&one);
        }
    }
}

/* So many rows that a device takes taller tiles: a sequence still has the bits it has alone. */
static void test_tall(void **state)
{
    if (!DEVICE || test_sanitized()) skip(); /* half a minute there; the same kernels are in the other tests */
    enum { SEQS = 8, T = 128, H = 64, K = 8, D = 64, Q = (H + 2 * K) * D };
    struct shape p = { .heads = H, .kv = K, .dim = D };
    struct problem all = { .p = p }, one = { .p = p };
    for (int s = 0; s < SEQS; s++) all.p.seq[s] = T;
    one.p.seq[0] = T;
    all.a = one.a = (struct tr_attention){ H, K, D, 0.125f };
    set_layout(&all);
    set_layout(&one);
    float *x = malloc(sizeof *x * SEQS * T * Q);
    numbers(x, SEQS * T * Q, 7, 1, TR_BF16);
    for (int k = 0; k < variant_count(); k++) {
        struct tr_tensor qkv, o[2], lse[2];
        rows_of(&qkv, TR_BF16, SEQS * T, Q, x);
        rows_of(&o[0], TR_BF16, SEQS * T, H * D, NULL);
        rows_of(&lse[0], TR_F32, SEQS * T, H, NULL);
        rows_of(&o[1], TR_BF16, T, H * D, NULL);
        rows_of(&lse[1], TR_F32, T, H, NULL);
        variants[k].attention(&o[0], &lse[0], &qkv, &all.layout, &all.a);
        struct tr_tensor last = tr_rows_view(&qkv, (SEQS - 1) * T, T);
        variants[k].attention(&o[1], &lse[1], &last, &one.layout, &one.a);
        free(qkv.data);
        float *a = floats_of(&o[0]), *b = floats_of(&o[1]), *la = floats_of(&lse[0]), *lb = floats_of(&lse[1]);
        assert_memory_equal(a + (SEQS - 1) * T * H * D, b, sizeof *b * T * H * D);
        assert_memory_equal(la + (SEQS - 1) * T * H, lb, sizeof *lb * T * H);
        free(a), free(b), free(la), free(lb);
    }
    free(x);
    problem_release(&all);
    problem_release(&one);
}

/* Decoding gives the last row of the forward pass. */
static void test_cached(void **state)
{
    const struct { int64_t heads, kv, dim, n, first; } cases[] = { { 9, 3, 64, 1, 0 }, { 9, 3, 64, 40, 7 }, { 8, 8, 32, 200, 0 },
        { 6, 6, 64, 1500, 0 }, { 4, 1, 128, 300, 299 }, { 3, 1, 20, 50, 0 }, { 32, 1, 16, 60, 0 } };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (int d = 0; d < 2; d++) {
            enum tr_dtype dtype = d ? TR_BF16 : TR_F32;
            struct problem b = { .p = { .heads = cases[c].heads, .kv = cases[c].kv, .dim = cases[c].dim, .seq = { cases[c].n }, .std = 1 }, .dtype = dtype };
            b.q_cols = (b.p.heads + 2 * b.p.kv) * b.p.dim, b.o_cols = b.p.heads * b.p.dim;
            b.a = (struct tr_attention){ b.p.heads, b.p.kv, b.p.dim, 0.2f };
            set_layout(&b);
            b.start[b.n - 1] = (int32_t)cases[c].first;
            b.qkv = calloc((size_t)(b.n * b.q_cols), 4);
            b.g = calloc((size_t)(b.n * b.o_cols), 4);
            b.o = calloc((size_t)(b.n * b.o_cols), 8);
            b.lse = calloc((size_t)(b.n * b.p.heads), 8);
            b.dqkv = calloc((size_t)(b.n * b.q_cols), 8);
            numbers(b.qkv, b.n * b.q_cols, 5, 1, dtype);
            for (int64_t h = 0; h < b.p.heads; h++) solve_query(&b, b.n - 1, h);
            struct tr_tensor qkv, o;
            rows_of(&qkv, dtype, b.n, b.q_cols, b.qkv);
            struct tr_tensor q = tr_rows_view(&qkv, b.n - 1, 1), k = tr_cols_view(&qkv, b.o_cols, b.p.kv * b.p.dim);
            struct tr_tensor v = tr_cols_view(&qkv, b.o_cols + b.p.kv * b.p.dim, b.p.kv * b.p.dim);
            for (int t = 0; t < variant_count(); t++) {
                float *one = NULL;
                for (int threads = 1; threads <= 3; threads++) {
                    omp_set_num_threads(threads);
                    rows_of(&o, dtype, 1, b.o_cols, NULL);
                    variants[t].cached(&o, &q, &k, &v, cases[c].first, b.n, &b.a);
                    float *got = floats_of(&o);
                    for (int64_t i = 0; i < b.o_cols; i++) {
                        double want = b.o[(b.n - 1) * b.o_cols + i];
                        if (!(fabs(got[i] - want) <= (d ? 1e-2 : 1e-5))) fail_msg("%s case %d: %g, want %g", variants[t].name, (int)c, got[i], want);
                    }
                    if (one) assert_memory_equal(one, got, (size_t)b.o_cols * 4);
                    free(one);
                    one = got;
                }
                free(one);
            }
            free(qkv.data);
            problem_release(&b);
        }
    }
}

int main(void)
{
    variants_open();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths), cmocka_unit_test(test_heads), cmocka_unit_test(test_masks), cmocka_unit_test(test_many), cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_extremes), cmocka_unit_test(test_threads), cmocka_unit_test(test_batch), cmocka_unit_test(test_tall), cmocka_unit_test(test_cached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
