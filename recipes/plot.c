#include "recipes/plot.h"
#include "libtrain/base/status.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const plot_colours[8] = { "#3b6fb6", "#d9822b", "#4d9a57", "#b5453c", "#7d5ba6", "#8a6d4b", "#c65f9c", "#7f7f7f" };

/* Inside each picture, so that it also stands alone. */
static const char style[] = "<style>svg{background:#fff}svg text{font-family:system-ui,sans-serif}.t{font-size:14px;font-weight:600;"
    "fill:#222}.l{font-size:12px;fill:#555}.g{stroke:#e6e6e6}.m{fill:#222}</style>";

enum { W = 860, H = 300, LEFT = 70, RIGHT = 20, TOP = 34, BOTTOM = 46 };

int plot_escape(struct tr_buf *out, const char *text)
{
    for (; *text; text++) {
        const char *e = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : *text == '"' ? "&quot;" : NULL;
        TR_TRY(e ? tr_buf_puts(out, e) : tr_buf_add(out, text, 1));
    }
    return TR_OK;
}

/* A round step that cuts `span` into at most `most` parts. */
static double nice(double span, int most)
{
    double raw = span / most, unit = pow(10, floor(log10(raw))), f = raw / unit;
    return unit * (f <= 1 ? 1 : f <= 2 ? 2 : f <= 5 ? 5 : 10);
}

struct frame { double x0, x1, y0, y1; };

static double px(const struct frame *f, double x) { return LEFT + (x - f->x0) / (f->x1 - f->x0) * (W - LEFT - RIGHT); }
static double py(const struct frame *f, double y) { return H - BOTTOM - (y - f->y0) / (f->y1 - f->y0) * (H - TOP - BOTTOM); }

static struct frame limits(const struct plot *p)
{
    struct frame f = { INFINITY, -INFINITY, p->stacked || p->from_zero ? 0 : INFINITY, -INFINITY };
    for (size_t i = 0; i < p->n; i++) {
        double sum = 0;
        f.x0 = fmin(f.x0, p->x[i]);
        f.x1 = fmax(f.x1, p->x[i]);
        for (size_t k = 0; k < p->n_series; k++) {
            double y = p->series[k].y[i];
            if (!isfinite(y)) continue;
            sum += y;
            if (!p->stacked) f.y0 = fmin(f.y0, y), f.y1 = fmax(f.y1, y);
        }
        if (p->stacked) f.y1 = fmax(f.y1, sum);
        if (p->over && isfinite(p->over->y[i])) f.y1 = fmax(f.y1, p->over->y[i]);
    }
    if (!(f.x1 > f.x0)) f.x0 -= 0.5, f.x1 = f.x0 + 1;
    if (!isfinite(f.y0) || !isfinite(f.y1)) f.y0 = 0, f.y1 = 1;
    if (!(f.y1 > f.y0)) f.y0 -= fabs(f.y0) * 0.1 + 0.1, f.y1 += fabs(f.y1) * 0.1 + 0.1;
    if (p->stacked || p->from_zero) f.y1 *= 1.08;
    return f;
}

static int axes(struct tr_buf *o, const struct plot *p, const struct frame *f)
{
    TR_TRY(tr_buf_printf(o, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">%s"
                         "<text x=\"%d\" y=\"18\" class=\"t\">%s</text>", W, H, p->title, style, LEFT, p->title));
    double step = nice(f->y1 - f->y0, 6);
    for (double y = ceil(f->y0 / step) * step; y <= f->y1 + 1e-9 * step; y += step)
        TR_TRY(tr_buf_printf(o, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" class=\"g\"/><text x=\"%d\" y=\"%.1f\" class=\"l\" text-anchor=\"end\">%.6g</text>",
                             LEFT, W - RIGHT, py(f, y), py(f, y), LEFT - 8, py(f, y) + 4, fabs(y) < 1e-12 ? 0 : y));
    step = nice(f->x1 - f->x0, 10);
    if (step < 1 && f->x1 - f->x0 >= 4) step = 1;
    for (double x = ceil(f->x0 / step) * step; x <= f->x1 + 1e-9 * step; x += step)
        TR_TRY(tr_buf_printf(o, "<text x=\"%.1f\" y=\"%d\" class=\"l\" text-anchor=\"middle\">%.6g</text>", px(f, x), H - BOTTOM + 18, fabs(x) < 1e-12 ? 0 : x));
    return tr_buf_printf(o, "<text x=\"%d\" y=\"%d\" class=\"l\" text-anchor=\"middle\">%s</text><text x=\"%d\" y=\"18\" class=\"l\" text-anchor=\"end\">%s</text>",
                         (W + LEFT - RIGHT) / 2, H - 10, p->x_label, LEFT - 8, p->unit);
}

