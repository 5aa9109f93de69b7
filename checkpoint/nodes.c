#include "checkpoint/nodes.h"
#include "checkpoint/image.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include <stdlib.h>

/* What a node has of a version: nothing; all parts of its ranks; and what they hold of other nodes. */
enum { NOTHING, PARTS, HOLDS };
enum { VERSION, LAUNCH, HAS, FIELDS };
struct census { double slot[CKPT_SLOTS][FIELDS]; };

static int rank_has(const struct ckpt_shared *s, uint32_t rank, int64_t version, uint64_t launch)
{
    int k = ckpt_shared_find(s, rank, version);
    struct ckpt_slot *slot = k < 0 ? NULL : ckpt_shared_slot(s, rank, k);
    struct ckpt_image img;
    if (!slot || slot->launch != launch) return NOTHING;
    if (ckpt_parity_holds(s, rank, slot)) return HOLDS;
    int has = ckpt_image_part(&img, s, rank, version) == TR_OK && ckpt_image_verify(&img) == TR_OK ? PARTS : NOTHING;
    ckpt_image_release(&img);
    return has;
}

static void look(const struct ckpt_nodes *n, const struct ckpt_shared *s, struct census *c)
{
    const struct ckpt_head *h = s->head;
    if (h->ranks != (uint32_t)n->per || h->sets.nodes != n->sets.nodes || h->sets.data != n->sets.data || h->sets.parity != n->sets.parity) return;
    for (int k = 0; k < CKPT_SLOTS; k++) {
        const struct ckpt_slot *slot = ckpt_shared_slot(s, 0, k);
        int64_t version = ckpt_word_version(atomic_load(&slot->word));
        uint64_t launch = slot->launch;
        int has = version < 0 ? NOTHING : HOLDS;
        for (uint32_t r = 0; r < h->ranks && has; r++) {
            int its = rank_has(s, r, version, launch);
            has = its < has ? its : has;
        }
        c->slot[k][VERSION] = has ? (double)version : -1;
        c->slot[k][LAUNCH] = (double)launch;
        c->slot[k][HAS] = has;
    }
}

static int node_has(const struct ckpt_nodes *n, const struct census *all, uint32_t node, double version, double launch)
{
    const struct census *c = &all[node * (uint32_t)n->per];
    for (int k = 0; k < CKPT_SLOTS; k++)
        if (c->slot[k][VERSION] == version && c->slot[k][LAUNCH] == launch) return (int)c->slot[k][HAS];
    return NOTHING;
}

/* What a node of the set that begins with `first` must have to be of use; NOTHING: the set has lost the version. */
static int needed(const struct ckpt_nodes *n, const struct census *all, uint32_t first, double version, double launch)
{
    uint32_t size = n->sets.data + n->sets.parity, parts = 0, holds = 0;
    for (uint32_t i = 0; i < size; i++) {
        int has = node_has(n, all, first + i, version, launch);
        parts += has >= PARTS;
        holds += has >= HOLDS;
    }
    return parts == size ? PARTS : holds >= n->sets.data ? HOLDS : NOTHING;
}

static bool is_there(const struct ckpt_nodes *n, const struct census *all, double version, double launch)
{
    for (uint32_t first = 0; first < n->sets.nodes; first += n->sets.data + n->sets.parity)
        if (!needed(n, all, first, version, launch)) return false;
    return true;
}

/* Slots of this node that are of the version but of no use to it. */
static void forget(const struct ckpt_nodes *n, const struct census *all, struct ckpt_shared *s, int64_t version, double launch)
{
    uint32_t node = n->sets.node, size = n->sets.data + n->sets.parity;
    if (node_has(n, all, node, (double)version, launch) >= needed(n, all, node / size * size, (double)version, launch)) return;
    for (uint32_t r = 0; r < s->head->ranks; r++) {
        int k = ckpt_shared_find(s, r, version);
        if (k >= 0) atomic_store(&ckpt_shared_slot(s, r, k)->word, 0);
    }
}

int ckpt_nodes_find(const struct ckpt_nodes *n, struct ckpt_shared *left, int64_t above, int64_t *version)
{
    struct census mine = { .slot = { { -1 }, { -1 } } }, *all;
    double launch = 0;
    *version = -1;
    TR_TRY(tr_calloc(&all, (size_t)n->comm->size, sizeof *all));
    if (left && ckpt_nodes_lead(n)) look(n, left, &mine);
    int rc = tr_comm_each(n->comm, &mine.slot[0][0], CKPT_SLOTS * FIELDS, &all->slot[0][0]);
    for (int i = 0; i < n->comm->size * CKPT_SLOTS && rc == TR_OK; i++) {
        const double *slot = all[i / CKPT_SLOTS].slot[i % CKPT_SLOTS];
        if (slot[VERSION] <= (double)*version || slot[VERSION] <= (double)above || !is_there(n, all, slot[VERSION], slot[LAUNCH])) continue;
        *version = (int64_t)slot[VERSION];
        launch = slot[LAUNCH];
    }
    if (rc == TR_OK && *version >= 0 && left && ckpt_nodes_lead(n)) forget(n, all, left, *version, launch);
    free(all);
    return rc;
}

int ckpt_nodes_rebuild(const struct ckpt_nodes *n, struct ckpt_shared *s, int64_t version, void *room, int *nodes)
{
    uint32_t rank = (uint32_t)(n->comm->rank % n->per);
    double mine = ckpt_shared_find(s, rank, version) < 0, *all;
    struct tr_comm *g = n->ring.group;
    bool lost[CKPT_CODE_MOST];
    *nodes = 0;
    TR_TRY(tr_calloc(&all, (size_t)n->comm->size, sizeof *all));
    int rc = tr_comm_each(n->comm, &mine, 1, all);
    for (int r = 0; r < n->comm->size && rc == TR_OK; r += n->per) *nodes += all[r] > 0;
    if (rc == TR_OK) rc = tr_comm_each(g, &mine, 1, all);
    int k = rc == TR_OK ? ckpt_shared_find(s, rank, version) : -1;
    bool any = false;
    for (int q = 0; q < g->size && rc == TR_OK; q++) any |= lost[q] = all[q] > 0;
    free(all);
    if (rc != TR_OK || !any) return rc;
    return ckpt_parity_rebuild(&n->ring, s, rank, ckpt_shared_slot(s, rank, k < 0 ? 0 : k), lost, room);
}
