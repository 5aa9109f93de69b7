#include "checkpoint/part.h"
#include "checkpoint/file.h"

size_t ckpt_part_room(size_t bytes) { return bytes > CKPT_PART ? bytes : CKPT_PART; }

struct ckpt_parts ckpt_parts(const struct tr_tensor *t, size_t most)
{
    struct ckpt_parts p = { 0 };
    p.bytes = tr_dtype_size(t->dtype);
    for (int i = 1; i < t->ndim; i++) p.bytes *= (size_t)t->dim[i];
    p.each = p.bytes && p.bytes < most ? (int64_t)(most / p.bytes) : 1;
    if (p.each > t->dim[0]) p.each = t->dim[0];
    return p;
}

bool ckpt_part_next(struct ckpt_parts *p, const struct tr_tensor *t, struct tr_tensor *view, int64_t *begin, int64_t *n)
{
    if (p->bytes == 0 || p->at >= t->dim[0]) return false;
    *begin = p->at;
    *n = t->dim[0] - p->at < p->each ? t->dim[0] - p->at : p->each;
    p->at += *n;
    int64_t rows = t->ndim > 1 ? tr_rows(t) / t->dim[0] : 0;
    *view = t->ndim > 1 ? tr_rows_view(t, *begin * rows, *n * rows) : tr_cols_view(t, *begin, *n);
    return true;
}