static int line(struct tr_buf *o, const struct plot *p, const struct frame *f, const struct plot_series *s, const char *look)
{
    size_t stride = p->n > 2000 ? (p->n + 999) / 1000 : 1, points = 0;
    TR_TRY(tr_buf_printf(o, "<polyline fill=\"none\" stroke=\"%s\" %s stroke-linejoin=\"round\" points=\"", s->colour, look));
    for (size_t at = 0; at < p->n; at += stride) { /* of each stretch its lowest and highest point, in order */
        size_t lo = p->n, hi = p->n;
        for (size_t i = at; i < p->n && i < at + stride; i++) {
            if (!isfinite(s->y[i])) continue;
            if (lo == p->n || s->y[i] < s->y[lo]) lo = i;
            if (hi == p->n || s->y[i] > s->y[hi]) hi = i;
        }
        size_t pair[2] = { lo < hi ? lo : hi, lo < hi ? hi : lo };
        for (int k = 0; k < 2; k++)
            if (pair[k] < p->n && (k == 0 || pair[1] != pair[0])) {
                TR_TRY(tr_buf_printf(o, "%.1f,%.1f ", px(f, p->x[pair[k]]), py(f, s->y[pair[k]])));
                points++;
            }
    }
    TR_TRY(tr_buf_puts(o, "\"/>"));
    for (size_t i = 0; points <= 30 && s != p->over && i < p->n; i++) /* few points are shown as such */
        if (isfinite(s->y[i])) TR_TRY(tr_buf_printf(o, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"/>", px(f, p->x[i]), py(f, s->y[i]), s->colour));
    return TR_OK;
}

static double below(const struct plot *p, size_t k, size_t i)
{
    double sum = 0;
    for (size_t j = 0; j < k; j++) sum += isfinite(p->series[j].y[i]) ? p->series[j].y[i] : 0;
    return sum;
}

static int area(struct tr_buf *o, const struct plot *p, const struct frame *f, size_t k)
{
    size_t stride = p->n > 2000 ? p->n / 1000 : 1, last = p->n ? (p->n - 1) / stride * stride : 0;
    TR_TRY(tr_buf_printf(o, "<polygon fill=\"%s\" fill-opacity=\"0.85\" points=\"", p->series[k].colour));
    for (size_t i = 0; i < p->n; i += stride) TR_TRY(tr_buf_printf(o, "%.1f,%.1f ", px(f, p->x[i]), py(f, below(p, k + 1, i))));
    for (size_t i = last;; i -= stride) {
        TR_TRY(tr_buf_printf(o, "%.1f,%.1f ", px(f, p->x[i]), py(f, below(p, k, i))));
        if (i < stride) break;
    }
    return tr_buf_puts(o, "\"/>");
}

/* From right to left; a width of 7 a letter is what fonts of 12 px need at most. */
static int legend(struct tr_buf *o, const struct plot *p)
{
    double x = W - RIGHT;
    for (size_t k = p->n_series + (p->over != NULL); k-- > 0;) {
        const struct plot_series *s = k < p->n_series ? &p->series[k] : p->over;
        x -= 7.0 * (double)strlen(s->name) + 26;
        TR_TRY(tr_buf_printf(o, "<rect x=\"%.0f\" y=\"%d\" width=\"11\" height=\"%d\" rx=\"2\" fill=\"%s\"/>"
                             "<text x=\"%.0f\" y=\"19\" class=\"l\">%s</text>",
                             x, s == p->over ? 13 : 9, s == p->over ? 3 : 11, s->colour, x + 15, s->name));
    }
    return TR_OK;
}

int plot_svg(struct tr_buf *out, const struct plot *p)
{
    struct frame f = limits(p);
    TR_TRY(axes(out, p, &f));
    for (size_t k = 0; k < p->n_series && p->n; k++) TR_TRY(p->stacked ? area(out, p, &f, k) : line(out, p, &f, &p->series[k], "stroke-width=\"1.8\""));
    if (p->over && p->n) TR_TRY(line(out, p, &f, p->over, "stroke-width=\"1.6\" stroke-dasharray=\"5 3\""));
    if (p->mark && p->n) {
        size_t at = 0;
        for (size_t i = 1; i < p->n; i++)
            if (below(p, p->n_series, i) > below(p, p->n_series, at)) at = i;
        double x = px(&f, p->x[at]), y = py(&f, below(p, p->n_series, at));
        TR_TRY(tr_buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" class=\"m\"/><text x=\"%.1f\" y=\"%.1f\" class=\"l\" text-anchor=\"%s\">%s</text>", x, y,
                             x > W / 2 ? x - 6 : x + 6, y - 6, x > W / 2 ? "end" : "start", p->mark));
    }
    TR_TRY(legend(out, p));
    return tr_buf_puts(out, "</svg>\n");
}
