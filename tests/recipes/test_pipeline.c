/* Activations of each rank of a pipeline, in the ledger of a run without memory, beside what the schedule's simulation says from what the
 * steps of one micro-batch do: the same to the byte. */
#include "tests/support/recipe.h"
#include "tests/support/support.h"
#include "libtrain/base/log.h"
#include "parallel/schedule/schedule.h"
#include "recipes/pipeline.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static const char base[] =
    "[model]\narch = llama\nhidden = 64\nlayers = 16\nheads = 4\nintermediate = 128\nvocab = 1021\ncontext = 64\ntokenizer = bytes\ndtype = f32\n"
    "[data]\nsequence = 64\n[train]\nsteps = 2\nbatch = 12\nmicro_batch = 1\nlr = 1e-3\n[checkpoint]\nevery = 0\n";

struct figures { size_t simulated, most, micro_batch, weights; };   /* bytes of activations, also of one micro-batch in this rank's stages; of weights */

static void watch(void *self, const struct tr_ledger *l)
{
    struct figures *f = self;
    if (l->now[TR_ACTIVATIONS] > f->most) f->most = l->now[TR_ACTIVATIONS];
}

/* What each step of the first micro-batch does to the bytes of activations: of[its kind][of which pass][chunk]. */
struct steps { struct par_bytes of[PAR_EMBED + 1][PAR_PASSES][2], *now; double begin; };

static double held(void) { return (double)tr_mem_ledger().now[TR_ACTIVATIONS]; }

static void watch_step(void *self, const struct tr_ledger *l)
{
    struct steps *s = self;
    double more = (double)l->now[TR_ACTIVATIONS] - s->begin;
    if (s->now && more > s->now->during) s->now->during = more;
}

static void next_step(void *self, const struct par_step *k)
{
    struct steps *s = self;
    if (s->now) s->now->after = held() - s->begin;
    s->now = k && k->pass.micro == 0 ? &s->of[k->kind][k->pass.kind][k->pass.chunk] : NULL;
    s->begin = held();
}

static struct par_bytes bytes_of(void *self, const struct par_step *k)
{
    const struct steps *s = self;
    return s->of[k->kind][k->pass.kind][k->pass.chunk];
}

/* A rank's job; the recipe must live as long. */
static void make(struct job *j, struct recipe *r, struct tr_comm *line, const char *const *more, const char *batch)
{
    assert_ok(test_recipe(r, base, "pipeline", more));
    if (batch) assert_ok(recipe_set(r, batch));
    assert_ok(job_open(j, r));
    line->kind = j->comm->kind;
    j->comm = j->pipe = line;
    j->stages = line->size;
    assert_ok(job_tokenizer(j, true));
    assert_ok(job_data(j, true));
    job_forget_files(j);
    tr_loader_widest(j->loader, j->batch * 3);
    tr_mem_dry(true);
    assert_ok(job_net(j, false));
    assert_ok(job_training(j));
}

/* Of a micro-batch from a run with as many of them as ranks, put together as the table of the run with all of them says. */
static void simulate(struct figures *f, const char *const *more, struct tr_comm *line, int64_t micros)
{
    struct recipe r;
    struct job j;
    struct steps steps = { .now = NULL };
    struct step_result result;
    struct par_schedule s;
    struct par_steps table;
    char batch[32];
    snprintf(batch, sizeof batch, "train.batch=%d", line->size);
    make(&j, &r, line, more, batch);
    pipeline_watch(j.pipeline, next_step, &steps);
    tr_mem_trace(watch_step, &steps);
    assert_ok(job_step(&j, &result));
    tr_mem_trace(NULL, NULL);
    assert_ok(par_schedule_make(&s, par_schedule_names()[r.parallel.schedule], j.stages, 0, (int)micros, (enum par_vocabulary)r.parallel.vocabulary));
    assert_ok(par_schedule_lower(&table, &s));
    f->simulated = (size_t)par_steps_peak(&table, line->rank, bytes_of, &steps);
    f->micro_batch = (size_t)(steps.of[PAR_EMBED][PAR_F][0].after + steps.of[PAR_COMPUTE][PAR_F][0].after + steps.of[PAR_SEND][PAR_F][0].after); /* the first rank's */
    par_steps_release(&table);
    par_schedule_release(&s);
    job_release(&j);
    recipe_release(&r);
}

