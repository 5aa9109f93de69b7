#include "recipes/pipeline.h"
#include "libtrain/base/log.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include "parallel/cut.h"
#include "parallel/schedule/schedule.h"
#include "recipes/vocabulary.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* A stage's micro-batch under way. out: its result until that is sent, then only a shape for its gradient; din: of its input. */
struct slot { struct tr_tape *tape; struct tr_value *in, *out; struct tr_tensor din; };
struct pipeline {
    struct par_schedule schedule;
    struct par_steps steps;
    int *first;                     /* of the layers' list: stage i has [first[i], first[i + 1]) */
    struct slot *slot;              /* [chunks][slots]: micro-batch m of a chunk has slot m % slots */
    struct tr_feed *feed;           /* micro-batch m has feed m % feeds */
    int slots, feeds;
    void (*before)(void *self, const struct par_step *k);   /* pipeline_watch */
    void *self;
    struct vocabulary *vocabulary;  /* NULL: the first and the last stage have it whole */
};

static int stages_of(const struct pipeline *p) { return p->schedule.ranks * p->schedule.chunks; }
static int rank_of(const struct pipeline *p, int stage) { return par_stage_rank(&p->schedule, stage, NULL); }
static int last_rank(const struct pipeline *p) { return rank_of(p, stages_of(p) - 1); }

/* ---- making one */

/* Products of a token forward; what blocks do twice counts for a third more. */
static double work_of_block(const struct job *j)
{
    const struct tr_shape *s = &j->shape;
    double heads = (double)(s->heads * s->head_dim), kv = (double)(s->kv_heads * s->head_dim);
    double products = (double)s->hidden * (2 * heads + 2 * kv + (s->arch == TR_GPT2 ? 2 : 3) * (double)s->intermediate) + heads * (double)j->r->data.sequence;
    return j->recompute == TR_BLOCK ? 4.0 / 3 * products : products;
}

static int cut(struct pipeline *p, const struct job *j)
{
    const struct tr_shape *s = &j->shape;
    int n = stages_of(p), chunks = p->schedule.chunks, layers = (int)s->layers, rc;
    if (n > layers)
        return tr_fail(TR_EINPUT, "parallel.pipeline = %d with %d stage%s a rank (%s): %d layers cannot be shared by more than %d stages; set parallel.pipeline to at most %d%s", j->stages, chunks,
                       chunks > 1 ? "s" : "", j->r->path, layers, layers, layers / chunks, chunks > 1 ? ", or parallel.schedule = 1f1b" : "");
    double *work = NULL, block = work_of_block(j), head = (double)s->vocab * (double)s->hidden;
    TR_GO(tr_calloc(&p->first, (size_t)n + 1, sizeof *p->first));
    TR_GO(tr_calloc(&work, (size_t)layers, sizeof *work));
    for (int i = 0; i < layers; i++) work[i] = block;
    if (j->r->parallel.layers[0]) TR_GO(par_cut_by_hand(p->first, layers, n, j->r->parallel.layers));
    else TR_GO(par_cut_by_cost(p->first, layers, n, work, 0, p->schedule.vocabulary ? 0 : head));
    for (int i = 1; i <= n; i++) p->first[i]++; /* the embedding goes with the first block, final norm and head with the last */
    p->first[n]++;
done:
    free(work);
    return rc;
}

/* Layers are whole: rows of the vocabulary level what they leave uneven. */
static int share_vocabulary(struct pipeline *p, const struct job *j)
{
    double *work;
    TR_TRY(tr_calloc(&work, (size_t)p->schedule.ranks, sizeof *work));
    for (int i = 0; i < stages_of(p); i++) work[rank_of(p, i)] += (p->first[i + 1] - p->first[i] - (i == 0) - (i == stages_of(p) - 1)) * work_of_block(j);
    int rc = vocabulary_new(&p->vocabulary, j, last_rank(p), p->schedule.vocabulary == PAR_VOCABULARY_ALG2, work);
    free(work);
    return rc;
}

