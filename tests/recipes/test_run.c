/* Whole runs of a small model: what was foretold is what is used, fused equals unfused, resumed equals undisturbed, threads
 * do not show, and what goes wrong is said with its place. */
#include "tests/support/recipe.h"
#include "tests/support/support.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/kernel/kernel.h"
#include "optim/optim.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include "recipes/metrics.h"
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char base[] =
    "[model]\narch = llama\nhidden = 32\nlayers = 3\nheads = 4\nkv_heads = 2\nintermediate = 64\nvocab = 257\ncontext = 64\ntokenizer = bytes\ndtype = f32\n"
    "[data]\nsequence = 48\n[train]\nsteps = 6\nbatch = 4\nmicro_batch = 4\nlr = 1e-3\nwarmup = 2\nseed = 3\nlog_every = 1000\n[checkpoint]\nevery = 3\nkeep = 5\n";

static int load(struct recipe *r, const char *name, const char *const *more) { return test_recipe(r, base, name, more); }

/* Runs it; the losses go to `loss` (6 at most). */
static void run(const char *name, const char *resume, double *loss, const char *const *more)
{
    struct recipe r;
    struct metrics_row *rows;
    size_t n;
    assert_ok(load(&r, name, more));
    assert_ok(recipe_run(&r, resume));
    assert_ok(metrics_read(&rows, &n, r.run.dir));
    for (size_t i = 0; loss && i < n && i < 6; i++) loss[i] = rows[i].loss;
    free(rows);
    recipe_release(&r);
}

/* Every optimizer that trains by gradients, under several layouts: the forecast's peak and state equal the ledger's. */
static void foretold_is_used(void **state)
{
    static const char *const layouts[][3] = { { "train.micro_batch=4", "memory.recompute=selective", "model.dtype=f32" }, { "train.micro_batch=2", "memory.recompute=block", "model.dtype=bf16" },
        { "train.micro_batch=4", "memory.recompute=none", "model.dtype=int8" }, { "train.micro_batch=1", "memory.recompute=selective", "train.clip=1" } };
    for (int k = 0; opt_kinds[k]; k++)
        for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
            struct recipe r;
            struct job j;
            struct forecast f;
            struct step_result s;
            char name[96];
            snprintf(name, sizeof name, "optimizer.name=%s", opt_kinds[k]->name);
            bool turns = opt_has_key(opt_kinds[k]->name, "switch_mode"); /* the forecast is of the lowest block's turn */
            assert_ok(load(&r, "plan", SETS(name, layouts[l][0], layouts[l][1], layouts[l][2], turns ? "optimizer.switch_mode=ascending" : NULL)));
            test_job_open(&j, &r);
            size_t before = tr_mem_ledger().total;
            int rc = forecast_fit(&j, &f);
            if (rc == TR_OK) {
                test_job_build(&j);
                tr_mem_reset_peak();
                for (int i = 0; i < 2; i++) assert_ok(job_step(&j, &s));
                struct tr_ledger used = tr_mem_ledger();
                for (int c = 0; c < TR_CATEGORIES; c++)
                    if (used.at_peak[c] != f.ledger.at_peak[c] && c != TR_WORKSPACE) fail_msg("%s %s %s %s: %s at the peak is %zu, foretold %zu", name, layouts[l][0], layouts[l][1], layouts[l][2], tr_category_name((enum tr_category)c), used.at_peak[c], f.ledger.at_peak[c]);
                if (used.peak != f.ledger.peak) fail_msg("%s %s %s %s: peak is %zu, foretold %zu", name, layouts[l][0], layouts[l][1], layouts[l][2], used.peak, f.ledger.peak);
                assert_int_equal(used.now[TR_OPTIMIZER], opt_state_bytes(j.opt));
            } else assert_int_equal(rc, TR_EINPUT); /* a kind that needs more than a gradient says so */
            job_release(&j);
            assert_true(tr_mem_ledger().total <= before);
            recipe_release(&r);
        }
}

