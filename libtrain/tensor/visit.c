#include "libtrain/tensor/visit.h"

int tr_owned_share(const struct tr_owned *v, int64_t group, const char *name, const struct tr_tensor *t)
{
    int64_t whole = t->dim[0], begin = whole / v->size * v->rank + whole % v->size * v->rank / v->size;
    int64_t end = whole / v->size * (v->rank + 1) + whole % v->size * (v->rank + 1) / v->size;
    if (t->ndim == 1) {
        begin = 0;
        end = group % v->size == v->rank ? whole : 0;
    }
    return v->rows(v->self, group, name, t, begin, end - begin, begin, whole);
}
