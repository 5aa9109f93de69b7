/* Zero bubble, form H1 (Qi et al., "Zero Bubble Pipeline Parallelism", 2023): backward split, and rank r does W r micro-batches
 * after B, which fills the waits at the end and lets the first backwards come back at the speed of F and B alone. All ranks
 * hold what 1F1B's first rank holds. */
#include "parallel/schedule/schedule_impl.h"

static int bound(const struct par_schedule *s, int rank)
{
    int n = s->ranks + par_barriers(s);
    return n < s->micros ? n : s->micros;
}

static void put(struct par_schedule *s, int64_t *at, enum par_pass_kind kind, int micro)
{
    if (micro >= 0 && micro < s->micros) s->pass[(*at)++] = (struct par_pass){ (uint8_t)kind, 0, micro };
}

/* Turn i: the backward that makes room, and F of micro-batch i. S of a micro-batch comes `behind` turns after its F: late
 * enough for the last stage's F, early enough that the backwards it is before can come back. In the first turns nothing is on
 * its way back, and S waits until F's have gone down. */
static int make(struct par_schedule *s)
{
    for (int r = 0; r < s->ranks; r++) {
        int warm = s->ranks - r + par_barriers(s), below = s->ranks - 1 - r, behind = (below + 1) / 2, next = s->vocabulary ? 0 : s->micros + 1;
        int64_t at = s->row[r];
        for (int i = 0; i < s->micros + warm; i++) {
            put(s, &at, PAR_B, i - warm);
            put(s, &at, PAR_W, i - warm < 0 ? -1 : i - warm - r);
            put(s, &at, PAR_F, i);
            for (; next <= s->micros && i >= below && i >= next + behind; next++) {
                put(s, &at, PAR_T, next - 1);
                put(s, &at, PAR_S, next);
            }
        }
        for (int m = s->micros > r ? s->micros - r : 0; m < s->micros; m++) put(s, &at, PAR_W, m);
    }
    return 0;
}

const struct par_schedule_kind par_zero_bubble = { "zero-bubble", "1F1B with backward split: weight gradients fill the waits", PAR_LOOP, 1, true, NULL, bound, NULL, make };
