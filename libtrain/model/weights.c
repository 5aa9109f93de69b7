#include "libtrain/model/weights_impl.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const struct tr_stored_type tr_stored_types[ST_TYPES] = {
    { "F32", 1, 4 }, { "F16", 1, 2 }, { "BF16", 1, 2 }, { "F64", 1, 8 }, { "Q4_0", 32, 18 }, { "Q4_1", 32, 20 }, { "Q5_0", 32, 22 },
    { "Q5_1", 32, 24 }, { "Q8_0", 32, 34 }, { "Q4_K", 256, 144 }, { "Q5_K", 256, 176 }, { "Q6_K", 256, 210 },
};

int tr_weights_open(struct tr_weights **out, const char *path)
{
    struct tr_weights *w;
    TR_TRY(tr_calloc(&w, 1, sizeof *w));
    int rc;
    TR_GO(tr_strdup(&w->path, path));
    if (!tr_exists(path)) TR_GO(tr_fail(TR_EINPUT, "cannot open '%s': no such file or folder; set model.path to a .gguf file or a Hugging Face folder", path));
    size_t n = strlen(path);
    bool safetensors = n > 12 && !strcmp(path + n - 12, ".safetensors");
    w->gguf = !tr_is_dir(path) && !safetensors;
    TR_GO(w->gguf ? tr_open_gguf(w, path) : tr_open_hf(w, path));
    TR_GO(tr_weights_finish(w));
    TR_GO(tr_shape_check(&w->shape, path));
    *out = w;
    return TR_OK;
done:
    tr_weights_free(w);
    return rc;
}

void tr_weights_free(struct tr_weights *w)
{
    if (!w) return;
    for (int i = 0; i < w->n_maps; i++) tr_map_close(&w->map[i]);
    json_decref(w->meta);
    free(w->map);
    free(w->entry);
    free(w->path);
    free(w);
}

const struct tr_shape *tr_weights_shape(const struct tr_weights *w) { return &w->shape; }
int64_t tr_weights_count(const struct tr_weights *w) { return (int64_t)w->n; }
const struct tr_weight_entry *tr_weights_at(const struct tr_weights *w, int64_t i) { return &w->entry[i]; }
const json_t *tr_weights_metadata(const struct tr_weights *w) { return w->meta; }
bool tr_weights_is_gguf(const struct tr_weights *w) { return w->gguf; }
const char *tr_weights_path(const struct tr_weights *w) { return w->path; }

int tr_weights_add(struct tr_weights *w, const char *name, enum tr_stored type, int ndim, const int64_t *dim, int file, uint64_t offset, bool transposed)
{
    const struct tr_stored_type *st = &tr_stored_types[type];
    struct tr_weight_entry e = { .ndim = ndim, .file = file, .offset = offset, .transposed = transposed };
    if (strlen(name) >= sizeof e.name) return tr_fail(TR_EINPUT, "tensor name '%.60s...' (%s): it is too long", name, w->path);
    strcpy(e.name, name);
    strcpy(e.stored, st->name);
    uint64_t count = 1;
    for (int i = 0; i < ndim; i++) {
        if (dim[i] <= 0 || __builtin_mul_overflow(count, (uint64_t)dim[i], &count) || count > INT64_MAX / 8)
            return tr_fail(TR_EINPUT, "tensor '%s' (%s): its dimensions are impossible", name, w->path);
        e.dim[i] = dim[i];
    }
    if (dim[ndim - 1] % st->block) return tr_fail(TR_EINPUT, "tensor '%s' (%s): its rows of %" PRId64 " elements are no multiple of %d, the block of %s", name, w->path, dim[ndim - 1], st->block, st->name);
    e.bytes = count / (uint64_t)st->block * (uint64_t)st->bytes;
    if (offset > w->map[file].size || e.bytes > w->map[file].size - offset)
        return tr_fail(TR_EINPUT, "tensor '%s' (%s): its data ends beyond the file; the file is truncated or damaged, fetch it again", name, w->path);
    if (transposed && ndim == 2) {
        e.dim[0] = dim[1];
        e.dim[1] = dim[0];
    }
    TR_TRY(tr_grow(&w->entry, w->n, &w->cap, sizeof *w->entry));
    w->entry[w->n++] = e;
    return TR_OK;
}

static int by_name(const void *a, const void *b) { return strcmp(((const struct tr_weight_entry *)a)->name, ((const struct tr_weight_entry *)b)->name); }

int tr_weights_finish(struct tr_weights *w)
{
    if (w->n) qsort(w->entry, w->n, sizeof *w->entry, by_name);
    for (size_t i = 1; i < w->n; i++)
        if (!strcmp(w->entry[i].name, w->entry[i - 1].name)) return tr_fail(TR_EINPUT, "tensor '%s' (%s): it is there twice", w->entry[i].name, w->path);
    return TR_OK;
}

const struct tr_weight_entry *tr_weights_find(const struct tr_weights *w, const char *name)
{
    struct tr_weight_entry key;
    if (strlen(name) >= sizeof key.name || !w->n) return NULL;
    strcpy(key.name, name);
    return bsearch(&key, w->entry, w->n, sizeof *w->entry, by_name);
}

static enum tr_stored stored_type(const struct tr_weight_entry *e)
{
    int t = 0;
    while (t < ST_TYPES - 1 && strcmp(tr_stored_types[t].name, e->stored)) t++;
    return (enum tr_stored)t;
}

/* Row `row` of the file, n elements from its start. */
static void read_row(enum tr_stored type, const unsigned char *data, int64_t row, int64_t cols, float *out)
{
    const struct tr_stored_type *st = &tr_stored_types[type];
    int64_t blocks = cols / st->block;
    tr_dequantise(type, data + row * blocks * st->bytes, blocks, out);
}

int tr_weights_read(const struct tr_weights *w, const struct tr_weight_entry *e, int64_t begin, int64_t n, float *out)
{
    const unsigned char *data = w->map[e->file].data + e->offset;
    enum tr_stored type = stored_type(e);
    int64_t cols = e->dim[e->ndim - 1], rows = 1;
    for (int i = 0; i < e->ndim - 1; i++) rows *= e->dim[i];
    if (begin < 0 || n < 0 || begin > rows - n) return tr_fail(TR_EFAIL, "rows beyond tensor '%s'", e->name);
    if (e->transposed) { /* stored [C,O]: a row of outputs is a column of the file */
        int64_t size = tr_stored_types[type].bytes;
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < n; r++)
            for (int64_t c = 0; c < cols; c++) tr_dequantise(type, data + (c * rows + begin + r) * size, 1, out + r * cols + c);
        return TR_OK;
    }
    int64_t D = e->permuted_heads ? rows / e->permuted_heads : 0;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n; r++) {
        int64_t row = begin + r;
        if (D) { /* halves of a head from interleaved pairs */
            int64_t i = row % D, half = D / 2;
            row = row - i + 2 * (i % half) + i / half;
        }
        read_row(type, data, row, cols, out + r * cols);
    }
    return TR_OK;
}
