#include "recipes/grid.h"
#include "recipes/pipeline.h"
#include "checkpoint/checkpoint.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/model/preset.h"
#include "parallel/links.h"
#include "parallel/mpi.h"
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- model */

static int shape_from_keys(struct tr_shape *s, const struct recipe *r)
{
    if (r->model.preset[0]) TR_TRY(tr_shape_preset(s, r->model.preset));
    else *s = tr_shape_default((enum tr_arch)r->model.arch);
    /* A key that was set wins over the preset; 0 and "" mean "not set". */
    struct { int64_t *to, from; } ints[] = { { &s->hidden, r->model.hidden }, { &s->layers, r->model.layers }, { &s->heads, r->model.heads },
        { &s->kv_heads, r->model.kv_heads }, { &s->head_dim, r->model.head_dim }, { &s->intermediate, r->model.intermediate },
        { &s->vocab, r->model.vocab }, { &s->context, r->model.context } };
    bool heads = r->model.heads || r->model.hidden;
    if (heads && !r->model.kv_heads) s->kv_heads = 0;
    if (heads && !r->model.head_dim) s->head_dim = 0;
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        if (ints[i].from) *ints[i].to = ints[i].from;
    if (!s->kv_heads) s->kv_heads = s->heads;
    if (!s->head_dim && s->heads) s->head_dim = s->hidden / s->heads;
    if (!s->intermediate) s->intermediate = s->arch == TR_GPT2 ? 4 * s->hidden : (8 * s->hidden / 3 + 31) / 32 * 32;
    if (!s->context) s->context = r->data.sequence > 1024 ? r->data.sequence : 1024;
    if (r->model.rope_theta > 0) s->rope_theta = r->model.rope_theta;
    if (r->model.norm_eps > 0) s->norm_eps = r->model.norm_eps;
    if (r->model.tied != RECIPE_TIED_AUTO) s->tied = r->model.tied == RECIPE_TIED_TRUE;
    return tr_shape_check(s, r->path);
}

/* What the device cannot do yet, and what to set instead. */
static const char *not_on_device(const struct recipe *r)
{
    if (r->parallel.vocabulary) return "a vocabulary shared by stages has no kernels there; set parallel.vocabulary = none";
    if (r->memory.offload != RECIPE_OFFLOAD_NONE) return "memory.offload moves host memory only; set it to none";
    if (r->checkpoint.memory_every > 0) return "snapshots in memory are of host memory only; set checkpoint.memory_every = 0";
    return NULL;
}

/* auto: a device that is there and can do what the recipe asks for. */
static int open_device(const struct job *j)
{
    const struct recipe *r = j->r;
    bool must = r->run.device == RECIPE_DEVICE_CUDA;
    if (r->run.device == RECIPE_DEVICE_CPU) return TR_OK;
    const char *why = not_on_device(r);
    if (!why) why = tr_device_open(j->comm->place);
    if (why && must) return tr_fail(TR_EINPUT, "run.device = cuda (%s): %s; or set run.device = cpu", r->path, why);
    if (!why && r->run.device == RECIPE_DEVICE_AUTO) tr_info("computing on the device: %s", tr_device()->describe());
    return TR_OK;
}

