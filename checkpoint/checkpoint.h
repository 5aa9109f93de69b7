/* Snapshots: complete state in HDF5, published atomically, checked when read. */
#ifndef CKPT_CHECKPOINT_H
#define CKPT_CHECKPOINT_H
#include "libtrain/tensor/visit.h"
#include <stdio.h>

/* State lists itself through one visitor: `visit` calls v->tensor and v->words for everything a resume needs. */
typedef int (*ckpt_state)(void *self, struct tr_visitor *v);

/* Writes folder/snapshots/step-NNNNNNNN.h5: one dataset per tensor (its name as path; bf16 as uint16, int8 as int8 with its
 * scales in NAME.scale, zeros in NAME.zero; attributes dtype and crc32c), words as uint64 datasets, root attributes format, version, step,
 * recipe text; a checksum of the whole file in front (checkpoint/file.h). Compress packs by shuffle and deflate. Written
 * beside and renamed after fsync; then all but the newest `keep` are removed (0 = keep all), never the one just written.
 * Errors: TR_EFAIL (a full disk: the temporary is removed, older snapshots stay whole). */
int ckpt_save(const char *folder, int64_t step, ckpt_state state, void *self, const char *recipe, int64_t keep, int compress);

/* The same from a complete version in memory, whose parts are checked as they are written: TR_EDAMAGED. */
struct ckpt_image;
int ckpt_save_image(const char *folder, const struct ckpt_image *img, const char *recipe, int64_t keep, int compress);

/* The newest snapshot of the run folder that is complete and whose checksums hold; damaged ones are skipped with a
 * warning. *path is the caller's. Errors: TR_EINPUT when there is none; TR_EDAMAGED when all are damaged. */
int ckpt_newest(char **path, int64_t *step, const char *folder);

/* Reads a snapshot (file, or run folder: its newest) into the state: every tensor and word that `state` lists must be
 * there with the same shape and dtype and nothing else may be; all that, and the checksum, before anything is overwritten.
 * `state` is called twice.
 * Errors: TR_EDAMAGED, TR_EINPUT (of another model: names the first difference). */
int ckpt_load(const char *path, int64_t *step, ckpt_state state, void *self);

/* Only tensors whose names begin with `prefix` (e.g. "param/" to evaluate or export). */
int ckpt_load_some(const char *path, int64_t *step, ckpt_state state, void *self, const char *prefix);

/* The same from an open source. */
struct ckpt_source;
int ckpt_load_source(const struct ckpt_source *src, int64_t *step, ckpt_state state, void *self, const char *prefix);

/* Lists what a snapshot holds; `verify` checks the checksum of each entry too. Errors: TR_EINPUT, TR_EDAMAGED. */
int ckpt_inspect(FILE *out, const char *path, bool verify);

#endif
