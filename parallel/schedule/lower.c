/* A schedule's messages put between its passes, in one order for all ranks: a message follows the pass that makes it, at once,
 * on both sides. What all ranks do in one order cannot wait in a circle. */
#include "libtrain/base/status.h"
#include "parallel/schedule/schedule_impl.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct item { int64_t when, tie; int rank; struct par_step step; };   /* when: twice the round, messages one later */
struct items { struct item *item; size_t n, cap; };

static int add(struct items *l, int64_t when, int64_t tie, int rank, enum par_step_kind kind, const struct par_pass *p, int peer)
{
    TR_TRY(tr_grow(&l->item, l->n, &l->cap, sizeof *l->item));
    l->item[l->n++] = (struct item){ when, tie, rank, { (uint8_t)kind, *p, peer } };
    return TR_OK;
}

/* What all ranks do together. */
static int add_all(struct items *l, const struct par_schedule *s, int64_t when, int64_t tie, enum par_step_kind kind, const struct par_pass *p)
{
    struct par_pass all = { p->kind, 0, p->micro };
    for (int r = 0; r < s->ranks; r++) TR_TRY(add(l, when, tie, r, kind, &all, 0));
    return TR_OK;
}

/* The message that carries the result of a pass, if there is one. last: all other ranks have done the same pass. */
static int add_message(struct items *l, const struct par_schedule *s, int64_t when, int64_t tie, int rank, const struct par_pass *p, bool last)
{
    int stage = par_stage(s, rank, p->chunk), end = s->ranks * s->chunks - 1, to = -1;
    if (p->kind == PAR_F && stage < end) to = par_stage_rank(s, stage + 1, NULL);
    if (p->kind == PAR_B && stage > 0) to = par_stage_rank(s, stage - 1, NULL);
    if (to >= 0 && to != rank) {
        TR_TRY(add(l, when, tie, rank, PAR_SEND, p, to));
        return add(l, when, tie, to, PAR_RECEIVE, p, rank);
    }
    if (p->kind == PAR_F && stage == end && s->vocabulary) return add_all(l, s, when, tie, PAR_GATHER, p);
    if (p->kind == PAR_B && stage == 0 && s->vocabulary) return add_all(l, s, when, tie, PAR_EMBED, p);
    if (p->kind == PAR_S && last) return add_all(l, s, when, tie, PAR_GATHER, p);
    if (p->kind == PAR_T && last && s->vocabulary == PAR_VOCABULARY_ALG1) return add_all(l, s, when, tie, PAR_GATHER, p);
    return TR_OK;
}

static int by_time(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->rank != y->rank) return x->rank - y->rank;
    if (x->when != y->when) return x->when < y->when ? -1 : 1;
    return x->tie < y->tie ? -1 : x->tie > y->tie;
}

struct made { int64_t when; int64_t pass; int rank; };

static int by_round(const void *a, const void *b)
{
    const struct made *x = a, *y = b;
    if (x->when != y->when) return x->when < y->when ? -1 : 1;
    return x->pass < y->pass ? -1 : x->pass > y->pass;
}

static int collect(struct items *l, const struct par_schedule *s, struct made *order, int *done)
{
    for (int64_t i = 0; i < s->row[s->ranks]; i++) {
        const struct made *m = &order[i];
        const struct par_pass *p = &s->pass[m->pass];
        bool last = p->kind >= PAR_S && ++done[(p->kind == PAR_T) * (int64_t)s->micros + p->micro] == s->ranks;
        bool first = p->kind == PAR_F && par_stage(s, m->rank, p->chunk) == 0;
        if (first && s->vocabulary) TR_TRY(add_all(l, s, 2 * m->when - 1, i, PAR_EMBED, p)); /* behind the messages of the round before */
        TR_TRY(add(l, 2 * m->when, i, m->rank, PAR_COMPUTE, p, 0));
        TR_TRY(add_message(l, s, 2 * m->when + 1, i, m->rank, p, last));
    }
    return TR_OK;
}

