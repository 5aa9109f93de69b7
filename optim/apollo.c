/* APOLLO, APOLLO-Mini and Q-APOLLO: the gradient is scaled by factors learnt in a random low-rank sketch of it.
 * Letters: G[M,N], rank R. Right side (M >= N): P[R,N], low = G P^T [M,R]; left: P[M,R], low = P^T G [R,N].
 * State: two moments shaped like low, f32; the norm of the last step; P is drawn again from a seed, never kept. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNEL, TENSOR };
enum { EVEN, PUBLISHED };   /* grids of int8 weights (kernel/int8.h) */

struct apollo {
    struct opt_base base;
    double beta1, beta2, eps, scale;
    int64_t rank, update_gap;
    int scale_type, grid;
    bool correct_bias, scale_front, disable_nl, stochastic_round;
};
struct apollo_state { struct tr_tensor m, v; uint64_t t; double last; };

#define OPTIONS(RANK, TYPE, SCALE, ...) { \
    { "weight_decay", TR_OPT_REAL, offsetof(struct apollo, base.weight_decay), "0", 0, 1e6, NULL, "decoupled, after the update" }, \
    { "beta1", TR_OPT_REAL, offsetof(struct apollo, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" }, \
    { "beta2", TR_OPT_REAL, offsetof(struct apollo, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" }, \
    { "rank", TR_OPT_INT, offsetof(struct apollo, rank), RANK, 1, 1 << 20, NULL, "rows of the sketch; at most the smaller side counts" }, \
    { "update_gap", TR_OPT_INT, offsetof(struct apollo, update_gap), "200", 1, 1e15, NULL, "updates between two draws of P" }, \
    { "scale", TR_OPT_REAL, offsetof(struct apollo, scale), SCALE, 0, 1e9, NULL, "its root multiplies the scaled gradient" }, \
    { "scale_type", TR_OPT_CHOICE, offsetof(struct apollo, scale_type), TYPE, 0, 0, "channel|tensor", "one factor per channel of the long side, or one per matrix" }, \
    { "scale_front", TR_OPT_BOOL, offsetof(struct apollo, scale_front), "false", 0, 0, NULL, "scale before the limiter; changes nothing but rounding" }, \
    { "disable_nl", TR_OPT_BOOL, offsetof(struct apollo, disable_nl), "false", 0, 0, NULL, "no limit on the growth of the step's norm" }, \
    __VA_ARGS__, OPT_END }
#define HF_ORDER \
    { "eps", TR_OPT_REAL, offsetof(struct apollo, eps), "1e-6", 0, 1, NULL, "added to the uncorrected root" }, \
    { "correct_bias", TR_OPT_BOOL, offsetof(struct apollo, correct_bias), "true", 0, 0, NULL, "undo the moments' start at zero" }
static const struct tr_option options[] = OPTIONS("256", "channel", "1", HF_ORDER);
static const struct tr_option mini_options[] = OPTIONS("1", "tensor", "128", HF_ORDER);
static const struct tr_option q_options[] = OPTIONS("256", "channel", "1",
    { "eps", TR_OPT_REAL, offsetof(struct apollo, eps), "1e-8", 0, 1, NULL, "added to the corrected root" },
    { "stochastic_round", TR_OPT_BOOL, offsetof(struct apollo, stochastic_round), "true", 0, 0, NULL, "round weights up or down by chance, so that small steps are not lost; false: to nearest" },
    { "grid", TR_OPT_CHOICE, offsetof(struct apollo, grid), "even", 0, 0, "even|published", "of int8 weights: even never leaves its ends; published is that of the authors' code, which cuts them" });

static int64_t rank_of(const struct apollo *c, int64_t m, int64_t n)
{
    int64_t lo = m < n ? m : n;
    return c->rank < lo ? c->rank : lo;
}

static int init(const void *config, void *state, const struct tr_param *p)
{
    struct apollo_state *s = state;
    int64_t m = tr_rows(&p->value), n = tr_cols(&p->value), r = rank_of(config, m, n);
    int64_t dim[2] = { m >= n ? m : r, m >= n ? r : n };
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, ((const struct opt_base *)config)->moments, 2, dim));
    return tr_tensor_new(&s->v, TR_OPTIMIZER, ((const struct opt_base *)config)->moments, 2, dim);
}

