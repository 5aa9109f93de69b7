/* Parameters: what is trained. The model owns an array of them in layer order, the same on every rank. */
#ifndef TR_PARAM_H
#define TR_PARAM_H
#include "libtrain/tensor/tensor.h"

enum tr_role { TR_MATRIX, TR_EMBEDDING, TR_HEAD, TR_NORM, TR_BIAS, TR_ROLES };
const char *tr_role_name(enum tr_role r);   /* "matrix", "embedding", "head", "norm", "bias" */

struct tr_param {
    char name[96];            /* Hugging Face name, e.g. model.layers.0.self_attn.q_proj.weight */
    enum tr_role role;
    int layer;                /* index in the model's list of layers */
    int index;                /* position in the model's array */
    struct tr_tensor value;   /* [O,C] or [C]; may be a row view into a stack of parameters (q|k|v) */
    /* Where ranks share weights (ZeRO 3, or spread below): value is a shape whose bytes come and go, and this rank has rows [shard_begin,
     * shard_begin + tr_rows(shard)), maybe none; a vector is one row. Else shard.ndim is 0. */
    struct tr_tensor shard;
    int64_t shard_begin;
    bool file_transposed;     /* files hold [C,O] (GPT-2's Conv1D): transposed at the boundary */
    bool elsewhere;           /* another stage of the pipeline has it: value is a shape, or a copy (a tied embedding beside the head) */
    bool spread;              /* each rank of the pipeline has rows of it (vocabulary parallelism): value is a shape, the rows are in shard */
    bool trainable;
    bool frozen;              /* not in this step: its turn is over or still to come, or it learns from losses */
    int pending;              /* uses on the tape whose gradient is still to come */
};

#endif
