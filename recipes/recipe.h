/* A recipe: the sections of an INI file as structs, defaults filled in, --set applied, everything checked before anything
 * large is allocated. Keys: docs/recipe.md, or `train help SECTION`. */
#ifndef RECIPE_RECIPE_H
#define RECIPE_RECIPE_H
#include "libtrain/config/ini.h"
#include "libtrain/data/data.h"
#include "optim/optim.h"

enum { RECIPE_DTYPE_AUTO, RECIPE_F32, RECIPE_BF16, RECIPE_INT8 };
enum { RECIPE_COMPUTE_AUTO, RECIPE_COMPUTE_F32, RECIPE_COMPUTE_BF16 };
enum { RECIPE_CONSTANT, RECIPE_LINEAR, RECIPE_COSINE, RECIPE_WSD };
enum { RECIPE_RECOMPUTE_NONE, RECIPE_RECOMPUTE_SELECTIVE, RECIPE_RECOMPUTE_BLOCK, RECIPE_RECOMPUTE_AUTO };
enum { RECIPE_FUSED_AUTO, RECIPE_FUSED_TRUE, RECIPE_FUSED_FALSE };
enum { RECIPE_DEVICE_CPU, RECIPE_DEVICE_CUDA, RECIPE_DEVICE_AUTO };
enum { RECIPE_BACKEND_AUTO, RECIPE_BACKEND_MPI, RECIPE_BACKEND_NCCL };
enum { RECIPE_OFFLOAD_NONE, RECIPE_OFFLOAD_HOST, RECIPE_OFFLOAD_DISK };
enum { RECIPE_TIED_AUTO, RECIPE_TIED_FALSE, RECIPE_TIED_TRUE };

struct recipe {
    char *path;                     /* of the file, for messages */
    struct {
        char *path, *preset, *tokenizer;
        int arch, dtype, compute, tied;
        int64_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, context;
        double rope_theta, norm_eps;
    } model;
    struct tr_data_config data;
    struct {
        int64_t steps, batch, micro_batch, seed, warmup, log_every, eval_every, stop_at;
        double epochs, lr, min_lr, clip;
        int schedule;
    } train;
    struct { int64_t budget; int recompute, fused_update, offload; char *offload_dir; } memory;
    struct { int64_t data, pipeline, zero; double timeout; int schedule, vocabulary, backend; char *layers; } parallel;
    struct { double flops, link, latency; } device;
    struct { int64_t every, memory_every, keep, compress; char *redundancy; } checkpoint;
    struct { char *dir, *name; int device; int64_t threads; bool tensorboard; } run;
    struct opt_entry *optimizer;    /* [optimizer] and its groups, in order */
    size_t n_optimizer, cap_optimizer;
    struct opt_entry *compare;      /* [compare.NAME]: section, and a whole key such as train.lr */
    size_t n_compare, cap_compare;
};

/* Reads the file, then applies the overrides "section.key=value". Errors: TR_EINPUT with the place and the remedy. */
int recipe_load(struct recipe *r, const char *path, const char *const *sets, size_t n_sets);
/* The recipe as one member of a comparison runs it: optimizer.name = member, then [compare.MEMBER], over which --set wins
 * (but for a --set of compare.MEMBER itself). Keys of [optimizer] that belong to other optimizers are passed over. Its run
 * folder is a folder of that name inside the recipe's. */
int recipe_load_member(struct recipe *r, const char *path, const char *const *sets, size_t n_sets, const char *member);
/* One override "section.key=value" more; combinations are not checked. */
int recipe_set(struct recipe *r, const char *text);
/* The optimizer of what no group matches; the recipe's. */
const char *recipe_optimizer(const struct recipe *r);
/* Another optimizer for what no group matches, with its defaults (weight_decay stays). */
int recipe_set_optimizer(struct recipe *r, const char *name);
void recipe_release(struct recipe *r);

/* The recipe with every key resolved, as INI text. */
int recipe_print(const struct recipe *r, struct tr_buf *out);
/* Writes it to the run folder as config.ini. */
int recipe_write_config(const struct recipe *r);

/* The sections and their tables, for help; NULL name ends. */
const struct tr_section *recipe_sections(void);

#endif