/* Fewer micro-batches than ranks: what waiting costs, where each pass of a stage takes as long as on another and backward twice its forward. */
static int warn_of_bubble(const struct pipeline *p, const struct job *j)
{
    size_t n = (size_t)stages_of(p);
    struct par_simulation time = { 0 };
    double *x;
    if (p->schedule.micros >= p->schedule.ranks || !j->train || tr_mem_is_dry()) return TR_OK;
    TR_TRY(tr_calloc(&x, 2 * n, sizeof *x));
    for (size_t i = 0; i < n; i++) x[i] = 1;
    struct par_costs costs = { .seconds = { x, x, x, x + n, x + n }, .held = x + n, .kept = x + n, .shard = x + n };
    int rc = par_schedule_simulate(&time, &p->schedule, &costs);
    if (rc == TR_OK)
        tr_warn("%d micro-batch%s for %d stages: ranks wait for %.0f %% of a step; a smaller train.micro_batch or a larger train.batch shortens it", p->schedule.micros, p->schedule.micros > 1 ? "es" : "",
                p->schedule.ranks, 100 * time.bubble);
    par_simulation_release(&time);
    free(x);
    return rc;
}

int pipeline_new(struct pipeline **out, const struct job *j)
{
    struct pipeline *p;
    TR_TRY(tr_calloc(&p, 1, sizeof *p));
    int rc;
    const char *name = par_schedule_names()[j->r->parallel.schedule];
    TR_GO(par_schedule_make(&p->schedule, name, j->stages, 0, (int)j->rounds, (enum par_vocabulary)j->r->parallel.vocabulary));
    TR_GO(cut(p, j));
    if (p->schedule.vocabulary) TR_GO(share_vocabulary(p, j));
    TR_GO(par_schedule_lower(&p->steps, &p->schedule));
    TR_GO(warn_of_bubble(p, j));
    *out = p;
    return TR_OK;
done:
    pipeline_free(p);
    return rc;
}

int pipeline_chunks(const struct pipeline *p) { return p->schedule.chunks; }

struct tr_cut pipeline_cut(const struct pipeline *p, int rank, struct tr_stage *stage)
{
    for (int c = 0; c < p->schedule.chunks; c++) {
        int i = par_stage(&p->schedule, rank, c);
        stage[c] = (struct tr_stage){ p->first[i], p->first[i + 1] };
    }
    struct tr_cut cut = { .stage = stage, .n = p->schedule.chunks };
    if (!p->vocabulary) return cut;
    const int64_t *first = vocabulary_first(p->vocabulary) + rank;
    cut.vocab_begin = first[0];
    cut.vocab_rows = first[1] - first[0];
    return cut;
}

static bool of_vocabulary(const struct par_step *k) { return k->kind == PAR_GATHER || k->pass.kind == PAR_S || k->pass.kind == PAR_T; }

/* The chunk of `rank` that a step is about, -1 for none: a message's is at the other end of the line for who receives it. */
static int chunk_of(const struct pipeline *p, int rank, const struct par_step *k)
{
    int chunk = k->pass.chunk;
    if (of_vocabulary(k) || (k->kind == PAR_EMBED && rank != rank_of(p, 0))) return -1;
    if (k->kind != PAR_RECEIVE) return chunk;
    par_stage_rank(&p->schedule, par_stage(&p->schedule, k->peer, chunk) + (k->pass.kind == PAR_F ? 1 : -1), &chunk);
    return chunk;
}

/* How many of n things that begin one after another are under way at most: thing i from begin[i] to end[i]. */
static int under_way(const int64_t *begin, const int64_t *end, int n)
{
    int most = 0;
    for (int i = 0, low = 0; i < n; i++) {
        while (low < i && end[low] < begin[i]) low++;
        if (i - low + 1 > most) most = i - low + 1;
    }
    return most;
}

static void note(int64_t *begin, int64_t *end, int64_t i)
{
    if (*begin < 0) *begin = i;
    *end = i;
}

