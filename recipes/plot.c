#include "recipes/plot.h"
#include "libtrain/base/status.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Of a lightness that shows on white and on black. */
const char *const plot_colours[8] = { "#4479c4", "#d9822b", "#4d9a57", "#c14b41", "#8a67b8", "#9a7a54", "#c65f9c", "#7f7f7f" };

/* Inside each picture, so that it also stands alone. */
static const char style[] = "<style>svg{background:#fff;color:#222}svg text{font-family:system-ui,sans-serif}.t{font-size:14px;font-weight:600;"
    "fill:#222}.l{font-size:12px;fill:#555}.g{stroke:#e6e6e6}@media(prefers-color-scheme:dark){svg{background:#1c1e22;color:#ddd}"
    ".t{fill:#e4e4e4}.l{fill:#aaa}.g{stroke:#34373d}}</style>";

enum { LEFT = 70, RIGHT = 20, TOP = 34, BOTTOM = 46, LEGEND_ROW = 17 };

int plot_escape(struct tr_buf *out, const char *text)
{
    for (; *text; text++) {
        const char *e = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : *text == '"' ? "&quot;" : NULL;
        TR_TRY(e ? tr_buf_puts(out, e) : tr_buf_add(out, text, 1));
    }
    return TR_OK;
}

void plot_smooth(double *out, const double *y, size_t n)
{
    size_t half = n / 40 + 1;
    for (size_t i = 0; i < n; i++) {
        size_t side = i < half ? i : half, count = 0;
        if (n - 1 - i < side) side = n - 1 - i; /* narrower at the ends, so that it stays centred */
        double sum = 0;
        for (size_t k = i - side; k <= i + side; k++)
            if (isfinite(y[k])) sum += y[k], count++;
        out[i] = count ? sum / (double)count : NAN;
    }
}

/* A round step that cuts `span` into at most `most` parts. */
static double nice(double span, int most)
{
    double raw = span / most, unit = pow(10, floor(log10(raw))), f = raw / unit;
    return unit * (f <= 1 ? 1 : f <= 2 ? 2 : f <= 5 ? 5 : 10);
}

/* Numbers at the edges of the axes, and where these lie in the picture. */
struct frame { double x0, x1, y0, y1, left, right, top, bottom, width, height; };

static double px(const struct frame *f, double x) { return f->left + (x - f->x0) / (f->x1 - f->x0) * (f->right - f->left); }
static double py(const struct frame *f, double y) { return f->bottom - (y - f->y0) / (f->y1 - f->y0) * (f->bottom - f->top); }

static const double *x_of(const struct plot *p, const struct plot_series *s) { return s->x ? s->x : p->x; }
static size_t n_of(const struct plot *p, const struct plot_series *s) { return s->x ? s->n : p->n; }

static double below(const struct plot *p, size_t k, size_t i)
{
    double sum = 0;
    for (size_t j = 0; j < k; j++) sum += isfinite(p->series[j].y[i]) ? p->series[j].y[i] : 0;
    return sum;
}

static void widen(struct frame *f, const struct plot *p, const struct plot_series *s, bool heights)
{
    const double *x = x_of(p, s);
    for (size_t i = 0; i < n_of(p, s); i++) {
        f->x0 = fmin(f->x0, x[i]);
        f->x1 = fmax(f->x1, x[i]);
        if (heights && isfinite(s->y[i])) f->y0 = fmin(f->y0, s->y[i]), f->y1 = fmax(f->y1, s->y[i]);
    }
}

