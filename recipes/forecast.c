#include "recipes/forecast.h"
#include "libtrain/base/file.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/gemm/gemm.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct answer { int rc; char message[1024]; struct forecast f; };

/* What the process holds beside the ledger once it runs: code of the libraries, their generated kernels, thread stacks; and
 * what HDF5 keeps once a snapshot was written. Measured as peak_rss - ledger over models from 1 to 135 million parameters. */
enum { BESIDE = 16500000, BESIDE_HDF5 = 7500000 };

/* ---- the step's phases */

const char *forecast_phase_name(enum forecast_phase p)
{
    static const char *const names[FORECAST_PHASES] = { "embedding", "blocks", "loss head", "backward: blocks", "backward: embedding", "updates" };
    return names[p];
}

/* What belongs to no part of its own is counted where the step stands. */
static enum forecast_phase phase_of(enum tr_part part, enum forecast_phase now)
{
    switch (part) {
    case TR_PART_DATA: case TR_PART_EMBED: return FORECAST_EMBED;
    case TR_PART_NORM: case TR_PART_ATTENTION: case TR_PART_MLP: return FORECAST_BLOCKS;
    case TR_PART_LOSS: return FORECAST_LOSS;
    case TR_PART_BACKWARD_LOSS: case TR_PART_BACKWARD_NORM: case TR_PART_BACKWARD_ATTENTION: case TR_PART_BACKWARD_MLP: return FORECAST_BACK;
    case TR_PART_BACKWARD_EMBED: return FORECAST_BACK_EMBED;
    case TR_PART_OPTIMIZER: return FORECAST_UPDATE;
    default: return now;
    }
}

struct watch { struct forecast *f; enum forecast_phase now; int step; };

static void watch(void *self, const struct tr_ledger *l)
{
    struct watch *w = self;
    if (l->now[TR_GRADIENTS] > w->f->held[w->step]) w->f->held[w->step] = l->now[TR_GRADIENTS];
    w->now = phase_of(tr_part_current(), w->now);
    if (l->total <= w->f->phase[w->now].total) return;
    w->f->phase[w->now].total = l->total;
    memcpy(w->f->phase[w->now].at, l->now, sizeof l->now);
}

enum forecast_phase forecast_peak_phase(const struct forecast *f)
{
    enum forecast_phase top = FORECAST_EMBED;
    for (int p = 0; p < FORECAST_PHASES; p++)
        if (f->phase[p].total > f->phase[top].total) top = (enum forecast_phase)p;
    return top;
}

/* ---- the run without memory */

static int change(struct job *j, const char *set)
{
    static const char name[] = "optimizer.name=";
    struct recipe *r = (struct recipe *)(uintptr_t)j->r; /* this process's own */
    TR_TRY(strncmp(set, name, sizeof name - 1) ? recipe_set(r, set) : recipe_set_optimizer(r, set + sizeof name - 1));
    return job_resolve(j, j->micro_batch, j->recompute);
}

static int dry_run(struct job *j, const char *set, struct forecast *f)
{
    struct watch w = { .f = f, .now = FORECAST_EMBED };
    if (set) TR_TRY(change(j, set));
    struct step_result s;
    job_forget_files(j); /* as the run does; this process ends after the answer */
    int64_t before = (int64_t)tr_rss_now() - (int64_t)tr_mem_ledger().total; /* what the ledger knows already (the data) is counted once */
    tr_loader_widest(j->loader, j->batch < INT64_MAX / j->steps ? j->steps * j->batch : INT64_MAX); /* this process alone: batches differ in length and in counted tokens */
    tr_mem_dry(true);
    TR_TRY(job_net(j, false));
    TR_TRY(job_training(j));
    struct tr_ledger built = tr_mem_ledger();
    tr_mem_reset_peak();
    struct tr_spill_counts one = { 0 };
    tr_mem_trace(watch, &w);
    for (w.step = 0; w.step < 2; w.step++) {
        uint64_t moved = job_traffic(j).moved;
        one = job_disk(j);
        TR_TRY(job_step(j, &s));
        f->sent[w.step] = (job_traffic(j).moved - moved) / (uint64_t)j->comm->size;
    }
    f->refresh = opt_low_every(j->opt);
    f->disk = job_disk(j);
    f->disk.read -= one.read;
    f->disk.written -= one.written;
    f->ledger = tr_mem_ledger();
    f->formula = opt_state_bytes(j->opt);
    f->rank = j->comm->rank;
    f->dealt_least = j->dealt_least;
    f->dealt_most = j->dealt_most;
    for (int c = 0; c < TR_CATEGORIES; c++) f->state[c] = (int64_t)f->ledger.now[c];
    f->device = (int64_t)(f->ledger.device + f->ledger.device_reserved);
    f->peak_rss = before + (int64_t)(built.total - built.device + f->ledger.arena_reserved) + BESIDE + (j->r->checkpoint.every > 0 ? BESIDE_HDF5 : 0);
    return TR_OK;
}

int64_t forecast_limited(const struct forecast *f) { return tr_device() ? f->device : f->peak_rss; }

int64_t forecast_limit(const struct job *j)
{
    int64_t budget = j->r->memory.budget, there = tr_device() ? (int64_t)tr_device()->available() : 0;
    return there > 0 && (budget <= 0 || there < budget) ? there : budget;
}

int forecast_run(struct job *j, struct forecast *out) { return forecast_with(j, NULL, out); }