/* Examples of unequal length of which a part is counted: no step of the run goes above what was foretold. */
static void uneven_batches_stay_within(void **state)
{
    char data[512], train[560];
    snprintf(data, sizeof data, "%s/uneven.jsonl", test_folder());
    snprintf(train, sizeof train, "data.train=%s", data);
    FILE *f = fopen(data, "w");
    assert_non_null(f);
    for (int i = 0; i < 40; i++) fprintf(f, "{\"prompt\": \"%.*s\", \"completion\": \"%.*s\"}\n", 1 + i * 7 % 13, "what is asked", 1 + i * 11 % 29, "what is answered to it, at length");
    fclose(f);
    for (int pack = 0; pack < 2; pack++) {
        struct recipe r;
        struct job j;
        struct forecast foretold;
        struct step_result s;
        assert_ok(load(&r, "uneven", SETS(train, pack ? "data.pack=true" : "data.pack=false", "data.mask_prompt=true")));
        test_job_open(&j, &r);
        assert_ok(forecast_fit(&j, &foretold));
        test_job_build(&j);
        tr_mem_dry(true); /* there and back: work buffers of what came before are forgotten */
        tr_mem_dry(false);
        tr_mem_reset_peak();
        int64_t least = INT64_MAX, most = 0;
        for (int i = 0; i < 20; i++) {
            assert_ok(job_step(&j, &s));
            least = s.counted < least ? s.counted : least;
            most = s.counted > most ? s.counted : most;
        }
        assert_true(most > least);
        assert_true(tr_mem_ledger().peak <= foretold.ledger.peak);
        assert_true(tr_mem_ledger().arena_reserved <= foretold.ledger.arena_reserved);
        job_release(&j);
        recipe_release(&r);
    }
}

static void fused_equals_unfused(void **state)
{
    double fused[6], apart[6];
    run("fused", NULL, fused, SETS("memory.fused_update=true", "optimizer.name=apollo-mini"));
    run("apart", NULL, apart, SETS("memory.fused_update=false", "optimizer.name=apollo-mini"));
    assert_memory_equal(fused, apart, sizeof fused);
}

static void activations_do_not_show(void **state)
{
    double kept[6], other[6];
    run("kept", NULL, kept, SETS("memory.recompute=none"));
    run("block", NULL, other, SETS("memory.recompute=block"));
    assert_memory_equal(kept, other, sizeof kept);
    run("one", NULL, other, SETS("run.threads=1"));
    assert_memory_equal(kept, other, sizeof kept);
    tr_set_threads(2);
}

/* Micro-batches of one sequence and of four: equal but for rounding; loss is per counted token of the whole batch. */
static void micro_batches_agree(void **state)
{
    double whole[6], parts[6];
    run("whole", NULL, whole, SETS("train.micro_batch=4"));
    run("parts", NULL, parts, SETS("train.micro_batch=1"));
    for (int i = 0; i < 6; i++) assert_true(fabs(whole[i] - parts[i]) < 1e-4);
}

static void resumed_equals_undisturbed(void **state)
{
    static const char *const dtypes[] = { "model.dtype=f32", "model.dtype=bf16", "model.dtype=int8" };
    for (int d = 0; d < 3; d++) {
        double whole[6], parts[6];
        run("calm", NULL, whole, SETS(dtypes[d], "optimizer.name=apollo", "optimizer.rank=4", "optimizer.update_gap=2"));
        run("cut", NULL, NULL, SETS(dtypes[d], "optimizer.name=apollo", "optimizer.rank=4", "optimizer.update_gap=2", "train.stop_at=4"));
        run("cut", "", parts, SETS(dtypes[d], "optimizer.name=apollo", "optimizer.rank=4", "optimizer.update_gap=2"));
        assert_memory_equal(whole, parts, sizeof whole);
    }
}

#define SUBSPACE_OF(OPTIMIZER) "optimizer.name=" OPTIMIZER, "optimizer.rank=4", "optimizer.update_gap=3"
static const char *const *const in_a_subspace[] = { SETS(SUBSPACE_OF("galore")), SETS(SUBSPACE_OF("galore"), "optimizer.proj_type=full"), SETS(SUBSPACE_OF("galore-8bit"), "optimizer.min_8bit_size=0"),
    SETS(SUBSPACE_OF("galore-adafactor")), SETS(SUBSPACE_OF("natural-galore"), "optimizer.eps=1e-3"), SETS("optimizer.name=frugal", "optimizer.update_gap=3", "optimizer.inactive_update_rule=no", "optimizer.selection=svd"),
    SETS("optimizer.name=frugal-sgd", "optimizer.update_gap=3", "optimizer.inactive_update_rule=no", "optimizer.selection=randk") };

