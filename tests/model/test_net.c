/* Properties of the network on a small random model: packed documents do not see each other, the cache gives the same
 * logits as the whole text, micro-batches add up, ignored targets cost nothing, memory is given back. */
#include "tests/support/support.h"
#include "libtrain/model/net.h"
#include "libtrain/model/preset.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { T = 24, V = 61 };

struct model { struct tr_net *net; struct tr_tape *tape; struct tr_feed feed; };

static void model_new(struct model *m, enum tr_arch arch, int64_t window, enum tr_dtype dtype)
{
    struct tr_shape s = tr_shape_default(arch);
    s.hidden = 32;
    s.layers = 3;
    s.heads = 4;
    s.kv_heads = arch == TR_GPT2 ? 4 : 2;
    s.head_dim = 8;
    s.intermediate = 48;
    s.vocab = V;
    s.context = 64;
    s.window = window;
    s.init_std = 0.2;
    assert_ok(tr_net_new(&m->net, &s, dtype, dtype, 0));
    assert_ok(tr_net_init(m->net, 5));
    assert_ok(tr_tape_new(&m->tape));
    assert_ok(tr_feed_new(&m->feed, 4 * T));
}

static void model_free(struct model *m)
{
    tr_feed_release(&m->feed);
    tr_tape_free(m->tape);
    tr_net_free(m->net);
}

/* A micro-batch of sequences that each hold documents of the given lengths. */
struct text { int64_t n, n_seqs, seq[5]; int32_t ids[4 * T], targets[4 * T], start[4 * T], pos[4 * T]; };

static void add_doc(struct text *b, int64_t length, int32_t seed, bool new_sequence)
{
    int64_t first = b->n;
    if (new_sequence) b->seq[b->n_seqs++] = b->n;
    for (int64_t i = 0; i < length; i++, b->n++) {
        b->ids[b->n] = (int32_t)((seed * 31 + i * i * 7 + i) % V);
        b->targets[b->n] = (int32_t)((seed * 17 + i * 5) % V);
        b->start[b->n] = (int32_t)first;
        b->pos[b->n] = (int32_t)i;
    }
    b->seq[b->n_seqs] = b->n;
}

struct taken { double squares; float *all; int64_t n; };

static int collect(void *self, struct tr_param *p, struct tr_tensor *g)
{
    struct taken *t = self;
    int64_t at = 0;
    for (int i = 0; i < p->index; i++) at += tr_count(&p[i - p->index].value); /* parameters stand in one array */
    tr_tensor_read(g, t->all + at);
    if (at + tr_count(g) > t->n) t->n = at + tr_count(g);
    return TR_OK;
}

static double loss_of(struct model *m, const struct text *b, float scale, enum tr_recompute policy, struct taken *grads, bool keep)
{
    double loss;
    struct tr_sink sink = { grads, collect };
    assert_ok(tr_feed_set(&m->feed, m->net, b->n, b->ids, b->targets, b->start, b->pos, b->seq, b->n_seqs));
    tr_tape_begin(m->tape, grads != NULL, policy);
    assert_ok(tr_net_loss(m->net, m->tape, &m->feed, scale, 16, &loss));
    if (grads) assert_ok(tr_backward(m->tape, &sink, keep));
    else tr_tape_clear(m->tape);
    return loss;
}

static void compare(const struct taken *a, const struct taken *b, double tolerance, const char *what)
{
    double diff = 0, size = 0;
    assert_int_equal(a->n, b->n);
    for (int64_t i = 0; i < a->n; i++) {
        diff += pow((double)a->all[i] - (double)b->all[i], 2);
        size += pow((double)a->all[i], 2);
    }
    if (sqrt(diff / size) > tolerance) fail_msg("%s: gradients differ by %g", what, sqrt(diff / size));
}

