/* The keeper: a process beside the ranks of a machine (`train keep FOLDER`) that writes versions from shared memory to disk, so
 * that no rank touches HDF5 while it trains, and that stays when the ranks die. It holds nothing but what is in the shared
 * memory: one that is killed is started again by the run and goes on.
 *
 * When the ranks are gone and no supervisor will start them again, it writes the newest complete version and removes the
 * memory. What it has to say stands in FOLDER/keeper.log. */
#ifndef CKPT_KEEPER_H
#define CKPT_KEEPER_H
#include "checkpoint/shared.h"
#include <sys/types.h>

enum { CKPT_KEEPER_TRIES = 5 };
struct ckpt_keeper { pid_t pid; int tries; };   /* as its starter knows it */

/* Starts one where there is none. Errors: TR_EFAIL after some tries. */
int ckpt_keeper_ensure(struct ckpt_keeper *k, const struct ckpt_shared *s);
/* After `done` was said: until the one that was started here has ended. */
void ckpt_keeper_leave(struct ckpt_keeper *k);

/* The process itself. TR_OK when it is not needed any more or there is another. */
int ckpt_keeper_run(const char *folder);

/* Writes the newest complete version to disk when it is newer than what is there; one that is damaged makes place for the one
 * before. Errors: TR_EFAIL. */
int ckpt_keeper_rescue(const struct ckpt_shared *s);

/* The supervisor's side. Its process, as it stands in the environment of the ranks, goes into the head. */
void ckpt_keeper_note_supervisor(struct ckpt_head *h);
void ckpt_keeper_become_supervisor(int64_t pid);   /* of the processes that this one starts from now on */
/* The keeper of a folder, 0: none. Its newest complete version in memory, -1: none; *name: the object's. */
int64_t ckpt_keeper_of(const char *folder);
int64_t ckpt_keeper_newest(const char *folder, uint32_t nodes, char name[32]);   /* of the first `nodes`: what each holds for itself */
bool ckpt_keeper_supervised(void);                 /* whether this process is a supervisor's */
/* No launch follows: waits until the keeper has written what is in memory and has removed it, `seconds` at most. */
int ckpt_keeper_dismiss(const char *folder, double seconds);

#endif
