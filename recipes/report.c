#include "recipes/report.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include "recipes/metrics.h"
#include "recipes/plot.h"
#include "train_config.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char head[] =
    "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n<style>\n"
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fafafa;max-width:920px;margin:2em auto;padding:0 1em}\n"
    "h1{font-size:1.5em;margin:0 0 .2em}h2{font-size:1.1em;margin:1.6em 0 .5em}.sub{color:#666;margin:0 0 1.4em}\n"
    "body>svg{width:100%;height:auto;border:1px solid #ddd;border-radius:6px;margin:.4em 0}\n"
    ".cards{display:flex;flex-wrap:wrap;gap:.7em}\n"
    ".card{background:#fff;border:1px solid #ddd;border-radius:6px;padding:.5em .9em}\n"
    ".card b{display:block;font-size:1.25em}.card span{color:#666;font-size:.85em}\n"
    "pre{background:#fff;border:1px solid #ddd;border-radius:6px;padding:.8em;font-size:13px;columns:20em;overflow-wrap:anywhere;"
    "white-space:pre-wrap}\n"
    "</style>\n";

static int card(struct tr_buf *o, const char *name, int digits, double value, const char *unit)
{
    return tr_buf_printf(o, "<div class=\"card\"><b>%.*f%s</b><span>%s</span></div>", digits, value, unit, name);
}

/* The rows as columns of n numbers; memory and peak in `unit`. */
struct columns { double *x, *loss, *smooth, *valid, *speed, *peak, *memory[TR_CATEGORIES], scale; const char *unit; bool any_valid; };

/* Mean over a fortieth of the rows on either side: a centred window does not lag as a running mean does. */
static void smooth(double *out, const double *x, size_t n)
{
    size_t half = n / 40 + 1;
    for (size_t i = 0; i < n; i++) {
        size_t side = i < half ? i : half, count = 0;
        if (n - 1 - i < side) side = n - 1 - i; /* narrower at the ends, so that it stays centred */
        double sum = 0;
        for (size_t k = i - side; k <= i + side; k++)
            if (isfinite(x[k])) sum += x[k], count++;
        out[i] = count ? sum / (double)count : NAN;
    }
}

static int columns_new(struct columns *c, const struct metrics_row *r, size_t n)
{
    double *all;
    TR_TRY(tr_calloc(&all, n * (6 + TR_CATEGORIES) + 1, sizeof *all));
    *c = (struct columns){ .x = all, .loss = all + n, .smooth = all + 2 * n, .valid = all + 3 * n, .speed = all + 4 * n, .peak = all + 5 * n };
    bool large = r[n - 1].memory.peak >= (size_t)10e9;
    c->scale = large ? 1e9 : 1e6;
    c->unit = large ? "GB" : "MB";
    for (int k = 0; k < TR_CATEGORIES; k++) c->memory[k] = all + (size_t)(6 + k) * n;
    for (size_t i = 0; i < n; i++) {
        c->x[i] = (double)r[i].step;
        c->loss[i] = r[i].loss;
        c->valid[i] = r[i].valid_loss;
        c->any_valid |= isfinite(r[i].valid_loss);
        c->speed[i] = r[i].tokens_per_s;
        c->peak[i] = (double)r[i].memory.peak / c->scale;
        for (int k = 0; k < TR_CATEGORIES; k++) c->memory[k][i] = (double)r[i].memory.now[k] / c->scale;
    }
    smooth(c->smooth, c->loss, n);
    return TR_OK;
}

