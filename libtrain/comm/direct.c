#include "libtrain/comm/direct.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/kernel.h"
#include <stdlib.h>

/* Bytes that a rank receives at a time for a sum. */
enum { AT_ONCE = 32 << 20 };

bool tr_direct(const struct tr_comm *c, const struct tr_tensor *t) { return c->exchange && (tr_rows(t) <= 1 || t->ld == tr_cols(t)); }

struct pieces { struct tr_device_piece *at; int n; };

static void put(struct pieces *p, void *at, size_t bytes, int peer, bool out)
{
    if (bytes) p->at[p->n++] = (struct tr_device_piece){ at, bytes, peer, out };
}

static int go(struct tr_comm *c, struct pieces *p, int peer)
{
    int rc = c->exchange(c, p->at, p->n, peer);
    p->n = 0;
    return rc;
}

/* Rows of rank r in round i, `each` at most: *begin and their number. */
static int64_t rows_of(const int64_t *first, int r, int64_t i, int64_t each, int64_t *begin)
{
    int64_t left = first[r + 1] - first[r] - i * each;
    *begin = first[r] + i * each;
    return left < 0 ? 0 : left < each ? left : each;
}

static char *row_at(const struct tr_tensor *t, int64_t row) { return (char *)t->data + (size_t)(row * tr_cols(t)) * tr_dtype_size(t->dtype); }

/* This rank's part comes with the others': `own` may lie in g. */
static int reduce_round(struct tr_comm *c, struct pieces *p, struct tr_tensor *own, const struct tr_tensor *g, const int64_t *first, int64_t i, int64_t each, char *in, bool add)
{
    int64_t begin, mine = rows_of(first, c->rank, i, each, &begin), at = begin - first[c->rank];
    size_t row = (size_t)tr_cols(g) * sizeof(float);
    for (int r = 0; r < c->size; r++) {
        int64_t n = rows_of(first, r, i, each, &begin);
        put(p, row_at(g, begin), (size_t)n * row, r, true);
        put(p, in + (size_t)(r * mine) * row, (size_t)mine * row, r, false);
    }
    TR_TRY(go(c, p, -1));
    if (!mine) return TR_OK;
    struct tr_tensor to = tr_comm_rows(own, at, mine);
    for (int r = 0; r < c->size; r++) {
        struct tr_tensor part = tr_tensor_view(in + (size_t)(r * mine) * row, TR_F32, to.ndim, to.dim);
        if (r == 0 && !add) tr_kernels()->copy(&to, &part);
        else tr_kernels()->add(&to, &to, &part);
    }
    return TR_OK;
}

int tr_direct_reduce(struct tr_comm *c, struct tr_tensor *own, const struct tr_tensor *g, const int64_t *first, bool add)
{
    int64_t most = 0, row = tr_cols(g) * (int64_t)sizeof(float), each = AT_ONCE / c->size / (row ? row : 1);
    struct pieces p = { 0 };
    void *in = NULL;
    int rc;
    for (int r = 0; r < c->size; r++) most = first[r + 1] - first[r] > most ? first[r + 1] - first[r] : most;
    each = each < 1 ? 1 : each > most ? most : each;
    TR_GO(tr_calloc(&p.at, 2 * (size_t)c->size, sizeof *p.at));
    TR_GO(tr_device_arena(&in, (size_t)(c->size * each * row), TR_COMMUNICATION));
    for (int64_t i = 0; i * each < most && !tr_mem_is_dry(); i++) TR_GO(reduce_round(c, &p, own, g, first, i, each, in, add));
done:
    tr_device_arena_free(in, TR_COMMUNICATION);
    free(p.at);
    return rc;
}

int tr_direct_gather(struct tr_comm *c, struct tr_tensor *t, const struct tr_tensor *own, const int64_t *first)
{
    size_t row = (size_t)tr_cols(t) * tr_dtype_size(t->dtype);
    struct pieces p = { 0 };
    if (tr_mem_is_dry()) return TR_OK;
    TR_TRY(tr_calloc(&p.at, 2 * (size_t)c->size, sizeof *p.at));
    char *mine = own ? own->data : row_at(t, first[c->rank]);
    for (int r = 0; r < c->size; r++) {
        if (r == c->rank && !own) continue;
        put(&p, mine, (size_t)(first[c->rank + 1] - first[c->rank]) * row, r, true);
        put(&p, row_at(t, first[r]), (size_t)(first[r + 1] - first[r]) * row, r, false);
    }
    int rc = go(c, &p, -1);
    free(p.at);
    return rc;
}

int tr_direct_pass(struct tr_comm *c, const struct tr_tensor *t, int peer, bool send)
{
    struct tr_device_piece piece;
    struct pieces p = { .at = &piece };
    put(&p, t->data, (size_t)tr_count(t) * tr_dtype_size(t->dtype), peer, send);
    return p.n && !tr_mem_is_dry() ? go(c, &p, peer) : TR_OK;
}