/* In a process of its own: dry mode is for good. */
static void measure(struct figures *f, const char *const *more, int ranks, int rank)
{
    struct recipe r;
    struct job j;
    struct step_result result;
    struct tr_comm line = { .size = ranks, .rank = rank, .local = 1, .doing = "" };
    simulate(f, more, &line, 12);
    make(&j, &r, &line, more, NULL);
    assert_int_equal(j.rounds, 12);
    tr_mem_trace(watch, f);
    assert_ok(job_step(&j, &result));
    f->weights = tr_mem_ledger().now[TR_WEIGHTS];
}

static struct figures figures_of(const char *const *more, int ranks, int rank)
{
    struct figures f = { 0 };
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        measure(&f, more, ranks, rank);
        _exit(write(ends[1], &f, sizeof f) == (ssize_t)sizeof f ? 0 : 1);
    }
    assert_int_equal(read(ends[0], &f, sizeof f), sizeof f);
    close(ends[0]);
    close(ends[1]);
    waitpid(child, NULL, 0);
    return f;
}

enum { RANKS = 4 };

static struct figures of_rank(const char *schedule, const char *vocabulary, int rank)
{
    char set[2][64];
    snprintf(set[0], sizeof set[0], "parallel.schedule=%s", schedule);
    snprintf(set[1], sizeof set[1], "parallel.vocabulary=%s", vocabulary);
    return figures_of(SETS("parallel.pipeline=4", set[0], set[1]), RANKS, rank);
}

static void ledger_is_simulation(void **state)
{
    static const char *const vocabularies[] = { "none", "alg1", "alg2" };
    for (const char *const *k = par_schedule_names(); *k; k++)
        for (int v = 0; v < 3; v++)
            for (int r = 0; r < RANKS; r++) {
                struct figures f = of_rank(*k, vocabularies[v], r);
                if (f.most != f.simulated) fail_msg("%s, %s, rank %d: the ledger has %zu bytes of activations where the simulation has %zu", *k, vocabularies[v], r, f.most, f.simulated);
            }
}

/* A barrier costs 1f1b the activations of one micro-batch, and no more. */
static void barriers_hold_micro_batches(void **state)
{
    struct figures none = of_rank("1f1b", "none", 0), two = of_rank("1f1b", "alg1", 0), one = of_rank("1f1b", "alg2", 0);
    assert_int_equal(none.most / none.micro_batch, RANKS);
    assert_int_equal(one.most / one.micro_batch, RANKS + 1);
    assert_int_equal(two.most / two.micro_batch, RANKS + 2);
}

static double uneven(const size_t *x)
{
    size_t least = x[0], most = x[0];
    for (int r = 1; r < RANKS; r++) {
        least = x[r] < least ? x[r] : least;
        most = x[r] > most ? x[r] : most;
    }
    return (double)most / (double)least;
}

static void v_half_is_level(void **state)
{
    size_t all[RANKS], weights[RANKS];
    for (int r = 0; r < RANKS; r++) {
        struct figures f = of_rank("v-half", "alg2", r);
        all[r] = f.most + f.weights;
    }
    if (uneven(all) > 1.05) fail_msg("weights and activations of the largest rank are %.3f x the smallest's", uneven(all));
    /* 30 layers are 7, 7, 8 and 8: rows of the vocabulary make up for their weights. */
    for (int r = 0; r < RANKS; r++)
        weights[r] = figures_of(SETS("parallel.pipeline=4", "parallel.schedule=v-half", "parallel.vocabulary=alg2", "model.layers=30", "model.vocab=4093", "model.tied=true"), RANKS, r).weights;
    if (uneven(weights) > 1.02) fail_msg("weights of the largest rank of 30 layers are %.3f x the smallest's", uneven(weights));
}

int main(void)
{
    tr_log_quiet(true);
    const struct CMUnitTest tests[] = { cmocka_unit_test(ledger_is_simulation), cmocka_unit_test(barriers_hold_micro_batches), cmocka_unit_test(v_half_is_level) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