/* low = sketch of G in the arena. */
static int sketch(struct tr_tensor *low, const struct apollo *c, const struct opt_step *s, uint64_t t)
{
    int64_t m = tr_rows(s->grad), n = tr_cols(s->grad), r = rank_of(c, m, n);
    bool right = m >= n;
    struct tr_tensor p = { 0 };
    int rc;
    if (s->given) {
        TR_TRY(s->given->get(s->given->self, "projection", (int64_t)((t - 1) / (uint64_t)c->update_gap), &p));
    } else {
        TR_TRY(tr_tensor_arena(&p, TR_WORKSPACE, TR_F32, TR_DIMS(right ? r : m, right ? n : r), 0));
        tr_kernels()->random_normal(&p, tr_key(s->seed, TR_RNG_PROJECTION, tr_hash(s->p->name), (t - 1) / (uint64_t)c->update_gap), (float)(1 / sqrt((double)r)));
    }
    TR_GO(tr_tensor_arena(low, TR_WORKSPACE, TR_F32, TR_DIMS(right ? m : r, right ? r : n), 0));
    TR_GO(right ? tr_gemm_f32(low, 1, s->grad, false, &p, true, 0) : tr_gemm_f32(low, 1, &p, true, s->grad, false, 0));
done:
    tr_tensor_release(&p);
    return rc;
}

/* Limits growth of the step's norm to 1 % a step; returns what to multiply the step by. */
static double limit(const struct apollo *c, struct apollo_state *st, double norm)
{
    double by = 1;
    if (c->disable_nl) return 1;
    if (st->t > 1) {
        double growth = norm / (st->last + 1e-8);
        by = 1.01 / (growth > 1.01 ? growth : 1.01);
    }
    if (norm > 0) st->last = norm * by; /* a step without gradient says nothing about the next */
    return by;
}

/* f = |u| / |low| for each channel of the long side, on the host; *norm = |G f|. */
static int channel_factors(struct tr_tensor *f, const struct tr_tensor *u, const struct tr_tensor *low, const struct tr_tensor *g, double *norm)
{
    int axis = tr_rows(g) >= tr_cols(g) ? 0 : 1;
    int64_t n = axis == 0 ? tr_rows(g) : tr_cols(g);
    struct tr_tensor part;
    float *host = calloc((size_t)n * 3, sizeof *host);
    if (!host) return tr_fail(TR_EFAIL, "no memory for the factors of a matrix");
    const struct tr_tensor *of[3] = { u, low, g };
    int rc = tr_tensor_arena(&part, TR_WORKSPACE, TR_F32, TR_DIMS(n), 0);
    for (int k = 0; k < 3 && rc == TR_OK; k++) {
        tr_updates()->norms(&part, of[k], axis);
        tr_tensor_read(&part, host + k * n);
    }
    double squares = 0;
    for (int64_t i = 0; i < n; i++) {
        host[i] = (float)((double)host[i] / ((double)host[n + i] + 1e-8));
        squares += (double)host[i] * (double)host[i] * (double)host[2 * n + i] * (double)host[2 * n + i];
    }
    *norm = sqrt(squares);
    if (rc == TR_OK) tr_tensor_write(f, host);
    tr_tensor_release(&part);
    free(host);
    return rc;
}

/* W = W - rate f G in W's own type; flat int8 weights (recorded runs) take the scaled gradient by their groups. */
static int apply(const struct opt_step *s, const struct tr_tensor *f, int axis, const struct tr_apply *a)
{
    struct tr_tensor *w = &s->p->value, one = { 0 };
    if (!f->data) tr_updates()->apply(w, s->grad, a);
    else if (!w->quant.flat) tr_updates()->apply_scaled(w, s->grad, f, axis, a);
    else {
        TR_TRY(tr_tensor_arena(&one, TR_WORKSPACE, TR_F32, TR_DIMS(axis == 0 ? tr_cols(s->grad) : tr_rows(s->grad)), 0));
        tr_kernels()->fill(&one, 1);
        tr_updates()->scale_outer(s->grad, axis == 0 ? f : &one, axis == 0 ? &one : f);
        tr_updates()->apply(w, s->grad, a);
        tr_tensor_release(&one);
    }
    return TR_OK;
}

