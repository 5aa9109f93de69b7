#include "checkpoint/capture.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/keeper.h"
#include "checkpoint/part.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/log.h"
#include "libtrain/base/mem.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/base/thread.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { CHUNK = 256 << 10 /* copied and checked while it is in the cache */, ALIGN = 64 };
enum todo { WAITS, BUSY, COPIED };

struct task { struct tr_tensor from; struct ckpt_entry *e; };
struct ckpt_capture {
    struct ckpt_capture_setup setup;
    struct tr_buf recipe;
    struct ckpt_size size;           /* of this rank's parts */
    size_t counted;                  /* in the ledger */
    struct ckpt_shared *shared;
    struct ckpt_keeper keeper;
    void *room;                      /* for exchanges between nodes */
    size_t room_bytes;
    uint64_t launch;
    bool unprotected;                /* the version that was begun last; alike on all ranks */
    double blocked, began, copy_s;
    int64_t begun, left_out, flushed, failed;   /* flushed: as all ranks have heard it */
    /* the version that is copied; tasks of group g are [first[g], first[g + 1]) */
    struct ckpt_slot *slot;
    unsigned char *payload;
    int64_t version;
    bool to_disk;
    struct task *task;
    int64_t *first;
    uint64_t at, sequence;           /* while it is listed: in the payload; within the group */
    int64_t n_tasks, listed;         /* listed: the group whose turn it is */
    /* order of the last updates, and of those that are coming in */
    int64_t *order, *coming, n_coming;
    bool *came;
    /* between this thread and the copier */
    pthread_t thread;
    bool running, end;
    pthread_mutex_t lock;
    pthread_cond_t given, copied;
    enum todo *todo;
    _Atomic int64_t pending;         /* groups that are not copied */
};

static bool on_nodes(const struct ckpt_capture *c) { return c->setup.nodes.sets.data > 0; }
static uint32_t local_rank(const struct ckpt_capture *c) { return (uint32_t)(c->setup.nodes.comm->rank % c->setup.nodes.per); }
static bool leads(const struct ckpt_capture *c) { return ckpt_nodes_lead(&c->setup.nodes); }
static bool keeps(const struct ckpt_capture *c) { return c->setup.nodes.comm->rank == 0 && !on_nodes(c); }   /* has a keeper */

const struct ckpt_shared *ckpt_capture_shared(const struct ckpt_capture *c) { return c->shared; }

/* ---- listing: what there is goes into the slot's list, with its place in the payload */

/* The tensor's rows as they lie in memory. */
static struct tr_tensor rows_of(const struct tr_tensor *t, int64_t from, int64_t n)
{
    int64_t rows = t->ndim > 1 ? tr_rows(t) / t->dim[0] : 0;
    return t->ndim > 1 ? tr_rows_view(t, from * rows, n * rows) : *t;
}

static struct ckpt_entry *next_entry(struct ckpt_capture *c, int64_t group, const char *name, uint64_t bytes)
{
    bool parameter = !strncmp(name, "param/", 6), words = group >= c->setup.groups;
    while (c->listed < group) {
        c->first[++c->listed] = c->n_tasks;
        c->sequence = 0;
    }
    uint64_t key = (uint64_t)(words ? 2 : parameter ? 0 : 1) << 56 | (uint64_t)group << 16 | c->sequence++;
    if (!bytes || (uint64_t)c->n_tasks == c->size.entries || c->at + bytes > c->size.payload) return NULL;
    struct ckpt_entry *e = &ckpt_slot_entries(c->slot)[c->n_tasks];
    *e = (struct ckpt_entry){ .key = key, .at = c->at, .bytes = bytes };
    snprintf(e->name, sizeof e->name, "%s", name);
    c->at += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return e;
}