static void packed_documents_are_apart(void **state)
{
    static const enum tr_arch archs[] = { TR_LLAMA, TR_GPT2, TR_QWEN3, TR_MISTRAL };
    for (int k = 0; k < 4; k++) {
        struct model m;
        struct taken apart = { .all = calloc(100000, 4) }, together = { .all = calloc(100000, 4) };
        model_new(&m, archs[k], archs[k] == TR_MISTRAL ? 5 : 0, TR_F32);
        struct text packed = { 0 }, single = { 0 };
        for (int32_t d = 0; d < 3; d++) {
            add_doc(&packed, 7 + d, d, d == 0);
            add_doc(&single, 7 + d, d, true);
        }
        double a = loss_of(&m, &packed, 1, TR_KEEP, &together, false), b = loss_of(&m, &single, 1, TR_KEEP, &apart, false);
        assert_true(fabs(a - b) < 1e-5 * b);
        compare(&apart, &together, 1e-5, tr_arch_name(archs[k]));
        model_free(&m);
        free(apart.all);
        free(together.all);
    }
}

static int flush_one(void *self, struct tr_weight *w) { return tr_weight_flush(w, self); }

static void micro_batches_add_up(void **state)
{
    struct model m;
    struct taken whole = { .all = calloc(100000, 4) }, parts = { .all = calloc(100000, 4) };
    model_new(&m, TR_LLAMA, 0, TR_F32);
    struct text both = { 0 }, one = { 0 }, two = { 0 };
    add_doc(&both, 9, 1, true);
    add_doc(&both, 20, 2, true);
    add_doc(&one, 9, 1, true);
    add_doc(&two, 20, 2, true);
    loss_of(&m, &both, 0.1f, TR_KEEP, &whole, false);
    loss_of(&m, &one, 0.1f, TR_BLOCK, &parts, true);
    loss_of(&m, &two, 0.1f, TR_SELECTIVE, &parts, true);
    struct tr_sink sink = { &parts, collect };
    assert_ok(tr_net_weights(m.net, flush_one, &sink));
    compare(&whole, &parts, 1e-5, "micro-batches");
    model_free(&m);
    free(whole.all);
    free(parts.all);
}

static void ignored_targets_do_not_count(void **state)
{
    struct model m;
    struct taken some = { .all = calloc(100000, 4) }, none = { .all = calloc(100000, 4) };
    model_new(&m, TR_LLAMA, 0, TR_F32);
    struct text b = { 0 };
    add_doc(&b, T, 3, true);
    double all = loss_of(&m, &b, 1, TR_KEEP, NULL, false), sum = 0;
    for (int half = 0; half < 2; half++) { /* even targets, then odd ones: together the whole */
        struct text c = b;
        for (int i = half; i < T; i += 2) c.targets[i] = -100;
        sum += loss_of(&m, &c, 1, TR_KEEP, &some, false);
    }
    assert_true(fabs(all - sum) < 1e-6 * all);
    for (int i = 0; i < T; i++) b.targets[i] = -100;
    assert_true(loss_of(&m, &b, 1, TR_KEEP, &none, false) == 0);
    for (int64_t i = 0; i < none.n; i++) assert_true(none.all[i] == 0);
    model_free(&m);
    free(some.all);
    free(none.all);
}

