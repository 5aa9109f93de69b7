/* The network: parameters in layer order and the list of layers that use them. */
#ifndef TR_NET_H
#define TR_NET_H
#include "libtrain/autograd/tape.h"
#include "libtrain/model/model.h"
#include "libtrain/model/weights.h"

enum tr_layer_kind { TR_LAYER_EMBED, TR_LAYER_BLOCK, TR_LAYER_HEAD };

/* Weights that a layer does not have keep n == 0. */
struct tr_layer {
    enum tr_layer_kind kind;
    int index;                                       /* in the list */
    struct tr_weight embed, pos;                     /* TR_LAYER_EMBED; pos: GPT-2's learned positions */
    struct tr_weight norm1, norm1_b, norm2, norm2_b; /* TR_LAYER_BLOCK; norm1 also the final norm of TR_LAYER_HEAD */
    struct tr_weight qkv, qkv_b, q_norm, k_norm, out, out_b;
    struct tr_weight up, up_b, down, down_b;         /* up: gate|up, or GPT-2's c_fc */
    struct tr_weight head;                           /* TR_LAYER_HEAD when not tied */
};

/* Where ranks share weights (ZeRO 3): fills `whole`, of the shape and type of p->value, from every rank's p->shard. Collective. */
struct tr_shards { void *self; int (*gather)(void *self, const struct tr_param *p, struct tr_tensor *whole); };

/* Layers [from, to) of the list: 0 is the embedding, layers + 1 final norm and head. */
struct tr_stage { int from, to; };

/* What a rank of a pipeline has: n stages; where ranks share the vocabulary, rows [vocab_begin, vocab_begin + vocab_rows) of embedding
 * and head, whatever its stages (vocab_rows = 0: the first and the last stage have them whole). */
struct tr_cut { const struct tr_stage *stage; int n; int64_t vocab_begin, vocab_rows; };

struct tr_net {
    struct tr_shape shape;
    struct tr_attention attention;
    enum tr_dtype dtype, compute;
    struct tr_layer *layer;
    int n_layers;
    struct tr_param *param;
    int64_t n_params;
    struct tr_tensor rope_PD;                        /* f32: cos | sin of each position */
    struct tr_tensor *storage;                       /* the allocations behind weights */
    int64_t n_storage;
    bool sharded;                                    /* weights are shapes; values are in shards */
    struct tr_shards shards;
    struct tr_resident resident;                     /* shard.c: for the tape */
    struct tr_layer *here;                           /* the layer whose weights are gathered, or NULL */
    bool *has;                                       /* layers of the list that are here: all, but in a pipeline */
    int64_t vocab_begin, vocab_rows;                 /* as in tr_cut */
};


/* Builds the network with storage for its weights, unset. positions: how many positions rope must know (>= context). */
int tr_net_new(struct tr_net **out, const struct tr_shape *shape, enum tr_dtype dtype, enum tr_dtype compute, int64_t positions);
/* The same without storage. Each parameter needs tr_net_shard before values come; a tape that runs it needs &net->resident.
 * One layer's weights are whole at a time, in the arena: gathered when an op asks for one of them, released when one of another
 * layer is asked for or the tape is cleared; blocks that run again in backward find them there. */
int tr_net_new_sharded(struct tr_net **out, const struct tr_shape *shape, enum tr_dtype dtype, enum tr_dtype compute, int64_t positions, struct tr_shards shards);
/* What a rank of a pipeline has: storage for its layers alone, and for a tied embedding where the head is. Parameters of other ranks
 * are shapes (tr_param.elsewhere), those that all ranks have rows of too (tr_param.spread); shards.gather brings a parameter from the
 * ranks that have it for tr_net_visit. */
int tr_net_new_stages(struct tr_net **out, const struct tr_shape *shape, enum tr_dtype dtype, enum tr_dtype compute, int64_t positions, const struct tr_cut *cut, struct tr_shards shards);
/* This rank has rows [begin, begin + n) of a parameter: storage for them (category weights). */
int tr_net_shard(struct tr_param *p, int64_t begin, int64_t n);
void tr_net_free(struct tr_net *net);

/* Values from a model file, converted to the network's dtype. Errors: TR_EINPUT naming a missing or misshapen tensor.
 * Progress beyond two seconds. */