/* Slots, feeds and parts of the vocabulary that this rank's row asks for. */
static int count_slots(struct pipeline *p, int rank, int *parts)
{
    const struct par_steps *t = &p->steps;
    int n = p->schedule.micros, chunks = p->schedule.chunks, feed = chunks * n, part = feed + n, all = part + n;
    int64_t *begin;
    TR_TRY(tr_calloc(&begin, 2 * (size_t)all, sizeof *begin));
    int64_t *end = begin + all;
    for (int i = 0; i < all; i++) begin[i] = -1;
    for (int64_t i = t->row[rank]; i < t->row[rank + 1]; i++) {
        const struct par_step *k = &t->step[i];
        int chunk = chunk_of(p, rank, k), m = k->pass.micro;
        if (chunk >= 0) note(&begin[chunk * n + m], &end[chunk * n + m], i);
        if (of_vocabulary(k)) note(&begin[part + m], &end[part + m], i);
        note(&begin[feed + m], &end[feed + m], i);
    }
    for (int c = 0; c < chunks; c++) {
        int slots = under_way(begin + c * n, end + c * n, n);
        if (slots > p->slots) p->slots = slots;
    }
    p->feeds = under_way(begin + feed, end + feed, n);
    *parts = under_way(begin + part, end + part, n);
    free(begin);
    return TR_OK;
}

int pipeline_open(struct pipeline *p, const struct job *j)
{
    int parts;
    TR_TRY(count_slots(p, j->pipe->rank, &parts));
    if (p->vocabulary) TR_TRY(vocabulary_open(p->vocabulary, j, parts));
    TR_TRY(tr_calloc(&p->slot, (size_t)p->schedule.chunks * (size_t)p->slots, sizeof *p->slot));
    for (int i = 0; i < p->schedule.chunks * p->slots; i++) {
        TR_TRY(tr_tape_new(&p->slot[i].tape));
        if (par_schedule_splits(&p->schedule)) tr_tape_split(p->slot[i].tape);
    }
    TR_TRY(tr_calloc(&p->feed, (size_t)p->feeds, sizeof *p->feed));
    for (int i = 0; i < p->feeds; i++) TR_TRY(tr_feed_new(&p->feed[i], j->feed.capacity));
    return TR_OK;
}

void pipeline_free(struct pipeline *p)
{
    if (!p) return;
    for (int i = 0; p->slot && i < p->schedule.chunks * p->slots; i++) {
        tr_tensor_release(&p->slot[i].din);
        tr_tape_free(p->slot[i].tape);
    }
    for (int i = 0; p->feed && i < p->feeds; i++) tr_feed_release(&p->feed[i]);
    vocabulary_free(p->vocabulary);
    free(p->slot);
    free(p->feed);
    free(p->first);
    par_steps_release(&p->steps);
    par_schedule_release(&p->schedule);
    free(p);
}

/* ---- a step */

struct walk { struct job *j; struct update *u; int64_t counted; double *losses, tokens; int fed; };

static struct slot *slot_of(const struct pipeline *p, int chunk, int micro) { return &p->slot[chunk * p->slots + micro % p->slots]; }

static float scale_of(const struct walk *w) { return (float)(1.0 / (double)w->counted); }

/* The feed of a micro-batch, which a rank needs in their order. */
static int feed_of(struct walk *w, int micro, struct tr_feed **out)
{
    int64_t tokens;
    *out = &w->j->pipeline->feed[micro % w->j->pipeline->feeds];
    if (micro < w->fed) return TR_OK;
    TR_TRY(step_feed(w->j, *out, &tokens));
    w->tokens += (double)tokens;
    w->fed++;
    return TR_OK;
}

/* The tape of a stage's micro-batch begins, with room for its input where another stage makes it. */
static int begin(struct walk *w, struct slot *s, int stage, int micro)
{
    struct tr_feed *feed;
    TR_TRY(feed_of(w, micro, &feed));
    s->in = s->out = NULL;
    tr_tape_begin(s->tape, true, w->j->recompute);
    return stage || w->j->pipeline->vocabulary ? tr_value_new(s->tape, &s->in, w->j->net->compute, TR_DIMS(feed->layout.n_tokens, w->j->shape.hidden)) : TR_OK;
}

