/* `train compare`: the same recipe through several optimizers, one after another. Each is a process of its own, so that one
 * that crashes is no loss to the others and each has a ledger and a resident peak of its own; what is complete stays. */
#include "recipes/compare.h"
#include "checkpoint/checkpoint.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/status.h"
#include "parallel/mpi.h"
#include "recipes/commands.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t stop_asked;
static volatile pid_t running;

/* The member that runs is asked to stop after its step; a second signal ends this process at once. */
static void on_signal(int sig)
{
    stop_asked = 1;
    if (running > 0) kill(running, SIGTERM);
    signal(sig, SIG_DFL);
}

/* ---- who takes part */

static int add_member(struct comparison *c, size_t *cap, const char *path, const char *const *sets, size_t n_sets, const char *text, size_t size)
{
    TR_TRY(tr_grow(&c->m, c->n, cap, sizeof *c->m));
    struct member *m = &c->m[c->n];
    *m = (struct member){ .place = (int)c->n };
    c->n++;
    TR_TRY(tr_strndup(&m->name, text, size));
    for (char *p = m->name; *p; p++) {
        if (*p == '_') *p = '-';
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-", *p))
            return tr_fail(TR_EINPUT, "bad name '%.60s' (--optimizers): it must be names with commas between them, such as adamw,galore", m->name);
    }
    for (size_t i = 0; i + 1 < c->n; i++)
        if (!strcmp(c->m[i].name, m->name)) return tr_fail(TR_EINPUT, "'%.60s' stands twice (--optimizers): remove one; a section [compare.NAME] with optimizer.name = %s makes another member of it", m->name, m->name);
    return recipe_load_member(&m->r, path, sets, n_sets, m->name);
}

/* All of them, or the error of the first that cannot be: before anything runs. */
static int add_members(struct comparison *c, const char *path, const char *const *sets, size_t n_sets, const char *list)
{
    size_t cap = 0;
    for (const char *at = list;; at++) {
        at += strspn(at, " ");
        size_t n = strcspn(at, ","), size = n;
        while (size && at[size - 1] == ' ') size--;
        if (!size) return tr_fail(TR_EINPUT, "an empty name in '%.80s' (--optimizers): it must be names with commas between them, such as adamw,galore", list);
        TR_TRY(add_member(c, &cap, path, sets, n_sets, at, size));
        at += n;
        if (!*at) break;
    }
    const struct recipe *r = &c->m[0].r; /* its folder and title end in the member's name */
    TR_TRY(tr_strndup(&c->dir, r->run.dir, strlen(r->run.dir) - strlen(c->m[0].name) - 1));
    TR_TRY(tr_strndup(&c->title, r->run.name, strlen(r->run.name) - strlen(c->m[0].name) - 2));
    c->valid = r->data.valid[0];
    return tr_calloc(&c->order, c->n, sizeof *c->order);
}

/* ---- what a member has done */

static void member_forget(struct member *m)
{
    free(m->rows);
    free(m->trace.ms);
    m->rows = NULL;
    m->trace = (struct trace_columns){ 0 };
    m->n = 0;
}

static int read_folder(struct member *m)
{
    char *path;
    TR_TRY(tr_path_join(&path, m->r.run.dir, "metrics.jsonl"));
    int rc = tr_exists(path) ? metrics_read(&m->rows, &m->n, m->r.run.dir) : TR_OK;
    free(path);
    if (rc == TR_OK) rc = metrics_sum_up(&m->sum, m->rows, m->n);
    if (rc == TR_OK) rc = forecast_read(&m->plan, m->r.run.dir);
    return rc == TR_OK ? trace_read(&m->trace, m->r.run.dir) : rc;
}

/* Whether its folder is of a run of this very recipe. Read back and printed anew, so that a key that was added since, and
 * has its default, makes no difference. */
static int same_recipe(const struct member *m, bool *same)
{
    struct recipe old = { 0 };
    struct tr_buf then = { 0 }, now = { 0 };
    char *path;
    int rc;
    *same = false;
    TR_TRY(tr_path_join(&path, m->r.run.dir, "config.ini"));
    rc = TR_OK;
    if (!tr_exists(path) || recipe_load(&old, path, NULL, 0) != TR_OK) goto done;
    TR_GO(recipe_print(&old, &then));
    TR_GO(recipe_print(&m->r, &now));
    *same = !strcmp(then.data, now.data);
done:
    recipe_release(&old);
    tr_buf_release(&then);
    tr_buf_release(&now);
    free(path);
    return rc;
}

