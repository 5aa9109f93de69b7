/* Model files behind one interface: a GGUF file or a Hugging Face folder (or one .safetensors file). Tensors are listed
 * under their Hugging Face names and shapes ([C,O] for GPT-2's Conv1D in Hugging Face files, said by `transposed`);
 * reading converts to f32 rows, undoing what GGUF did to them (llama's permuted q and k, quantisation). Everything read
 * is hostile until checked. */
#ifndef TR_WEIGHTS_H
#define TR_WEIGHTS_H
#include "libtrain/model/model.h"
#include <jansson.h>

struct tr_weight_entry {
    char name[128];          /* Hugging Face name, e.g. model.layers.0.mlp.up_proj.weight */
    int ndim;
    int64_t dim[4];          /* as [O,C], i.e. rows are outputs; GPT-2 Conv1D already turned round */
    char stored[16];         /* type in the file: "F32", "BF16", "Q4_K", ... */
    uint64_t offset, bytes;  /* in its file */
    int file;
    bool transposed;         /* stored as [C,O] */
    int64_t permuted_heads;  /* GGUF llama: rows of q or k lie as interleaved pairs in this many heads; 0 = as they should */
};

struct tr_weights;           /* opaque: maps, entries, metadata */

/* Opens and checks a model: header sizes, offsets, shapes against the configuration. Errors: TR_EINPUT with file and
 * reason for anything truncated, damaged, missing, unsupported. */
int tr_weights_open(struct tr_weights **out, const char *path);
void tr_weights_free(struct tr_weights *w);

const struct tr_shape *tr_weights_shape(const struct tr_weights *w);
int64_t tr_weights_count(const struct tr_weights *w);
const struct tr_weight_entry *tr_weights_at(const struct tr_weights *w, int64_t i);
const struct tr_weight_entry *tr_weights_find(const struct tr_weights *w, const char *name);   /* NULL when absent */

/* Rows [begin, begin + n) of the tensor (as [O,C]; a vector is one row) as f32 into out. */
int tr_weights_read(const struct tr_weights *w, const struct tr_weight_entry *e, int64_t begin, int64_t n, float *out);

/* Metadata: the GGUF key/value table as one JSON object (arrays as arrays), or the parsed config.json. Borrowed. */
const json_t *tr_weights_metadata(const struct tr_weights *w);
bool tr_weights_is_gguf(const struct tr_weights *w);
const char *tr_weights_path(const struct tr_weights *w);

/* ---- writing. Values come from `read`: rows [begin, begin+n) of parameter i as f32, [O,C]. dtype F32 or BF16 is how
 * matrices are stored (vectors always F32 in GGUF). `origin` may be NULL: metadata, tokenizer and chat template are
 * copied from it (GGUF to GGUF, folder to folder; from a GGUF origin a folder gets config.json, generation_config.json,
 * tokenizer.json and tokenizer_config.json made from the metadata, and the other way round). Atomic: nothing half-written. */
struct tr_export {
    const struct tr_shape *shape;
    const struct tr_weights *origin;
    int64_t n;
    const struct tr_param *params;
    int (*read)(void *self, int64_t i, int64_t begin, int64_t n, float *out);
    void *self;
    enum tr_dtype dtype;
};
int tr_export_safetensors(const struct tr_export *e, const char *folder);
int tr_export_gguf(const struct tr_export *e, const char *path);

#endif
