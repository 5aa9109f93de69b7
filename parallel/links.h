/* Ranks on devices whose memory moves without the host: NCCL under libtrain/comm. */
#ifndef PAR_LINKS_H
#define PAR_LINKS_H
#include "libtrain/comm/comm.h"

/* Links for n groups of `world`, on each rank those that it is in, alike in number and order. Where a rank has no NCCL, or two have the
 * same device, nothing is changed and *why tells it, the same on every rank or not; else *why is NULL. Collective over `world`;
 * each rank computes on a device. Errors: TR_EFAIL. */
int par_links_open(struct tr_comm *world, struct tr_comm *const *group, int n, const char **why);

/* Ranks that are not there exchange as these would. */
void par_links_plan(struct tr_comm *planned);

/* The end of all of them. whole: every rank comes here and nothing is under way. */
int par_links_close(bool whole);

#endif
