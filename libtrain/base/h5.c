#define H5_USE_110_API 1
#include "libtrain/base/h5.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/file.h"
#include "libtrain/base/h5_disk.h"
#include "libtrain/base/status.h"
#include <errno.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct tr_h5 { hid_t id; bool writes, failed; int error; /* errno of the first failed write */ char path[]; };

/* ---- opening and closing */

static void setup(void)
{
    static bool done;
    if (done) return;
    done = true;
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0); /* some network folders have no locks; files here are written once */
    H5open();
    /* Unbounded by default: after a file of many chunks tens of megabytes stay resident. */
    H5set_free_list_limits(1 << 20, 1 << 16, 1 << 20, 1 << 16, 1 << 20, 1 << 16);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5PLset_loading_state(0);
    H5Lunregister(H5L_TYPE_EXTERNAL);
}

static int new_file(struct tr_h5 **out, const char *path)
{
    struct tr_h5 *f;
    setup();
    *out = NULL;
    TR_TRY(tr_calloc(&f, 1, sizeof *f + strlen(path) + 1));
    strcpy(f->path, path);
    *out = f;
    return TR_OK;
}

static int bad(struct tr_h5 *f, const char *name, const char *why)
{
    return tr_fail(TR_EINPUT, "cannot use '%s' (%s): %s", name, f->path, why);
}

/* A file that failed once fails in each call. */
static bool has_failed(const struct tr_h5 *f) { return f->failed || f->error; }

static int write_failed(struct tr_h5 *f, const char *name)
{
    f->failed = true;
    return tr_fail(TR_EFAIL, "cannot write '%s' (%s): %s", f->path, name, f->error ? strerror(f->error) : "HDF5 refused it");
}

/* After a call that writes: what HDF5 says, and what the disk said. */
static int written(struct tr_h5 *f, const char *name, bool ok) { return ok && !has_failed(f) ? TR_OK : write_failed(f, name); }

int tr_h5_open_known(struct tr_h5 **out, const char *path)
{
    struct tr_h5 *f;
    TR_TRY(new_file(&f, path));
    *out = NULL;
    const char *why = NULL;
    errno = 0;
    if (tr_is_dir(path)) why = "it is a folder";
    else if ((f->id = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT)) < 0)
        why = access(path, R_OK) ? strerror(errno) : H5Fis_hdf5(path) > 0 ? "the HDF5 file is truncated or damaged" : "it is not an HDF5 file";
    if (why) {
        int rc = tr_fail(TR_EINPUT, "cannot read '%s': %s", path, why);
        free(f);
        return rc;
    }
    *out = f;
    return TR_OK;
}

int tr_h5_create_block(struct tr_h5 **out, const char *path, size_t bytes)
{
    struct tr_h5 *f;
    TR_TRY(new_file(&f, path));
    *out = NULL;
    hid_t made = H5Pcreate(H5P_FILE_CREATE), disk = tr_h5_disk(&f->error);
    if (bytes) H5Pset_userblock(made, bytes);
    f->id = disk < 0 ? -1 : H5Fcreate(path, H5F_ACC_TRUNC, made, disk);
    f->writes = true;
    H5Pclose(made);
    if (disk >= 0) H5Pclose(disk);
    if (f->id < 0) {
        int rc = tr_fail(TR_EFAIL, "cannot write '%s': %s", path, f->error ? strerror(f->error) : "HDF5 refused it");
        free(f);
        return rc;
    }
    *out = f;
    return TR_OK;
}

int tr_h5_create(struct tr_h5 **out, const char *path) { return tr_h5_create_block(out, path, 0); }

int tr_h5_close(struct tr_h5 *f)
{
    if (!f) return TR_OK;
    bool closed = H5Fclose(f->id) >= 0;
    int rc = f->writes ? written(f, "at the end", closed) : TR_OK;
    free(f);
    return rc;
}

/* ---- what is stored. A dataset is opened by name each time: files here have hundreds of them, not millions. */

struct dataset {
    hid_t id;
    enum tr_dtype type;
    bool integer;        /* stored as whole numbers that are numbers (bf16 bits are not) */
    int ndim;
    int64_t dim[4], row; /* row: elements for each index of the first dimension */
};

static bool text_attr(hid_t object, const char *attr, struct tr_buf *out);

