/* Who owns what: rows of every parameter dealt to ranks. The same answer on every rank, from sizes alone. */
#ifndef PAR_PARTITION_H
#define PAR_PARTITION_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* rows: 1 for a vector; by_rows: may be cut between rows, else one rank has all; bytes: what weighs. */
struct par_item { int64_t rows; bool by_rows; size_t bytes; };

/* first[i * (size + 1) + r] = first row of item i on rank r, with the end as last. What may be cut is cut evenly; the rest
 * goes, heaviest first, to the rank that has least; ties by index. Errors: TR_EFAIL (memory). */
int par_deal(int64_t *first, const struct par_item *item, int64_t n, int size);

/* load[r] = bytes that rank r was dealt. */
void par_loads(size_t *load, const int64_t *first, const struct par_item *item, int64_t n, int size);

#endif