/* The neighbour of a stage on the same rank, or NULL. */
static struct slot *beside(const struct pipeline *p, int stage, int other, int micro)
{
    int chunk;
    return other >= 0 && other < stages_of(p) && par_stage_rank(&p->schedule, other, &chunk) == rank_of(p, stage) ? slot_of(p, chunk, micro) : NULL;
}

static int forward(struct walk *w, int stage, struct slot *s, int micro, struct tr_feed *feed)
{
    struct job *j = w->j;
    struct pipeline *p = j->pipeline;
    struct slot *below = beside(p, stage, stage - 1, micro);
    double *loss = &w->losses[(int64_t)micro * j->data->size + j->data->rank];
    if (below || (stage == 0 && !p->vocabulary)) TR_TRY(begin(w, s, stage, micro));
    if (below) {
        tr_kernels()->copy(&s->in->t, &below->out->t);
        tr_drop(below->tape, below->out);
    }
    TR_TRY(tr_net_stage(j->net, s->tape, feed, (struct tr_stage){ p->first[stage], p->first[stage + 1] }, scale_of(w), j->segment, s->in, &s->out, loss));
    tr_drop(s->tape, s->in); /* the first layer's node keeps what it needs */
    return isfinite(*loss) ? TR_OK : step_blame(j, w->u->step, *loss);
}

static int backward(struct walk *w, int stage, struct slot *s, int micro, const struct tr_feed *feed)
{
    struct job *j = w->j;
    struct slot *above = beside(j->pipeline, stage, stage + 1, micro);
    struct tr_sink sink = { w->u, update_gradient };
    struct tr_tensor *d;
    bool acc;
    if (above) {
        TR_TRY(tr_grad_into(s->out, &d, &acc));
        tr_kernels()->copy(d, &above->din);
        tr_tensor_release(&above->din);
    }
    TR_TRY(tr_backward_part(s->tape, &sink, false, s->in, &s->din));
    if (s->din.data || (stage == 0 && !j->pipeline->vocabulary)) return TR_OK;
    /* Nothing here or below trains in this step: its message says so. */
    TR_TRY(tr_tensor_arena(&s->din, TR_ACTIVATIONS, j->net->compute, TR_DIMS(feed->layout.n_tokens, j->shape.hidden), 0));
    tr_kernels()->fill(&s->din, 0);
    return TR_OK;
}

/* What a shared head does together: the last stage's output to all, then what their columns sum up to, and back. */
static int gather(struct walk *w, const struct par_pass *k)
{
    struct job *j = w->j;
    struct pipeline *p = j->pipeline;
    struct tr_feed *feed;
    struct tr_tensor *dh = NULL;
    int chunk, micro = k->micro;
    bool last = par_stage_rank(&p->schedule, stages_of(p) - 1, &chunk) == j->pipe->rank, acc;
    struct slot *s = last ? slot_of(p, chunk, micro) : NULL;
    TR_TRY(feed_of(w, micro, &feed));
    if (k->kind == PAR_F) {
        TR_TRY(vocabulary_share(p->vocabulary, j, micro, feed, last ? &s->out->t : NULL));
        if (last) tr_drop(s->tape, s->out);
        return TR_OK;
    }
    if (k->kind == PAR_S) {
        double loss;
        TR_TRY(vocabulary_statistics(p->vocabulary, j, micro, feed, &loss));
        if (last) w->losses[(int64_t)micro * j->data->size + j->data->rank] = loss;
        if (!isfinite(loss)) return step_blame(j, w->u->step, loss);
        if (p->schedule.vocabulary == PAR_VOCABULARY_ALG1) return TR_OK;
    }
    if (last) TR_TRY(tr_grad_into(s->out, &dh, &acc));
    return vocabulary_gradient(p->vocabulary, j, micro, feed, scale_of(w), dh);
}

