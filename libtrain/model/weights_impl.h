/* What the readers of model files share. Private to this room. */
#ifndef TR_WEIGHTS_IMPL_H
#define TR_WEIGHTS_IMPL_H
#include "libtrain/base/file.h"
#include "libtrain/model/weights.h"

/* Element types in files. */
enum tr_stored { ST_F32, ST_F16, ST_BF16, ST_F64, ST_Q4_0, ST_Q4_1, ST_Q5_0, ST_Q5_1, ST_Q8_0, ST_Q4_K, ST_Q5_K, ST_Q6_K, ST_TYPES };
struct tr_stored_type { const char *name; int block, bytes; };   /* elements and bytes of a block */
extern const struct tr_stored_type tr_stored_types[ST_TYPES];

struct tr_weights {
    char *path;
    bool gguf;
    struct tr_shape shape;
    json_t *meta;
    struct tr_map *map;
    int n_maps;
    struct tr_weight_entry *entry;   /* sorted by name */
    size_t n, cap;
    size_t kv_begin, kv_end;         /* GGUF: where the key/value bytes lie, for export */
    uint64_t n_kv;
};

/* Adds an entry; name is cut from outside text and checked. bytes = size of the data in its file. */
int tr_weights_add(struct tr_weights *w, const char *name, enum tr_stored type, int ndim, const int64_t *dim, int file, uint64_t offset, bool transposed);
/* Sorts and refuses duplicates. */
int tr_weights_finish(struct tr_weights *w);

int tr_open_gguf(struct tr_weights *w, const char *path);
int tr_open_hf(struct tr_weights *w, const char *path);      /* folder or one .safetensors file */
/* Shape from a parsed config.json. */
int tr_shape_from_config(struct tr_shape *s, const json_t *config, const char *where);

/* Names between the two worlds; false when there is none. */
bool tr_gguf_to_hf(char *out, size_t size, const char *name, bool gpt2);
bool tr_hf_to_gguf(char *out, size_t size, const char *name, bool gpt2);

/* n elements from `block index` on of a quantised row, to f32. */
void tr_dequantise(enum tr_stored type, const unsigned char *data, int64_t blocks, float *out);

#endif
