/* `train run`: the training loop with its evaluation, snapshots, records and stops. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/keeper.h"
#include "checkpoint/source.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "parallel/mpi.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include "recipes/metrics.h"
#include "recipes/progress.h"
#include "recipes/report.h"
#include "recipes/tensorboard.h"
#include "recipes/trace.h"
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static volatile sig_atomic_t stop_asked;

/* The first signal asks for a stop after this step; a second one ends the process at once, but SIGUSR1, which the supervisor repeats. */
static void on_signal(int sig)
{
    stop_asked = 1;
    if (sig != SIGUSR1) signal(sig, SIG_DFL);
}

struct running {
    struct job j;
    struct metrics *metrics;
    struct tensorboard *board;   /* NULL unless run.tensorboard */
    struct progress *progress;
    struct tr_buf config;        /* the resolved recipe */
    bool writes;                 /* rank 0: the run folder is its */
    bool stop;                   /* some rank was asked to */
    int64_t saved, first;        /* step of the newest snapshot of this run; step that it began after */
};

static int skip_tensor(void *self, const char *name, struct tr_tensor *t) { return TR_OK; }
static int skip_words(void *self, const char *name, uint64_t *words, int64_t count) { return TR_OK; }

/* The snapshot of this step on disk. With snapshots in memory it is only begun; `final`: it must be there. Where those lie on
 * several nodes none has all of it, and the ranks write it as they do without. */
static int save(struct running *s, bool final, double *seconds)
{
    const struct recipe *r = s->j.r;
    int64_t step = (int64_t)s->j.step;
    if (s->saved == step) return TR_OK;
    double t = tr_now();
    s->j.comm->doing = "a snapshot";
    if (s->j.capture && !r->checkpoint.redundancy[0]) {
        TR_TRY(ckpt_capture_begin(s->j.capture, step, true));
        s->saved = step;
        if (!final) return TR_OK; /* what it blocks is the next step's */
        TR_TRY(ckpt_capture_finish(s->j.capture, step));
        ckpt_capture_blocked(s->j.capture);
    }
    /* Rank 0 writes what every rank lists: state that ranks share is gathered as it is listed. */
    else if (s->j.comm->rank > 0) TR_TRY(job_visit(&s->j, &(struct tr_visitor){ NULL, skip_tensor, skip_words, .only_reads = true }));
    else TR_TRY(ckpt_save(r->run.dir, step, job_visit, &s->j, s->config.data, r->checkpoint.keep, r->checkpoint.compress));
    s->saved = step;
    *seconds += tr_now() - t;
    return TR_OK;
}

/* Refuses what is not built yet, before anything is allocated. */
static int check_supported(const struct recipe *r)
{
    struct tr_comm *c;
    TR_TRY(par_world(&c));
    int64_t asked = r->parallel.data * r->parallel.pipeline;
    if (asked != c->size)
        return tr_fail(TR_EINPUT, "%d rank%s for parallel.data x parallel.pipeline = %" PRId64 " x %" PRId64 " = %" PRId64 " (%s): start with `mpirun -n %" PRId64 "`, or set parallel.data = %d",
                       c->size, c->size > 1 ? "s" : "", r->parallel.data, r->parallel.pipeline, asked, r->path, asked, c->size);
    if (r->checkpoint.memory_every > 0 && c->local < c->size && !r->checkpoint.redundancy[0])
        return tr_fail(TR_EINPUT, "checkpoint.memory_every = %" PRId64 " (%s): its snapshots are of one machine's ranks, these are on several; set checkpoint.redundancy, or this to 0", r->checkpoint.memory_every, r->path);
    if (!r->data.train[0]) return tr_fail(TR_EINPUT, "nothing to train on (%s): set data.train to a file, folder or glob", r->path);
    return TR_OK;
}

