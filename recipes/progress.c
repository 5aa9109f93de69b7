#include "recipes/progress.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/log.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct progress { int64_t steps, first, log_every; double start, loss, speed; char line[256]; bool shown; };

int progress_new(struct progress **out, int64_t steps, int64_t done, int64_t log_every)
{
    TR_TRY(tr_calloc(out, 1, sizeof **out));
    **out = (struct progress){ .steps = steps, .first = done, .log_every = log_every, .start = tr_now() };
    return TR_OK;
}

static void duration(char *out, size_t n, double s)
{
    if (s < 60) snprintf(out, n, "%.0f s", s);
    else if (s < 3600) snprintf(out, n, "%d min %02d s", (int)(s / 60), (int)s % 60);
    else snprintf(out, n, "%d h %02d min", (int)(s / 3600), (int)(s / 60) % 60);
}

void progress_step(struct progress *p, const struct metrics_row *row)
{
    bool first = row->step == p->first + 1;
    p->loss = first ? row->loss : 0.8 * p->loss + 0.2 * row->loss; /* both smoothed over about five steps */
    p->speed = first ? row->tokens_per_s : 0.8 * p->speed + 0.2 * row->tokens_per_s;
    double each = (tr_now() - p->start) / (double)(row->step - p->first);
    char left[40], valid[40] = "";
    duration(left, sizeof left, each * (double)(p->steps - row->step));
    if (!isnan(row->valid_loss)) snprintf(valid, sizeof valid, "  valid %.4f", row->valid_loss);
    /* What matters most comes first: a narrow terminal cuts the end. */
    snprintf(p->line, sizeof p->line, "step %" PRId64 "/%" PRId64 "  loss %.4f (mean %.4f)%s  %.0f tokens/s  %s left  memory %.0f MB, peak %.0f MB  lr %.2e",
             row->step, p->steps, row->loss, p->loss, valid, p->speed, left, (double)row->memory.total / 1e6, (double)row->memory.peak / 1e6, row->lr);
    bool keep = row->step == p->steps || row->step % p->log_every == 0 || first || valid[0];
    tr_progress(keep, "%s", p->line);
    p->shown = keep;
}

void progress_end(struct progress *p)
{
    if (p->line[0] && !p->shown) tr_progress(true, "%s", p->line);
}

void progress_free(struct progress *p) { free(p); }
