/* A complete version in shared memory as one snapshot: the parts of all ranks put together. With several nodes every rank has the
 * list of all parts and the bytes of its own; those of others are sent when they are read, so reading is collective. */
#ifndef CKPT_IMAGE_H
#define CKPT_IMAGE_H
#include "checkpoint/nodes.h"
#include "checkpoint/shared.h"
#include "libtrain/tensor/tensor.h"

struct ckpt_part_of { struct ckpt_entry e; const unsigned char *data; int rank; };   /* data NULL: on another node */
struct ckpt_image { const struct ckpt_shared *s; int64_t version; struct tr_comm *comm; struct ckpt_part_of *part; size_t n; };   /* comm: of several nodes, else NULL */

/* Parts of the same name follow one another in the order of rows and cover the whole; *img is to be released in any case.
 * Lists are checked here, bytes by ckpt_image_verify. Errors: TR_EDAMAGED. */
int ckpt_image_open(struct ckpt_image *img, const struct ckpt_shared *s, int64_t version);
int ckpt_image_gather(struct ckpt_image *img, const struct ckpt_shared *s, int64_t version, const struct ckpt_nodes *n);   /* of several nodes; collective */
/* One rank's parts alone. */
int ckpt_image_part(struct ckpt_image *img, const struct ckpt_shared *s, uint32_t rank, int64_t version);
/* The checksum of all bytes that are here. Errors: TR_EDAMAGED. */
int ckpt_image_verify(const struct ckpt_image *img);
void ckpt_image_release(struct ckpt_image *img);

/* The first part of a name and their number; NULL: there is none. */
const struct ckpt_part_of *ckpt_image_find(const struct ckpt_image *img, const char *name, size_t *parts);
/* Bytes [at, at + n) of a part. Of several nodes: collective. */
int ckpt_image_read(const struct ckpt_image *img, const struct ckpt_part_of *p, size_t at, size_t n, void *to);
/* Parts from `at` on that have the same name. */
size_t ckpt_image_run(const struct ckpt_image *img, size_t at);
/* Bytes of one index of the first dimension. */
size_t ckpt_entry_row(const struct ckpt_entry *e);
/* What was read through the mapping is resident no longer; the bytes stay. */
void ckpt_image_forget(const void *data, size_t bytes);

#endif