int par_schedule_lower(struct par_steps *out, const struct par_schedule *s)
{
    struct items l = { 0 };
    int32_t *round = NULL;
    struct made *order = NULL;
    int *done = NULL, rc;
    *out = (struct par_steps){ 0 };
    TR_GO(tr_calloc(&round, (size_t)s->row[s->ranks], sizeof *round));
    TR_GO(tr_calloc(&order, (size_t)s->row[s->ranks], sizeof *order));
    TR_GO(tr_calloc(&done, 2 * (size_t)s->micros, sizeof *done));
    TR_GO(par_rounds(s, round));
    for (int r = 0; r < s->ranks; r++)
        for (int64_t i = s->row[r]; i < s->row[r + 1]; i++) order[i] = (struct made){ round[i], i, r };
    qsort(order, (size_t)s->row[s->ranks], sizeof *order, by_round);
    TR_GO(collect(&l, s, order, done));
    qsort(l.item, l.n, sizeof *l.item, by_time);
    TR_GO(tr_calloc(&out->step, l.n, sizeof *out->step));
    TR_GO(tr_calloc(&out->row, (size_t)s->ranks + 1, sizeof *out->row));
    for (size_t i = 0; i < l.n; i++) {
        out->step[i] = l.item[i].step;
        out->row[l.item[i].rank + 1] = (int64_t)i + 1;
    }
    rc = TR_OK;
done:
    free(l.item);
    free(round);
    free(order);
    free(done);
    if (rc) par_steps_release(out);
    return rc;
}

void par_steps_release(struct par_steps *t)
{
    free(t->step);
    free(t->row);
    *t = (struct par_steps){ 0 };
}

/* ---- running them without buffers */

struct run { const struct par_schedule *s; const struct par_steps *t; int64_t *at; uint8_t *here; struct par_need *need; };

static bool same(const struct par_step *a, enum par_step_kind kind, const struct par_pass *p, int peer)
{
    return a->kind == kind && a->pass.kind == p->kind && a->pass.chunk == p->chunk && a->pass.micro == p->micro && (kind >= PAR_GATHER || a->peer == peer);
}

static const struct par_step *at(const struct run *w, int rank) { return w->at[rank] < w->t->row[rank + 1] ? &w->t->step[w->at[rank]] : NULL; }

/* A result is on its own rank when done; elsewhere when it has come: bit 0 and bit 1 of here[key of the maker]. One rank alone
 * needs it, or all get it at once. Bit 2: the first stage has its rows of a shared embedding. */
static bool known(const struct run *w, int rank, const struct par_need *n, int micro)
{
    bool gathered = n->pass == PAR_S || n->pass == PAR_T || (w->s->vocabulary && n->pass == PAR_F && par_stage(w->s, n->rank, n->chunk) == w->s->ranks * w->s->chunks - 1);
    uint8_t h = w->here[par_key(w->s, n->pass, n->rank, n->chunk, micro)];
    return gathered || n->rank != rank ? h & 2 : h & 1;
}

static bool can_compute(const struct run *w, int rank, const struct par_pass *p)
{
    int n = par_needs(w->s, rank, p, w->need);
    if (p->kind == PAR_F && w->s->vocabulary && par_stage(w->s, rank, p->chunk) == 0 && !(w->here[par_key(w->s, PAR_F, rank, p->chunk, p->micro)] & 4)) return false;
    for (int i = 0; i < n; i++) {
        bool own = p->kind == PAR_B && i == 0; /* its own F, whose output all ranks may have */
        if (own ? !(w->here[par_key(w->s, PAR_F, rank, p->chunk, p->micro)] & 1) : !known(w, rank, &w->need[i], p->micro)) return false;
    }
    return true;
}

static bool all_there(const struct run *w, enum par_step_kind kind, const struct par_pass *p)
{
    for (int r = 0; r < w->s->ranks; r++)
        if (!at(w, r) || !same(at(w, r), kind, p, 0)) return false;
    return true;
}

