#include "recipes/trace.h"
#include "libtrain/base/file.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "recipes/plot.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of each stretch of time the moment of most bytes is kept, so that no peak is lost and the size is fixed. */
enum { POINTS = 1500 };
struct point { double time; struct tr_ledger l; };
struct trace { struct point *point; size_t n; double start, stretch; };

/* Halves the resolution: of two neighbours the fuller one stays. */
static void thin(struct trace *t)
{
    for (size_t i = 0; i < t->n / 2; i++) t->point[i] = t->point[2 * i + (t->point[2 * i + 1].l.total > t->point[2 * i].l.total)];
    t->n /= 2;
    t->stretch *= 2;
}

static void note(void *self, const struct tr_ledger *l)
{
    struct trace *t = self;
    double now = tr_now() - t->start;
    if (t->n && now - t->point[t->n - 1].time < t->stretch) {
        if (l->total > t->point[t->n - 1].l.total) t->point[t->n - 1].l = *l;
        return;
    }
    if (t->n == POINTS) thin(t);
    t->point[t->n++] = (struct point){ now, *l };
}

int trace_begin(struct trace **out)
{
    struct trace *t;
    TR_TRY(tr_calloc(&t, 1, sizeof *t));
    int rc = tr_calloc(&t->point, POINTS, sizeof *t->point);
    if (rc != TR_OK) {
        free(t);
        return rc;
    }
    t->start = tr_now();
    t->stretch = 1e-4;
    struct tr_ledger l = tr_mem_ledger();
    note(t, &l);
    tr_mem_trace(note, t);
    *out = t;
    return TR_OK;
}

void trace_free(struct trace *t)
{
    if (!t) return;
    tr_mem_trace(NULL, NULL);
    free(t->point);
    free(t);
}

static int draw(struct tr_buf *out, const struct trace *t)
{
    double *all;
    size_t n = t->n, used = 0, top = 0;
    struct plot_series series[TR_CATEGORIES];
    char mark[160];
    TR_TRY(tr_calloc(&all, n * (1 + TR_CATEGORIES), sizeof *all));
    for (size_t i = 0; i < n; i++) {
        all[i] = t->point[i].time * 1e3;
        if (t->point[i].l.total > t->point[top].l.total) top = i;
    }
    for (int c = 0; c < TR_CATEGORIES; c++) {
        double most = 0, *y = all + (size_t)(1 + used) * n;
        for (size_t i = 0; i < n; i++) most = (y[i] = (double)t->point[i].l.now[c] / 1e6) > most ? y[i] : most;
        if (most > 0.05) series[used++] = (struct plot_series){ tr_category_name((enum tr_category)c), plot_colours[c % 8], y };
    }
    snprintf(mark, sizeof mark, "peak %.1f MB at %.0f ms", (double)t->point[top].l.total / 1e6, t->point[top].time * 1e3);
    struct plot p = { "Memory within one step", "MB", "milliseconds", all, n, series, used, true, mark, NULL, false };
    int rc = plot_svg(out, &p);
    free(all);
    return rc;
}

static int print(struct tr_buf *out, const struct trace *t)
{
    TR_TRY(tr_buf_puts(out, "ms"));
    for (int c = 0; c < TR_CATEGORIES; c++) TR_TRY(tr_buf_printf(out, ",%s", tr_category_name((enum tr_category)c)));
    for (size_t i = 0; i < t->n; i++) {
        TR_TRY(tr_buf_printf(out, "\n%.3f", t->point[i].time * 1e3));
        for (int c = 0; c < TR_CATEGORIES; c++) TR_TRY(tr_buf_printf(out, ",%zu", t->point[i].l.now[c]));
    }
    return tr_buf_puts(out, "\n");
}

int trace_end(struct trace *t, const char *folder)
{
    struct tr_buf svg = { 0 }, csv = { 0 };
    int rc;
    tr_mem_trace(NULL, NULL);
    struct tr_ledger l = tr_mem_ledger();
    note(t, &l);
    TR_GO(draw(&svg, t));
    TR_GO(print(&csv, t));
    TR_GO(tr_write_file(folder, "memory.svg", &svg));
    rc = tr_write_file(folder, "memory.csv", &csv);
done:
    tr_buf_release(&svg);
    tr_buf_release(&csv);
    trace_free(t);
    return rc;
}

int trace_read(struct trace_columns *out, const char *folder)
{
    struct tr_buf text = { 0 };
    char *path;
    double *all = NULL;
    *out = (struct trace_columns){ 0 };
    TR_TRY(tr_path_join(&path, folder, "memory.csv"));
    int rc = tr_exists(path) ? tr_read_file(&text, path) : TR_OK;
    free(path);
    if (rc == TR_OK && text.size) rc = tr_calloc(&all, POINTS * (1 + TR_CATEGORIES), sizeof *all);
    char *at = all ? strchr(text.data, '\n') : NULL; /* after the names of the columns */
    for (size_t c = 0; at && out->n < POINTS;) {
        char *end;
        all[c * POINTS + out->n] = strtod(at + 1, &end);
        if (end == at + 1 || *end != (c == TR_CATEGORIES ? '\n' : ',')) break; /* a line cut short, or the end */
        at = end;
        if (c++ == TR_CATEGORIES) c = 0, out->n++;
    }
    out->ms = all;
    for (int c = 0; all && c < TR_CATEGORIES; c++) out->bytes[c] = all + (1 + c) * POINTS;
    tr_buf_release(&text);
    return rc;
}
