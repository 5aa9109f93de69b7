/* A model: configuration, parameters in layer order, and a list of layers. */
#ifndef TR_MODEL_H
#define TR_MODEL_H
#include "libtrain/config/option.h"
#include "libtrain/tensor/param.h"
#include "libtrain/tensor/visit.h"

enum tr_arch { TR_LLAMA, TR_MISTRAL, TR_QWEN2, TR_QWEN3, TR_GPT2, TR_ARCHS };   /* "llama", "mistral", ... */
const char *tr_arch_name(enum tr_arch a);

/* The shape, whatever it was read from (GGUF metadata, config.json, preset, single keys). */
struct tr_shape {
    enum tr_arch arch;
    int64_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, context;
    int64_t window;                  /* sliding window in tokens; 0 = none */
    bool tied;                       /* head and embedding are one matrix */
    bool qkv_bias, out_bias, mlp_bias;
    bool qk_norm;                    /* Qwen3 */
    double norm_eps, rope_theta;
    struct { bool on; double factor, low_freq, high_freq; int64_t old_context; } rope_llama3;
    double rope_linear;              /* linear rope scaling factor, 1 = none */
    double init_std;                 /* of from-scratch weights */
};

/* Checks that the numbers fit together (heads divide, sizes positive and below 2^31, ...). Errors: TR_EINPUT; `where`
 * names the file. */
int tr_shape_check(const struct tr_shape *s, const char *where);

/* Parameters that take part in matmuls (a tied embedding once), and all parameters. */
int64_t tr_shape_matmul_params(const struct tr_shape *s);
int64_t tr_shape_params(const struct tr_shape *s);

#endif
