/* Line and area charts as SVG text. */
#ifndef RECIPE_PLOT_H
#define RECIPE_PLOT_H
#include "libtrain/base/buf.h"
#include <stdbool.h>

struct plot_series { const char *name, *colour; const double *y; };   /* NAN: no point there */

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
};

/* Appends <svg>...</svg>, which stands alone as a file too. Points beyond 2,000 are thinned to the extremes of equal stretches. */
int plot_svg(struct tr_buf *out, const struct plot *p);
/* Appends text with &, <, > and quotes escaped. */
int plot_escape(struct tr_buf *out, const char *text);

extern const char *const plot_colours[8];

#endif