/* A run from the start in a folder that has been used: the earlier run's snapshots make way, but none is lost. */
static int set_aside(const char *dir)
{
    char *old = NULL, *aside = NULL;
    int rc;
    TR_TRY(tr_path_join(&old, dir, "snapshots"));
    for (int i = 1; tr_exists(old); i++) {
        struct tr_buf b = { 0 };
        free(aside);
        TR_GO(tr_buf_printf(&b, "%s.%d", old, i));
        aside = b.data;
        if (tr_exists(aside)) continue;
        if (rename(old, aside)) TR_GO(tr_fail(TR_EFAIL, "cannot set the earlier run's snapshots aside ('%s'); choose another run.dir", old));
        tr_info("snapshots of an earlier run are now in %s; --resume would have continued it", aside);
    }
    rc = TR_OK;
done:
    free(aside);
    free(old);
    return rc;
}

/* Every rank must have been given the same recipe, and be the same program: others may compute other bits. */
static int same_everywhere(struct running *s)
{
    struct tr_comm *c = s->j.comm;
    struct tr_buf program = { 0 };
    if (c->size == 1) return TR_OK;
    if (tr_read_file(&program, "/proc/self/exe") != TR_OK) tr_buf_release(&program); /* no such place here: the program is not compared */
    uint64_t mine[2] = { tr_crc32c(0, s->config.data, s->config.size), program.size ? tr_crc32c(0, program.data, program.size) : 0 }, first[2] = { mine[0], mine[1] };
    tr_buf_release(&program);
    c->doing = "start";
    TR_TRY(tr_comm_words(c, first, 2, 0));
    if (first[1] != mine[1]) return tr_fail(TR_EINPUT, "rank %d is another program than rank 0: start every rank with the same build of train", c->rank);
    if (first[0] == mine[0]) return TR_OK;
    return tr_fail(TR_EINPUT, "rank %d has another recipe than rank 0 (%s): start every rank with the same file and settings", c->rank, s->j.r->path);
}

/* What the run begins from. */
struct origin {
    char *path;                  /* a snapshot on disk, or NULL */
    int64_t version;             /* a version in memory, or -1; -2: it was written to disk */
    struct ckpt_shared *left;    /* a node's first rank: what an earlier process left in memory, NULL: nothing */
};

/* The newest version in memory that is whole, when it is newer than what is on disk. */
static int from_memory(struct origin *o, const char *dir)
{
    int64_t disk = -1, v = INT64_MAX;
    int rc = ckpt_newest(&o->path, &disk, dir);
    while ((v = ckpt_shared_newest(o->left, v)) > disk) {
        struct ckpt_source src;
        if (ckpt_source_memory(&src, o->left, v, true) == TR_OK) {
            ckpt_source_release(&src);
            o->version = v;
            free(o->path);
            o->path = NULL;
            return TR_OK;
        }
        tr_warn("%s; trying the one before", tr_message());
        ckpt_newest(&o->path, &disk, dir); /* its message, should it be the last word */
    }
    return rc;
}

static int to_disk(struct origin *o)
{
    TR_TRY(ckpt_keeper_rescue(o->left));
    ckpt_shared_remove(o->left);
    ckpt_shared_close(o->left);
    o->left = NULL;
    return TR_OK;
}

/* Rank 0 looks at what is left in memory: it is resumed from, or goes to disk before anything else does. */
static int find_memory(struct origin *o, const struct recipe *r, const char *resume)
{
    TR_TRY(ckpt_shared_claim(&o->left, r->run.dir, 0));
    if (!o->left) return TR_OK;
    const struct ckpt_sets *sets = &o->left->head->sets;
    if (sets->data)
        return tr_fail(TR_EINPUT, "an earlier run has snapshots in the memory of %" PRIu32 " nodes (%s): go on with --resume and checkpoint.redundancy = %" PRIu32 "+%" PRIu32 ", or choose another run.dir", sets->nodes, r->path, sets->data, sets->parity);
    if (resume && !resume[0] && r->checkpoint.memory_every > 0) return from_memory(o, r->run.dir);
    return to_disk(o);
}

