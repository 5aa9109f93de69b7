/* Snapshots in memory while training goes on.
 *
 * After a step its state stays as it is until the next step changes it, parameter by parameter. A thread copies it meanwhile
 * into shared memory (checkpoint/shared.h), in the order in which updates came last time; a gate before each update waits for
 * that parameter's copy alone, or makes it. So the bits of the run do not depend on it.
 *
 * Two slots: while one is filled the other has a complete version. All ranks begin the same versions, and a version is complete
 * before the ranks add up the figures of the next step (ckpt_capture_settle comes before): so each knows without a message that
 * the others have it, too, when it needs a slot again. What is to go to disk is written by the keeper (checkpoint/keeper.h); a
 * slot that it has yet to write is not reused.
 *
 * With an erasure code over nodes (checkpoint/nodes.h) a version is complete when what protects it is there, too: it is computed
 * between the end of the copies and that sum (ckpt_capture_protect). Then each node has an object of its own, no keeper writes to
 * disk, and what remains of killed ranks stays until a resume takes it. */
#ifndef CKPT_CAPTURE_H
#define CKPT_CAPTURE_H
#include "checkpoint/nodes.h"
#include "checkpoint/source.h"
#include "libtrain/comm/comm.h"
#include "libtrain/tensor/visit.h"

struct ckpt_capture;
typedef int (*ckpt_owned)(void *self, const struct tr_owned *v);

struct ckpt_capture_setup {
    const char *folder;              /* of the run */
    struct ckpt_nodes nodes;         /* all ranks, and how they lie on nodes */
    ckpt_owned owned;                /* lists this rank's state; the same tensors at the same places each time */
    void *self;
    int64_t groups;                  /* groups are below; words may have this one */
    const char *recipe;              /* text that goes into the files */
    int64_t keep, compress;
};

/* Counts this rank's share of the shared memory in the ledger (snapshot); nothing is allocated yet. */
int ckpt_capture_new(struct ckpt_capture **out, const struct ckpt_capture_setup *setup);

/* Makes the shared memory, or goes on with what an earlier process of this run left: `left` (a node's first rank; may be NULL; taken over)
 * when it has the same layout, else it is removed. *version: the one to resume from, or -1; -2 is returned in it when it is in
 * memory of another layout, which rank 0 has then written to disk. Of several nodes: nodes that have lost *version get it
 * again from the others; another layout is refused (TR_EINPUT). Collective. */
int ckpt_capture_attach(struct ckpt_capture *c, struct ckpt_shared *left, int64_t *version);
/* The version as ckpt_load_source reads it. Collective. */
int ckpt_capture_source(const struct ckpt_capture *c, int64_t version, struct ckpt_source *src);
/* After the state was restored, or is new (step 0): forgets all versions but those up to `step` that are complete, and starts
 * the thread and, on rank 0, the keeper where there is none. in_memory: the state came from there. Collective. */
int ckpt_capture_start(struct ckpt_capture *c, int64_t step, bool in_memory);
const struct ckpt_shared *ckpt_capture_shared(const struct ckpt_capture *c);

/* Begins the copy of the state after `step`. to_disk: the keeper is to write it, too; then it waits where both slots are still
 * to be written, else such a version is left out. Collective in so far as all ranks must call it alike. */
int ckpt_capture_begin(struct ckpt_capture *c, int64_t step, bool to_disk);
/* Before parameter `group` or its state changes. c may be NULL in both. */
void ckpt_capture_gate(struct ckpt_capture *c, int64_t group);
/* Before anything else of it changes. */
void ckpt_capture_settle(struct ckpt_capture *c);
/* Before the figures of a step are added up over ranks: all copies are there, and what protects them. Collective. */
int ckpt_capture_protect(struct ckpt_capture *c);
/* One figure of that sum: what rank 0 knows of the disk, so that all decide alike. */
double ckpt_capture_say(struct ckpt_capture *c);
void ckpt_capture_hear(struct ckpt_capture *c, double sum);

/* Waits until the version is on disk. Collective. Errors (rank 0): TR_EFAIL, why the keeper could not write it. */
int ckpt_capture_finish(struct ckpt_capture *c, int64_t step);
/* Seconds that the run waited for snapshots since the last call. */
double ckpt_capture_blocked(struct ckpt_capture *c);
/* Versions begun and left out so far, bytes of this rank's part of one, seconds from begin until the last complete one was. */
struct ckpt_capture_stats { int64_t begun, left_out; uint64_t bytes; double copy_s; };
struct ckpt_capture_stats ckpt_capture_stats(struct ckpt_capture *c);

/* done: the run has ended as it should and its memory is removed; else the keeper writes the newest version to disk. */
void ckpt_capture_free(struct ckpt_capture *c, bool done);

#endif