/* How ranks exchange what is on their devices. */
static int open_links(struct job *j)
{
    const struct recipe *r = j->r;
    const char *why = "parallel.backend = mpi";
    bool must = r->parallel.backend == RECIPE_BACKEND_NCCL;
    if (must && !tr_device()) return tr_fail(TR_EINPUT, "parallel.backend = nccl (%s): NCCL moves the memory of devices, and the CPU computes here; set parallel.backend = auto, or run.device = cuda", r->path);
    if (j->comm->size == 1) return TR_OK;
    double devices = tr_device() != NULL;
    TR_TRY(tr_comm_sum(j->comm, &devices, 1));
    if (devices > 0 && devices < j->comm->size)
        return tr_fail(TR_EINPUT, "run.device = auto (%s): %.0f of %d ranks found a device; set run.device = cpu, or cuda to learn what the others lack", r->path, devices, j->comm->size);
    if (!tr_device()) return TR_OK;
    if (r->parallel.backend != RECIPE_BACKEND_MPI) TR_TRY(par_links_open(j->comm, (struct tr_comm *const[]){ j->data, j->pipe }, 2, &why));
    if (why && must) return tr_fail(TR_EINPUT, "parallel.backend = nccl (%s): %s; set parallel.backend = auto", r->path, why);
    if (why) tr_info("devices exchange through host memory and MPI (%s)", why);
    else tr_info("devices exchange through NCCL %s", tr_device()->links->describe());
    return TR_OK;
}

int job_open(struct job *j, const struct recipe *r)
{
    TR_TRY(job_open_files(j, r));
    TR_TRY(open_device(j));
    return open_links(j);
}

int job_open_files(struct job *j, const struct recipe *r)
{
    *j = (struct job){ .r = r };
    TR_TRY(par_world(&j->comm));
    TR_TRY(grid_open(j));
    j->comm->timeout = r->parallel.timeout;
    /* Ranks of one machine share its cores. */
    int cores = tr_threads() / j->comm->local;
    tr_set_threads(r->run.threads > 0 || j->comm->local == 1 ? (int)r->run.threads : cores > 1 ? cores : 1);
    if (r->model.path[0]) {
        TR_TRY(tr_weights_open(&j->weights, r->model.path));
        j->shape = *tr_weights_shape(j->weights);
        if (r->model.context > 0) j->shape.context = r->model.context;
    } else TR_TRY(shape_from_keys(&j->shape, r));
    return TR_OK;
}

/* Token files need no tokenizer. */
static bool holds_tokens(const char *path)
{
    size_t n = strlen(path);
    return n == 0 || (n > 3 && !strcmp(path + n - 3, ".h5"));
}

/* A .gguf file named as tokenizer is opened for its metadata alone. */
static int open_tokenizer(struct job *j, const json_t *gguf, const char *path)
{
    size_t n = strlen(path);
    if (n < 5 || strcmp(path + n - 5, ".gguf")) return tr_tokenizer_open(&j->tokenizer, gguf, path);
    struct tr_weights *w;
    TR_TRY(tr_weights_open(&w, path));
    int rc = tr_tokenizer_open(&j->tokenizer, tr_weights_metadata(w), "");
    tr_weights_free(w);
    return rc;
}

int job_tokenizer(struct job *j, bool required)
{
    if (!required && holds_tokens(j->r->data.train) && holds_tokens(j->r->data.valid)) return TR_OK;
    const json_t *gguf = j->weights && tr_weights_is_gguf(j->weights) ? tr_weights_metadata(j->weights) : NULL;
    const char *path = j->r->model.tokenizer;
    if (!path[0] && !gguf) path = j->weights ? j->r->model.path : j->shape.vocab == 257 ? "bytes" : "";
    if (!path[0] && !gguf) {
        if (!required) return TR_OK;
        return tr_fail(TR_EINPUT, "no tokenizer (%s): the model is from scratch; set model.tokenizer to a tokenizer.json, a .gguf file, or bytes", j->r->path);
    }
    TR_TRY(open_tokenizer(j, gguf, path));
    if (tr_tokenizer_size(j->tokenizer) > j->shape.vocab)
        return tr_fail(TR_EINPUT, "tokenizer of %d tokens (%s): the model's vocabulary has only %" PRId64 "; set model.vocab or another model.tokenizer",
                       tr_tokenizer_size(j->tokenizer), j->r->path, j->shape.vocab);
    return TR_OK;
}

static enum tr_dtype weight_type(const struct recipe *r)
{
    return r->model.dtype == RECIPE_BF16 ? TR_BF16 : r->model.dtype == RECIPE_INT8 ? TR_INT8 : TR_F32;
}

