/* Layers that take turns (badam, lisa), and layers that learn from losses beside others: who moves, what is held, that a run goes
 * on from a snapshot in the middle of a turn, and that fused, accumulated and unfused steps are the same. */
#include "tests/support/recipe.h"
#include "tests/support/support.h"
#include "libtrain/base/log.h"
#include "libtrain/kernel/kernel.h"
#include "optim/optim.h"
#include "recipes/commands.h"
#include "recipes/job.h"
#include "recipes/metrics.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 4, STEPS = 12 };
static const char base[] =
    "[model]\narch = llama\nhidden = 32\nlayers = 4\nheads = 4\nkv_heads = 2\nintermediate = 64\nvocab = 257\ncontext = 64\ntokenizer = bytes\ndtype = f32\n"
    "[data]\nsequence = 48\n[train]\nsteps = 12\nbatch = 4\nlr = 1e-3\nwarmup = 0\nseed = 3\nlog_every = 1000\n[checkpoint]\nevery = 3\nkeep = 9\n";

/* Zeroth order for embedding and the two lowest layers, whatever else for the others. */
static const char mixed[] = "[optimizer.group.low]\nmatch = *embed*, model.layers.[01].*\n";

/* The base recipe, or with `text` behind it. */
static int load(struct recipe *r, const char *name, const char *text, const char *const *more)
{
    char all[2000];
    snprintf(all, sizeof all, "%s%s", base, text ? text : "");
    return test_recipe(r, all, name, more);
}

static void open_run(struct job *j, struct recipe *r, const char *text, const char *const *more)
{
    assert_ok(load(r, "turns", text, more));
    test_job_open(j, r);
    test_job_build(j);
}

/* Bit l: something in layer l (0: embedding; LAYERS + 1: final norm and head) moved in a step. */
static unsigned moved(struct job *j)
{
    struct tr_net *net = j->net;
    float **before = calloc((size_t)net->n_params, sizeof *before), *after = malloc(sizeof *after * 257 * 32);
    struct step_result s;
    unsigned bits = 0;
    for (int64_t i = 0; i < net->n_params; i++) {
        before[i] = malloc(sizeof(float) * (size_t)tr_count(&net->param[i].value));
        tr_tensor_read(&net->param[i].value, before[i]);
    }
    assert_ok(job_step(j, &s));
    for (int64_t i = 0; i < net->n_params; i++) {
        tr_tensor_read(&net->param[i].value, after);
        if (memcmp(before[i], after, sizeof(float) * (size_t)tr_count(&net->param[i].value))) bits |= 1u << net->param[i].layer;
        free(before[i]);
    }
    free(before);
    free(after);
    return bits;
}

static int count_bits(unsigned x) { return x ? (int)(x & 1) + count_bits(x >> 1) : 0; }

static void blocks_train_in_turn(void **state)
{
    static const char *const modes[] = { "random", "ascending", "descending" };
    for (int m = 0; m < 3; m++) {
        struct recipe r;
        struct job j;
        char mode[60];
        unsigned seen = 0, last = 0;
        snprintf(mode, sizeof mode, "optimizer.switch_mode=%s", modes[m]);
        open_run(&j, &r, NULL, SETS("optimizer.name=badam", "optimizer.switch_block_every=2", mode));
        for (int step = 1; step <= 2 * LAYERS; step++) { /* a sweep */
            unsigned bits = moved(&j);
            assert_int_equal(count_bits(bits), 1);
            assert_int_equal(bits & (1u | 1u << (LAYERS + 1)), 0);
            if (step % 2 == 0) assert_int_equal(bits, last);
            else assert_int_equal(seen & bits, 0);
            if (m == 1) assert_int_equal(bits, 1u << ((step + 1) / 2));
            if (m == 2) assert_int_equal(bits, 1u << (LAYERS + 1 - (step + 1) / 2));
            seen |= last = bits;
            assert_int_equal(tr_mem_ledger().now[TR_OPTIMIZER], opt_state_bytes(j.opt));
        }
        assert_int_equal(count_bits(seen), LAYERS);
        job_release(&j);
        recipe_release(&r);
    }
}

