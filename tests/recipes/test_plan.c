/* The forecast of a step in time, and the advice of a budget that is too small: what it says a change saves, the change saves. */
#include "tests/support/recipe.h"
#include "tests/support/support.h"
#include "libtrain/base/log.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char base[] =
    "[model]\narch = llama\nhidden = 256\nlayers = 6\nheads = 4\nintermediate = 512\nvocab = 257\ncontext = 64\ntokenizer = bytes\n"
    "[data]\nsequence = 64\n[train]\nsteps = 4\nbatch = 16\nlr = 1e-3\n[checkpoint]\nevery = 0\n";

static struct tr_comm ranks = { .size = 1 };   /* size > 1: those that a forecast is for, and which of them */

/* Forecast of the base recipe with settings; TR_OK or the budget's refusal. */
static int64_t held; /* resident in this process when the last forecast began: it is part of the foretold peak, and not the run's */

static int foretell(struct forecast *f, const char *const *more)
{
    struct recipe r;
    struct job j;
    assert_ok(test_recipe(&r, base, "plan", more));
    assert_ok(job_open(&j, &r));
    ranks.kind = j.comm->kind;
    ranks.local = 1;
    ranks.doing = "";
    if (ranks.size > 1) j.comm = j.data = &ranks;
    assert_ok(job_tokenizer(&j, true));
    assert_ok(job_data(&j, true));
    held = (int64_t)tr_rss_now();
    int rc = forecast_fit(&j, f);
    job_release(&j);
    recipe_release(&r);
    return rc;
}


static void phases_hold_the_peak(void **state)
{
    static const char *const layouts[][3] = { { "train.clip=0", "optimizer.name=adamw" }, { "train.clip=1", "optimizer.name=galore" }, { "train.micro_batch=4", "optimizer.name=apollo" },
        { "memory.recompute=block", "optimizer.name=adamw" }, { "memory.offload=disk", "optimizer.name=adamw" } };
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
        struct forecast f;
        assert_ok(foretell(&f, layouts[l]));
        size_t top = 0;
        for (int p = 0; p < FORECAST_PHASES; p++) {
            size_t sum = 0;
            for (int c = 0; c < TR_CATEGORIES; c++) sum += f.phase[p].at[c];
            assert_int_equal(sum, f.phase[p].total);
            if (f.phase[p].total > top) top = f.phase[p].total;
        }
        assert_int_equal(top, f.ledger.peak);
        assert_int_equal(f.phase[forecast_peak_phase(&f)].total, top);
        assert_true(f.phase[FORECAST_EMBED].total < f.phase[FORECAST_BLOCKS].total);
    }
}

/* Each "KEY = VALUE saves N MB" of the refusal, done. */
static void advice_is_true(void **state)
{
    static const char *const bases[][2] = { { "model.dtype=f32", "train.clip=0" }, { "model.dtype=f32", "train.clip=1" }, { "model.dtype=bf16", "train.micro_batch=8" }, { "model.dtype=f32", "optimizer.name=galore" } };
    int followed = 0;
    for (size_t b = 0; b < sizeof bases / sizeof *bases; b++) {
        struct forecast whole, other;
        char advice[2048], key[64], value[64];
        assert_ok(foretell(&whole, SETS(bases[b][0], bases[b][1])));
        int64_t whole_needs = whole.peak_rss - held;
        assert_int_equal(foretell(&other, SETS(bases[b][0], bases[b][1], "memory.budget=1M")), TR_EBUDGET);
        assert_non_null(strstr(tr_message(), "at its peak ("));
        snprintf(advice, sizeof advice, "%s", tr_message());
        double last = 1e30;
        for (char *p = advice; (p = strstr(p, " saves ")); p++) {
            char set[160];
            double saves = atof(p + 7);
            char *begin = p;
            while (begin > advice && begin[-1] != ',' && begin[-1] != ';') begin--;
            assert_int_equal(sscanf(begin, " %63s = %63s", key, value), 2);
            snprintf(set, sizeof set, "%s=%s", key, value);
            assert_ok(foretell(&other, SETS(bases[b][0], bases[b][1], set)));
            double saved = (double)(whole_needs - (other.peak_rss - held)) / 1e6;
            if (fabs(saved - saves) > 0.5) fail_msg("%s is said to save %.1f MB and saves %.1f", set, saves, saved); /* pages of the process differ a little */
            assert_true(saves <= last);
            last = saves;
            followed++;
        }
    }
    assert_true(followed >= 8);
}

