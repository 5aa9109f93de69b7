#include "libtrain/tensor/visit.h"

static int64_t part(int64_t n, int i, int of) { return n / of * i + n % of * i / of; }

int tr_owned_part(const struct tr_owned *v, int64_t group, const char *name, const struct tr_tensor *t, int64_t begin, int64_t whole, int holder, int holders)
{
    int64_t n = t->dim[0], from = part(n, holder, holders), to = part(n, holder + 1, holders);
    if (t->ndim == 1) {
        from = 0;
        to = group % holders == holder ? n : 0;
    }
    return n ? v->rows(v->self, group, name, t, from, to - from, begin + from, whole) : 0;
}

int tr_owned_share(const struct tr_owned *v, int64_t group, const char *name, const struct tr_tensor *t) { return tr_owned_part(v, group, name, t, 0, t->dim[0], v->rank, v->size); }
