#include "checkpoint/parity.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/status.h"
#include <string.h>

/* Whose slot, and where its pieces are. */
struct member {
    const struct ckpt_ring *ring;
    int n, k, m, me;
    unsigned char *slot, *pieces;
    uint64_t bytes, segment;
    size_t in[CKPT_CODE_MOST], out[CKPT_CODE_MOST];
};

uint64_t ckpt_parity_segment(int k, uint64_t slot_bytes) { return ((slot_bytes + (uint64_t)k - 1) / (uint64_t)k + 63) & ~(uint64_t)63; }

/* Sent: k pieces for each of m members; received: k pieces of each of at most max(k, m) stripes; one that is rebuilt. */
size_t ckpt_parity_room(int k, int m) { return (size_t)(k * m + k * (k > m ? k : m) + 1) * CKPT_EXCHANGE; }

static int mod(int x, int n) { return (x % n + n) % n; }

static int position(const struct member *b, int member, int stripe)
{
    int d = mod(stripe - member, b->n);
    return d >= 1 && d <= b->k ? d - 1 : b->k + mod(b->n - d, b->n);
}

static struct member member_of(const struct ckpt_ring *ring, const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot)
{
    const struct ckpt_place *p = &s->place[rank];
    struct member b = { .ring = ring, .n = ring->code.k + ring->code.m, .k = ring->code.k, .m = ring->code.m, .me = ring->group->rank,
                        .slot = (unsigned char *)slot, .pieces = ckpt_parity_pieces(ckpt_slot_parity(s, rank, slot)),
                        .bytes = p->slot_bytes, .segment = p->size.parity / (uint64_t)ring->code.m };
    return b;
}

/* This member's piece of a stripe, bytes [at, at + n): behind the end of its slot lie zeros. */
static void read_piece(const struct member *b, int stripe, uint64_t at, size_t n, unsigned char *to)
{
    int p = position(b, b->me, stripe);
    if (p >= b->k) {
        memcpy(to, b->pieces + (uint64_t)(p - b->k) * b->segment + at, n);
        return;
    }
    uint64_t from = (uint64_t)p * b->segment + at;
    size_t there = from >= b->bytes ? 0 : b->bytes - from < n ? (size_t)(b->bytes - from) : n;
    memcpy(to, b->slot + from, there);
    memset(to + there, 0, n - there);
}

static size_t part_at(const struct member *b, uint64_t at) { return b->segment - at < CKPT_EXCHANGE ? (size_t)(b->segment - at) : CKPT_EXCHANGE; }

/* ---- parity */

/* To each member the pieces of data of the stripes whose parity it holds, in the order of its rows. */
static int share_data(struct member *b, uint64_t at, size_t n, unsigned char *send, unsigned char *got)
{
    unsigned char *to = send;
    for (int q = 0; q < b->n; q++) {
        b->in[q] = b->out[q] = 0;
        for (int j = 0; j < b->m && q != b->me; j++) {
            if (position(b, b->me, mod(q - j, b->n)) < b->k) {
                read_piece(b, mod(q - j, b->n), at, n, to);
                to += n;
                b->in[q] += n;
            }
            if (position(b, q, mod(b->me - j, b->n)) < b->k) b->out[q] += n;
        }
    }
    struct tr_comm *g = b->ring->group;
    return g->kind->all_to_all(g, send, b->in, got, b->out);
}

static void compute_parity(const struct member *b, uint64_t at, size_t n, unsigned char *got)
{
    unsigned char *data[CKPT_CODE_MOST][CKPT_CODE_MOST]; /* of each row of parity */
    for (int q = 0; q < b->n; q++)
        for (int j = 0; j < b->m; j++) {
            int p = position(b, q, mod(b->me - j, b->n));
            if (p >= b->k) continue;
            data[j][p] = got;
            got += n;
        }
    for (int j = 0; j < b->m; j++) ckpt_code_parity(&b->ring->code, j, n, data[j], b->pieces + (uint64_t)j * b->segment + at);
}

bool ckpt_parity_holds(const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot)
{
    struct ckpt_parity *p = ckpt_slot_parity(s, rank, slot);
    const struct ckpt_place *place = &s->place[rank];
    return atomic_load(&p->word) && atomic_load(&p->word) == atomic_load(&slot->word) && p->launch == slot->launch &&
           tr_crc32c(0, slot, place->slot_bytes) == p->slot_crc && tr_crc32c(0, ckpt_parity_pieces(p), place->size.parity) == p->crc;
}

