/* A tensor's way to and from a file or another memory in parts of about `most` bytes, dense, along its first dimension. */
#ifndef CKPT_PART_H
#define CKPT_PART_H
#include "libtrain/tensor/tensor.h"

struct ckpt_parts { int64_t each, at; size_t bytes /* of one index of the first dimension */; };

/* Bytes of the buffer for a part. Never below CKPT_PART: blocks of that size go back to the system, while smaller ones leave
 * holes in the heap between what HDF5 keeps, 70 MB after a snapshot of 600 tensors. */
size_t ckpt_part_room(size_t bytes);
struct ckpt_parts ckpt_parts(const struct tr_tensor *t, size_t most);
/* The next part: *view = rows [*begin, *begin + *n) of the first dimension. false at the end. */
bool ckpt_part_next(struct ckpt_parts *p, const struct tr_tensor *t, struct tr_tensor *view, int64_t *begin, int64_t *n);

#endif
