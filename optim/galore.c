/* GaLore: AdamW or Adafactor in the subspace of the gradient's first singular vectors. State: the basis and two moments
 * shaped like low, f32 or bf16 (8-bit: moments as codes; Adafactor: its row and column means of low). */
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include "optim/adafactor.h"
#include "optim/project.h"
#include <math.h>

struct galore {
    struct opt_base base;
    double beta1, beta2, eps;
    struct opt_projector proj;
    int64_t min_8bit_size;
    bool correct_bias;
};
struct galore_state { struct opt_basis basis; struct tr_tensor m, v, m_most, v_most; uint64_t t; };

#define OPTIONS(EPS) \
    { "weight_decay", TR_OPT_REAL, offsetof(struct galore, base.weight_decay), "0", 0, 1e6, NULL, "decoupled, after the update" }, \
    { "beta1", TR_OPT_REAL, offsetof(struct galore, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" }, \
    { "beta2", TR_OPT_REAL, offsetof(struct galore, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" }, \
    { "eps", TR_OPT_REAL, offsetof(struct galore, eps), EPS, 0, 1, NULL, "added to the root" }, \
    OPT_PROJECTOR_OPTIONS(galore, proj, "std", OPT_PROJ_TYPES)
static const struct tr_option options[] = {
    OPTIONS("1e-6"),
    { "correct_bias", TR_OPT_BOOL, offsetof(struct galore, correct_bias), "true", 0, 0, NULL, "undo the moments' start at zero" },
    OPT_END,
};
static const struct tr_option options_8bit[] = {
    OPTIONS("1e-8"),
    { "min_8bit_size", TR_OPT_INT, offsetof(struct galore, min_8bit_size), "4096", 0, 1e15, NULL, "smaller moments stay in f32" },
    OPT_END,
};

static int64_t blocks_of(int64_t n) { return (n + TR_BLOCK_8BIT - 1) / TR_BLOCK_8BIT; }

static int init(const void *config, void *state, const struct tr_param *p)
{
    const struct galore *c = config;
    struct galore_state *s = state;
    TR_TRY(opt_basis_init(&s->basis, &c->proj, p, TR_OPTIMIZER));
    TR_TRY(opt_low_new(&s->m, c->base.moments, &s->basis, p));
    return opt_low_new(&s->v, c->base.moments, &s->basis, p);
}

static int init_8bit(const void *config, void *state, const struct tr_param *p)
{
    const struct galore *c = config;
    struct galore_state *s = state;
    int64_t m = tr_rows(&p->value), n = opt_low_count(opt_sides_of(&c->proj, m, tr_cols(&p->value)), m, tr_cols(&p->value));
    if (n < c->min_8bit_size) return init(config, state, p);
    TR_TRY(opt_basis_init(&s->basis, &c->proj, p, TR_OPTIMIZER));
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_U8, TR_DIMS(n)));
    TR_TRY(tr_tensor_new(&s->v, TR_OPTIMIZER, TR_U8, TR_DIMS(n)));
    TR_TRY(tr_tensor_new(&s->m_most, TR_OPTIMIZER, TR_F32, TR_DIMS(blocks_of(n))));
    return tr_tensor_new(&s->v_most, TR_OPTIMIZER, TR_F32, TR_DIMS(blocks_of(n)));
}

/* h and rate: Adam's, in the order of epsilon that the inner rule has. */
static int step(const struct galore *c, struct galore_state *st, const struct opt_step *s, const struct tr_adam *h, double rate)
{
    struct tr_tensor low = { 0 };
    struct tr_apply a = { 1, (float)(rate * c->proj.scale), (float)(1 - s->lr * c->base.weight_decay), opt_rounding(s) };
    int rc;
    TR_GO(opt_project_down(&low, &st->basis, &c->proj, s));
    if (st->m_most.ndim) tr_updates()->adam_8bit(&low, &st->m, &st->v, &st->m_most, &st->v_most, h);
    else tr_updates()->adam_direction(&low, &st->m, &st->v, &low, h);
    rc = opt_project_back(s, &st->basis, &low, &a);
done:
    tr_tensor_release(&low);
    return rc;
}

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct galore *c = config;
    struct galore_state *st = state;
    int64_t t = (int64_t)++st->t;
    double rate = c->correct_bias ? s->lr * sqrt(opt_correction(c->beta2, t)) / opt_correction(c->beta1, t) : s->lr;
    return step(c, st, s, &(struct tr_adam){ c->beta1, c->beta2, 1, (float)c->eps, opt_moment_rounding(s) }, rate);
}