static int plots(struct tr_buf *o, const struct columns *c, size_t n)
{
    struct plot_series loss[3] = { { "training", "#a9c4e6", c->loss }, { "training, smoothed", plot_colours[0], c->smooth } };
    struct plot_series speed = { "tokens/s", plot_colours[2], c->speed }, peak = { "peak within a step", "#222222", c->peak };
    struct plot_series memory[TR_CATEGORIES];
    size_t lines = 2, used = 0;
    if (n < 30) loss[0].colour = plot_colours[0], lines = 1; /* nothing to smooth */
    if (c->any_valid) loss[lines++] = (struct plot_series){ "validation", plot_colours[1], c->valid };
    struct plot p = { .title = "Loss", .unit = "nats", .x_label = "step", .x = c->x, .n = n, .series = loss, .n_series = lines };
    TR_TRY(plot_svg(o, &p));
    p = (struct plot){ .title = "Throughput", .unit = "tokens/s", .x_label = "step", .x = c->x, .n = n, .series = &speed, .n_series = 1,
                       .from_zero = true };
    TR_TRY(plot_svg(o, &p));
    for (int k = 0; k < TR_CATEGORIES; k++) {
        bool any = false;
        for (size_t i = 0; i < n; i++) any |= c->memory[k][i] * c->scale > 5e4;
        if (any) memory[used++] = (struct plot_series){ tr_category_name((enum tr_category)k), plot_colours[k % 8], c->memory[k] };
    }
    p = (struct plot){ .title = "Memory between steps", .unit = c->unit, .x_label = "step", .x = c->x, .n = n, .series = memory,
                       .n_series = used, .stacked = true, .over = &peak };
    return plot_svg(o, &p);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int numbers(struct tr_buf *o, const struct columns *c, const struct metrics_row *r, size_t n)
{
    double *sorted, best = INFINITY, last = NAN;
    TR_TRY(tr_calloc(&sorted, n, sizeof *sorted));
    memcpy(sorted, c->speed, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_value);
    double median = sorted[n / 2];
    free(sorted);
    for (size_t i = 0; i < n; i++)
        if (isfinite(c->valid[i])) last = c->valid[i], best = fmin(best, last);
    TR_TRY(tr_buf_puts(o, "<div class=\"cards\">"));
    TR_TRY(card(o, "first loss", 4, r[0].loss, ""));
    TR_TRY(card(o, "last loss", 4, r[n - 1].loss, ""));
    if (isfinite(last)) TR_TRY(card(o, "validation loss", 4, last, ""));
    if (isfinite(last)) TR_TRY(card(o, "validation perplexity", 2, exp(last), ""));
    if (isfinite(last) && best < last) TR_TRY(card(o, "lowest validation loss", 4, best, ""));
    TR_TRY(card(o, "tokens/s (median)", 0, median, ""));
    TR_TRY(card(o, "peak of the ledger", 0, (double)r[n - 1].memory.peak / 1e6, " MB"));
    TR_TRY(card(o, "peak resident", 0, (double)r[n - 1].peak_rss / 1e6, " MB"));
    return tr_buf_puts(o, "</div>\n");
}

static int duration(struct tr_buf *o, double s)
{
    if (s < 60) return tr_buf_printf(o, "%.0f s", s);
    if (s < 3600) return tr_buf_printf(o, "%d min %02d s", (int)(s / 60), (int)s % 60);
    return tr_buf_printf(o, "%d h %02d min", (int)(s / 3600), (int)(s / 60) % 60);
}

/* One step's categories over time, when it was traced. */
static int one_step(struct tr_buf *o, const char *folder)
{
    struct tr_buf svg = { 0 };
    char *path = NULL;
    int rc;
    TR_GO(tr_path_join(&path, folder, "memory.svg"));
    if (tr_exists(path) && tr_read_file(&svg, path) == TR_OK && svg.data) TR_GO(tr_buf_add(o, svg.data, svg.size));
done:
    tr_buf_release(&svg);
    free(path);
    return rc;
}

static int page(struct tr_buf *o, const char *folder, const char *title, const char *config, const struct columns *c,
                const struct metrics_row *r, size_t n)
{
    double seconds = 0;
    for (size_t i = 0; i < n; i++) seconds += r[i].step_s + r[i].checkpoint_block_s;
    TR_TRY(tr_buf_puts(o, head));
    TR_TRY(tr_buf_puts(o, "<title>"));
    TR_TRY(plot_escape(o, title));
    TR_TRY(tr_buf_puts(o, "</title>\n<h1>"));
    TR_TRY(plot_escape(o, title));
    TR_TRY(tr_buf_printf(o, "</h1>\n<p class=\"sub\">%" PRId64 " steps, %" PRId64 " tokens, ", r[n - 1].step, r[n - 1].tokens));
    TR_TRY(duration(o, seconds));
    TR_TRY(tr_buf_puts(o, " of training; train " TR_VERSION "</p>\n"));
    TR_TRY(numbers(o, c, r, n));
    TR_TRY(tr_buf_puts(o, "<h2>Curves</h2>\n"));
    TR_TRY(plots(o, c, n));
    TR_TRY(one_step(o, folder));
    TR_TRY(tr_buf_puts(o, "<h2>Recipe</h2>\n<pre>"));
    TR_TRY(plot_escape(o, config));
    return tr_buf_puts(o, "</pre>\n</html>\n");
}

int report_write(const char *folder, const char *title, const char *config)
{
    struct metrics_row *rows = NULL;
    struct columns c = { 0 };
    size_t n = 0;
    struct tr_buf text = { 0 };
    struct tr_tmpfile f = { 0 };
    char *path = NULL;
    int rc;
    TR_GO(metrics_read(&rows, &n, folder));
    if (n == 0) goto done;
    TR_GO(columns_new(&c, rows, n));
    TR_GO(page(&text, folder, title, config ? config : "", &c, rows, n));
    TR_GO(tr_path_join(&path, folder, "report.html"));
    TR_GO(tr_tmpfile_open(&f, path));
    fwrite(text.data, 1, text.size, f.f);
    rc = tr_tmpfile_commit(&f);
done:
    tr_tmpfile_release(&f);
    tr_buf_release(&text);
    free(path);
    free(c.x);
    free(rows);
    return rc;
}
