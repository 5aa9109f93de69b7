#include "libtrain/base/mem.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static struct tr_ledger ledger;
static bool dry;
static uintptr_t dry_next = (uintptr_t)1 << 46; /* beyond what a process is given: touching it faults at once */
static void (*trace)(void *, const struct tr_ledger *);
static void *trace_self;

static const char *const names[TR_CATEGORIES] = { "weights", "gradients", "optimizer", "activations", "workspace",
                                                  "communication", "snapshot", "other" };

const char *tr_category_name(enum tr_category c) { return names[c]; }
struct tr_ledger tr_mem_ledger(void) { return ledger; }
bool tr_mem_is_dry(void) { return dry; }

void tr_mem_reset_peak(void)
{
    ledger.peak = ledger.total;
    memcpy(ledger.at_peak, ledger.now, sizeof ledger.now);
}

void tr_mem_trace(void (*on_change)(void *, const struct tr_ledger *), void *self)
{
    trace = on_change;
    trace_self = self;
}

void tr_mem_count(enum tr_category c, int64_t delta)
{
    ledger.now[c] += (size_t)delta;
    ledger.total += (size_t)delta;
    if (ledger.total > ledger.peak) tr_mem_reset_peak();
    if (trace) trace(trace_self, &ledger);
}

/* Blocks above 1 MiB come straight from the system and go back to it, so that the heap never keeps their holes. */
enum { PAGE = 4096, MAPPED = 1 << 20 };
static size_t page_up(size_t bytes) { return (bytes + PAGE - 1) & ~(size_t)(PAGE - 1); }

static void *dry_place(size_t bytes)
{
    void *p = (void *)dry_next;
    dry_next += page_up(bytes);
    return p;
}

