#include "checkpoint/shared.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "words in shared memory need atomics without locks");

enum { PAGE = 4096, TABLE = 1024 /* where the ranks' table begins */, ALIGN = 64 };
static const char MAGIC[16] = "train memory 2\n";
static const uint64_t MOST = (uint64_t)1 << 46;
_Static_assert(sizeof(struct ckpt_head) <= TABLE, "the head has grown into the table");

static uint64_t page_up(uint64_t bytes) { return (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1); }
static uint64_t entries_bytes(uint64_t entries) { return page_up(ALIGN + entries * sizeof(struct ckpt_entry)); }
static uint64_t slot_bytes(const struct ckpt_size *size) { return entries_bytes(size->entries) + page_up(size->payload); }

static uint64_t parity_bytes(const struct ckpt_size *size) { return size->parity ? PAGE + page_up(size->parity) : 0; }

uint64_t ckpt_shared_slot_bytes(const struct ckpt_size *size) { return slot_bytes(size); }
uint64_t ckpt_shared_rank_bytes(const struct ckpt_size *size) { return CKPT_SLOTS * (slot_bytes(size) + parity_bytes(size)); }
static uint64_t recipe_room(size_t recipe) { return page_up(2 * recipe + 1); }
static uint64_t recipe_at(uint32_t ranks) { return page_up(TABLE + ranks * sizeof(struct ckpt_place)); }
uint64_t ckpt_shared_head_bytes(uint32_t ranks, size_t recipe) { return recipe_at(ranks) + recipe_room(recipe); }

/* The file in the run folder that names a node's object. */
static const char *file_of(uint32_t node, char text[24])
{
    snprintf(text, 24, node ? ".memory-%" PRIu32 : ".memory", node);
    return text;
}

static uint32_t head_crc(const struct ckpt_head *h)
{
    uint32_t crc = tr_crc32c(0, h, offsetof(struct ckpt_head, crc));
    return tr_crc32c(crc, (const char *)h + TABLE, h->ranks * sizeof(struct ckpt_place));
}

static int new_shared(struct ckpt_shared **out, const char *folder, uint32_t node)
{
    TR_TRY(tr_calloc(out, 1, sizeof **out));
    (*out)->fd = -1;
    (*out)->node = node;
    int rc = tr_strdup(&(*out)->folder, folder);
    if (rc != TR_OK) free(*out);
    return rc;
}

void ckpt_shared_close(struct ckpt_shared *s)
{
    if (!s) return;
    if (s->base) munmap(s->base, s->bytes);
    if (s->fd >= 0) close(s->fd);
    free(s->folder);
    free(s);
}

static int map(struct ckpt_shared *s, size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
    if (p == MAP_FAILED) return tr_fail(TR_EFAIL, "cannot map shared memory '%s': %s", s->name, strerror(errno));
    s->base = p;
    s->bytes = bytes;
    s->head = p;
    s->place = (const struct ckpt_place *)(const void *)(s->base + TABLE);
    madvise(p, bytes, MADV_DONTDUMP);
    return TR_OK;
}

/* ---- a new one */

/* Memory that is missing would be a signal in the middle of a step; so all of it is taken here. */
static int take_memory(struct ckpt_shared *s, uint64_t bytes)
{
    struct statvfs fs;
    uint64_t room = fstatvfs(s->fd, &fs) ? 0 : (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room < bytes || posix_fallocate(s->fd, 0, (off_t)bytes))
        return tr_fail(TR_EFAIL, "no room for snapshots in memory (checkpoint.memory_every): two versions of this machine's state take %.1f MB of /dev/shm, where %.1f MB are free; "
                       "enlarge it (mount -o remount,size=... /dev/shm; docker run --shm-size=...), or set checkpoint.memory_every = 0", (double)bytes / 1e6, (double)room / 1e6);
    return TR_OK;
}

static int name_object(struct ckpt_shared *s)
{
    uint64_t r;
    if (getrandom(&r, sizeof r, 0) != sizeof r) return tr_fail(TR_EFAIL, "no random name for shared memory: %s", strerror(errno));
    snprintf(s->name, sizeof s->name, "/train-%016" PRIx64, r);
    struct tr_buf text = { 0 };
    char file[24];
    int rc = tr_buf_printf(&text, "%s\n", s->name);
    if (rc == TR_OK) rc = tr_write_file(s->folder, file_of(s->node, file), &text);
    tr_buf_release(&text);
    return rc;
}

