#include "recipes/vocabulary.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "parallel/cut.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* A micro-batch between X and pass T; M: its counted tokens. */
struct part {
    struct tr_tensor x_MC, q_MV;
    struct tr_tensor a_MC;               /* of the input's gradient: A, or with two barriers this rank's summand */
    struct tr_tensor stat_2N, share_N;   /* l and the label's logit; exp(l - L) */
    struct tr_tensor target_N;           /* labels as columns here, -1 where they are elsewhere */
};

struct vocabulary {
    int ranks, rank, last, parts;
    bool one_barrier;
    int64_t *first, *rows;               /* [ranks + 1] the vocabulary's rows; those of a message */
    struct part *part;
    struct tr_tensor order_N, local_N;   /* i32: tokens by the rank of their row, and where that has it */
    int32_t *host;                       /* [3 N] ids, order, local */
    float *stat;                         /* [2 ranks N] */
};

int vocabulary_new(struct vocabulary **out, const struct job *j, int last, bool one_barrier, const double *work)
{
    struct vocabulary *v;
    int64_t V = j->shape.vocab;
    if (V < j->stages)
        return tr_fail(TR_EINPUT, "parallel.vocabulary with parallel.pipeline = %d (%s): a vocabulary of %" PRId64 " has no row for every rank; set parallel.vocabulary = none", j->stages, j->r->path, V);
    TR_TRY(tr_calloc(&v, 1, sizeof *v));
    *v = (struct vocabulary){ .ranks = j->stages, .rank = j->pipe->rank, .last = last, .one_barrier = one_barrier };
    *out = v;
    TR_TRY(tr_calloc(&v->first, 2 * ((size_t)v->ranks + 1), sizeof *v->first));
    v->rows = v->first + v->ranks + 1;
    par_share_rows(v->first, V, v->ranks, work, (double)j->shape.hidden);
    return TR_OK;
}

const int64_t *vocabulary_first(const struct vocabulary *v) { return v->first; }

int vocabulary_open(struct vocabulary *v, const struct job *j, int parts)
{
    int64_t N = j->feed.capacity;
    TR_TRY(tr_calloc(&v->part, (size_t)parts, sizeof *v->part));
    v->parts = parts;
    for (int i = 0; i < parts; i++) {
        struct part *k = &v->part[i];
        TR_TRY(tr_tensor_new(&k->stat_2N, TR_OTHER, TR_F32, TR_DIMS(2, N)));
        TR_TRY(tr_tensor_new(&k->share_N, TR_OTHER, TR_F32, TR_DIMS(N)));
        TR_TRY(tr_tensor_new(&k->target_N, TR_OTHER, TR_I32, TR_DIMS(N)));
    }
    TR_TRY(tr_tensor_new(&v->order_N, TR_OTHER, TR_I32, TR_DIMS(N)));
    TR_TRY(tr_tensor_new(&v->local_N, TR_OTHER, TR_I32, TR_DIMS(N)));
    TR_TRY(tr_calloc(&v->host, 3 * (size_t)N, sizeof *v->host));
    return tr_calloc(&v->stat, 2 * (size_t)v->ranks * (size_t)N, sizeof *v->stat);
}

bool vocabulary_is_open(const struct vocabulary *v) { return v->parts > 0; }

void vocabulary_free(struct vocabulary *v)
{
    if (!v) return;
    for (int i = 0; i < v->parts; i++) {
        struct tr_tensor *all[] = { &v->part[i].x_MC, &v->part[i].q_MV, &v->part[i].a_MC, &v->part[i].stat_2N, &v->part[i].share_N, &v->part[i].target_N };
        for (int k = 0; k < 6; k++) tr_tensor_release(all[k]);
    }
    tr_tensor_release(&v->order_N);
    tr_tensor_release(&v->local_N);
    free(v->part);
    free(v->host);
    free(v->stat);
    free(v->first);
    free(v);
}

static struct tr_tensor slice(const struct tr_tensor *x, int64_t begin, int64_t n)
{
    return tr_tensor_view((char *)x->data + (size_t)begin * tr_dtype_size(x->dtype), x->dtype, 1, &n);
}

static struct part *part_of(const struct vocabulary *v, int micro) { return &v->part[micro % v->parts]; }

/* All rows of a message from or to one rank. */
static const int64_t *rows_at(struct vocabulary *v, int rank, int64_t n)
{
    for (int r = 0; r <= v->ranks; r++) v->rows[r] = r > rank ? n : 0;
    return v->rows;
}

/* ---- gradients */

/* Room for gradients of a weight's rows here: this step's sum, or of its own, which the sink takes. */
static int gradient_into(struct job *j, struct update *u, struct tr_weight *w, struct tr_tensor **dw, bool *summed)
{
    TR_TRY(update_sum(u, w->param[0], dw));
    *summed = *dw;
    return *summed ? TR_OK : tr_weight_grad_add(j->tape, w, dw);
}

