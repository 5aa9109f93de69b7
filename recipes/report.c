#include "recipes/report.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include "recipes/metrics.h"
#include "recipes/page.h"
#include "recipes/plot.h"
#include "train_config.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* The rows as columns of n numbers; memory and peak in `unit`. */
struct columns { double *x, *loss, *smooth, *valid, *speed, *peak, *memory[TR_CATEGORIES], scale; const char *unit; bool any_valid; };

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
    plot_smooth(c->smooth, c->loss, n);
    return TR_OK;
}

static int plots(struct tr_buf *o, const struct columns *c, size_t n)
{
    struct plot_series loss[3] = { { "training", "#8fb2de", c->loss }, { "training, smoothed", plot_colours[0], c->smooth } };
    struct plot_series speed = { "tokens/s", plot_colours[2], c->speed }, peak = { "peak within a step", "currentColor", c->peak };
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

static int numbers(struct tr_buf *o, const struct metrics_sum *s)
{
    TR_TRY(tr_buf_puts(o, "<div class=\"cards\">"));
    TR_TRY(page_card(o, "first loss", 4, s->first, ""));
    TR_TRY(page_card(o, "last loss", 4, s->last, ""));
    if (isfinite(s->valid)) TR_TRY(page_card(o, "validation loss", 4, s->valid, ""));
    if (isfinite(s->valid)) TR_TRY(page_card(o, "validation perplexity", 2, exp(s->valid), ""));
    if (isfinite(s->valid) && s->best_valid < s->valid) TR_TRY(page_card(o, "lowest validation loss", 4, s->best_valid, ""));
    TR_TRY(page_card(o, "tokens/s (median)", 0, s->tokens_per_s, ""));
    TR_TRY(page_card(o, "peak of the ledger", 0, (double)s->peak / 1e6, " MB"));
    TR_TRY(page_card(o, "peak resident", 0, (double)s->peak_rss / 1e6, " MB"));
    return tr_buf_puts(o, "</div>\n");
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
    struct metrics_sum sum;
    double seconds = 0;
    TR_TRY(metrics_sum_up(&sum, r, n));
    for (size_t i = 0; i < n; i++) seconds += r[i].step_s + r[i].checkpoint_block_s;
    TR_TRY(page_begin(o, title));
    TR_TRY(tr_buf_printf(o, "<p class=\"sub\">%" PRId64 " steps, %" PRId64 " tokens, ", r[n - 1].step, r[n - 1].tokens));
    TR_TRY(page_duration(o, seconds));
    TR_TRY(tr_buf_puts(o, " of training; train " TR_VERSION "</p>\n"));
    TR_TRY(numbers(o, &sum));
    TR_TRY(tr_buf_puts(o, "<h2>Curves</h2>\n"));
    TR_TRY(plots(o, c, n));
    TR_TRY(one_step(o, folder));
    return page_end(o, config);
}

int report_write(const char *folder, const char *title, const char *config)
{
    struct metrics_row *rows = NULL;
    struct columns c = { 0 };
    size_t n = 0;
    struct tr_buf text = { 0 };
    int rc;
    TR_GO(metrics_read(&rows, &n, folder));
    if (n == 0) goto done;
    TR_GO(columns_new(&c, rows, n));
    TR_GO(page(&text, folder, title, config ? config : "", &c, rows, n));
    rc = tr_write_file(folder, "report.html", &text);
done:
    tr_buf_release(&text);
    free(c.x);
    free(rows);
    return rc;
}