static const char *stored_type(struct dataset *d)
{
    hid_t type = H5Dget_type(d->id);
    size_t size = H5Tget_size(type);
    H5T_class_t class = H5Tget_class(type);
    bool is_signed = class == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_2;
    H5Tclose(type);
    d->integer = false;
    if (class == H5T_FLOAT) {
        if (size > 8) return "its numbers are wider than 64 bits";
        d->type = size == 8 ? TR_F64 : size == 4 ? TR_F32 : TR_F16;
        return NULL;
    }
    if (class != H5T_INTEGER) return "it holds something else than numbers";
    if (size > 8) return "its numbers are wider than 64 bits";
    if (size == 2 && H5Aexists(d->id, "dtype") > 0) {
        struct tr_buf text = { 0 };
        bool bf16 = text_attr(d->id, "dtype", &text) && !strcmp(text.data, "bf16");
        tr_buf_release(&text);
        if (bf16) return d->type = TR_BF16, NULL;
    }
    d->integer = true;
    d->type = size > 1 ? TR_I32 : is_signed ? TR_INT8 : TR_U8;
    return NULL;
}

static bool filters_known(hid_t plist)
{
    int n = H5Pget_nfilters(plist);
    for (int i = 0; i < n; i++) {
        unsigned flags, settings;
        size_t none = 0;
        H5Z_filter_t id = H5Pget_filter2(plist, (unsigned)i, &flags, &none, NULL, 0, NULL, &settings);
        if (id != H5Z_FILTER_DEFLATE && id != H5Z_FILTER_SHUFFLE && id != H5Z_FILTER_FLETCHER32) return false;
    }
    return true;
}

static const char *stored_shape(struct tr_h5 *f, struct dataset *d)
{
    hid_t space = H5Dget_space(d->id), plist = H5Dget_create_plist(d->id), type = H5Dget_type(d->id);
    const char *why = NULL;
    hsize_t dim[H5S_MAX_RANK], file = 0;
    unsigned long long bytes = H5Tget_size(type), stored = H5Dget_storage_size(d->id), limit;
    int ndim = H5Sget_simple_extent_ndims(space);
    H5D_layout_t layout = H5Pget_layout(plist);
    if (H5Sget_simple_extent_type(space) == H5S_NULL) why = "it is empty";
    else if (ndim < 0 || ndim > 4) why = "it has more than 4 dimensions";
    else if (H5Pget_external_count(plist) != 0 || layout == H5D_VIRTUAL) why = "its data lie in other files, which are not followed";
    else if (!filters_known(plist)) why = "it is packed by another filter than deflate, shuffle and fletcher32";
    else if (H5Sget_simple_extent_dims(space, dim, NULL) < 0 || H5Fget_filesize(f->id, &file) < 0) why = "its shape cannot be read";
    else {
        d->ndim = ndim ? ndim : 1;
        d->dim[0] = d->row = 1;
        for (int i = 0; i < ndim && !why; i++) {
            if (__builtin_mul_overflow(bytes, dim[i], &bytes) || bytes > INT64_MAX) why = "its size overflows";
            d->dim[i] = (int64_t)dim[i];
            if (i) d->row *= d->dim[i];
        }
        /* Deflate never packs better than 1032:1, nothing else packs at all; so unwritten or absurd sizes show. */
        if (!why && !f->writes
            && (stored > file || __builtin_mul_overflow(stored, layout == H5D_CHUNKED ? 1032ull : 1ull, &limit) || bytes > limit))
            why = "it claims more data than the file holds";
    }
    H5Tclose(type);
    H5Pclose(plist);
    H5Sclose(space);
    return why;
}

static int open_dataset(struct tr_h5 *f, const char *name, struct dataset *d)
{
    *d = (struct dataset){ .id = -1 };
    if (!tr_h5_has(f, name)) return bad(f, name, "the file has no dataset of that name");
    d->id = H5Dopen2(f->id, name, H5P_DEFAULT);
    if (d->id < 0) return bad(f, name, "it is not a dataset, or damaged");
    const char *why = stored_type(d);
    if (!why) why = stored_shape(f, d);
    if (!why) return TR_OK;
    H5Dclose(d->id);
    return bad(f, name, why);
}

