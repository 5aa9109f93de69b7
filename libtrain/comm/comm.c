#include "libtrain/comm/comm.h"
#include "libtrain/comm/direct.h"
#include "libtrain/base/buf.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/base/status.h"
#include <stdlib.h>
#include <string.h>

/* Bytes that all ranks together hold in one direction at a time; a row is never cut. */
enum { TOGETHER = 4 << 20 };

/* What all ranks send when so many bytes go to all but one of them. */
static void count(struct tr_comm *c, int64_t rows, size_t bytes) { c->moved += (uint64_t)rows * bytes * (uint64_t)(c->size - 1); }

/* ---- one rank */

static int alone_move(struct tr_comm *c, const void *in, const size_t *in_n, void *out, const size_t *out_n)
{
    memcpy(out, in, out_n[0]);
    return TR_OK;
}

static int alone_gather(struct tr_comm *c, const void *in, void *out, const size_t *n) { return alone_move(c, in, n, out, n); }
static int alone_barrier(struct tr_comm *c) { return TR_OK; }
static int alone_send(struct tr_comm *c, const void *in, size_t n, int to) { return tr_fail(TR_EFAIL, "one rank alone has nobody to send to; this is a defect of the program"); }
static int alone_receive(struct tr_comm *c, void *out, size_t n, int from) { return alone_send(c, out, n, from); }

static const struct tr_comm_kind alone_kind = { "one rank", alone_move, alone_gather, alone_barrier, alone_send, alone_receive };
static struct tr_comm alone = { .kind = &alone_kind, .size = 1, .local = 1, .doing = "" };

struct tr_comm *tr_comm_alone(void) { return &alone; }

/* ---- rows in rounds */

struct tr_tensor tr_comm_rows(const struct tr_tensor *t, int64_t begin, int64_t n)
{
    if (t->ndim > 1) return tr_rows_view(t, begin, n);
    struct tr_tensor v = *t;
    v.owner = 0;
    if (n == 0) v.dim[0] = 0;
    return v;
}

struct rounds {
    const int64_t *first;
    int64_t each, n;             /* rows of each rank in a round; rounds */
    size_t row;                  /* bytes */
    size_t *in, *out;            /* bytes for and from each rank */
};

static int rounds_init(struct rounds *k, const struct tr_comm *c, const struct tr_tensor *t, const int64_t *first)
{
    int64_t most = 0;
    *k = (struct rounds){ .first = first, .row = (size_t)tr_cols(t) * tr_dtype_size(t->dtype) };
    for (int r = 0; r < c->size; r++) most = first[r + 1] - first[r] > most ? first[r + 1] - first[r] : most;
    k->each = (int64_t)(TOGETHER / (size_t)c->size / (k->row ? k->row : 1));
    if (k->each < 1) k->each = 1;
    if (k->each > most) k->each = most;
    k->n = k->each ? (most + k->each - 1) / k->each : 0;
    TR_TRY(tr_calloc(&k->in, 2 * (size_t)c->size, sizeof *k->in));
    k->out = k->in + c->size;
    return TR_OK;
}

/* Rows of rank r in round i: *begin and their number. */
static int64_t rows_of(const struct rounds *k, int r, int64_t i, int64_t *begin)
{
    int64_t left = k->first[r + 1] - k->first[r] - i * k->each;
    *begin = k->first[r] + i * k->each;
    return left < 0 ? 0 : left < k->each ? left : k->each;
}

static void read_rows(const struct tr_tensor *t, int64_t begin, int64_t n, void *host)
{
    struct tr_tensor v = tr_comm_rows(t, begin, n);
    if (n) tr_tensor_read(&v, host);
}

/* work: of a device, one part large; NULL: kernels read `in` itself. */
static void add_received(struct tr_comm *c, const struct rounds *k, struct tr_tensor *own, int64_t i, char *in, void *work, bool add)
{
    int64_t begin, n = rows_of(k, c->rank, i, &begin);
    if (!n) return;
    struct tr_tensor to = tr_comm_rows(own, begin - k->first[c->rank], n);
    for (int r = 0; r < c->size; r++) {
        char *from = in + (size_t)r * k->out[r];
        struct tr_tensor part = tr_tensor_view(work ? work : from, TR_F32, to.ndim, to.dim);
        if (work) tr_tensor_write(&part, from);
        if (r == 0 && !add) tr_kernels()->copy(&to, &part);
        else tr_kernels()->add(&to, &to, &part);
    }
}

