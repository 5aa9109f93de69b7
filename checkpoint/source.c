#include "checkpoint/source.h"
#include "checkpoint/file.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int name_source(struct ckpt_source *s, const char *path, int64_t step)
{
    struct tr_buf b = { 0 };
    TR_TRY(path ? tr_buf_printf(&b, "snapshot '%s'", path) : tr_buf_printf(&b, "the snapshot of step %" PRId64 " in memory", step));
    s->label = b.data;
    return TR_OK;
}

int ckpt_source_file(struct ckpt_source *s, const char *path)
{
    double number;
    int rc;
    *s = (struct ckpt_source){ 0 };
    TR_GO(name_source(s, path, 0));
    TR_GO(tr_h5_open_known(&s->file, path));
    TR_GO(tr_h5_attr_real(s->file, "/", "format_version", &number));
    if (number != 1) TR_GO(tr_fail(TR_EINPUT, "snapshot '%s' has format version %g: this program reads version 1", path, number));
    TR_GO(tr_h5_attr_real(s->file, "/", "step", &number));
    s->step = (int64_t)number;
done:
    if (rc != TR_OK) ckpt_source_release(s);
    return rc;
}

int ckpt_source_memory(struct ckpt_source *s, const struct ckpt_shared *m, int64_t version, bool verify)
{
    int rc;
    *s = (struct ckpt_source){ .step = version };
    TR_GO(name_source(s, NULL, version));
    TR_GO(ckpt_image_open(&s->img, m, version));
    if (verify) rc = ckpt_image_verify(&s->img);
done:
    if (rc != TR_OK) ckpt_source_release(s);
    return rc;
}

int ckpt_source_nodes(struct ckpt_source *s, const struct ckpt_shared *m, int64_t version, const struct ckpt_nodes *n)
{
    int rc;
    *s = (struct ckpt_source){ .step = version };
    TR_GO(name_source(s, NULL, version));
    TR_GO(ckpt_image_gather(&s->img, m, version, n));
    rc = ckpt_image_verify(&s->img);
done:
    if (rc != TR_OK) ckpt_source_release(s);
    return rc;
}

void ckpt_source_release(struct ckpt_source *s)
{
    tr_h5_close(s->file);
    ckpt_image_release(&s->img);
    free(s->label);
    *s = (struct ckpt_source){ 0 };
}

static const struct ckpt_part_of *find(const struct ckpt_source *s, const char *name, size_t *parts) { return ckpt_image_find(&s->img, name, parts); }

bool ckpt_source_has(const struct ckpt_source *s, const char *name)
{
    size_t parts;
    return s->file ? tr_h5_has(s->file, name) : find(s, name, &parts) != NULL;
}

static int file_item(struct tr_h5 *f, const char *name, struct ckpt_item *item)
{
    char *dtype;
    double group = 0;
    TR_TRY(tr_h5_info(f, name, &item->shape.dtype, &item->shape.ndim, item->shape.dim));
    TR_TRY(tr_h5_attr_text(f, name, "dtype", &dtype));
    snprintf(item->dtype, sizeof item->dtype, "%.16s", dtype);
    free(dtype);
    if (tr_h5_has_attr(f, name, "group")) TR_TRY(tr_h5_attr_real(f, name, "group", &group));
    item->group = group >= 0 && group < 1e9 ? (int64_t)group : -1;
    return TR_OK;
}

int ckpt_source_item(const struct ckpt_source *s, const char *name, struct ckpt_item *item)
{
    size_t parts;
    *item = (struct ckpt_item){ 0 };
    if (s->file) return file_item(s->file, name, item);
    const struct ckpt_part_of *p = find(s, name, &parts);
    if (!p) return tr_fail(TR_EINPUT, "%s has no '%s'", s->label, name);
    item->shape.dtype = (enum tr_dtype)p->e.dtype;
    item->shape.ndim = p->e.ndim;
    memcpy(item->shape.dim, p->e.dim, sizeof item->shape.dim);
    item->group = p->e.group;
    snprintf(item->dtype, sizeof item->dtype, "%s", p->e.words ? "u64" : tr_dtype_name(item->shape.dtype));
    return TR_OK;
}

/* Rows that a part has of [begin, begin + n). */
static int copy_part(const struct ckpt_source *s, const struct ckpt_part_of *p, int64_t begin, int64_t n, char *host)
{
    int64_t from = begin > p->e.begin ? begin : p->e.begin, to = begin + n < p->e.begin + p->e.rows ? begin + n : p->e.begin + p->e.rows;
    size_t row = ckpt_entry_row(&p->e);
    if (from >= to) return TR_OK;
    return ckpt_image_read(&s->img, p, (size_t)(from - p->e.begin) * row, (size_t)(to - from) * row, host + (size_t)(from - begin) * row);
}

int ckpt_source_rows(const struct ckpt_source *s, const char *name, enum tr_dtype type, int64_t begin, int64_t n, void *host)
{
    size_t parts;
    if (s->file) return tr_h5_read_rows(s->file, name, type, begin, n, host);
    const struct ckpt_part_of *p = find(s, name, &parts);
    if (!p || p->e.dtype != type || begin < 0 || begin > p->e.dim[0] - n) return tr_fail(TR_EINPUT, "%s has no such rows of '%s'", s->label, name);
    for (size_t i = 0; i < parts; i++) TR_TRY(copy_part(s, &p[i], begin, n, host));
    return TR_OK;
}

int ckpt_source_words(const struct ckpt_source *s, const char *name, uint64_t *words, int64_t count)
{
    size_t parts;
    if (s->file) return tr_h5_read_words(s->file, name, words, count);
    const struct ckpt_part_of *p = find(s, name, &parts);
    if (!p || !p->e.words || p->e.dim[0] != count) return tr_fail(TR_EINPUT, "%s has no %" PRId64 " words '%s'", s->label, count, name);
    return ckpt_image_read(&s->img, p, 0, p->e.bytes, words);
}

int ckpt_source_check(const struct ckpt_source *s, const char *name, uint32_t crc)
{
    double want;
    if (!s->file) return TR_OK;
    TR_TRY(tr_h5_attr_real(s->file, name, "crc32c", &want));
    return want == (double)crc ? TR_OK : tr_fail(TR_EDAMAGED, "%s is damaged: the checksum of '%s' does not hold", s->label, name);
}

int ckpt_source_walk(const struct ckpt_source *s, int (*each)(void *self, const char *name), void *self)
{
    if (s->file) return ckpt_file_walk(s->file, each, self);
    for (size_t i = 0; i < s->img.n; i += ckpt_image_run(&s->img, i)) TR_TRY(each(self, s->img.part[i].e.name));
    return TR_OK;
}
