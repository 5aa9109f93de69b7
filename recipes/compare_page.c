/* What a comparison leaves: one page for people, and the same as CSV and SVG files. */
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include "recipes/compare.h"
#include "recipes/page.h"
#include "recipes/plot.h"
#include "train_config.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *colour(const struct member *m) { return plot_colours[m->place % 8]; }
static bool shown(const struct member *m) { return m->state != MEMBER_WAITING && m->n > 0; }

/* ---- files of numbers */

static int number(struct tr_buf *o, double x) { return isfinite(x) ? tr_buf_printf(o, ",%.9g", x) : tr_buf_puts(o, ","); }

static int summary_csv(struct tr_buf *o, const struct comparison *c)
{
    TR_TRY(tr_buf_puts(o, "optimizer,state,steps,lr,valid_loss,train_loss_last_tenth,last_loss,tokens_per_s,seconds,peak_bytes,peak_bytes_foretold,peak_rss_bytes,optimizer_bytes,optimizer_bytes_formula\n"));
    for (size_t i = 0; i < c->n; i++) {
        static const char *const states[] = { "waiting", "stopped", "failed", "complete" };
        const struct member *m = c->order[i];
        const struct metrics_sum *s = &m->sum;
        TR_TRY(tr_buf_printf(o, "%s,%s,%" PRId64, m->name, states[m->state], m->n ? m->rows[m->n - 1].step : 0));
        double values[] = { m->r.train.lr, s->valid, s->mean_last, s->last, s->tokens_per_s, s->seconds };
        for (size_t k = 0; k < 6; k++) TR_TRY(number(o, m->n || k == 0 ? values[k] : NAN));
        TR_TRY(tr_buf_printf(o, ",%zu,%" PRId64 ",%zu,%zu,%" PRId64 "\n", s->peak, m->plan.peak, s->peak_rss, s->state, m->plan.formula));
    }
    return TR_OK;
}

static int curves_csv(struct tr_buf *o, const struct comparison *c)
{
    TR_TRY(tr_buf_puts(o, "optimizer,step,seconds,tokens,lr,loss,valid_loss\n"));
    for (size_t i = 0; i < c->n; i++) {
        const struct member *m = &c->m[i];
        double seconds = 0;
        for (size_t k = 0; k < m->n; k++) {
            const struct metrics_row *r = &m->rows[k];
            TR_TRY(tr_buf_printf(o, "%s,%" PRId64 ",%.6f,%" PRId64, m->name, r->step, seconds += r->step_s, r->tokens));
            TR_TRY(number(o, r->lr));
            TR_TRY(number(o, r->loss));
            TR_TRY(number(o, r->valid_loss));
            TR_TRY(tr_buf_puts(o, "\n"));
        }
    }
    return TR_OK;
}

static int memory_csv(struct tr_buf *o, const struct comparison *c)
{
    TR_TRY(tr_buf_puts(o, "optimizer,ms"));
    for (int k = 0; k < TR_CATEGORIES; k++) TR_TRY(tr_buf_printf(o, ",%s", tr_category_name((enum tr_category)k)));
    for (size_t i = 0; i < c->n; i++)
        for (size_t at = 0; at < c->m[i].trace.n; at++) {
            TR_TRY(tr_buf_printf(o, "\n%s,%.3f", c->m[i].name, c->m[i].trace.ms[at]));
            for (int k = 0; k < TR_CATEGORIES; k++) TR_TRY(tr_buf_printf(o, ",%.0f", c->m[i].trace.bytes[k][at]));
        }
    return tr_buf_puts(o, "\n");
}

/* ---- pictures: onto the page, and as a file beside it */

