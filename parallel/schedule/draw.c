#include "libtrain/base/status.h"
#include "parallel/schedule/schedule_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int par_schedule_text(struct tr_buf *out, const struct par_schedule *s)
{
    char text[32];
    for (int r = 0; r < s->ranks; r++)
        for (int64_t i = s->row[r]; i < s->row[r + 1]; i++)
            TR_TRY(tr_buf_printf(out, "%s%c", par_pass_text(text, sizeof text, s, -1, &s->pass[i]), i + 1 < s->row[r + 1] ? ' ' : '\n'));
    return TR_OK;
}

/* ---- text: a column is a stretch of time, and shows what has most of it */

enum { MARKS = 9 };
static const char marks[MARKS + 1] = ".FfBbWwST";

static int mark_of(const struct par_pass *p) { return p->kind >= PAR_S ? 7 + (p->kind == PAR_T) : 1 + 2 * p->kind + p->chunk % 2; }

static int draw_row(struct tr_buf *out, const struct par_schedule *s, const struct par_simulation *m, int rank, double (*share)[MARKS], int width)
{
    double column = m->seconds / width;
    for (int x = 0; x < width; x++)
        for (int k = 0; k < MARKS; k++) share[x][k] = k ? 0 : column;
    for (int64_t i = s->row[rank]; i < s->row[rank + 1] && column > 0; i++)
        for (int x = (int)(m->begin[i] / column); x < width && x * column < m->end[i]; x++) {
            double from = x * column > m->begin[i] ? x * column : m->begin[i], to = (x + 1) * column < m->end[i] ? (x + 1) * column : m->end[i];
            if (to <= from) continue;
            share[x][mark_of(&s->pass[i])] += to - from;
            share[x][0] -= to - from;
        }
    TR_TRY(tr_buf_printf(out, "%3d ", rank));
    for (int x = 0; x < width; x++) {
        int most = 0;
        for (int k = 1; k < MARKS; k++)
            if (share[x][k] > share[x][most] + 1e-9 * column) most = k;
        TR_TRY(tr_buf_add(out, &marks[most], 1));
    }
    return tr_buf_puts(out, "\n");
}

int par_schedule_draw(struct tr_buf *out, const struct par_schedule *s, const struct par_simulation *m, int width)
{
    double (*share)[MARKS] = NULL;
    int rc;
    TR_GO(tr_calloc(&share, (size_t)width, sizeof *share));
    for (int r = 0; r < s->ranks; r++) TR_GO(draw_row(out, s, m, r, share, width));
    rc = tr_buf_printf(out, "    F forward, B backward%s%s%s, . waiting%s\n", s->kind->split ? " (input)" : "", s->kind->split ? ", W backward (weights)" : "",
                       s->vocabulary ? ", S and T vocabulary" : "", s->chunks > 1 ? "; small letters: every second stage of a rank" : "");
done:
    free(share);
    return rc;
}

/* ---- SVG: a band a rank, under it the bytes it holds */

enum { LEFT = 52, TOP = 34, BAND = 22, BYTES = 12, GAP = 4, WIDE = 1000 };

struct moment { double when, bytes; };

static int by_when(const void *a, const void *b)
{
    const struct moment *x = a, *y = b;
    if (x->when != y->when) return x->when < y->when ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* what ends gives back before what begins takes */
}