int tr_net_load(struct tr_net *net, const struct tr_weights *w);
/* Random values: normal(0, init_std), residual outputs scaled by 1/sqrt(2 layers) for GPT-2, gains one, biases zero. */
int tr_net_init(struct tr_net *net, uint64_t seed);

struct tr_param *tr_net_find(struct tr_net *net, const char *name);
/* Calls `each` for every weight that has parameters, in layer order. */
int tr_net_weights(struct tr_net *net, int (*each)(void *self, struct tr_weight *w), void *self);
/* Weights of one layer that have parameters; returns how many. */
enum { TR_LAYER_WEIGHTS = 17 };
int tr_layer_weights(struct tr_layer *l, struct tr_weight *out[TR_LAYER_WEIGHTS]);
/* Lists "param/NAME" for every parameter, whole (collective where ranks share them). */
int tr_net_visit(struct tr_net *net, struct tr_visitor *v);
/* Rows [begin, begin+n) of a parameter as f32 in host memory. */
int tr_param_read(const struct tr_param *p, int64_t begin, int64_t n, float *out);

/* ---- running it */

/* A micro-batch where the kernels can reach it; storage for `capacity` tokens made once. */
struct tr_feed {
    int64_t capacity;
    struct tr_tensor ids, start, pos, rows, targets, loss;   /* [capacity] i32; loss f32 */
    struct tr_tensor ids_N, rows_M, targets_M, loss_M;       /* views of the present micro-batch */
    struct tr_layout layout;
    int64_t n_counted;
    int32_t *host_rows, *host_targets;                       /* the counted tokens, gathered */
    float *host_loss;
    void *pass;                                              /* forward.c: what each block's run needs, kept for backward */
};
int tr_feed_new(struct tr_feed *f, int64_t capacity);
void tr_feed_release(struct tr_feed *f);
/* ids, targets, start, pos: host arrays of n tokens (targets NULL: none counted); seq: n_seqs + 1 offsets, borrowed.
 * The window narrows `start`. Errors: TR_EINPUT for an id beyond the vocabulary. */
int tr_feed_set(struct tr_feed *f, const struct tr_net *net, int64_t n, const int32_t *ids, const int32_t *targets,
                const int32_t *start, const int32_t *pos, const int64_t *seq, int64_t n_seqs);

/* Keys and values of what was read so far, for generation of one sequence. */
struct tr_cache { struct tr_tensor *k, *v; int64_t n, capacity; int layers; };
int tr_cache_new(struct tr_cache *c, const struct tr_net *net, int64_t capacity);
void tr_cache_release(struct tr_cache *c);

/* Runs layers and loss head over the fed micro-batch; *loss = sum of the counted tokens' losses (double, in token order).
 * While the tape records, gradients are those of scale * loss. segment: tokens of the loss head at a time. */
int tr_net_loss(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, float scale, int64_t segment, double *loss);
/* Some layers alone. in: the hidden state [N,C] that they start from (NULL where the embedding is the first); *out: what they end
 * with (NULL where the head is the last; *loss is set there alone). The caller drops both. Where ranks share the vocabulary, embedding
 * and head are the caller's: in: the embedding's rows, which may be changed; *out: the final norm's. */
int tr_net_stage(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, struct tr_stage stage, float scale, int64_t segment, struct tr_value *in, struct tr_value **out, double *loss);
/* Runs forward layer by layer; *layer = the first whose output is not finite (0 embedding, ..., n_layers - 1 final
 * norm), or -1. */
int tr_net_first_bad(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, int *layer);
/* Final hidden states of the fed tokens (not recorded), after the final norm; cache may be NULL, else it grows by them. */
int tr_net_hidden(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, struct tr_cache *cache, struct tr_value **h_NC);
/* The head's weight: its own, or the embedding's where they are tied. */
struct tr_weight *tr_net_head(struct tr_net *net);
/* Logits f32 of rows [begin, begin+n) of h into host memory [n, vocab]; NULL: they go nowhere (forecasts). */
int tr_net_logits(struct tr_net *net, const struct tr_value *h_NC, int64_t begin, int64_t n, float *out);

#endif