static int list_rows(void *self, int64_t group, const char *name, const struct tr_tensor *t, int64_t from, int64_t n, int64_t begin, int64_t whole)
{
    struct ckpt_capture *c = self;
    struct tr_tensor part = rows_of(t, from, n), quant[TR_QUANT_PARTS];
    int n_quant = tr_quant_views(t, quant);
    uint64_t bytes = n ? (uint64_t)tr_count(&part) * tr_dtype_size(t->dtype) : 0;
    struct ckpt_entry *e = next_entry(c, group, name, bytes);
    if (!e && bytes) return tr_fail(TR_EFAIL, "the state has grown (%s): a snapshot in memory has no room for it; set checkpoint.memory_every = 0", name);
    if (e) {
        e->dtype = (uint8_t)t->dtype;
        e->ndim = (uint8_t)t->ndim;
        memcpy(e->dim, t->dim, sizeof e->dim);
        e->dim[0] = whole;
        e->begin = begin;
        e->rows = n;
        e->group = n_quant ? t->quant.group : 0;
        c->task[c->n_tasks++] = (struct task){ part, e };
    }
    for (int i = 0; i < n_quant; i++) { /* scales and zeros of int8 weights */
        char its[CKPT_NAME];
        int64_t each = quant[i].dim[0] / t->dim[0];
        snprintf(its, sizeof its, "%.*s.%s", (int)sizeof its - 8, name, tr_quant_part[i]);
        TR_TRY(list_rows(c, group, its, &quant[i], from * each, n * each, begin * each, whole * each));
    }
    return TR_OK;
}

/* Words are few and change at once: they are copied here. */
static int list_words(void *self, int64_t group, const char *name, const uint64_t *words, int64_t count)
{
    struct ckpt_capture *c = self;
    struct ckpt_entry *e = next_entry(c, group, name, (uint64_t)count * sizeof *words);
    if (!e) return count ? tr_fail(TR_EFAIL, "the state has grown (%s): a snapshot in memory has no room for it; set checkpoint.memory_every = 0", name) : TR_OK;
    e->words = 1;
    e->ndim = 1;
    e->dim[0] = e->rows = count;
    memcpy(c->payload + e->at, words, e->bytes);
    e->crc = tr_crc32c(0, words, e->bytes);
    c->task[c->n_tasks++] = (struct task){ { 0 }, e };
    return TR_OK;
}

static int size_rows(void *self, int64_t group, const char *name, const struct tr_tensor *t, int64_t from, int64_t n, int64_t begin, int64_t whole)
{
    struct ckpt_size *s = self;
    struct tr_tensor part = rows_of(t, from, n), quant[TR_QUANT_PARTS];
    int n_quant = tr_quant_views(t, quant);
    if (!n || !tr_count(&part)) return TR_OK;
    s->entries++;
    s->payload += ((uint64_t)tr_count(&part) * tr_dtype_size(t->dtype) + ALIGN - 1) / ALIGN * ALIGN;
    for (int i = 0; i < n_quant; i++) {
        int64_t each = quant[i].dim[0] / t->dim[0];
        TR_TRY(size_rows(s, group, name, &quant[i], from * each, n * each, begin * each, whole * each));
    }
    return TR_OK;
}

static int size_words(void *self, int64_t group, const char *name, const uint64_t *words, int64_t count)
{
    struct ckpt_size *s = self;
    s->entries += count > 0;
    s->payload += ((uint64_t)count * sizeof *words + ALIGN - 1) / ALIGN * ALIGN;
    return TR_OK;
}

/* ---- copying */

static void copy_task(const struct ckpt_capture *c, const struct task *t)
{
    if (t->e->words) return;
    struct ckpt_parts parts = ckpt_parts(&t->from, CHUNK);
    struct tr_tensor view;
    unsigned char *to = c->payload + t->e->at;
    int64_t begin, n;
    uint32_t crc = 0;
    while (ckpt_part_next(&parts, &t->from, &view, &begin, &n)) {
        size_t bytes = (size_t)n * parts.bytes;
        tr_tensor_read(&view, to);
        crc = tr_crc32c(crc, to, bytes);
        to += bytes;
    }
    t->e->crc = crc;
}

static void copy_group(struct ckpt_capture *c, int64_t g)
{
    for (int64_t i = c->first[g]; i < c->first[g + 1]; i++) copy_task(c, &c->task[i]);
}