static int svg_bytes(struct tr_buf *out, const struct par_schedule *s, const struct par_simulation *m, const struct par_costs *c, int rank, double y, double top)
{
    struct moment *at = NULL;
    int64_t n = 0;
    double now = 0, scale = WIDE / m->seconds;
    int rc;
    TR_GO(tr_calloc(&at, 2 * (size_t)par_row_size(s), sizeof *at));
    for (int64_t i = s->row[rank]; i < s->row[rank + 1]; i++) {
        double back, take = par_pass_bytes(s, c, rank, &s->pass[i], &back);
        at[n++] = (struct moment){ m->begin[i], take };
        at[n++] = (struct moment){ m->end[i], -back };
    }
    qsort(at, (size_t)n, sizeof *at, by_when);
    TR_GO(tr_buf_printf(out, "<path class='m' d='M%d %.1f", LEFT, y + BYTES));
    for (int64_t i = 0; i < n; i++) {
        now += at[i].bytes;
        if (i + 1 < n && at[i + 1].when <= at[i].when) continue;
        TR_GO(tr_buf_printf(out, "H%.1fV%.1f", LEFT + at[i].when * scale, y + BYTES - BYTES * (now > 0 ? now : 0) / top));
    }
    rc = tr_buf_printf(out, "V%.1fZ'><title>rank %d: at most %.4g bytes</title></path>\n", y + BYTES, rank, m->peak[rank]);
done:
    free(at);
    return rc;
}

static int svg_rank(struct tr_buf *out, const struct par_schedule *s, const struct par_simulation *m, int rank, double y)
{
    double scale = WIDE / m->seconds;
    char text[32];
    TR_TRY(tr_buf_printf(out, "<text x='4' y='%.0f'>rank %d</text>\n", y + 15, rank));
    for (int64_t i = s->row[rank]; i < s->row[rank + 1]; i++) {
        const struct par_pass *p = &s->pass[i];
        double x = LEFT + m->begin[i] * scale, w = (m->end[i] - m->begin[i]) * scale;
        TR_TRY(tr_buf_printf(out, "<rect class='%c%d' x='%.2f' y='%.0f' width='%.2f' height='%d'><title>%s, %.4g to %.4g s</title></rect>\n", "FBWST"[p->kind], p->chunk % 2, x, y, w, BAND,
                             par_pass_text(text, sizeof text, s, rank, p), m->begin[i], m->end[i]));
        if (w > 14) TR_TRY(tr_buf_printf(out, "<text x='%.1f' y='%.0f' class='n'>%d</text>\n", x + w / 2, y + 15, p->micro));
    }
    return TR_OK;
}

int par_schedule_svg(struct tr_buf *out, const struct par_schedule *s, const struct par_simulation *m, const struct par_costs *c, const char *title)
{
    double top = 0;
    int step = BAND + BYTES + GAP;
    for (int r = 0; r < s->ranks; r++)
        if (m->peak[r] > top) top = m->peak[r];
    TR_TRY(tr_buf_printf(out, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' font-family='sans-serif' font-size='11'>\n<style>"
                         ".F0{fill:#4e79a7}.F1{fill:#9dbbd8}.B0{fill:#59a14f}.B1{fill:#a5cf9f}.W0{fill:#edc948}.W1{fill:#f5e29b}.S0{fill:#b07aa1}.T0{fill:#e15759}.m{fill:#999}.n{text-anchor:middle;font-size:9px}"
                         "rect{stroke:#fff;stroke-width:.3}</style>\n<rect width='100%%' height='100%%' fill='#fff'/>\n", LEFT + WIDE + 12, TOP + s->ranks * step + 24));
    TR_TRY(tr_buf_printf(out, "<text x='4' y='18' font-size='13'>%s</text>\n", title));
    for (int r = 0; r < s->ranks && m->seconds > 0; r++) {
        TR_TRY(svg_rank(out, s, m, r, TOP + r * step));
        if (top > 0) TR_TRY(svg_bytes(out, s, m, c, r, TOP + r * step + BAND, top));
    }
    return tr_buf_printf(out, "<text x='4' y='%d'>blue forward, green backward%s%s; lighter: every second stage of a rank; grey: bytes of activations, at most %.4g</text>\n</svg>\n", TOP + s->ranks * step + 14,
                         s->kind->split ? " towards inputs, yellow towards weights" : "", s->vocabulary ? ", violet and red vocabulary (S, T)" : "", top);
}
