/* Gradients of every op against central differences in f32: a fixed random functional of the op's output is the loss. */
#include "tests/support/support.h"
#include "libtrain/autograd/ops.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 6, C = 8, O = 10, H = 2, K = 1, D = 4, V = 11, I = 5 };

/* A case builds its graph from one input value x and up to two weights. */
struct fixture {
    struct tr_tape *tape;
    struct tr_tensor x;               /* host tensor of the input */
    struct tr_weight w[3];
    struct tr_param p[3];
    struct tr_tensor ids, start, pos, cs;
    struct tr_layout layout;
    int64_t seq[3];
    struct tr_attention att;
    float grad[3][512];               /* gradients that the sink received */
    int got;
};

static int32_t ids_data[N] = { 3, 0, 3, 10, 7, 3 }, start_data[N] = { 0, 0, 1, 3, 3, 4 }, pos_data[N] = { 0, 1, 0, 0, 1, 0 };

static int take(void *self, struct tr_param *p, struct tr_tensor *grad)
{
    struct fixture *f = self;
    tr_tensor_read(grad, f->grad[p->index]);
    f->got++;
    return TR_OK;
}

static void weight(struct fixture *f, int i, int64_t rows, int64_t cols)
{
    float host[512];
    struct tr_weight *w = &f->w[i];
    if (cols) assert_ok(tr_tensor_new(&w->value, TR_WEIGHTS, TR_F32, TR_DIMS(rows, cols)));
    else assert_ok(tr_tensor_new(&w->value, TR_WEIGHTS, TR_F32, TR_DIMS(rows)));
    test_normal(host, tr_count(&w->value), 100 + (uint64_t)i, 0.5f);
    tr_tensor_write(&w->value, host);
    f->p[i] = (struct tr_param){ .index = i, .value = w->value };
    f->p[i].value.owner = 0;
    w->param[0] = &f->p[i];
    w->n = 1;
}

typedef int (*graph)(struct fixture *f, struct tr_value *x, struct tr_value **y);

/* The input as a value that gradients flow to: an embedding of all rows of a weight, so that its gradient is the
 * weight's. Slot 2 of the fixture is the input. */
static int input(struct fixture *f, struct tr_value **x)
{
    static int32_t every[N] = { 0, 1, 2, 3, 4, 5 };
    static struct tr_tensor rows;
    rows = tr_tensor_view(every, TR_I32, TR_DIMS(N));
    return tr_embedding(f->tape, x, TR_F32, &f->w[2], &rows);
}

/* Runs the graph; loss = sum of y times fixed random numbers. record: gradients go to the fixture. */
static double run(struct fixture *f, graph g, bool record, enum tr_recompute policy)
{
    struct tr_value *x, *y;
    tr_tape_begin(f->tape, record, policy);
    assert_ok(input(f, &x));
    assert_ok(g(f, x, &y));
    int64_t n = tr_count(&y->t);
    float *host = malloc((size_t)n * sizeof *host), *c = malloc((size_t)n * sizeof *c);
    tr_tensor_read(&y->t, host);
    test_normal(c, n, 77, 1);
    double loss = 0;
    for (int64_t i = 0; i < n; i++) loss += (double)host[i] * (double)c[i];
    if (record) {
        struct tr_tensor *dy;
        bool acc;
        struct tr_sink sink = { f, take };
        assert_ok(tr_grad_into(y, &dy, &acc));
        tr_tensor_write(dy, c);
        f->got = 0;
        tr_drop(f->tape, y);
        assert_ok(tr_backward(f->tape, &sink, false));
    } else tr_tape_clear(f->tape);
    free(host);
    free(c);
    return loss;
}

static void compare(struct fixture *f, const char *name, graph g)
{
    run(f, g, true, TR_KEEP);
    static float kept[3][512];
    memcpy(kept, f->grad, sizeof kept);
    run(f, g, true, TR_SELECTIVE); /* rebuilt activations give the same bits */
    assert_memory_equal(kept, f->grad, sizeof kept);
    for (int i = 0; i < 3; i++) {
        if (!f->w[i].n) continue;
        int64_t n = tr_count(&f->w[i].value);
        float host[512];
        tr_tensor_read(&f->w[i].value, host);
        for (int64_t k = 0; k < n; k++) {
            float old = host[k], h = 1e-2f;
            double plus, minus;
            host[k] = old + h;
            tr_tensor_write(&f->w[i].value, host);
            plus = run(f, g, false, TR_KEEP);
            host[k] = old - h;
            tr_tensor_write(&f->w[i].value, host);
            minus = run(f, g, false, TR_KEEP);
            host[k] = old;
            tr_tensor_write(&f->w[i].value, host);
            double want = (plus - minus) / (2 * (double)h), got = (double)f->grad[i][k];
            if (fabs(got - want) > 5e-3 * (1 + fabs(want))) fail_msg("%s: weight %d element %ld: gradient %g, differences give %g", name, i, (long)k, got, want);
        }
    }
    assert_int_equal(f->got, (f->w[0].n > 0) + (f->w[1].n > 0) + 1);
}

