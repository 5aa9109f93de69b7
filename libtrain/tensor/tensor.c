#include "libtrain/tensor/tensor.h"
#include "libtrain/base/status.h"
#include "libtrain/tensor/param.h"
#include <inttypes.h>
#include <stdio.h>

enum { OWNER_NONE, OWNER_MEM = 1, OWNER_ARENA = 1 + TR_CATEGORIES };

const char *tr_role_name(enum tr_role r)
{
    static const char *const name[TR_ROLES] = { "matrix", "embedding", "head", "norm", "bias" };
    return name[r];
}

size_t tr_bytes(const struct tr_tensor *t)
{
    int64_t rows = tr_rows(t);
    return rows == 0 ? 0 : (size_t)((rows - 1) * t->ld + tr_cols(t)) * tr_dtype_size(t->dtype);
}

static size_t owned_bytes(const struct tr_tensor *t) { return (size_t)(tr_rows(t) * t->ld) * tr_dtype_size(t->dtype); }

static int shape(struct tr_tensor *t, enum tr_dtype dtype, int ndim, const int64_t *dim, int64_t pad)
{
    *t = (struct tr_tensor){ .dtype = dtype };
    if (ndim < 1 || ndim > 4) return tr_fail(TR_EINPUT, "a tensor of %d dimensions: 1 to 4 are possible", ndim);
    int64_t total = 8; /* bytes of the widest type, rows with their gap */
    for (int i = 0; i < ndim; i++) {
        int64_t n;
        if (dim[i] < 0 || __builtin_add_overflow(dim[i], i == ndim - 1 ? pad : 0, &n) ||
            __builtin_mul_overflow(total, n ? n : 1, &total) || total > INT64_MAX / 4)
            return tr_fail(TR_EINPUT, "a tensor's dimensions overflow");
        t->dim[i] = dim[i];
        t->ld = n;
    }
    t->ndim = ndim;
    return TR_OK;
}

size_t tr_quant_bytes(const struct tr_tensor *t)
{
    if (t->dtype != TR_INT8 || t->quant.group <= 0) return 0;
    int64_t groups = t->quant.flat ? tr_count(t) / t->quant.group : tr_rows(t) * tr_groups(t);
    return (size_t)groups * (sizeof *t->quant.scale + sizeof *t->quant.zero);
}

void tr_quant_point(struct tr_tensor *t, void *block)
{
    t->quant.scale = block;
    t->quant.zero = block ? (int8_t *)(t->quant.scale + tr_quant_bytes(t) / (sizeof *t->quant.scale + sizeof *t->quant.zero)) : NULL;
}

int tr_tensor_new(struct tr_tensor *t, enum tr_category c, enum tr_dtype dtype, int ndim, const int64_t *dim)
{
    TR_TRY(shape(t, dtype, ndim, dim, 0));
    TR_TRY(tr_device_alloc(&t->data, owned_bytes(t), c));
    t->owner = (unsigned char)(OWNER_MEM + c);
    if (dtype != TR_INT8) return TR_OK;
    void *block = NULL;
    t->quant.group = TR_QUANT_GROUP;
    int rc = tr_device_alloc(&block, tr_quant_bytes(t), c);
    tr_quant_point(t, block);
    if (rc != TR_OK) tr_tensor_release(t);
    return rc;
}

int tr_tensor_arena(struct tr_tensor *t, enum tr_category c, enum tr_dtype dtype, int ndim, const int64_t *dim, int64_t pad)
{
    TR_TRY(shape(t, dtype, ndim, dim, pad));
    TR_TRY(tr_device_arena(&t->data, owned_bytes(t), c));
    t->owner = (unsigned char)(OWNER_ARENA + c);
    if (dtype != TR_INT8) return TR_OK;
    void *block = NULL;
    t->quant.group = TR_QUANT_GROUP;
    int rc = tr_device_arena(&block, tr_quant_bytes(t), c);
    tr_quant_point(t, block);
    if (rc != TR_OK) tr_tensor_release(t);
    return rc;
}

void tr_tensor_release(struct tr_tensor *t)
{
    if (t->owner >= OWNER_ARENA) {
        tr_device_arena_free(t->quant.scale, (enum tr_category)(t->owner - OWNER_ARENA));
        tr_device_arena_free(t->data, (enum tr_category)(t->owner - OWNER_ARENA));
    } else if (t->owner >= OWNER_MEM) {
        enum tr_category c = (enum tr_category)(t->owner - OWNER_MEM);
        if (t->quant.scale) tr_device_free(t->quant.scale, tr_quant_bytes(t), c);
        tr_device_free(t->data, owned_bytes(t), c);
    }
    *t = (struct tr_tensor){ 0 };
}