static bool made_by(const struct run *w, int rank, const struct par_pass *p) { return w->here[par_key(w->s, p->kind, rank, p->chunk, p->micro)] & 1; }

static bool gather(struct run *w, const struct par_pass *p)
{
    int chunk, maker = par_stage_rank(w->s, w->s->ranks * w->s->chunks - 1, &chunk);
    struct par_pass f = { PAR_F, (uint8_t)chunk, p->micro };
    if (!all_there(w, PAR_GATHER, p) || (p->kind == PAR_F && !made_by(w, maker, &f))) return false;
    for (int r = 0; r < w->s->ranks && p->kind != PAR_F; r++)
        if (!made_by(w, r, p)) return false;
    if (p->kind == PAR_F) w->here[par_key(w->s, PAR_F, maker, chunk, p->micro)] |= 2;
    for (int r = 0; r < w->s->ranks; r++) {
        if (p->kind != PAR_F) w->here[par_key(w->s, p->kind, r, 0, p->micro)] |= 2;
        w->at[r]++;
    }
    return true;
}

static bool embed(struct run *w, const struct par_pass *p)
{
    int chunk, rank = par_stage_rank(w->s, 0, &chunk);
    if (!all_there(w, PAR_EMBED, p) || (p->kind == PAR_B && !made_by(w, rank, &(struct par_pass){ PAR_B, (uint8_t)chunk, p->micro }))) return false;
    w->here[par_key(w->s, PAR_F, rank, chunk, p->micro)] |= 4;
    for (int r = 0; r < w->s->ranks; r++) w->at[r]++;
    return true;
}

static bool advance(struct run *w, int rank)
{
    const struct par_step *st = at(w, rank);
    if (!st) return false;
    switch ((enum par_step_kind)st->kind) {
    case PAR_COMPUTE:
        if (!can_compute(w, rank, &st->pass)) return false;
        w->here[par_key(w->s, st->pass.kind, rank, st->pass.chunk, st->pass.micro)] |= 1;
        w->at[rank]++;
        return true;
    case PAR_SEND:
        if (!at(w, st->peer) || !same(at(w, st->peer), PAR_RECEIVE, &st->pass, rank) || !made_by(w, rank, &st->pass)) return false;
        w->here[par_key(w->s, st->pass.kind, rank, st->pass.chunk, st->pass.micro)] |= 2;
        w->at[rank]++;
        w->at[st->peer]++;
        return true;
    case PAR_GATHER: return gather(w, &st->pass);
    case PAR_EMBED: return embed(w, &st->pass);
    default: return false; /* the sender moves both */
    }
}

int par_steps_check(const struct par_steps *t, const struct par_schedule *s)
{
    static const char *const doing[] = { "computes", "sends", "receives", "gathers", "embeds" };
    struct run w = { .s = s, .t = t };
    char text[64];
    int rc;
    TR_GO(tr_calloc(&w.at, (size_t)s->ranks, sizeof *w.at));
    TR_GO(tr_calloc(&w.here, (size_t)par_keys(s), 1));
    TR_GO(tr_calloc(&w.need, (size_t)s->ranks + 2, sizeof *w.need));
    for (int r = 0; r < s->ranks; r++) w.at[r] = t->row[r];
    for (bool going = true; going;) {
        going = false;
        for (int r = 0; r < s->ranks; r++)
            while (advance(&w, r)) going = true;
    }
    rc = TR_OK;
    for (int r = 0; r < s->ranks && rc == TR_OK; r++)
        if (at(&w, r)) rc = tr_fail(TR_EINPUT, "schedule: without buffers nobody can go on: rank %d %s %s", r, doing[at(&w, r)->kind], par_pass_text(text, sizeof text, s, -1, &at(&w, r)->pass));
done:
    free(w.at);
    free(w.here);
    free(w.need);
    return rc;
}
