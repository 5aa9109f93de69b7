/* 1F1B (Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training", 2021); with vocabulary parallelism as in Yeung et
 * al., "Balancing Pipeline Parallelism with Vocabulary Parallelism", 2024: an interval more between the last F and the first B
 * for each barrier, and in each interval T of one micro-batch and, once its logits are gone, S of the next, between F and B. */
#include "parallel/schedule/schedule_impl.h"

enum { F = 2, B = 4, S = 1, T = 1 };

static int bound(const struct par_schedule *s, int rank)
{
    int n = s->ranks - rank + par_barriers(s);
    return n < s->micros ? n : s->micros;
}

/* One stage costs an interval on the way to the last stage and back, so F, S, T, B have the same places in the interval on
 * every rank: nothing overlaps. S waits for the last stage's F and for its place. */
static int64_t slot(const struct par_schedule *s, enum par_pass_kind pass, int rank, int chunk, int micro)
{
    int64_t v = s->vocabulary ? S + T : 0, interval = F + B + v, begin = micro * interval, step = F + v / 2;
    int64_t f = rank * step, f_last = (s->ranks - 1) * step, below = s->ranks - 1 - rank;
    switch (pass) {
    case PAR_F: return begin + f;
    case PAR_B: return begin + f_last + F + v + par_barriers(s) * interval + below * (interval - step);
    case PAR_S:
    case PAR_T: {
        int64_t wait = (f_last - f) % interval;
        int64_t at = f_last + F + (wait ? interval - wait : 0);
        return begin + at + (pass == PAR_T ? interval : T);
    }
    default: return 0;
    }
}

const struct par_schedule_kind par_1f1b = { "1f1b", "one forward, one backward: least activations at the last rank, most at the first", PAR_LOOP, 1, false, NULL, bound, slot, NULL };
