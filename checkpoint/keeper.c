#include "checkpoint/keeper.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"
#include "checkpoint/image.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char SUPERVISOR[] = "TRAIN_SUPERVISOR";
enum { POLL = 10000 /* microseconds */, ORPHAN_TRIES = 120, ORPHAN_PAUSE = 5 };

/* ---- processes */

/* When a process was born, in clock ticks since the machine started; 0: there is none. So a number that is used again is not
 * taken for the process that had it. */
static int64_t born(int64_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
    FILE *f = pid > 0 ? fopen(path, "r") : NULL;
    if (!f) return 0;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    const char *at = strrchr(text, ')'); /* the name may hold anything */
    int64_t ticks = 0;
    char state = 'Z';
    if (!at || sscanf(at + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %" SCNd64, &state, &ticks) != 2) return 0;
    return state == 'Z' || state == 'X' ? 0 : ticks;
}

void ckpt_keeper_become_supervisor(int64_t pid)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, pid);
    setenv(SUPERVISOR, text, 1);
}

void ckpt_keeper_note_supervisor(struct ckpt_head *h)
{
    const char *text = getenv(SUPERVISOR);
    int64_t pid = text ? strtoll(text, NULL, 10) : 0;
    atomic_store(&h->supervisor_born, born(pid));
    atomic_store(&h->supervisor, pid);
}

static bool supervised(const struct ckpt_head *h)
{
    int64_t pid = atomic_load(&h->supervisor), ticks = atomic_load(&h->supervisor_born);
    return pid > 0 && ticks && born(pid) == ticks;
}

/* The environment without what would make the keeper a rank. */
static char **own_environment(void)
{
    static const char *const ranks[] = { "OMPI_", "PMIX_", "PMI_", "PRTE_" };
    size_t n = 0, kept = 0;
    char **all;
    while (environ[n]) n++;
    if (tr_calloc(&all, n + 1, sizeof *all) != TR_OK) return NULL;
    for (size_t i = 0; i < n; i++) {
        bool skip = false;
        for (size_t k = 0; k < sizeof ranks / sizeof *ranks; k++) skip |= !strncmp(environ[i], ranks[k], strlen(ranks[k]));
        if (!skip) all[kept++] = environ[i];
    }
    return all;
}

static int start(pid_t *pid, const char *folder)
{
    char *log = NULL, **env = own_environment(), *argv[] = { "train", "keep", (char *)(uintptr_t)folder, NULL };
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none;
    int rc = tr_path_join(&log, folder, "keeper.log");
    sigemptyset(&none);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK); /* the terminal's signals and its launcher's end do not reach it */
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
    if (log) posix_spawn_file_actions_addopen(&files, 2, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int error = rc == TR_OK && env ? posix_spawn(pid, "/proc/self/exe", &files, &attr, argv, env) : ENOMEM;
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    free(env);
    free(log);
    return error ? tr_fail(TR_EFAIL, "cannot start the keeper of snapshots in memory: %s; set checkpoint.memory_every = 0", strerror(error)) : TR_OK;
}

int ckpt_keeper_ensure(struct ckpt_keeper *k, const struct ckpt_shared *s)
{
    if (ckpt_shared_holder((struct ckpt_shared *)(uintptr_t)s, CKPT_KEEPER, NULL)) {
        k->tries = 0;
        return TR_OK;
    }
    if (k->pid > 0 && waitpid(k->pid, NULL, WNOHANG) == 0) return TR_OK; /* about to begin */
    k->pid = 0;
    if (++k->tries > CKPT_KEEPER_TRIES)
        return tr_fail(TR_EFAIL, "the keeper of snapshots in memory ends as soon as it is started (%s/keeper.log): set checkpoint.memory_every = 0", s->folder);
    return start(&k->pid, s->folder);
}

void ckpt_keeper_leave(struct ckpt_keeper *k)
{
    for (int i = 0; k->pid > 0 && i < 500 && waitpid(k->pid, NULL, WNOHANG) == 0; i++) usleep(10000);
    k->pid = 0;
}

/* ---- writing */

static int write_version(const struct ckpt_shared *s, int64_t version)
{
    struct ckpt_image img;
    char *recipe = NULL;
    int rc;
    TR_GO(ckpt_image_open(&img, s, version));
    TR_GO(tr_strndup(&recipe, ckpt_shared_recipe(s), strnlen(ckpt_shared_recipe(s), s->head->recipe_room - 1)));
    rc = ckpt_save_image(s->folder, &img, recipe, s->head->keep, s->head->compress);
done:
    free(recipe);
    ckpt_image_release(&img);
    return rc;
}

/* Step of the newest file, whole or not; -1: none. */
static int64_t newest_file(const char *folder)
{
    int64_t *steps, step = -1;
    size_t n;
    if (ckpt_file_steps(&steps, &n, folder) != TR_OK) return -1;
    char *path = NULL;
    for (size_t i = 0; i < n && step < 0; i++) {
        if (ckpt_file_path(&path, folder, steps[i]) == TR_OK && ckpt_file_verify(path) == TR_OK) step = steps[i];
        free(path);
        path = NULL;
    }
    free(steps);
    return step;
}

