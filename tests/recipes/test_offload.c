/* memory.offload = disk: the same losses as without, for every optimizer and layout; the ledger and the disk traffic are
 * those foretold; snapshots go from one to the other; nothing stays in the folder; what goes wrong on the disk ends the run. */
#include "tests/support/recipe.h"
#include "tests/support/support.h"
#include "libtrain/base/log.h"
#include "optim/optim.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include "recipes/metrics.h"
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* Matrices and activations above the size from which anything goes to the file. */
static const char base[] =
    "[model]\narch = llama\nhidden = 128\nlayers = 3\nheads = 4\nkv_heads = 2\nintermediate = 256\nvocab = 257\ncontext = 64\ntokenizer = bytes\n"
    "[data]\nsequence = 64\n[train]\nsteps = 4\nbatch = 8\nlr = 1e-3\nwarmup = 2\nseed = 3\nlog_every = 1000\n[checkpoint]\nevery = 2\nkeep = 5\n[run]\nthreads = 1\n";

static int load(struct recipe *r, const char *name, const char *const *more) { return test_recipe(r, base, name, more); }

enum { STEPS = 3 };

/* A few steps; false when the optimizer does not work so. f NULL: no forecast is asked. */
static bool steps(double *loss, struct tr_ledger *used, struct tr_spill_counts *disk, struct forecast *f, const char *const *more)
{
    struct recipe r;
    struct job j;
    struct step_result s;
    assert_ok(load(&r, "steps", more));
    test_job_open(&j, &r);
    int rc = forecast_run(&j, f);
    if (rc == TR_OK) {
        test_job_build(&j);
        tr_mem_reset_peak();
        for (int i = 0; i < STEPS; i++) {
            struct tr_spill_counts before = job_disk(&j);
            assert_ok(job_step(&j, &s));
            loss[i] = s.loss;
            *disk = job_disk(&j);
            disk->read -= before.read;
            disk->written -= before.written;
        }
        *used = tr_mem_ledger();
    } else assert_int_equal(rc, TR_EINPUT);
    job_release(&j);
    recipe_release(&r);
    return rc == TR_OK;
}

static void shows_in_memory_alone(void **state)
{
    static const char *const layouts[][3] = { { "memory.recompute=selective", "model.dtype=f32", "train.clip=0" }, { "memory.recompute=block", "model.dtype=bf16", "train.micro_batch=4" },
        { "memory.recompute=none", "model.dtype=int8", "train.clip=1" } };
    bool moved = false;
    for (int k = 0; opt_kinds[k]; k++)
        for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
            if (strcmp(opt_kinds[k]->name, "adamw") && (l != (size_t)k % 3 || (test_sanitized() && k % 4))) continue; /* adamw in each, the others in turn */
            const char *const *y = layouts[l];
            char name[96];
            double kept[STEPS], spilt[STEPS];
            struct tr_ledger a, b;
            struct tr_spill_counts none, disk;
            struct forecast f;
            snprintf(name, sizeof name, "optimizer.name=%s", opt_kinds[k]->name);
            const char *turns = opt_has_key(opt_kinds[k]->name, "switch_mode") ? "optimizer.switch_mode=ascending" : NULL; /* the forecast is of the lowest block's turn */
            if (!steps(kept, &a, &none, &f, SETS(name, y[0], y[1], y[2], turns))) continue;
            assert_int_equal(none.file + none.read + none.written, 0);
            assert_true(steps(spilt, &b, &disk, &f, SETS(name, y[0], y[1], y[2], "memory.offload=disk", turns)));
            if (memcmp(kept, spilt, sizeof kept)) fail_msg("%s %s %s %s: offloading changes the losses: %.17g and %.17g", name, y[0], y[1], y[2], kept[STEPS - 1], spilt[STEPS - 1]);
            if (b.peak != f.ledger.peak) fail_msg("%s %s %s %s: the peak is %zu, foretold %zu", name, y[0], y[1], y[2], b.peak, f.ledger.peak);
            if (disk.read != f.disk.read || disk.written != f.disk.written || disk.file != f.disk.file)
                fail_msg("%s %s %s %s: a step reads %llu and writes %llu, foretold %llu and %llu", name, y[0], y[1], y[2], (unsigned long long)disk.read, (unsigned long long)disk.written, (unsigned long long)f.disk.read, (unsigned long long)f.disk.written);
            assert_true(b.now[TR_OPTIMIZER] <= a.now[TR_OPTIMIZER]);
            if (!strcmp(opt_kinds[k]->name, "adamw")) {
                assert_true(b.now[TR_OPTIMIZER] < a.now[TR_OPTIMIZER] / 10);
                assert_true(disk.read > 0 && disk.written > 0);
                moved = true;
            }
        }
    assert_true(moved);
}