static void drawn_layers_train(void **state)
{
    struct recipe r;
    struct job j;
    int visits[LAYERS + 2] = { 0 };
    open_run(&j, &r, NULL, SETS("optimizer.name=lisa", "optimizer.interval_steps=1", "optimizer.activated_layers=2", "train.steps=61"));
    for (int step = 1; step <= 60; step++) {
        unsigned bits = moved(&j);
        assert_int_equal(bits & (1u | 1u << (LAYERS + 1)), 1u | 1u << (LAYERS + 1));
        assert_int_equal(count_bits(bits), 4);
        for (int l = 0; l < LAYERS + 2; l++) visits[l] += (int)(bits >> l & 1);
        assert_int_equal(tr_mem_ledger().now[TR_OPTIMIZER], opt_state_bytes(j.opt));
    }
    for (int l = 1; l <= LAYERS; l++) assert_in_range(visits[l], 15, 45); /* 30 expected, sigma 3.9 */
    job_release(&j);
    recipe_release(&r);
}

static size_t run(const char *name, const char *text, const char *resume, double *loss, const char *const *more)
{
    struct recipe r;
    struct metrics_row *rows;
    size_t n;
    assert_ok(load(&r, name, text, more));
    assert_ok(recipe_run(&r, resume));
    assert_ok(metrics_read(&rows, &n, r.run.dir));
    for (size_t i = 0; i < n && i < STEPS; i++) loss[i] = rows[i].loss;
    free(rows);
    recipe_release(&r);
    return n;
}

/* Whatever the layout, the same bits; also from a snapshot in the middle of a turn. */
static void layouts_do_not_show(void **state)
{
    static const char *const settings[][4] = { { "optimizer.name=badam", "optimizer.switch_block_every=2" }, { "optimizer.name=lisa", "optimizer.interval_steps=2" },
        { "optimizer.name=frugal", "optimizer.selection=blockwise" },
        { "optimizer.name=galore", "optimizer.rank=4", "optimizer.group.low.name=zo-sgd", "optimizer.group.low.lr_scale=1e-3" } };
    static const char *const layouts[] = { "memory.fused_update=true", "memory.recompute=block", "memory.recompute=none" };
    for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
        double whole[STEPS], other[STEPS], parts[STEPS];
        const char *const *y = settings[k], *text = y[2] ? mixed : NULL;
        assert_int_equal(run("whole", text, NULL, whole, SETS(y[0], y[1], y[2], y[3])), STEPS);
        for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
            run("other", text, NULL, other, SETS(layouts[l], y[0], y[1], y[2], y[3]));
            assert_memory_equal(whole, other, sizeof whole);
        }
        run("parts", text, NULL, parts, SETS("train.stop_at=3", y[0], y[1], y[2], y[3]));
        run("parts", text, "", parts, SETS(y[0], y[1], y[2], y[3]));
        assert_memory_equal(whole, parts, sizeof whole);
    }
}

/* Zeroth order below, gradients above: all layers move; where the lower ones may not, the upper ones do as beside layers that stand
 * still (up to the rounding of moving weights there and back), and nothing of the lower ones is recorded. */
static void losses_below_gradients(void **state)
{
    struct recipe r;
    struct job j;
    double still[STEPS], zero[STEPS];
    size_t peak[2];
    open_run(&j, &r, mixed, SETS("optimizer.group.low.name=zo-sgd", "optimizer.group.low.lr_scale=1e-2"));
    assert_int_equal(moved(&j), (1u << (LAYERS + 2)) - 1);
    job_release(&j);
    recipe_release(&r);
    run("zero", mixed, NULL, zero, SETS("optimizer.group.low.name=zo-sgd", "optimizer.group.low.lr_scale=0"));
    run("still", mixed, NULL, still, SETS("optimizer.group.low.name=sgd", "optimizer.group.low.lr_scale=0"));
    for (int i = 0; i < STEPS; i++) assert_float_equal(zero[i], still[i], 1e-5);
    assert_true(still[STEPS - 1] < still[0]);
    for (int k = 0; k < 2; k++) {
        struct step_result s;
        open_run(&j, &r, mixed, SETS(k ? "optimizer.group.low.name=zo-sgd" : "optimizer.group.low.name=sgd"));
        tr_mem_reset_peak();
        assert_ok(job_step(&j, &s));
        peak[k] = tr_mem_ledger().at_peak[TR_ACTIVATIONS];
        job_release(&j);
        recipe_release(&r);
    }
    assert_true(peak[1] < peak[0] * 3 / 4);
}

int main(void)
{
    tr_log_quiet(true);
    const struct CMUnitTest tests[] = { cmocka_unit_test(blocks_train_in_turn), cmocka_unit_test(drawn_layers_train), cmocka_unit_test(layouts_do_not_show),
        cmocka_unit_test(losses_below_gradients) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