static void with(const char **sets, const char *const *a, const char *b, const char *c)
{
    int n = 0;
    while (*a) sets[n++] = *a++;
    sets[n++] = b;
    if (c) sets[n++] = c;
    sets[n] = NULL;
}

/* Projections of micro-batches add up to the projection of the batch, but for rounding; a stop between two refreshes, when the
 * subspace is one that a snapshot holds, does not show; nor does where the state waits. */
static void sums_of_projections(void **state)
{
    for (size_t i = 0; i < sizeof in_a_subspace / sizeof *in_a_subspace; i++) {
        const char *sets[16];
        double whole[6], parts[6], other[6];
        with(sets, in_a_subspace[i], "train.micro_batch=4", NULL);
        run("low-whole", NULL, whole, sets);
        with(sets, in_a_subspace[i], "train.micro_batch=1", NULL);
        run("low-parts", NULL, parts, sets);
        for (int k = 0; k < 6; k++)
            if (!(fabs(whole[k] - parts[k]) < 1e-3)) fail_msg("%s, step %d: %g in one micro-batch, %g in four", sets[0], k, whole[k], parts[k]);
        with(sets, in_a_subspace[i], "train.micro_batch=1", "train.stop_at=5");
        run("low-cut", NULL, NULL, sets);
        with(sets, in_a_subspace[i], "train.micro_batch=1", NULL);
        run("low-cut", "", other, sets);
        assert_memory_equal(parts, other, sizeof parts);
        if (i > 0) continue;
        with(sets, in_a_subspace[i], "train.micro_batch=1", "memory.offload=disk");
        run("low-disk", NULL, other, sets);
        assert_memory_equal(parts, other, sizeof parts);
    }
}

static size_t most_gradients;
static void watch_gradients(void *self, const struct tr_ledger *l) { most_gradients = l->now[TR_GRADIENTS] > most_gradients ? l->now[TR_GRADIENTS] : most_gradients; }

/* Between refreshes the sums of matrices are [R, longer side]: measured, foretold and by the formula. With train.clip they are whole. */
static void sums_are_small(void **state)
{
    struct recipe r;
    struct job j;
    struct forecast f;
    struct step_result s;
    size_t held[3], less = 0;
    assert_ok(load(&r, "small", SETS(SUBSPACE_OF("galore"), "train.micro_batch=2")));
    test_job_open(&j, &r);
    assert_ok(forecast_fit(&j, &f));
    test_job_build(&j);
    for (int i = 0; i < 3; i++) {
        most_gradients = 0;
        tr_mem_trace(watch_gradients, NULL);
        assert_ok(job_step(&j, &s));
        tr_mem_trace(NULL, NULL);
        held[i] = most_gradients;
    }
    assert_int_equal(held[0], f.held[0]);
    assert_int_equal(held[1], f.held[1]);
    assert_int_equal(held[2], f.held[1]);
    assert_int_equal(f.refresh, 3);
    for (int64_t i = 0; i < j.net->n_params; i++) {
        int64_t m = tr_rows(&j.net->param[i].value), n = tr_cols(&j.net->param[i].value);
        if (j.net->param[i].role == TR_MATRIX) less += 4 * (size_t)(m * n - 4 * (m > n ? m : n));
    }
    assert_int_equal(held[0] - held[1], less); /* both are fullest where the embedding's gradient arrives */
    job_release(&j);
    recipe_release(&r);
    assert_ok(load(&r, "small", SETS(SUBSPACE_OF("galore"), "train.micro_batch=2", "train.clip=1")));
    test_job_open(&j, &r);
    assert_ok(forecast_fit(&j, &f));
    assert_int_equal(f.held[0], held[0]);
    assert_int_equal(f.held[1], held[0]);
    assert_int_equal(f.refresh, 0);
    job_release(&j);
    recipe_release(&r);
}

