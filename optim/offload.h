/* State that waits in a file between updates, a parameter at a time: brought when it is asked for, the next one read ahead
 * while this one is used, changes written behind. At most three are in memory: going, here, coming. */
#ifndef OPT_OFFLOAD_H
#define OPT_OFFLOAD_H
#include "libtrain/base/spill.h"
#include "libtrain/tensor/tensor.h"
#include <stdbool.h>

struct opt_offload;
/* For `n` parameters; the file is borrowed. */
int opt_offload_new(struct opt_offload **out, struct tr_spill *file, int64_t n);
/* Waits for the file. NULL is fine. */
void opt_offload_free(struct opt_offload *o);

/* Takes over the tensors of parameter i's state as they were allocated: their bytes go to the file, the tensors keep their
 * shape and lose their data. Small states stay where they are. The pointers must stay valid. */
enum { OPT_OFFLOAD_TENSORS = 16 };
int opt_offload_add(struct opt_offload *o, int64_t i, struct tr_tensor *const *t, int n);

/* Brings parameter i's state (category optimizer); then gives it up, written back when it was changed. What is read ahead:
 * OPT_STEP, the order of updates, learned in the step before; OPT_LIST, by their numbers; OPT_ALONE, nothing. Errors: TR_EFAIL,
 * the file's. */
enum opt_walk { OPT_STEP, OPT_LIST, OPT_ALONE };
int opt_offload_bring(struct opt_offload *o, int64_t i, enum opt_walk walk);
int opt_offload_away(struct opt_offload *o, int64_t i, bool changed);
/* Nothing is in memory any more, nothing on its way. */
int opt_offload_settle(struct opt_offload *o);

#endif
