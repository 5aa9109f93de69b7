#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"
#include "checkpoint/image.h"
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

static int make(struct saver *s, const char *name, const struct tr_tensor *t)
{
    if (tr_h5_has(s->f, name)) return tr_fail(TR_EFAIL, "the state lists '%s' twice", name);
    return tr_h5_make(s->f, name, t->dtype, t->ndim, t->dim, s->compress);
}

static int describe(struct saver *s, const char *name, enum tr_dtype dtype, uint32_t crc, int64_t group)
{
    TR_TRY(tr_h5_set_text(s->f, name, "dtype", tr_dtype_name(dtype)));
    TR_TRY(tr_h5_set_int(s->f, name, "crc32c", crc));
    return dtype == TR_INT8 && group ? tr_h5_set_int(s->f, name, "group", group) : TR_OK;
}

static int save_tensor(void *self, const char *name, struct tr_tensor *t)
{
    struct saver *s = self;
    struct ckpt_parts parts = ckpt_parts(t, CKPT_PART);
    struct tr_tensor view, quant[TR_QUANT_PARTS];
    struct tr_buf b = { 0 };
    int n_quant;
    size_t size = ckpt_part_room((size_t)parts.each * parts.bytes);
    int64_t begin, n;
    uint32_t crc = 0;
    void *host;
    int rc;
    TR_TRY(tr_mem_alloc(&host, size, TR_SNAPSHOT));
    TR_GO(make(s, name, t));
    while (ckpt_part_next(&parts, t, &view, &begin, &n)) {
        tr_tensor_read(&view, host);
        crc = tr_crc32c(crc, host, (size_t)n * parts.bytes);
        TR_GO(tr_h5_write_rows(s->f, name, t->dtype, begin, n, host));
    }
    n_quant = tr_quant_views(t, quant);
    TR_GO(describe(s, name, t->dtype, crc, n_quant ? t->quant.group : 0));
    for (int i = 0; i < n_quant; i++) { /* scales and zeros of int8 weights */
        b.size = 0;
        TR_GO(tr_buf_printf(&b, "%s.%s", name, tr_quant_part[i]));
        TR_GO(save_tensor(s, b.data, &quant[i]));
    }
    rc = TR_OK;
done:
    tr_buf_release(&b);
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

/* Rows [at, at + n) of a part, from where they lie. */
static int save_rows(struct saver *s, const struct ckpt_part_of *p, uint32_t *crc, uint32_t *whole)
{
    size_t row = ckpt_entry_row(&p->e);
    int64_t each = row < CKPT_PART ? (int64_t)(CKPT_PART / row) : 1;
    for (int64_t at = 0; at < p->e.rows; at += each) {
        int64_t n = p->e.rows - at < each ? p->e.rows - at : each;
        const unsigned char *from = p->data + (size_t)at * row;
        *crc = tr_crc32c(*crc, from, (size_t)n * row);
        *whole = tr_crc32c(*whole, from, (size_t)n * row);
        TR_TRY(tr_h5_write_rows(s->f, p->e.name, (enum tr_dtype)p->e.dtype, p->e.begin + at, n, from));
        ckpt_image_forget(from, (size_t)n * row);
    }
    return TR_OK;
}

static int damaged_part(const struct ckpt_image *img, const struct ckpt_part_of *p)
{
    return tr_fail(TR_EDAMAGED, "the snapshot of step %" PRId64 " in memory is damaged: the checksum of '%s' does not hold", img->version, p->e.name);
}

static int save_parts(struct saver *s, const struct ckpt_image *img, const struct ckpt_part_of *p, size_t n)
{
    struct tr_tensor shape = { .dtype = (enum tr_dtype)p->e.dtype, .ndim = p->e.ndim };
    uint32_t whole = 0;
    if (p->e.words) {
        uint64_t *words;
        TR_TRY(tr_calloc(&words, (size_t)p->e.rows, sizeof *words));
        memcpy(words, p->data, p->e.bytes);
        int rc = tr_crc32c(0, words, p->e.bytes) == p->e.crc ? save_words(s, p->e.name, words, p->e.rows) : damaged_part(img, p);
        free(words);
        return rc;
    }
    memcpy(shape.dim, p->e.dim, sizeof shape.dim);
    TR_TRY(make(s, p->e.name, &shape));
    for (size_t i = 0; i < n; i++) {
        uint32_t crc = 0;
        TR_TRY(save_rows(s, &p[i], &crc, &whole));
        if (crc != p[i].e.crc) return damaged_part(img, &p[i]);
    }
    return describe(s, p->e.name, shape.dtype, whole, p->e.group);
}

static int save_image(struct saver *s, const struct ckpt_image *img)
{
    for (size_t i = 0, n; i < img->n; i += n) {
        n = ckpt_image_run(img, i);
        TR_TRY(save_parts(s, img, &img->part[i], n));
    }
    return TR_OK;
}

/* What a file is written from: a state that lists itself, or a version in memory. */
struct content { int64_t step; ckpt_state state; void *self; const struct ckpt_image *img; const char *recipe; bool compress; };

static int write_content(const char *path, const struct content *c)
{
    struct saver s = { .compress = c->compress };
    struct tr_visitor v = { &s, save_tensor, save_words, .only_reads = true };
    TR_TRY(tr_h5_create_block(&s.f, path, CKPT_BLOCK));
    int rc;
    TR_GO(tr_h5_set_text(s.f, "/", "format", "train snapshot"));
    TR_GO(tr_h5_set_int(s.f, "/", "format_version", 1));
    TR_GO(tr_h5_set_text(s.f, "/", "version", TR_VERSION));
    TR_GO(tr_h5_set_int(s.f, "/", "step", c->step));
    TR_GO(tr_h5_set_text(s.f, "/", "recipe", c->recipe ? c->recipe : ""));
    rc = c->img ? save_image(&s, c->img) : c->state(c->self, &v);
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

static int save(const char *folder, const struct content *c, int64_t keep)
{
    char *snapshots = NULL, *path = NULL;
    struct tr_tmpfile tmp = { 0 };
    FILE *f = NULL;
    int rc;
    TR_GO(tr_path_join(&snapshots, folder, "snapshots"));
    TR_GO(ckpt_file_path(&path, folder, c->step));
    TR_GO(tr_mkdirs(snapshots));
    sweep(snapshots);
    TR_GO(tr_tmpfile_open(&tmp, path));
    TR_GO(write_content(tmp.tmp, c));
    f = fopen(tmp.tmp, "r+b");
    if (!f) TR_GO(tr_fail(TR_EFAIL, "cannot write '%s': %s", path, strerror(errno)));
    TR_GO(ckpt_file_seal(f, path));
    TR_GO(tr_tmpfile_commit(&tmp));
    retain(folder, keep, c->step);
done:
    if (f) fclose(f);
    tr_tmpfile_release(&tmp);
    free(path);
    free(snapshots);
    return rc;
}

int ckpt_save(const char *folder, int64_t step, ckpt_state state, void *self, const char *recipe, int64_t keep, int compress)
{
    return save(folder, &(struct content){ step, state, self, NULL, recipe, compress > 0 }, keep);
}

int ckpt_save_image(const char *folder, const struct ckpt_image *img, const char *recipe, int64_t keep, int compress)
{
    return save(folder, &(struct content){ img->version, NULL, NULL, img, recipe, compress > 0 }, keep);
}