/* A folder of another recipe is as good as empty. */
static int member_read(struct member *m)
{
    member_forget(m);
    TR_TRY(same_recipe(m, &m->same));
    return m->same ? read_folder(m) : TR_OK;
}

static bool reached_the_end(const struct member *m)
{
    int64_t last = m->n ? m->rows[m->n - 1].step : 0, stop_at = m->r.train.stop_at;
    return last > 0 && ((m->plan.steps > 0 && last >= m->plan.steps) || (stop_at > 0 && last == stop_at));
}

void member_remark(char *out, size_t size, const struct member *m)
{
    int64_t last = m->n ? m->rows[m->n - 1].step : 0;
    out[0] = 0;
    if (m->state == MEMBER_FAILED) snprintf(out, size, last ? "failed after step %" PRId64 : "failed", last);
    else if (m->state == MEMBER_STOPPED) snprintf(out, size, "stopped after step %" PRId64, last);
    else if (m->state == MEMBER_WAITING) snprintf(out, size, "not run yet");
}

double member_loss(const struct comparison *c, const struct member *m)
{
    if (m->n == 0 || m->state == MEMBER_WAITING) return NAN;
    return c->valid ? m->sum.valid : m->sum.mean_last;
}

/* Complete ones by loss, then the others; in the order given where nothing else decides. */
static int better(const struct comparison *c, const struct member *a, const struct member *b)
{
    if ((a->state == MEMBER_COMPLETE) != (b->state == MEMBER_COMPLETE)) return a->state == MEMBER_COMPLETE;
    double x = member_loss(c, a), y = member_loss(c, b);
    if (isfinite(x) != isfinite(y)) return isfinite(x);
    return isfinite(x) && x != y ? x < y : a->place < b->place;
}

static void sort(struct comparison *c)
{
    for (size_t i = 0; i < c->n; i++) {
        size_t k = i;
        for (; k > 0 && better(c, &c->m[i], c->order[k - 1]); k--) c->order[k] = c->order[k - 1];
        c->order[k] = &c->m[i];
    }
}

/* ---- running one */

struct answer { int rc; char message[1024]; };

static void in_child(struct member *m, const char *resume, int to, pid_t parent)
{
    struct answer a = { 0 };
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* no member goes on alone */
    if (getppid() != parent) _exit(1);
    a.rc = recipe_run(&m->r, resume);
    snprintf(a.message, sizeof a.message, "%s", a.rc ? tr_message() : "");
    ssize_t n = write(to, &a, sizeof a);
    _exit(n == (ssize_t)sizeof a ? a.rc : 1);
}

/* Runs it to its end and notes how that was. */
static int run_member(struct member *m, const char *resume)
{
    int ends[2], status = 0;
    struct answer a = { 0 };
    size_t got = 0;
    pid_t parent = getpid();
    if (pipe(ends)) return tr_fail(TR_EFAIL, "a member (%s) could not start: %s", m->name, strerror(errno));
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        in_child(m, resume, ends[1], parent);
    }
    close(ends[1]);
    if (child < 0) {
        close(ends[0]);
        return tr_fail(TR_EFAIL, "a member (%s) could not start: %s", m->name, strerror(errno));
    }
    running = child;
    if (stop_asked) kill(child, SIGTERM);
    for (ssize_t n; got < sizeof a && ((n = read(ends[0], (char *)&a + got, sizeof a - got)) > 0 || (n < 0 && errno == EINTR));)
        if (n > 0) got += (size_t)n;
    close(ends[0]);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    running = 0;
    if (got < sizeof a) {
        a.rc = TR_EFAIL;
        if (WIFSIGNALED(status))
            snprintf(a.message, sizeof a.message, "ended by signal %d (%s)%s", WTERMSIG(status), strsignal(WTERMSIG(status)), WTERMSIG(status) == SIGKILL ? ": was memory short?" : "");
        else snprintf(a.message, sizeof a.message, "ended with exit code %d and no message", WEXITSTATUS(status));
        if (stop_asked) a.rc = TR_ESTOPPED; /* before its first step */
    }
    m->code = a.rc;
    m->state = a.rc == TR_OK ? MEMBER_COMPLETE : a.rc == TR_ESTOPPED ? MEMBER_STOPPED : MEMBER_FAILED;
    snprintf(m->why, sizeof m->why, "%s", a.message);
    return TR_OK;
}