static void setup(struct fixture *f, int64_t input_cols)
{
    *f = (struct fixture){ .seq = { 0, 3, N }, .att = { H, K, D, 0.5f } };
    assert_ok(tr_tape_new(&f->tape));
    f->ids = tr_tensor_view(ids_data, TR_I32, TR_DIMS(N));
    f->start = tr_tensor_view(start_data, TR_I32, TR_DIMS(N));
    f->pos = tr_tensor_view(pos_data, TR_I32, TR_DIMS(N));
    f->layout = (struct tr_layout){ N, 2, f->start, f->pos, f->seq };
    weight(f, 2, N, input_cols);
}

static void teardown(struct fixture *f)
{
    for (int i = 0; i < 3; i++) tr_tensor_release(&f->w[i].value);
    tr_tensor_release(&f->cs);
    tr_tape_free(f->tape);
}

static int g_linear(struct fixture *f, struct tr_value *x, struct tr_value **y)
{
    int rc = tr_linear(f->tape, y, x, &f->w[0], f->w[1].n ? &f->w[1] : NULL);
    tr_drop(f->tape, x);
    return rc;
}
static int g_rms(struct fixture *f, struct tr_value *x, struct tr_value **y) { return tr_rms_norm(f->tape, y, x, &f->w[0], 1e-5); }
static int g_layer(struct fixture *f, struct tr_value *x, struct tr_value **y) { return tr_layer_norm(f->tape, y, x, &f->w[0], &f->w[1], 1e-5); }
static int g_swiglu(struct fixture *f, struct tr_value *x, struct tr_value **y) { return tr_swiglu(f->tape, y, x); }
static int g_gelu(struct fixture *f, struct tr_value *x, struct tr_value **y) { return tr_gelu(f->tape, y, x); }
static int g_attention(struct fixture *f, struct tr_value *x, struct tr_value **y) { return tr_attend(f->tape, y, x, &f->layout, &f->att); }
static int g_rope(struct fixture *f, struct tr_value *x, struct tr_value **y)
{
    *y = x;
    return tr_rope(f->tape, x, &f->cs, &f->pos, H + K);
}
static int g_qk_norm(struct fixture *f, struct tr_value *x, struct tr_value **y)
{
    struct tr_value *n;
    TR_TRY(tr_qk_norm(f->tape, &n, x, &f->w[0], &f->w[1], 1e-5, &f->att));
    TR_TRY(tr_rope(f->tape, n, &f->cs, &f->pos, H + K));
    TR_TRY(tr_attend(f->tape, y, n, &f->layout, &f->att));
    tr_drop(f->tape, n);
    return TR_OK;
}
/* x + linear(norm(x)) + x: the residual's gradient is shared, then added to. */
static int g_residual(struct fixture *f, struct tr_value *x, struct tr_value **y)
{
    struct tr_value *n, *l, *s;
    TR_TRY(tr_rms_norm(f->tape, &n, x, &f->w[1], 1e-5));
    TR_TRY(tr_linear(f->tape, &l, n, &f->w[0], NULL));
    tr_drop(f->tape, n);
    TR_TRY(tr_add(f->tape, &s, x, l));
    tr_drop(f->tape, l);
    TR_TRY(tr_add(f->tape, y, s, x));
    tr_drop(f->tape, s);
    return TR_OK;
}