/* torch: both bias corrections are within u, not in the rate. */
static int step(const void *config, void *state, const struct opt_step *s, bool torch)
{
    const struct apollo *c = config;
    struct apollo_state *st = state;
    struct tr_tensor low = { 0 }, u = { 0 }, f = { 0 }, draws;
    double norm, factor = 1, root = sqrt(c->scale);
    int64_t t = (int64_t)++st->t, m = tr_rows(s->grad), n = tr_cols(s->grad);
    int rc;
    double corrected = sqrt(opt_correction(c->beta2, t)), rate = torch ? s->lr : c->correct_bias ? s->lr * corrected / opt_correction(c->beta1, t) : s->lr;
    struct tr_adam h = { c->beta1, c->beta2, torch ? (float)(1 / corrected) : 1, (float)c->eps, opt_moment_rounding(s) };
    struct tr_apply a = { .before = 1, .after = (float)(1 - s->lr * c->base.weight_decay), .published_grid = torch && c->grid == PUBLISHED };
    if (!torch || c->stochastic_round) a.noise = opt_rounding(s);
    if (torch && c->stochastic_round && s->given) {
        TR_TRY(s->given->get(s->given->self, "uniform", t - 1, &draws));
        a.draws = &draws;
    }
    TR_GO(sketch(&low, c, s, st->t));
    TR_GO(tr_tensor_arena(&u, TR_WORKSPACE, TR_F32, 2, low.dim, 0));
    tr_updates()->adam_direction(&u, &st->m, &st->v, &low, &h);
    if (c->scale_type == TENSOR) {
        factor = sqrt(tr_kernels()->sum_squares(&u)) / (sqrt(tr_kernels()->sum_squares(&low)) + 1e-8);
        norm = factor * sqrt(tr_kernels()->sum_squares(s->grad));
    } else {
        TR_GO(tr_tensor_arena(&f, TR_WORKSPACE, TR_F32, TR_DIMS(m >= n ? m : n), 0));
        TR_GO(channel_factors(&f, &u, &low, s->grad, &norm));
    }
    if (torch) norm /= opt_correction(c->beta1, t), factor /= opt_correction(c->beta1, t); /* u's own correction */
    double by = c->scale_front ? limit(c, st, norm * root) : limit(c, st, norm);
    a.rate = (float)(rate * root * by * factor);
    rc = apply(s, &f, m >= n ? 0 : 1, &a);
done:
    tr_tensor_release(&f);
    tr_tensor_release(&u);
    tr_tensor_release(&low);
    return rc;
}

static int update(const void *config, void *state, const struct opt_step *s) { return step(config, state, s, false); }
static int update_q(const void *config, void *state, const struct opt_step *s) { return step(config, state, s, true); }

static int visit(void *state, struct opt_lister *l)
{
    struct apollo_state *s = state;
    uint64_t last;
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    TR_TRY(opt_list_words(l, "t", &s->t, 1));
    memcpy(&last, &s->last, 8);
    TR_TRY(opt_list_words(l, "last_norm", &last, 1));
    memcpy(&s->last, &last, 8);
    return TR_OK;
}

static size_t bytes(const void *config, int64_t m, int64_t n) { return 2 * opt_moment_size(config) * (size_t)(rank_of(config, m, n) * (m > n ? m : n)); }

#define KIND(TABLE) .options = TABLE, .config_size = sizeof(struct apollo), .state_size = sizeof(struct apollo_state), .matrices_only = true, .bf16_moments = true, \
    .init = init, .visit = visit, .bytes = bytes, .source = "Zhu et al. 2024, APOLLO; apollo-torch"
const struct opt_kind opt_apollo = {
    KIND(options), .rest = "adamw-hf", .update = update, .name = "apollo", .summary = "AdamW's step per channel, learnt in a random sketch of rank R",
    .rule = "low = G P^T; u = Adam direction of low; f_j = |u_j|/|low_j| per channel; X = G f sqrt(scale), growth of |X| limited to 1 %; W = W - a X. G itself is needed: micro-batches are added up whole",
};
const struct opt_kind opt_apollo_mini = {
    KIND(mini_options), .rest = "adamw-hf", .update = update, .name = "apollo-mini", .summary = "SGD's memory with AdamW's step: one factor per matrix from a rank-1 sketch",
    .rule = "as apollo with rank 1 and one factor |u|/|low| for the matrix; scale 128",
};
const struct opt_kind opt_q_apollo = {
    KIND(q_options), .rest = "adamw", .rest_undecayed = true, .for_int8 = true, .update = update_q, .name = "q-apollo", .summary = "APOLLO on int8 weights, with torch's order of epsilon (mini: rank 1, scale_type tensor, scale 128)",
    .rule = "as apollo with u = (m/(1 - beta1^t)) / (sqrt(v)/sqrt(1 - beta2^t) + eps), W = W - lr X, rounded stochastically to int8 on a new grid for each group of 128; "
            "model.dtype = auto means int8 under it; what is no matrix takes AdamW without weight decay",
};
