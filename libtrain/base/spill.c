#include "libtrain/base/spill.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/file.h"
#include "libtrain/base/mem.h"
#include "libtrain/base/status.h"
#include "libtrain/base/thread.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { JOBS = 64, BOUNCE = 4 << 20 };

struct job { bool write; uint64_t at; void *memory; size_t bytes; };
struct tr_spill {
    int fd;                              /* -1 in dry mode */
    char *folder;
    void *bounce;
    pthread_t thread;
    bool running, end;
    pthread_mutex_t lock;
    pthread_cond_t given, done;
    struct job job[JOBS];                /* job k at k % JOBS */
    uint64_t last, finished;             /* tickets */
    int error;                           /* errno of the first job that failed */
    bool error_in_write;
    struct tr_spill_counts counts;
};

uint64_t tr_spill_room(size_t bytes) { return (bytes + TR_SPILL_ALIGN - 1) & ~(uint64_t)(TR_SPILL_ALIGN - 1); }

/* ---- the thread. Every transfer is of whole places from an aligned buffer, as direct I/O wants it. */

static int transfer(const struct tr_spill *s, bool write, uint64_t at, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        char *p = (char *)s->bounce + done;
        ssize_t n = write ? pwrite(s->fd, p, bytes - done, (off_t)(at + done)) : pread(s->fd, p, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) return EIO;
        done += (size_t)n;
    }
    return 0;
}

static int do_job(const struct tr_spill *s, const struct job *j)
{
    for (size_t done = 0; done < j->bytes;) {
        size_t n = j->bytes - done < BOUNCE ? j->bytes - done : BOUNCE, room = tr_spill_room(n);
        char *memory = (char *)j->memory + done;
        if (j->write) {
            memcpy(s->bounce, memory, n);
            memset((char *)s->bounce + n, 0, room - n);
        }
        int error = transfer(s, j->write, j->at + done, room);
        if (error) return error;
        if (!j->write) memcpy(memory, s->bounce, n);
        done += n;
    }
    return 0;
}

static void *work(void *self)
{
    struct tr_spill *s = self;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (s->finished == s->last && !s->end) pthread_cond_wait(&s->given, &s->lock);
        if (s->finished == s->last) break;
        struct job j = s->job[(s->finished + 1) % JOBS];
        bool failed = s->error != 0;
        pthread_mutex_unlock(&s->lock);
        int error = failed ? 0 : do_job(s, &j);
        pthread_mutex_lock(&s->lock);
        if (error) {
            s->error = error;
            s->error_in_write = j.write;
        }
        s->finished++;
        pthread_cond_broadcast(&s->done);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the caller's side */

static int open_file(struct tr_spill *s)
{
    struct tr_buf name = { 0 };
    int rc;
    TR_GO(tr_mkdirs(s->folder));
    TR_GO(tr_buf_printf(&name, "%s/.offload.XXXXXX", s->folder));
    s->fd = mkostemp(name.data, O_CLOEXEC);
    if (s->fd < 0) TR_GO(tr_fail(TR_EFAIL, "cannot offload to '%s': %s; set memory.offload_dir to a folder with room", s->folder, strerror(errno)));
    unlink(name.data);
    fcntl(s->fd, F_SETFL, O_DIRECT); /* where it is refused (tmpfs) I/O is buffered */
    rc = TR_OK;
done:
    tr_buf_release(&name);
    return rc;
}

static int start(struct tr_spill *s)
{
    TR_TRY(tr_thread_start(&s->thread, work, s, "memory.offload"));
    s->running = true;
    return TR_OK;
}

int tr_spill_open(struct tr_spill **out, const char *folder)
{
    struct tr_spill *s;
    int rc;
    TR_TRY(tr_calloc(&s, 1, sizeof *s));
    s->fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->given, NULL);
    pthread_cond_init(&s->done, NULL);
    TR_GO(tr_strdup(&s->folder, folder));
    TR_GO(tr_mem_alloc(&s->bounce, BOUNCE, TR_OTHER));
    if (!tr_mem_is_dry()) {
        TR_GO(open_file(s));
        TR_GO(start(s));
    }
    *out = s;
    return TR_OK;
done:
    tr_spill_close(s);
    return rc;
}

void tr_spill_close(struct tr_spill *s)
{
    if (!s) return;
    if (s->running) {
        pthread_mutex_lock(&s->lock);
        s->end = true;
        pthread_cond_signal(&s->given);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    if (s->fd >= 0) close(s->fd);
    tr_mem_free(s->bounce, BOUNCE, TR_OTHER);
    pthread_cond_destroy(&s->given);
    pthread_cond_destroy(&s->done);
    pthread_mutex_destroy(&s->lock);
    free(s->folder);
    free(s);
}

static uint64_t give(struct tr_spill *s, struct job j)
{
    if (j.write) {
        s->counts.written += j.bytes;
        if (j.at + tr_spill_room(j.bytes) > s->counts.file) s->counts.file = j.at + tr_spill_room(j.bytes);
    } else s->counts.read += j.bytes;
    if (!s->running) return ++s->last;
    pthread_mutex_lock(&s->lock);
    while (s->last - s->finished == JOBS) pthread_cond_wait(&s->done, &s->lock);
    uint64_t ticket = ++s->last;
    s->job[ticket % JOBS] = j;
    pthread_cond_signal(&s->given);
    pthread_mutex_unlock(&s->lock);
    return ticket;
}

uint64_t tr_spill_write(struct tr_spill *s, uint64_t at, const void *from, size_t bytes)
{
    return give(s, (struct job){ true, at, (void *)(uintptr_t)from, bytes });
}

uint64_t tr_spill_read(struct tr_spill *s, uint64_t at, void *to, size_t bytes)
{
    return give(s, (struct job){ false, at, to, bytes });
}

int tr_spill_wait(struct tr_spill *s, uint64_t ticket)
{
    if (!s->running) return TR_OK;
    pthread_mutex_lock(&s->lock);
    while (s->finished < ticket) pthread_cond_wait(&s->done, &s->lock);
    int error = s->error;
    pthread_mutex_unlock(&s->lock);
    if (!error) return TR_OK;
    return tr_fail(TR_EFAIL, "cannot %s offloaded memory (%s): %s; snapshots written so far are whole: make room, or set memory.offload_dir, and go on with --resume",
                   s->error_in_write ? "write" : "read", s->folder, strerror(error));
}

struct tr_spill_counts tr_spill_counts(const struct tr_spill *s) { return s->counts; }
