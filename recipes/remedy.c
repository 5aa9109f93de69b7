/* What would help when a run does not fit its budget: each change is forecast, none is guessed. */
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include "recipes/forecast.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct remedy { char text[64]; int64_t saves; bool fits; };
struct remedies { struct remedy r[10]; int n; };

static int by_saving(const void *a, const void *b)
{
    int64_t x = ((const struct remedy *)a)->saves, y = ((const struct remedy *)b)->saves;
    return (x < y) - (x > y);
}

/* What a change saves is what its own forecast says. One that cannot be, or saves next to nothing, is not named. */
static void try_remedy(struct remedies *list, struct job *j, const struct forecast *f, const char *text, const char *set)
{
    struct forecast other;
    if (forecast_with(j, set, &other) != TR_OK) return;
    int64_t saves = forecast_limited(f) - forecast_limited(&other);
    if (saves < forecast_limited(f) / 100) return;
    struct remedy *r = &list->r[list->n++];
    *r = (struct remedy){ .saves = saves, .fits = forecast_limited(&other) <= forecast_limit(j) };
    snprintf(r->text, sizeof r->text, "%s", text);
}

static void find_remedies(struct remedies *list, struct job *j, const struct forecast *f)
{
    static const char *const keys[][2] = { { "memory.offload = disk", "memory.offload=disk" }, { "optimizer.name = apollo-mini", "optimizer.name=apollo-mini" },
        { "checkpoint.memory_every = 0", "checkpoint.memory_every=0" }, { "train.clip = 0", "train.clip=0" }, { "model.dtype = bf16", "model.dtype=bf16" }, { "model.dtype = int8", "model.dtype=int8" } };
    static const char *const names[] = { "none", "selective", "block" };
    struct job as_it_is = *j;
    char text[64];
    for (int k = j->recompute + 1; k <= TR_BLOCK; k++) {
        snprintf(text, sizeof text, "memory.recompute = %s", names[k]);
        if (job_resolve(j, as_it_is.micro_batch, (enum tr_recompute)k) == TR_OK) try_remedy(list, j, f, text, NULL);
        job_resolve(j, as_it_is.micro_batch, as_it_is.recompute);
    }
    for (int64_t m = as_it_is.micro_batch - 1, tried = 0; m >= 1 && !tried; m--) {
        if (j->batch % (m * j->data->size)) continue;
        tried = 1;
        snprintf(text, sizeof text, "train.micro_batch = %" PRId64, m);
        if (job_resolve(j, m, as_it_is.recompute) == TR_OK) try_remedy(list, j, f, text, NULL);
        job_resolve(j, as_it_is.micro_batch, as_it_is.recompute);
    }
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) try_remedy(list, j, f, keys[i][0], keys[i][1]);
    qsort(list->r, (size_t)list->n, sizeof *list->r, by_saving);
}

int forecast_check(struct job *j, const struct forecast *f)
{
    int64_t limit = forecast_limit(j);
    if (limit <= 0 || forecast_limited(f) <= limit) return TR_OK;
    struct remedies list = { .n = 0 };
    struct tr_buf advice = { 0 };
    char items[400];
    forecast_text(items, sizeof items, &f->ledger);
    find_remedies(&list, j, f);
    bool enough = false;
    int rc = TR_OK;
    for (int i = 0; i < list.n; i++) enough |= list.r[i].fits;
    for (int i = 0; i < list.n && rc == TR_OK; i++)
        rc = tr_buf_printf(&advice, "%s%s saves %.1f MB%s", i ? ", " : "", list.r[i].text, (double)list.r[i].saves / 1e6, list.r[i].fits ? " (then it fits)" : "");
    if (rc == TR_OK && list.n > 1 && !enough) rc = tr_buf_puts(&advice, "; none is enough alone: `train plan --search` tries them together");
    if (rc == TR_OK)
        rc = tr_fail(TR_EBUDGET, "the run needs %.2f GB (%s): %s %.2f GB; at its peak (%s) %s; %s", (double)forecast_limited(f) / 1e9, j->r->path,
                     limit == j->r->memory.budget ? "memory.budget is" : "the device has", (double)limit / 1e9, forecast_phase_name(forecast_peak_phase(f)), items, list.n ? advice.data : "a smaller model or a larger budget is needed");
    tr_buf_release(&advice);
    return rc;
}
