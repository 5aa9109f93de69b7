/* Memory within one step: the ledger's categories over time, as a picture. */
#ifndef RECIPE_TRACE_H
#define RECIPE_TRACE_H
#include "libtrain/base/mem.h"

struct trace;
/* Starts watching the ledger. */
int trace_begin(struct trace **out);
/* Stops; writes folder/memory.svg with the peak marked, and its numbers as folder/memory.csv. Frees the trace. */
int trace_end(struct trace *t, const char *folder);
/* Stops without a picture; NULL is fine. */
void trace_free(struct trace *t);

/* memory.csv read back: milliseconds and bytes of each category. n is 0 when there is none. The caller frees ms. */
struct trace_columns { double *ms, *bytes[TR_CATEGORIES]; size_t n; };
int trace_read(struct trace_columns *out, const char *folder);

#endif
