/* Ranks on several nodes, each with shared memory of its own, and versions whose parts lie on all of them.
 *
 * Ranks of a node follow one another and every node has as many. k + m nodes that follow one another are a set: the ranks at the
 * same place on each of its nodes are the members of one erasure code (checkpoint/parity.h). A version is there when of each set
 * all nodes have their parts, or k of them have theirs and what they hold of the others. */
#ifndef CKPT_NODES_H
#define CKPT_NODES_H
#include "checkpoint/parity.h"

struct ckpt_nodes {
    struct ckpt_sets sets;       /* data = 0: one node, nothing is protected */
    int per;                     /* ranks of a node */
    struct ckpt_ring ring;
    struct tr_comm *comm;        /* all ranks */
};

static inline bool ckpt_nodes_lead(const struct ckpt_nodes *n) { return n->comm->rank % n->per == 0; }

/* The newest version above `above` that is there, or -1: from what each node's first rank has in `left` (NULL: nothing), every
 * byte of which is checked. What does not serve that version is forgotten. Collective; all ranks get the same. */
int ckpt_nodes_find(const struct ckpt_nodes *n, struct ckpt_shared *left, int64_t above, int64_t *version);
/* Gives every rank that has lost its part of the version that part again. *lost: nodes that had. Collective. */
int ckpt_nodes_rebuild(const struct ckpt_nodes *n, struct ckpt_shared *s, int64_t version, void *room, int *lost);

#endif
