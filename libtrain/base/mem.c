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

int tr_mem_alloc(void **out, size_t bytes, enum tr_category c)
{
    *out = NULL;
    if (bytes == 0) return TR_OK;
    if (dry) {
        *out = (void *)dry_next;
        dry_next += page_up(bytes);
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

/* ---- step arena. Regions in address order, each free or used; a step has a few hundred, so lists are walked. */
struct region { size_t offset, bytes; bool used; enum tr_category category; };
static struct region *regions;
static size_t n_regions, cap_regions;
static char *arena_base;    /* of this mode */
static const size_t ARENA_SPAN = (size_t)1 << 40;

void tr_mem_dry(bool on)
{
    if (on == dry) return;
    tr_arena_reset();
    if (arena_base && !dry) munmap(arena_base, ARENA_SPAN);
    arena_base = NULL;
    ledger.arena_reserved = 0;
    dry = on;
}

static int region_insert(size_t at, struct region r)
{
    if (n_regions == cap_regions) {
        size_t cap = cap_regions ? 2 * cap_regions : 256;
        struct region *more = realloc(regions, cap * sizeof *more);
        if (!more) return tr_fail(TR_EFAIL, "no memory (arena)");
        regions = more;
        cap_regions = cap;
    }
    memmove(regions + at + 1, regions + at, (n_regions - at) * sizeof *regions);
    regions[at] = r;
    n_regions++;
    return TR_OK;
}

static void region_remove(size_t at)
{
    memmove(regions + at, regions + at + 1, (n_regions - at - 1) * sizeof *regions);
    n_regions--;
}

int tr_arena_alloc(void **out, size_t bytes, enum tr_category c)
{
    *out = NULL;
    if (bytes > ARENA_SPAN / 2) return tr_fail(TR_EFAIL, "a work buffer of %zu bytes is beyond any machine", bytes);
    size_t need = bytes ? (bytes + 63) & ~(size_t)63 : 64;
    if (!arena_base) {
        if (dry) arena_base = (char *)((uintptr_t)1 << 45);
        else {
            void *p = mmap(NULL, ARENA_SPAN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED) return tr_fail(TR_EFAIL, "no address space for work buffers: lift the limit of `ulimit -v`");
            arena_base = p;
        }
    }
    if (n_regions == 0) TR_TRY(region_insert(0, (struct region){ 0, ARENA_SPAN, false, c }));
    size_t best = n_regions;
    for (size_t i = 0; i < n_regions; i++)
        if (!regions[i].used && regions[i].bytes >= need && (best == n_regions || regions[i].bytes < regions[best].bytes)) best = i;
    if (best == n_regions) return tr_fail(TR_EFAIL, "no memory (work buffers): %zu bytes", bytes);
    size_t offset = regions[best].offset, rest = regions[best].bytes - need;
    if (rest) TR_TRY(region_insert(best + 1, (struct region){ offset + need, rest, false, c }));
    regions[best] = (struct region){ offset, need, true, c };
    if (offset + need > ledger.arena_reserved) ledger.arena_reserved = offset + need;
    *out = arena_base + offset;
    tr_mem_count(c, (int64_t)need);
    return TR_OK;
}

void tr_arena_free(void *p, enum tr_category c)
{
    if (!p) return;
    size_t offset = (size_t)((char *)p - arena_base), lo = 0, hi = n_regions;
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        if (regions[mid].offset <= offset) lo = mid;
        else hi = mid;
    }
    tr_mem_count(c, -(int64_t)regions[lo].bytes);
    regions[lo].used = false;
    if (lo + 1 < n_regions && !regions[lo + 1].used) {
        regions[lo].bytes += regions[lo + 1].bytes;
        region_remove(lo + 1);
    }
    if (lo > 0 && !regions[lo - 1].used) {
        regions[lo - 1].bytes += regions[lo].bytes;
        region_remove(lo);
    }
}

void tr_arena_reset(void)
{
    for (size_t i = 0; i < n_regions; i++)
        if (regions[i].used) tr_mem_count(regions[i].category, -(int64_t)regions[i].bytes);
    n_regions = 0;
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
