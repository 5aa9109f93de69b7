#include "optim/offload.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include <stdlib.h>

enum place { STAYS, AWAY, COMING, HERE, GOING };
struct slot { struct tr_tensor *tensor[OPT_OFFLOAD_TENSORS]; int n; enum place place; uint64_t at, ticket; size_t bytes; void *memory; int64_t next; };
struct opt_offload { struct tr_spill *file; struct slot *slot; int64_t n, last, going; uint64_t end; };

int opt_offload_new(struct opt_offload **out, struct tr_spill *file, int64_t n)
{
    struct opt_offload *o;
    TR_TRY(tr_calloc(&o, 1, sizeof *o));
    o->file = file;
    o->n = n;
    o->last = o->going = -1;
    int rc = tr_calloc(&o->slot, (size_t)n, sizeof *o->slot);
    if (rc != TR_OK) {
        free(o);
        return rc;
    }
    for (int64_t i = 0; i < n; i++) o->slot[i].next = -1;
    *out = o;
    return TR_OK;
}

/* A state is one run of bytes, in memory as in the file; each tensor begins at a place of its own. */
static int move_out(struct opt_offload *o, struct slot *s, struct tr_tensor *t)
{
    uint64_t ticket = tr_spill_write(o->file, s->at + s->bytes, t->data, tr_bytes(t));
    s->bytes += tr_spill_room(tr_bytes(t));
    if (t->quant.scale) {
        ticket = tr_spill_write(o->file, s->at + s->bytes, t->quant.scale, tr_quant_bytes(t));
        s->bytes += tr_spill_room(tr_quant_bytes(t));
    }
    int rc = tr_spill_wait(o->file, ticket);
    struct tr_tensor shape = *t;
    tr_tensor_release(t);
    *t = shape;
    t->owner = 0;
    t->data = NULL;
    tr_quant_point(t, NULL);
    s->tensor[s->n++] = t;
    return rc;
}

int opt_offload_add(struct opt_offload *o, int64_t i, struct tr_tensor *const *t, int n)
{
    struct slot *s = &o->slot[i];
    size_t bytes = 0;
    for (int k = 0; k < n; k++) bytes += tr_bytes(t[k]);
    if (bytes < TR_SPILL_LEAST) return TR_OK;
    s->at = o->end;
    s->place = AWAY;
    for (int k = 0; k < n; k++)
        if (t[k]->data) TR_TRY(move_out(o, s, t[k]));
    o->end += s->bytes;
    return TR_OK;
}

/* The tensors' data in `memory`, or nowhere. */
static void point(struct slot *s, char *memory)
{
    for (int k = 0; k < s->n; k++) {
        struct tr_tensor *t = s->tensor[k];
        t->data = memory;
        if (memory) memory += tr_spill_room(tr_bytes(t));
        if (t->dtype != TR_INT8) continue;
        tr_quant_point(t, memory);
        if (memory) memory += tr_spill_room(tr_quant_bytes(t));
    }
}

static int come(struct opt_offload *o, struct slot *s)
{
    TR_TRY(tr_arena_alloc(&s->memory, s->bytes, TR_OPTIMIZER));
    s->ticket = tr_spill_read(o->file, s->at, s->memory, s->bytes);
    s->place = COMING;
    return TR_OK;
}

/* Waits for what is on its way and gives the memory back. */
static int leave(struct opt_offload *o, struct slot *s)
{
    int rc = tr_spill_wait(o->file, s->ticket);
    point(s, NULL);
    tr_arena_free(s->memory, TR_OPTIMIZER);
    s->memory = NULL;
    s->place = AWAY;
    return rc;
}

static int finish_going(struct opt_offload *o)
{
    if (o->going < 0) return TR_OK;
    struct slot *s = &o->slot[o->going];
    o->going = -1;
    return leave(o, s);
}

static int64_t following(const struct opt_offload *o, int64_t i)
{
    for (i++; i < o->n; i++)
        if (o->slot[i].place == AWAY) return i;
    return -1;
}

int opt_offload_bring(struct opt_offload *o, int64_t i, enum opt_walk walk)
{
    struct slot *s = &o->slot[i];
    if (s->place == STAYS || s->place == HERE) return TR_OK;
    if (s->place == GOING) TR_TRY(finish_going(o));
    if (s->place == AWAY) TR_TRY(come(o, s));
    TR_TRY(tr_spill_wait(o->file, s->ticket));
    s->place = HERE;
    point(s, s->memory);
    if (walk == OPT_STEP && o->last >= 0) o->slot[o->last].next = i;
    if (walk == OPT_STEP) o->last = i;
    int64_t next = walk == OPT_STEP ? s->next : walk == OPT_LIST ? following(o, i) : -1;
    return next >= 0 && o->slot[next].place == AWAY ? come(o, &o->slot[next]) : TR_OK;
}

int opt_offload_away(struct opt_offload *o, int64_t i, bool changed)
{
    struct slot *s = &o->slot[i];
    if (s->place != HERE) return TR_OK;
    TR_TRY(finish_going(o));
    if (!changed) return leave(o, s);
    s->ticket = tr_spill_write(o->file, s->at, s->memory, s->bytes);
    s->place = GOING;
    o->going = i;
    return TR_OK;
}

int opt_offload_settle(struct opt_offload *o)
{
    int rc = finish_going(o);
    for (int64_t i = 0; i < o->n; i++) {
        if (o->slot[i].place == STAYS || o->slot[i].place == AWAY) continue;
        int left = leave(o, &o->slot[i]);
        if (rc == TR_OK) rc = left;
    }
    o->last = -1;
    return rc;
}

void opt_offload_free(struct opt_offload *o)
{
    if (!o) return;
    opt_offload_settle(o);
    free(o->slot);
    free(o);
}
