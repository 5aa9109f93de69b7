/* Shared memory that holds snapshots of a run: one object for all ranks of a node, which outlives them.
 *
 *   head        what the object is, who may use it, what was written to disk        (a page, then the ranks' table and the recipe)
 *   rank 0..    two slots each: a list of entries and their bytes; a slot holds this rank's part of one version, behind it lies
 *               what the rank keeps for others where an erasure code lies over nodes (checkpoint/parity.h)
 *
 * A version is the step after which the state was taken. It is complete when every rank has a slot with it; a slot's word is
 * set last, so a process that is killed leaves a slot that counts as empty or one that is whole. Bytes are checked before they
 * are used (checkpoint/image.h).
 *
 * The name is random and stands in FOLDER/.memory, of later nodes in .memory-N: who has the folder owns the object, nobody else touches it. Locks on bytes
 * of the object end with the process that holds them: one that all ranks share, one of the keeper. */
#ifndef CKPT_SHARED_H
#define CKPT_SHARED_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CKPT_SLOTS = 2, CKPT_NAME = 208, CKPT_ERROR = 400 };

/* Rows of a tensor, or words, as a rank has them. */
struct ckpt_entry {
    char name[CKPT_NAME];
    uint64_t key;                /* the place in the file: parameters, then their state, then words */
    int64_t dim[4];              /* of the whole */
    int64_t begin, rows;         /* of its first dimension */
    int64_t group;               /* int8: columns of a scale */
    uint64_t at, bytes;          /* in the slot's payload */
    uint32_t crc;
    uint8_t dtype, ndim, words;
};

struct ckpt_slot {
    _Atomic uint64_t word;       /* ckpt_word; 0: nothing */
    uint64_t n;
    uint32_t crc;                /* of the entries */
    uint64_t launch;             /* which start of the run made it: parts of several do not make a version */
};

/* What a rank keeps of the other members of its set, its m pieces follow at the next page. It is the slot's when `word` and
 * `launch` are the slot's; set last. */
struct ckpt_parity {
    _Atomic uint64_t word;
    uint64_t launch;
    uint32_t crc, slot_crc;      /* of the pieces; of the slot */
};

/* What a rank needs. Bytes of payload are at most those; parity: of its pieces, 0 without a code. */
struct ckpt_size { uint64_t entries, payload, parity; };
/* How nodes protect one another: sets of data + parity of them; data = 0: not at all. */
struct ckpt_sets { uint32_t node, nodes, data, parity; };
struct ckpt_place { uint64_t at, slot_bytes; struct ckpt_size size; };

struct ckpt_head {
    char magic[16];
    uint64_t bytes, device, inode;        /* of the object; the run folder's */
    uint64_t recipe_at, recipe_room;
    struct ckpt_sets sets;
    uint32_t ranks, crc;                  /* crc: of all before it and the table */
    int32_t keep, compress;               /* for what is written to disk */
    _Atomic int64_t flushed;              /* versions up to this one that were to go to disk are there, or failed to */
    _Atomic int64_t failed;               /* the newest that failed, why is in `error` */
    _Atomic int64_t supervisor, supervisor_born;   /* process that would start ranks again; 0: none */
    _Atomic int32_t done;                 /* the run has ended: nothing is needed any more */
    char error[CKPT_ERROR];
};

struct ckpt_shared {
    int fd;
    char name[32];                        /* "/train-0123456789abcdef" */
    char *folder;
    uint32_t node;
    unsigned char *base;
    size_t bytes;
    struct ckpt_head *head;
    const struct ckpt_place *place;       /* of each rank */
};

static inline uint64_t ckpt_word(int64_t version, bool flush) { return (uint64_t)version << 2 | (uint64_t)flush << 1 | 1; }
static inline int64_t ckpt_word_version(uint64_t word) { return word & 1 ? (int64_t)(word >> 2) : -1; }
static inline bool ckpt_word_flush(uint64_t word) { return (word & 3) == 3; }

/* Bytes of a rank's slots, and of the object: what shared memory is needed. */
uint64_t ckpt_shared_slot_bytes(const struct ckpt_size *size);
uint64_t ckpt_shared_rank_bytes(const struct ckpt_size *size);
uint64_t ckpt_shared_head_bytes(uint32_t ranks, size_t recipe);

/* A new object for the folder (which exists), with all its memory. Errors: TR_EFAIL, when shared memory is too small with the
 * bytes and what to do. The caller has the ranks' lock. */
int ckpt_shared_create(struct ckpt_shared **out, const char *folder, const struct ckpt_sets *sets, const struct ckpt_size *size, uint32_t ranks, size_t recipe);
/* The folder's object of a node, *out = NULL where there is none. Its owner's process, its name and what it says of itself are
 * checked. */
int ckpt_shared_open(struct ckpt_shared **out, const char *folder, uint32_t node);
/* The same for a rank that begins: with the ranks' lock, which no other run may hold (TR_EINPUT). */
int ckpt_shared_claim(struct ckpt_shared **out, const char *folder, uint32_t node);
void ckpt_shared_close(struct ckpt_shared *s);
/* Whether the folder still names this object: one that it does not is found by nobody. */
bool ckpt_shared_is_named(const struct ckpt_shared *s);
/* Removes the object; those who have it open keep it until they close it. */
void ckpt_shared_remove(struct ckpt_shared *s);

/* Locks: false when another process has it in a way that forbids ours. */
enum ckpt_lock { CKPT_RANKS, CKPT_KEEPER };
bool ckpt_shared_lock(struct ckpt_shared *s, enum ckpt_lock which, bool alone);
void ckpt_shared_unlock(struct ckpt_shared *s, enum ckpt_lock which);
/* A process that has the lock, 0: none. alone: it has it alone. */
int64_t ckpt_shared_holder(struct ckpt_shared *s, enum ckpt_lock which, bool *alone);

struct ckpt_slot *ckpt_shared_slot(const struct ckpt_shared *s, uint32_t rank, int slot);
struct ckpt_entry *ckpt_slot_entries(struct ckpt_slot *slot);
unsigned char *ckpt_slot_payload(const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot);
struct ckpt_parity *ckpt_slot_parity(const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot);
unsigned char *ckpt_parity_pieces(struct ckpt_parity *p);
char *ckpt_shared_recipe(const struct ckpt_shared *s);

/* The slot of a rank that has this version, or -1. */
int ckpt_shared_find(const struct ckpt_shared *s, uint32_t rank, int64_t version);
bool ckpt_shared_complete(const struct ckpt_shared *s, int64_t version);
/* The newest complete version below `below`, or -1. */
int64_t ckpt_shared_newest(const struct ckpt_shared *s, int64_t below);
/* The oldest complete version that is to go to disk and has not, or -1. */
int64_t ckpt_shared_pending(const struct ckpt_shared *s);

#endif