int ckpt_keeper_rescue(const struct ckpt_shared *s)
{
    int64_t file = newest_file(s->folder);
    for (int64_t v = INT64_MAX; (v = ckpt_shared_newest(s, v)) > file;) {
        int rc = write_version(s, v);
        if (rc != TR_EDAMAGED) return rc;
        tr_warn("%s", tr_message());
    }
    return TR_OK;
}

/* A version that cannot be written is given up: the run goes on, and says so. */
static void write_pending(const struct ckpt_shared *s, int64_t version)
{
    struct ckpt_head *h = s->head;
    int64_t before = atomic_load(&h->flushed);
    if (write_version(s, version) != TR_OK) {
        tr_warn("step %" PRId64 ": %s", version, tr_message());
        snprintf(h->error, sizeof h->error, "%s", tr_message());
        atomic_store(&h->failed, version);
    }
    atomic_compare_exchange_strong(&h->flushed, &before, version); /* a run that began anew in between has set it */
}

/* ---- the process */

/* The run folder is not there any more, or another one is in its place. */
static bool folder_gone(const struct ckpt_shared *s)
{
    struct stat st;
    return stat(s->folder, &st) || (uint64_t)st.st_ino != s->head->inode || (uint64_t)st.st_dev != s->head->device;
}

/* Nobody is left who would use the memory. true: it has been removed, or is left for a resume. */
static bool end_orphan(struct ckpt_shared *s, int *tries)
{
    int rc = folder_gone(s) ? TR_OK : ckpt_keeper_rescue(s);
    if (rc != TR_OK) {
        tr_warn("%s", tr_message());
        if (++*tries == ORPHAN_TRIES) return true; /* a resume finds it */
        sleep(ORPHAN_PAUSE);
        return false;
    }
    if (!ckpt_shared_lock(s, CKPT_RANKS, true)) return false; /* a run has begun again */
    ckpt_shared_remove(s);
    return true;
}

static void keep(struct ckpt_shared *s)
{
    int tries = 0;
    for (;; usleep(POLL)) {
        int64_t pending = ckpt_shared_pending(s);
        if (atomic_load(&s->head->done)) return;
        if (pending >= 0) write_pending(s, pending);
        else if (!ckpt_shared_holder(s, CKPT_RANKS, NULL) && !supervised(s->head)) {
            if (end_orphan(s, &tries)) return;
        }
    }
}

int ckpt_keeper_run(const char *folder)
{
    struct ckpt_shared *s;
    close_range(3, ~0u, 0); /* its starter's */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    TR_TRY(ckpt_shared_open(&s, folder, 0));
    if (!s) return tr_fail(TR_EINPUT, "no snapshots in memory for '%s': `train run` starts the keeper itself where checkpoint.memory_every asks for it", folder);
    if (ckpt_shared_lock(s, CKPT_KEEPER, true)) keep(s);
    ckpt_shared_close(s);
    return TR_OK;
}

/* ---- the supervisor's side */

int64_t ckpt_keeper_of(const char *folder)
{
    struct ckpt_shared *s;
    if (ckpt_shared_open(&s, folder, 0) != TR_OK || !s) return 0;
    int64_t pid = ckpt_shared_holder(s, CKPT_KEEPER, NULL);
    ckpt_shared_close(s);
    return pid;
}

int64_t ckpt_keeper_newest(const char *folder, uint32_t nodes, char name[32])
{
    struct ckpt_shared *s;
    int64_t newest = -1;
    name[0] = 0;
    for (uint32_t i = 0; i < nodes; i++) {
        if (ckpt_shared_open(&s, folder, i) != TR_OK || !s) continue;
        int64_t step = ckpt_shared_newest(s, INT64_MAX);
        newest = step > newest ? step : newest;
        if (!name[0]) memcpy(name, s->name, 32);
        ckpt_shared_close(s);
    }
    return newest;
}

bool ckpt_keeper_supervised(void) { return getenv(SUPERVISOR) != NULL; }

int ckpt_keeper_dismiss(const char *folder, double seconds)
{
    struct ckpt_keeper k = { 0 };
    double until = tr_now() + seconds;
    for (;; usleep(20000)) {
        struct ckpt_shared *s;
        TR_TRY(ckpt_shared_open(&s, folder, 0));
        bool keeps = s && !s->head->sets.data; /* on several nodes it stays for a resume */
        if (!keeps) ckpt_shared_close(s);
        if (!keeps) break;
        atomic_store(&s->head->supervisor, 0);
        int rc = tr_now() > until ? tr_fail(TR_EFAIL, "the newest snapshot is in memory alone and could not be written (%s/keeper.log): make room; `train run --resume` finds it until the machine restarts", folder)
                                  : ckpt_keeper_ensure(&k, s);
        ckpt_shared_close(s);
        TR_TRY(rc);
    }
    ckpt_keeper_leave(&k);
    return TR_OK;
}
