/* Sophia: momentum cut by an estimate of the curvature's diagonal, which a probe renews now and then: with labels that the
 * model draws (G: Gauss-Newton-Bartlett) or with a Hessian-vector product (H: Hutchinson). State: momentum and curvature
 * [O,C], f32. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"

struct sophia { struct opt_base base; double beta1, beta2, rho, eps, bs, clip, hess_eps; int64_t hess_interval; };
struct sophia_state { struct tr_tensor m, h; };

static const struct tr_option options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct sophia, base.weight_decay), "0.1", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" },
    { "beta1", TR_OPT_REAL, offsetof(struct sophia, beta1), "0.965", 0, 0.999999999, NULL, "of the momentum" },
    { "beta2", TR_OPT_REAL, offsetof(struct sophia, beta2), "0.99", 0, 0.999999999, NULL, "of the curvature" },
    { "rho", TR_OPT_REAL, offsetof(struct sophia, rho), "0.04", 0, 1e9, NULL, "how much curvature cuts a step to less than lr" },
    { "eps", TR_OPT_REAL, offsetof(struct sophia, eps), "1e-15", 0, 1, NULL, "added to the scaled curvature" },
    { "bs", TR_OPT_REAL, offsetof(struct sophia, bs), "0", 0, 1e15, NULL, "tokens of a step, which scale the curvature; 0 = train.batch sequences of full length" },
    { "hess_interval", TR_OPT_INT, offsetof(struct sophia, hess_interval), "10", 1, 1e9, NULL, "steps between two probes of the curvature" },
    OPT_END,
};

static int init(const void *config, void *state, const struct tr_param *p)
{
    struct sophia_state *s = state;
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim));
    TR_TRY(tr_tensor_new(&s->h, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim));
    tr_kernels()->fill(&s->h, 0); /* only read until the first probe: its pages are there from the start, as foretold */
    return TR_OK;
}

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct sophia *c = config;
    struct sophia_state *st = state;
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), (float)s->lr, 1, opt_rounding(s) };
    double tokens = c->bs > 0 ? c->bs : s->tokens;
    tr_updates()->momentum(s->grad, &st->m, (float)c->beta1, (float)(1 - c->beta1), 0, 1);
    tr_updates()->cut_step(s->grad, &st->h, (float)(c->rho * tokens), (float)c->eps);
    tr_updates()->apply(&s->p->value, s->grad, &a);
    return TR_OK;
}

static int curvature(const void *config, void *state, const struct opt_step *s)
{
    const struct sophia *c = config;
    tr_updates()->mean_squares(&((struct sophia_state *)state)->h, s->grad, (float)c->beta2, (float)(1 - c->beta2));
    return TR_OK;
}

static int64_t probe_every(const void *config) { return ((const struct sophia *)config)->hess_interval; }

static int visit(void *state, struct opt_lister *l)
{
    struct sophia_state *s = state;
    TR_TRY(opt_list_tensor(l, "momentum", &s->m));
    return opt_list_tensor(l, "curvature", &s->h);
}

static size_t bytes(const void *config, int64_t m, int64_t n) { return 8 * (size_t)(m * n); }

const struct opt_kind opt_sophia_g = {
    .name = "sophia-g", .summary = "sign-like steps, smaller where the curvature is large; labels sampled from the model probe it", .source = "Liu et al. 2023, Sophia; the authors' code",
    .rule = "m = moment of g; W = (1 - lr decay) W - lr sign(m) min(1, |m|/(rho bs h + eps)); each hess_interval steps h = moment of ghat^2, ghat the gradient against labels that the model sampled",
    .options = options, .config_size = sizeof(struct sophia), .state_size = sizeof(struct sophia_state),
    .init = init, .update = update, .probe = OPT_PROBE_LABELS, .curvature = curvature, .probe_every = probe_every, .visit = visit, .bytes = bytes,
};

/* ---- Sophia-H */

static const struct tr_option h_options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct sophia, base.weight_decay), "0", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" },
    { "beta1", TR_OPT_REAL, offsetof(struct sophia, beta1), "0.96", 0, 0.999999999, NULL, "of the momentum" },
    { "beta2", TR_OPT_REAL, offsetof(struct sophia, beta2), "0.99", 0, 0.999999999, NULL, "of the curvature" },
    { "clip", TR_OPT_REAL, offsetof(struct sophia, clip), "0.01", 0, 1e9, NULL, "largest ratio of momentum to curvature" },
    { "eps", TR_OPT_REAL, offsetof(struct sophia, eps), "1e-12", 1e-38, 1, NULL, "least curvature" },
    { "hess_interval", TR_OPT_INT, offsetof(struct sophia, hess_interval), "10", 1, 1e9, NULL, "steps between two probes of the curvature" },
    { "hess_eps", TR_OPT_REAL, offsetof(struct sophia, hess_eps), "1e-3", 1e-30, 1e9, NULL, "how far a probe moves the weights along u, to both sides" },
    OPT_END,
};

static double probe_eps(const void *config) { return ((const struct sophia *)config)->hess_eps; }

static int update_h(const void *config, void *state, const struct opt_step *s)
{
    const struct sophia *c = config;
    struct sophia_state *st = state;
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), (float)s->lr, 1, opt_rounding(s) };
    tr_updates()->momentum(s->grad, &st->m, (float)c->beta1, (float)(1 - c->beta1), 0, 1);
    tr_updates()->cut_ratio(s->grad, &st->h, (float)c->eps, (float)c->clip);
    tr_updates()->apply(&s->p->value, s->grad, &a);
    return TR_OK;
}

static int curvature_h(const void *config, void *state, const struct opt_step *s)
{
    const struct sophia *c = config;
    tr_updates()->momentum(s->grad, &((struct sophia_state *)state)->h, s->more ? 1 : (float)c->beta2, (float)(1 - c->beta2), 1, 0);
    return TR_OK;
}

const struct opt_kind opt_sophia_h = {
    .name = "sophia-h", .summary = "sophia with Hutchinson's estimate of the curvature, from Hessian-vector products", .source = "Liu et al. 2023, Sophia, Algorithm 1; pytorch-optimizer",
    .rule = "each hess_interval steps h = moment of u (H u), u normal, H u = (g(W + hess_eps u) - g(W - hess_eps u)) / (2 hess_eps) on a micro-batch; f32 weights; m = moment of g; W = (1 - lr decay) W - lr clip(m / max(h, eps), clip)",
    .options = h_options, .config_size = sizeof(struct sophia), .state_size = sizeof(struct sophia_state),
    .init = init, .update = update_h, .probe = OPT_PROBE_HESSIAN, .probe_eps = probe_eps, .curvature = curvature_h, .probe_every = probe_every, .visit = visit, .bytes = bytes,
};
