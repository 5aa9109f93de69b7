/* What nodes hold of one another: an erasure code over the slots of n = k + m ranks on n nodes (checkpoint/code.h).
 *
 * Every node has data, none is there for parity alone. The slot of each of the n members is padded to the longest and cut into k
 * segments of `segment` bytes. There are n stripes, each a word of the code with one piece on every member: member i has in
 * stripe s the position
 *     d = (s - i) mod n:   1 .. k      data d - 1: its segment of that number
 *                          else        parity (n - d) mod n
 * so stripe s has its m pieces of parity on members s, s + 1, ..., s + m - 1. Read the other way, member i has position p of the
 * stripe (i + 1 + p) mod n for data and (i - (p - k)) mod n for parity: each position once. It so holds m segments for others, m / k
 * of its own bytes; m members may be lost. E.g. 3+1, where D.p are segments and P parity:
 *
 *     stripe      0     1     2     3
 *     member 0    P     D.0   D.1   D.2
 *     member 1    D.2   P     D.0   D.1
 *     member 2    D.1   D.2   P     D.0
 *     member 3    D.0   D.1   D.2   P
 */
#ifndef CKPT_PARITY_H
#define CKPT_PARITY_H
#include "checkpoint/code.h"
#include "checkpoint/shared.h"
#include "libtrain/comm/comm.h"

enum { CKPT_EXCHANGE = 64 << 10 /* bytes of a piece that are moved at a time */ };

struct ckpt_ring {
    struct ckpt_code code;
    struct tr_comm *group;       /* the members, in their order */
};

/* Bytes of a segment for slots of up to so many. */
uint64_t ckpt_parity_segment(int k, uint64_t slot_bytes);
/* Bytes that the exchanges need meanwhile. */
size_t ckpt_parity_room(int k, int m);
/* Whether what lies behind the slot is of it and whole, and the slot's bytes are those of then. */
bool ckpt_parity_holds(const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot);

/* Fills what lies behind the slot of each member where it does not hold. Collective over the group; room: ckpt_parity_room. */
int ckpt_parity_make(const struct ckpt_ring *ring, const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot, void *room);
/* The slots of the members where `lost` (at most m), from those of the others. The word of a slot is set last. Collective. */
int ckpt_parity_rebuild(const struct ckpt_ring *ring, const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot, const bool *lost, void *room);

#endif
