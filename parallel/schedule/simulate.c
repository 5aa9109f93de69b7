#include "libtrain/base/status.h"
#include "parallel/schedule/schedule_impl.h"
#include <stdlib.h>

static double seconds(const struct par_schedule *s, const struct par_costs *c, int rank, const struct par_pass *p)
{
    if (p->kind >= PAR_S) return c->seconds[p->kind][rank];
    int stage = par_stage(s, rank, p->chunk);
    return c->seconds[p->kind][stage] + (p->kind == PAR_B && !s->kind->split ? c->seconds[PAR_W][stage] : 0);
}

/* What a pass adds to the bytes of its rank, and what it gives back at its end. */
static double taken(const struct par_schedule *s, const struct par_costs *c, int rank, const struct par_pass *p)
{
    if (p->kind == PAR_F) return c->held[par_stage(s, rank, p->chunk)];
    return p->kind == PAR_S && c->shard ? c->shard[rank] : 0;
}

static double given(const struct par_schedule *s, const struct par_costs *c, int rank, const struct par_pass *p)
{
    int stage = par_stage(s, rank, p->chunk);
    if (p->kind == PAR_B) return c->held[stage] - (s->kind->split ? c->kept[stage] : 0);
    if (p->kind == PAR_W) return c->kept[stage];
    return p->kind == PAR_T && c->shard ? c->shard[rank] : 0;
}

double par_pass_bytes(const struct par_schedule *s, const struct par_costs *c, int rank, const struct par_pass *p, double *back)
{
    *back = given(s, c, rank, p);
    return taken(s, c, rank, p);
}

double par_schedule_peak(const struct par_schedule *s, const struct par_costs *c, int rank)
{
    double now = 0, most = 0;
    for (int64_t i = s->row[rank]; i < s->row[rank + 1]; i++) {
        now += taken(s, c, rank, &s->pass[i]);
        if (now > most) most = now;
        now -= given(s, c, rank, &s->pass[i]);
    }
    return most;
}

double par_steps_peak(const struct par_steps *t, int rank, struct par_bytes (*of)(void *self, const struct par_step *k), void *self)
{
    double now = 0, most = 0;
    for (int64_t i = t->row[rank]; i < t->row[rank + 1]; i++) {
        struct par_bytes b = of(self, &t->step[i]);
        if (now + b.during > most) most = now + b.during;
        now += b.after;
    }
    return most;
}

/* When what a pass needs is on its rank. */
static double arrival(const struct par_schedule *s, const struct par_costs *c, int rank, const struct par_pass *p, const struct par_need *n, double end)
{
    if (p->kind >= PAR_S || n->pass >= PAR_S) return end + c->gather;
    return n->rank == rank ? end : end + c->send;
}

static int run(struct par_simulation *m, const struct par_schedule *s, const struct par_costs *c, double *end, struct par_need *need, int64_t *at)
{
    int64_t left = s->row[s->ranks];
    double *clock = m->busy; /* until the end: when the rank is free */
    for (int r = 0; r < s->ranks; r++) at[r] = s->row[r];
    for (int64_t i = 0; i < par_keys(s); i++) end[i] = -1;
    while (left) {
        int64_t before = left;
        for (int r = 0; r < s->ranks; r++)
            for (; at[r] < s->row[r + 1]; at[r]++, left--) {
                const struct par_pass *p = &s->pass[at[r]];
                double begin = clock[r];
                int n = par_needs(s, r, p, need), i = 0;
                for (; i < n; i++) {
                    double e = end[par_key(s, need[i].pass, need[i].rank, need[i].chunk, p->micro)];
                    if (e < 0) break;
                    double there = arrival(s, c, r, p, &need[i], e);
                    if (there > begin) begin = there;
                }
                if (i < n) break;
                m->begin[at[r]] = begin;
                clock[r] = m->end[at[r]] = end[par_key(s, p->kind, r, p->chunk, p->micro)] = begin + seconds(s, c, r, p);
            }
        if (left == before) return tr_fail(TR_EINPUT, "schedule: nobody can go on");
    }
    return TR_OK;
}

int par_schedule_simulate(struct par_simulation *out, const struct par_schedule *s, const struct par_costs *c)
{
    double *end = NULL, busy = 0;
    struct par_need *need = NULL;
    int64_t *at = NULL;
    int rc;
    *out = (struct par_simulation){ 0 };
    TR_GO(tr_calloc(&out->begin, (size_t)s->row[s->ranks], sizeof *out->begin));
    TR_GO(tr_calloc(&out->end, (size_t)s->row[s->ranks], sizeof *out->end));
    TR_GO(tr_calloc(&out->busy, (size_t)s->ranks, sizeof *out->busy));
    TR_GO(tr_calloc(&out->peak, (size_t)s->ranks, sizeof *out->peak));
    TR_GO(tr_calloc(&end, (size_t)par_keys(s), sizeof *end));
    TR_GO(tr_calloc(&need, (size_t)s->ranks + 2, sizeof *need));
    TR_GO(tr_calloc(&at, (size_t)s->ranks, sizeof *at));
    TR_GO(run(out, s, c, end, need, at));
    for (int r = 0; r < s->ranks; r++) {
        if (out->busy[r] > out->seconds) out->seconds = out->busy[r];
        out->busy[r] = 0;
        for (int64_t i = s->row[r]; i < s->row[r + 1]; i++) out->busy[r] += out->end[i] - out->begin[i];
        out->peak[r] = par_schedule_peak(s, c, r);
        busy += out->busy[r];
    }
    if (out->seconds > 0) out->bubble = 1 - busy / (out->seconds * s->ranks);
done:
    free(end);
    free(need);
    free(at);
    if (rc) par_simulation_release(out);
    return rc;
}

void par_simulation_release(struct par_simulation *m)
{
    free(m->begin);
    free(m->end);
    free(m->busy);
    free(m->peak);
    *m = (struct par_simulation){ 0 };
}