static int gradient_done(struct update *u, struct tr_weight *w, bool summed)
{
    struct tr_sink sink = { u, update_gradient };
    return summed ? update_added(u, w->param[0]) : tr_weight_flush(w, &sink);
}

/* ---- embedding */

static bool has(const struct vocabulary *v, int rank, int64_t id) { return id >= v->first[rank] && id < v->first[rank + 1]; }

static int owner(const struct vocabulary *v, int64_t id)
{
    int r = 0;
    while (id >= v->first[r + 1]) r++;
    return r;
}

/* Tokens in the order of the ranks that have their rows: v->rows, v->order_N, v->local_N. */
static void sort_tokens(struct vocabulary *v, const struct tr_feed *f)
{
    int64_t N = f->layout.n_tokens, n = 0;
    int32_t *id = v->host, *order = id + f->capacity, *local = order + f->capacity;
    tr_tensor_read(&f->ids_N, id);
    for (int r = 0; r < v->ranks; r++) {
        v->rows[r] = n;
        for (int64_t i = 0; i < N; i++) {
            if (!has(v, r, id[i])) continue;
            order[n] = (int32_t)i;
            local[n++] = (int32_t)(id[i] - v->first[r]);
        }
    }
    v->rows[v->ranks] = n;
    struct tr_tensor to = slice(&v->order_N, 0, N);
    tr_tensor_write(&to, order);
    to = slice(&v->local_N, 0, N);
    tr_tensor_write(&to, local);
}

/* Rows between the first stage, which has them all in all_NC, and their owners. */
static int exchange(struct vocabulary *v, struct job *j, struct tr_tensor *all_NC, bool back)
{
    for (int r = 1; r < v->ranks; r++) {
        struct tr_tensor rows = tr_rows_view(all_NC, v->rows[r], v->rows[r + 1] - v->rows[r]);
        if (v->rank != 0 && v->rank != r) continue;
        TR_TRY((v->rank == 0) == back ? tr_comm_send(j->pipe, &rows, v->rank ? 0 : r) : tr_comm_receive(j->pipe, &rows, v->rank ? 0 : r));
    }
    return TR_OK;
}

int vocabulary_embed(struct vocabulary *v, struct job *j, const struct tr_feed *f, struct tr_tensor *x_NC)
{
    struct tr_tensor all_NC, order = slice(&v->order_N, 0, f->layout.n_tokens);
    TR_TRY(tr_tensor_arena(&all_NC, TR_COMMUNICATION, j->net->compute, TR_DIMS(f->layout.n_tokens, j->shape.hidden), 0));
    sort_tokens(v, f);
    int64_t begin = v->rows[v->rank], n = v->rows[v->rank + 1] - begin;
    struct tr_tensor mine = tr_rows_view(&all_NC, begin, n), local = slice(&v->local_N, begin, n);
    tr_kernels()->embed(&mine, &j->net->layer[0].embed.value, &local, false);
    int rc = exchange(v, j, &all_NC, false);
    if (rc == TR_OK && x_NC) tr_kernels()->scatter(x_NC, &all_NC, &order);
    tr_tensor_release(&all_NC);
    return rc;
}

int vocabulary_embed_back(struct vocabulary *v, struct job *j, const struct tr_feed *f, const struct tr_tensor *dx_NC, struct update *u)
{
    struct tr_weight *w = &j->net->layer[0].embed;
    struct tr_tensor all_NC, *dw, order = slice(&v->order_N, 0, f->layout.n_tokens);
    bool summed;
    if (tr_weight_frozen(w)) return TR_OK;
    TR_TRY(tr_tensor_arena(&all_NC, TR_COMMUNICATION, j->net->compute, TR_DIMS(f->layout.n_tokens, j->shape.hidden), 0));
    sort_tokens(v, f);
    if (dx_NC) tr_kernels()->embed(&all_NC, dx_NC, &order, false);
    int rc;
    TR_GO(exchange(v, j, &all_NC, true));
    int64_t begin = v->rows[v->rank], n = v->rows[v->rank + 1] - begin;
    struct tr_tensor mine = tr_rows_view(&all_NC, begin, n), local = slice(&v->local_N, begin, n);
    TR_GO(gradient_into(j, u, w, &dw, &summed));
    tr_kernels()->embed_backward(dw, &mine, &local);
    tr_tensor_release(&all_NC);
    rc = gradient_done(u, w, summed);
done:
    tr_tensor_release(&all_NC);
    return rc;
}

/* ---- head */

