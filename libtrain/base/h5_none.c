/* Stands in for h5.c where meson left HDF5 out. */
#include "libtrain/base/h5.h"
#include "libtrain/base/status.h"

static int none(void) { return tr_fail(TR_EFAIL, "HDF5 is not in this build: install libhdf5-dev and set it up with -Dhdf5=enabled"); }

int tr_h5_open(struct tr_h5 **out, const char *path) { return *out = 0, none(); }
int tr_h5_open_known(struct tr_h5 **out, const char *path) { return *out = 0, none(); }
int tr_h5_create(struct tr_h5 **out, const char *path) { return *out = 0, none(); }
int tr_h5_create_block(struct tr_h5 **out, const char *path, size_t bytes) { return *out = 0, none(); }
int tr_h5_close(struct tr_h5 *f) { return TR_OK; }
bool tr_h5_has(struct tr_h5 *f, const char *name) { return false; }
int tr_h5_info(struct tr_h5 *f, const char *name, enum tr_dtype *type, int *ndim, int64_t dim[4]) { return none(); }
int tr_h5_read(struct tr_h5 *f, const char *name, enum tr_dtype type, void *out) { return none(); }
int tr_h5_read_rows(struct tr_h5 *f, const char *name, enum tr_dtype type, int64_t begin, int64_t n, void *out) { return none(); }
int tr_h5_write(struct tr_h5 *f, const char *name, enum tr_dtype type, int ndim, const int64_t *dim, const void *data, bool compress) { return none(); }
int tr_h5_make(struct tr_h5 *f, const char *name, enum tr_dtype type, int ndim, const int64_t *dim, bool compress) { return none(); }
int tr_h5_write_rows(struct tr_h5 *f, const char *name, enum tr_dtype type, int64_t begin, int64_t n, const void *data) { return none(); }
int tr_h5_write_scalar(struct tr_h5 *f, const char *name, double value) { return none(); }
int tr_h5_write_words(struct tr_h5 *f, const char *name, const uint64_t *words, int64_t count) { return none(); }
int tr_h5_read_words(struct tr_h5 *f, const char *name, uint64_t *words, int64_t count) { return none(); }
int tr_h5_attr_text(struct tr_h5 *f, const char *object, const char *attr, char **out) { return *out = 0, none(); }
int tr_h5_attr_real(struct tr_h5 *f, const char *object, const char *attr, double *out) { return none(); }
bool tr_h5_has_attr(struct tr_h5 *f, const char *object, const char *attr) { return false; }
int tr_h5_set_text(struct tr_h5 *f, const char *object, const char *attr, const char *value) { return none(); }
int tr_h5_set_real(struct tr_h5 *f, const char *object, const char *attr, double value) { return none(); }
int tr_h5_set_int(struct tr_h5 *f, const char *object, const char *attr, int64_t value) { return none(); }
int tr_h5_list(struct tr_h5 *f, const char *group, int (*each)(void *self, const char *name, bool is_group), void *self) { return none(); }
int tr_h5_attrs(struct tr_h5 *f, const char *object, int (*each)(void *self, const char *attr), void *self) { return none(); }