static int fill_weights(struct job *j)
{
    return j->weights ? tr_net_load(j->net, j->weights) : tr_net_init(j->net, (uint64_t)j->r->train.seed);
}

/* The network of this rank's stages. */
static int net_of_stages(struct job *j, enum tr_dtype dtype, enum tr_dtype compute, int64_t positions, struct tr_shards shards)
{
    struct tr_stage *stage;
    TR_TRY(pipeline_new(&j->pipeline, j));
    TR_TRY(tr_calloc(&stage, (size_t)pipeline_chunks(j->pipeline), sizeof *stage));
    struct tr_cut cut = pipeline_cut(j->pipeline, j->pipe->rank, stage);
    int rc = tr_net_new_stages(&j->net, &j->shape, dtype, compute, positions, &cut, shards);
    free(stage);
    return rc == TR_OK ? grid_hold_stages(j) : rc;
}

int job_net(struct job *j, bool values)
{
    const struct recipe *r = j->r;
    enum tr_dtype dtype = weight_type(r), compute;
    if (r->model.compute == RECIPE_COMPUTE_AUTO) {
        compute = dtype != TR_F32 && tr_gemm_has_bf16() ? TR_BF16 : TR_F32;
        if (dtype != TR_F32 && compute == TR_F32 && !tr_mem_is_dry()) tr_info("this CPU has no bf16 arithmetic: computing in f32");
    } else compute = r->model.compute == RECIPE_COMPUTE_BF16 ? TR_BF16 : TR_F32;
    int64_t positions = r->data.sequence > j->shape.context ? r->data.sequence : j->shape.context;
    /* Stage 3 in training: weights are dealt to ranks with the optimizer's state, and loaded then. */
    struct tr_shards shards = { j, grid_gather_weight };
    bool share = j->data->size > 1 && r->parallel.zero == 3 && j->train;
    TR_TRY(tr_tape_new(&j->tape));
    if (j->stages > 1) TR_TRY(net_of_stages(j, dtype, compute, positions, shards));
    else TR_TRY(tr_net_new_sharded(&j->net, &j->shape, dtype, compute, positions, share ? shards : (struct tr_shards){ 0 }));
    if (share) tr_tape_resident(j->tape, &j->net->resident);
    j->values = values && share;
    return values && !share ? fill_weights(j) : TR_OK;
}

int job_parameters(struct job *j, const char *snapshot)
{
    char *path = NULL;
    int64_t step;
    if (!snapshot[0]) TR_TRY(ckpt_newest(&path, &step, j->r->run.dir));
    int rc = ckpt_load_some(path ? path : snapshot, &step, job_visit, j, "param/");
    free(path);
    return rc;
}

/* ---- data */

int job_resolve(struct job *j, int64_t micro_batch, enum tr_recompute recompute)
{
    const struct recipe *r = j->r;
    j->batch = r->train.batch;
    j->micro_batch = micro_batch;
    j->micro_batches = j->batch / micro_batch;
    if (j->micro_batches % j->data->size)
        return tr_fail(TR_EINPUT, "batch of %" PRId64 " sequences in micro-batches of %" PRId64 " (%s): %" PRId64 " micro-batches cannot be dealt evenly to %d ranks; "
                       "set train.batch to a multiple of %" PRId64, j->batch, micro_batch, r->path, j->micro_batches, j->data->size, micro_batch * j->data->size);
    j->rounds = j->micro_batches / j->data->size;
    j->recompute = recompute;
    j->fused = r->memory.fused_update != RECIPE_FUSED_FALSE && j->rounds == 1 && !(r->train.clip > 0) && !(j->stages > 1 && j->shape.tied); /* a tied embedding's gradients meet after backward */
    j->projects = j->micro_batches > 1 && !(r->train.clip > 0); /* whatever the number of ranks; clipping is by the norm of whole gradients */
    if (r->memory.fused_update == RECIPE_FUSED_TRUE && r->train.clip > 0)
        return tr_fail(TR_EINPUT, "memory.fused_update = true with train.clip = %g (%s): clipping by the global norm needs all gradients at once, %.0f MB; set train.clip = 0 or memory.fused_update = false",
                       r->train.clip, r->path, 4e-6 * (double)tr_shape_params(&j->shape));
    return TR_OK;
}

