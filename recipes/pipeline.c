#include "recipes/pipeline.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include "parallel/cut.h"
#include "parallel/schedule/schedule.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* A micro-batch under way. out: the stage's result until it is sent, then only a shape for its gradient. */
struct slot { struct tr_tape *tape; struct tr_feed feed; struct tr_value *in, *out; struct tr_tensor din; };
struct pipeline { struct par_schedule schedule; struct par_steps steps; struct slot *slot; int n; };

static int last_stage(const struct job *j) { return j->stages - 1; }

int pipeline_cut(const struct job *j, int stage, int *from, int *to)
{
    const struct tr_shape *s = &j->shape;
    int stages = j->stages, layers = (int)s->layers, rc;
    if (stages > layers)
        return tr_fail(TR_EINPUT, "parallel.pipeline = %d (%s): %d layers cannot be shared by more than %d stages; set parallel.pipeline to at most %d", stages, j->r->path, layers, layers, layers);
    int *first = NULL;
    double *work = NULL, head = (double)s->vocab * (double)s->hidden, heads = (double)(s->heads * s->head_dim), kv = (double)(s->kv_heads * s->head_dim);
    double block = (double)s->hidden * (2 * heads + 2 * kv + (s->arch == TR_GPT2 ? 2 : 3) * (double)s->intermediate);
    TR_GO(tr_calloc(&first, (size_t)stages + 1, sizeof *first));
    TR_GO(tr_calloc(&work, (size_t)layers, sizeof *work));
    for (int i = 0; i < layers; i++) work[i] = block;
    TR_GO(par_cut_by_cost(first, layers, stages, work, 0, head));
    *from = stage == 0 ? 0 : 1 + first[stage]; /* the embedding goes with the first block, final norm and head with the last */
    *to = stage == stages - 1 ? layers + 2 : 1 + first[stage + 1];
done:
    free(work);
    free(first);
    return rc;
}

static int slot_init(struct job *j, struct slot *s)
{
    TR_TRY(tr_tape_new(&s->tape));
    return tr_feed_new(&s->feed, j->feed.capacity);
}

int pipeline_new(struct pipeline **out, struct job *j)
{
    struct pipeline *p;
    TR_TRY(tr_calloc(&p, 1, sizeof *p));
    int rc;
    TR_GO(par_schedule_make(&p->schedule, "1f1b", j->stages, 0, (int)j->rounds, PAR_VOCABULARY_NONE));
    TR_GO(par_schedule_lower(&p->steps, &p->schedule));
    p->n = par_schedule_bound(&p->schedule, j->pipe->rank) + 1;
    if (p->n > j->rounds) p->n = (int)j->rounds;
    TR_GO(tr_calloc(&p->slot, (size_t)p->n, sizeof *p->slot));
    for (int i = 0; i < p->n; i++) TR_GO(slot_init(j, &p->slot[i]));
    *out = p;
    return TR_OK;
done:
    pipeline_free(p);
    return rc;
}

void pipeline_free(struct pipeline *p)
{
    if (!p) return;
    for (int i = 0; p->slot && i < p->n; i++) {
        tr_tensor_release(&p->slot[i].din);
        tr_tape_free(p->slot[i].tape);
        tr_feed_release(&p->slot[i].feed);
    }
    free(p->slot);
    par_steps_release(&p->steps);
    par_schedule_release(&p->schedule);
    free(p);
}

/* ---- a step */

struct walk { struct job *j; struct update *u; int64_t counted; double *losses, tokens; };

static int receive_hidden(struct job *j, struct tr_tape *t, const struct tr_feed *f, struct tr_value **in, int from)
{
    TR_TRY(tr_value_new(t, in, j->net->compute, TR_DIMS(f->layout.n_tokens, j->shape.hidden)));
    return tr_comm_receive(j->pipe, &(*in)->t, from);
}

static int begin(struct walk *w, struct slot *s)
{
    int64_t fed;
    TR_TRY(step_feed(w->j, &s->feed, &fed));
    w->tokens += (double)fed;
    s->in = s->out = NULL;
    tr_tape_begin(s->tape, true, w->j->recompute);
    return TR_OK;
}

static int forward(struct walk *w, struct slot *s, int64_t micro)
{
    struct job *j = w->j;
    double *loss = &w->losses[micro * j->data->size + j->data->rank];
    if (j->pipe->rank == 0) TR_TRY(begin(w, s));
    TR_TRY(tr_net_stage(j->net, s->tape, &s->feed, (float)(1.0 / (double)w->counted), j->segment, s->in, &s->out, loss));
    tr_drop(s->tape, s->in); /* the first layer's node keeps what it needs */
    return isfinite(*loss) ? TR_OK : step_blame(j, w->u->step, *loss);
}

