#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int tr_read_file(struct tr_buf *b, const char *path)
{
    FILE *f = tr_is_dir(path) ? (errno = EISDIR, NULL) : fopen(path, "rb");
    if (!f) return tr_fail(TR_EINPUT, "cannot read '%s': %s", path, strerror(errno));
    int rc = TR_OK;
    for (;;) {
        TR_GO(tr_buf_reserve(b, 1 << 16));
        size_t n = fread(b->data + b->size, 1, 1 << 16, f);
        b->size += n;
        b->data[b->size] = 0;
        if (n < 1 << 16) break;
    }
    if (ferror(f)) rc = tr_fail(TR_EINPUT, "cannot read '%s': %s", path, strerror(errno));
done:
    fclose(f);
    return rc;
}

int tr_map_open(struct tr_map *m, const char *path)
{
    *m = (struct tr_map){ 0 };
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer is refused below, not waited for */
    if (fd < 0) return tr_fail(TR_EINPUT, "cannot open '%s': %s", path, strerror(errno));
    int rc = TR_OK;
    if (fstat(fd, &st) < 0) rc = tr_fail(TR_EINPUT, "cannot open '%s': %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) rc = tr_fail(TR_EINPUT, "cannot open '%s': it is not a regular file", path);
    else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) rc = tr_fail(TR_EINPUT, "cannot map '%s': %s", path, strerror(errno));
        else *m = (struct tr_map){ p, (size_t)st.st_size };
    }
    close(fd);
    return rc;
}

void tr_map_close(struct tr_map *m)
{
    if (m->data) munmap((void *)(uintptr_t)m->data, m->size);
    *m = (struct tr_map){ 0 };
}

int tr_tmpfile_open(struct tr_tmpfile *t, const char *path)
{
    *t = (struct tr_tmpfile){ 0 };
    struct tr_buf b = { 0 };
    const char *slash = strrchr(path, '/');
    int rc;
    TR_GO(tr_strdup(&t->path, path));
    TR_GO(tr_buf_printf(&b, "%.*s.%s.%ld.tmp", slash ? (int)(slash + 1 - path) : 0, path, slash ? slash + 1 : path, (long)getpid()));
    t->tmp = b.data;
    t->f = fopen(t->tmp, "wb");
    if (!t->f) rc = tr_fail(TR_EFAIL, "cannot write '%s': %s", path, strerror(errno));
done:
    if (rc != TR_OK) tr_tmpfile_release(t);
    return rc;
}

static int sync_dir_of(const char *path)
{
    char *copy;
    TR_TRY(tr_strdup(&copy, path));
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    if (fd < 0) return tr_fail(TR_EFAIL, "cannot write '%s': %s", path, strerror(errno));
    int bad = fsync(fd) && errno != EINVAL && errno != EROFS;
    close(fd);
    return bad ? tr_fail(TR_EFAIL, "cannot write '%s': %s", path, strerror(errno)) : TR_OK;
}

int tr_tmpfile_commit(struct tr_tmpfile *t)
{
    int rc = TR_OK;
    if (ferror(t->f) || fflush(t->f) || fsync(fileno(t->f))) rc = tr_fail(TR_EFAIL, "cannot write '%s': %s", t->path, strerror(errno ? errno : EIO));
    if (fclose(t->f) && rc == TR_OK) rc = tr_fail(TR_EFAIL, "cannot write '%s': %s", t->path, strerror(errno));
    t->f = NULL;
    if (rc == TR_OK && rename(t->tmp, t->path)) rc = tr_fail(TR_EFAIL, "cannot write '%s': %s", t->path, strerror(errno));
    if (rc == TR_OK) {
        free(t->tmp);
        t->tmp = NULL;
        rc = sync_dir_of(t->path);
    }
    tr_tmpfile_release(t);
    return rc;
}

void tr_tmpfile_release(struct tr_tmpfile *t)
{
    if (t->f) fclose(t->f);
    if (t->tmp) unlink(t->tmp);
    free(t->tmp);
    free(t->path);
    *t = (struct tr_tmpfile){ 0 };
}

int tr_write_file(const char *folder, const char *name, const struct tr_buf *text)
{
    struct tr_tmpfile t = { 0 };
    char *path;
    TR_TRY(tr_path_join(&path, folder, name));
    int rc = tr_tmpfile_open(&t, path);
    if (rc == TR_OK && text->size) fwrite(text->data, 1, text->size, t.f); /* commit sees a failure */
    if (rc == TR_OK) rc = tr_tmpfile_commit(&t);
    tr_tmpfile_release(&t);
    free(path);
    return rc;
}

int tr_mkdirs(const char *path)
{
    char *copy;
    if (!*path) return tr_fail(TR_EFAIL, "cannot create a folder: its name is empty");
    TR_TRY(tr_strdup(&copy, path));
    int rc = TR_OK;
    for (char *p = copy + 1; rc == TR_OK; p++) {
        if (*p && *p != '/') continue;
        char c = *p;
        *p = 0;
        if (mkdir(copy, 0777) && errno != EEXIST) rc = tr_fail(TR_EFAIL, "cannot create folder '%s': %s", copy, strerror(errno));
        *p = c;
        if (!c) break;
    }
    if (rc == TR_OK && !tr_is_dir(path)) rc = tr_fail(TR_EFAIL, "cannot create folder '%s': a file has that name", path);
    free(copy);
    return rc;
}

bool tr_is_dir(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

bool tr_exists(const char *path) { return access(path, F_OK) == 0; }

int tr_path_join(char **out, const char *a, const char *b)
{
    struct tr_buf t = { 0 };
    size_t n = strlen(a);
    TR_TRY(tr_buf_printf(&t, "%s%s%s", a, n && a[n - 1] != '/' ? "/" : "", b));
    *out = t.data;
    return TR_OK;
}