/* With the lock: the group has been copied. The last one makes the version whole: its word is set when all else stands. */
static void end_group(struct ckpt_capture *c, int64_t g)
{
    c->todo[g] = COPIED;
    if (atomic_load(&c->pending) == 1) {
        c->slot->n = (uint64_t)c->n_tasks;
        c->slot->crc = tr_crc32c(0, ckpt_slot_entries(c->slot), (size_t)c->n_tasks * sizeof(struct ckpt_entry));
        atomic_store(&c->slot->word, ckpt_word(c->version, c->to_disk));
        c->copy_s = tr_now() - c->began;
    }
    atomic_fetch_sub(&c->pending, 1);
    pthread_cond_broadcast(&c->copied);
}

/* The next group in the order of updates, -1: none is left to begin. */
static int64_t next_group(const struct ckpt_capture *c, int64_t *at)
{
    for (; *at < c->setup.groups; ++*at)
        if (c->todo[c->order[*at]] == WAITS) return c->order[*at];
    return -1;
}

static void *work(void *self)
{
    struct ckpt_capture *c = self;
    pthread_mutex_lock(&c->lock);
    for (int64_t seen = 0; !c->end;) {
        if (seen == c->begun) {
            pthread_cond_wait(&c->given, &c->lock);
            continue;
        }
        seen = c->begun;
        for (int64_t at = 0, g; !c->end && (g = next_group(c, &at)) >= 0;) {
            c->todo[g] = BUSY;
            pthread_mutex_unlock(&c->lock);
            copy_group(c, g);
            pthread_mutex_lock(&c->lock);
            end_group(c, g);
        }
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* With the lock: until the group is copied; one that has not been begun is copied here. */
static void need(struct ckpt_capture *c, int64_t g)
{
    if (c->todo[g] == WAITS) {
        c->todo[g] = BUSY;
        pthread_mutex_unlock(&c->lock);
        copy_group(c, g);
        pthread_mutex_lock(&c->lock);
        end_group(c, g);
    }
    while (c->todo[g] != COPIED) pthread_cond_wait(&c->copied, &c->lock);
}

void ckpt_capture_gate(struct ckpt_capture *c, int64_t group)
{
    if (!c) return;
    if (!c->came[group]) {
        c->came[group] = true;
        c->coming[c->n_coming++] = group;
    }
    if (!atomic_load(&c->pending)) return;
    double t = tr_now();
    pthread_mutex_lock(&c->lock);
    need(c, group);
    pthread_mutex_unlock(&c->lock);
    c->blocked += tr_now() - t;
}

void ckpt_capture_settle(struct ckpt_capture *c)
{
    if (!c || !atomic_load(&c->pending)) return;
    double t = tr_now();
    pthread_mutex_lock(&c->lock);
    for (int64_t i = 0; i < c->setup.groups; i++) need(c, c->order[i]);
    pthread_mutex_unlock(&c->lock);
    c->blocked += tr_now() - t;
}

int ckpt_capture_protect(struct ckpt_capture *c)
{
    if (!c) return TR_OK;
    ckpt_capture_settle(c);
    if (!c->unprotected) return TR_OK;
    double t = tr_now();
    int rc = ckpt_parity_make(&c->setup.nodes.ring, c->shared, local_rank(c), c->slot, c->room);
    c->unprotected = false;
    c->blocked += tr_now() - t;
    return rc;
}

/* ---- a version */

/* Which slot may be filled: one that is empty, else the older one, else (it is still to be written to disk, and so is
 * complete) the newer one. -1: both are still to be written. */
static int free_slot(const struct ckpt_capture *c)
{
    int64_t version[CKPT_SLOTS];
    bool bound[CKPT_SLOTS];
    for (int k = 0; k < CKPT_SLOTS; k++) {
        uint64_t word = atomic_load(&ckpt_shared_slot(c->shared, local_rank(c), k)->word);
        version[k] = ckpt_word_version(word);
        bound[k] = ckpt_word_flush(word) && version[k] > c->flushed;
        if (version[k] < 0) return k;
    }
    int older = version[0] > version[1];
    return !bound[older] ? older : !bound[!older] ? !older : -1;
}

/* The keeper's failures are said once; the older snapshots on disk are whole, and so is the version in memory. */
static void say_failure(struct ckpt_capture *c)
{
    int64_t failed = atomic_load(&c->shared->head->failed);
    if (!keeps(c) || failed <= c->failed) return;
    c->failed = failed;
    tr_warn("the snapshot of step %" PRId64 " is not on disk: %.*s", failed, CKPT_ERROR, c->shared->head->error);
}

static int wait_for_disk(struct ckpt_capture *c, int64_t version)
{
    for (int i = 0; atomic_load(&c->shared->head->flushed) < version; i++) {
        if (keeps(c) && i % 50 == 0) TR_TRY(ckpt_keeper_ensure(&c->keeper, c->shared));
        usleep(2000);
    }
    return TR_OK;
}

/* The oldest version that is still to be written. */
static int64_t oldest_bound(const struct ckpt_capture *c)
{
    int64_t first = INT64_MAX;
    for (int k = 0; k < CKPT_SLOTS; k++) {
        int64_t v = ckpt_word_version(atomic_load(&ckpt_shared_slot(c->shared, local_rank(c), k)->word));
        if (v >= 0 && v < first) first = v;
    }
    return first;
}

static void take_order(struct ckpt_capture *c)
{
    int64_t n = c->n_coming;
    for (int64_t g = c->setup.groups - 1; n && g >= 0; g--)
        if (!c->came[g]) c->coming[n++] = g; /* never updated: last */
    if (n) memcpy(c->order, c->coming, (size_t)c->setup.groups * sizeof *c->order);
    memset(c->came, 0, (size_t)c->setup.groups * sizeof *c->came);
    c->n_coming = 0;
}

int ckpt_capture_begin(struct ckpt_capture *c, int64_t step, bool to_disk)
{
    double t = tr_now();
    int k = free_slot(c);
    if (keeps(c)) TR_TRY(ckpt_keeper_ensure(&c->keeper, c->shared));
    say_failure(c);
    if (k < 0 && !to_disk) {
        c->left_out++;
        return TR_OK;
    }
    if (k < 0) {
        int64_t first = oldest_bound(c);
        TR_TRY(wait_for_disk(c, first));
        c->flushed = first; /* as every rank has seen now */
        k = free_slot(c);
    }
    c->slot = ckpt_shared_slot(c->shared, local_rank(c), k);
    c->payload = ckpt_slot_payload(c->shared, local_rank(c), c->slot);
    atomic_store(&c->slot->word, 0);
    c->slot->launch = c->launch;
    if (on_nodes(c)) atomic_store(&ckpt_slot_parity(c->shared, local_rank(c), c->slot)->word, 0);
    c->unprotected = on_nodes(c);
    c->version = step;
    c->to_disk = to_disk;
    c->began = t;
    c->at = c->sequence = 0;
    c->n_tasks = c->listed = c->first[0] = 0;
    struct tr_owned v = { c, c->setup.nodes.comm->rank, c->setup.nodes.comm->size, list_rows, list_words };
    TR_TRY(c->setup.owned(c->setup.self, &v));
    while (c->listed <= c->setup.groups) c->first[++c->listed] = c->n_tasks;
    pthread_mutex_lock(&c->lock);
    take_order(c);
    for (int64_t g = 0; g < c->setup.groups; g++) c->todo[g] = WAITS;
    atomic_store(&c->pending, c->setup.groups);
    c->begun++;
    pthread_cond_signal(&c->given);
    pthread_mutex_unlock(&c->lock);
    c->blocked += tr_now() - t;
    return TR_OK;
}

double ckpt_capture_say(struct ckpt_capture *c)
{
    return c && c->shared && keeps(c) ? (double)(atomic_load(&c->shared->head->flushed) + 1) : 0;
}

void ckpt_capture_hear(struct ckpt_capture *c, double sum)
{
    if (c && c->shared) c->flushed = (int64_t)sum - 1;
}

int ckpt_capture_finish(struct ckpt_capture *c, int64_t step)
{
    double t = tr_now();
    ckpt_capture_settle(c);
    TR_TRY(tr_comm_barrier(c->setup.nodes.comm));
    TR_TRY(wait_for_disk(c, step));
    c->blocked += tr_now() - t;
    if (atomic_load(&c->shared->head->failed) == step && keeps(c)) return tr_fail(TR_EFAIL, "%.*s", CKPT_ERROR, c->shared->head->error);
    return TR_OK;
}

double ckpt_capture_blocked(struct ckpt_capture *c)
{
    double t = c->blocked;
    c->blocked = 0;
    return t;
}

struct ckpt_capture_stats ckpt_capture_stats(struct ckpt_capture *c)
{
    pthread_mutex_lock(&c->lock);
    struct ckpt_capture_stats s = { c->begun, c->left_out, c->size.payload, c->copy_s };
    pthread_mutex_unlock(&c->lock);
    return s;
}

/* ---- beginning and end */

/* Bytes that this rank keeps of others when the longest of their slots has so many. */
static void set_parity(struct ckpt_capture *c, uint64_t slot_bytes)
{
    const struct ckpt_code *code = &c->setup.nodes.ring.code;
    c->size.parity = (uint64_t)code->m * ckpt_parity_segment(code->k, slot_bytes);
}

/* A forecast takes the other ranks' slots to be as long as this one's. */
static void count(struct ckpt_capture *c)
{
    size_t bytes = ckpt_shared_rank_bytes(&c->size) + (leads(c) ? ckpt_shared_head_bytes((uint32_t)c->setup.nodes.per, c->recipe.size) : 0);
    tr_mem_count(TR_SNAPSHOT, (int64_t)bytes - (int64_t)c->counted);
    c->counted = bytes;
}

int ckpt_capture_new(struct ckpt_capture **out, const struct ckpt_capture_setup *setup)
{
    struct ckpt_capture *c;
    size_t n = (size_t)setup->groups;
    TR_TRY(tr_calloc(&c, 1, sizeof *c));
    int rc;
    c->setup = *setup;
    c->failed = -1;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->given, NULL);
    pthread_cond_init(&c->copied, NULL);
    TR_GO(tr_buf_puts(&c->recipe, setup->recipe));
    TR_GO(setup->owned(setup->self, &(struct tr_owned){ &c->size, setup->nodes.comm->rank, setup->nodes.comm->size, size_rows, size_words }));
    TR_GO(tr_calloc(&c->task, c->size.entries + 1, sizeof *c->task));
    TR_GO(tr_calloc(&c->first, n + 2, sizeof *c->first));
    TR_GO(tr_calloc(&c->order, n + 1, sizeof *c->order));
    TR_GO(tr_calloc(&c->coming, n + 1, sizeof *c->coming));
    TR_GO(tr_calloc(&c->came, n + 1, sizeof *c->came));
    TR_GO(tr_calloc(&c->todo, n + 1, sizeof *c->todo));
    for (size_t i = 0; i < n; i++) c->order[i] = (int64_t)(n - 1 - i); /* backward's, until it is known */
    if (on_nodes(c)) {
        c->room_bytes = ckpt_parity_room(setup->nodes.ring.code.k, setup->nodes.ring.code.m);
        TR_GO(tr_mem_alloc(&c->room, c->room_bytes, TR_SNAPSHOT));
        set_parity(c, ckpt_shared_slot_bytes(&c->size));
    }
    count(c);
    *out = c;
    return TR_OK;
done:
    ckpt_capture_free(c, false);
    return rc;
}

static bool same_layout(const struct ckpt_shared *s, const struct ckpt_sets *sets, const struct ckpt_size *size, uint32_t ranks, size_t recipe)
{
    bool same = s && s->head->ranks == ranks && recipe < s->head->recipe_room && !memcmp(&s->head->sets, sets, sizeof *sets);
    for (uint32_t r = 0; same && r < ranks; r++) same = !memcmp(&s->place[r].size, &size[r], sizeof *size);
    return same;
}

/* A node's first rank: the old object goes on, or a new one takes its place. */
static int take_over(struct ckpt_capture *c, struct ckpt_shared *left, const struct ckpt_size *size, int64_t *version)
{
    const struct ckpt_sets *sets = &c->setup.nodes.sets;
    uint32_t ranks = (uint32_t)c->setup.nodes.per;
    c->shared = left;
    if (!same_layout(left, sets, size, ranks, c->recipe.size)) {
        if (left && *version >= 0 && on_nodes(c) && ckpt_shared_find(left, 0, *version) >= 0)
            return tr_fail(TR_EINPUT, "the snapshot of step %" PRId64 " in memory is of another model or recipe, and lies on several nodes: resume with the recipe that it is of, "
                           "which ends with a snapshot on disk, or remove from /dev/shm what '%s/.memory*' name", *version, c->setup.folder);
        if (left && *version >= 0 && !on_nodes(c)) {
            TR_TRY(ckpt_keeper_rescue(left));
            *version = -2;
        }
        if (left) ckpt_shared_remove(left);
        ckpt_shared_close(left);
        c->shared = NULL;
        TR_TRY(ckpt_shared_create(&c->shared, c->setup.folder, sets, size, ranks, c->recipe.size));
    }
    struct ckpt_head *h = c->shared->head;
    h->keep = (int32_t)c->setup.keep;
    h->compress = (int32_t)c->setup.compress;
    memcpy(ckpt_shared_recipe(c->shared), c->recipe.data, c->recipe.size + 1);
    atomic_store(&h->failed, -1);
    atomic_store(&h->done, 0);
    ckpt_keeper_note_supervisor(h);
    return TR_OK;
}

/* Of several nodes: what a node has lost comes from the others. */
static int rebuild(struct ckpt_capture *c, int64_t version)
{
    int lost;
    if (!on_nodes(c) || version < 0) return TR_OK;
    TR_TRY(ckpt_nodes_rebuild(&c->setup.nodes, c->shared, version, c->room, &lost));
    if (lost) tr_info("%d of %" PRIu32 " nodes had lost step %" PRId64 ": rebuilt from the others", lost, c->setup.nodes.sets.nodes, version);
    return TR_OK;
}

int ckpt_capture_attach(struct ckpt_capture *c, struct ckpt_shared *left, int64_t *version)
{
    struct tr_comm *comm = c->setup.nodes.comm;
    double mine[2] = { (double)c->size.entries, (double)c->size.payload }, *all = NULL;
    struct ckpt_size *size = NULL;
    uint64_t word, longest = 0;
    int rc, per = c->setup.nodes.per;
    TR_GO(tr_calloc(&all, (size_t)comm->size, sizeof mine));
    TR_GO(tr_calloc(&size, (size_t)comm->size, sizeof *size));
    TR_GO(tr_comm_each(comm, mine, 2, all));
    for (int r = 0; r < comm->size; r++) {
        size[r] = (struct ckpt_size){ (uint64_t)all[2 * r], (uint64_t)all[2 * r + 1], 0 };
        longest = ckpt_shared_slot_bytes(&size[r]) > longest ? ckpt_shared_slot_bytes(&size[r]) : longest;
    }
    if (on_nodes(c)) {
        set_parity(c, longest);
        count(c);
    }
    for (int r = 0; r < comm->size; r++) size[r].parity = c->size.parity;
    if (leads(c)) TR_GO(take_over(c, left, size + comm->rank, version));
    else ckpt_shared_close(left);
    word = (uint64_t)(*version + 2);
    TR_GO(tr_comm_words(comm, &word, 1, 0)); /* the object is there */
    if (on_nodes(c)) TR_GO(tr_comm_barrier(comm));
    *version = (int64_t)word - 2;
    if (!leads(c)) {
        TR_GO(ckpt_shared_open(&c->shared, c->setup.folder, c->setup.nodes.sets.node));
        if (!c->shared || c->shared->head->ranks != (uint32_t)per || !ckpt_shared_lock(c->shared, CKPT_RANKS, false))
            TR_GO(tr_fail(TR_EFAIL, "shared memory of '%s' is not there for rank %d: all ranks must be on one machine", c->setup.folder, comm->rank));
    }
    rc = rebuild(c, *version);
done:
    free(all);
    free(size);
    return rc;
}

int ckpt_capture_source(const struct ckpt_capture *c, int64_t version, struct ckpt_source *src)
{
    return on_nodes(c) ? ckpt_source_nodes(src, c->shared, version, &c->setup.nodes) : ckpt_source_memory(src, c->shared, version, false);
}

/* Pages of this rank's slots are mapped before the first step. */
static void touch(const struct ckpt_capture *c)
{
    const struct ckpt_place *p = &c->shared->place[local_rank(c)];
    volatile const unsigned char *at = c->shared->base + p->at;
    for (uint64_t i = 0, n = ckpt_shared_rank_bytes(&p->size); i < n; i += 4096) (void)at[i];
}

static int start_thread(struct ckpt_capture *c)
{
    TR_TRY(tr_thread_start(&c->thread, work, c, "checkpoint.memory_every"));
    c->running = true;
    return TR_OK;
}

/* Which start of the run makes the versions from now on. Parts of several nodes are told apart by it. */
static int name_launch(struct ckpt_capture *c)
{
    if (on_nodes(c) && c->setup.nodes.comm->rank == 0 && getrandom(&c->launch, sizeof c->launch, 0) != sizeof c->launch) return tr_fail(TR_EFAIL, "no random number for this start");
    c->launch >>= 12; /* exact as a double */
    return tr_comm_words(c->setup.nodes.comm, &c->launch, 1, 0);
}

/* After a loss the version is protected again before anything older is given up. */
static int protect_again(struct ckpt_capture *c, int64_t step)
{
    int k = ckpt_shared_find(c->shared, local_rank(c), step);
    if (k < 0) return tr_fail(TR_EFAIL, "the snapshot of step %" PRId64 " in memory is gone", step);
    return ckpt_parity_make(&c->setup.nodes.ring, c->shared, local_rank(c), ckpt_shared_slot(c->shared, local_rank(c), k), c->room);
}

int ckpt_capture_start(struct ckpt_capture *c, int64_t step, bool in_memory)
{
    struct tr_comm *comm = c->setup.nodes.comm;
    struct ckpt_head *h = c->shared->head;
    uint64_t word[3] = { 0, 0, 0 }; /* versions that stay, and what is on disk, all + 1 */
    if (on_nodes(c) && in_memory) TR_TRY(protect_again(c, step));
    TR_TRY(name_launch(c));
    if (comm->rank == 0) {
        int64_t flushed = atomic_load(&h->flushed);
        if (flushed > step || !in_memory) atomic_store(&h->flushed, flushed = step);
        word[0] = in_memory ? (uint64_t)step + 1 : 0;
        word[1] = in_memory && !on_nodes(c) ? (uint64_t)(ckpt_shared_newest(c->shared, step) + 1) : 0;
        word[2] = (uint64_t)(flushed + 1);
    }
    TR_TRY(tr_comm_words(comm, word, 3, 0));
    c->flushed = (int64_t)word[2] - 1;
    for (int k = 0; k < CKPT_SLOTS; k++) {
        struct ckpt_slot *slot = ckpt_shared_slot(c->shared, local_rank(c), k);
        uint64_t v = (uint64_t)(ckpt_word_version(atomic_load(&slot->word)) + 1);
        if (v != word[0] && v != word[1]) atomic_store(&slot->word, 0);
    }
    touch(c);
    TR_TRY(tr_comm_barrier(comm));
    TR_TRY(start_thread(c));
    return keeps(c) ? ckpt_keeper_ensure(&c->keeper, c->shared) : TR_OK;
}

void ckpt_capture_free(struct ckpt_capture *c, bool done)
{
    if (!c) return;
    if (c->running) {
        pthread_mutex_lock(&c->lock);
        c->end = true;
        pthread_cond_signal(&c->given);
        pthread_mutex_unlock(&c->lock);
        pthread_join(c->thread, NULL);
    }
    if (done && c->shared && leads(c)) {
        atomic_store(&c->shared->head->done, 1);
        ckpt_shared_remove(c->shared);
        ckpt_keeper_leave(&c->keeper);
    }
    else if (c->shared && leads(c) && !ckpt_shared_is_named(c->shared)) ckpt_shared_remove(c->shared); /* the folder has been removed */
    ckpt_shared_close(c->shared);
    if (c->counted) tr_mem_count(TR_SNAPSHOT, -(int64_t)c->counted);
    if (c->room) tr_mem_free(c->room, c->room_bytes, TR_SNAPSHOT);
    pthread_cond_destroy(&c->copied);
    pthread_cond_destroy(&c->given);
    pthread_mutex_destroy(&c->lock);
    tr_buf_release(&c->recipe);
    free(c->todo);
    free(c->came);
    free(c->coming);
    free(c->order);
    free(c->first);
    free(c->task);
    free(c);
}
