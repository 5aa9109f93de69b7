/* 20 steps of small models on the device give the losses of the CPU, memory is what was foretold, and what a device cannot do is
 * refused by name. */
#include "tests/support/recipe.h"
#include "tests/support/support.h"
#include "libtrain/kernel/device.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include "recipes/metrics.h"
#include "train_config.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 20, CASES = 8 };

static const char base[] =
    "[model]\nhidden = 32\nlayers = 2\nheads = 4\nintermediate = 48\nvocab = 257\ncontext = 64\ntokenizer = bytes\ndtype = f32\n"
    "[data]\nsequence = 24\n[train]\nsteps = 20\nbatch = 2\nlr = 1e-3\nwarmup = 2\nseed = 3\nlog_every = 1000\n[checkpoint]\nevery = 0\n[optimizer]\nweight_decay = 0.01\n";

/* How far losses may be apart: 1e-5; products and attention in bf16 round otherwise on a device. */
static const struct { const char *name, *set[4]; double limit; } cases[CASES] = {
    { "llama", { "model.arch=llama", "model.kv_heads=2", "optimizer.name=adamw" }, 1e-5 },
    { "qwen3", { "model.arch=qwen3", "optimizer.name=adamw", "train.micro_batch=1" }, 1e-5 },
    { "gpt2", { "model.arch=gpt2", "optimizer.name=adamw", "memory.recompute=block" }, 1e-5 },
    { "sgd", { "optimizer.name=sgd", "optimizer.momentum=0.9", "train.clip=1" }, 1e-5 },
    { "galore", { "optimizer.name=galore", "optimizer.rank=8", "optimizer.update_gap=8" }, 1e-5 },
    { "apollo-mini", { "optimizer.name=apollo-mini" }, 1e-5 },
    { "bf16", { "model.dtype=bf16", "model.compute=bf16", "optimizer.name=adamw" }, 2e-2 },
    { "int8", { "model.dtype=int8", "model.compute=f32", "optimizer.name=adamw" }, 1e-3 },
};

static double losses[2][CASES][STEPS];

/* Runs a recipe; to: the losses of its steps. */
static void step_losses(const char *name, const char *resume, double *to, const char *const *sets)
{
    struct recipe r;
    struct metrics_row *rows;
    size_t n;
    assert_ok(test_recipe(&r, base, name, sets));
    assert_ok(recipe_run(&r, resume));
    assert_ok(metrics_read(&rows, &n, r.run.dir));
    for (size_t i = 0; to && i < n && i < STEPS; i++) to[i] = rows[i].loss;
    free(rows);
    recipe_release(&r);
}

static void run_all(const char *device, double to[CASES][STEPS])
{
    for (int c = 0; c < CASES; c += test_sanitized() ? 3 : 1) {
        char name[64], where[64];
        snprintf(name, sizeof name, "%s-%s", cases[c].name, device);
        snprintf(where, sizeof where, "run.device=%s", device);
        step_losses(name, NULL, to[c], SETS(where, cases[c].set[0], cases[c].set[1], cases[c].set[2]));
    }
}

static void losses_are_those_of_the_cpu(void **state)
{
    run_all("cuda", losses[1]);
    for (int c = 0; c < CASES; c += test_sanitized() ? 3 : 1) {
        double worst = 0;
        for (int i = 0; i < STEPS; i++) {
            double apart = fabs(losses[1][c][i] / losses[0][c][i] - 1);
            if (!(apart <= cases[c].limit)) fail_msg("%s: the loss of step %d is %.9g, %.9g on the CPU", cases[c].name, i + 1, losses[1][c][i], losses[0][c][i]);
            worst = fmax(worst, apart);
        }
        assert_true(losses[1][c][STEPS - 1] < losses[1][c][0]);
        print_message("%s: within %.1e\n", cases[c].name, worst);
    }
}

/* The forecast is what is used there, a step after the first takes nothing. */
static void memory_is_foretold(void **state)
{
    struct recipe r;
    struct job j;
    struct forecast f;
    struct step_result s;
    size_t before = tr_mem_ledger().device;
    assert_ok(test_recipe(&r, base, "memory", SETS("run.device=cuda", "optimizer.name=adamw")));
    test_job_open(&j, &r);
    assert_ok(forecast_fit(&j, &f));
    test_job_build(&j);
    tr_mem_reset_peak();
    for (int i = 0; i < 2; i++) {
        assert_ok(job_step(&j, &s));
        struct tr_ledger l = tr_mem_ledger();
        assert_int_equal(l.peak, f.ledger.peak);
        assert_int_equal(l.device, f.ledger.device);
    }
    job_release(&j);
    assert_int_equal(tr_mem_ledger().device, before);
    recipe_release(&r);
}

/* A snapshot holds what the device held, stochastic rounding goes on where it was: the same bits. */
static void resumed_is_undisturbed(void **state)
{
    static const char *const dtypes[] = { "model.dtype=f32", "model.dtype=bf16", "model.dtype=int8" };
    static const char *const rules[] = { "optimizer.name=adamw", "optimizer.name=adamw", "optimizer.name=adamw-8bit" };
    for (int d = 0; d < 3 && HAVE_HDF5; d++) {
        double whole[STEPS] = { 0 }, parts[STEPS] = { 0 };
        step_losses("whole", NULL, whole, SETS("run.device=cuda", dtypes[d], "train.steps=6", rules[d]));
        step_losses("cut", NULL, NULL, SETS("run.device=cuda", dtypes[d], "train.steps=6", rules[d], "train.stop_at=3", "checkpoint.every=3"));
        step_losses("cut", "", parts, SETS("run.device=cuda", dtypes[d], "train.steps=6", rules[d], "checkpoint.every=3"));
        assert_memory_equal(whole, parts, sizeof whole);
    }
}

static void refused(void **state)
{
    static const char *const sets[][2] = { { "memory.offload=disk", "memory.offload" }, { "checkpoint.memory_every=5", "snapshots in memory" }, { "memory.budget=1M", "memory.budget is" } };
    for (int i = 0; i < 3; i++) {
        struct recipe r;
        assert_ok(test_recipe(&r, base, "refused", SETS("run.device=cuda", sets[i][0])));
        assert_int_equal(recipe_run(&r, NULL), i < 2 ? TR_EINPUT : TR_EBUDGET);
        if (!strstr(tr_message(), sets[i][1])) fail_msg("%s: %s", sets[i][0], tr_message());
        recipe_release(&r);
    }
}

/* EMULATE_FAIL says which launch fails: the run ends with its kernel and step. The device stays failed, so the process ends here. */
static void failing_run(void)
{
    struct recipe r;
    test_device(0);
    int rc = test_recipe(&r, base, "failing", SETS("run.device=cuda", "optimizer.name=adamw"));
    if (rc == TR_OK) rc = recipe_run(&r, NULL);
    const char *m = tr_message();
    printf("%d %s\n", rc, m);
    fflush(stdout);
    _exit(rc == TR_EFAIL && strstr(m, "step ") == m && strstr(m, ": the cuda device failed: ") && strstr(m, ": invalid configuration") ? 0 : 1);
}

int main(void)
{
    if (getenv("EMULATE_FAIL")) failing_run();
    run_all("cpu", losses[0]);
    test_device(0);
    const struct CMUnitTest tests[] = { cmocka_unit_test(losses_are_those_of_the_cpu), cmocka_unit_test(memory_is_foretold), cmocka_unit_test(resumed_is_undisturbed), cmocka_unit_test(refused) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