int job_data(struct job *j, bool train)
{
    const struct recipe *r = j->r;
    static const enum tr_recompute held[] = { TR_KEEP, TR_SELECTIVE, TR_BLOCK, TR_SELECTIVE /* auto: the forecast may choose more */ };
    TR_TRY(job_resolve(j, r->train.micro_batch, held[r->memory.recompute]));
    j->segment = tr_device() ? 2048 : 512;   /* a device needs more rows at once to be busy */
    if (train) {
        TR_TRY(tr_dataset_open(&j->train, &r->data, r->data.train, j->tokenizer, j->shape.vocab));
        TR_TRY(tr_loader_new(&j->loader, j->train, &r->data, (uint64_t)r->train.seed, r->data.shuffle));
        int64_t per_epoch = tr_loader_sequences(j->loader);
        j->steps = r->train.steps > 0 ? r->train.steps : (int64_t)((double)per_epoch * r->train.epochs / (double)j->batch + 0.999999);
        if (j->steps < 1) j->steps = 1;
    }
    if (r->data.valid[0]) {
        TR_TRY(tr_dataset_open(&j->valid, &r->data, r->data.valid, j->tokenizer, j->shape.vocab));
        TR_TRY(tr_loader_new(&j->valid_loader, j->valid, &r->data, 0, false));
    }
    return TR_OK;
}

int job_feed(struct job *j, int64_t tokens) { return tr_feed_new(&j->feed, tokens); }

/* Snapshots in memory: counted here, so that a forecast has them too; the memory itself comes with the run. */
static void state_leaves(void *job, int64_t i) { ckpt_capture_gate(((struct job *)job)->capture, i); }

static int capture(struct job *j)
{
    const struct recipe *r = j->r;
    struct tr_buf text = { 0 };
    if (r->checkpoint.memory_every == 0) return TR_OK;
    if (opt_state_moves(j->opt))
        return tr_fail(TR_EINPUT, "checkpoint.memory_every with optimizer.selection = blockwise (%s): its state moves between matrices, a snapshot in memory has no place that stays; set checkpoint.memory_every = 0 or optimizer.selection = columns", r->path);
    if (opt_takes_turns(j->opt) && j->comm->size > 1 && r->parallel.zero > 0)
        return tr_fail(TR_EINPUT, "checkpoint.memory_every with layers that take turns and parallel.zero = %" PRId64 " (%s): a rank's share of the state changes with the turn; set parallel.zero = 0 or checkpoint.memory_every = 0", r->parallel.zero, r->path);
    if (opt_takes_turns(j->opt) && j->stages > 1)
        return tr_fail(TR_EINPUT, "checkpoint.memory_every with layers that take turns and parallel.pipeline = %d (%s): the state moves between stages with the turn; set checkpoint.memory_every = 0", j->stages, r->path);
    struct ckpt_capture_setup setup = { .folder = r->run.dir, .owned = job_visit_owned, .self = j, .groups = j->net->n_params,
                                        .keep = r->checkpoint.keep, .compress = r->checkpoint.compress };
    int rc;
    TR_GO(job_nodes(&setup.nodes, r, j->comm));
    TR_GO(recipe_print(r, &text));
    setup.recipe = text.data;
    rc = ckpt_capture_new(&j->capture, &setup);
done:
    tr_buf_release(&text);
    return rc;
}