static int update_8bit(const void *config, void *state, const struct opt_step *s)
{
    const struct galore *c = config;
    struct galore_state *st = state;
    int64_t t = (int64_t)++st->t;
    struct tr_adam h = { c->beta1, c->beta2, (float)(1 / sqrt(opt_correction(c->beta2, t))), (float)c->eps, opt_moment_rounding(s) };
    return step(c, st, s, &h, s->lr / opt_correction(c->beta1, t));
}

static int visit(void *state, struct opt_lister *l)
{
    struct galore_state *s = state;
    TR_TRY(opt_basis_list(&s->basis, l));
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    TR_TRY(opt_list_tensor(l, "m_most", &s->m_most));
    TR_TRY(opt_list_tensor(l, "v_most", &s->v_most));
    return opt_list_words(l, "t", &s->t, 1);
}

static size_t bytes(const void *config, int64_t m, int64_t n)
{
    struct opt_sides d = opt_sides_of(&((const struct galore *)config)->proj, m, n);
    return opt_basis_bytes(d, m, n) + 2 * opt_moment_size(config) * (size_t)opt_low_count(d, m, n);
}

static size_t bytes_8bit(const void *config, int64_t m, int64_t n)
{
    struct opt_sides d = opt_sides_of(&((const struct galore *)config)->proj, m, n);
    int64_t low = opt_low_count(d, m, n);
    return low < ((const struct galore *)config)->min_8bit_size ? bytes(config, m, n) : opt_basis_bytes(d, m, n) + 2 * (size_t)low + 8 * (size_t)blocks_of(low);
}

/* ---- sums of projections */

static int64_t low_every(const void *config) { return ((const struct galore *)config)->proj.update_gap; }

static bool low_shape(const void *config, int64_t m, int64_t n, int64_t dim[2])
{
    opt_basis_shape(&((const struct galore *)config)->proj, m, n, dim);
    return true;
}

static int low_init(const void *config, void *state, const struct tr_param *p)
{
    return opt_basis_init(&((struct galore_state *)state)->basis, &((const struct galore *)config)->proj, p, TR_COMMUNICATION);
}

static const struct opt_low projected = { "", low_every, low_shape, low_init, opt_basis_visit, opt_basis_project_state };

/* ---- with Adafactor inside */

struct galore_adafactor { struct opt_adafactor inner; struct opt_projector proj; };
struct galore_adafactor_state { struct opt_basis basis; struct opt_adafactor_state inner; };

static const struct tr_option options_adafactor[] = {
    OPT_ADAFACTOR_OPTIONS(galore_adafactor, inner.),
    OPT_ADAFACTOR_RATE_OPTIONS(galore_adafactor, inner., "0.9"),
    OPT_PROJECTOR_OPTIONS(galore_adafactor, proj, "std", OPT_PROJ_TYPES),
    OPT_END,
};

static int init_adafactor(const void *config, void *state, const struct tr_param *p)
{
    const struct galore_adafactor *c = config;
    struct galore_adafactor_state *s = state;
    int64_t m = tr_rows(&p->value), n = tr_cols(&p->value);
    struct opt_sides d = opt_sides_of(&c->proj, m, n);
    TR_TRY(opt_basis_init(&s->basis, &c->proj, p, TR_OPTIMIZER));
    return opt_adafactor_init(&c->inner, &s->inner, TR_DIMS(d.left ? d.r : m, d.right ? d.r : n));
}

