/* APOLLO and APOLLO-Mini: the gradient is scaled by factors learnt in a random low-rank sketch of it.
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

struct apollo {
    struct opt_base base;
    double beta1, beta2, eps, scale;
    int64_t rank, update_gap;
    int scale_type;
    bool correct_bias, scale_front, disable_nl;
};
struct apollo_state { struct tr_tensor m, v; uint64_t t; double last; };

#define OPTIONS(RANK, TYPE, SCALE) { \
    { "weight_decay", TR_OPT_REAL, offsetof(struct apollo, base.weight_decay), "0", 0, 1e6, NULL, "decoupled, after the update" }, \
    { "beta1", TR_OPT_REAL, offsetof(struct apollo, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" }, \
    { "beta2", TR_OPT_REAL, offsetof(struct apollo, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" }, \
    { "eps", TR_OPT_REAL, offsetof(struct apollo, eps), "1e-6", 0, 1, NULL, "added to the uncorrected root" }, \
    { "correct_bias", TR_OPT_BOOL, offsetof(struct apollo, correct_bias), "true", 0, 0, NULL, "undo the moments' start at zero" }, \
    { "rank", TR_OPT_INT, offsetof(struct apollo, rank), RANK, 1, 1 << 20, NULL, "rows of the sketch; at most the smaller side counts" }, \
    { "update_gap", TR_OPT_INT, offsetof(struct apollo, update_gap), "200", 1, 1e15, NULL, "updates between two draws of P" }, \
    { "scale", TR_OPT_REAL, offsetof(struct apollo, scale), SCALE, 0, 1e9, NULL, "its root multiplies the scaled gradient" }, \
    { "scale_type", TR_OPT_CHOICE, offsetof(struct apollo, scale_type), TYPE, 0, 0, "channel|tensor", "one factor per channel of the long side, or one per matrix" }, \
    { "scale_front", TR_OPT_BOOL, offsetof(struct apollo, scale_front), "false", 0, 0, NULL, "scale before the limiter; changes nothing but rounding" }, \
    { "disable_nl", TR_OPT_BOOL, offsetof(struct apollo, disable_nl), "false", 0, 0, NULL, "no limit on the growth of the step's norm" }, \
    OPT_END }
static const struct tr_option options[] = OPTIONS("256", "channel", "1");
static const struct tr_option mini_options[] = OPTIONS("1", "tensor", "128");

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

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct apollo *c = config;
    struct apollo_state *st = state;
    struct tr_tensor low = { 0 }, u = { 0 }, f = { 0 };
    double norm, factor = 1, root = sqrt(c->scale);
    int64_t t = (int64_t)++st->t, m = tr_rows(s->grad), n = tr_cols(s->grad);
    int rc;
    double rate = c->correct_bias ? s->lr * sqrt(opt_correction(c->beta2, t)) / opt_correction(c->beta1, t) : s->lr;
    struct tr_adam h = { c->beta1, c->beta2, 1, (float)c->eps, opt_moment_key(s) };
    struct tr_apply a = { 1, 0, (float)(1 - s->lr * c->base.weight_decay), tr_key(s->seed, TR_RNG_ROUNDING, tr_hash(s->p->name), (uint64_t)s->t) };
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
    double by = c->scale_front ? limit(c, st, norm * root) : limit(c, st, norm);
    a.rate = (float)(rate * root * by * factor);
    if (c->scale_type == TENSOR) tr_updates()->apply(&s->p->value, s->grad, &a);
    else tr_updates()->apply_scaled(&s->p->value, s->grad, &f, m >= n ? 0 : 1, &a);
done:
    tr_tensor_release(&f);
    tr_tensor_release(&u);
    tr_tensor_release(&low);
    return rc;
}

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
    .rest = "adamw-hf", .init = init, .update = update, .visit = visit, .bytes = bytes, .source = "Zhu et al. 2024, APOLLO; apollo-torch"
const struct opt_kind opt_apollo = {
    KIND(options), .name = "apollo", .summary = "AdamW's step per channel, learnt in a random sketch of rank R",
    .rule = "low = G P^T; u = Adam direction of low; f_j = |u_j|/|low_j| per channel; X = G f sqrt(scale), growth of |X| limited to 1 %; W = W - a X",
};
const struct opt_kind opt_apollo_mini = {
    KIND(mini_options), .name = "apollo-mini", .summary = "SGD's memory with AdamW's step: one factor per matrix from a rank-1 sketch",
    .rule = "as apollo with rank 1 and one factor |u|/|low| for the matrix; scale 128",
};
