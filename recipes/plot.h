/* Line and area charts as SVG text. */
#ifndef RECIPE_PLOT_H
#define RECIPE_PLOT_H
#include "libtrain/base/buf.h"
#include <stdbool.h>

/* NAN: no point there. x, n: points of its own; NULL: those of the plot (always, in a stack). */
struct plot_series { const char *name, *colour; const double *y, *x; size_t n; };

struct plot {
    const char *title, *unit, *x_label;
    const double *x;
    size_t n;                       /* points */
    const struct plot_series *series;
    size_t n_series;
    bool stacked;                   /* areas on top of each other */
    const char *mark;               /* text at the highest point of the stack; NULL = none */
    const struct plot_series *over; /* a dashed line above a stack; NULL = none */
    bool from_zero;                 /* the axis begins at 0 */
    double x_to, y_to;              /* ends of the axes, so that plots share a scale; what is above is cut; 0 = by the points */
    int width, height;              /* 0: 860 by 300 */
    bool no_legend;
};

/* Appends <svg>...</svg>, which stands alone as a file too. Points beyond 2,000 are thinned to the extremes of equal stretches. */
int plot_svg(struct tr_buf *out, const struct plot *p);
/* Appends text with &, <, > and quotes escaped. */
int plot_escape(struct tr_buf *out, const char *text);

/* Mean over a fortieth of the points on either side: a centred window does not lag as a running mean does. */
void plot_smooth(double *out, const double *y, size_t n);

extern const char *const plot_colours[8];

#endif