/* What an earlier start left. */
static int look(struct member *m)
{
    TR_TRY(member_read(m));
    m->state = !m->n ? MEMBER_WAITING : reached_the_end(m) ? MEMBER_COMPLETE : MEMBER_STOPPED;
    return TR_OK;
}

/* Runs what is left of a member. */
static int go_on(struct comparison *c, struct member *m)
{
    char *newest = NULL;
    int64_t step = 0;
    bool resume = m->same && ckpt_newest(&newest, &step, m->r.run.dir) == TR_OK;
    free(newest);
    tr_info("%s (%d of %zu)", m->name, m->place + 1, c->n);
    TR_TRY(run_member(m, resume ? "" : NULL));
    if (m->state == MEMBER_FAILED) tr_warn("%s failed: %s", m->name, m->why);
    TR_TRY(member_read(m));
    sort(c);
    return compare_write(c);
}

/* ---- all of them */

static void print_table(const struct comparison *c)
{
    printf("\n%-16s %12s %12s %12s %10s %10s\n", "optimizer", c->valid ? "valid loss" : "train loss", "peak", "state", "tokens/s", "steps");
    for (size_t i = 0; i < c->n; i++) {
        const struct member *m = c->order[i];
        char remark[64];
        member_remark(remark, sizeof remark, m);
        printf("%-16s ", m->name);
        if (m->n && isfinite(member_loss(c, m))) printf("%12.4f ", member_loss(c, m));
        else if (m->n) printf("%12s ", "-");
        if (m->n) printf("%9.1f MB %9.1f MB %10.0f %10" PRId64 "%s%s\n", (double)m->sum.peak / 1e6, (double)m->sum.state / 1e6, m->sum.tokens_per_s, m->rows[m->n - 1].step,
                         remark[0] ? "  " : "", remark);
        else printf("%s\n", remark);
    }
    printf("%s/compare.html\n", c->dir);
    fflush(stdout);
}

/* Exit status and message of the whole. */
static int outcome(const struct comparison *c)
{
    size_t complete = 0, failed = 0;
    struct tr_buf names = { 0 };
    const struct member *first = NULL;
    int rc = TR_OK;
    for (size_t i = 0; i < c->n && rc == TR_OK; i++) {
        const struct member *m = &c->m[i];
        complete += m->state == MEMBER_COMPLETE;
        if (m->state != MEMBER_FAILED) continue;
        first = first ? first : m;
        rc = tr_buf_printf(&names, "%s%s", failed++ ? ", " : "", m->name);
    }
    if (rc != TR_OK) {}
    else if (complete + failed < c->n)
        rc = tr_fail(TR_ESTOPPED, "stopped on request (%zu of %zu complete): what is complete stays; the same command continues", complete, c->n);
    else if (failed && !complete) rc = tr_fail(first->code, "%s", first->why);
    else if (failed)
        rc = tr_fail(TR_EFAIL, "%zu of %zu members failed (%s): %s; the others are complete, see %s/compare.html; the same command tries again what failed", failed, c->n, names.data, first->why, c->dir);
    tr_buf_release(&names);
    return rc;
}

static void comparison_release(struct comparison *c)
{
    for (size_t i = 0; i < c->n; i++) {
        member_forget(&c->m[i]);
        recipe_release(&c->m[i].r);
        free(c->m[i].name);
    }
    free(c->m);
    free(c->order);
    free(c->dir);
    free(c->title);
}

int recipe_compare(const char *path, const char *const *sets, size_t n_sets, const char *optimizers)
{
    struct comparison c = { 0 };
    struct tr_comm *ranks;
    int rc;
    TR_GO(par_world(&ranks));
    if (ranks->size > 1) TR_GO(tr_fail(TR_EINPUT, "%d ranks (train compare): it starts its runs itself, on one rank each; run it without mpirun", ranks->size));
    TR_GO(add_members(&c, path, sets, n_sets, optimizers));
    TR_GO(tr_mkdirs(c.dir));
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    size_t complete = 0;
    for (size_t i = 0; i < c.n; i++) {
        TR_GO(look(&c.m[i]));
        complete += c.m[i].state == MEMBER_COMPLETE;
    }
    if (complete) tr_info("%zu of %zu are complete already", complete, c.n);
    sort(&c);
    TR_GO(compare_write(&c));
    for (size_t i = 0; i < c.n && !stop_asked; i++)
        if (c.m[i].state != MEMBER_COMPLETE) TR_GO(go_on(&c, &c.m[i]));
    print_table(&c);
    rc = outcome(&c);
done:
    comparison_release(&c);
    return rc;
}