static int embed(struct walk *w, const struct par_pass *k, struct slot *s)
{
    struct job *j = w->j;
    struct tr_feed *feed;
    TR_TRY(feed_of(w, k->micro, &feed));
    if (k->kind == PAR_F) {
        if (s) TR_TRY(begin(w, s, 0, k->micro));
        return vocabulary_embed(j->pipeline->vocabulary, j, feed, s ? &s->in->t : NULL);
    }
    w->u->round = k->micro;
    int rc = vocabulary_embed_back(j->pipeline->vocabulary, j, feed, s ? &s->din : NULL, w->u);
    if (s) tr_tensor_release(&s->din);
    return rc;
}

static int compute(struct walk *w, const struct par_pass *k, struct slot *s)
{
    struct job *j = w->j;
    struct pipeline *p = j->pipeline;
    int stage = par_stage(&p->schedule, j->pipe->rank, k->chunk);
    struct tr_sink sink = { w->u, update_gradient };
    struct tr_feed *feed;
    TR_TRY(feed_of(w, k->micro, &feed));
    w->u->round = k->micro;
    switch ((enum par_pass_kind)k->kind) {
    case PAR_F: return forward(w, stage, s, k->micro, feed);
    case PAR_B: return backward(w, stage, s, k->micro, feed);
    case PAR_W: return tr_backward_weights(s->tape, &sink);
    case PAR_S: tr_part_enter(TR_PART_LOSS); return vocabulary_s(p->vocabulary, j, k->micro, feed, true);
    default: tr_part_enter(TR_PART_BACKWARD_LOSS); return vocabulary_t(p->vocabulary, j, k->micro, feed, scale_of(w), w->u);
    }
}

static int do_step(struct walk *w, const struct par_step *k)
{
    struct job *j = w->j;
    int micro = k->pass.micro, chunk = chunk_of(j->pipeline, j->pipe->rank, k);
    struct slot *s = chunk < 0 ? NULL : slot_of(j->pipeline, chunk, micro);
    bool ahead = k->pass.kind == PAR_F;
    struct tr_tensor *d;
    bool acc;
    enum tr_part part = tr_part_current();
    int rc = TR_OK;
    if (k->kind != PAR_COMPUTE) tr_part_enter(TR_PART_COMMUNICATION);
    if (k->kind == PAR_COMPUTE) rc = compute(w, &k->pass, s);
    else if (k->kind == PAR_GATHER) rc = gather(w, &k->pass);
    else if (k->kind == PAR_EMBED) rc = embed(w, &k->pass, s);
    else if (k->kind == PAR_SEND && ahead) {
        rc = tr_comm_send(j->pipe, &s->out->t, k->peer);
        tr_drop(s->tape, s->out);
    } else if (k->kind == PAR_SEND) {
        rc = tr_comm_send(j->pipe, &s->din, k->peer);
        tr_tensor_release(&s->din);
    } else if (ahead) {
        TR_TRY(begin(w, s, par_stage(&j->pipeline->schedule, j->pipe->rank, chunk), micro));
        rc = tr_comm_receive(j->pipe, &s->in->t, k->peer);
    } else {
        TR_TRY(tr_grad_into(s->out, &d, &acc));
        rc = tr_comm_receive(j->pipe, d, k->peer);
    }
    tr_part_enter(part);
    return rc;
}

void pipeline_watch(struct pipeline *p, void (*before)(void *self, const struct par_step *k), void *self)
{
    p->before = before;
    p->self = self;
}

int pipeline_step(struct job *j, struct update *u, int64_t counted, double *losses, double *tokens)
{
    struct walk w = { .j = j, .u = u, .counted = counted, .losses = losses };
    const struct pipeline *p = j->pipeline;
    const struct par_steps *t = &p->steps;
    for (int64_t i = t->row[j->pipe->rank]; i < t->row[j->pipe->rank + 1]; i++) {
        if (p->before) p->before(p->self, &t->step[i]);
        TR_TRY(do_step(&w, &t->step[i]));
    }
    if (p->before) p->before(p->self, NULL);
    *tokens = j->pipe->rank == 0 ? w.tokens : 0;
    return TR_OK;
}