bool tr_h5_has(struct tr_h5 *f, const char *name)
{
    if (!strcmp(name, "/")) return true;
    for (const char *slash = name; (slash = strchr(slash + 1, '/')); ) { /* each folder on the way must be there */
        char part[1024];
        if (slash - name >= (ptrdiff_t)sizeof part) return false;
        memcpy(part, name, (size_t)(slash - name));
        part[slash - name] = 0;
        if (H5Lexists(f->id, part, H5P_DEFAULT) <= 0) return false;
    }
    return H5Oexists_by_name(f->id, name, H5P_DEFAULT) > 0;
}

int tr_h5_info(struct tr_h5 *f, const char *name, enum tr_dtype *type, int *ndim, int64_t dim[4])
{
    struct dataset d;
    TR_TRY(open_dataset(f, name, &d));
    *type = d.type;
    *ndim = d.ndim;
    for (int i = 0; i < 4; i++) dim[i] = d.dim[i];
    H5Dclose(d.id);
    return TR_OK;
}

/* ---- moving numbers */

/* The type of numbers in memory (of_file: as they are stored). To be closed. */
static hid_t h5_type(enum tr_dtype t, bool of_file)
{
    static const char is_real[TR_DTYPES] = { [TR_F32] = 1, [TR_F64] = 1, [TR_F16] = 1 };
    if (is_real[t]) {
        hid_t real = H5Tcopy(t == TR_F64 ? H5T_IEEE_F64LE : H5T_IEEE_F32LE);
        if (t == TR_F16) {
            H5Tset_fields(real, 15, 10, 5, 0, 10);
            H5Tset_size(real, 2);
            H5Tset_ebias(real, 15);
        }
        return real;
    }
    return H5Tcopy(t == TR_BF16 ? H5T_STD_U16LE : t == TR_I32 ? H5T_STD_I32LE : t == TR_INT8 ? H5T_STD_I8LE : H5T_STD_U8LE);
}

/* Rows [begin, begin + n) between the dataset and `data`; one of `in` and `out` is NULL. */
static bool move_rows(struct dataset *d, enum tr_dtype type, int64_t begin, int64_t n, void *out, const void *in)
{
    if (n * d->row == 0) return true;
    hsize_t start[4] = { (hsize_t)begin }, count[4];
    for (int i = 0; i < d->ndim; i++) count[i] = (hsize_t)(i ? d->dim[i] : n);
    hid_t space = H5Dget_space(d->id), memory = H5Screate_simple(d->ndim, count, NULL), t = h5_type(type, false);
    bool ok = space >= 0 && memory >= 0;
    if (ok && H5Sget_simple_extent_ndims(space) > 0) ok = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) >= 0;
    errno = 0;
    if (ok) ok = (out ? H5Dread(d->id, t, memory, space, H5P_DEFAULT, out) : H5Dwrite(d->id, t, memory, space, H5P_DEFAULT, in)) >= 0;
    H5Tclose(t);
    H5Sclose(memory);
    H5Sclose(space);
    return ok;
}

/* bf16 is unknown to HDF5: reals to and from it pass through f32, a block of rows at a time. */
static bool read_bf16(struct dataset *d, enum tr_dtype type, int64_t begin, int64_t n, void *out)
{
    int64_t rows = d->row > (1 << 18) ? 1 : (1 << 18) / d->row;
    bool from = d->type == TR_BF16, ok = true;
    void *block = malloc((size_t)(rows < n ? rows : n) * (size_t)d->row * (from ? 2 : 4));
    if (!block) return false;
    for (int64_t at = 0; at < n && ok; at += rows) {
        int64_t now = n - at < rows ? n - at : rows, first = at * d->row;
        ok = move_rows(d, from ? TR_BF16 : TR_F32, begin + at, now, block, NULL);
        for (int64_t i = 0; i < now * d->row && ok; i++) {
            if (!from) ((uint16_t *)out)[first + i] = tr_f32_to_bf16(((float *)block)[i]);
            else if (type == TR_F32) ((float *)out)[first + i] = tr_bf16_to_f32(((uint16_t *)block)[i]);
            else ((double *)out)[first + i] = tr_bf16_to_f32(((uint16_t *)block)[i]);
        }
    }
    free(block);
    return ok;
}