int ckpt_parity_make(const struct ckpt_ring *ring, const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot, void *room)
{
    struct member b = member_of(ring, s, rank, slot);
    struct ckpt_parity *p = ckpt_slot_parity(s, rank, slot);
    unsigned char *send = room, *got = send + (size_t)(b.k * b.m) * CKPT_EXCHANGE;
    bool holds = ckpt_parity_holds(s, rank, slot); /* after a loss: those who still have theirs keep it whole meanwhile */
    if (!holds) atomic_store(&p->word, 0);
    for (uint64_t at = 0; at < b.segment; at += CKPT_EXCHANGE) {
        size_t n = part_at(&b, at);
        TR_TRY(share_data(&b, at, n, send, got));
        if (!holds) compute_parity(&b, at, n, got);
    }
    if (holds) return TR_OK;
    p->launch = slot->launch;
    p->crc = tr_crc32c(0, b.pieces, s->place[rank].size.parity);
    p->slot_crc = tr_crc32c(0, slot, b.bytes);
    atomic_store(&p->word, atomic_load(&slot->word));
    return TR_OK;
}

/* ---- after a loss */

/* The members whose pieces are used: the first k that are there. */
static void choose(const struct member *b, const bool *lost, int *chosen)
{
    for (int q = 0, n = 0; q < b->n && n < b->k; q++)
        if (!lost[q]) chosen[n++] = q;
}

static int share_pieces(struct member *b, const bool *lost, const int *chosen, uint64_t at, size_t n, unsigned char *send, unsigned char *got)
{
    bool mine = false;
    unsigned char *to = send;
    memset(b->in, 0, sizeof b->in);
    memset(b->out, 0, sizeof b->out);
    for (int i = 0; i < b->k; i++) {
        mine |= chosen[i] == b->me;
        b->out[chosen[i]] = lost[b->me] ? (size_t)b->k * n : 0;
    }
    for (int q = 0; q < b->n; q++)
        for (int p = 0; p < b->k && mine && lost[q]; p++, to += n) {
            read_piece(b, mod(q + 1 + p, b->n), at, n, to);
            b->in[q] += n;
        }
    struct tr_comm *g = b->ring->group;
    return g->kind->all_to_all(g, send, b->in, got, b->out);
}

/* Bytes [at, at + n) of this member's segment p; the slot's word, its first, is kept for the end. */
static int rebuild_part(const struct member *b, const int *chosen, int p, uint64_t at, size_t n, unsigned char *got, unsigned char *whole, uint64_t *word)
{
    unsigned char *piece[CKPT_CODE_MOST];
    int have[CKPT_CODE_MOST];
    for (int i = 0; i < b->k; i++) {
        have[i] = position(b, chosen[i], mod(b->me + 1 + p, b->n));
        piece[i] = got + (size_t)(i * b->k + p) * n;
    }
    TR_TRY(ckpt_code_rebuild(&b->ring->code, have, p, n, piece, whole));
    uint64_t to = (uint64_t)p * b->segment + at, skip = to ? 0 : sizeof *word;
    if (to >= b->bytes) return TR_OK;
    if (skip) memcpy(word, whole, sizeof *word);
    size_t there = b->bytes - to < n ? (size_t)(b->bytes - to) : n;
    memcpy(b->slot + to + skip, whole + skip, there - skip);
    return TR_OK;
}

int ckpt_parity_rebuild(const struct ckpt_ring *ring, const struct ckpt_shared *s, uint32_t rank, struct ckpt_slot *slot, const bool *lost, void *room)
{
    struct member b = member_of(ring, s, rank, slot);
    unsigned char *send = room, *got = send + (size_t)(b.k * b.m) * CKPT_EXCHANGE, *whole = got + (size_t)(b.k * (b.k > b.m ? b.k : b.m)) * CKPT_EXCHANGE;
    int chosen[CKPT_CODE_MOST];
    uint64_t word = 0;
    choose(&b, lost, chosen);
    if (lost[b.me]) atomic_store(&slot->word, 0);
    for (uint64_t at = 0; at < b.segment; at += CKPT_EXCHANGE) {
        size_t n = part_at(&b, at);
        TR_TRY(share_pieces(&b, lost, chosen, at, n, send, got));
        for (int p = 0; p < b.k && lost[b.me]; p++) TR_TRY(rebuild_part(&b, chosen, p, at, n, got, whole, &word));
    }
    if (lost[b.me]) atomic_store(&slot->word, word);
    return TR_OK;
}