static int backward(struct walk *w, struct slot *s, int64_t micro)
{
    struct tr_sink sink = { w->u, update_gradient };
    w->u->round = micro;
    TR_TRY(tr_backward_part(s->tape, &sink, false, s->in, &s->din));
    if (w->j->pipe->rank == 0 || s->din.data) return TR_OK;
    /* Nothing here or below trains in this step: its message says so. */
    TR_TRY(tr_tensor_arena(&s->din, TR_ACTIVATIONS, w->j->net->compute, TR_DIMS(s->feed.layout.n_tokens, w->j->shape.hidden), 0));
    tr_kernels()->fill(&s->din, 0);
    return TR_OK;
}

static int do_step(struct walk *w, const struct par_step *k)
{
    struct job *j = w->j;
    int64_t micro = k->pass.micro;
    struct slot *s = &j->pipeline->slot[micro % j->pipeline->n];
    bool ahead = k->pass.kind == PAR_F;
    struct tr_tensor *d;
    bool acc;
    enum tr_part part = tr_part_current();
    int rc = TR_OK;
    if (k->kind == PAR_COMPUTE) return ahead ? forward(w, s, micro) : backward(w, s, micro);
    tr_part_enter(TR_PART_COMMUNICATION);
    if (k->kind == PAR_SEND && ahead) {
        rc = tr_comm_send(j->pipe, &s->out->t, k->peer);
        tr_drop(s->tape, s->out);
    } else if (k->kind == PAR_SEND) {
        rc = tr_comm_send(j->pipe, &s->din, k->peer);
        tr_tensor_release(&s->din);
    } else if (ahead) {
        TR_TRY(begin(w, s));
        rc = receive_hidden(j, s->tape, &s->feed, &s->in, k->peer);
    } else {
        TR_TRY(tr_grad_into(s->out, &d, &acc));
        rc = tr_comm_receive(j->pipe, d, k->peer);
    }
    tr_part_enter(part);
    return rc;
}

int pipeline_step(struct job *j, struct update *u, int64_t counted, double *losses, double *tokens)
{
    struct walk w = { .j = j, .u = u, .counted = counted, .losses = losses };
    const struct par_steps *t = &j->pipeline->steps;
    for (int64_t i = t->row[j->pipe->rank]; i < t->row[j->pipe->rank + 1]; i++) TR_TRY(do_step(&w, &t->step[i]));
    *tokens = j->pipe->rank == 0 ? w.tokens : 0;
    return TR_OK;
}

int pipeline_loss(struct job *j, struct tr_feed *feed, double *loss)
{
    struct tr_value *in = NULL, *out = NULL;
    int rank = j->pipe->rank;
    tr_tape_begin(j->tape, false, TR_KEEP);
    if (rank > 0) TR_TRY(receive_hidden(j, j->tape, feed, &in, rank - 1));
    TR_TRY(tr_net_stage(j->net, j->tape, feed, 0, j->segment, in, &out, loss));
    if (out) TR_TRY(tr_comm_send(j->pipe, &out->t, rank + 1));
    tr_tape_clear(j->tape);
    return TR_OK;
}

/* ---- a tied embedding */

bool pipeline_joins(const struct job *j, const struct tr_param *p) { return j->stages > 1 && j->shape.tied && p->index == 0; }

int pipeline_join(struct job *j, struct tr_tensor *sum)
{
    struct tr_tensor other = { 0 };
    if (!sum->data) return TR_OK; /* other ranks of these stages have all of its rows */
    if (j->pipe->rank == last_stage(j)) {
        int rc = tr_comm_send(j->pipe, sum, 0);
        tr_tensor_release(sum);
        return rc;
    }
    if (j->pipe->rank > 0) return TR_OK;
    TR_TRY(tr_tensor_arena(&other, TR_GRADIENTS, TR_F32, sum->ndim, sum->dim, 0));
    int rc = tr_comm_receive(j->pipe, &other, last_stage(j));
    if (rc == TR_OK) tr_kernels()->add(sum, sum, &other);
    tr_tensor_release(&other);
    return rc;
}

int pipeline_spread(struct job *j, struct tr_param *p)
{
    if (j->pipe->rank == 0) return tr_comm_send(j->pipe, &p->value, last_stage(j));
    return j->pipe->rank == last_stage(j) ? tr_comm_receive(j->pipe, &p->value, 0) : TR_OK;
}
