/* The file of a snapshot: HDF5 behind a block of 512 bytes of text that says how long the rest is and its checksum. So a
 * snapshot is known to be whole, and to be what was written, before HDF5 parses a byte of it. */
#ifndef CKPT_FILE_H
#define CKPT_FILE_H
#include "libtrain/base/h5.h"
#include <stdio.h>

enum { CKPT_BLOCK = 512, CKPT_PART = 1 << 20 /* bytes of a tensor that are moved at a time */ };

/* Writes the block of the finished file; f is open for reading and writing. Errors: TR_EFAIL. */
int ckpt_file_seal(FILE *f, const char *path);

/* Whether the file is whole. Errors: TR_EINPUT when it cannot be read or is no snapshot, TR_EDAMAGED. */
int ckpt_file_verify(const char *path);

/* The step in the name of a snapshot file "step-NNNNNNNN.h5" (the last part of a path), or -1. */
int64_t ckpt_file_step(const char *path);

/* Steps of the files folder/snapshots/step-*.h5, newest first; *steps is the caller's. A folder that is not there has none. */
int ckpt_file_steps(int64_t **steps, size_t *n, const char *folder);

/* *path = the file of a step; the caller's. */
int ckpt_file_path(char **path, const char *folder, int64_t step);

/* Calls `each` for every dataset of the file with its full name, sorted within each group. */
int ckpt_file_walk(struct tr_h5 *f, int (*each)(void *self, const char *name), void *self);

#endif
