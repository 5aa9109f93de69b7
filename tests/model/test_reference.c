/* Every model family against transformers in float32 (tests/model/reference, cut from recorded results): loss, logits,
 * gradient norms and sampled gradient elements, under each way to hold activations; and the same bits for 1 or 2 threads. */
#include "tests/support/support.h"
#include "libtrain/base/h5.h"
#include "libtrain/model/net.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *folder;
static const char *const families[] = { "llama-tied", "llama-untied", "llama3-rope", "mistral", "qwen2", "qwen3", "gpt2" };
enum { FAMILIES = sizeof families / sizeof *families };

struct golden { struct tr_h5 *f; double worst; const char *family; int seen; uint64_t bits; };

static uint64_t mix(uint64_t h, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], 4);
        h = (h ^ u) * 0x100000001b3u;
    }
    return h;
}

static int check_grad(void *self, struct tr_param *p, struct tr_tensor *grad)
{
    struct golden *g = self;
    char name[160];
    double norm, got = sqrt(tr_kernels()->sum_squares(grad));
    float at[32];
    int64_t rows = tr_rows(grad), cols = tr_cols(grad), n = rows * cols, count = n < 32 ? n : 32;
    float *dense = malloc((size_t)n * sizeof *dense);
    g->seen++;
    tr_tensor_read(grad, dense);
    g->bits = mix(g->bits, dense, n);
    snprintf(name, sizeof name, "grad_norm/%s", p->name);
    assert_ok(tr_h5_read(g->f, name, TR_F64, &norm));
    if (fabs(got - norm) > 1e-4 * norm) fail_msg("%s: gradient norm of %s is %g, transformers has %g", g->family, p->name, got, norm);
    snprintf(name, sizeof name, "grad_at/%s", p->name);
    assert_ok(tr_h5_read(g->f, name, TR_F32, at));
    for (int64_t i = 0; i < count; i++) {
        int64_t k = count == 1 ? 0 : i * (n - 1) / (count - 1);
        float v = p->file_transposed ? dense[k % rows * cols + k / rows] : dense[k];
        if (fabs((double)v - (double)at[i]) > 1e-4 * norm / sqrt((double)n) * 10 + 1e-4 * fabs((double)at[i]))
            fail_msg("%s: element %ld of the gradient of %s is %g, transformers has %g", g->family, (long)k, p->name, (double)v, (double)at[i]);
    }
    free(dense);
    return TR_OK;
}

static void run_family(const char *family, enum tr_recompute policy, uint64_t *bits)
{
    char path[512];
    struct tr_weights *w;
    struct tr_net *net;
    struct tr_tape *tape;
    struct tr_feed feed;
    struct golden g = { .family = family, .bits = 14695981039346656037u };
    enum { B = 3, T = 40, N = B * T };
    int32_t ids[N], targets[N], start[N], pos[N], counted = 0;
    int64_t seq[B + 1];
    double loss, want;
    snprintf(path, sizeof path, "%s/model/reference/%s", folder, family);
    assert_ok(tr_weights_open(&w, path));
    assert_ok(tr_net_new(&net, tr_weights_shape(w), TR_F32, TR_F32, 0));
    assert_ok(tr_net_load(net, w));
    assert_ok(tr_tape_new(&tape));
    assert_ok(tr_feed_new(&feed, N));
    snprintf(path, sizeof path, "%s/model/reference/%s/reference.h5", folder, family);
    assert_ok(tr_h5_open(&g.f, path));
    assert_ok(tr_h5_read(g.f, "tokens", TR_I32, ids));
    assert_ok(tr_h5_read(g.f, "targets", TR_I32, targets));
    for (int i = 0; i < N; i++) start[i] = i / T * T, pos[i] = i % T, counted += targets[i] != -100;
    for (int s = 0; s <= B; s++) seq[s] = s * T;
    assert_ok(tr_feed_set(&feed, net, N, ids, targets, start, pos, seq, B));

    struct tr_value *h;
    int64_t V = net->shape.vocab;
    float *logits = malloc((size_t)(N * V) * sizeof *logits), *last = malloc((size_t)(B * V) * sizeof *last);
    tr_tape_begin(tape, false, policy);
    assert_ok(tr_net_hidden(net, tape, &feed, NULL, &h));
    assert_ok(tr_net_logits(net, h, 0, N, logits));
    assert_ok(tr_h5_read(g.f, "logits_last", TR_F32, last));
    for (int64_t b = 0; b < B; b++)
        for (int64_t v = 0; v < V; v++)
            if (fabsf(logits[(b * T + T - 1) * V + v] - last[b * V + v]) > 1e-3f)
                fail_msg("%s: logit %ld of sequence %ld is %g, transformers has %g", family, (long)v, (long)b, (double)logits[(b * T + T - 1) * V + v], (double)last[b * V + v]);

    struct tr_sink sink = { &g, check_grad };
    tr_tape_begin(tape, true, policy);
    assert_ok(tr_net_loss(net, tape, &feed, 1.0f / (float)counted, 32, &loss));
    assert_ok(tr_h5_read(g.f, "loss", TR_F64, &want));
    if (fabs(loss / counted - want) > 1e-5 * want) fail_msg("%s: loss %.8f, transformers has %.8f", family, loss / counted, want);
    assert_ok(tr_backward(tape, &sink, false));
    assert_int_equal(g.seen, net->n_params);
    struct tr_ledger l = tr_mem_ledger();
    assert_int_equal(l.now[TR_GRADIENTS], 0);
    assert_int_equal(l.now[TR_ACTIVATIONS], 0);
    *bits = g.bits;
    free(logits);
    free(last);
    tr_h5_close(g.f);
    tr_feed_release(&feed);
    tr_tape_free(tape);
    tr_net_free(net);
    tr_weights_free(w);
}

static void families_agree(void **state)
{
    for (int i = 0; i < FAMILIES; i++) {
        uint64_t kept, selective, block, one;
        tr_set_threads(2);
        run_family(families[i], TR_KEEP, &kept);
        run_family(families[i], TR_SELECTIVE, &selective);
        run_family(families[i], TR_BLOCK, &block);
        tr_set_threads(1);
        run_family(families[i], TR_KEEP, &one);
        if (kept != selective || kept != block) fail_msg("%s: gradients depend on how activations are held", families[i]);
        if (kept != one) fail_msg("%s: gradients depend on the number of threads", families[i]);
    }
}

int main(int argc, char **argv)
{
    folder = argc > 1 ? argv[1] : "tests";
    const struct CMUnitTest tests[] = { cmocka_unit_test(families_agree) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