int vocabulary_share(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, const struct tr_tensor *h_NC)
{
    struct part *k = part_of(v, micro);
    int64_t M = f->n_counted;
    if (!M) return TR_OK;
    TR_TRY(tr_tensor_arena(&k->x_MC, TR_ACTIVATIONS, j->net->compute, TR_DIMS(M, j->shape.hidden), 0));
    if (h_NC) tr_kernels()->embed(&k->x_MC, h_NC, &f->rows_M, false);
    return tr_comm_gather_rows(j->pipe, &k->x_MC, NULL, rows_at(v, v->last, M));
}

/* Labels as columns of this rank. */
static void set_targets(struct vocabulary *v, struct part *k, const struct tr_feed *f)
{
    for (int64_t i = 0; i < f->n_counted; i++) {
        int64_t t = f->host_targets[i];
        v->host[i] = has(v, v->rank, t) ? (int32_t)(t - v->first[v->rank]) : -1;
    }
    struct tr_tensor to = slice(&k->target_N, 0, f->n_counted);
    tr_tensor_write(&to, v->host);
}

enum { SEGMENT = 128 };   /* tokens whose logits are there in f32 at a time */

/* Rows [at, at + S): logits, and over them or beside them Q. */
static int segment(struct part *k, const struct tr_tensor *w_VC, int64_t at, int64_t S, bool record)
{
    struct tr_tensor x_SC = tr_rows_view(&k->x_MC, at, S), q_SV = { 0 }, logits_SV = { 0 };
    struct tr_tensor l = tr_rows_view(&k->stat_2N, 0, 1), hit = tr_rows_view(&k->stat_2N, 1, 1), target_S = slice(&k->target_N, at, S);
    if (record) q_SV = tr_rows_view(&k->q_MV, at, S);
    if (record && q_SV.dtype == TR_F32) logits_SV = q_SV;
    else TR_TRY(tr_tensor_arena(&logits_SV, TR_WORKSPACE, TR_F32, TR_DIMS(S, tr_rows(w_VC)), 0));
    l = slice(&l, at, S);
    hit = slice(&hit, at, S);
    int rc = tr_gemm_forward(&logits_SV, &x_SC, w_VC, false);
    if (rc == TR_OK) tr_kernels()->softmax(record ? &q_SV : NULL, &l, &hit, &logits_SV, &target_S);
    tr_tensor_release(&logits_SV);
    return rc;
}

int vocabulary_s(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, bool record)
{
    struct part *k = part_of(v, micro);
    const struct tr_tensor *w_VC = &tr_net_head(j->net)->value;
    int64_t M = f->n_counted;
    if (!M) return TR_OK;
    set_targets(v, k, f);
    if (record) TR_TRY(tr_tensor_arena(&k->q_MV, TR_ACTIVATIONS, j->net->compute, TR_DIMS(M, tr_rows(w_VC)), 0));
    for (int64_t at = 0; at < M; at += SEGMENT) TR_TRY(segment(k, w_VC, at, M - at < SEGMENT ? M - at : SEGMENT, record));
    if (!record || !v->one_barrier) return TR_OK;
    TR_TRY(tr_tensor_arena(&k->a_MC, TR_ACTIVATIONS, j->net->compute, TR_DIMS(M, j->shape.hidden), 0));
    return tr_gemm_dx(&k->a_MC, &k->q_MV, w_VC, false);
}

int vocabulary_statistics(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, double *loss)
{
    struct part *k = part_of(v, micro);
    struct tr_tensor all, mine = k->stat_2N, share = slice(&k->share_N, 0, f->n_counted);
    int64_t M = f->n_counted;
    *loss = 0;
    if (!M) return TR_OK;
    mine.owner = 0;
    mine.dim[1] = M;
    TR_TRY(tr_tensor_arena(&all, TR_COMMUNICATION, TR_F32, TR_DIMS(2 * v->ranks, M), 0));
    for (int r = 0; r <= v->ranks; r++) v->rows[r] = 2 * r;
    int rc;
    TR_GO(tr_comm_gather_rows(j->pipe, &all, &mine, v->rows));
    tr_tensor_read(&all, v->stat);
    for (int64_t i = 0; i < M; i++) {
        double most = -INFINITY, sum = 0, own = (double)v->stat[2 * v->rank * M + i];
        for (int r = 0; r < v->ranks; r++) most = fmax(most, (double)v->stat[2 * r * M + i]);
        for (int r = 0; r < v->ranks; r++) sum += exp((double)v->stat[2 * r * M + i] - most);
        double total = most + log(sum);
        *loss += total - (double)v->stat[(2 * owner(v, f->host_targets[i]) + 1) * M + i];
        v->stat[2 * v->rank * M + i] = (float)exp(own - total);
    }
    tr_tensor_write(&share, v->stat + 2 * v->rank * M);
done:
    tr_tensor_release(&all);
    return rc;
}

