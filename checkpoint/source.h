/* What a resume reads from: a file, or a version in memory. */
#ifndef CKPT_SOURCE_H
#define CKPT_SOURCE_H
#include "checkpoint/image.h"
#include "libtrain/base/h5.h"

struct ckpt_item { char dtype[17]; struct tr_tensor shape; int64_t group; };   /* dtype "u64": words */

struct ckpt_source {
    char *label;                     /* "snapshot 'PATH'", for messages */
    int64_t step;
    struct tr_h5 *file;              /* one of them */
    struct ckpt_image img;
};

/* The bytes of a file must have been verified. A source that failed to open needs no release. Errors: TR_EINPUT. */
int ckpt_source_file(struct ckpt_source *s, const char *path);
/* Verifies the version's bytes, too, when `verify`. Errors: TR_EDAMAGED. */
int ckpt_source_memory(struct ckpt_source *s, const struct ckpt_shared *m, int64_t version, bool verify);
/* The same of several nodes; each rank verifies its own parts. Every rank then reads the same rows in the same order. Collective. */
int ckpt_source_nodes(struct ckpt_source *s, const struct ckpt_shared *m, int64_t version, const struct ckpt_nodes *n);
void ckpt_source_release(struct ckpt_source *s);

bool ckpt_source_has(const struct ckpt_source *s, const char *name);
int ckpt_source_item(const struct ckpt_source *s, const char *name, struct ckpt_item *item);
int ckpt_source_rows(const struct ckpt_source *s, const char *name, enum tr_dtype type, int64_t begin, int64_t n, void *host);
int ckpt_source_words(const struct ckpt_source *s, const char *name, uint64_t *words, int64_t count);
/* Whether `crc` is that of the item's bytes; parts in memory were verified at once. */
int ckpt_source_check(const struct ckpt_source *s, const char *name, uint32_t crc);
int ckpt_source_walk(const struct ckpt_source *s, int (*each)(void *self, const char *name), void *self);

#endif
