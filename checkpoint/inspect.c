#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"
#include "checkpoint/part.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct lister { struct tr_h5 *f; FILE *out; bool verify; int64_t n, numbers; };

/* The checksum of a dataset that is read as it was written, in parts. */
static int crc_of(struct tr_h5 *f, const char *name, const struct tr_tensor *t, bool words, uint32_t *crc)
{
    size_t row = words ? 8 : tr_dtype_size(t->dtype);
    for (int i = 1; i < t->ndim; i++) row *= (size_t)t->dim[i];
    int64_t each = words ? t->dim[0] : row && row < CKPT_PART ? (int64_t)(CKPT_PART / row) : 1;
    if (each > t->dim[0]) each = t->dim[0];
    size_t size = ckpt_part_room((size_t)each * row);
    void *part;
    int rc = TR_OK;
    *crc = 0;
    TR_TRY(tr_mem_alloc(&part, size, TR_SNAPSHOT));
    if (words) {
        rc = tr_h5_read_words(f, name, part, t->dim[0]);
        *crc = tr_crc32c(0, part, (size_t)each * row);
    }
    for (int64_t at = 0; !words && row && rc == TR_OK && at < t->dim[0]; at += each) {
        int64_t n = t->dim[0] - at < each ? t->dim[0] - at : each;
        rc = tr_h5_read_rows(f, name, t->dtype, at, n, part);
        *crc = tr_crc32c(*crc, part, (size_t)n * row);
    }
    tr_mem_free(part, size, TR_SNAPSHOT);
    return rc;
}

static int list_one(void *self, const char *name)
{
    struct lister *l = self;
    struct tr_tensor t = { 0 };
    char *dtype;
    uint32_t crc;
    double want;
    TR_TRY(tr_h5_info(l->f, name, &t.dtype, &t.ndim, t.dim));
    TR_TRY(tr_h5_attr_text(l->f, name, "dtype", &dtype));
    bool words = !strcmp(dtype, "u64");
    fprintf(l->out, "%-6.16s %-20s %s", dtype, tr_shape_text(&t), name);
    free(dtype);
    l->n++;
    l->numbers += tr_count(&t);
    if (l->verify) {
        TR_TRY(crc_of(l->f, name, &t, words, &crc));
        TR_TRY(tr_h5_attr_real(l->f, name, "crc32c", &want));
        fprintf(l->out, want == (double)crc ? "  ok" : "  DAMAGED");
    }
    fputc('\n', l->out);
    return TR_OK;
}

int ckpt_inspect(FILE *out, const char *path, bool verify)
{
    struct lister l = { .out = out, .verify = verify };
    char *recipe = NULL, *version = NULL;
    double step;
    int rc;
    TR_TRY(ckpt_file_verify(path));
    TR_TRY(tr_h5_open_known(&l.f, path));
    TR_GO(tr_h5_attr_real(l.f, "/", "step", &step));
    TR_GO(tr_h5_attr_text(l.f, "/", "version", &version));
    TR_GO(tr_h5_attr_text(l.f, "/", "recipe", &recipe));
    fprintf(out, "snapshot of train %s after step %.0f, checksum ok\n", version, step);
    TR_GO(ckpt_file_walk(l.f, list_one, &l));
    fprintf(out, "%" PRId64 " entries, %" PRId64 " numbers\n", l.n, l.numbers);
    if (*recipe) fprintf(out, "\nrecipe:\n%s%s", recipe, recipe[strlen(recipe) - 1] == '\n' ? "" : "\n");
done:
    tr_h5_close(l.f);
    free(version);
    free(recipe);
    return rc;
}