int vocabulary_t(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, float scale, struct update *u)
{
    struct part *k = part_of(v, micro);
    struct tr_weight *w = tr_net_head(j->net);
    struct tr_tensor *dw, share = slice(&k->share_N, 0, f->n_counted), target = slice(&k->target_N, 0, f->n_counted);
    bool summed;
    if (f->n_counted) {
        tr_kernels()->softmax_gradient(&k->q_MV, &share, &target, scale);
        if (!v->one_barrier) { /* before the sink may change W */
            TR_TRY(tr_tensor_arena(&k->a_MC, TR_ACTIVATIONS, j->net->compute, TR_DIMS(f->n_counted, j->shape.hidden), 0));
            TR_TRY(tr_gemm_dx(&k->a_MC, &k->q_MV, &w->value, false));
        }
    }
    if (!tr_weight_frozen(w)) {
        TR_TRY(gradient_into(j, u, w, &dw, &summed));
        if (f->n_counted) TR_TRY(tr_gemm_dw(dw, &k->q_MV, &k->x_MC, true));
        TR_TRY(gradient_done(u, w, summed));
    }
    tr_tensor_release(&k->q_MV);
    vocabulary_forget(v, micro);
    return TR_OK;
}

/* g -= scale G W: the rows of W at the labels that are here. */
static int take_labels(struct vocabulary *v, struct job *j, const struct tr_feed *f, struct tr_tensor *g_MC, float scale)
{
    struct tr_tensor rows;
    int64_t M = f->n_counted, n = 0;
    int32_t *order = v->host + f->capacity, *local = order + f->capacity;
    for (int64_t i = 0; i < M; i++) {
        int64_t t = f->host_targets[i];
        if (!has(v, v->rank, t)) continue;
        order[n] = (int32_t)i;
        local[n++] = (int32_t)(t - v->first[v->rank]);
    }
    TR_TRY(tr_tensor_arena(&rows, TR_WORKSPACE, TR_F32, TR_DIMS(M, j->shape.hidden), 0));
    struct tr_tensor some = tr_rows_view(&rows, 0, n), at = slice(&v->order_N, 0, n), id = slice(&v->local_N, 0, n);
    tr_tensor_write(&at, order);
    tr_tensor_write(&id, local);
    tr_kernels()->embed(&some, &tr_net_head(j->net)->value, &id, false);
    tr_kernels()->scale(&some, -scale);
    tr_kernels()->embed_backward(g_MC, &some, &at);
    tr_tensor_release(&rows);
    return TR_OK;
}

/* sum_MC, f32, as the gradient of all tokens. */
static int spread(const struct tr_feed *f, struct tr_tensor *dh_NC, const struct tr_tensor *sum_MC)
{
    struct tr_tensor same = { 0 };
    tr_kernels()->fill(dh_NC, 0);
    if (dh_NC->dtype != TR_F32) {
        TR_TRY(tr_tensor_arena(&same, TR_WORKSPACE, dh_NC->dtype, sum_MC->ndim, sum_MC->dim, 0));
        tr_kernels()->copy(&same, sum_MC);
        sum_MC = &same;
    }
    tr_kernels()->scatter(dh_NC, sum_MC, &f->rows_M);
    tr_tensor_release(&same);
    return TR_OK;
}

int vocabulary_gradient(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, float scale, struct tr_tensor *dh_NC)
{
    struct part *k = part_of(v, micro);
    struct tr_tensor g_MC, sum_MC = { 0 }, share = slice(&k->share_N, 0, f->n_counted);
    int64_t M = f->n_counted, C = j->shape.hidden;
    if (!M) {
        if (dh_NC) tr_kernels()->fill(dh_NC, 0);
        return TR_OK;
    }
    int rc;
    TR_TRY(tr_tensor_arena(&g_MC, TR_COMMUNICATION, TR_F32, TR_DIMS(M, C), 0));
    tr_kernels()->copy(&g_MC, &k->a_MC);
    tr_tensor_release(&k->a_MC);
    if (v->one_barrier) {
        tr_kernels()->softmax_gradient(&g_MC, &share, NULL, scale);
        TR_GO(take_labels(v, j, f, &g_MC, scale));
    }
    if (dh_NC) TR_GO(tr_tensor_arena(&sum_MC, TR_COMMUNICATION, TR_F32, TR_DIMS(M, C), 0));
    TR_GO(tr_comm_reduce_rows(j->pipe, &sum_MC, &g_MC, rows_at(v, v->last, M), false));
    if (dh_NC) rc = spread(f, dh_NC, &sum_MC);
done:
    tr_tensor_release(&sum_MC);
    tr_tensor_release(&g_MC);
    return rc;
}

void vocabulary_forget(struct vocabulary *v, int micro) { tr_tensor_release(&part_of(v, micro)->x_MC); }