int tr_mem_alloc(void **out, size_t bytes, enum tr_category c)
{
    *out = NULL;
    if (bytes == 0) return TR_OK;
    if (dry) {
        *out = dry_place(bytes);
    } else if (bytes >= MAPPED) {
        void *p = mmap(NULL, page_up(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) goto full;
        madvise(p, page_up(bytes), MADV_HUGEPAGE);
        *out = p;
    } else {
        void *p = NULL;
        if (posix_memalign(&p, 64, bytes)) goto full;
        *out = memset(p, 0, bytes);
    }
    tr_mem_count(c, (int64_t)bytes);
    return TR_OK;
full:
    return tr_fail(TR_EFAIL, "no memory (%s): %zu more bytes were refused with %zu in use; lower train.micro_batch or "
                   "data.sequence, or set memory.recompute = block", names[c], bytes, ledger.total);
}

void tr_mem_free(void *p, size_t bytes, enum tr_category c)
{
    if (!p) return;
    if (!dry) {
        if (bytes >= MAPPED) munmap(p, page_up(bytes));
        else free(p);
    }
    tr_mem_count(c, -(int64_t)bytes);
}

/* ---- tensors on a device */

static const struct tr_device_memory *device;

static int device_full(enum tr_category c, size_t bytes)
{
    return tr_fail(TR_EFAIL, "no memory on the device (%s): %zu more bytes were refused with %zu in use there; lower train.micro_batch or "
                   "data.sequence, or set memory.recompute = block", names[c], bytes, ledger.device + ledger.device_reserved);
}

int tr_device_alloc(void **out, size_t bytes, enum tr_category c)
{
    if (!device) return tr_mem_alloc(out, bytes, c);
    *out = NULL;
    if (bytes == 0) return TR_OK;
    if (dry) *out = dry_place(bytes);
    else if (device->alloc(out, bytes) != TR_OK) return device_full(c, bytes);
    ledger.device += bytes;
    tr_mem_count(c, (int64_t)bytes);
    return TR_OK;
}

void tr_device_free(void *p, size_t bytes, enum tr_category c)
{
    if (!device) tr_mem_free(p, bytes, c);
    if (!device || !p) return;
    if (!dry) device->free(p);
    ledger.device -= bytes;
    tr_mem_count(c, -(int64_t)bytes);
}

/* ---- step arenas. Regions in the order of their pieces, in each of addresses, free or used; a step has a few hundred, so
 * lists are walked. The host's has one piece, of addresses that become memory when they are touched. */
struct region { char *at; size_t bytes; bool begins /* a piece */, used; enum tr_category category; };
struct arena { struct region *region; size_t n, cap; size_t align; size_t *reserved; };
static struct arena host_arena = { .align = 64, .reserved = &ledger.arena_reserved };
static struct arena device_arena = { .align = 256, .reserved = &ledger.device_reserved };
static const size_t ARENA_SPAN = (size_t)1 << 40, PIECE = (size_t)64 << 20;

static bool on_device(const struct arena *a) { return a == &device_arena; }

/* Nothing is in it any more, but its pieces are there. */
static void arena_clear(struct arena *a)
{
    size_t pieces = 0;
    for (size_t i = 0; i < a->n; i++) {
        struct region r = a->region[i];
        if (r.used) tr_mem_count(r.category, -(int64_t)r.bytes);
        r.used = false;
        if (r.begins) a->region[pieces++] = r;
        else a->region[pieces - 1].bytes += r.bytes;
    }
    a->n = pieces;
}

static void arena_release(struct arena *a)
{
    arena_clear(a);
    for (size_t i = 0; i < a->n && !dry; i++) {
        if (on_device(a)) device->free(a->region[i].at);
        else munmap(a->region[i].at, ARENA_SPAN);
    }
    a->n = 0;
    *a->reserved = 0;
}

void tr_mem_dry(bool on)
{
    if (on == dry) return;
    arena_release(&host_arena);
    arena_release(&device_arena);
    dry = on;
}

void tr_mem_device(const struct tr_device_memory *m)
{
    arena_release(&device_arena);
    device = m;
}

static int region_insert(struct arena *a, size_t at, struct region r)
{
    if (a->n == a->cap) {
        size_t cap = a->cap ? 2 * a->cap : 256;
        struct region *more = realloc(a->region, cap * sizeof *more);
        if (!more) return tr_fail(TR_EFAIL, "no memory (arena)");
        a->region = more;
        a->cap = cap;
    }
    memmove(a->region + at + 1, a->region + at, (a->n - at) * sizeof *a->region);
    a->region[at] = r;
    a->n++;
    return TR_OK;
}

static void region_remove(struct arena *a, size_t at)
{
    memmove(a->region + at, a->region + at + 1, (a->n - at - 1) * sizeof *a->region);
    a->n--;
}

/* A piece of at least so many bytes. */
static int arena_grow(struct arena *a, size_t bytes, enum tr_category c)
{
    struct region r = { .bytes = ARENA_SPAN, .begins = true };
    void *p;
    if (dry) r.at = (char *)((uintptr_t)(on_device(a) ? 3 : 2) << 44);
    else if (on_device(a)) {
        r.bytes = bytes;
        if (device->alloc(&p, bytes) != TR_OK) return device_full(c, bytes);
        r.at = p;
        *a->reserved += bytes;
    } else {
        p = mmap(NULL, ARENA_SPAN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return tr_fail(TR_EFAIL, "no address space for work buffers: lift the limit of `ulimit -v`");
        r.at = p;
    }
    return region_insert(a, a->n, r);
}

static size_t best_fit(const struct arena *a, size_t need)
{
    size_t best = a->n;
    for (size_t i = 0; i < a->n; i++)
        if (!a->region[i].used && a->region[i].bytes >= need && (best == a->n || a->region[i].bytes < a->region[best].bytes)) best = i;
    return best;
}

static int arena_alloc(struct arena *a, void **out, size_t bytes, enum tr_category c)
{
    *out = NULL;
    if (bytes > ARENA_SPAN / 2) return tr_fail(TR_EFAIL, "a work buffer of %zu bytes is beyond any machine", bytes);
    size_t need = bytes ? (bytes + a->align - 1) & ~(a->align - 1) : a->align, best = best_fit(a, need);
    if (best == a->n) {
        if (a->n && (dry || !on_device(a))) return tr_fail(TR_EFAIL, "no memory (work buffers): %zu bytes", bytes);
        TR_TRY(arena_grow(a, need > PIECE ? need : PIECE, c));
    }
    struct region *r = &a->region[best];
    if (r->bytes > need) {
        TR_TRY(region_insert(a, best + 1, (struct region){ .at = r->at + need, .bytes = r->bytes - need }));
        r = &a->region[best];
        r->bytes = need;
    }
    r->used = true;
    r->category = c;
    size_t top = (size_t)(r->at - a->region[0].at) + need; /* means something where there is one piece */
    if ((dry || !on_device(a)) && top > *a->reserved) *a->reserved = top;
    *out = r->at;
    tr_mem_count(c, (int64_t)need);
    return TR_OK;
}

static void arena_free(struct arena *a, void *p)
{
    size_t at = 0;
    if (!p) return;
    while (a->region[at].at != p) at++;
    tr_mem_count(a->region[at].category, -(int64_t)a->region[at].bytes);
    a->region[at].used = false;
    if (at + 1 < a->n && !a->region[at + 1].used && !a->region[at + 1].begins) {
        a->region[at].bytes += a->region[at + 1].bytes;
        region_remove(a, at + 1);
    }
    if (!a->region[at].begins && !a->region[at - 1].used) {
        a->region[at - 1].bytes += a->region[at].bytes;
        region_remove(a, at);
    }
}

int tr_arena_alloc(void **out, size_t bytes, enum tr_category c) { return arena_alloc(&host_arena, out, bytes, c); }
void tr_arena_free(void *p, enum tr_category c) { arena_free(&host_arena, p); }
int tr_device_arena(void **out, size_t bytes, enum tr_category c) { return arena_alloc(device ? &device_arena : &host_arena, out, bytes, c); }
void tr_device_arena_free(void *p, enum tr_category c) { arena_free(device ? &device_arena : &host_arena, p); }

int tr_device_reserve(size_t bytes)
{
    return device && !dry && bytes && !device_arena.n ? arena_grow(&device_arena, bytes, TR_ACTIVATIONS) : TR_OK;
}

void tr_arena_reset(void)
{
    arena_clear(&host_arena);
    arena_clear(&device_arena);
}

static size_t status_field(const char *key)
{
    FILE *f = fopen("/proc/self/status", "r");
    if (!f) return 0;
    char line[256];
    size_t kb = 0;
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, key, strlen(key))) sscanf(line + strlen(key), "%zu", &kb);
    fclose(f);
    return kb * 1024;
}

size_t tr_rss_now(void) { return status_field("VmRSS:"); }
size_t tr_rss_peak(void) { return status_field("VmHWM:"); }
