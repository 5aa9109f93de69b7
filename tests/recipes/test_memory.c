/* checkpoint.memory_every: for every optimizer and layout the same losses as without, the bytes that were foretold, and versions
 * that are the state of their step although the next step was changing it while they were copied. */
#include "tests/support/recipe.h"
#include "tests/support/support.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/image.h"
#include "checkpoint/keeper.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "optim/optim.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include "recipes/metrics.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char base[] =
    "[model]\narch = llama\nhidden = 32\nlayers = 2\nheads = 4\nkv_heads = 2\nintermediate = 64\nvocab = 257\ncontext = 64\ntokenizer = bytes\ndtype = f32\n"
    "[data]\nsequence = 48\n[train]\nsteps = 6\nbatch = 4\nlr = 1e-3\nwarmup = 2\nseed = 3\nlog_every = 1000\n[checkpoint]\nevery = 4\nkeep = 5\n[run]\nthreads = 1\n";

static int load(struct recipe *r, const char *name, const char *const *more) { return test_recipe(r, base, name, more); }

enum { STEPS = 3 };

static void read_snapshot(struct tr_buf *b, const char *folder, int64_t step)
{
    char path[700];
    snprintf(path, sizeof path, "%s/snapshots/step-%08d.h5", folder, (int)step);
    b->size = 0;
    assert_ok(tr_read_file(b, path));
}

/* The version that was begun after the last step, now that another step has changed everything, beside the file that was
 * written then. */
static void compare_version(const struct job *j, const char *folder, const struct tr_buf *want)
{
    struct ckpt_image img;
    struct tr_buf got = { 0 };
    int64_t version = (int64_t)j->step - 1;
    assert_ok(ckpt_image_open(&img, ckpt_capture_shared(j->capture), version));
    assert_ok(ckpt_save_image(folder, &img, "", 1, 0));
    ckpt_image_release(&img);
    read_snapshot(&got, folder, version);
    assert_int_equal(got.size, want->size);
    assert_memory_equal(got.data, want->data, want->size);
    tr_buf_release(&got);
}

/* Some steps; with memory: a version after each. TR_EINPUT when the optimizer does not work so. */
static int steps(double *loss, bool memory, const char *const *more)
{
    struct recipe r;
    struct job j;
    struct forecast f;
    struct step_result s;
    struct tr_buf file = { 0 };
    int64_t version = -1;
    assert_ok(load(&r, memory ? "memory" : "without", more));
    if (memory) assert_ok(recipe_set(&r, "checkpoint.memory_every=1"));
    test_job_open(&j, &r);
    int rc = forecast_run(&j, &f);
    if (rc == TR_OK) {
        assert_ok(tr_mkdirs(r.run.dir));
        test_job_build(&j);
        if (memory) assert_ok(ckpt_capture_attach(j.capture, NULL, &version));
        if (memory) assert_ok(ckpt_capture_start(j.capture, 0, false));
        for (int i = 0; i < STEPS; i++) {
            assert_ok(job_step(&j, &s));
            loss[i] = s.loss;
            if (memory && i) compare_version(&j, r.run.dir, &file);
            assert_int_equal(tr_mem_ledger().now[TR_SNAPSHOT], f.ledger.at_peak[TR_SNAPSHOT]);
            assert_true(memory == (tr_mem_ledger().now[TR_SNAPSHOT] > 0));
            if (!memory) continue;
            assert_ok(ckpt_save(r.run.dir, (int64_t)j.step, job_visit, &j, "", 1, 0));
            read_snapshot(&file, r.run.dir, (int64_t)j.step);
            assert_ok(ckpt_capture_begin(j.capture, (int64_t)j.step, false));
        }
        j.done = true;
    } else assert_int_equal(rc, TR_EINPUT);
    tr_buf_release(&file);
    job_release(&j);
    recipe_release(&r);
    return rc;
}

