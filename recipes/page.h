/* The frame of an HTML page that needs nothing from elsewhere; light and dark. */
#ifndef RECIPE_PAGE_H
#define RECIPE_PAGE_H
#include "libtrain/base/buf.h"

/* Everything up to and with the heading. */
int page_begin(struct tr_buf *o, const char *title);
/* A number with its name underneath. */
int page_card(struct tr_buf *o, const char *name, int digits, double value, const char *unit);
/* "2 min 05 s" */
int page_duration(struct tr_buf *o, double seconds);
/* The recipe, folded away, and the end of the page. */
int page_end(struct tr_buf *o, const char *recipe);

#endif
