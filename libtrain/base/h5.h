/* The little of HDF5 that is used here, with our errors. Not thread-safe. HDF5's own error printing is switched off, and
 * so is what lets a hostile file reach outside itself: external links and storage, virtual datasets, filter plug-ins.
 * A failed write (TR_EFAIL, e.g. a full disk) ends the file: later writes fail too, closing stays safe. */
#ifndef TR_H5_H
#define TR_H5_H
#include "libtrain/base/dtype.h"
#include <stdbool.h>
#include <stdint.h>

struct tr_h5;    /* an open file */

int tr_h5_open(struct tr_h5 **out, const char *path);                      /* read-only; TR_EINPUT */
/* The same for a file whose bytes were verified before. tr_h5_open first has a child process read the file, since damage
 * that a checksum would have found can crash or hang HDF5. */
int tr_h5_open_known(struct tr_h5 **out, const char *path);
int tr_h5_create(struct tr_h5 **out, const char *path);                    /* truncates; TR_EFAIL */
/* The same with the first `bytes` (a power of two from 512 on) of the file left to the caller: HDF5 neither reads nor
 * writes them, every reader of HDF5 finds the data behind them. */
int tr_h5_create_block(struct tr_h5 **out, const char *path, size_t bytes);
int tr_h5_close(struct tr_h5 *f);                                          /* flushes; NULL is fine; TR_EFAIL on a full disk */

bool tr_h5_has(struct tr_h5 *f, const char *name);
/* Shape of a dataset; *type = TR_F32/TR_F64/TR_F16/TR_I32/TR_U8/TR_INT8/TR_BF16 nearest to what is stored (bf16 is
 * stored as uint16 with the attribute dtype = "bf16", which HDF5 has no type for). A scalar is [1]. A dataset that claims
 * more than the file holds is TR_EINPUT, so that the sizes told here are safe to allocate. */
int tr_h5_info(struct tr_h5 *f, const char *name, enum tr_dtype *type, int *ndim, int64_t dim[4]);
/* Whole dataset converted to `type` into out (of the size that info told). */
int tr_h5_read(struct tr_h5 *f, const char *name, enum tr_dtype type, void *out);
/* Rows [begin, begin+n) along the first dimension. */
int tr_h5_read_rows(struct tr_h5 *f, const char *name, enum tr_dtype type, int64_t begin, int64_t n, void *out);
int tr_h5_write(struct tr_h5 *f, const char *name, enum tr_dtype type, int ndim, const int64_t *dim, const void *data, bool compress);
/* The same in parts: an empty dataset, then its rows in any order. */
int tr_h5_make(struct tr_h5 *f, const char *name, enum tr_dtype type, int ndim, const int64_t *dim, bool compress);
int tr_h5_write_rows(struct tr_h5 *f, const char *name, enum tr_dtype type, int64_t begin, int64_t n, const void *data);
/* A vector of `count` unsigned 64-bit numbers; reading one of another length or of real numbers is TR_EINPUT. */
/* A dataset of one number without dimensions. */
int tr_h5_write_scalar(struct tr_h5 *f, const char *name, double value);
int tr_h5_write_words(struct tr_h5 *f, const char *name, const uint64_t *words, int64_t count);
int tr_h5_read_words(struct tr_h5 *f, const char *name, uint64_t *words, int64_t count);
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