static int read_rows(struct tr_h5 *f, const char *name, struct dataset *d, enum tr_dtype type, int64_t begin, int64_t n, void *out)
{
    bool real = type == TR_F32 || type == TR_F64 || type == TR_F16 || type == TR_BF16;
    if (begin < 0 || n < 0 || begin > d->dim[0] - n) return bad(f, name, "it has fewer rows than were asked for");
    if (!real && !d->integer) return bad(f, name, "it holds real numbers where whole ones are needed");
    if (type == TR_F16 && d->type == TR_BF16) return bad(f, name, "bf16 is not read as f16");
    if (n * d->row == 0) return TR_OK;
    bool convert = (type == TR_BF16) != (d->type == TR_BF16);
    if (!(convert ? read_bf16(d, type, begin, n, out) : move_rows(d, type, begin, n, out, NULL)))
        return bad(f, name, errno ? strerror(errno) : "its data are truncated or damaged");
    return TR_OK;
}

int tr_h5_read_rows(struct tr_h5 *f, const char *name, enum tr_dtype type, int64_t begin, int64_t n, void *out)
{
    struct dataset d;
    TR_TRY(open_dataset(f, name, &d));
    int rc = read_rows(f, name, &d, type, begin, n, out);
    H5Dclose(d.id);
    return rc;
}

int tr_h5_read(struct tr_h5 *f, const char *name, enum tr_dtype type, void *out)
{
    struct dataset d;
    TR_TRY(open_dataset(f, name, &d));
    int rc = read_rows(f, name, &d, type, 0, d.dim[0], out);
    H5Dclose(d.id);
    return rc;
}

/* ---- writing */

static hid_t make(struct tr_h5 *f, const char *name, hid_t type, size_t size, int ndim, const int64_t *dim, bool compress)
{
    hsize_t d[4], chunk[4], bytes = size;
    for (int i = 0; i < ndim; i++) bytes *= d[i] = chunk[i] = (hsize_t)dim[i];
    hid_t links = H5Pcreate(H5P_LINK_CREATE), plist = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(ndim, d, NULL);
    H5Pset_create_intermediate_group(links, 1);
    H5Pset_obj_track_times(plist, 0); /* the same state gives the same bytes */
    H5Pset_fill_time(plist, H5D_FILL_TIME_NEVER);
    H5Pset_alloc_time(plist, H5D_ALLOC_TIME_EARLY);
    if (compress && bytes > 1024) {
        hsize_t part = bytes;
        for (int i = 0; i < ndim; i++) /* chunks of up to 256 KiB, cut along the first dimensions */
            while (part > 1 << 18 && chunk[i] > 1) {
                part = part / chunk[i] * ((chunk[i] + 1) / 2);
                chunk[i] = (chunk[i] + 1) / 2;
            }
        H5Pset_chunk(plist, ndim, chunk);
        H5Pset_alloc_time(plist, H5D_ALLOC_TIME_INCR);
        H5Pset_shuffle(plist);
        H5Pset_deflate(plist, 4);
    }
    hid_t id = H5Dcreate2(f->id, name, type, space, links, plist, H5P_DEFAULT);
    H5Sclose(space);
    H5Pclose(plist);
    H5Pclose(links);
    return id;
}

int tr_h5_make(struct tr_h5 *f, const char *name, enum tr_dtype type, int ndim, const int64_t *dim, bool compress)
{
    if (has_failed(f)) return write_failed(f, name);
    hid_t t = h5_type(type, true), id = make(f, name, t, tr_dtype_size(type), ndim, dim, compress);
    H5Tclose(t);
    if (id >= 0) H5Dclose(id);
    TR_TRY(written(f, name, id >= 0));
    return type == TR_BF16 ? tr_h5_set_text(f, name, "dtype", "bf16") : TR_OK;
}

int tr_h5_write_rows(struct tr_h5 *f, const char *name, enum tr_dtype type, int64_t begin, int64_t n, const void *data)
{
    struct dataset d;
    if (has_failed(f)) return write_failed(f, name);
    TR_TRY(open_dataset(f, name, &d));
    int rc = TR_OK;
    if (d.type != type || begin < 0 || n < 0 || begin > d.dim[0] - n) rc = tr_fail(TR_EFAIL, "cannot write '%s' (%s): rows or type do not fit", f->path, name);
    else rc = written(f, name, move_rows(&d, type, begin, n, NULL, data) && H5Dflush(d.id) >= 0);
    H5Dclose(d.id);
    return rc;
}

