/* Tokens made elsewhere: each row of `tokens` [N,T] is one sequence, with `targets` [N,T] or its own shifted ids. */
#include "libtrain/data/dataset_impl.h"
#include "libtrain/base/h5.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>

enum { PART = 1 << 16 };   /* tokens read at once */

static int check(struct tr_reading *r, struct tr_h5 *f, const char *name, int64_t dim[2])
{
    enum tr_dtype type;
    int ndim;
    int64_t d[4];
    if (!tr_h5_has(f, name)) return tr_fail(TR_EINPUT, "no data (%s): it has no dataset '%s'; write tokens as int32 "
        "[N,T]", r->file, name);
    TR_TRY(tr_h5_info(f, name, &type, &ndim, d));
    if ((type != TR_I32 && type != TR_U8 && type != TR_INT8) || ndim != 2 || d[0] < 1 || d[1] < 1)
        return tr_fail(TR_EINPUT, "bad data (%s): '%s' must be int32 [N,T], it is %s with %d dimensions", r->file,
            name, tr_dtype_name(type), ndim);
    if (dim[0] && (d[0] != dim[0] || d[1] != dim[1]))
        return tr_fail(TR_EINPUT, "bad data (%s): '%s' is [%" PRId64 ", %" PRId64 "] beside tokens [%" PRId64 ", "
            "%" PRId64 "]", r->file, name, d[0], d[1], dim[0], dim[1]);
    dim[0] = d[0];
    dim[1] = d[1];
    return TR_OK;
}

static int add_row(struct tr_reading *r, const int32_t *tokens, const int32_t *targets, int64_t n)
{
    struct tr_dataset *d = r->d;
    size_t begin = d->tokens, examples = d->examples;
    for (int64_t k = 0; k < n; k++) {
        int32_t target = targets ? targets[k] : k + 1 < n ? tokens[k + 1] : -100;
        if (targets && target != -100 && (target < 0 || target >= r->vocab))
            return tr_fail(TR_EINPUT, "bad target %d (%s:%" PRId64 "): it must be -100 or an id below %" PRId64,
                target, r->file, r->line, r->vocab);
        TR_TRY(tr_dataset_token(r, tokens[k], k > 0 && (targets ? targets[k - 1] != -100 : true)));
        TR_TRY(tr_grow(&d->targets, d->tokens - 1, &d->targets_cap, sizeof *d->targets));
        d->targets[d->tokens - 1] = target;
    }
    TR_TRY(tr_dataset_add_example(r, begin, (struct tr_example){ .n = (int32_t)n, .alone = true }));
    if (d->examples == examples) d->tokens = begin;
    return TR_OK;
}

int tr_read_h5(struct tr_reading *r)
{
    struct tr_h5 *f = NULL;
    int32_t *tokens = NULL, *targets = NULL;
    int64_t dim[2] = { 0 };
    int rc;
    TR_GO(tr_h5_open(&f, r->file));
    TR_GO(check(r, f, "tokens", dim));
    bool given = tr_h5_has(f, "targets");
    if (given) TR_GO(check(r, f, "targets", dim));
    if (dim[1] > r->c->sequence)
        TR_GO(tr_fail(TR_EINPUT, "rows too long (%s): they have %" PRId64 " tokens, more than data.sequence = "
            "%" PRId64 "; set data.sequence = %" PRId64, r->file, dim[1], r->c->sequence, dim[1]));
    int64_t rows = PART / dim[1] < 1 ? 1 : PART / dim[1];
    TR_GO(tr_calloc(&tokens, (size_t)(rows * dim[1]), sizeof *tokens));
    TR_GO(tr_calloc(&targets, (size_t)(rows * dim[1]), sizeof *targets));
    for (int64_t i = 0; i < dim[0]; i += rows) {
        int64_t n = dim[0] - i < rows ? dim[0] - i : rows;
        TR_GO(tr_h5_read_rows(f, "tokens", TR_I32, i, n, tokens));
        if (given) TR_GO(tr_h5_read_rows(f, "targets", TR_I32, i, n, targets));
        for (int64_t k = 0; k < n; k++) {
            r->line = i + k + 1;
            TR_GO(add_row(r, tokens + k * dim[1], given ? targets + k * dim[1] : NULL, dim[1]));
        }
    }
done:
    free(tokens);
    free(targets);
    tr_h5_close(f);
    return rc;
}
