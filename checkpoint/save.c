#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"
#include "checkpoint/part.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/status.h"
#include "train_config.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct saver { struct tr_h5 *f; bool compress; };

static int save_tensor(void *self, const char *name, struct tr_tensor *t);

/* Scales and zeros of int8 weights. */
static int save_parts(struct saver *s, const char *name, const struct tr_tensor *t)
{
    struct tr_tensor part[TR_QUANT_PARTS];
    struct tr_buf b = { 0 };
    int rc, n = tr_quant_views(t, part);
    if (n) TR_TRY(tr_h5_set_int(s->f, name, "group", t->quant.group));
    for (int i = 0; i < n; i++) {
        b.size = 0;
        TR_GO(tr_buf_printf(&b, "%s.%s", name, tr_quant_part[i]));
        TR_GO(save_tensor(s, b.data, &part[i]));
    }
    rc = TR_OK;
done:
    tr_buf_release(&b);
    return rc;
}

static int save_tensor(void *self, const char *name, struct tr_tensor *t)
{
    struct saver *s = self;
    struct ckpt_parts parts = ckpt_parts(t);
    struct tr_tensor view;
    size_t size = ckpt_part_room((size_t)parts.each * parts.bytes);
    int64_t begin, n;
    uint32_t crc = 0;
    void *host;
    int rc = TR_OK;
    if (tr_h5_has(s->f, name)) return tr_fail(TR_EFAIL, "the state lists '%s' twice", name);
    TR_TRY(tr_mem_alloc(&host, size, TR_SNAPSHOT));
    TR_GO(tr_h5_make(s->f, name, t->dtype, t->ndim, t->dim, s->compress));
    while (ckpt_part_next(&parts, t, &view, &begin, &n)) {
        tr_tensor_read(&view, host);
        crc = tr_crc32c(crc, host, (size_t)n * parts.bytes);
        TR_GO(tr_h5_write_rows(s->f, name, t->dtype, begin, n, host));
    }
    TR_GO(tr_h5_set_text(s->f, name, "dtype", tr_dtype_name(t->dtype)));
    TR_GO(tr_h5_set_int(s->f, name, "crc32c", crc));
    rc = save_parts(s, name, t);
done:
    tr_mem_free(host, size, TR_SNAPSHOT);
    return rc;
}

static int save_words(void *self, const char *name, uint64_t *words, int64_t count)
{
    struct saver *s = self;
    if (tr_h5_has(s->f, name)) return tr_fail(TR_EFAIL, "the state lists '%s' twice", name);
    TR_TRY(tr_h5_write_words(s->f, name, words, count));
    TR_TRY(tr_h5_set_text(s->f, name, "dtype", "u64"));
    return tr_h5_set_int(s->f, name, "crc32c", tr_crc32c(0, words, (size_t)count * 8));
}

static int write_state(const char *path, int64_t step, ckpt_state state, void *self, const char *recipe, bool compress)
{
    struct saver s = { .compress = compress };
    struct tr_visitor v = { &s, save_tensor, save_words, .only_reads = true };
    TR_TRY(tr_h5_create_block(&s.f, path, CKPT_BLOCK));
    int rc;
    TR_GO(tr_h5_set_text(s.f, "/", "format", "train snapshot"));
    TR_GO(tr_h5_set_int(s.f, "/", "format_version", 1));
    TR_GO(tr_h5_set_text(s.f, "/", "version", TR_VERSION));
    TR_GO(tr_h5_set_int(s.f, "/", "step", step));
    TR_GO(tr_h5_set_text(s.f, "/", "recipe", recipe ? recipe : ""));
    rc = state(self, &v);
done:;
    int closed = tr_h5_close(s.f);
    return rc == TR_OK ? closed : rc;
}

/* Temporaries of processes that died while saving. */
static void sweep(const char *folder)
{
    DIR *d = opendir(folder);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d)); ) {
        long pid;
        int64_t step;
        char *path;
        if (sscanf(e->d_name, ".step-%" SCNd64 ".h5.%ld.tmp", &step, &pid) != 2 || pid == (long)getpid()) continue;
        if ((kill((pid_t)pid, 0) == 0 || errno != ESRCH) || tr_path_join(&path, folder, e->d_name) != TR_OK) continue;
        unlink(path);
        free(path);
    }
    closedir(d);
}

/* Removes all but the newest `keep`, never `just`. A failure leaves a file too many and is only said. */
static void retain(const char *folder, int64_t keep, int64_t just)
{
    int64_t *steps;
    size_t n;
    if (keep > 0 && ckpt_file_steps(&steps, &n, folder) == TR_OK) {
        for (size_t i = (size_t)keep; i < n; i++) {
            char *path;
            if (steps[i] == just || ckpt_file_path(&path, folder, steps[i]) != TR_OK) continue;
            if (unlink(path) && errno != ENOENT) tr_warn("cannot remove the old snapshot '%s': %s", path, strerror(errno));
            free(path);
        }
        free(steps);
    }
}

int ckpt_save(const char *folder, int64_t step, ckpt_state state, void *self, const char *recipe, int64_t keep, int compress)
{
    char *snapshots = NULL, *path = NULL;
    struct tr_tmpfile tmp = { 0 };
    FILE *f = NULL;
    int rc;
    TR_GO(tr_path_join(&snapshots, folder, "snapshots"));
    TR_GO(ckpt_file_path(&path, folder, step));
    TR_GO(tr_mkdirs(snapshots));
    sweep(snapshots);
    TR_GO(tr_tmpfile_open(&tmp, path));
    TR_GO(write_state(tmp.tmp, step, state, self, recipe, compress));
    f = fopen(tmp.tmp, "r+b");
    if (!f) TR_GO(tr_fail(TR_EFAIL, "cannot write '%s': %s", path, strerror(errno)));
    TR_GO(ckpt_file_seal(f, path));
    TR_GO(tr_tmpfile_commit(&tmp));
    retain(folder, keep, step);
done:
    if (f) fclose(f);
    tr_tmpfile_release(&tmp);
    free(path);
    free(snapshots);
    return rc;
}