#define CASE(test, graph, cols, ...) \
    static void test(void **state) { struct fixture f; setup(&f, cols); __VA_ARGS__; compare(&f, #test, graph); teardown(&f); }

static void table(struct fixture *f)
{
    float cs[2 * D];
    assert_ok(tr_tensor_new(&f->cs, TR_OTHER, TR_F32, TR_DIMS(2, D)));
    for (int p = 0; p < 2; p++)
        for (int i = 0; i < D / 2; i++) cs[p * D + i] = cosf((float)p / (float)(1 + i)), cs[p * D + D / 2 + i] = sinf((float)p / (float)(1 + i));
    tr_tensor_write(&f->cs, cs);
}

CASE(linear, g_linear, C, weight(&f, 0, O, C))
CASE(linear_with_bias, g_linear, C, weight(&f, 0, O, C); weight(&f, 1, O, 0))
CASE(rms_norm, g_rms, C, weight(&f, 0, C, 0))
CASE(layer_norm, g_layer, C, weight(&f, 0, C, 0); weight(&f, 1, C, 0))
CASE(swiglu, g_swiglu, 2 * I)
CASE(gelu, g_gelu, C)
CASE(attention, g_attention, (H + 2 * K) * D)
CASE(rope, g_rope, (H + 2 * K) * D, table(&f))
CASE(qk_norm_rope_attention, g_qk_norm, (H + 2 * K) * D, table(&f); weight(&f, 0, D, 0); weight(&f, 1, D, 0))
CASE(residual, g_residual, C, weight(&f, 0, C, C); weight(&f, 1, C, 0))

/* The loss head against differences of the loss itself; ignored targets, segments that cut the tokens. */
static void loss_head(void **state)
{
    static int32_t rows_all[] = { 0, 1, 2, 3, 4, 5 }, rows_some[] = { 1, 2, 5 };
    static int32_t targets[] = { 4, 0, 10, 2, 2, 9 };
    for (int some = 0; some < 2; some++) {
        struct fixture f;
        setup(&f, C);
        weight(&f, 0, V, C);
        int64_t M = some ? 3 : N;
        struct tr_tensor row = tr_tensor_view(some ? rows_some : rows_all, TR_I32, TR_DIMS(M)), target = tr_tensor_view(targets, TR_I32, TR_DIMS(M));
        float loss_host[N];
        struct tr_tensor loss = tr_tensor_view(loss_host, TR_F32, TR_DIMS(M));
        for (int i = -1; i < V * C + N * C; i++) { /* -1: the gradients; then each element of head and input */
            double value[2] = { 0, 0 };
            struct tr_weight *w = i < V * C ? &f.w[0] : &f.w[2];
            int64_t k = i < V * C ? i : i - V * C;
            float host[512], h = 1e-2f;
            if (i >= 0) tr_tensor_read(&w->value, host);
            for (int side = 0; side < (i < 0 ? 1 : 2); side++) {
                struct tr_value *x;
                if (i >= 0) {
                    host[k] += side ? -2 * h : h;
                    tr_tensor_write(&w->value, host);
                }
                tr_tape_begin(f.tape, i < 0, TR_SELECTIVE);
                assert_ok(input(&f, &x));
                assert_ok(tr_loss_head(f.tape, &loss, x, &f.w[0], &row, &target, M, 0.25f, 4));
                for (int64_t m = 0; m < M; m++) value[side] += 0.25 * (double)loss_host[m];
                struct tr_sink sink = { &f, take };
                if (i < 0) assert_ok(tr_backward(f.tape, &sink, false));
                else tr_tape_clear(f.tape);
            }
            if (i < 0) continue;
            host[k] += h;
            tr_tensor_write(&w->value, host);
            double want = (value[0] - value[1]) / (2 * (double)h), got = (double)f.grad[i < V * C ? 0 : 2][k];
            if (fabs(got - want) > 2e-3 * (1 + fabs(want))) fail_msg("loss head, some %d, element %d: gradient %g, differences give %g", some, i, got, want);
        }
        teardown(&f);
    }
}

/* Two micro-batches with kept gradients, then a flush: twice the gradient of one; nothing is left alive. */
static void kept_gradients(void **state)
{
    struct fixture f;
    setup(&f, C);
    weight(&f, 0, O, C);
    run(&f, g_linear, true, TR_KEEP);
    float once[512];
    memcpy(once, f.grad[0], sizeof once);
    size_t before = tr_mem_ledger().total;
    for (int m = 0; m < 2; m++) {
        struct tr_value *x, *y;
        struct tr_tensor *dy;
        bool acc;
        float c[N * O];
        test_normal(c, N * O, 77, 1);
        tr_tape_begin(f.tape, true, TR_KEEP);
        assert_ok(input(&f, &x));
        assert_ok(g_linear(&f, x, &y));
        assert_ok(tr_grad_into(y, &dy, &acc));
        tr_tensor_write(dy, c);
        assert_ok(tr_backward(f.tape, NULL, true));
    }
    struct tr_sink sink = { &f, take };
    assert_ok(tr_weight_flush(&f.w[0], &sink));
    for (int i = 0; i < O * C; i++) assert_true(fabsf(f.grad[0][i] - 2 * once[i]) <= 1e-5f * (1 + fabsf(once[i])));
    tr_tensor_release(&f.w[2].grad);
    assert_int_equal(tr_mem_ledger().total, before);
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear), cmocka_unit_test(linear_with_bias), cmocka_unit_test(rms_norm), cmocka_unit_test(layer_norm),
        cmocka_unit_test(swiglu), cmocka_unit_test(gelu), cmocka_unit_test(attention), cmocka_unit_test(rope),
        cmocka_unit_test(qk_norm_rope_attention), cmocka_unit_test(residual), cmocka_unit_test(loss_head), cmocka_unit_test(kept_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