static void write_head(struct ckpt_shared *s, const struct ckpt_sets *sets, const struct ckpt_size *size, uint32_t ranks, size_t recipe, const struct stat *folder)
{
    struct ckpt_head *h = s->head;
    uint64_t at = ckpt_shared_head_bytes(ranks, recipe);
    for (uint32_t r = 0; r < ranks; r++) {
        struct ckpt_place *p = (struct ckpt_place *)(void *)(s->base + TABLE) + r;
        *p = (struct ckpt_place){ at, slot_bytes(&size[r]), size[r] };
        at += ckpt_shared_rank_bytes(&size[r]);
    }
    h->bytes = at;
    h->device = (uint64_t)folder->st_dev;
    h->inode = (uint64_t)folder->st_ino;
    h->recipe_at = recipe_at(ranks);
    h->recipe_room = recipe_room(recipe);
    h->ranks = ranks;
    h->sets = *sets;
    atomic_init(&h->flushed, -1);
    atomic_init(&h->failed, -1);
    memcpy(h->magic, MAGIC, sizeof MAGIC);
    h->crc = head_crc(h);
}

int ckpt_shared_create(struct ckpt_shared **out, const char *folder, const struct ckpt_sets *sets, const struct ckpt_size *size, uint32_t ranks, size_t recipe)
{
    struct ckpt_shared *s;
    struct stat st;
    TR_TRY(new_shared(&s, folder, sets->node));
    int rc;
    uint64_t bytes = ckpt_shared_head_bytes(ranks, recipe);
    for (uint32_t r = 0; r < ranks; r++) bytes += ckpt_shared_rank_bytes(&size[r]);
    if (stat(folder, &st)) TR_GO(tr_fail(TR_EFAIL, "cannot look at '%s': %s", folder, strerror(errno)));
    TR_GO(name_object(s));
    s->fd = shm_open(s->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (s->fd < 0) TR_GO(tr_fail(TR_EFAIL, "cannot make shared memory (checkpoint.memory_every): %s; set checkpoint.memory_every = 0", strerror(errno)));
    ckpt_shared_lock(s, CKPT_RANKS, false);
    TR_GO(take_memory(s, bytes));
    TR_GO(map(s, bytes));
    write_head(s, sets, size, ranks, recipe, &st);
    *out = s;
    return TR_OK;
done:
    if (s->fd >= 0) shm_unlink(s->name);
    ckpt_shared_close(s);
    return rc;
}

/* ---- one that is there */

static bool read_name(struct ckpt_shared *s)
{
    char *path, file[24];
    struct tr_buf text = { 0 };
    if (tr_path_join(&path, s->folder, file_of(s->node, file)) != TR_OK) return false;
    bool ok = tr_exists(path) && tr_read_file(&text, path) == TR_OK && text.size == 24 && !strncmp(text.data, "/train-", 7) && text.data[23] == '\n';
    if (ok) {
        memcpy(s->name, text.data, 23);
        ok = strspn(s->name + 7, "0123456789abcdef") == 16;
    }
    tr_buf_release(&text);
    free(path);
    return ok;
}

static bool place_fits(const struct ckpt_head *h, const struct ckpt_place *p)
{
    return p->at % PAGE == 0 && p->at < h->bytes && p->size.entries < MOST / sizeof(struct ckpt_entry) && p->size.payload < MOST && p->size.parity < MOST &&
           p->slot_bytes == slot_bytes(&p->size) && ckpt_shared_rank_bytes(&p->size) <= h->bytes - p->at;
}

/* What the head says must hold before anything is looked up by it. */
static bool is_sound(const struct ckpt_shared *s, const struct stat *folder)
{
    const struct ckpt_head *h = s->head;
    if (memcmp(h->magic, MAGIC, sizeof MAGIC) || h->bytes != s->bytes || h->ranks < 1 || h->ranks > 65536) return false;
    if (recipe_at(h->ranks) > s->bytes || h->crc != head_crc(h)) return false;
    if (h->recipe_at != recipe_at(h->ranks) || h->recipe_room < 1 || h->recipe_room > s->bytes - h->recipe_at) return false;
    for (uint32_t r = 0; r < h->ranks; r++)
        if (!place_fits(h, &s->place[r])) return false;
    return h->device == (uint64_t)folder->st_dev && h->inode == (uint64_t)folder->st_ino; /* a copied folder owns nothing */
}

int ckpt_shared_open(struct ckpt_shared **out, const char *folder, uint32_t node)
{
    struct ckpt_shared *s;
    struct stat st, at;
    *out = NULL;
    TR_TRY(new_shared(&s, folder, node));
    int rc = TR_OK;
    if (stat(folder, &at) || !read_name(s)) goto none;
    s->fd = shm_open(s->name, O_RDWR | O_CLOEXEC, 0);
    if (s->fd < 0 || fstat(s->fd, &st) || st.st_uid != geteuid() || (st.st_mode & 0777) != 0600 || st.st_size < 2 * PAGE) goto none;
    TR_GO(map(s, (size_t)st.st_size));
    if (!is_sound(s, &at) || s->head->sets.node != node) goto none;
    *out = s;
    return TR_OK;
none:
done:
    ckpt_shared_close(s);
    return rc;
}

int ckpt_shared_claim(struct ckpt_shared **out, const char *folder, uint32_t node)
{
    for (int tries = 0; ; tries++) {
        struct stat st;
        bool alone = false;
        TR_TRY(ckpt_shared_open(out, folder, node));
        if (!*out) return TR_OK;
        bool mine = ckpt_shared_lock(*out, CKPT_RANKS, true) && ckpt_shared_lock(*out, CKPT_RANKS, false);
        if (mine && !fstat((*out)->fd, &st) && st.st_nlink > 0) return TR_OK;
        int64_t pid = mine ? 0 : ckpt_shared_holder(*out, CKPT_RANKS, &alone);
        ckpt_shared_close(*out);
        *out = NULL;
        if (mine) return TR_OK;  /* its keeper has just removed it */
        if (tries == 100 || (pid && !alone))
            return tr_fail(TR_EINPUT, "run.dir '%s' is in use by another run (process %" PRId64 "): wait for it, end it, or choose another run.dir", folder, pid);
        usleep(50000);           /* its keeper is about to remove it */
    }
}

bool ckpt_shared_is_named(const struct ckpt_shared *s)
{
    struct ckpt_shared now = { .folder = s->folder, .node = s->node };
    return read_name(&now) && !strcmp(now.name, s->name);
}

void ckpt_shared_remove(struct ckpt_shared *s)
{
    char *path, file[24];
    shm_unlink(s->name);
    if (tr_path_join(&path, s->folder, file_of(s->node, file)) != TR_OK) return;
    if (ckpt_shared_is_named(s)) unlink(path);
    free(path);
}

/* ---- locks */

static struct flock lock_of(enum ckpt_lock which, short type) { return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = which, .l_len = 1 }; }

