/* `train run --supervise`: starts the ranks, watches them, and starts them again from the newest whole snapshot when they die.
 *
 * Ranks get SIGUSR1 for a stop, never SIGTERM: mpirun answers SIGTERM by killing them within a second, but hands SIGUSR1 on.
 * Whatever a launch leaves behind becomes a child of this process, and is ended before the next launch writes to the folder. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/keeper.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "parallel/mpi.h"
#include "recipes/commands.h"
#include "recipes/metrics.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    SAME_STEP = 4,        /* failures of the program itself at one step: it would fail there again */
    NO_NEWER = 20,        /* deaths without a newer snapshot between them */
    GRACE = 300,          /* seconds from the wish to stop until the ranks are killed */
    CANNOT_START = 127,
    ARGS = 2 * 256 + 16,
};

struct supervisor {
    const struct recipe *r;
    const char *const *sets;
    size_t n_sets;
    int64_t ranks;
    bool resume;          /* the user's wish for the first launch */
    ino_t before;         /* the snapshots folder as it was found; a launch from the start replaces it */
    char memory[32];      /* likewise the object of snapshots in memory */
    double asked;         /* when a stop was asked; 0 = not */
    double sent;          /* when the ranks were last told */
    bool now;             /* asked twice */
    sigset_t watched, old;
    char scratch[40];     /* folder of the ranks' MPI, "" without one: its files stay when mpirun is killed */
};

/* Nodes that may have snapshots in memory: those that are not there, or cannot be seen from here, are passed over. */
static uint32_t nodes(const struct supervisor *s) { return s->r->checkpoint.redundancy[0] ? (uint32_t)s->ranks : 1; }

static ino_t snapshots_folder(const struct recipe *r)
{
    char *path;
    struct stat st;
    if (tr_path_join(&path, r->run.dir, "snapshots") != TR_OK) return 0;
    ino_t inode = stat(path, &st) ? 0 : st.st_ino;
    free(path);
    return inode;
}

/* Step of the newest whole snapshot of this run, on disk or in memory: -1 while it has none. An earlier run's do not count.
 * TR_EDAMAGED: none is whole. */
static int newest(const struct supervisor *s, int64_t *step)
{
    char *path, name[32];
    int64_t memory = ckpt_keeper_newest(s->r->run.dir, nodes(s), name);
    *step = -1;
    if (!s->resume && !strcmp(name, s->memory)) memory = -1;
    ino_t now = snapshots_folder(s->r);
    int rc = TR_OK;
    if (now && (s->resume || now != s->before)) {
        rc = ckpt_newest(&path, step, s->r->run.dir);
        if (rc == TR_OK) free(path);
    }
    if (memory > *step) *step = memory;
    return rc == TR_EINPUT || *step >= 0 ? TR_OK : rc;
}

/* Step of the last line of metrics.jsonl: how far the ranks came. */
static int64_t reached(const struct supervisor *s)
{
    struct metrics_row *rows;
    size_t n;
    int64_t step = metrics_read(&rows, &n, s->r->run.dir) == TR_OK && n ? rows[n - 1].step : -1;
    free(rows);
    return step;
}

/* ---- a launch */

static void become(const struct supervisor *s, const char *program, bool resume, pid_t parent)
{
    char ranks[24], data[48];
    const char *arg[ARGS];
    int n = 0;
    snprintf(ranks, sizeof ranks, "%" PRId64, s->ranks);
    snprintf(data, sizeof data, "parallel.data=%" PRId64, s->ranks / s->r->parallel.pipeline);
    if (s->ranks > 1) {
        arg[n++] = "mpirun";
        arg[n++] = "-n";
        arg[n++] = ranks;
        setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);     /* ranks share cores; other MPIs do not look at these */
        setenv("OMPI_MCA_hwloc_base_binding_policy", "none", 0);
        if (s->scratch[0]) setenv("OMPI_MCA_btl_vader_backing_directory", s->scratch, 0);
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    }
    arg[n++] = program;
    arg[n++] = "run";
    arg[n++] = s->r->path;
    for (size_t i = 0; i < s->n_sets; i++) {
        arg[n++] = "--set";
        arg[n++] = s->sets[i];
    }
    arg[n++] = "--set";
    arg[n++] = data;
    if (resume) arg[n++] = "--resume";
    arg[n] = NULL;
    setpgid(0, 0);                        /* the terminal's Ctrl-C is the supervisor's */
    prctl(PR_SET_PDEATHSIG, SIGUSR1);     /* and its death a wish to stop */
    if (getppid() != parent) _exit(1);
    ckpt_keeper_become_supervisor(parent);
    signal(SIGUSR1, SIG_IGN);             /* until the program listens */
    sigprocmask(SIG_SETMASK, &s->old, NULL);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, 0);
    execvp(arg[0], (char *const *)(uintptr_t)arg);
    _exit(CANNOT_START);
}

