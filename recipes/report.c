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
    "svg{width:100%;height:auto;background:#fff;border:1px solid #ddd;border-radius:6px;margin:.4em 0}\n"
    "svg text{font-family:system-ui,sans-serif}.t{font-size:14px;font-weight:600;fill:#222}.l{font-size:12px;fill:#555}.g{stroke:#e6e6e6}.m{fill:#222}\n"
    ".cards{display:flex;flex-wrap:wrap;gap:.7em}.card{background:#fff;border:1px solid #ddd;border-radius:6px;padding:.5em .9em}\n"
    ".card b{display:block;font-size:1.25em}.card span{color:#666;font-size:.85em}\n"
    "pre{background:#fff;border:1px solid #ddd;border-radius:6px;padding:.8em;overflow:auto;font-size:13px}table{border-collapse:collapse}td,th{padding:.15em .9em .15em 0;text-align:right}td:first-child,th:first-child{text-align:left}\n"
    "</style>\n";

static int card(struct tr_buf *o, const char *name, const char *format, double value) __attribute__((format(printf, 3, 0)));
static int card(struct tr_buf *o, const char *name, const char *format, double value)
{
    char text[64];
    snprintf(text, sizeof text, format, value);
    return tr_buf_printf(o, "<div class=\"card\"><b>%s</b><span>%s</span></div>", text, name);
}

struct columns { double *x, *loss, *valid, *speed, *memory[TR_CATEGORIES]; bool any_valid; };

static int columns_new(struct columns *c, const struct metrics_row *r, size_t n)
{
    double *all;
    TR_TRY(tr_calloc(&all, n * (4 + TR_CATEGORIES) + 1, sizeof *all));
    *c = (struct columns){ all, all + n, all + 2 * n, all + 3 * n, { NULL }, false };
    for (int k = 0; k < TR_CATEGORIES; k++) c->memory[k] = all + (size_t)(4 + k) * n;
    for (size_t i = 0; i < n; i++) {
        c->x[i] = (double)r[i].step;
        c->loss[i] = r[i].loss;
        c->valid[i] = r[i].valid_loss;
        c->any_valid |= isfinite(r[i].valid_loss);
        c->speed[i] = r[i].tokens_per_s;
        for (int k = 0; k < TR_CATEGORIES; k++) c->memory[k][i] = (double)r[i].memory.now[k] / 1e6;
    }
    return TR_OK;
}

/* The validation curve joins its points over the steps between. */
static int valid_plot(struct tr_buf *o, const struct columns *c, size_t n)
{
    double *x, *y;
    size_t m = 0;
    TR_TRY(tr_calloc(&x, 2 * n + 1, sizeof *x));
    y = x + n;
    for (size_t i = 0; i < n; i++)
        if (isfinite(c->valid[i])) x[m] = c->x[i], y[m++] = c->valid[i];
    struct plot_series s = { "validation loss", plot_colours[1], y };
    struct plot p = { "Validation loss", "nats", "step", x, m, &s, 1, 0, NULL };
    int rc = m > 1 ? plot_svg(o, &p) : TR_OK;
    free(x);
    return rc;
}

static int plots(struct tr_buf *o, const struct columns *c, size_t n, const struct metrics_row *last)
{
    struct plot_series loss = { "training loss", plot_colours[0], c->loss }, speed = { "tokens/s", plot_colours[2], c->speed }, memory[TR_CATEGORIES];
    struct plot p = { "Loss", "nats", "step", c->x, n, &loss, 1, 0, NULL };
    TR_TRY(plot_svg(o, &p));
    if (c->any_valid) TR_TRY(valid_plot(o, c, n));
    p.title = "Throughput";
    p.unit = "tokens/s";
    p.series = &speed;
    TR_TRY(plot_svg(o, &p));
    size_t used = 0;
    for (int k = 0; k < TR_CATEGORIES; k++) {
        bool any = false;
        for (size_t i = 0; i < n; i++) any |= c->memory[k][i] > 0.05;
        if (any) memory[used++] = (struct plot_series){ tr_category_name((enum tr_category)k), plot_colours[k % 8], c->memory[k] };
    }
    p = (struct plot){ "Memory between steps", "MB", "step", c->x, n, memory, used, 1, NULL };
    TR_TRY(plot_svg(o, &p));
    return tr_buf_printf(o, "<p class=\"sub\">Within a step the ledger peaks at %.1f MB; the process was resident with at most %.1f MB.</p>", (double)last->memory.peak / 1e6, (double)last->peak_rss / 1e6);
}