/* What stages cannot do yet. */
static int check_grid(const struct job *j)
{
    const char *p = j->r->path;
    if (j->data->size > 1 && j->r->parallel.zero == 3)
        return tr_fail(TR_EINPUT, "parallel.zero = 3 with parallel.pipeline = %d (%s): the ranks of a stage hold its weights whole; set parallel.zero = 2, or parallel.data = %d and parallel.pipeline = 1", j->stages, p, j->comm->size);
    if (j->r->memory.offload) return tr_fail(TR_EINPUT, "memory.offload = disk with parallel.pipeline = %d (%s): a stage's micro-batches stay in memory; set memory.offload = none or memory.recompute = block", j->stages, p);
    return TR_OK;
}

static int check_rules(const struct job *j)
{
    const char *name = recipe_optimizer(j->r), *p = j->r->path;
    if (opt_needs_losses(j->opt)) return tr_fail(TR_EINPUT, "optimizer.name = %s with parallel.pipeline = %d (%s): rules that learn from losses run on whole models; set parallel.data = %d and parallel.pipeline = 1", name, j->stages, p, j->comm->size);
    if (opt_probe_every(j->opt, OPT_PROBE_LABELS) || opt_probe_every(j->opt, OPT_PROBE_HESSIAN))
        return tr_fail(TR_EINPUT, "optimizer.name = %s with parallel.pipeline = %d (%s): its curvature probe runs on whole models; set parallel.data = %d and parallel.pipeline = 1", name, j->stages, p, j->comm->size);
    return TR_OK;
}

int job_training(struct job *j)
{
    const struct recipe *r = j->r;
    struct opt_setup setup = { .entry = r->optimizer, .n = r->n_optimizer, .path = r->path, .seed = (uint64_t)r->train.seed,
                               .tokens = (double)tr_loader_max_tokens(j->loader, j->batch), .lr = r->train.lr, .leaves = state_leaves, .self = j };
    size_t n = (size_t)j->net->n_params;
    TR_TRY(tr_calloc(&j->first, n, ((size_t)j->data->size + 1) * sizeof *j->first));
    TR_TRY(tr_calloc(&j->low_first, 1, ((size_t)j->data->size + 1) * sizeof *j->low_first));
    TR_TRY(tr_calloc(&j->sum, n, sizeof *j->sum));
    TR_TRY(tr_calloc(&j->figures, UPDATE_PANELS * n + (size_t)j->micro_batches + UPDATE_SUMS, sizeof *j->figures));
    bool dealt = j->data->size > 1 && r->parallel.zero > 0;
    if (j->stages > 1) TR_TRY(check_grid(j));
    if (!dealt) TR_TRY(grid_deal_rows(j));
    setup.comm = dealt ? j->comm : j->stages > 1 ? j->pipe : NULL;
    setup.deal = dealt ? grid_deal_state : grid_deal_stages;
    setup.sharers = j->data;
    setup.share_at = dealt ? j->pipe->rank * j->data->size : 0;
    if (r->memory.offload == RECIPE_OFFLOAD_DISK) {
        const char *folder = r->memory.offload_dir[0] ? r->memory.offload_dir : r->run.dir;
        TR_TRY(tr_spill_open(&j->state_file, folder));
        TR_TRY(tr_spill_open(&j->saved_file, folder));
        tr_tape_offload(j->tape, j->saved_file);
        setup.file = j->state_file;
    }
    setup.shares_weights = j->net->sharded;
    setup.projects = j->projects;
    TR_TRY(opt_new(&j->opt, &setup, j->net->param, j->net->n_params));
    if (opt_needs(j->opt) != OPT_GRADIENT && r->train.clip > 0)
        return tr_fail(TR_EINPUT, "train.clip = %g (%s): there is no gradient whose norm could be clipped; set train.clip = 0", r->train.clip, r->path);
    if (j->stages > 1) TR_TRY(check_rules(j));
    TR_TRY(capture(j));
    if (j->values) TR_TRY(fill_weights(j));
    int64_t tokens = tr_loader_max_tokens(j->loader, j->micro_batch);
    if (j->valid_loader && tr_loader_max_tokens(j->valid_loader, j->micro_batch) > tokens) tokens = tr_loader_max_tokens(j->valid_loader, j->micro_batch);
    TR_TRY(job_feed(j, tokens));
    return j->stages > 1 ? pipeline_open(j->pipeline, j) : TR_OK;
}