/* The same where it lies on several nodes: what is left there is of use to a resume alone, which all ranks look for together. */
static int find_on_nodes(struct origin *o, const struct recipe *r, struct tr_comm *c, bool resume)
{
    struct ckpt_nodes n;
    int64_t disk = -1;
    char *path = NULL;
    TR_TRY(job_nodes(&n, r, c));
    if (ckpt_nodes_lead(&n)) TR_TRY(ckpt_shared_claim(&o->left, r->run.dir, n.sets.node));
    if (o->left && !o->left->head->sets.data) TR_TRY(to_disk(o)); /* of a run on one node */
    if (resume && c->rank == 0 && ckpt_newest(&path, &disk, r->run.dir) != TR_OK) disk = -1;
    free(path);
    uint64_t word = (uint64_t)(disk + 1);
    TR_TRY(tr_comm_words(c, &word, 1, 0));
    TR_TRY(ckpt_nodes_find(&n, o->left, (int64_t)word - 1, &o->version));
    if (o->version < 0 || resume) return TR_OK;
    return tr_fail(TR_EINPUT, "the nodes hold step %" PRId64 " of an earlier run in memory (%s): continue it with --resume, choose another run.dir, or remove from /dev/shm what '%s/.memory*' name", o->version, r->path, r->run.dir);
}

/* A supervised run that lost what it had in memory before there was anything on disk. */
static int begin_again(struct origin *o, const struct recipe *r, struct tr_comm *c)
{
    int64_t step;
    int rc = ckpt_newest(&o->path, &step, r->run.dir);
    if (rc != TR_EINPUT || !r->checkpoint.redundancy[0] || !ckpt_keeper_supervised()) return rc;
    if (c->rank == 0) tr_warn("no snapshot is whole, in memory or on disk: from the beginning");
    return TR_OK;
}

static int find_origin(struct origin *o, const struct recipe *r, const char *resume)
{
    struct tr_comm *c;
    uint64_t word;
    *o = (struct origin){ .version = -1 };
    TR_TRY(par_world(&c));
    c->doing = "start";
    if (r->checkpoint.redundancy[0]) TR_TRY(find_on_nodes(o, r, c, resume && !resume[0]));
    else if (c->rank == 0) TR_TRY(find_memory(o, r, resume));
    word = (uint64_t)(o->version + 1);
    TR_TRY(tr_comm_words(c, &word, 1, 0));
    o->version = (int64_t)word - 1;
    if (!resume || o->version >= 0 || o->path) return TR_OK;
    return resume[0] ? tr_strdup(&o->path, resume) : begin_again(o, r, c);
}

static void say_start(const struct job *j, const struct forecast *f)
{
    const struct recipe *r = j->r;
    char items[400];
    forecast_text(items, sizeof items, &f->ledger);
    struct tr_data_counts c = tr_dataset_counts(j->train);
    tr_info("%.1f M parameters, %s weights; %" PRId64 " examples, %" PRId64 " counted tokens; %" PRId64 " steps of %" PRId64 " sequences",
            (double)tr_shape_params(&j->shape) / 1e6, tr_dtype_name(r->model.dtype == RECIPE_BF16 ? TR_BF16 : r->model.dtype == RECIPE_INT8 ? TR_INT8 : TR_F32),
            c.examples, c.counted, j->steps, j->batch);
    if (opt_find(recipe_optimizer(r))->for_int8 && r->model.dtype != RECIPE_INT8)
        tr_info("%s is made for int8 weights: model.dtype = int8 (or auto) gives it those", recipe_optimizer(r));
    if (r->memory.fused_update == RECIPE_FUSED_TRUE && !j->fused)
        tr_info("%" PRId64 " micro-batches a step: gradients are kept between them (%.0f MB) and used at the last", j->micro_batches, 4e-6 * (double)tr_shape_params(&j->shape));
    if (tr_device()) tr_info("needs %.0f MB, on the device %.0f MB: %s", (double)f->ledger.peak / 1e6, (double)f->device / 1e6, items);
    else tr_info("needs %.0f MB, resident at most %.0f MB: %s", (double)f->ledger.peak / 1e6, (double)f->peak_rss / 1e6, items);
    if (f->peaks[1]) tr_info("that is rank 0; the %d ranks need %.0f to %.0f MB each", j->comm->size, (double)f->peaks[0] / 1e6, (double)f->peaks[1] / 1e6);
}

