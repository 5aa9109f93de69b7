/* Natural GaLore: GaLore's projected gradient, multiplied by the inverse of the Fisher matrix of the last ones.
 * Letters: G[M,N], rank R, H gradients kept; low [R,R] with both sides (the authors' code) or one. State, f32: bases, two moments
 * shaped like low (or bf16), the last H lows as a ring [H, count of low]. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/linalg.h"
#include "libtrain/kernel/update.h"
#include "optim/project.h"
#include <math.h>
#include <stdlib.h>

enum { BOTH, ONE };
enum { SUM, MEAN };
enum { KEEP, CLEAR };

struct natural {
    struct opt_base base;
    double beta1, beta2, eps, damping;
    struct opt_projector proj;
    int64_t natural_history;
    int sides, fisher, on_refresh;
    bool correct_bias;
};
struct natural_state { struct opt_basis basis; struct tr_tensor m, v, queue; uint64_t t, held; };

static const struct tr_option options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct natural, base.weight_decay), "0.01", 0, 1e6, NULL, "decoupled, after the update" },
    { "beta1", TR_OPT_REAL, offsetof(struct natural, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" },
    { "beta2", TR_OPT_REAL, offsetof(struct natural, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" },
    { "eps", TR_OPT_REAL, offsetof(struct natural, eps), "1e-6", 0, 1, NULL, "added to the root" },
    { "correct_bias", TR_OPT_BOOL, offsetof(struct natural, correct_bias), "true", 0, 0, NULL, "undo the moments' start at zero" },
    { "damping", TR_OPT_REAL, offsetof(struct natural, damping), "1e-3", 1e-30, 1e9, NULL, "added to the Fisher matrix's diagonal" },
    { "natural_history", TR_OPT_INT, offsetof(struct natural, natural_history), "20", 1, 1000, NULL, "projected gradients that make the Fisher matrix, the present one included" },
    { "sides", TR_OPT_CHOICE, offsetof(struct natural, sides), "both", 0, 0, "both|one", "project both sides (the authors' code) or the shorter one (the paper)" },
    { "fisher", TR_OPT_CHOICE, offsetof(struct natural, fisher), "sum", 0, 0, "sum|mean", "Fisher matrix as sum over the history (the authors' code) or mean (the paper)" },
    { "history_on_refresh", TR_OPT_CHOICE, offsetof(struct natural, on_refresh), "keep", 0, 0, "keep|clear", "what becomes of the history when the bases change" },
    OPT_PROJECTOR_OPTIONS(natural, proj, "natural_galore", "natural_galore"),
    OPT_END,
};

static struct opt_projector projector(const struct natural *c)
{
    struct opt_projector p = c->proj;
    p.proj_type = c->sides == BOTH ? OPT_FULL : OPT_STD;
    return p;
}

static int init(const void *config, void *state, const struct tr_param *p)
{
    const struct natural *c = config;
    struct natural_state *s = state;
    struct opt_projector proj = projector(c);
    TR_TRY(opt_basis_init(&s->basis, &proj, p, TR_OPTIMIZER));
    TR_TRY(opt_low_new(&s->m, c->base.moments, &s->basis, p));
    TR_TRY(opt_low_new(&s->v, c->base.moments, &s->basis, p));
    return tr_tensor_new(&s->queue, TR_OPTIMIZER, TR_F32, TR_DIMS(c->natural_history, tr_count(&s->m)));
}

/* x = (damping + G G^T)^-1 x = G (damping + G^T G)^-1 e, e picking x among the columns of G: the last lows, x one of them.
 * Without the difference of large numbers that Woodbury's formula would take. Sums over the history in double. */