int tr_h5_write(struct tr_h5 *f, const char *name, enum tr_dtype type, int ndim, const int64_t *dim, const void *data, bool compress)
{
    TR_TRY(tr_h5_make(f, name, type, ndim, dim, compress));
    return tr_h5_write_rows(f, name, type, 0, dim[0], data);
}

int tr_h5_write_scalar(struct tr_h5 *f, const char *name, double value)
{
    if (has_failed(f)) return write_failed(f, name);
    hid_t id = make(f, name, H5T_IEEE_F64LE, 8, 0, NULL, false);
    int rc = written(f, name, id >= 0 && H5Dwrite(id, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, &value) >= 0);
    if (id >= 0) H5Dclose(id);
    return rc;
}

int tr_h5_write_words(struct tr_h5 *f, const char *name, const uint64_t *words, int64_t count)
{
    if (has_failed(f)) return write_failed(f, name);
    hid_t id = make(f, name, H5T_STD_U64LE, 8, 1, &count, false);
    bool ok = id >= 0 && (count == 0 || H5Dwrite(id, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, words) >= 0) && H5Dflush(id) >= 0;
    int rc = written(f, name, ok);
    if (id >= 0) H5Dclose(id);
    return rc;
}

int tr_h5_read_words(struct tr_h5 *f, const char *name, uint64_t *words, int64_t count)
{
    struct dataset d;
    TR_TRY(open_dataset(f, name, &d));
    int rc = TR_OK;
    if (!d.integer || d.ndim != 1 || d.dim[0] != count) rc = bad(f, name, "it is not a vector of whole numbers of the length needed");
    else if (count && H5Dread(d.id, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, words) < 0) rc = bad(f, name, "its data are truncated or damaged");
    H5Dclose(d.id);
    return rc;
}

/* ---- attributes */

/* A text attribute of one element, fixed or of variable length, appended to out. */
static bool text_attr(hid_t object, const char *attr, struct tr_buf *out)
{
    hid_t a = H5Aopen(object, attr, H5P_DEFAULT);
    if (a < 0) return false;
    hid_t type = H5Aget_type(a), space = H5Aget_space(a), memory = H5Tcopy(H5T_C_S1);
    bool ok = H5Tget_class(type) == H5T_STRING && H5Sget_simple_extent_npoints(space) == 1;
    if (ok) H5Tset_cset(memory, H5Tget_cset(type));
    if (ok && H5Tis_variable_str(type) > 0) {
        char *text = NULL;
        H5Tset_size(memory, H5T_VARIABLE);
        ok = H5Aread(a, memory, &text) >= 0 && tr_buf_puts(out, text ? text : "") == TR_OK;
        H5free_memory(text);
    } else if (ok) {
        size_t size = H5Tget_size(type);
        ok = size < (16 << 20) && H5Aget_storage_size(a) >= size && tr_buf_reserve(out, size + 1) == TR_OK
             && H5Tset_size(memory, size + 1) >= 0 && H5Aread(a, memory, out->data) >= 0;
        if (ok) out->data[size] = 0;
        if (ok) out->size = strlen(out->data);
    }
    H5Tclose(memory);
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(a);
    return ok;
}

static int open_object(struct tr_h5 *f, const char *object, hid_t *id)
{
    *id = tr_h5_has(f, object) ? H5Oopen(f->id, object, H5P_DEFAULT) : -1;
    return *id < 0 ? bad(f, object, "the file has no such object") : TR_OK;
}

static int bad_attr(struct tr_h5 *f, const char *object, const char *attr, const char *why)
{
    return tr_fail(TR_EINPUT, "cannot use attribute '%s' of '%s' (%s): %s", attr, object, f->path, why);
}

int tr_h5_attr_text(struct tr_h5 *f, const char *object, const char *attr, char **out)
{
    hid_t id;
    struct tr_buf text = { 0 };
    *out = NULL;
    TR_TRY(open_object(f, object, &id));
    int rc = TR_OK;
    if (H5Aexists(id, attr) <= 0) rc = bad_attr(f, object, attr, "it is missing");
    else if (!text_attr(id, attr, &text)) rc = bad_attr(f, object, attr, "it is not a text, or damaged");
    H5Oclose(id);
    if (rc == TR_OK) *out = text.data;
    else tr_buf_release(&text);
    return rc;
}