/* The state as the origin has it. */
static int restore(struct running *s, struct origin *o)
{
    struct job *j = &s->j;
    struct ckpt_source src;
    int64_t step = 0;
    s->saved = -1;
    if (j->capture) {
        struct ckpt_shared *left = o->left;
        o->left = NULL;
        TR_TRY(ckpt_capture_attach(j->capture, left, &o->version));
    }
    if (o->version == -2) TR_TRY(ckpt_newest(&o->path, &step, j->r->run.dir)); /* of another layout: it is on disk now */
    if (o->version >= 0) {
        TR_TRY(ckpt_capture_source(j->capture, o->version, &src));
        int rc = ckpt_load_source(&src, &step, job_visit, j, NULL);
        ckpt_source_release(&src);
        TR_TRY(rc);
        tr_info("resumed at step %" PRIu64 " from memory", j->step);
    } else if (o->path) {
        TR_TRY(ckpt_load(o->path, &step, job_visit, j));
        s->saved = (int64_t)j->step;
        tr_info("resumed at step %" PRIu64 " from %s", j->step, o->path);
    }
    return j->capture ? ckpt_capture_start(j->capture, (int64_t)j->step, o->version >= 0) : TR_OK;
}

static int start(struct running *s, struct recipe *r, const char *resume)
{
    struct job *j = &s->j;
    struct forecast f;
    struct origin o = { 0 };
    int rc;
    TR_TRY(check_supported(r));
    TR_GO(find_origin(&o, r, resume));
    TR_GO(job_open(j, r));
    s->writes = j->comm->rank == 0;
    TR_GO(job_tokenizer(j, false));
    TR_GO(job_data(j, true));
    TR_GO(forecast_fit(j, &f));
    TR_GO(recipe_print(r, &s->config));
    TR_GO(same_everywhere(s));
    if (j->comm->size > 1) TR_GO(forecast_span(&f, j->comm));
    say_start(j, &f);
    bool anew = !o.path && o.version < 0;
    if (s->writes) {
        TR_GO(tr_mkdirs(r->run.dir));
        if (anew) TR_GO(set_aside(r->run.dir));
        TR_GO(recipe_write_config(r));
        TR_GO(forecast_write(j, &f, r->run.dir));
    }
    TR_GO(tr_device_reserve(f.ledger.device_reserved));
    TR_GO(job_net(j, anew));
    TR_GO(job_training(j));
    job_forget_files(j);
    TR_GO(restore(s, &o));
    s->first = (int64_t)j->step;
    tr_mem_reset_peak();
    if (!s->writes) goto done;
    TR_GO(metrics_open(&s->metrics, r->run.dir, (int64_t)j->step));
    if (r->run.tensorboard) TR_GO(tensorboard_open(&s->board, r->run.dir, (int64_t)j->step));
    TR_GO(progress_new(&s->progress, j->steps, (int64_t)j->step, r->train.log_every));
done:
    ckpt_shared_close(o.left);
    free(o.path);
    return rc;
}

/* The least and the most memory of all ranks, and the mean of what they sent. */
static int span_ranks(struct tr_comm *c, struct metrics_row *row)
{
    enum { PEAK, RSS, SENT, FIGURES };
    double mine[FIGURES] = { (double)row->memory.peak, (double)row->peak_rss, (double)row->sent }, *all, sent = 0;
    TR_TRY(tr_calloc(&all, (size_t)c->size, sizeof mine));
    int rc = tr_comm_each(c, mine, FIGURES, all);
    for (int i = PEAK; i <= RSS && rc == TR_OK; i++) {
        size_t *span = i == RSS ? row->rsss : row->peaks;
        span[0] = span[1] = (size_t)all[i];
        for (int r = 1; r < c->size; r++) {
            size_t x = (size_t)all[FIGURES * r + i];
            span[0] = x < span[0] ? x : span[0];
            span[1] = x > span[1] ? x : span[1];
        }
    }
    for (int r = 0; r < c->size; r++) sent += all[FIGURES * r + SENT];
    row->sent = (int64_t)sent / c->size;
    free(all);
    return rc;
}

