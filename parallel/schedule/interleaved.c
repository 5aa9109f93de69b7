/* Interleaved 1F1B (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters", 2021): several stages a
 * rank, micro-batches in groups of as many as there are ranks. */
#include "libtrain/base/status.h"
#include "parallel/schedule/schedule_impl.h"

enum { F = 1, B = 2, INTERVAL = F + B, FINE = 4 };   /* S and T stand between whole slots */

static int fits(const struct par_schedule *s)
{
    int down = s->micros / s->ranks * s->ranks;
    if (s->chunks < 2) return tr_fail(TR_EINPUT, "schedule interleaved: %d stage on a rank; it needs 2 or more (1f1b has 1)", s->chunks);
    if (s->micros % s->ranks == 0) return TR_OK;
    if (!down) return tr_fail(TR_EINPUT, "schedule interleaved: %d micro-batches for %d ranks do not divide; use %d, or 1f1b", s->micros, s->ranks, s->ranks);
    return tr_fail(TR_EINPUT, "schedule interleaved: %d micro-batches for %d ranks do not divide; use %d or %d, or 1f1b", s->micros, s->ranks, down, down + s->ranks);
}

static int bound(const struct par_schedule *s, int rank)
{
    int64_t n = (int64_t)(s->chunks - 1) * s->ranks + s->ranks - rank + par_barriers(s), all = (int64_t)s->micros * s->chunks;
    return (int)(n < all ? n : all);
}

/* The place of (chunk, micro) among the forwards of a rank. */
static int64_t place(const struct par_schedule *s, int chunk, int micro) { return (int64_t)(micro / s->ranks) * s->ranks * s->chunks + chunk * s->ranks + micro % s->ranks; }

/* One F and one B an interval. Each rank begins its backwards when the first comes back to it, no later: fewer activations
 * than with a fixed number of forwards before them, in the same time. A barrier costs an interval. */
static int64_t slot(const struct par_schedule *s, enum par_pass_kind pass, int rank, int chunk, int micro)
{
    int last = s->chunks - 1;
    int64_t turn = INTERVAL * (int64_t)(last * s->ranks + par_barriers(s)) + s->ranks * F;
    switch (pass) {
    case PAR_F: return FINE * (INTERVAL * place(s, chunk, micro) + rank * F);
    case PAR_B: return FINE * (INTERVAL * place(s, last - chunk, micro) + turn + (s->ranks - 1 - rank) * B);
    case PAR_S: return FINE * (INTERVAL * place(s, last, micro) + s->ranks * F) - 1;
    case PAR_T: return FINE * (INTERVAL * (place(s, last, micro) + 1) + s->ranks * F) - 2;
    default: return 0;
    }
}

const struct par_schedule_kind par_interleaved = { "interleaved", "1F1B with several stages a rank: a smaller bubble for more activations and messages", PAR_LOOP, 0, false, fits, bound, slot, NULL };
