#include "parallel/cut.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

static int enough(int layers, int stages)
{
    if (stages >= 1 && layers >= stages) return TR_OK;
    return tr_fail(TR_EINPUT, "%d stages for %d layers: each stage needs a layer; use at most %d stages", stages, layers, layers);
}

int par_cut_even(int *first, int layers, int stages)
{
    TR_TRY(enough(layers, stages));
    for (int i = 0; i <= stages; i++) first[i] = (int)((long long)layers * i / stages);
    return TR_OK;
}

int par_cut_by_hand(int *first, int layers, int stages, const char *text)
{
    struct tr_buf fits = { 0 };
    const char *at = text;
    int n = 0, rc;
    TR_TRY(enough(layers, stages));
    first[0] = 0;
    for (char *end; n < stages; n++, at = end + 1) {
        long k = strtol(at, &end, 10);
        if (end == at || k < 1 || k > layers - first[n] || *end != (n < stages - 1 ? ',' : 0)) break;
        first[n + 1] = first[n] + (int)k;
    }
    if (n == stages && first[n] == layers) return TR_OK;
    for (int i = 0; i < stages; i++) TR_GO(tr_buf_printf(&fits, "%s%lld", i ? "," : "", (long long)layers * (i + 1) / stages - (long long)layers * i / stages));
    rc = tr_fail(TR_EINPUT, "layers by stage '%s': it must be %d numbers of 1 or more that add up to %d, as %s", text, stages, layers, fits.data);
done:
    tr_buf_release(&fits);
    return rc;
}

struct best { double slowest, squares; int begin; };   /* of stages 0..k over layers 0..end: the cut with the last stage's begin */

static void improve(struct best *b, const struct best *before, double seconds, int begin)
{
    double slowest = before && before->slowest > seconds ? before->slowest : seconds, squares = (before ? before->squares : 0) + seconds * seconds;
    bool better = b->begin < 0 || slowest < b->slowest * (1 - 1e-12) || (slowest <= b->slowest * (1 + 1e-12) && squares < b->squares * (1 - 1e-12));
    if (better) *b = (struct best){ slowest, squares, begin };
}

int par_cut_by_cost(int *first, int layers, int stages, const double *seconds, double first_extra, double last_extra)
{
    struct best *table = NULL;   /* [stages][layers + 1] */
    double *sum = NULL;          /* of the layers before */
    int rc, width = layers + 1;
    TR_TRY(enough(layers, stages));
    TR_GO(tr_calloc(&table, (size_t)stages * (size_t)width, sizeof *table));
    TR_GO(tr_calloc(&sum, (size_t)width, sizeof *sum));
    for (int i = 0; i < layers; i++) sum[i + 1] = sum[i] + seconds[i];
    for (int k = 0; k < stages; k++)
        for (int end = 0; end < width; end++) {
            struct best *b = &table[k * width + end];
            b->begin = -1;
            double extra = (k == 0 ? first_extra : 0) + (k == stages - 1 ? last_extra : 0);
            for (int begin = k; begin < end; begin++) {
                const struct best *before = k ? &table[(k - 1) * width + begin] : NULL;
                if (k ? before->begin >= 0 : begin == 0) improve(b, before, sum[end] - sum[begin] + extra, begin);
            }
        }
    first[stages] = layers;
    for (int k = stages - 1; k >= 0; k--) first[k] = table[k * width + first[k + 1]].begin;
    rc = TR_OK;
done:
    free(table);
    free(sum);
    return rc;
}

/* The work up to which ranks are filled: what is above it takes no part. */
static double level_of(int ranks, const double *work, double shared)
{
    double most = INFINITY, level = most;
    do {
        double sum = shared;
        int n = 0;
        most = level;
        for (int r = 0; r < ranks; r++)
            if (work[r] < most) sum += work[r], n++;
        level = sum / n;
    } while (level < most);
    return level;
}

void par_share_rows(int64_t *first, int64_t rows, int ranks, const double *work, double row)
{
    double level = level_of(ranks, work, (double)rows * row), at = 0;
    first[0] = 0;
    for (int r = 0; r < ranks; r++) {
        at += work[r] < level ? (level - work[r]) / row : 0;
        int64_t end = r == ranks - 1 ? rows : (int64_t)(at + 1e-6), least = first[r] + 1, most = rows - (ranks - 1 - r);
        first[r + 1] = end < least ? least : end > most ? most : end;
    }
}