struct tr_tensor tr_tensor_view(void *data, enum tr_dtype dtype, int ndim, const int64_t *dim)
{
    struct tr_tensor t = { .data = data, .dtype = dtype, .ndim = ndim };
    for (int i = 0; i < ndim; i++) t.dim[i] = dim[i];
    t.ld = dim[ndim - 1];
    return t;
}

struct tr_tensor tr_rows_view(const struct tr_tensor *t, int64_t begin, int64_t n)
{
    struct tr_tensor v = *t;
    v.owner = OWNER_NONE;
    v.ndim = 2;
    v.dim[0] = n;
    v.dim[1] = tr_cols(t);
    if (t->data) v.data = (char *)t->data + (size_t)(begin * t->ld) * tr_dtype_size(t->dtype);
    if (t->quant.scale) {
        v.quant.scale += begin * tr_groups(t);
        v.quant.zero += begin * tr_groups(t);
    }
    return v;
}

const char *const tr_quant_part[TR_QUANT_PARTS] = { "scale", "zero" };

int tr_quant_views(const struct tr_tensor *t, struct tr_tensor view[TR_QUANT_PARTS])
{
    if (t->dtype != TR_INT8 || !t->quant.scale) return 0;
    int64_t dim[2] = { tr_rows(t), tr_groups(t) };
    view[0] = tr_tensor_view(t->quant.scale, TR_F32, 2, dim);
    view[1] = tr_tensor_view(t->quant.zero, TR_INT8, 2, dim);
    return TR_QUANT_PARTS;
}

struct tr_tensor tr_flat_view(const struct tr_tensor *t)
{
    struct tr_tensor v = tr_reshape(t, 2, (int64_t[]){ tr_count(t) / t->quant.group, t->quant.group });
    v.quant.flat = false;
    return v;
}

struct tr_tensor tr_cols_view(const struct tr_tensor *t, int64_t begin, int64_t n)
{
    struct tr_tensor v = *t;
    v.owner = OWNER_NONE;
    v.ndim = 2;
    v.dim[0] = tr_rows(t);
    v.dim[1] = n;
    v.data = (char *)t->data + (size_t)begin * tr_dtype_size(t->dtype);
    return v;
}

struct tr_tensor tr_reshape(const struct tr_tensor *t, int ndim, const int64_t *dim)
{
    struct tr_tensor v = *t;
    v.owner = OWNER_NONE;
    v.ndim = ndim;
    for (int i = 0; i < ndim; i++) v.dim[i] = dim[i];
    v.ld = dim[ndim - 1];
    return v;
}

static int copy_values(struct tr_tensor *to, const struct tr_tensor *from)
{
    int64_t rows = tr_rows(from), cols = tr_cols(from), each = (1 << 20) / ((int64_t)tr_dtype_size(from->dtype) * (cols + 1)) + 1;
    each = each < rows ? each : rows;
    size_t size = (size_t)(each * cols) * tr_dtype_size(from->dtype);
    void *host;
    TR_TRY(tr_mem_alloc(&host, size, TR_COMMUNICATION));
    for (int64_t at = 0; at < rows; at += each) {
        int64_t n = rows - at < each ? rows - at : each;
        struct tr_tensor a = tr_rows_view(from, at, n), b = tr_rows_view(to, at, n);
        tr_tensor_read(&a, host);
        tr_tensor_write(&b, host);
    }
    tr_mem_free(host, size, TR_COMMUNICATION);
    return TR_OK;
}

int tr_tensor_copy(struct tr_tensor *to, const struct tr_tensor *from)
{
    if (!tr_count(from)) return TR_OK;
    TR_TRY(copy_values(to, from));
    struct tr_tensor a[TR_QUANT_PARTS], b[TR_QUANT_PARTS];
    tr_quant_views(to, b);
    for (int i = 0, n = tr_quant_views(from, a); i < n; i++) TR_TRY(copy_values(&b[i], &a[i]));
    return TR_OK;
}

bool tr_same_shape(const struct tr_tensor *a, const struct tr_tensor *b)
{
    bool same = a->ndim == b->ndim;
    for (int i = 0; same && i < a->ndim; i++) same = a->dim[i] == b->dim[i];
    return same;
}

const char *tr_shape_text(const struct tr_tensor *t)
{
    static _Thread_local char texts[8][96];
    static _Thread_local int turn;
    char *s = texts[turn++ % 8];
    int n = snprintf(s, 96, "[");
    for (int i = 0; i < t->ndim; i++) n += snprintf(s + n, (size_t)(96 - n), "%s%" PRId64, i ? ", " : "", t->dim[i]);
    snprintf(s + n, (size_t)(96 - n), "]");
    return s;
}
