/* The kernel table of CUDA devices, and the rules of optimizers on them. */
#ifndef TR_CUDA_TABLE_H
#define TR_CUDA_TABLE_H
#include "libtrain/kernel/cuda/launch.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"

struct tr_device_links;

extern const struct tr_kernels tr_cuda_table;
extern const struct tr_updates tr_cuda_updates;
extern const struct tr_device_links tr_cuda_links;   /* nccl.c, where the build has it */

/* NULL while every launch succeeded, else "ENTRY: what CUDA said" of the first that failed. Launches are not awaited:
 * what a kernel itself did wrong shows at a later entry that waits (read, write, sum_squares, all_finite). */
const char *tr_cuda_error(void);

/* The stream of all launches from now on. waits: each is awaited, so that an error has the right name. checks: tensors in host memory
 * are an error. */
void tr_cuda_use(tr_cuda_stream s, bool waits, bool checks);
tr_cuda_stream tr_cuda_queue(void);
/* Remembers the first error (a cudaError_t) under the name of its entry. */
void tr_cuda_check(int error, const char *entry);

#endif
