/* The exchanges of comm.h where devices have links: memory of devices goes from one to the other, sums are taken there. */
#ifndef TR_COMM_DIRECT_H
#define TR_COMM_DIRECT_H
#include "libtrain/comm/comm.h"

/* Whether they can be used for this tensor: links, and rows without gaps. */
bool tr_direct(const struct tr_comm *c, const struct tr_tensor *t);

/* As tr_comm_reduce_rows, tr_comm_gather_rows (one tensor without its scales), tr_comm_send and tr_comm_receive. */
int tr_direct_reduce(struct tr_comm *c, struct tr_tensor *own, const struct tr_tensor *g, const int64_t *first, bool add);
int tr_direct_gather(struct tr_comm *c, struct tr_tensor *t, const struct tr_tensor *own, const int64_t *first);
int tr_direct_pass(struct tr_comm *c, const struct tr_tensor *t, int peer, bool send);

#endif