static int natural_gradient(const struct natural *c, struct natural_state *st, struct tr_tensor *x)
{
    int64_t h = c->natural_history, n = tr_count(x), newest = (int64_t)(st->held++ % (uint64_t)h);
    int64_t held = (int64_t)st->held < h ? (int64_t)st->held : h;
    struct tr_tensor line = tr_reshape(x, 2, (int64_t[2]){ 1, n }), slot = tr_rows_view(&st->queue, newest, 1), all = tr_rows_view(&st->queue, 0, held);
    struct tr_tensor gram = { 0 }, weight = { 0 };
    double over = c->fisher == MEAN ? 1 / (double)held : 1;
    int rc;
    tr_kernels()->copy(&slot, &line);
    TR_GO(tr_tensor_arena(&gram, TR_WORKSPACE, TR_F32, TR_DIMS(held, held), 0));
    TR_GO(tr_tensor_arena(&weight, TR_WORKSPACE, TR_F32, TR_DIMS(1, held), 0));
    TR_GO(tr_gemm_f32(&gram, 1, &all, false, &all, true, 0));
    TR_GO(tr_damped_column(&weight, &gram, over, c->damping, newest));
    TR_GO(tr_gemm_f32(&line, 1, &weight, false, &all, false, 0));
done:
    tr_tensor_release(&weight);
    tr_tensor_release(&gram);
    return rc;
}

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct natural *c = config;
    struct natural_state *st = state;
    struct opt_projector proj = projector(c);
    struct tr_tensor low = { 0 };
    int64_t t = (int64_t)++st->t;
    double rate = c->correct_bias ? s->lr * sqrt(opt_correction(c->beta2, t)) / opt_correction(c->beta1, t) : s->lr;
    struct tr_apply a = { 1, (float)(rate * proj.scale), (float)(1 - s->lr * c->base.weight_decay), opt_rounding(s) };
    int rc;
    if (c->on_refresh == CLEAR && opt_basis_due(&proj, s->t)) st->held = 0;
    TR_GO(opt_project_down(&low, &st->basis, &proj, s));
    TR_GO(natural_gradient(c, st, &low));
    tr_updates()->adam_direction(&low, &st->m, &st->v, &low, &(struct tr_adam){ c->beta1, c->beta2, 1, (float)c->eps, opt_moment_rounding(s) });
    rc = opt_project_back(s, &st->basis, &low, &a);
done:
    tr_tensor_release(&low);
    return rc;
}

static int visit(void *state, struct opt_lister *l)
{
    struct natural_state *s = state;
    TR_TRY(opt_basis_list(&s->basis, l));
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    TR_TRY(opt_list_tensor(l, "history", &s->queue));
    TR_TRY(opt_list_words(l, "t", &s->t, 1));
    return opt_list_words(l, "held", &s->held, 1);
}

static size_t bytes(const void *config, int64_t m, int64_t n)
{
    const struct natural *c = config;
    struct opt_projector proj = projector(c);
    struct opt_sides d = opt_sides_of(&proj, m, n);
    return opt_basis_bytes(d, m, n) + (2 * opt_moment_size(config) + 4 * (size_t)c->natural_history) * (size_t)opt_low_count(d, m, n);
}

static int64_t low_every(const void *config) { return ((const struct natural *)config)->proj.update_gap; }

static bool low_shape(const void *config, int64_t m, int64_t n, int64_t dim[2])
{
    struct opt_projector proj = projector(config);
    opt_basis_shape(&proj, m, n, dim);
    return true;
}

static int low_init(const void *config, void *state, const struct tr_param *p)
{
    struct opt_projector proj = projector(config);
    return opt_basis_init(&((struct natural_state *)state)->basis, &proj, p, TR_COMMUNICATION);
}

static const struct opt_low projected = { "", low_every, low_shape, low_init, opt_basis_visit, opt_basis_project_state };

const struct opt_kind opt_natural_galore = {
    .name = "natural-galore", .bf16_moments = true, .summary = "galore with the natural gradient in its subspace", .source = "Das 2024, Natural GaLore; the author's code",
    .rule = "low = U^T G V; y = (damping + sum of the last lows' outer products)^-1 low; u = Adam direction of y; W = W - a scale U u V^T; W = (1 - lr decay) W",
    .options = options, .config_size = sizeof(struct natural), .state_size = sizeof(struct natural_state), .matrices_only = true, .rest = "adamw-hf",
    .init = init, .update = update, .visit = visit, .bytes = bytes, .low = &projected,
};