static int picture(struct tr_buf *o, const struct comparison *c, const char *file, const struct plot *p)
{
    struct tr_buf svg = { 0 };
    int rc;
    TR_GO(plot_svg(&svg, p));
    TR_GO(tr_write_file(c->dir, file, &svg));
    rc = tr_buf_add(o, svg.data, svg.size);
done:
    tr_buf_release(&svg);
    return rc;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The top of the loss axis: where the middle one of the members is after a twentieth of its steps, so that the fall at the
 * start does not press the rest together, but no lower than what a member ends with, unless that is above where all began. */
static int loss_top(const struct comparison *c, const struct plot_series *s, size_t n, double *top)
{
    double *early, end = 0, first = 0;
    size_t count = 0;
    TR_TRY(tr_calloc(&early, n + 1, sizeof *early));
    for (size_t k = 0; k < n; k++) {
        if (isfinite(s[k].y[s[k].n / 20])) early[count++] = s[k].y[s[k].n / 20];
        first = fmax(first, s[k].y[0]);
    }
    for (size_t k = 0; k < n; k++)
        if (s[k].y[s[k].n - 1] < first) end = fmax(end, s[k].y[s[k].n - 1]);
    qsort(early, count, sizeof *early, by_value);
    *top = count ? fmax(early[count / 2], end) * 1.03 : 0;
    free(early);
    return TR_OK;
}

/* Numbers of one member: m->n each, of `valid` and its steps n_valid. */
struct curves { double *step, *second, *smooth, *valid_step, *valid; size_t n_valid; };

static int curves_new(struct curves *u, const struct member *m)
{
    double *all, seconds = 0;
    TR_TRY(tr_calloc(&all, 5 * m->n + 1, sizeof *all));
    *u = (struct curves){ all, all + m->n, all + 2 * m->n, all + 3 * m->n, all + 4 * m->n, 0 };
    for (size_t k = 0; k < m->n; k++) {
        const struct metrics_row *r = &m->rows[k];
        u->step[k] = (double)r->step;
        u->second[k] = seconds += r->step_s;
        u->valid[k] = r->loss;
    }
    plot_smooth(u->smooth, u->valid, m->n);
    for (size_t k = 0; k < m->n; k++)
        if (isfinite(m->rows[k].valid_loss)) u->valid_step[u->n_valid] = u->step[k], u->valid[u->n_valid++] = m->rows[k].valid_loss;
    return TR_OK;
}

static int loss_pictures(struct tr_buf *o, const struct comparison *c)
{
    struct curves *u = NULL;
    struct plot_series *step = NULL, *second, *valid;
    size_t n = 0, n_valid = 0;
    double top = 0;
    int rc;
    TR_GO(tr_calloc(&u, c->n, sizeof *u));
    TR_GO(tr_calloc(&step, 3 * c->n, sizeof *step));
    second = step + c->n, valid = step + 2 * c->n;
    for (size_t i = 0; i < c->n; i++) {
        const struct member *m = &c->m[i];
        if (!shown(m)) continue;
        TR_GO(curves_new(&u[i], m));
        step[n] = (struct plot_series){ m->name, colour(m), u[i].smooth, u[i].step, m->n };
        second[n++] = (struct plot_series){ m->name, colour(m), u[i].smooth, u[i].second, m->n };
        if (u[i].n_valid) valid[n_valid++] = (struct plot_series){ m->name, colour(m), u[i].valid, u[i].valid_step, u[i].n_valid };
    }
    TR_GO(loss_top(c, step, n, &top));
    TR_GO(picture(o, c, "loss-by-step.svg", &(struct plot){ .title = "Training loss by step", .unit = "nats", .x_label = "step", .series = step, .n_series = n, .y_to = top }));
    TR_GO(picture(o, c, "loss-by-second.svg", &(struct plot){ .title = "Training loss by time", .unit = "nats", .x_label = "seconds of training", .series = second, .n_series = n, .y_to = top }));
    if (n_valid)
        TR_GO(picture(o, c, "valid-loss.svg", &(struct plot){ .title = "Validation loss by step", .unit = "nats", .x_label = "step", .series = valid, .n_series = n_valid, .y_to = top }));
    rc = TR_OK;
done:
    for (size_t i = 0; u && i < c->n; i++) free(u[i].step);
    free(u);
    free(step);
    return rc;
}

/* ---- memory over a step */

enum { MOMENTS = 300 };   /* of a small picture: of each stretch of a step the one with most bytes */

static double total_at(const struct trace_columns *t, size_t i)
{
    double sum = 0;
    for (int k = 0; k < TR_CATEGORIES; k++) sum += t->bytes[k][i];
    return sum;
}

static int step_picture(struct tr_buf *o, const struct comparison *c, const struct member *m, double bytes, const bool *used)
{
    const struct trace_columns *t = &m->trace;
    size_t stride = t->n / MOMENTS + 1, n = (t->n + stride - 1) / stride, n_series = 0, top = 0;
    struct plot_series series[TR_CATEGORIES];
    double *all;
    char mark[80], file[160], share[80];
    double last = t->ms[t->n - 1] > 0 ? t->ms[t->n - 1] : 1;
    TR_TRY(tr_calloc(&all, n * (1 + TR_CATEGORIES), sizeof *all));
    for (size_t i = 0; i < n; i++) {
        size_t best = i * stride;
        for (size_t k = best; k < t->n && k < (i + 1) * stride; k++)
            if (total_at(t, k) > total_at(t, best)) best = k;
        if (i == n - 1) best = t->n - 1; /* the picture reaches the end */
        if (total_at(t, best) > total_at(t, top)) top = best;
        all[i] = 100 * t->ms[best] / last;
        for (int k = 0; k < TR_CATEGORIES; k++) all[(size_t)(1 + k) * n + i] = t->bytes[k][best] / 1e6;
    }
    for (int k = 0; k < TR_CATEGORIES; k++)
        if (used[k]) series[n_series++] = (struct plot_series){ tr_category_name((enum tr_category)k), plot_colours[k], all + (size_t)(1 + k) * n };
    snprintf(mark, sizeof mark, "%.1f MB", total_at(t, top) / 1e6);
    snprintf(share, sizeof share, last < 1e4 ? "%% of a step of %.0f ms" : "%% of a step of %.0f s", last < 1e4 ? last : last / 1e3);
    snprintf(file, sizeof file, "memory-%.100s.svg", m->name);
    int rc = picture(o, c, file, &(struct plot){ .title = m->name, .unit = "MB", .x_label = share, .x = all, .n = n, .series = series, .n_series = n_series, .stacked = true,
                                                 .mark = mark, .x_to = 100, .y_to = bytes * 1.08 / 1e6, .width = 430, .height = 230, .no_legend = true });
    free(all);
    return rc;
}

static int memory_pictures(struct tr_buf *o, const struct comparison *c)
{
    double bytes = 0;
    bool used[TR_CATEGORIES] = { false };
    for (size_t i = 0; i < c->n; i++) {
        const struct trace_columns *t = &c->m[i].trace;
        for (size_t k = 0; k < t->n; k++) {
            bytes = fmax(bytes, total_at(t, k));
            for (int j = 0; j < TR_CATEGORIES; j++) used[j] |= t->bytes[j][k] > 5e4;
        }
    }
    if (bytes == 0) return TR_OK;
    TR_TRY(tr_buf_puts(o, "<h2>Memory over one step</h2>\n<p>By category, all on one scale of bytes. It is the second step of each run: what lies at the bottom all the time stays between steps, the hill is "
                          "forward and backward. Steps that do more now and then (a decomposition, a curvature probe) may be larger; the peak in the table is that of the whole run.</p>\n<p>"));
    for (int k = 0; k < TR_CATEGORIES; k++)
        if (used[k]) TR_TRY(tr_buf_printf(o, "<span class=\"swatch\" style=\"background:%s\"></span>%s &nbsp; ", plot_colours[k], tr_category_name((enum tr_category)k)));
    TR_TRY(tr_buf_puts(o, "</p>\n<div class=\"grid\">\n"));
    for (size_t i = 0; i < c->n; i++)
        if (c->order[i]->trace.n) TR_TRY(step_picture(o, c, c->order[i], bytes, used));
    return tr_buf_puts(o, "</div>\n");
}

/* ---- the table */

struct best { double loss, speed; size_t peak, state; size_t most_peak, most_state; double most_speed; };

static struct best best_of(const struct comparison *c)
{
    struct best b = { .loss = INFINITY, .peak = SIZE_MAX, .state = SIZE_MAX };
    for (size_t i = 0; i < c->n; i++) {
        const struct member *m = &c->m[i];
        const struct metrics_sum *s = &m->sum;
        if (!shown(m)) continue;
        b.most_peak = s->peak > b.most_peak ? s->peak : b.most_peak;
        b.most_state = s->state > b.most_state ? s->state : b.most_state;
        b.most_speed = fmax(b.most_speed, s->tokens_per_s);
        if (m->state != MEMBER_COMPLETE) continue;
        if (isfinite(member_loss(c, m))) b.loss = fmin(b.loss, member_loss(c, m));
        b.speed = fmax(b.speed, s->tokens_per_s);
        b.peak = s->peak < b.peak ? s->peak : b.peak;
        b.state = s->state < b.state ? s->state : b.state;
    }
    return b;
}

/* A cell with a bar of its share of the largest; the best of the column is bold. */
static int bar(struct tr_buf *o, double value, double most, int digits, const char *unit, bool best)
{
    return tr_buf_printf(o, "<td class=\"bar\" style=\"--w:%.0f%%\">%s%.*f%s%s</td>", most > 0 ? 100 * value / most : 0, best ? "<b>" : "", digits, value, unit, best ? "</b>" : "");
}

static int loss_cell(struct tr_buf *o, double loss, bool best)
{
    if (!isfinite(loss)) return tr_buf_puts(o, "<td>–</td>");
    return tr_buf_printf(o, "<td>%s%.4f%s</td>", best ? "<b>" : "", loss, best ? "</b>" : "");
}

static int table_row(struct tr_buf *o, const struct comparison *c, const struct member *m, const struct best *b)
{
    const struct metrics_sum *s = &m->sum;
    bool complete = m->state == MEMBER_COMPLETE;
    char remark[64];
    member_remark(remark, sizeof remark, m);
    TR_TRY(tr_buf_printf(o, "<tr><td><span class=\"swatch\" style=\"background:%s\"></span>%s", colour(m), m->name));
    if (remark[0]) TR_TRY(tr_buf_printf(o, " <small>(%s)</small>", remark));
    TR_TRY(tr_buf_puts(o, "</td>"));
    if (!shown(m)) return tr_buf_printf(o, "<td colspan=\"%d\"></td></tr>\n", c->valid ? 8 : 7);
    if (c->valid) TR_TRY(loss_cell(o, s->valid, complete && s->valid == b->loss));
    TR_TRY(loss_cell(o, s->mean_last, complete && !c->valid && s->mean_last == b->loss));
    TR_TRY(bar(o, (double)s->peak / 1e6, (double)b->most_peak / 1e6, 1, " MB", complete && s->peak == b->peak));
    TR_TRY(tr_buf_printf(o, "<td>%.1f MB</td>", (double)m->plan.peak / 1e6));
    TR_TRY(bar(o, (double)s->state / 1e6, (double)b->most_state / 1e6, 2, " MB", complete && s->state == b->state));
    TR_TRY(tr_buf_printf(o, "<td>%.2f MB%s</td>", (double)m->plan.formula / 1e6, (size_t)m->plan.formula == s->state ? "" : " (differs)"));
    TR_TRY(bar(o, s->tokens_per_s, b->most_speed, 0, "", complete && s->tokens_per_s == b->speed));
    TR_TRY(tr_buf_printf(o, "<td>%g</td></tr>\n", m->r.train.lr));
    return TR_OK;
}

static int table(struct tr_buf *o, const struct comparison *c)
{
    struct best b = best_of(c);
    TR_TRY(tr_buf_puts(o, "<div class=\"wide\"><table><thead><tr><th>optimizer</th>"));
    if (c->valid) TR_TRY(tr_buf_puts(o, "<th>validation loss</th>"));
    TR_TRY(tr_buf_puts(o, "<th>training loss<small>last tenth of steps</small></th><th>peak memory<small>measured</small></th><th><small>foretold</small></th>"
                          "<th>optimizer state<small>measured</small></th><th><small>by formula</small></th><th>tokens/s<small>median</small></th><th>learning rate</th></tr></thead>\n<tbody>"));
    for (size_t i = 0; i < c->n; i++) TR_TRY(table_row(o, c, c->order[i], &b));
    return tr_buf_printf(o, "</tbody></table></div>\n<p class=\"sub\">Lowest %s loss first; the best of each column is bold.</p>\n", c->valid ? "validation" : "training");
}

/* ---- words */

static int about(struct tr_buf *o, const struct comparison *c)
{
    const struct member *m = c->order[0];
    const struct recipe *r = &m->r;
    static const char *const types[] = { "auto", "f32", "bf16", "int8" };
    TR_TRY(tr_buf_puts(o, "<p class=\"sub\">"));
    if (r->model.path[0]) TR_TRY(plot_escape(o, strrchr(r->model.path, '/') ? strrchr(r->model.path, '/') + 1 : r->model.path));
    else TR_TRY(tr_buf_puts(o, "A model from scratch"));
    if (m->plan.parameters) TR_TRY(tr_buf_printf(o, ", %.1f million parameters, %s weights", (double)m->plan.parameters / 1e6, types[r->model.dtype]));
    TR_TRY(tr_buf_puts(o, ", trained on "));
    TR_TRY(plot_escape(o, r->data.train));
    if (m->plan.steps) TR_TRY(tr_buf_printf(o, ": %" PRId64 " steps of %" PRId64 " sequences", m->plan.steps, r->train.batch));
    return tr_buf_printf(o, " of at most %" PRId64 " tokens. Every optimizer got the same start, the same data in the same order, and the same seed (%" PRId64 "). train " TR_VERSION "</p>\n",
                         r->data.sequence, r->train.seed);
}

/* The ends of the table in a sentence each. */
static int findings(struct tr_buf *o, const struct comparison *c)
{
    const struct member *peak = NULL, *fast = NULL;
    size_t complete = 0;
    for (size_t i = 0; i < c->n; i++) {
        const struct member *m = c->order[i];
        if (m->state != MEMBER_COMPLETE) continue;
        complete++;
        if (!peak || m->sum.peak < peak->sum.peak) peak = m;
        if (!fast || m->sum.tokens_per_s > fast->sum.tokens_per_s) fast = m;
    }
    if (complete < 2) return TR_OK;
    TR_TRY(tr_buf_puts(o, "<div class=\"cards\">"));
    TR_TRY(tr_buf_printf(o, "<div class=\"card\"><b>%s</b><span>lowest %s loss, %.4f</span></div>", c->order[0]->name, c->valid ? "validation" : "training", member_loss(c, c->order[0])));
    TR_TRY(tr_buf_printf(o, "<div class=\"card\"><b>%s</b><span>least memory, %.1f MB at the peak</span></div>", peak->name, (double)peak->sum.peak / 1e6));
    return tr_buf_printf(o, "<div class=\"card\"><b>%s</b><span>fastest, %.0f tokens/s</span></div></div>\n<p></p>\n", fast->name, fast->sum.tokens_per_s);
}

static int failures(struct tr_buf *o, const struct comparison *c)
{
    for (size_t i = 0; i < c->n; i++) {
        const struct member *m = &c->m[i];
        if (m->state != MEMBER_FAILED) continue;
        TR_TRY(tr_buf_printf(o, "<p><b>%s failed:</b> ", m->name));
        TR_TRY(plot_escape(o, m->why));
        TR_TRY(tr_buf_puts(o, "</p>\n"));
    }
    return TR_OK;
}

/* The keys of [optimizer] with which a member ran, on a line. */
static int settings(struct tr_buf *o, const struct comparison *c)
{
    TR_TRY(tr_buf_puts(o, "<h2>What each ran with</h2>\n<div class=\"wide\"><table><tbody>"));
    for (size_t i = 0; i < c->n; i++) {
        const struct member *m = c->order[i];
        struct tr_buf text = { 0 };
        int rc = opt_print(m->r.optimizer, m->r.n_optimizer, &text);
        if (rc == TR_OK) rc = tr_buf_printf(o, "<tr><td><span class=\"swatch\" style=\"background:%s\"></span>%s</td><td class=\"left\">train.lr = %g", colour(m), m->name, m->r.train.lr);
        for (char *line = rc == TR_OK ? strtok(text.data, "\n") : NULL; line && rc == TR_OK; line = strtok(NULL, "\n")) {
            size_t n = strlen(line);
            if (!strcmp(line, "[optimizer]") || (n > 2 && !strcmp(line + n - 2, "= "))) continue; /* keys without a value */
            rc = tr_buf_puts(o, line[0] == '[' ? "<br>" : ", ");
            if (rc == TR_OK) rc = plot_escape(o, line);
        }
        tr_buf_release(&text);
        TR_TRY(rc);
        TR_TRY(tr_buf_puts(o, "</td></tr>\n"));
    }
    return tr_buf_puts(o, "</tbody></table></div>\n");
}

static const char explained[] =
    "<h2>How to read this</h2>\n<dl>"
    "<dt>loss</dt><dd>Mean of -ln(probability) over the tokens that are trained on, in nats: lower is better. Curves are means over a window of a twentieth of the run; "
    "the table's training loss is the mean over the last tenth of the steps. What lies above the top of the axis is cut.</dd>"
    "<dt>peak memory</dt><dd>The most that the run held at once: weights, gradients, optimizer state, activations and work space, counted at each allocation. Foretold: what "
    "<code>train plan</code> said before the run.</dd>"
    "<dt>optimizer state</dt><dd>Bytes that the optimizer keeps between steps. By formula: from the shapes alone; <code>train help optimizer.NAME</code> tells rule, keys and source.</dd>"
    "<dt>tokens/s</dt><dd>Training steps alone, without evaluation and snapshots. Where other programs ran at the same time it is less than the machine can do.</dd>"
    "<dt>learning rate</dt><dd>An optimizer is judged at the rate that it was given; another may suit it better. <code>[compare.NAME]</code> in the recipe sets it for one.</dd></dl>\n"
    "<p class=\"sub\">The numbers are beside this page: compare.csv, curves.csv, memory.csv, and each picture as .svg. Each optimizer's own report is report.html in the folder of its name.</p>\n";

static int page(struct tr_buf *o, const struct comparison *c)
{
    struct tr_buf title = { 0 }, recipe = { 0 };
    int rc;
    TR_GO(tr_buf_printf(&title, "%s: %zu optimizers compared", c->title, c->n));
    TR_GO(recipe_print(&c->m[0].r, &recipe));
    TR_GO(page_begin(o, title.data));
    TR_GO(about(o, c));
    TR_GO(findings(o, c));
    TR_GO(table(o, c));
    TR_GO(failures(o, c));
    TR_GO(tr_buf_puts(o, "<h2>Loss</h2>\n"));
    TR_GO(loss_pictures(o, c));
    TR_GO(memory_pictures(o, c));
    TR_GO(settings(o, c));
    TR_GO(tr_buf_puts(o, explained));
    rc = page_end(o, recipe.data);
done:
    tr_buf_release(&title);
    tr_buf_release(&recipe);
    return rc;
}

int compare_write(const struct comparison *c)
{
    static const struct { const char *name; int (*print)(struct tr_buf *o, const struct comparison *c); } files[] = {
        { "compare.csv", summary_csv }, { "curves.csv", curves_csv }, { "memory.csv", memory_csv }, { "compare.html", page } };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct tr_buf text = { 0 };
        int rc = files[i].print(&text, c);
        if (rc == TR_OK) rc = tr_write_file(c->dir, files[i].name, &text);
        tr_buf_release(&text);
        TR_TRY(rc);
    }
    return TR_OK;
}
