#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"
#include "checkpoint/part.h"
#include "checkpoint/source.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int ckpt_newest(char **path, int64_t *step, const char *folder)
{
    int64_t *steps;
    size_t n;
    *path = NULL;
    TR_TRY(ckpt_file_steps(&steps, &n, folder));
    int rc = tr_fail(TR_EINPUT, "no snapshot in '%s/snapshots': start without --resume", folder);
    for (size_t i = 0; i < n; i++) {
        char *file;
        TR_GO(ckpt_file_path(&file, folder, steps[i]));
        if ((rc = ckpt_file_verify(file)) == TR_OK) {
            *path = file;
            *step = steps[i];
            goto done;
        }
        tr_warn("%s%s", tr_message(), i + 1 < n ? "; trying the one before" : "");
        free(file);
    }
    if (n) rc = tr_fail(TR_EDAMAGED, "every snapshot in '%s/snapshots' is damaged (%zu): start again without --resume", folder, n);
done:
    free(steps);
    return rc;
}

struct loader {
    const struct ckpt_source *src;
    const char *prefix;
    bool write;                 /* the first pass compares, the second one overwrites */
    struct tr_buf names;        /* what the state listed, one name after another, each ended by a NUL */
    const char **sorted;
    size_t n;
};

static bool wanted(const struct loader *l, const char *name)
{
    return !l->prefix || !strncmp(name, l->prefix, strlen(l->prefix));
}

static int differs(const struct loader *l, const char *name, const char *here, const char *there)
{
    return tr_fail(TR_EINPUT, "%s is of another model or recipe: '%s' is %s here and %s there", l->src->label, name, here, there);
}

static int note(struct loader *l, const char *name)
{
    l->n++;
    return tr_buf_add(&l->names, name, strlen(name) + 1);
}

static int compare_tensor(struct loader *l, const char *name, const struct tr_tensor *t)
{
    struct ckpt_item item;
    char here[160], there[160];
    snprintf(here, sizeof here, "%s %s", tr_dtype_name(t->dtype), tr_shape_text(t));
    TR_TRY(note(l, name));
    if (!ckpt_source_has(l->src, name)) return differs(l, name, here, "missing");
    TR_TRY(ckpt_source_item(l->src, name, &item));
    snprintf(there, sizeof there, "%s %s", item.dtype, tr_shape_text(&item.shape));
    if (strcmp(item.dtype, tr_dtype_name(t->dtype)) || item.shape.dtype != t->dtype || !tr_same_shape(&item.shape, t)) return differs(l, name, here, there);
    if (!tr_quant_bytes(t) || item.group == t->quant.group) return TR_OK;
    snprintf(here, sizeof here, "int8 in groups of %" PRId64, t->quant.group);
    snprintf(there, sizeof there, "in groups of %" PRId64, item.group);
    return differs(l, name, here, there);
}

static int read_tensor(struct loader *l, const char *name, struct tr_tensor *t)
{
    struct ckpt_parts parts = ckpt_parts(t, CKPT_PART);
    struct tr_tensor view;
    size_t size = ckpt_part_room((size_t)parts.each * parts.bytes);
    int64_t begin, n;
    uint32_t crc = 0;
    void *host;
    int rc = TR_OK;
    TR_TRY(tr_mem_alloc(&host, size, TR_SNAPSHOT));
    while (ckpt_part_next(&parts, t, &view, &begin, &n)) {
        TR_GO(ckpt_source_rows(l->src, name, t->dtype, begin, n, host));
        crc = tr_crc32c(crc, host, (size_t)n * parts.bytes);
        tr_tensor_write(&view, host);
    }
    rc = ckpt_source_check(l->src, name, crc);
done:
    tr_mem_free(host, size, TR_SNAPSHOT);
    return rc;
}

