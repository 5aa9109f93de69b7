/* The little of HDF5 that is used here, with our errors. Not thread-safe. HDF5's own error printing is switched off. */
#ifndef TR_H5_H
#define TR_H5_H
#include "libtrain/tensor/dtype.h"
#include <stdbool.h>
#include <stdint.h>

struct tr_h5;    /* an open file */

int tr_h5_open(struct tr_h5 **out, const char *path);                      /* read-only; TR_EINPUT */
int tr_h5_create(struct tr_h5 **out, const char *path);                    /* truncates; TR_EFAIL */
int tr_h5_close(struct tr_h5 *f);                                          /* flushes; NULL is fine; TR_EFAIL on a full disk */

bool tr_h5_has(struct tr_h5 *f, const char *name);
/* Shape of a dataset; *type = TR_F32/TR_F64/TR_I32/TR_U8/TR_BF16 (16-bit)/... nearest to what is stored. */
int tr_h5_info(struct tr_h5 *f, const char *name, enum tr_dtype *type, int *ndim, int64_t dim[4]);
/* Whole dataset converted to `type` into out (of the size that info told). */
int tr_h5_read(struct tr_h5 *f, const char *name, enum tr_dtype type, void *out);
/* Rows [begin, begin+n) along the first dimension. */
int tr_h5_read_rows(struct tr_h5 *f, const char *name, enum tr_dtype type, int64_t begin, int64_t n, void *out);
int tr_h5_write(struct tr_h5 *f, const char *name, enum tr_dtype type, int ndim, const int64_t *dim, const void *data, bool compress);
/* Attributes of the object at `name` ("/" is the root): text and numbers; a missing one gives TR_EINPUT. */
int tr_h5_attr_text(struct tr_h5 *f, const char *object, const char *attr, char **out);
int tr_h5_attr_real(struct tr_h5 *f, const char *object, const char *attr, double *out);
bool tr_h5_has_attr(struct tr_h5 *f, const char *object, const char *attr);
int tr_h5_set_text(struct tr_h5 *f, const char *object, const char *attr, const char *value);
int tr_h5_set_real(struct tr_h5 *f, const char *object, const char *attr, double value);
int tr_h5_set_int(struct tr_h5 *f, const char *object, const char *attr, int64_t value);
/* Calls `each` for every link directly inside group `name`, sorted. */
int tr_h5_list(struct tr_h5 *f, const char *group, int (*each)(void *self, const char *name, bool is_group), void *self);
/* Calls `each` for every attribute name of the object. */
int tr_h5_attrs(struct tr_h5 *f, const char *object, int (*each)(void *self, const char *attr), void *self);

#endif
