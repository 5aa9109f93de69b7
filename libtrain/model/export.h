/* What the writers of model files share. Private to this room. */
#ifndef TR_EXPORT_H
#define TR_EXPORT_H
#include "libtrain/base/file.h"
#include "libtrain/model/weights_impl.h"

/* tokenizer.json and tokenizer_config.json as JSON, from a GGUF file's metadata. */
int tr_tokenizer_json_from_gguf(json_t **tokenizer, json_t **config, const json_t *gguf);
/* config.json from a shape. */
json_t *tr_config_from_shape(const struct tr_shape *s, enum tr_dtype dtype);
/* "tokenizer.ggml.*" keys as JSON, from a folder's tokenizer.json and tokenizer_config.json; NULL in *out when the folder
 * has none. */
int tr_gguf_tokenizer_from_folder(json_t **out, const char *folder);

int tr_json_read(json_t **out, const char *folder, const char *name);   /* *out NULL when the file is not there */

#endif