bool ckpt_shared_lock(struct ckpt_shared *s, enum ckpt_lock which, bool alone)
{
    struct flock l = lock_of(which, alone ? F_WRLCK : F_RDLCK);
    return fcntl(s->fd, F_SETLK, &l) == 0;
}

void ckpt_shared_unlock(struct ckpt_shared *s, enum ckpt_lock which)
{
    struct flock l = lock_of(which, F_UNLCK);
    fcntl(s->fd, F_SETLK, &l);
}

int64_t ckpt_shared_holder(struct ckpt_shared *s, enum ckpt_lock which, bool *alone)
{
    struct flock l = lock_of(which, F_WRLCK);
    if (fcntl(s->fd, F_GETLK, &l) || l.l_type == F_UNLCK) return 0;
    if (alone) *alone = l.l_type == F_WRLCK;
    return l.l_pid;
}

/* ---- slots */

struct ckpt_slot *ckpt_shared_slot(const struct ckpt_shared *s, uint32_t rank, int slot)
{
    const struct ckpt_place *p = &s->place[rank];
    return (struct ckpt_slot *)(void *)(s->base + p->at + (uint64_t)slot * (p->slot_bytes + parity_bytes(&p->size)));
}

struct ckpt_parity *ckpt_slot_parity(const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot)
{
    return (struct ckpt_parity *)(void *)((unsigned char *)slot + s->place[rank].slot_bytes);
}

unsigned char *ckpt_parity_pieces(struct ckpt_parity *p) { return (unsigned char *)p + PAGE; }

struct ckpt_entry *ckpt_slot_entries(struct ckpt_slot *slot) { return (struct ckpt_entry *)(void *)((unsigned char *)slot + ALIGN); }
unsigned char *ckpt_slot_payload(const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot) { return (unsigned char *)slot + entries_bytes(s->place[rank].size.entries); }
char *ckpt_shared_recipe(const struct ckpt_shared *s) { return (char *)s->base + s->head->recipe_at; }

static uint64_t word_of(const struct ckpt_shared *s, uint32_t rank, int slot) { return atomic_load(&ckpt_shared_slot(s, rank, slot)->word); }

int ckpt_shared_find(const struct ckpt_shared *s, uint32_t rank, int64_t version)
{
    for (int k = 0; k < CKPT_SLOTS; k++)
        if (version >= 0 && ckpt_word_version(word_of(s, rank, k)) == version) return k;
    return -1;
}

bool ckpt_shared_complete(const struct ckpt_shared *s, int64_t version)
{
    for (uint32_t r = 0; r < s->head->ranks; r++)
        if (ckpt_shared_find(s, r, version) < 0) return false;
    return true;
}

int64_t ckpt_shared_newest(const struct ckpt_shared *s, int64_t below)
{
    int64_t best = -1;
    for (int k = 0; k < CKPT_SLOTS; k++) {
        int64_t v = ckpt_word_version(word_of(s, 0, k));
        if (v > best && v < below && ckpt_shared_complete(s, v)) best = v;
    }
    return best;
}

int64_t ckpt_shared_pending(const struct ckpt_shared *s)
{
    int64_t first = -1, flushed = atomic_load(&s->head->flushed);
    for (int k = 0; k < CKPT_SLOTS; k++) {
        uint64_t w = word_of(s, 0, k);
        int64_t v = ckpt_word_version(w);
        if (ckpt_word_flush(w) && v > flushed && (first < 0 || v < first) && ckpt_shared_complete(s, v)) first = v;
    }
    return first;
}