static int one_step(struct running *s)
{
    struct job *j = &s->j;
    const struct recipe *r = j->r;
    struct step_result result;
    double t = tr_now(), block = 0;
    struct job_traffic before = job_traffic(j);
    struct trace *trace = NULL; /* the second step of a run, when everything is in place */
    j->stop = stop_asked;
    if (s->writes && (int64_t)j->step == s->first + 1) TR_TRY(trace_begin(&trace));
    int rc = job_step(j, &result);
    if (rc == TR_OK && trace) rc = trace_end(trace, r->run.dir);
    else trace_free(trace);
    TR_TRY(rc);
    t = tr_now() - t;
    struct job_traffic after = job_traffic(j);
    int64_t step = (int64_t)j->step;
    struct metrics_row row = { .step = step, .loss = result.loss, .lr = result.lr, .grad_norm = result.grad_norm, .tokens = (int64_t)j->tokens_seen,
                               .tokens_per_s = (double)result.tokens / t, .step_s = t, .valid_loss = NAN,
                               .ranks = j->comm->size, .sent = (int64_t)(after.sent - before.sent), .wait_s = after.waited - before.waited };
    s->stop = j->comm->size > 1 ? result.stop : stop_asked; /* ranks stop together, at the step whose sums carried the wish */
    bool last = step == j->steps, stop = step == r->train.stop_at || s->stop;
    if (j->valid && (last || (r->train.eval_every > 0 && step % r->train.eval_every == 0))) {
        int64_t counted;
        TR_TRY(job_evaluate(j, &row.valid_loss, &counted));
    }
    bool due = r->checkpoint.every > 0 && (step % r->checkpoint.every == 0 || last);
    bool saves = due || stop, final = saves && (last || stop);
    if (j->capture) row.checkpoint_block_s = ckpt_capture_blocked(j->capture);
    row.memory = tr_mem_ledger();
    row.peak_rss = tr_rss_peak();
    if (j->comm->size > 1) TR_TRY(span_ranks(j->comm, &row));
    bool by_keeper = j->capture && !r->checkpoint.redundancy[0];
    bool again = saves && (final || !by_keeper); /* the row is not finished before the snapshot is */
    if (s->writes && (again || j->capture)) TR_TRY(metrics_write(s->metrics, &row, again));
    if (saves) TR_TRY(save(s, final, &block));
    if (j->capture && !last && (!saves || r->checkpoint.redundancy[0]) && step % r->checkpoint.memory_every == 0) TR_TRY(ckpt_capture_begin(j->capture, step, false));
    if (!s->writes) return TR_OK;
    if (again || !j->capture) {
        row.checkpoint_block_s += block;
        row.memory = tr_mem_ledger();
        row.peak_rss = tr_rss_peak();
        if (row.memory.peak > row.peaks[1]) row.peaks[1] = row.memory.peak; /* this rank wrote a snapshot since */
        if (row.peak_rss > row.rsss[1]) row.rsss[1] = row.peak_rss;
        TR_TRY(metrics_write(s->metrics, &row, false));
    }
    TR_TRY(tensorboard_write(s->board, &row));
    progress_step(s->progress, &row);
    if (due || !isnan(row.valid_loss)) TR_TRY(report_write(r->run.dir, r->run.name, s->config.data));
    return TR_OK;
}

int recipe_run(struct recipe *r, const char *resume)
{
    struct running s = { 0 };
    int rc;
    signal(SIGUSR1, on_signal);
    TR_GO(start(&s, r, resume));
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    bool stopped = false;
    while ((int64_t)s.j.step < s.j.steps && !stopped) {
        TR_GO(one_step(&s));
        stopped = s.stop || ((int64_t)s.j.step == r->train.stop_at && (int64_t)s.j.step < s.j.steps);
    }
    if (s.writes) progress_end(s.progress);
    if (s.writes) TR_GO(report_write(r->run.dir, r->run.name, s.config.data));
    tr_info("%s after step %" PRIu64 "; report: %s/report.html", stopped ? "stopped" : "done", s.j.step, r->run.dir);
    s.j.done = true;
    if (s.stop && (int64_t)s.j.step < s.j.steps) {
        rc = tr_fail(TR_ESTOPPED, "stopped on request (step %" PRIu64 "): the snapshot is complete; continue with `train run %s --resume`", s.j.step, r->path);
    }
done:
    progress_free(s.progress);
    metrics_close(s.metrics);
    tensorboard_close(s.board);
    tr_buf_release(&s.config);
    job_release(&s.j);
    return rc;
}