/* Ends what a launch left: ranks whose mpirun was killed. They are children of this process since it takes in orphans. So is
 * the keeper, which stays. */
static void end_leftovers(const struct supervisor *s)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%ld/children", (long)getpid());
    for (int tries = 0; tries < 1000; tries++) {
        long pid, keeper = (long)ckpt_keeper_of(s->r->run.dir), others = 0;
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
        FILE *f = fopen(path, "r");
        while (f && fscanf(f, "%ld", &pid) == 1) {
            if (pid == keeper) continue;
            kill((pid_t)pid, SIGKILL);
            others++;
        }
        if (f) fclose(f);
        if (!others) return;
        usleep(10000);
    }
}

/* What the MPI of a launch that was killed left in shared memory. */
static void empty_scratch(const struct supervisor *s)
{
    DIR *d = s->scratch[0] ? opendir(s->scratch) : NULL;
    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) unlinkat(dirfd(d), e->d_name, 0);
    if (d) closedir(d);
}

static void take_signal(struct supervisor *s, double seconds)
{
    struct timespec t = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };
    int sig = sigtimedwait(&s->watched, NULL, &t);
    if (sig != SIGTERM && sig != SIGINT) return;
    s->now = s->asked > 0;
    if (s->asked == 0) s->asked = tr_now();
}

/* Until the launch has ended. Returns what waitpid says of it. */
static int watch(struct supervisor *s, pid_t child)
{
    int status;
    s->sent = 0;
    for (pid_t got; (got = waitpid(-1, &status, WNOHANG)) != child; ) {
        if (got > 0) continue;
        if (got < 0 && errno != EINTR) return -1;
        double now = tr_now();
        if (s->now || (s->asked > 0 && now - s->asked > GRACE)) kill(-child, SIGKILL);
        else if (s->asked > 0 && now - s->sent >= 1) {   /* again and again: it may not have listened yet */
            kill(child, SIGUSR1);
            s->sent = now;
        }
        take_signal(s, 0.2);
    }
    return status;
}

static int launch(struct supervisor *s, bool resume, int *status)
{
    char program[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0) return tr_fail(TR_EFAIL, "cannot find this program's own file: %s", strerror(errno));
    program[n] = 0;
    fflush(NULL);
    pid_t parent = getpid(), child = fork();
    if (child < 0) return tr_fail(TR_EFAIL, "cannot start the ranks: %s", strerror(errno));
    if (child == 0) become(s, program, resume, parent);
    *status = watch(s, child);
    end_leftovers(s);
    empty_scratch(s);
    return TR_OK;
}

/* ---- what follows from its end */

static int stopped(const struct supervisor *s)
{
    int64_t step;
    TR_TRY(newest(s, &step));
    if (step < 0) return tr_fail(TR_EFAIL, "stopped on request before the first snapshot (%s): start again without --resume", s->r->path);
    return tr_fail(TR_ESTOPPED, "stopped on request: the newest complete snapshot is of step %" PRId64 "; continue with `train run %s --supervise --resume`", step, s->r->path);
}

/* Exit codes that another launch would not change; the ranks have said why. */
static bool is_final(int code) { return code == TR_OK || code == TR_EINPUT || code == TR_EBUDGET || code == TR_EDAMAGED || code == TR_ESTOPPED; }

