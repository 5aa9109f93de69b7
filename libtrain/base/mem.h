/* The memory ledger: every large allocation is made here, with its category. Always on.
 *
 * Two sources: blocks that live for the run (tr_mem_alloc) and the step arena (tr_arena_*), in which activations and
 * work buffers come and go. In dry mode (tr_mem_dry) nothing is really allocated: blocks get addresses that must not be
 * touched and the ledger counts as usual. So `train plan` runs the code of a step, and the forecast is the allocation.
 *
 * Both are there twice: in the host's memory, and for tensors (tr_device_*) where the kernels work, which is the host's memory, too,
 * unless a device was set. */
#ifndef TR_MEM_H
#define TR_MEM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tr_category { TR_WEIGHTS, TR_GRADIENTS, TR_OPTIMIZER, TR_ACTIVATIONS, TR_WORKSPACE, TR_COMMUNICATION, TR_SNAPSHOT,
                   TR_OTHER, TR_CATEGORIES };

/* Lower-case name of a category, as in metrics.jsonl. */
const char *tr_category_name(enum tr_category c);

struct tr_ledger {
    size_t now[TR_CATEGORIES];      /* bytes */
    size_t total;                   /* sum of now */
    size_t peak;                    /* largest total since tr_mem_reset_peak */
    size_t at_peak[TR_CATEGORIES];  /* the categories at that moment */
    size_t arena_reserved;          /* bytes of the step arena that were ever in use: what is resident */
    size_t device;                  /* part of total that is in blocks on a device */
    size_t device_reserved;         /* bytes of the device's step arena that are resident there */
};

/* The ledger as it stands. */
struct tr_ledger tr_mem_ledger(void);

/* Peak and at_peak start again from the present bytes. */
void tr_mem_reset_peak(void);

/* Dry mode on or off; only while nothing is allocated. */
void tr_mem_dry(bool on);
bool tr_mem_is_dry(void);

/* *out = `bytes` zeroed bytes aligned to 64 (to 4096 above 1 MiB), counted under `c` until tr_mem_free with the same
 * bytes and category. bytes == 0 gives NULL. Errors: TR_EFAIL with the bytes in the message. Local. */
int tr_mem_alloc(void **out, size_t bytes, enum tr_category c);
void tr_mem_free(void *p, size_t bytes, enum tr_category c);

/* Bytes that other code holds (a library's buffers, a mapped file) are counted by hand. */
void tr_mem_count(enum tr_category c, int64_t delta);

/* Called after each change of the ledger when set; for the picture of a step. */
void tr_mem_trace(void (*on_change)(void *self, const struct tr_ledger *l), void *self);

/* ---- step arena: best fit with merging, in one range of addresses; memory once used stays resident, so that a step
 * allocates nothing from the system after the first. Addresses depend only on the order of calls. Not thread-safe. */
int tr_arena_alloc(void **out, size_t bytes, enum tr_category c);   /* not zeroed, aligned to 64 */
void tr_arena_free(void *p, enum tr_category c);
/* Forgets everything that is alive in the arena (after an error inside a step). */
void tr_arena_reset(void);

/* ---- memory of tensors. alloc gives zeroed bytes aligned to 256; errors are TR_EFAIL without a message. */
struct tr_device_memory { int (*alloc)(void **out, size_t bytes); void (*free)(void *p); };

/* From now on tensors are in `m`'s memory (NULL: in the host's); only while nothing is allocated. */
void tr_mem_device(const struct tr_device_memory *m);
/* As tr_mem_alloc and tr_arena_alloc, for what kernels work on. */
int tr_device_alloc(void **out, size_t bytes, enum tr_category c);
void tr_device_free(void *p, size_t bytes, enum tr_category c);
int tr_device_arena(void **out, size_t bytes, enum tr_category c);
void tr_device_arena_free(void *p, enum tr_category c);
/* Takes the device's arena, so large, in one piece; without it, or beyond it, it grows in pieces. */
int tr_device_reserve(size_t bytes);

/* Resident bytes of this process now and its peak (from /proc/self/status); 0 when not known. */
size_t tr_rss_now(void);
size_t tr_rss_peak(void);

#endif
