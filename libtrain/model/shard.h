/* Inside model/: weights that ranks share. */
#ifndef TR_SHARD_H
#define TR_SHARD_H
#include "libtrain/model/net.h"

/* struct tr_resident of a net: nothing happens where weights are not shared. */
int tr_shard_need(void *net, struct tr_weight *w);
void tr_shard_leave(void *net);
/* Shows a parameter whole to a visitor and takes this rank's rows back. */
int tr_shard_visit(struct tr_net *net, struct tr_param *p, struct tr_visitor *v, const char *name);

#endif