static int page(struct tr_buf *o, const char *folder, const char *config, const struct metrics_row *r, size_t n)
{
    const struct metrics_row *last = &r[n - 1];
    struct columns c;
    char *svg_path = NULL;
    double seconds = 0;
    const char *slash = strrchr(folder, '/');
    for (size_t i = 0; i < n; i++) seconds += r[i].step_s + r[i].checkpoint_block_s;
    TR_TRY(tr_buf_puts(o, head));
    TR_TRY(tr_buf_puts(o, "<title>"));
    TR_TRY(plot_escape(o, slash ? slash + 1 : folder));
    TR_TRY(tr_buf_puts(o, "</title>\n<h1>"));
    TR_TRY(plot_escape(o, slash ? slash + 1 : folder));
    TR_TRY(tr_buf_printf(o, "</h1>\n<p class=\"sub\">%" PRId64 " steps, %" PRId64 " tokens, %.0f s of training; train " TR_VERSION "</p>\n<div class=\"cards\">", last->step, last->tokens, seconds));
    TR_TRY(card(o, "first loss", "%.4f", r[0].loss));
    TR_TRY(card(o, "last loss", "%.4f", last->loss));
    for (size_t i = n; i-- > 0;)
        if (isfinite(r[i].valid_loss)) {
            TR_TRY(card(o, "validation loss", "%.4f", r[i].valid_loss));
            break;
        }
    TR_TRY(card(o, "tokens/s, last step", "%.0f", last->tokens_per_s));
    TR_TRY(card(o, "peak of the ledger", "%.0f MB", (double)last->memory.peak / 1e6));
    TR_TRY(card(o, "peak resident", "%.0f MB", (double)last->peak_rss / 1e6));
    TR_TRY(tr_buf_puts(o, "</div>\n<h2>Curves</h2>\n"));
    TR_TRY(columns_new(&c, r, n));
    int rc = plots(o, &c, n, last);
    free(c.x);
    TR_TRY(rc);
    TR_TRY(tr_path_join(&svg_path, folder, "memory.svg")); /* one step's categories over time, when it was traced */
    struct tr_buf svg = { 0 };
    if (tr_exists(svg_path) && tr_read_file(&svg, svg_path) == TR_OK && svg.data) rc = tr_buf_printf(o, "<h2>Memory within one step</h2>\n%s\n", svg.data);
    tr_buf_release(&svg);
    free(svg_path);
    TR_TRY(rc);
    TR_TRY(tr_buf_puts(o, "<h2>Recipe</h2>\n<pre>"));
    TR_TRY(plot_escape(o, config));
    return tr_buf_puts(o, "</pre>\n</html>\n");
}

int report_write(const char *folder, const char *config)
{
    struct metrics_row *rows = NULL;
    size_t n = 0;
    struct tr_buf text = { 0 };
    struct tr_tmpfile f = { 0 };
    char *path = NULL;
    int rc;
    TR_GO(metrics_read(&rows, &n, folder));
    if (n == 0) goto done;
    TR_GO(page(&text, folder, config ? config : "", rows, n));
    TR_GO(tr_path_join(&path, folder, "report.html"));
    TR_GO(tr_tmpfile_open(&f, path));
    fwrite(text.data, 1, text.size, f.f);
    rc = tr_tmpfile_commit(&f);
done:
    tr_tmpfile_release(&f);
    tr_buf_release(&text);
    free(path);
    free(rows);
    return rc;
}