static struct frame limits(const struct plot *p)
{
    struct frame f = { INFINITY, -INFINITY, p->stacked || p->from_zero ? 0 : INFINITY, -INFINITY, .width = p->width ? p->width : 860, .height = p->height ? p->height : 300 };
    f.left = LEFT, f.right = f.width - RIGHT, f.top = TOP, f.bottom = f.height - BOTTOM;
    for (size_t k = 0; k < p->n_series; k++) widen(&f, p, &p->series[k], !p->stacked);
    if (p->over) widen(&f, p, p->over, true);
    for (size_t i = 0; p->stacked && i < p->n; i++) f.y1 = fmax(f.y1, below(p, p->n_series, i));
    if (!isfinite(f.x0)) f.x0 = 0, f.x1 = 1;
    if (!(f.x1 > f.x0)) f.x0 -= 0.5, f.x1 = f.x0 + 1;
    if (!isfinite(f.y0) || !isfinite(f.y1)) f.y0 = 0, f.y1 = 1;
    if (!(f.y1 > f.y0)) f.y0 -= fabs(f.y0) * 0.1 + 0.1, f.y1 += fabs(f.y1) * 0.1 + 0.1;
    if (p->stacked || p->from_zero) f.y1 *= 1.08;
    if (p->x_to > f.x0) f.x1 = p->x_to;
    if (p->y_to > f.y0) f.y1 = p->y_to;
    return f;
}

static int axes(struct tr_buf *o, const struct plot *p, const struct frame *f)
{
    double step = nice(f->y1 - f->y0, f->height < 280 ? 4 : 6);
    for (double y = ceil(f->y0 / step) * step; y <= f->y1 + 1e-9 * step; y += step)
        TR_TRY(tr_buf_printf(o, "<line x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\" class=\"g\"/><text x=\"%.0f\" y=\"%.1f\" class=\"l\" text-anchor=\"end\">%.6g</text>",
                             f->left, f->right, py(f, y), py(f, y), f->left - 8, py(f, y) + 4, fabs(y) < 1e-12 ? 0 : y));
    step = nice(f->x1 - f->x0, f->width < 600 ? 5 : 10);
    if (step < 1 && f->x1 - f->x0 >= 4) step = 1;
    for (double x = ceil(f->x0 / step) * step; x <= f->x1 + 1e-9 * step; x += step)
        TR_TRY(tr_buf_printf(o, "<text x=\"%.1f\" y=\"%.0f\" class=\"l\" text-anchor=\"middle\">%.6g</text>", px(f, x), f->bottom + 18, fabs(x) < 1e-12 ? 0 : x));
    return tr_buf_printf(o, "<text x=\"%.0f\" y=\"%.0f\" class=\"l\" text-anchor=\"middle\">%s</text><text x=\"%.0f\" y=\"18\" class=\"l\" text-anchor=\"end\">%s</text>",
                         (f->left + f->right) / 2, f->height - 10, p->x_label, f->left - 8, p->unit);
}