/* The rms that scales the rate is the whole weight's; the clip is of the step in the subspace. */
static int update_adafactor(const void *config, void *state, const struct opt_step *s)
{
    const struct galore_adafactor *c = config;
    struct galore_adafactor_state *st = state;
    struct tr_tensor low = { 0 };
    double lr, rate;
    int rc;
    TR_GO(opt_project_down(&low, &st->basis, &c->proj, s));
    TR_GO(opt_adafactor_direction(&c->inner, &st->inner, &low, &s->p->value, s->lr, c->inner.scale_parameter, &lr, &rate));
    struct tr_apply a = { (float)(1 - lr * c->inner.base.weight_decay), (float)(rate * c->proj.scale), 1, opt_rounding(s) };
    rc = opt_project_back(s, &st->basis, &low, &a);
done:
    tr_tensor_release(&low);
    return rc;
}

static int visit_adafactor(void *state, struct opt_lister *l)
{
    struct galore_adafactor_state *s = state;
    TR_TRY(opt_basis_list(&s->basis, l));
    return opt_adafactor_list(&s->inner, l);
}

static size_t bytes_adafactor(const void *config, int64_t m, int64_t n)
{
    const struct galore_adafactor *c = config;
    struct opt_sides d = opt_sides_of(&c->proj, m, n);
    return opt_basis_bytes(d, m, n) + opt_adafactor_bytes(&c->inner, d.left ? d.r : m, d.right ? d.r : n, true);
}

static int64_t low_every_adafactor(const void *config) { return ((const struct galore_adafactor *)config)->proj.update_gap; }

static bool low_shape_adafactor(const void *config, int64_t m, int64_t n, int64_t dim[2])
{
    opt_basis_shape(&((const struct galore_adafactor *)config)->proj, m, n, dim);
    return true;
}

static int low_init_adafactor(const void *config, void *state, const struct tr_param *p)
{
    return opt_basis_init(&((struct galore_adafactor_state *)state)->basis, &((const struct galore_adafactor *)config)->proj, p, TR_COMMUNICATION);
}

static const struct opt_low projected_adafactor = { "", low_every_adafactor, low_shape_adafactor, low_init_adafactor, opt_basis_visit, opt_basis_project_state };

#define SOURCE .matrices_only = true, .source = "Zhao et al. 2024, GaLore; galore-torch"
#define KIND SOURCE, .config_size = sizeof(struct galore), .state_size = sizeof(struct galore_state), .visit = visit, .low = &projected, \
    .rule = "P = first singular vectors of G, each update_gap steps; low = G P^T or P^T G; u = Adam direction of low; W = W - a scale (u P or P u); W = (1 - lr decay) W"
const struct opt_kind opt_galore = {
    KIND, .name = "galore", .bf16_moments = true, .in_8bit = "galore-8bit", .summary = "AdamW in the subspace of the gradient's first singular vectors", .options = options, .rest = "adamw-hf",
    .init = init, .update = update, .bytes = bytes,
};
const struct opt_kind opt_galore_8bit = {
    KIND, .name = "galore-8bit", .in_8bit = "galore-8bit", .summary = "galore with its moments in 8 bits", .options = options_8bit, .rest = "adamw-8bit",
    .init = init_8bit, .update = update_8bit, .bytes = bytes_8bit,
};
const struct opt_kind opt_galore_adafactor = {
    SOURCE, .name = "galore-adafactor", .summary = "Adafactor in the subspace of the gradient's first singular vectors", .options = options_adafactor, .rest = "adafactor",
    .rule = "P = first singular vectors of G, each update_gap steps; low = G P^T or P^T G; d = Adafactor's step of low; W = (1 - lr decay) W - scale (d P or P d)",
    .config_size = sizeof(struct galore_adafactor), .state_size = sizeof(struct galore_adafactor_state), .visit = visit_adafactor, .low = &projected_adafactor,
    .init = init_adafactor, .update = update_adafactor, .bytes = bytes_adafactor,
};