static void cache_equals_whole_text(void **state)
{
    static const enum tr_arch archs[] = { TR_LLAMA, TR_GPT2, TR_QWEN2, TR_QWEN3, TR_MISTRAL };
    for (int k = 0; k < 5; k++) {
        struct model m;
        struct tr_cache cache;
        struct tr_value *h;
        struct text b = { 0 };
        static float whole[T * V], step[V];
        model_new(&m, archs[k], archs[k] == TR_MISTRAL ? 6 : 0, TR_F32);
        assert_ok(tr_cache_new(&cache, m.net, T));
        add_doc(&b, T, 4, true);
        assert_ok(tr_feed_set(&m.feed, m.net, T, b.ids, NULL, b.start, b.pos, b.seq, 1));
        tr_tape_begin(m.tape, false, TR_KEEP);
        assert_ok(tr_net_hidden(m.net, m.tape, &m.feed, NULL, &h));
        assert_ok(tr_net_logits(m.net, h, 0, T, whole));
        for (int64_t at = 0; at < T; at += at ? 1 : 5) { /* five tokens at once, then one by one */
            int64_t n = at ? 1 : 5, seq[2] = { 0, n };
            int32_t zero[5] = { 0 };
            assert_ok(tr_feed_set(&m.feed, m.net, n, b.ids + at, NULL, zero, b.pos + at, seq, 1));
            tr_tape_begin(m.tape, false, TR_KEEP);
            assert_ok(tr_net_hidden(m.net, m.tape, &m.feed, &cache, &h));
            assert_ok(tr_net_logits(m.net, h, n - 1, 1, step));
            for (int v = 0; v < V; v++)
                if (fabsf(step[v] - whole[(at + n - 1) * V + v]) > 1e-4f) fail_msg("%s: logit %d after %ld tokens: %g by cache, %g whole", tr_arch_name(archs[k]), v, (long)(at + n), (double)step[v], (double)whole[(at + n - 1) * V + v]);
        }
        tr_tape_clear(m.tape);
        tr_cache_release(&cache);
        model_free(&m);
    }
}

static void bf16_is_near_f32(void **state)
{
    struct model f, b;
    struct text t = { 0 };
    model_new(&f, TR_LLAMA, 0, TR_F32);
    model_new(&b, TR_LLAMA, 0, TR_BF16);
    add_doc(&t, T, 6, true);
    double x = loss_of(&f, &t, 1, TR_KEEP, NULL, false), y = loss_of(&b, &t, 1, TR_KEEP, NULL, false);
    assert_true(fabs(x - y) < 0.02 * x);
    model_free(&f);
    model_free(&b);
}

static void bad_input_is_refused(void **state)
{
    struct model m;
    struct text b = { 0 };
    model_new(&m, TR_LLAMA, 0, TR_F32);
    add_doc(&b, 4, 6, true);
    b.ids[2] = V;
    assert_int_equal(tr_feed_set(&m.feed, m.net, 4, b.ids, b.targets, b.start, b.pos, b.seq, 1), TR_EINPUT);
    b.ids[2] = -1;
    assert_int_equal(tr_feed_set(&m.feed, m.net, 4, b.ids, b.targets, b.start, b.pos, b.seq, 1), TR_EINPUT);
    b.ids[2] = 0;
    b.targets[1] = V;
    assert_int_equal(tr_feed_set(&m.feed, m.net, 4, b.ids, b.targets, b.start, b.pos, b.seq, 1), TR_EINPUT);
    b.targets[1] = 0;
    b.pos[3] = 64;
    assert_int_equal(tr_feed_set(&m.feed, m.net, 4, b.ids, b.targets, b.start, b.pos, b.seq, 1), TR_EINPUT);
    model_free(&m);
}

static void memory_is_given_back(void **state)
{
    struct tr_ledger before = tr_mem_ledger();
    struct model m;
    struct text b = { 0 };
    struct taken g = { .all = calloc(100000, 4) };
    model_new(&m, TR_LLAMA, 0, TR_F32);
    add_doc(&b, T, 1, true);
    loss_of(&m, &b, 1, TR_SELECTIVE, &g, false);
    size_t reserved = tr_mem_ledger().arena_reserved;
    for (int i = 0; i < 3; i++) loss_of(&m, &b, 1, TR_SELECTIVE, &g, false);
    assert_int_equal(tr_mem_ledger().arena_reserved, reserved); /* a step after the first takes nothing new */
    model_free(&m);
    struct tr_ledger after = tr_mem_ledger();
    for (int c = 0; c < TR_CATEGORIES; c++)
        if (c != TR_WORKSPACE) assert_int_equal(after.now[c], before.now[c]);
    free(g.all);
}

int main(void)
{
    test_device(0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_documents_are_apart), cmocka_unit_test(micro_batches_add_up), cmocka_unit_test(ignored_targets_do_not_count),
        cmocka_unit_test(cache_equals_whole_text), cmocka_unit_test(bf16_is_near_f32), cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(memory_is_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
