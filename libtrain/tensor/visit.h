/* One visitor, many readers: whoever holds state lists it once; snapshots, shards, forecasts and reports read the list. */
#ifndef TR_VISIT_H
#define TR_VISIT_H
#include "libtrain/tensor/tensor.h"

struct tr_visitor {
    void *self;
    /* A named tensor ("param/NAME", "optimizer/NAME/m", ...); may be overwritten through it when state is restored. */
    int (*tensor)(void *self, const char *name, struct tr_tensor *t);
    /* A named run of plain bytes in host memory (counters, positions): `count` numbers of 8 bytes. */
    int (*words)(void *self, const char *name, uint64_t *words, int64_t count);
    int64_t step;      /* when state is restored: the step after which it was saved; else 0 */
    bool only_reads;   /* nothing is overwritten: state that lives in a file need not be written back */
};

#endif
