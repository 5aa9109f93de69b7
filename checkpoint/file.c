#include "checkpoint/file.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char MAGIC[] = "train snapshot 1\n";

/* The checksum of everything behind the block; false on a read error. */
static bool checksum(FILE *f, uint32_t *crc, int64_t *bytes)
{
    size_t n, size = 1 << 18;
    unsigned char *part = malloc(size);
    *crc = 0;
    *bytes = 0;
    if (!part || fseeko(f, CKPT_BLOCK, SEEK_SET)) return free(part), false;
    while ((n = fread(part, 1, size, f)) > 0) {
        *crc = tr_crc32c(*crc, part, n);
        *bytes += (int64_t)n;
    }
    free(part);
    return !ferror(f);
}

static void print_block(char block[CKPT_BLOCK], uint32_t crc, int64_t bytes)
{
    memset(block, 0, CKPT_BLOCK);
    snprintf(block, CKPT_BLOCK, "%sbytes %" PRId64 "\ncrc32c %08" PRIx32 "\n", MAGIC, bytes, crc);
}

int ckpt_file_seal(FILE *f, const char *path)
{
    char block[CKPT_BLOCK];
    uint32_t crc;
    int64_t bytes;
    errno = 0;
    if (!checksum(f, &crc, &bytes)) return tr_fail(TR_EFAIL, "cannot read back '%s': %s", path, strerror(errno ? errno : EIO));
    print_block(block, crc, bytes);
    if (fseeko(f, 0, SEEK_SET) || fwrite(block, 1, CKPT_BLOCK, f) != CKPT_BLOCK || fflush(f))
        return tr_fail(TR_EFAIL, "cannot write '%s': %s", path, strerror(errno ? errno : EIO));
    return TR_OK;
}

int ckpt_file_verify(const char *path)
{
    char block[CKPT_BLOCK] = { 0 }, want[CKPT_BLOCK];
    uint32_t crc;
    int64_t bytes;
    FILE *f = tr_is_dir(path) ? (errno = EISDIR, NULL) : fopen(path, "rb");
    if (!f) return tr_fail(TR_EINPUT, "cannot read snapshot '%s': %s", path, strerror(errno));
    int rc = TR_OK;
    size_t n = fread(block, 1, CKPT_BLOCK, f);
    if (memcmp(block, MAGIC, sizeof MAGIC - 1) && ckpt_file_step(path) < 0)
        rc = tr_fail(TR_EINPUT, "'%s' is not a snapshot of train", path);
    else if (n < CKPT_BLOCK || !checksum(f, &crc, &bytes)) rc = tr_fail(TR_EDAMAGED, "snapshot '%s' is damaged: it is cut off", path);
    else {
        print_block(want, crc, bytes);
        if (memcmp(block, want, CKPT_BLOCK))
            rc = tr_fail(TR_EDAMAGED, "snapshot '%s' is damaged: its checksum does not hold", path);
    }
    fclose(f);
    return rc;
}

int64_t ckpt_file_step(const char *path)
{
    const char *name = strrchr(path, '/'), *digits;
    name = name ? name + 1 : path;
    if (strncmp(name, "step-", 5)) return -1;
    digits = name + 5;
    size_t n = strspn(digits, "0123456789");
    return n >= 8 && n <= 18 && !strcmp(digits + n, ".h5") ? strtoll(digits, NULL, 10) : -1;
}

int ckpt_file_path(char **path, const char *folder, int64_t step)
{
    struct tr_buf b = { 0 };
    size_t n = strlen(folder);
    TR_TRY(tr_buf_printf(&b, "%s%ssnapshots/step-%08" PRId64 ".h5", folder, n && folder[n - 1] != '/' ? "/" : "", step));
    *path = b.data;
    return TR_OK;
}

static int newer(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

int ckpt_file_steps(int64_t **steps, size_t *n, const char *folder)
{
    char *path;
    size_t cap = 0;
    *steps = NULL;
    *n = 0;
    TR_TRY(tr_path_join(&path, folder, "snapshots"));
    DIR *d = opendir(path);
    int rc = d || errno == ENOENT ? TR_OK : tr_fail(TR_EINPUT, "cannot read folder '%s': %s", path, strerror(errno));
    for (struct dirent *e; d && rc == TR_OK && (e = readdir(d)); ) {
        int64_t step = ckpt_file_step(e->d_name);
        if (step < 0) continue;
        rc = tr_grow(steps, *n, &cap, sizeof **steps);
        if (rc == TR_OK) (*steps)[(*n)++] = step;
    }
    if (d) closedir(d);
    free(path);
    if (*n) qsort(*steps, *n, sizeof **steps, newer);
    return rc;
}

struct walk { struct tr_h5 *f; struct tr_buf name; int depth; int (*each)(void *, const char *); void *self; };

static int on_link(void *self, const char *name, bool is_group)
{
    struct walk *w = self;
    size_t size = w->name.size;
    int rc;
    if (w->depth > 16) return tr_fail(TR_EINPUT, "'%s': groups are nested too deeply", w->name.data);
    TR_TRY(tr_buf_printf(&w->name, "%s%s", size ? "/" : "", name));
    w->depth++;
    rc = is_group ? tr_h5_list(w->f, w->name.data, on_link, w) : w->each(w->self, w->name.data);
    w->depth--;
    w->name.data[w->name.size = size] = 0;
    return rc;
}

int ckpt_file_walk(struct tr_h5 *f, int (*each)(void *self, const char *name), void *self)
{
    struct walk w = { .f = f, .each = each, .self = self };
    int rc = tr_h5_list(f, "/", on_link, &w);
    tr_buf_release(&w.name);
    return rc;
}