/* The loss of the last stage's output with a shared head; h: NULL elsewhere. */
static int loss_of(struct job *j, const struct tr_feed *feed, const struct tr_value *h, double *loss)
{
    struct vocabulary *v = j->pipeline->vocabulary;
    double sum;
    TR_TRY(vocabulary_share(v, j, 0, feed, h ? &h->t : NULL));
    TR_TRY(vocabulary_s(v, j, 0, feed, false));
    TR_TRY(vocabulary_statistics(v, j, 0, feed, &sum));
    vocabulary_forget(v, 0);
    if (h) *loss = sum;
    return TR_OK;
}

int pipeline_loss(struct job *j, struct tr_feed *feed, double *loss)
{
    const struct pipeline *p = j->pipeline;
    struct tr_value *in = NULL, *out = NULL;
    int rank = j->pipe->rank, n = stages_of(p);
    tr_tape_begin(j->tape, false, TR_KEEP);
    if (p->vocabulary) {
        if (!vocabulary_is_open(p->vocabulary)) TR_TRY(vocabulary_open(p->vocabulary, j, 1)); /* evaluation alone */
        if (rank == rank_of(p, 0)) TR_TRY(tr_value_new(j->tape, &out, j->net->compute, TR_DIMS(feed->layout.n_tokens, j->shape.hidden)));
        TR_TRY(vocabulary_embed(p->vocabulary, j, feed, out ? &out->t : NULL));
    }
    for (int i = 0; i < n; i++) {
        if (rank_of(p, i) != rank) continue;
        if (i > 0 && rank_of(p, i - 1) != rank) {
            TR_TRY(tr_value_new(j->tape, &in, j->net->compute, TR_DIMS(feed->layout.n_tokens, j->shape.hidden)));
            TR_TRY(tr_comm_receive(j->pipe, &in->t, rank_of(p, i - 1)));
        } else in = out;
        TR_TRY(tr_net_stage(j->net, j->tape, feed, (struct tr_stage){ p->first[i], p->first[i + 1] }, 0, j->segment, in, &out, loss));
        tr_drop(j->tape, in);
        if (i == n - 1 || rank_of(p, i + 1) == rank) continue;
        TR_TRY(tr_comm_send(j->pipe, &out->t, rank_of(p, i + 1)));
        tr_drop(j->tape, out);
    }
    int rc = p->vocabulary ? loss_of(j, feed, rank == last_rank(p) ? out : NULL, loss) : TR_OK;
    tr_tape_clear(j->tape);
    return rc;
}

/* ---- a tied embedding */

bool pipeline_joins(const struct job *j, const struct tr_param *p) { return j->stages > 1 && j->shape.tied && p->index == 0 && last_rank(j->pipeline) != 0 && !p->spread; }

int pipeline_join(struct job *j, struct tr_tensor *sum)
{
    struct tr_tensor other = { 0 };
    int last = last_rank(j->pipeline);
    if (!sum->data) return TR_OK; /* other ranks of these stages have all of its rows */
    if (j->pipe->rank == last) {
        int rc = tr_comm_send(j->pipe, sum, 0);
        tr_tensor_release(sum);
        return rc;
    }
    if (j->pipe->rank > 0) return TR_OK;
    TR_TRY(tr_tensor_arena(&other, TR_GRADIENTS, TR_F32, sum->ndim, sum->dim, 0));
    int rc = tr_comm_receive(j->pipe, &other, last);
    if (rc == TR_OK) tr_kernels()->add(sum, sum, &other);
    tr_tensor_release(&other);
    return rc;
}

int pipeline_spread(struct job *j, struct tr_param *p)
{
    if (j->pipe->rank == 0) return tr_comm_send(j->pipe, &p->value, last_rank(j->pipeline));
    return j->pipe->rank == last_rank(j->pipeline) ? tr_comm_receive(j->pipe, &p->value, 0) : TR_OK;
}
