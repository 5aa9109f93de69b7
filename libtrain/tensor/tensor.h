/* Tensors: an open struct. Row-major; rows may be longer than what is used of them (`ld`), nothing else is strided.
 *
 * Letters at the end of names give the shape:  N tokens of a micro-batch (all sequences one after another, no padding),
 * C hidden, H heads, K kv heads, D head size, Q = (H + 2K) D columns of the fused q|k|v, I intermediate, V vocabulary,
 * O outputs and C or I inputs of a linear layer (weights are [O,C] as in the files), R rank of a projection.
 *
 * Code outside kernel/ never touches the bytes: it moves them with tr_tensor_read/_write and computes with the table in
 * kernel/kernel.h. */
#ifndef TR_TENSOR_H
#define TR_TENSOR_H
#include "libtrain/base/mem.h"
#include "libtrain/base/dtype.h"
#include <stdbool.h>
#include <stdint.h>

/* int8 weights: value[o][c] = scale[o][c / group] (int8 - zero[o][c / group]), both [rows, ceil(cols / group)]; the zeros
 * lie behind the scales in one block. flat: groups run through the whole matrix, row after row, as in recorded runs; only
 * `apply` of kernel/update.h takes such weights. */
struct tr_quant { float *scale; int8_t *zero; int64_t group; bool flat; };
enum { TR_QUANT_GROUP = 128 };

struct tr_tensor {
    void *data;
    enum tr_dtype dtype;
    int ndim;            /* 1..4; a scalar is [1] */
    int64_t dim[4];
    int64_t ld;          /* elements from one row (all but the last dimension counted as rows) to the next, >= dim[ndim-1] */
    struct tr_quant quant;   /* only TR_INT8 */
    unsigned char owner;     /* 0 a view; else how release gives the bytes back */
};

/* The last dimension, and the product of the others. */
static inline int64_t tr_cols(const struct tr_tensor *t) { return t->ndim ? t->dim[t->ndim - 1] : 0; }

static inline int64_t tr_rows(const struct tr_tensor *t)
{
    int64_t n = t->ndim ? 1 : 0;
    for (int i = 0; i + 1 < t->ndim; i++) n *= t->dim[i];
    return n;
}

static inline int64_t tr_count(const struct tr_tensor *t) { return tr_rows(t) * tr_cols(t); }   /* elements */

/* Scales of a row of int8 weights. */
static inline int64_t tr_groups(const struct tr_tensor *t) { return t->quant.group > 0 ? (tr_cols(t) + t->quant.group - 1) / t->quant.group : 0; }

size_t tr_bytes(const struct tr_tensor *t);    /* bytes from the first to the last element, gaps of `ld` included */

/* A tensor of its own bytes, zeroed, from tr_mem_alloc; ld = last dimension. Errors: TR_EFAIL; a product of dimensions
 * that overflows is TR_EINPUT. */
int tr_tensor_new(struct tr_tensor *t, enum tr_category c, enum tr_dtype dtype, int ndim, const int64_t *dim);
/* The same in the step arena, not zeroed. `pad` makes each row that many elements longer. */
int tr_tensor_arena(struct tr_tensor *t, enum tr_category c, enum tr_dtype dtype, int ndim, const int64_t *dim, int64_t pad);
/* Gives the bytes back when t owns them; t becomes empty. Safe on {0}. */
void tr_tensor_release(struct tr_tensor *t);

/* A borrowed shape over bytes of the caller (host memory for kernels/ref and tests). */
struct tr_tensor tr_tensor_view(void *data, enum tr_dtype dtype, int ndim, const int64_t *dim);
/* Rows [begin, begin + n) and columns [begin, begin + n) of a matrix, borrowed. */
struct tr_tensor tr_rows_view(const struct tr_tensor *t, int64_t begin, int64_t n);
struct tr_tensor tr_cols_view(const struct tr_tensor *t, int64_t begin, int64_t n);
/* What belongs to int8 weights besides their bytes: scales and zeros as matrices [rows, groups], borrowed. How many: 2, or
 * 0 for other types and for shapes without bytes. */
enum { TR_QUANT_PARTS = 2 };
extern const char *const tr_quant_part[TR_QUANT_PARTS];   /* "scale", "zero" */
int tr_quant_views(const struct tr_tensor *t, struct tr_tensor view[TR_QUANT_PARTS]);
size_t tr_quant_bytes(const struct tr_tensor *t);         /* of both; 0 for other types */
void tr_quant_point(struct tr_tensor *t, void *block);    /* at a block of so many bytes; NULL: at none */
/* Flat int8 weights with a group in each row, borrowed. */
struct tr_tensor tr_flat_view(const struct tr_tensor *t);
/* The same bytes seen as a matrix [rows, cols] or under another shape (dense tensors only). */
struct tr_tensor tr_reshape(const struct tr_tensor *t, int ndim, const int64_t *dim);

/* Bytes of `from` into `to`, of the same type and shape, scales and zeros of int8 too, through host memory a few rows at a time (category
 * communication). Errors: TR_EFAIL. */
int tr_tensor_copy(struct tr_tensor *to, const struct tr_tensor *from);

bool tr_same_shape(const struct tr_tensor *a, const struct tr_tensor *b);
/* "[49152, 576]" in a buffer of this thread (eight in turn). */
const char *tr_shape_text(const struct tr_tensor *t);

/* Copies between host memory (dense, the tensor's dtype) and the tensor. In dry mode nothing is copied (read gives zeros). */
void tr_tensor_write(struct tr_tensor *t, const void *host);
void tr_tensor_read(const struct tr_tensor *t, void *host);

#define TR_DIMS(...) ((int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t))), (const int64_t[]){ __VA_ARGS__ }

#endif