static int reduce_round(struct tr_comm *c, struct rounds *k, struct tr_tensor *own, const struct tr_tensor *g, int64_t i, char *out, char *in, void *work, bool add)
{
    int64_t begin, mine = rows_of(k, c->rank, i, &begin);
    size_t at = 0;
    for (int r = 0; r < c->size; r++) {
        int64_t n = rows_of(k, r, i, &begin);
        read_rows(g, begin, n, out + at);
        k->in[r] = (size_t)n * k->row;
        k->out[r] = (size_t)mine * k->row;
        at += k->in[r];
    }
    TR_TRY(c->kind->all_to_all(c, out, k->in, in, k->out));
    add_received(c, k, own, i, in, work, add);
    return TR_OK;
}

int tr_comm_reduce_rows(struct tr_comm *c, struct tr_tensor *own, const struct tr_tensor *g, const int64_t *first, bool add)
{
    if (c->size == 1) {
        if (add) tr_kernels()->add(own, own, g);
        else if (own->data != g->data) tr_kernels()->copy(own, g);
        return TR_OK;
    }
    struct rounds k;
    void *out = NULL, *in = NULL, *work = NULL;
    count(c, first[c->size], (size_t)tr_cols(g) * tr_dtype_size(g->dtype));
    if (tr_direct(c, g)) return tr_direct_reduce(c, own, g, first, add);
    TR_TRY(rounds_init(&k, c, g, first));
    int rc;
    TR_GO(tr_arena_alloc(&out, (size_t)c->size * (size_t)k.each * k.row, TR_COMMUNICATION));
    TR_GO(tr_arena_alloc(&in, (size_t)c->size * (size_t)k.each * k.row, TR_COMMUNICATION));
    if (tr_device()) TR_GO(tr_device_arena(&work, (size_t)k.each * k.row, TR_COMMUNICATION));
    for (int64_t i = 0; i < k.n && !tr_mem_is_dry(); i++) TR_GO(reduce_round(c, &k, own, g, i, out, in, work, add));
done:
    tr_device_arena_free(work, TR_COMMUNICATION);
    if (in) tr_arena_free(in, TR_COMMUNICATION);
    if (out) tr_arena_free(out, TR_COMMUNICATION);
    free(k.in);
    return rc;
}

static int gather_round(struct tr_comm *c, struct rounds *k, struct tr_tensor *t, const struct tr_tensor *own, int64_t i, char *out, char *in)
{
    int64_t begin, mine = rows_of(k, c->rank, i, &begin);
    read_rows(own ? own : t, own ? begin - k->first[c->rank] : begin, mine, out);
    for (int r = 0; r < c->size; r++) k->out[r] = (size_t)rows_of(k, r, i, &begin) * k->row;
    TR_TRY(c->kind->all_gather(c, out, in, k->out));
    for (int r = 0; r < c->size; r++) {
        int64_t n = rows_of(k, r, i, &begin);
        struct tr_tensor to = tr_comm_rows(t, begin, n);
        if (n && (own || r != c->rank)) tr_tensor_write(&to, in);
        in += k->out[r];
    }
    return TR_OK;
}

static int gather_values(struct tr_comm *c, struct tr_tensor *t, const struct tr_tensor *own, const int64_t *first)
{
    struct rounds k;
    void *out = NULL, *in = NULL;
    count(c, first[c->size], (size_t)tr_cols(t) * tr_dtype_size(t->dtype));
    if (tr_direct(c, t)) return tr_direct_gather(c, t, own, first);
    TR_TRY(rounds_init(&k, c, t, first));
    int rc;
    TR_GO(tr_arena_alloc(&out, (size_t)k.each * k.row, TR_COMMUNICATION));
    TR_GO(tr_arena_alloc(&in, (size_t)c->size * (size_t)k.each * k.row, TR_COMMUNICATION));
    for (int64_t i = 0; i < k.n && !tr_mem_is_dry(); i++) TR_GO(gather_round(c, &k, t, own, i, out, in));
done:
    if (in) tr_arena_free(in, TR_COMMUNICATION);
    if (out) tr_arena_free(out, TR_COMMUNICATION);
    free(k.in);
    return rc;
}

int tr_comm_gather_rows(struct tr_comm *c, struct tr_tensor *t, const struct tr_tensor *own, const int64_t *first)
{
    if (c->size == 1) return own ? tr_tensor_copy(t, own) : TR_OK;
    int rc = gather_values(c, t, own, first);
    struct tr_tensor parts[TR_QUANT_PARTS], own_parts[TR_QUANT_PARTS];
    int n = tr_quant_views(t, parts);
    bool empty = own && tr_quant_views(own, own_parts) == 0; /* none of the rows are here */
    for (int i = 0; i < n && rc == TR_OK; i++) {
        if (empty) own_parts[i] = tr_rows_view(&parts[i], 0, 0);
        rc = tr_comm_gather_rows(c, &parts[i], own ? &own_parts[i] : NULL, first);
    }
    return rc;
}

/* ---- between two ranks */

