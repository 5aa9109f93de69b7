/* V-Half and V-Min (Qi et al., "Pipeline Parallelism with Controllable Memory", 2024): two stages a rank, the second on the way
 * back, so that the first and the last stage are on rank 0 and all ranks hold the same; backward split. A micro-batch has six
 * passes a rank, in slots of a period of six; W takes what is free. */
#include "parallel/schedule/schedule_impl.h"

enum { PERIOD = 6, FINE = 4 };

struct block { int64_t f[2], b[2]; };

static struct block half(const struct par_schedule *s, int r)
{
    int64_t p = s->ranks, e = (p % 2 ? 0 : 3) + PERIOD * par_barriers(s);
    return (struct block){ { 2 * r, 3 * p - 2 - r }, { 6 * p - 2 + e - r, 3 * p - 1 + e + 2 * r } };
}

static struct block least(const struct par_schedule *s, int r)
{
    int64_t p = s->ranks, e = (p % 3 ? 0 : 2) + PERIOD * par_barriers(s);
    return (struct block){ { r, 2 * p - 1 - r }, { 4 * p - 1 + e - r, 2 * p + e + r } };
}

/* The first slot after B that no other pass of the period has; chunk 1, whose B comes first, chooses first. */
static int64_t free_after(const struct block *k, int chunk)
{
    bool taken[PERIOD] = { false };
    for (int c = 0; c < 2; c++) taken[k->f[c] % PERIOD] = taken[k->b[c] % PERIOD] = true;
    int64_t w[2];
    for (int c = 1; c >= 0; c--) {
        for (w[c] = k->b[c] + 1; taken[w[c] % PERIOD];) w[c]++;
        taken[w[c] % PERIOD] = true;
    }
    return w[chunk];
}

static int64_t slot_of(const struct block *k, const struct block *first, enum par_pass_kind pass, int chunk, int micro)
{
    int64_t begin = (int64_t)PERIOD * micro;
    switch (pass) {
    case PAR_F: return FINE * (begin + k->f[chunk]);
    case PAR_B: return FINE * (begin + k->b[chunk]);
    case PAR_W: return FINE * (begin + free_after(k, chunk));
    case PAR_S: return FINE * (begin + first->f[1] + 2) - 1;
    case PAR_T: return FINE * (begin + first->f[1] + 2 + PERIOD) - 2; /* before S of the next: one micro-batch's logits at a time */
    default: return 0;
    }
}

static int64_t half_slot(const struct par_schedule *s, enum par_pass_kind pass, int rank, int chunk, int micro)
{
    struct block k = half(s, rank), first = half(s, 0);
    return slot_of(&k, &first, pass, chunk, micro);
}

static int64_t least_slot(const struct par_schedule *s, enum par_pass_kind pass, int rank, int chunk, int micro)
{
    struct block k = least(s, rank), first = least(s, 0);
    return slot_of(&k, &first, pass, chunk, micro);
}

static int limit(const struct par_schedule *s, int n) { return n < 2 * s->micros ? n : 2 * s->micros; }

/* Of a long run, from the period: what overlaps of the lives F to W of both chunks. */
static int overlap(const struct block *k)
{
    int most = 0;
    for (int at = 0; at < PERIOD; at++) {
        int n = 0;
        for (int c = 0; c < 2; c++)
            for (int64_t t = k->f[c]; t <= free_after(k, c); t++) n += t % PERIOD == at;
        if (n > most) most = n;
    }
    return most;
}

static int half_bound(const struct par_schedule *s, int rank)
{
    struct block k = half(s, rank);
    return limit(s, overlap(&k));
}

static int least_bound(const struct par_schedule *s, int rank)
{
    struct block k = least(s, rank);
    return limit(s, overlap(&k));
}

const struct par_schedule_kind par_v_half = { "v-half", "two stages a rank, there and back, backward split: half of 1F1B's activations, the same on all ranks", PAR_VEE, 2, true, NULL, half_bound, half_slot, NULL };
const struct par_schedule_kind par_v_min = { "v-min", "as v-half with a third of 1F1B's activations and a larger bubble", PAR_VEE, 2, true, NULL, least_bound, least_slot, NULL };