int forecast_with(struct job *j, const char *set, struct forecast *out)
{
    int ends[2];
    struct answer a = { 0 };
    if (pipe(ends)) return tr_fail(TR_EFAIL, "the memory forecast could not start: %s", strerror(errno));
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        close(ends[0]);
        close(ends[1]);
        return tr_fail(TR_EFAIL, "the memory forecast could not start: %s", strerror(errno));
    }
    if (child == 0) {
        close(ends[0]);
        a.rc = dry_run(j, set, &a.f);
        snprintf(a.message, sizeof a.message, "%s", a.rc ? tr_message() : "");
        ssize_t n = write(ends[1], &a, sizeof a);
        _exit(n == (ssize_t)sizeof a ? 0 : 1);
    }
    close(ends[1]);
    size_t got = 0;
    for (ssize_t n; got < sizeof a && ((n = read(ends[0], (char *)&a + got, sizeof a - got)) > 0 || (n < 0 && errno == EINTR));)
        if (n > 0) got += (size_t)n;
    close(ends[0]);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
    if (got < sizeof a) return tr_fail(TR_EFAIL, "the memory forecast ended early; please report this with the recipe");
    if (a.rc) return tr_fail(a.rc, "%s", a.message);
    *out = a.f;
    return TR_OK;
}

void forecast_text(char *out, size_t size, const struct tr_ledger *l)
{
    size_t n = 0;
    out[0] = 0;
    for (int c = 0; c < TR_CATEGORIES; c++)
        if (l->at_peak[c] >= 50000 && n < size)
            n += (size_t)snprintf(out + n, size - n, "%s%s %.1f MB", n ? ", " : "", tr_category_name((enum tr_category)c), (double)l->at_peak[c] / 1e6);
}

int forecast_write(const struct job *j, const struct forecast *f, const char *folder)
{
    struct tr_buf text = { 0 };
    json_t *o = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "steps", (json_int_t)j->steps, "parameters", (json_int_t)tr_shape_params(&j->shape), "peak", (json_int_t)f->ledger.peak,
                          "peak_rss", (json_int_t)f->peak_rss, "optimizer", (json_int_t)f->state[TR_OPTIMIZER], "optimizer_formula", (json_int_t)f->formula);
    if (f->peaks[1]) json_object_set_new(o, "peak_ranks", json_pack("[I,I]", (json_int_t)f->peaks[0], (json_int_t)f->peaks[1]));
    char *line = json_dumps(o, JSON_COMPACT);
    int rc = tr_buf_printf(&text, "%s\n", line ? line : "{}");
    if (rc == TR_OK) rc = tr_write_file(folder, "plan.json", &text);
    json_decref(o);
    free(line);
    tr_buf_release(&text);
    return rc;
}

int forecast_read(struct forecast_note *out, const char *folder)
{
    struct { const char *key; int64_t *to; } field[] = { { "steps", &out->steps }, { "parameters", &out->parameters }, { "peak", &out->peak }, { "peak_rss", &out->peak_rss },
        { "optimizer", &out->state }, { "optimizer_formula", &out->formula } };
    char *path;
    *out = (struct forecast_note){ 0 };
    TR_TRY(tr_path_join(&path, folder, "plan.json"));
    json_t *o = json_load_file(path, 0, NULL);
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) *field[i].to = (int64_t)json_integer_value(json_object_get(o, field[i].key));
    json_decref(o);
    free(path);
    return TR_OK;
}

int forecast_of_rank(struct job *j, int rank, struct forecast *out)
{
    struct tr_comm *comm = j->comm, *data = j->data, *pipe = j->pipe, like = { .kind = comm->kind, .local = 1, .doing = "" }, line[3] = { like, like, like };
    int stages = (int)j->r->parallel.pipeline, share = (int)j->r->parallel.data, was = j->stages;
    line[0].size = share * stages, line[1].size = share, line[2].size = stages;
    line[0].rank = rank, line[1].rank = rank % share, line[2].rank = rank / share;
    j->comm = &line[0];
    j->data = share > 1 ? &line[1] : data;
    j->pipe = &line[2];
    j->stages = stages;
    int rc = job_resolve(j, j->micro_batch, j->recompute);
    if (rc == TR_OK) rc = forecast_run(j, out);
    j->comm = comm;
    j->data = data;
    j->pipe = pipe;
    j->stages = was;
    return rc;
}

int forecast_span(struct forecast *f, struct tr_comm *c)
{
    double mine = (double)f->ledger.peak, *all;
    TR_TRY(tr_calloc(&all, (size_t)c->size, sizeof *all));
    int rc = tr_comm_each(c, &mine, 1, all);
    f->peaks[0] = f->peaks[1] = f->ledger.peak;
    for (int r = 0; r < c->size && rc == TR_OK; r++) {
        if ((size_t)all[r] < f->peaks[0]) f->peaks[0] = (size_t)all[r];
        if ((size_t)all[r] > f->peaks[1]) f->peaks[1] = (size_t)all[r];
    }
    free(all);
    return rc;
}

int forecast_fit(struct job *j, struct forecast *out)
{
    static const enum tr_recompute order[] = { TR_KEEP, TR_SELECTIVE, TR_BLOCK };
    if (j->r->memory.recompute != RECIPE_RECOMPUTE_AUTO) {
        TR_TRY(forecast_run(j, out));
        return forecast_check(j, out);
    }
    for (int i = 0; i < 3; i++) {
        TR_TRY(job_resolve(j, j->micro_batch, order[i]));
        TR_TRY(forecast_run(j, out));
        if (forecast_limit(j) <= 0 || forecast_limited(out) <= forecast_limit(j)) break;
    }
    return forecast_check(j, out);
}