/* In pieces, so that the host's buffer stays small. */
static int pass_on(struct tr_comm *c, struct tr_tensor *t, int peer, bool send)
{
    int64_t rows = tr_rows(t), row = tr_cols(t) * (int64_t)tr_dtype_size(t->dtype), each = TOGETHER / (row ? row : 1);
    void *host;
    if (each < 1) each = 1;
    if (each > rows) each = rows;
    if (send) c->moved += (uint64_t)(rows * row) * (uint64_t)c->size; /* moved is of all ranks; the others are taken to send as much */
    if (!rows || !row) return TR_OK;
    if (tr_direct(c, t)) return tr_direct_pass(c, t, peer, send);
    TR_TRY(tr_arena_alloc(&host, (size_t)(each * row), TR_COMMUNICATION));
    int rc = TR_OK;
    for (int64_t at = 0; at < rows && rc == TR_OK && !tr_mem_is_dry(); at += each) {
        int64_t n = rows - at < each ? rows - at : each;
        struct tr_tensor part = tr_comm_rows(t, at, n);
        if (send) tr_tensor_read(&part, host);
        rc = send ? c->kind->send(c, host, (size_t)(n * row), peer) : c->kind->receive(c, host, (size_t)(n * row), peer);
        if (rc == TR_OK && !send) tr_tensor_write(&part, host);
    }
    tr_arena_free(host, TR_COMMUNICATION);
    return rc;
}

int tr_comm_send(struct tr_comm *c, const struct tr_tensor *t, int to)
{
    struct tr_tensor view = *t;
    struct tr_tensor part[TR_QUANT_PARTS];
    int n = tr_quant_views(t, part);
    TR_TRY(pass_on(c, &view, to, true));
    for (int i = 0; i < n; i++) TR_TRY(pass_on(c, &part[i], to, true));
    return TR_OK;
}

int tr_comm_receive(struct tr_comm *c, struct tr_tensor *t, int from)
{
    struct tr_tensor part[TR_QUANT_PARTS];
    int n = tr_quant_views(t, part);
    TR_TRY(pass_on(c, t, from, false));
    for (int i = 0; i < n; i++) TR_TRY(pass_on(c, &part[i], from, false));
    return TR_OK;
}

/* ---- small ones */

/* *all = the bytes of every rank, one after another; the caller's. */
static int gather_bytes(struct tr_comm *c, const void *mine, size_t bytes, void **all)
{
    size_t *n = NULL;
    TR_TRY(tr_calloc(&n, (size_t)c->size, sizeof *n));
    for (int r = 0; r < c->size; r++) n[r] = bytes;
    int rc = tr_calloc(all, (size_t)c->size, bytes + 1);
    if (rc == TR_OK) rc = c->kind->all_gather(c, mine, *all, n);
    free(n);
    return rc;
}

int tr_comm_sum(struct tr_comm *c, double *x, size_t n)
{
    void *all = NULL;
    count(c, c->size, n * sizeof *x);
    if (c->size == 1 || tr_mem_is_dry()) return TR_OK;
    int rc = gather_bytes(c, x, n * sizeof *x, &all);
    for (size_t i = 0; i < n && rc == TR_OK; i++) {
        double sum = 0;
        for (int r = 0; r < c->size; r++) sum += ((const double *)all)[(size_t)r * n + i];
        x[i] = sum;
    }
    free(all);
    return rc;
}

int tr_comm_each(struct tr_comm *c, const double *x, size_t n, double *all)
{
    void *got = NULL;
    count(c, c->size, n * sizeof *x);
    memcpy(all, x, n * sizeof *x);
    if (c->size == 1 || tr_mem_is_dry()) return TR_OK;
    int rc = gather_bytes(c, x, n * sizeof *x, &got);
    if (rc == TR_OK) memcpy(all, got, (size_t)c->size * n * sizeof *x);
    free(got);
    return rc;
}

int tr_comm_bytes(struct tr_comm *c, void *bytes, size_t n, int root)
{
    size_t *each;
    count(c, 1, n);
    if (c->size == 1 || tr_mem_is_dry() || !n) return TR_OK;
    TR_TRY(tr_calloc(&each, (size_t)c->size, sizeof *each));
    each[root] = n;
    char *copy = NULL;
    int rc = tr_calloc(&copy, n, 1);
    if (rc == TR_OK) memcpy(copy, bytes, n);
    if (rc == TR_OK) rc = c->kind->all_gather(c, copy, bytes, each);
    free(copy);
    free(each);
    return rc;
}

int tr_comm_words(struct tr_comm *c, uint64_t *words, size_t n, int root) { return tr_comm_bytes(c, words, n * sizeof *words, root); }

int tr_comm_barrier(struct tr_comm *c) { return tr_mem_is_dry() ? TR_OK : c->kind->barrier(c); }
