/* Waiting for other ranks, for the forms of libtrain/comm in this folder. */
#ifndef PAR_WAIT_H
#define PAR_WAIT_H
#include "libtrain/comm/comm.h"

/* Asks again and again until it is done, or failed, or a rank said that it failed, or the time limit is over. peer: the rank of `c` that is waited
 * for; -1: every one, and this is a collective call. Errors: that of `ask`, TR_EFAIL. */
int par_wait(struct tr_comm *c, int (*ask)(void *self, bool *done), void *self, int peer);

/* Rank of all, for messages, and what all are doing. */
int par_rank(const struct tr_comm *c);
const char *par_doing(void);

#endif
