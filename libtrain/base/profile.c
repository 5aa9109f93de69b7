#include "libtrain/base/profile.h"
#include <time.h>

static double seconds[TR_PARTS], since;
static enum tr_part current;

const char *tr_part_name(enum tr_part p)
{
    static const char *const name[TR_PARTS] = { "other", "data", "embed", "norm", "attention", "mlp", "loss", "backward_embed",
        "backward_norm", "backward_attention", "backward_mlp", "backward_loss", "optimizer", "communication" };
    return name[p];
}

double tr_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum tr_part tr_part_enter(enum tr_part p)
{
    double now = tr_now();
    enum tr_part before = current;
    seconds[before] += now - since;
    since = now;
    current = p;
    return before;
}

enum tr_part tr_part_current(void) { return current; }

enum tr_part tr_part_backward(enum tr_part p)
{
    return p >= TR_PART_EMBED && p <= TR_PART_LOSS ? p + (TR_PART_BACKWARD_EMBED - TR_PART_EMBED) : p;
}

void tr_part_reset(void)
{
    for (int i = 0; i < TR_PARTS; i++) seconds[i] = 0;
    since = tr_now();
}

double tr_part_seconds(enum tr_part p) { return seconds[p]; }