struct tr_spill_counts job_disk(const struct job *j)
{
    struct tr_spill_counts sum = { 0 };
    const struct tr_spill *const files[] = { j->state_file, j->saved_file };
    for (int i = 0; i < 2; i++) {
        if (!files[i]) continue;
        struct tr_spill_counts c = tr_spill_counts(files[i]);
        sum.read += c.read;
        sum.written += c.written;
        sum.file += c.file;
    }
    return sum;
}

static int visit_progress(struct job *j, struct tr_visitor *v)
{
    uint64_t words[3] = { j->step, j->tokens_seen, (uint64_t)j->r->train.seed };
    if (j->loader) TR_TRY(tr_loader_visit(j->loader, v));
    TR_TRY(v->words(v->self, "run/progress", words, 3));
    j->step = words[0];
    j->tokens_seen = words[1];
    return TR_OK;
}

int job_visit(void *job, struct tr_visitor *v)
{
    struct job *j = job;
    TR_TRY(tr_net_visit(j->net, v));
    if (j->opt) TR_TRY(opt_visit(j->opt, v));
    return visit_progress(j, v);
}

struct progress_owner { const struct tr_owned *v; int64_t group; };

static int own_progress(void *self, const char *name, uint64_t *words, int64_t count)
{
    struct progress_owner *o = self;
    return o->v->words(o->v->self, o->group, name, words, o->v->rank == 0 ? count : 0);
}

int job_visit_owned(void *job, const struct tr_owned *v)
{
    struct job *j = job;
    for (int64_t i = 0; i < j->net->n_params; i++) {
        const struct tr_param *p = &j->net->param[i];
        char name[128];
        snprintf(name, sizeof name, "param/%s", p->name);
        if (!p->shard.ndim) TR_TRY(tr_owned_share(v, i, name, &p->value));
        else TR_TRY(tr_owned_part(v, i, name, &p->shard, p->shard.ndim == 1 ? 0 : p->shard_begin, p->value.dim[0], j->net->sharded ? 0 : j->data->rank, j->net->sharded ? 1 : j->data->size));
        TR_TRY(opt_visit_owned(j->opt, i, v));
    }
    struct progress_owner o = { v, j->net->n_params };
    return visit_progress(j, &(struct tr_visitor){ &o, NULL, own_progress, .only_reads = true });
}

void job_forget_files(struct job *j)
{
    tr_tokenizer_free(j->tokenizer);
    tr_weights_free(j->weights);
    j->tokenizer = NULL;
    j->weights = NULL;
    malloc_trim(0); /* a vocabulary is a hundred thousand small blocks */
}

void job_release(struct job *j)
{
    ckpt_capture_free(j->capture, j->done);
    pipeline_free(j->pipeline);
    free(j->held);
    free(j->dealt);
    opt_free(j->opt);
    free(j->first);
    free(j->low_first);
    free(j->sum);
    free(j->figures);
    tr_loader_free(j->loader);
    tr_loader_free(j->valid_loader);
    tr_dataset_free(j->train);
    tr_dataset_free(j->valid);
    tr_feed_release(&j->feed);
    tr_tape_free(j->tape);
    tr_spill_close(j->saved_file);
    tr_spill_close(j->state_file);
    tr_net_free(j->net);
    tr_tokenizer_free(j->tokenizer);
    tr_weights_free(j->weights);
    *j = (struct job){ 0 };
}