static void run(const char *name, const char *resume, double *loss, const char *const *more)
{
    struct recipe r;
    struct metrics_row *rows;
    size_t n;
    assert_ok(load(&r, name, more));
    assert_ok(recipe_run(&r, resume));
    assert_ok(metrics_read(&rows, &n, r.run.dir));
    for (size_t i = 0; loss && i < n && i < 4; i++) loss[i] = rows[i].loss;
    free(rows);
    recipe_release(&r);
}

static void snapshots_go_both_ways(void **state)
{
    static const char *const way[] = { "memory.offload=none", "memory.offload=disk" };
    double calm[4], cut[4];
    char dir[600];
    run("calm", NULL, calm, SETS("model.dtype=bf16"));
    for (int first = 0; first < 2; first++)
        for (int then = 0; then < 2; then++) {
            run("cut", NULL, NULL, SETS("model.dtype=bf16", way[first], "train.stop_at=2"));
            run("cut", "", cut, SETS("model.dtype=bf16", way[then]));
            assert_memory_equal(calm, cut, sizeof calm);
        }
    snprintf(dir, sizeof dir, "%s/cut", test_folder());
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) assert_null(strstr(e->d_name, "offload"));
    closedir(d);
}

static void a_disk_that_fails(void **state)
{
    struct recipe r;
    struct rlimit old, low;
    char dir[700], file[600];
    assert_ok(load(&r, "host", SETS("memory.offload=none")));
    recipe_release(&r);
    assert_int_equal(load(&r, "host", SETS("memory.offload=host")), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "host's memory"));
    recipe_release(&r);

    snprintf(file, sizeof file, "%s/taken", test_folder());
    FILE *f = fopen(file, "w");
    fclose(f);
    snprintf(dir, sizeof dir, "memory.offload_dir=%s/sub", file);
    assert_ok(load(&r, "nowhere", SETS("memory.offload=disk", dir)));
    assert_int_equal(recipe_run(&r, NULL), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "taken"));
    recipe_release(&r);

    /* Room for the first parameters' state and no more. */
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = old;
    low.rlim_cur = 1 << 20;
    assert_ok(load(&r, "full", SETS("memory.offload=disk")));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    int rc = recipe_run(&r, NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, TR_EFAIL);
    assert_non_null(strstr(tr_message(), "offload"));
    recipe_release(&r);
}

/* The disk fills after a snapshot was written: the run ends with its error, the snapshot is whole, and the run goes on from
 * it once there is room, to the bits of one that was never disturbed. */
static void a_disk_that_fills_on_the_way(void **state)
{
    struct recipe r;
    struct rlimit old, low;
    double calm[4], cut[4];
    run("calm-disk", NULL, calm, SETS("memory.offload=disk"));
    run("filled", NULL, NULL, SETS("memory.offload=disk", "train.stop_at=2"));
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = old;
    low.rlim_cur = 1 << 20;
    assert_ok(load(&r, "filled", SETS("memory.offload=disk")));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    int rc = recipe_run(&r, "");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, TR_EFAIL);
    assert_non_null(strstr(tr_message(), "--resume"));
    recipe_release(&r);
    run("filled", "", cut, SETS("memory.offload=disk"));
    assert_memory_equal(calm, cut, sizeof calm);
}

int main(void)
{
    tr_log_quiet(true);
    const struct CMUnitTest tests[] = { cmocka_unit_test(shows_in_memory_alone), cmocka_unit_test(snapshots_go_both_ways), cmocka_unit_test(a_disk_that_fails),
        cmocka_unit_test(a_disk_that_fills_on_the_way) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