static void what_fits_is_marked(void **state)
{
    struct forecast whole, block;
    char budget[64];
    assert_ok(foretell(&whole, SETS("memory.recompute=none")));
    assert_ok(foretell(&block, SETS("memory.recompute=block")));
    snprintf(budget, sizeof budget, "memory.budget=%lldK", (long long)(block.peak_rss / 1000 + 1000));
    assert_true(whole.peak_rss > block.peak_rss + 2000000);
    struct forecast f;
    assert_int_equal(foretell(&f, SETS("memory.recompute=none", budget)), TR_EBUDGET);
    char *at = strstr(tr_message(), "memory.recompute = block saves");
    assert_non_null(at);
    assert_non_null(strstr(at, "(then it fits)"));
}

/* What ranks hold together is what one holds, to the byte: state by the optimizer's formula, at stage 3 the weights. */
static void shares_add_up(void **state)
{
    static const char *const names[] = { "adamw", "adamw-8bit", "lion", "sgd", "adafactor", "galore", "galore-8bit", "apollo", "apollo-mini", "frugal", "muon", "soap" };
    static const int sizes[] = { 2, 4, 8 };
    for (size_t o = 0; o < sizeof names / sizeof *names; o += test_sanitized() ? 3 : 1)
        for (int zero = 1; zero <= 3; zero++)
            for (size_t s = 0; s < 3; s++) {
                struct forecast one, f;
                char name[64], stage[64], data[64];
                int64_t optimizer = 0, weights = 0, most = 0, copies = 0;
                snprintf(name, sizeof name, "optimizer.name=%s", names[o]);
                snprintf(stage, sizeof stage, "parallel.zero=%d", zero);
                snprintf(data, sizeof data, "parallel.data=%d", sizes[s]);
                assert_ok(foretell(&one, SETS(name)));
                assert_int_equal(one.state[TR_OPTIMIZER], one.formula);
                for (int r = 0; r < sizes[s]; r++) {
                    ranks.size = sizes[s];
                    ranks.rank = r;
                    assert_ok(foretell(&f, SETS(name, stage, data)));
                    assert_int_equal(f.rank, r);
                    optimizer += f.state[TR_OPTIMIZER];
                    weights += f.state[TR_WEIGHTS];
                    copies += f.state[TR_COMMUNICATION];
                    int64_t dealt = f.state[TR_OPTIMIZER] + (zero == 3 ? f.state[TR_WEIGHTS] : 0);
                    if (dealt > most) most = dealt;
                }
                assert_int_equal(optimizer, one.formula);
                assert_int_equal(weights, one.state[TR_WEIGHTS] * (zero == 3 ? 1 : sizes[s]));
                assert_int_equal(most, f.dealt_most);
                /* bases of rank 128 of 4 + 3 matrices in 6 blocks, whose smaller side is 256, on every rank but the one that has the state */
                assert_int_equal(copies, strncmp(names[o], "galore", 6) ? 0 : (sizes[s] - 1) * 4 * 128 * 256 * 7 * 6);
                ranks.planned = true; /* of ranks that are not there the one with most is told */
                ranks.rank = 0;
                assert_ok(foretell(&f, SETS(name, stage, data)));
                assert_int_equal(f.state[TR_OPTIMIZER] + (zero == 3 ? f.state[TR_WEIGHTS] : 0), most);
                ranks.planned = false;
                ranks.size = 1;
            }
}

int main(void)
{
    tr_log_quiet(true);
    const struct CMUnitTest tests[] = { cmocka_unit_test(phases_hold_the_peak), cmocka_unit_test(advice_is_true), cmocka_unit_test(what_fits_is_marked), cmocka_unit_test(shares_add_up) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