static int load_tensor(void *self, const char *name, struct tr_tensor *t)
{
    struct loader *l = self;
    struct tr_tensor part[TR_QUANT_PARTS];
    if (!wanted(l, name)) return TR_OK;
    TR_TRY(l->write ? read_tensor(l, name, t) : compare_tensor(l, name, t));
    struct tr_buf b = { 0 };
    int rc = TR_OK, n = tr_quant_views(t, part);
    for (int i = 0; i < n && rc == TR_OK; i++) {
        b.size = 0;
        rc = tr_buf_printf(&b, "%s.%s", name, tr_quant_part[i]);
        if (rc == TR_OK) rc = l->write ? read_tensor(l, b.data, &part[i]) : compare_tensor(l, b.data, &part[i]);
    }
    tr_buf_release(&b);
    return rc;
}

static int load_words(void *self, const char *name, uint64_t *words, int64_t count)
{
    struct loader *l = self;
    if (!wanted(l, name)) return TR_OK;
    if (l->write) {
        TR_TRY(ckpt_source_words(l->src, name, words, count));
        return ckpt_source_check(l->src, name, tr_crc32c(0, words, (size_t)count * 8));
    }
    struct ckpt_item item;
    char here[64], there[64];
    TR_TRY(note(l, name));
    snprintf(here, sizeof here, "%" PRId64 " words", count);
    if (!ckpt_source_has(l->src, name)) return differs(l, name, here, "missing");
    TR_TRY(ckpt_source_item(l->src, name, &item));
    snprintf(there, sizeof there, "%" PRId64 " numbers", item.shape.dim[0]);
    return item.shape.ndim == 1 && item.shape.dim[0] == count ? TR_OK : differs(l, name, here, there);
}

static int by_name(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static int known(void *self, const char *name)
{
    struct loader *l = self;
    if (!wanted(l, name) || bsearch(&name, l->sorted, l->n, sizeof *l->sorted, by_name)) return TR_OK;
    return differs(l, name, "unknown", "present");
}

/* State that the snapshot holds and this run does not (another optimizer's) would be lost without a word. */
static int compare_names(struct loader *l)
{
    TR_TRY(tr_calloc(&l->sorted, l->n, sizeof *l->sorted));
    const char *name = l->names.data;
    for (size_t i = 0; i < l->n; i++, name += strlen(name) + 1) l->sorted[i] = name;
    qsort(l->sorted, l->n, sizeof *l->sorted, by_name);
    return ckpt_source_walk(l->src, known, l);
}

int ckpt_load_source(const struct ckpt_source *src, int64_t *step, ckpt_state state, void *self, const char *prefix)
{
    struct loader l = { .src = src, .prefix = prefix };
    struct tr_visitor v = { &l, load_tensor, load_words };
    int rc;
    v.step = src->step;
    TR_GO(state(self, &v));
    TR_GO(compare_names(&l));
    l.write = true;
    TR_GO(state(self, &v));
    if (step) *step = src->step;
done:
    tr_buf_release(&l.names);
    free(l.sorted);
    return rc;
}

static int load_file(const char *path, int64_t *step, ckpt_state state, void *self, const char *prefix)
{
    struct ckpt_source src;
    TR_TRY(ckpt_source_file(&src, path));
    int rc = ckpt_load_source(&src, step, state, self, prefix);
    ckpt_source_release(&src);
    return rc;
}

int ckpt_load_some(const char *path, int64_t *step, ckpt_state state, void *self, const char *prefix)
{
    if (!tr_is_dir(path)) {
        TR_TRY(ckpt_file_verify(path));
        return load_file(path, step, state, self, prefix);
    }
    char *file;
    int64_t newest;
    TR_TRY(ckpt_newest(&file, &newest, path));
    int rc = load_file(file, step, state, self, prefix);
    free(file);
    return rc;
}

int ckpt_load(const char *path, int64_t *step, ckpt_state state, void *self) { return ckpt_load_some(path, step, state, self, NULL); }
