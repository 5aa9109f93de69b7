#include "libtrain/base/status.h"
#include "parallel/schedule/schedule_impl.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char letters[] = "FBWST";

const char *par_pass_text(char *out, size_t size, const struct par_schedule *s, int rank, const struct par_pass *p)
{
    char chunk[4] = "";
    if (s->chunks > 1 && p->kind < PAR_S) snprintf(chunk, sizeof chunk, p->chunk < 26 ? "%c" : "?", 'a' + p->chunk % 26);
    if (rank < 0) snprintf(out, size, "%c%d%s", letters[p->kind], p->micro, chunk);
    else snprintf(out, size, "%c%d%s of rank %d", letters[p->kind], p->micro, chunk, rank);
    return out;
}

/* Every pass that there is, once. */
static int complete(const struct par_schedule *s)
{
    char text[64];
    uint8_t *seen = NULL;
    int rc;
    TR_GO(tr_calloc(&seen, (size_t)par_keys(s), 1));
    for (int r = 0; r < s->ranks; r++) {
        if (s->row[r + 1] - s->row[r] != par_row_size(s)) TR_GO(tr_fail(TR_EINPUT, "schedule: rank %d has %" PRId64 " passes instead of %" PRId64, r, s->row[r + 1] - s->row[r], par_row_size(s)));
        for (int64_t i = s->row[r]; i < s->row[r + 1]; i++) {
            const struct par_pass *p = &s->pass[i];
            int chunks = p->kind >= PAR_S ? 1 : s->chunks;
            if (p->kind >= PAR_PASSES || !par_has(s, p->kind) || p->chunk >= chunks || p->micro < 0 || p->micro >= s->micros)
                TR_GO(tr_fail(TR_EINPUT, "schedule: pass %" PRId64 " of rank %d is none of this kind", i - s->row[r], r));
            if (seen[par_key(s, p->kind, r, p->chunk, p->micro)]++) TR_GO(tr_fail(TR_EINPUT, "schedule: %s is there twice", par_pass_text(text, sizeof text, s, r, p)));
        }
    }
    rc = TR_OK; /* as many as there must be, none twice: none is missing */
done:
    free(seen);
    return rc;
}

/* ---- an order for all ranks together */

struct walk { const struct par_schedule *s; int32_t *when; struct par_need *need; int64_t *at; };   /* when: round + 1 by key */

static const struct par_need *missing(const struct walk *w, int rank, const struct par_pass *p, int32_t before)
{
    for (int n = par_needs(w->s, rank, p, w->need), i = 0; i < n; i++) {
        int32_t when = w->when[par_key(w->s, w->need[i].pass, w->need[i].rank, w->need[i].chunk, p->micro)];
        if (!when || when > before) return &w->need[i];
    }
    return NULL;
}

static int stuck(const struct walk *w)
{
    char one[64], other[64];
    const struct par_schedule *s = w->s;
    for (int r = 0; r < s->ranks; r++) {
        if (w->at[r] == s->row[r + 1]) continue;
        const struct par_pass *p = &s->pass[w->at[r]];
        const struct par_need *n = missing(w, r, p, INT32_MAX);
        struct par_pass q = { (uint8_t)n->pass, (uint8_t)n->chunk, p->micro };
        return tr_fail(TR_EINPUT, "schedule: nobody can go on: %s waits for %s", par_pass_text(one, sizeof one, s, r, p), par_pass_text(other, sizeof other, s, n->rank, &q));
    }
    return TR_OK;
}

int par_rounds(const struct par_schedule *s, int32_t *round)
{
    struct walk w = { s };
    int64_t left = s->row[s->ranks], done;
    int rc;
    TR_GO(tr_calloc(&w.when, (size_t)par_keys(s), sizeof *w.when));
    TR_GO(tr_calloc(&w.need, (size_t)s->ranks + 2, sizeof *w.need));
    TR_GO(tr_calloc(&w.at, (size_t)s->ranks, sizeof *w.at));
    for (int r = 0; r < s->ranks; r++) w.at[r] = s->row[r];
    for (int32_t now = 0; left; now++, left -= done) {
        done = 0;
        for (int r = 0; r < s->ranks; r++) {
            if (w.at[r] == s->row[r + 1]) continue;
            const struct par_pass *p = &s->pass[w.at[r]];
            if (missing(&w, r, p, now)) continue;
            w.when[par_key(s, p->kind, r, p->chunk, p->micro)] = now + 1;
            round[w.at[r]++] = now;
            done++;
        }
        if (!done) TR_GO(stuck(&w));
    }
    rc = TR_OK;
done:
    free(w.when);
    free(w.need);
    free(w.at);
    return rc;
}

/* Stages' activations that a rank holds at once: from F until the last part of backward. */
static int most_alive(const struct par_schedule *s, int rank)
{
    int n = 0, most = 0;
    for (int64_t i = s->row[rank]; i < s->row[rank + 1]; i++) {
        if (s->pass[i].kind == PAR_F && ++n > most) most = n;
        if (s->pass[i].kind == (s->kind->split ? PAR_W : PAR_B)) n--;
    }
    return most;
}

int par_schedule_check(const struct par_schedule *s)
{
    struct par_steps t = { 0 };
    int rc;
    TR_TRY(complete(s));
    TR_GO(par_schedule_lower(&t, s));
    TR_GO(par_steps_check(&t, s));
    for (int r = 0; r < s->ranks; r++) {
        int most = most_alive(s, r), bound = par_schedule_bound(s, r);
        if (most > bound) TR_GO(tr_fail(TR_EINPUT, "schedule: rank %d holds the activations of %d stages at once; %s has at most %d", r, most, s->kind->name, bound));
    }
done:
    par_steps_release(&t);
    return rc;
}