static void every_optimizer(void **state)
{
    static const char *const layouts[][3] = { { "train.micro_batch=4", "model.dtype=f32", "train.clip=0" }, { "train.micro_batch=1", "model.dtype=bf16", "train.clip=0" },
        { "train.micro_batch=4", "model.dtype=int8", "train.clip=1" } };
    for (int k = 0; opt_kinds[k]; k++)
        for (int l = 0; l < 3; l++) {
            if (l != k % 3 && strcmp(opt_kinds[k]->name, "adamw") && opt_kinds[k]->needs == OPT_GRADIENT) continue; /* a layout each */
            double with[STEPS], without[STEPS];
            char name[96];
            snprintf(name, sizeof name, "optimizer.name=%s", opt_kinds[k]->name);
            int rc = steps(with, true, SETS(name, layouts[l][0], layouts[l][1], layouts[l][2]));
            assert_int_equal(steps(without, false, SETS(name, layouts[l][0], layouts[l][1], layouts[l][2])), rc);
            if (rc == TR_OK && memcmp(with, without, sizeof with)) fail_msg("%s %s %s %s: other losses with snapshots in memory", name, layouts[l][0], layouts[l][1], layouts[l][2]);
        }
}

/* Layers that take turns: a state that is about to be given back is copied first. */
static void states_that_leave(void **state)
{
    double with[STEPS], without[STEPS];
    assert_ok(steps(with, true, SETS("optimizer.name=badam", "optimizer.switch_block_every=1")));
    assert_ok(steps(without, false, SETS("optimizer.name=badam", "optimizer.switch_block_every=1")));
    assert_memory_equal(with, without, sizeof with);
}

/* A whole run: its snapshots on disk are the keeper's, its metrics have every step once, nothing is left. */
static void a_whole_run(void **state)
{
    struct recipe r;
    struct metrics_row *rows;
    size_t n;
    char name[32];
    assert_ok(load(&r, "whole", SETS("checkpoint.memory_every=2")));
    assert_ok(recipe_run(&r, NULL));
    assert_ok(metrics_read(&rows, &n, r.run.dir));
    assert_int_equal(n, 6);
    for (size_t i = 0; i < n; i++) assert_true(rows[i].step == (int64_t)i + 1 && rows[i].memory.now[TR_SNAPSHOT] > 0 && rows[i].checkpoint_block_s >= 0);
    assert_true(rows[5].checkpoint_block_s > 0);
    free(rows);
    struct tr_buf a = { 0 };
    read_snapshot(&a, r.run.dir, 4);
    read_snapshot(&a, r.run.dir, 6);
    tr_buf_release(&a);
    assert_int_equal(ckpt_keeper_newest(r.run.dir, 1, name), -1);
    assert_string_equal(name, "");
    recipe_release(&r);
}

static void what_does_not_go_together(void **state)
{
    struct recipe r;
    struct job j = { 0 };
    assert_int_equal(load(&r, "bad", SETS("checkpoint.memory_every=1", "memory.offload=disk")), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "checkpoint.memory_every = 0"));
    recipe_release(&r);
    assert_ok(load(&r, "bad", SETS("checkpoint.memory_every=1", "optimizer.name=frugal", "optimizer.selection=blockwise")));
    assert_int_equal(recipe_run(&r, NULL), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "blockwise"));
    recipe_release(&r);
    assert_ok(load(&r, "bad", SETS("checkpoint.memory_every=1", "memory.budget=1M")));
    assert_int_equal(recipe_run(&r, NULL), TR_EBUDGET);
    assert_non_null(strstr(tr_message(), "snapshot "));
    recipe_release(&r);
    job_release(&j);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "keep")) return ckpt_keeper_run(argv[2]); /* as the program does */
    tr_log_quiet(true);
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_optimizer), cmocka_unit_test(states_that_leave), cmocka_unit_test(a_whole_run), cmocka_unit_test(what_does_not_go_together) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