static int line(struct tr_buf *o, const struct plot *p, const struct frame *f, const struct plot_series *s, const char *look)
{
    const double *x = x_of(p, s);
    size_t n = n_of(p, s), stride = n > 2000 ? (n + 999) / 1000 : 1, points = 0;
    TR_TRY(tr_buf_printf(o, "<polyline fill=\"none\" stroke=\"%s\" %s stroke-linejoin=\"round\" points=\"", s->colour, look));
    for (size_t at = 0; at < n; at += stride) { /* of each stretch its lowest and highest point, in order */
        size_t lo = n, hi = n;
        for (size_t i = at; i < n && i < at + stride; i++) {
            if (!isfinite(s->y[i])) continue;
            if (lo == n || s->y[i] < s->y[lo]) lo = i;
            if (hi == n || s->y[i] > s->y[hi]) hi = i;
        }
        size_t pair[2] = { lo < hi ? lo : hi, lo < hi ? hi : lo };
        for (int k = 0; k < 2; k++)
            if (pair[k] < n && (k == 0 || pair[1] != pair[0])) {
                TR_TRY(tr_buf_printf(o, "%.1f,%.1f ", px(f, x[pair[k]]), py(f, s->y[pair[k]])));
                points++;
            }
    }
    TR_TRY(tr_buf_puts(o, "\"/>"));
    for (size_t i = 0; points <= 30 && s != p->over && i < n; i++) /* few points are shown as such */
        if (isfinite(s->y[i])) TR_TRY(tr_buf_printf(o, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"/>", px(f, x[i]), py(f, s->y[i]), s->colour));
    return TR_OK;
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

/* What wide fonts of 12 px need. */
static double width_of(const char *name) { return 7.4 * (double)strlen(name) + 28; }

/* Whether the names fit on the line of the title. */
static bool one_row(const struct plot *p, const struct frame *f)
{
    double sum = f->left + 9 * (double)strlen(p->title);
    for (size_t k = 0; k < p->n_series; k++) sum += width_of(p->series[k].name);
    return sum + (p->over ? width_of(p->over->name) : 0) <= f->right;
}

/* Beside the title from right to left, or in rows beneath it; the frame then begins lower. */
static int legend(struct tr_buf *o, const struct plot *p, struct frame *f)
{
    bool beside = one_row(p, f);
    double x = beside ? f->right : f->left, y = beside ? 9 : 9 + LEGEND_ROW;
    size_t n = p->n_series + (p->over != NULL);
    for (size_t i = 0; i < n; i++) {
        size_t k = beside ? n - 1 - i : i;
        const struct plot_series *s = k < p->n_series ? &p->series[k] : p->over;
        double w = width_of(s->name);
        if (beside) x -= w;
        else if (x + w > f->right) x = f->left, y += LEGEND_ROW;
        TR_TRY(tr_buf_printf(o, "<rect x=\"%.0f\" y=\"%.0f\" width=\"11\" height=\"%d\" rx=\"2\" fill=\"%s\"/><text x=\"%.0f\" y=\"%.0f\" class=\"l\">%s</text>",
                             x, s == p->over ? y + 4 : y, s == p->over ? 3 : 11, s->colour, x + 15, y + 10, s->name));
        if (!beside) x += w;
    }
    if (!beside) f->top = y + LEGEND_ROW + 8;
    return TR_OK;
}

/* What is drawn inside the axes; an <svg> of its own cuts what lies beyond. */
static int curves(struct tr_buf *o, const struct plot *p, const struct frame *f)
{
    double w = f->right - f->left, h = f->bottom - f->top, beside = 3; /* so that points at the edge stay round */
    TR_TRY(tr_buf_printf(o, "<svg x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" viewBox=\"%.1f %.1f %.1f %.1f\" style=\"background:none\">", f->left - beside, f->top, w + 2 * beside,
                         h + beside, f->left - beside, f->top, w + 2 * beside, h + beside));
    for (size_t k = 0; k < p->n_series; k++) {
        const struct plot_series *s = &p->series[k];
        if (n_of(p, s)) TR_TRY(p->stacked ? area(o, p, f, k) : line(o, p, f, s, k < 8 ? "stroke-width=\"1.8\"" : "stroke-width=\"1.8\" stroke-dasharray=\"7 3\""));
    }
    if (p->over && p->n) TR_TRY(line(o, p, f, p->over, "stroke-width=\"1.6\" stroke-dasharray=\"5 3\""));
    return tr_buf_puts(o, "</svg>");
}

static int mark(struct tr_buf *o, const struct plot *p, const struct frame *f)
{
    size_t at = 0;
    for (size_t i = 1; i < p->n; i++)
        if (below(p, p->n_series, i) > below(p, p->n_series, at)) at = i;
    double x = px(f, p->x[at]), y = py(f, below(p, p->n_series, at));
    bool right = x > f->width / 2;
    return tr_buf_printf(o, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"currentColor\"/><text x=\"%.1f\" y=\"%.1f\" class=\"l\" text-anchor=\"%s\">%s</text>", x, y,
                         right ? x - 6 : x + 6, y - 6, right ? "end" : "start", p->mark);
}

int plot_svg(struct tr_buf *out, const struct plot *p)
{
    struct frame f = limits(p);
    TR_TRY(tr_buf_printf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">%s<text x=\"%.0f\" y=\"18\" class=\"t\">%s</text>",
                         f.width, f.height, p->title, style, f.left, p->title));
    if (!p->no_legend) TR_TRY(legend(out, p, &f));
    TR_TRY(axes(out, p, &f));
    TR_TRY(curves(out, p, &f));
    if (p->mark && p->n) TR_TRY(mark(out, p, &f));
    return tr_buf_puts(out, "</svg>\n");
}