static int relaunch(struct supervisor *s)
{
    bool resume = s->resume;
    int64_t saved, last_saved = -2, last_reached = -2;
    int same = 0, fruitless = 0, status;
    for (;;) {
        TR_TRY(launch(s, resume, &status));
        int code = status >= 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        if (is_final(code)) return code ? tr_fail(code, "%s", "") : TR_OK;
        if (code == CANNOT_START) return tr_fail(TR_EFAIL, "cannot start %s: is it installed and in PATH?", s->ranks > 1 ? "mpirun" : "this program again");
        if (s->asked > 0) return stopped(s);
        TR_TRY(newest(s, &saved));
        int64_t at = reached(s);
        same = code == TR_EFAIL && at == last_reached ? same + 1 : 1;
        fruitless = saved == last_saved ? fruitless + 1 : 1;
        last_reached = at;
        last_saved = saved;
        if (code == TR_EFAIL && same >= SAME_STEP)
            return tr_fail(TR_EFAIL, "the run failed %d times after step %" PRId64 " (%s): the reason is above; its snapshots are whole", same, at < 0 ? 0 : at, s->r->path);
        if (fruitless >= NO_NEWER)
            return tr_fail(TR_EFAIL, "the ranks died %d times without a newer snapshot (%s): set checkpoint.every lower, or look at what ends them", fruitless, s->r->path);
        resume = saved >= 0;
        double pause = 0.1 * (double)(1 << (fruitless < 9 ? fruitless - 1 : 8));
        if (code >= 0) tr_warn("the ranks ended with exit code %d", code);
        else tr_warn("the ranks were ended by signal %d", status >= 0 ? WTERMSIG(status) : 0);
        if (resume) tr_info("starting again from step %" PRId64 " in %.1f s", saved, pause);
        else tr_info("starting again from the beginning in %.1f s", pause);
        for (double until = tr_now() + pause; tr_now() < until && s->asked == 0; ) take_signal(s, until - tr_now() > 0.01 ? until - tr_now() : 0.01);
        if (s->asked > 0) return stopped(s);
    }
}

/* After an end that is an error: what is in memory goes to disk, and the error's message stays. */
static void leave_memory(const struct supervisor *s)
{
    char why[1024];
    snprintf(why, sizeof why, "%s", tr_message());
    if (ckpt_keeper_dismiss(s->r->run.dir, GRACE) != TR_OK) tr_warn("%s", tr_message());
    tr_fail(TR_EFAIL, "%s", why);
}

int recipe_supervise(struct recipe *r, const char *resume, int64_t ranks, const char *const *sets, size_t n_sets)
{
    struct supervisor s = { .r = r, .sets = sets, .n_sets = n_sets, .ranks = ranks ? ranks : r->parallel.data * r->parallel.pipeline, .resume = resume != NULL };
    struct tr_comm *c;
    TR_TRY(par_world(&c));
    if (c->size > 1) return tr_fail(TR_EINPUT, "--supervise under mpirun (%s): it starts the ranks itself; run `train run %s --supervise --ranks %d`", r->path, r->path, c->size);
    if (resume && resume[0]) return tr_fail(TR_EINPUT, "--resume %.80s with --supervise (%s): a supervised run continues from the newest of its folder; give --resume alone, or run from that snapshot without --supervise", resume, r->path);
    if (s.ranks % r->parallel.pipeline || s.ranks > 65536)
        return tr_fail(TR_EINPUT, "--ranks %" PRId64 " with parallel.pipeline = %" PRId64 " (%s): it must be a multiple of it", s.ranks, r->parallel.pipeline, r->path);
    if (r->checkpoint.every == 0 && r->checkpoint.memory_every == 0)
        tr_warn("checkpoint.every = 0 (%s): after a failure this run starts from the beginning", r->path);
    if (2 * (n_sets + 1) + 12 > ARGS) return tr_fail(TR_EINPUT, "too many --set with --supervise (%s): put them into the recipe", r->path);
    s.before = snapshots_folder(r);
    ckpt_keeper_newest(r->run.dir, nodes(&s), s.memory);
    snprintf(s.scratch, sizeof s.scratch, "/dev/shm/train-mpi-XXXXXX");
    if (s.ranks == 1 || !mkdtemp(s.scratch)) s.scratch[0] = 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigemptyset(&s.watched);
    sigaddset(&s.watched, SIGTERM);
    sigaddset(&s.watched, SIGINT);
    sigaddset(&s.watched, SIGCHLD);
    sigprocmask(SIG_BLOCK, &s.watched, &s.old);
    int rc = relaunch(&s);
    if (rc == TR_OK) rc = ckpt_keeper_dismiss(r->run.dir, GRACE);
    else leave_memory(&s);
    if (s.scratch[0]) rmdir(s.scratch);
    sigprocmask(SIG_SETMASK, &s.old, NULL);
    return rc;
}
