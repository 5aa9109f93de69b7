/* An HDF5 file driver over pwrite that keeps a full disk from the library. */
#include "libtrain/base/h5_disk.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

struct settings { int *error; };
struct disk { H5FD_t pub; int fd; haddr_t eoa, eof; int *error; };   /* eoa, eof: bytes in use, bytes there */

static H5FD_t *disk_open(const char *path, unsigned flags, hid_t list, haddr_t most)
{
    const struct settings *s = H5Pget_driver_info(list);
    struct disk *d = s ? calloc(1, sizeof *d) : NULL;
    if (!d) return NULL;
    d->error = s->error;
    d->fd = open(path, O_RDWR | O_CLOEXEC | (flags & H5F_ACC_CREAT ? O_CREAT : 0) | (flags & H5F_ACC_TRUNC ? O_TRUNC : 0), 0666);
    if (d->fd >= 0) return &d->pub;
    *d->error = errno;
    free(d);
    return NULL;
}

static void failed(struct disk *d)
{
    if (!*d->error) *d->error = errno ? errno : EIO;
}

static herr_t disk_close(H5FD_t *file)
{
    struct disk *d = (struct disk *)file;
    if (close(d->fd)) failed(d);
    free(d);
    return 0;
}

static herr_t disk_query(const H5FD_t *file, unsigned long *flags)
{
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE | H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}

static haddr_t disk_get_eoa(const H5FD_t *file, H5FD_mem_t type) { return ((const struct disk *)file)->eoa; }
static haddr_t disk_get_eof(const H5FD_t *file, H5FD_mem_t type) { return ((const struct disk *)file)->eof; }

static herr_t disk_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t at)
{
    ((struct disk *)file)->eoa = at;
    return 0;
}

/* Bytes that are not there are zeros. */
static herr_t disk_read(H5FD_t *file, H5FD_mem_t type, hid_t list, haddr_t at, size_t n, void *out)
{
    struct disk *d = (struct disk *)file;
    char *to = out;
    while (n > 0) {
        ssize_t got = pread(d->fd, to, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) failed(d);
        if (got <= 0) break;
        to += got, at += (haddr_t)got, n -= (size_t)got;
    }
    memset(to, 0, n);
    return 0;
}

static herr_t disk_write(H5FD_t *file, H5FD_mem_t type, hid_t list, haddr_t at, size_t n, const void *in)
{
    struct disk *d = (struct disk *)file;
    const char *from = in;
    if (at + n > d->eof) d->eof = at + n;
    while (n > 0 && !*d->error) {
        errno = 0;
        ssize_t got = pwrite(d->fd, from, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) failed(d);
        else from += got, at += (haddr_t)got, n -= (size_t)got;
    }
    return 0;
}

static herr_t disk_truncate(H5FD_t *file, hid_t list, hbool_t closing)
{
    struct disk *d = (struct disk *)file;
    if (!*d->error && d->eof != d->eoa && ftruncate(d->fd, (off_t)d->eoa)) failed(d);
    d->eof = d->eoa;
    return 0;
}

static const H5FD_class_t driver = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION, .value = (H5FD_class_value_t)513,   /* of those left to applications */
#endif
    .name = "train", .maxaddr = (haddr_t)1 << 62, .fc_degree = H5F_CLOSE_STRONG, .fapl_size = sizeof(struct settings),
    .open = disk_open, .close = disk_close, .query = disk_query, .get_eoa = disk_get_eoa, .set_eoa = disk_set_eoa,
    .get_eof = disk_get_eof, .read = disk_read, .write = disk_write, .truncate = disk_truncate, .fl_map = H5FD_FLMAP_DICHOTOMY,
};

hid_t tr_h5_disk(int *error)
{
    static hid_t id;
    struct settings s = { error };
    if (id <= 0) id = H5FDregister(&driver);
    hid_t list = id > 0 ? H5Pcreate(H5P_FILE_ACCESS) : -1;
    if (list >= 0 && H5Pset_driver(list, id, &s) < 0) {
        H5Pclose(list);
        list = -1;
    }
    return list;
}
