/* The parameters of a recorded run: shapes, roles, and what they start from. */
#include "recipes/replay_impl.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Reads a dataset of n values. */
static int read_values(const struct replay *r, const struct tr_param *p, const char *what, int64_t n, float *host)
{
    char *path = NULL;
    enum tr_dtype type;
    int ndim, rc;
    int64_t dim[4], count = 1;
    TR_GO(replay_path(&path, p->name, what));
    TR_GO(tr_h5_info(r->in, path, &type, &ndim, dim));
    for (int i = 0; i < ndim; i++) count *= dim[i];
    if (count != n) TR_GO(tr_fail(TR_EINPUT, "'/%s' (%s): it has %" PRId64 " values, not %" PRId64, path, r->path, count, n));
    rc = tr_h5_read(r->in, path, TR_F32, host);
done:
    free(path);
    return rc;
}

/* uint8 values, 128 less here. */
static int start_bytes(const struct replay *r, const struct tr_param *p, const char *what, struct tr_tensor *to, float *host)
{
    int64_t n = tr_count(to);
    int8_t *bytes;
    TR_TRY(read_values(r, p, what, n, host));
    TR_TRY(tr_calloc(&bytes, (size_t)n, sizeof *bytes));
    for (int64_t i = 0; i < n; i++) bytes[i] = (int8_t)(host[i] - 128);
    tr_tensor_write(to, bytes);
    free(bytes);
    return TR_OK;
}

static int start_codes(const struct replay *r, struct tr_param *p, float *host)
{
    struct tr_tensor by_group = tr_flat_view(&p->value), part[TR_QUANT_PARTS];
    tr_quant_views(&by_group, part);
    TR_TRY(start_bytes(r, p, "q_init", &by_group, host));
    TR_TRY(start_bytes(r, p, "q_init_zero", &part[1], host));
    TR_TRY(read_values(r, p, "q_init_scale", tr_count(&part[0]), host));
    tr_tensor_write(&part[0], host);
    return TR_OK;
}

/* The weight at the start: f32, or int8 whose groups run through the whole matrix. */
static int start_weight(const struct replay *r, struct tr_param *p, const char *init, int ndim, const int64_t *dim)
{
    char *path = NULL;
    float *host = NULL;
    int rc;
    TR_GO(replay_path(&path, p->name, "q_init"));
    bool codes = tr_h5_has(r->in, path);
    int64_t n = dim[0] * (ndim > 1 ? dim[1] : 1);
    if (codes && n % TR_QUANT_GROUP) TR_GO(tr_fail(TR_EINPUT, "'/%s' (%s): %" PRId64 " elements are not groups of %d", path, r->path, n, TR_QUANT_GROUP));
    if (codes) TR_GO(tr_tensor_new(&p->value, TR_WEIGHTS, TR_INT8, TR_DIMS(n / TR_QUANT_GROUP, TR_QUANT_GROUP)));
    else TR_GO(tr_tensor_new(&p->value, TR_WEIGHTS, TR_F32, ndim, dim));
    p->value.ndim = ndim;
    for (int i = 0; i < ndim; i++) p->value.dim[i] = dim[i];
    p->value.ld = dim[ndim - 1];
    p->value.quant.flat = codes;
    TR_GO(tr_calloc(&host, (size_t)n, sizeof *host));
    rc = codes ? start_codes(r, p, host) : tr_h5_read(r->in, init, TR_F32, host);
    if (rc == TR_OK && !codes) tr_tensor_write(&p->value, host);
done:
    free(host);
    free(path);
    return rc;
}

int replay_param(void *self, const char *name, bool is_group)
{
    struct replay *r = self;
    char *group = NULL, *path = NULL, *role = NULL;
    enum tr_dtype type;
    int ndim, gdim, rc;
    int64_t dim[4], grad[4];
    struct tr_param *p = &r->param[r->n];
    if (r->n == r->room) return tr_fail(TR_EINPUT, "'%s' has more than %" PRId64 " parameters", r->path, r->room);
    if (!is_group || strlen(name) >= sizeof p->name) return tr_fail(TR_EINPUT, "'/param/%.80s' (%s): it is no parameter", name, r->path);
    *p = (struct tr_param){ .index = (int)r->n, .trainable = true, .layer = 1 };
    r->rec[r->n++].p = p;
    strcpy(p->name, name);
    TR_GO(replay_path(&group, name, NULL));
    TR_GO(tr_h5_attr_text(r->in, group, "role", &role));
    p->role = !strcmp(role, "matrix") ? TR_MATRIX : !strcmp(role, "embedding") ? TR_EMBEDDING : TR_NORM;
    bool losses = r->kind->needs != OPT_GRADIENT;
    TR_GO(replay_path(&path, name, losses ? "z" : "grad"));
    TR_GO(tr_h5_info(r->in, path, &type, &gdim, grad));
    if (losses && gdim > 1 && r->draws > 1) { /* [steps, draws, shape] */
        if (grad[1] != r->draws) TR_GO(tr_fail(TR_EINPUT, "'/%s' (%s): it must hold q directions a step", path, r->path));
        gdim--;
        for (int i = 1; i < gdim; i++) grad[i] = grad[i + 1];
    }
    free(path);
    path = NULL;
    TR_GO(replay_path(&path, name, "init"));
    TR_GO(tr_h5_info(r->in, path, &type, &ndim, dim));
    bool fits = gdim == ndim + 1 && ndim <= 2 && grad[0] == r->steps && (p->role == TR_NORM) == (ndim == 1);
    for (int i = 0; fits && i < ndim; i++) fits = grad[i + 1] == dim[i] && dim[i] > 0;
    if (!fits) TR_GO(tr_fail(TR_EINPUT, "'/%s' (%s): init must be [rows, columns] or [n] as the role says, %s [steps, the same]", group, r->path, losses ? "z" : "grad"));
    rc = start_weight(r, p, path, ndim, dim);
done:
    free(role);
    free(path);
    free(group);
    return rc;
}
