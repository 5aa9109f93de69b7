/* Text to token ids and back. */
#ifndef TR_TOKENIZER_H
#define TR_TOKENIZER_H
#include "libtrain/base/buf.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct tr_tokens { int32_t *id; int32_t *from; size_t n, cap, from_cap; };  /* from[i]: byte offset in the text where token i begins */
void tr_tokens_release(struct tr_tokens *t);

struct tr_tokenizer;

/* From what a model brings (metadata of a GGUF file), from a Hugging Face folder or tokenizer.json (path), or raw bytes:
 * "bytes" (ids 0..255, 256 = end of text). `path` wins over `gguf` when not empty; a .safetensors path means its folder.
 * A GGUF file is not read here: its metadata comes as `gguf`.
 * Errors: TR_EINPUT naming what is missing or not supported and the key to set. */
int tr_tokenizer_open(struct tr_tokenizer **out, const json_t *gguf, const char *path);
void tr_tokenizer_free(struct tr_tokenizer *t);

int32_t tr_tokenizer_size(const struct tr_tokenizer *t);
int32_t tr_tokenizer_bos(const struct tr_tokenizer *t);     /* -1 when there is none */
int32_t tr_tokenizer_eos(const struct tr_tokenizer *t);
bool tr_tokenizer_adds_bos(const struct tr_tokenizer *t);
const char *tr_tokenizer_template(const struct tr_tokenizer *t);   /* chat template text or NULL */
bool tr_tokenizer_ends(const struct tr_tokenizer *t, int32_t id);  /* eos, or an end-of-turn token: generation stops */

/* Appends the ids of `text` (n bytes of UTF-8). special: texts of special tokens become those tokens. No bos is added.
 * Errors: TR_EINPUT for invalid UTF-8 (byte offset in the message; not for raw bytes). */
int tr_encode(const struct tr_tokenizer *t, struct tr_tokens *out, const char *text, size_t n, bool special);
/* Appends one id that begins at byte `from`. */
int tr_encode_id(struct tr_tokens *out, int32_t id, int32_t from);
/* Appends the bytes of one id. Special tokens are written as their text when `special`. Errors: id beyond the vocabulary. */
int tr_decode(const struct tr_tokenizer *t, struct tr_buf *out, int32_t id, bool special);

#endif