static uint32_t masked(const void *p, size_t n)
{
    uint32_t crc = tr_crc32c(0, p, n);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

/* Every record of the event file is whole and carries the checksums that TensorBoard asks for; one record a step. */
static void tensorboard_records(void **state)
{
    char folder[600], file[1200];
    run("board", NULL, NULL, SETS("run.tensorboard=true"));
    snprintf(folder, sizeof folder, "%s/board/tensorboard", test_folder());
    DIR *d = opendir(folder);
    assert_non_null(d);
    struct dirent *e;
    while ((e = readdir(d)) && e->d_name[0] == '.') {}
    assert_non_null(e);
    snprintf(file, sizeof file, "%s/%s", folder, e->d_name);
    closedir(d);
    struct tr_buf b = { 0 };
    assert_ok(tr_read_file(&b, file));
    size_t at = 0;
    int records = 0;
    for (uint64_t n; at < b.size; at += 16 + n, records++) {
        uint32_t crc;
        assert_true(b.size - at >= 16);
        memcpy(&n, b.data + at, 8);
        memcpy(&crc, b.data + at + 8, 4);
        assert_int_equal(crc, masked(b.data + at, 8));
        assert_true(n <= b.size - at - 16);
        memcpy(&crc, b.data + at + 12 + n, 4);
        assert_int_equal(crc, masked(b.data + at + 12, n));
    }
    assert_int_equal(at, b.size);
    assert_int_equal(records, 1 + 6); /* the version and the steps */
    tr_buf_release(&b);
}

static void numbers_that_are_not_finite(void **state)
{
    struct recipe r;
    struct metrics_row *rows;
    size_t n;
    assert_ok(load(&r, "nan", SETS("train.lr=1e6", "train.warmup=4", "train.clip=0", "checkpoint.every=1", "train.steps=40", "optimizer.name=sgd")));
    assert_int_equal(recipe_run(&r, NULL), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "not finite"));
    assert_non_null(strstr(tr_message(), "step "));
    assert_ok(metrics_read(&rows, &n, r.run.dir));
    for (size_t i = 0; i < n; i++) assert_true(isfinite(rows[i].loss));
    free(rows);
    recipe_release(&r);
}

static void a_budget_that_is_too_small(void **state)
{
    struct recipe r;
    assert_ok(load(&r, "budget", SETS("memory.budget=1M")));
    assert_int_equal(recipe_run(&r, NULL), TR_EBUDGET);
    assert_non_null(strstr(tr_message(), "optimizer"));
    char report[600];
    snprintf(report, sizeof report, "%s/report.html", r.run.dir);
    assert_true(access(report, F_OK) != 0);
    recipe_release(&r);
}

static void recipes_that_are_wrong(void **state)
{
    static const struct { const char *set, *says; } bad[] = {
        { "train.stepz=3", "did you mean 'train.steps'?" }, { "trian.steps=3", "did you mean 'train'?" }, { "optimizer.name=adamx", "did you mean" }, { "optimizer.rank=3", "optimizer.rank" },
        { "train.micro_batch=3", "does not divide" }, { "train.epochs=2", "both set" }, { "model.preset=llama-9b", "preset" }, { "train.lr=fast", "must be a number" }, { "nonsense", "section.key=value" },
        { "model.heads=3", "heads" }, { "parallel.backend=nccl", "NCCL" }, { "parallel.schedule=v-half", "pipeline" }, { "memory.offload=host", "host's memory" }, { "memory.offload_dir=x", "memory.offload = disk" }, { "memory.fused_update=true", NULL }, { "optimizer.group.x.name=sgd", "match" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct recipe r;
        int rc = load(&r, "bad", SETS(bad[i].set));
        struct job j = { 0 };
        if (rc == TR_OK) rc = job_open(&j, &r);
        job_release(&j);
        recipe_release(&r);
        if (!bad[i].says) assert_int_equal(rc, TR_OK);
        else if (rc != TR_EINPUT || !strstr(tr_message(), bad[i].says)) fail_msg("%s gives %d: %s", bad[i].set, rc, rc ? tr_message() : "");
    }
}

int main(void)
{
    tr_log_quiet(true);
    const struct CMUnitTest tests[] = { cmocka_unit_test(foretold_is_used), cmocka_unit_test(uneven_batches_stay_within), cmocka_unit_test(fused_equals_unfused), cmocka_unit_test(activations_do_not_show), cmocka_unit_test(micro_batches_agree),
        cmocka_unit_test(resumed_equals_undisturbed), cmocka_unit_test(sums_of_projections), cmocka_unit_test(sums_are_small), cmocka_unit_test(tensorboard_records), cmocka_unit_test(numbers_that_are_not_finite), cmocka_unit_test(a_budget_that_is_too_small), cmocka_unit_test(recipes_that_are_wrong) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