int tr_h5_attr_real(struct tr_h5 *f, const char *object, const char *attr, double *out)
{
    hid_t id;
    TR_TRY(open_object(f, object, &id));
    int rc = TR_OK;
    hid_t a = H5Aexists(id, attr) > 0 ? H5Aopen(id, attr, H5P_DEFAULT) : -1;
    if (a < 0) rc = bad_attr(f, object, attr, "it is missing");
    else {
        hid_t type = H5Aget_type(a), space = H5Aget_space(a);
        H5T_class_t class = H5Tget_class(type);
        if ((class != H5T_INTEGER && class != H5T_FLOAT && class != H5T_ENUM) || H5Sget_simple_extent_npoints(space) != 1)
            rc = bad_attr(f, object, attr, "it is not a single number");
        else if (H5Aread(a, H5T_NATIVE_DOUBLE, out) < 0) rc = bad_attr(f, object, attr, "it is damaged");
        H5Sclose(space);
        H5Tclose(type);
        H5Aclose(a);
    }
    H5Oclose(id);
    return rc;
}

bool tr_h5_has_attr(struct tr_h5 *f, const char *object, const char *attr)
{
    return tr_h5_has(f, object) && H5Aexists_by_name(f->id, object, attr, H5P_DEFAULT) > 0;
}

/* A scalar attribute; one of that name is replaced. */
static int set_attr(struct tr_h5 *f, const char *object, const char *attr, hid_t type, hid_t memory, const void *value)
{
    if (has_failed(f)) return write_failed(f, object);
    if (tr_h5_has_attr(f, object, attr)) H5Adelete_by_name(f->id, object, attr, H5P_DEFAULT);
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t a = H5Acreate_by_name(f->id, object, attr, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = a >= 0 && H5Awrite(a, memory, value) >= 0;
    int rc = written(f, object, ok);
    if (a >= 0) H5Aclose(a);
    H5Sclose(space);
    return rc;
}

int tr_h5_set_text(struct tr_h5 *f, const char *object, const char *attr, const char *value)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    H5Tset_size(type, H5T_VARIABLE); /* a text of fixed length could not pass 64 KiB */
    int rc = set_attr(f, object, attr, type, type, &value);
    H5Tclose(type);
    return rc;
}

int tr_h5_set_real(struct tr_h5 *f, const char *object, const char *attr, double value)
{
    return set_attr(f, object, attr, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

int tr_h5_set_int(struct tr_h5 *f, const char *object, const char *attr, int64_t value)
{
    return set_attr(f, object, attr, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

/* ---- lists. A callback's status ends the walk; HDF5 passes only "stop", so it is kept here. */

struct walk { int (*link)(void *, const char *, bool); int (*attr)(void *, const char *); void *self; int rc; };

static herr_t on_link(hid_t group, const char *name, const H5L_info_t *info, void *data)
{
    struct walk *w = data;
    H5O_info_t object;
    if (info->type != H5L_TYPE_HARD || H5Oget_info_by_name(group, name, &object, H5P_DEFAULT) < 0) return 0;
    return (w->rc = w->link(w->self, name, object.type == H5O_TYPE_GROUP)) != TR_OK;
}

static herr_t on_attr(hid_t object, const char *name, const H5A_info_t *info, void *data)
{
    struct walk *w = data;
    return (w->rc = w->attr(w->self, name)) != TR_OK;
}

int tr_h5_list(struct tr_h5 *f, const char *group, int (*each)(void *self, const char *name, bool is_group), void *self)
{
    struct walk w = { .link = each, .self = self };
    if (!tr_h5_has(f, group)) return bad(f, group, "the file has no such group");
    if (H5Literate_by_name(f->id, group, H5_INDEX_NAME, H5_ITER_INC, NULL, on_link, &w, H5P_DEFAULT) < 0 && w.rc == TR_OK)
        return bad(f, group, "it is not a group, or damaged");
    return w.rc;
}

int tr_h5_attrs(struct tr_h5 *f, const char *object, int (*each)(void *self, const char *attr), void *self)
{
    struct walk w = { .attr = each, .self = self };
    if (!tr_h5_has(f, object)) return bad(f, object, "the file has no such object");
    if (H5Aiterate_by_name(f->id, object, H5_INDEX_NAME, H5_ITER_INC, NULL, on_attr, &w, H5P_DEFAULT) < 0 && w.rc == TR_OK)
        return bad(f, object, "its attributes are damaged");
    return w.rc;
}
