/* Zeroth-order rules. State: none, a momentum, or Adam's moments [O,C], f32; directions are drawn again from their seed
 * whenever they are needed, never kept. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include "optim/zo.h"
#include <math.h>

struct zo { struct opt_base base; struct opt_zo z; double momentum, beta1, beta2, eps; int sign_of; };
struct zo_state { struct tr_tensor m, v; uint64_t t; };
enum { SCALAR, VECTOR };

#define DECAY { "weight_decay", TR_OPT_REAL, offsetof(struct zo, base.weight_decay), "0", 0, 1e6, NULL, "W shrinks by lr times this with the update" }
#define EPS { "zo_eps", TR_OPT_REAL, offsetof(struct zo, z.zo_eps), "1e-3", 1e-30, 1e9, NULL, "how far weights are moved along a direction for a loss" }
#define MODE { "perturbation_mode", TR_OPT_CHOICE, offsetof(struct zo, z.mode), "two_side", 0, 0, "two_side|one_side", "losses on both sides of the weights, or on one side and at them" }
#define MANY \
    { "q", TR_OPT_INT, offsetof(struct zo, z.q), "1", 1, OPT_ZO_DRAWS, NULL, "directions a step, averaged" }, \
    { "blockwise", TR_OPT_CHOICE, offsetof(struct zo, z.blockwise), "none", 0, 0, "none|coordinate|joint", "a direction for each layer alone: updated at once, or all together" }, \
    { "gradient_sparsity", TR_OPT_REAL, offsetof(struct zo, z.sparsity), "0", 0, 1, NULL, "share of each direction that is zero" }, \
    { "sparse_gradient_resample_steps", TR_OPT_INT, offsetof(struct zo, z.resample), "1", 1, 1e15, NULL, "steps between two draws of what is zero" }
static const struct tr_option sgd_options[] = { DECAY, EPS, MODE, MANY, OPT_END };
static const struct tr_option sign_options[] = {
    EPS, MODE, MANY,
    { "sign_of", TR_OPT_CHOICE, offsetof(struct zo, sign_of), "scalar", 0, 0, "scalar|vector", "sign(p) z, as the public code has it, or sign(p z)" },
    OPT_END,
};
static const struct tr_option momentum_options[] = {
    EPS, MODE, MANY,
    { "momentum", TR_OPT_REAL, offsetof(struct zo, momentum), "0.9", 0, 0.999999999, NULL, "share of the momentum that stays" },
    OPT_END,
};
static const struct tr_option conservative_options[] = { EPS, MODE, OPT_END };
static const struct tr_option adam_options[] = {
    EPS, MODE, MANY,
    { "beta1", TR_OPT_REAL, offsetof(struct zo, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" },
    { "beta2", TR_OPT_REAL, offsetof(struct zo, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" },
    { "eps", TR_OPT_REAL, offsetof(struct zo, eps), "1e-8", 0, 1, NULL, "added to the corrected root" },
    OPT_END,
};
static const struct tr_option forward_options[] = { DECAY, EPS, OPT_END };

static const struct opt_zo *settings(const void *config) { return &((const struct zo *)config)->z; }

static const struct opt_zo *conservative_settings(const void *config)
{
    struct zo *c = (struct zo *)(uintptr_t)config; /* what this rule always is */
    c->z.conservative = true;
    c->z.q = 1;
    c->z.resample = 1;
    return &c->z;
}

static const struct opt_zo *forward_settings(const void *config)
{
    struct zo *c = (struct zo *)(uintptr_t)config;
    c->z.q = 1;
    c->z.resample = 1;
    return &c->z;
}

static int init_momentum(const void *config, void *state, const struct tr_param *p)
{
    return tr_tensor_new(&((struct zo_state *)state)->m, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim);
}

static int init_adam(const void *config, void *state, const struct tr_param *p)
{
    TR_TRY(init_momentum(config, state, p));
    return tr_tensor_new(&((struct zo_state *)state)->v, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim);
}

/* y = before y + by g. */
static void add(struct tr_tensor *y, double before, double by, const struct opt_slopes *s)
{
    for (int64_t i = 0; i < s->n; i++) tr_updates()->move(y, (float)(i ? 1 : before), (float)(by * s->slope[i]), &s->z[i]);
}

static int update_sgd(const void *config, void *state, const struct opt_step *s)
{
    add(&s->p->value, 1 - s->lr * ((const struct zo *)config)->base.weight_decay, -s->lr, s->slopes);
    return TR_OK;
}

/* Rows that are made into a gradient at a time: the direction of a whole embedding would be as large as the embedding. */
enum { PIECE = 1 << 18 };
struct piece { struct tr_tensor w, g; int64_t begin, rows; };

static int each_piece(const struct opt_step *s, int (*use)(void *self, struct piece *p), void *self)
{
    int64_t rows = tr_rows(&s->p->value), cols = tr_cols(&s->p->value), each = PIECE / cols > 1 ? PIECE / cols : 1;
    struct tr_tensor g, whole = tr_reshape(&s->p->value, 2, (int64_t[2]){ rows, cols });
    if (s->p->value.ndim > 1) whole = s->p->value;
    if (each > rows) each = rows;
    TR_TRY(tr_tensor_arena(&g, TR_WORKSPACE, TR_F32, TR_DIMS(each, cols), 0));
    int rc = TR_OK;
    for (int64_t at = 0; at < rows && rc == TR_OK; at += each) {
        int64_t n = rows - at < each ? rows - at : each;
        struct piece p = { tr_rows_view(&whole, at, n), tr_rows_view(&g, 0, n), at, n };
        struct opt_slopes here = *s->slopes;
        for (int64_t i = 0; i < here.n; i++) here.z[i].first += at * cols;
        tr_kernels()->fill(&p.g, 0);
        add(&p.g, 1, 1, &here);
        rc = use(self, &p);
    }
    tr_tensor_release(&g);
    return rc;
}

struct sign_use { struct tr_apply a; };
static int use_sign(void *self, struct piece *p)
{
    tr_updates()->sign_scale(&p->g, 1);
    tr_updates()->apply(&p->w, &p->g, &((struct sign_use *)self)->a);
    return TR_OK;
}

static int update_sign(const void *config, void *state, const struct opt_step *s)
{
    struct sign_use u = { { 1, (float)s->lr, 1, { { { 0, 0 } }, 0 } } };
    if (((const struct zo *)config)->sign_of == VECTOR) return each_piece(s, use_sign, &u);
    struct opt_slopes sign = *s->slopes;
    for (int64_t i = 0; i < sign.n; i++) sign.slope[i] = (double)((sign.slope[i] > 0) - (sign.slope[i] < 0)) / (double)sign.n;
    add(&s->p->value, 1, -s->lr, &sign);
    return TR_OK;
}

static int update_momentum(const void *config, void *state, const struct opt_step *s)
{
    struct tr_apply a = { 1, (float)s->lr, 1, { { { 0, 0 } }, 0 } };
    struct zo_state *st = state;
    add(&st->m, ((const struct zo *)config)->momentum, 1, s->slopes);
    tr_updates()->apply(&s->p->value, &st->m, &a);
    return TR_OK;
}

struct adam_use { struct zo_state *st; struct tr_adam h; struct tr_apply a; };
static int use_adam(void *self, struct piece *p)
{
    struct adam_use *u = self;
    int64_t dim[2] = { u->st->m.ndim > 1 ? tr_rows(&u->st->m) : 1, tr_cols(&u->st->m) };
    struct tr_tensor m = tr_reshape(&u->st->m, 2, dim), v = tr_reshape(&u->st->v, 2, dim);
    m = tr_rows_view(&m, p->begin, p->rows);
    v = tr_rows_view(&v, p->begin, p->rows);
    tr_updates()->adam(&p->w, &m, &v, &p->g, &u->h, &u->a);
    return TR_OK;
}

static int update_adam(const void *config, void *state, const struct opt_step *s)
{
    const struct zo *c = config;
    struct zo_state *st = state;
    int64_t t = (int64_t)++st->t;
    struct adam_use u = { st, { c->beta1, c->beta2, (float)(1 / sqrt(opt_correction(c->beta2, t))), (float)c->eps },
                          { 1, (float)(s->lr / opt_correction(c->beta1, t)), 1, { { { 0, 0 } }, 0 } } };
    return each_piece(s, use_adam, &u);
}

static int visit(void *state, struct opt_lister *l)
{
    struct zo_state *s = state;
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    return s->v.ndim ? opt_list_words(l, "t", &s->t, 1) : TR_OK;
}

static size_t bytes_none(const void *config, int64_t m, int64_t n) { return 0; }
static size_t bytes_momentum(const void *config, int64_t m, int64_t n) { return 4 * (size_t)(m * n); }
static size_t bytes_adam(const void *config, int64_t m, int64_t n) { return 8 * (size_t)(m * n); }

#define KIND_OF(NEEDS) .config_size = sizeof(struct zo), .state_size = sizeof(struct zo_state), .by_rows = true, .visit = visit, .needs = NEEDS
#define KIND KIND_OF(OPT_LOSSES)
#define PUBLIC .source = "Zhang et al. 2024, Revisiting zeroth-order optimization; ZO-LLM"
const struct opt_kind opt_zo_sgd = {
    KIND, .zo = settings, .name = "zo-sgd", .summary = "SGD from two losses a step: the memory of evaluation (MeZO)", .source = "Malladi et al. 2023, MeZO; the authors' code",
    .rule = "z normal from a seed; p = (L(W + eps z) - L(W - eps z)) / (2 eps); W = (1 - lr decay) W - lr p z. f32 weights",
    .options = sgd_options, .update = update_sgd, .bytes = bytes_none,
};
const struct opt_kind opt_zo_sgd_sign = {
    KIND, PUBLIC, .zo = settings, .name = "zo-sgd-sign", .summary = "zo-sgd by the sign of its slope", .rule = "p as zo-sgd; W = W - lr sign(p) z",
    .options = sign_options, .update = update_sign, .bytes = bytes_none,
};
const struct opt_kind opt_zo_sgd_momentum = {
    KIND, PUBLIC, .zo = settings, .name = "zo-sgd-momentum", .summary = "zo-sgd with momentum", .rule = "p as zo-sgd; b = momentum b + p z; W = W - lr b",
    .options = momentum_options, .init = init_momentum, .update = update_momentum, .bytes = bytes_momentum,
};
const struct opt_kind opt_zo_sgd_conservative = {
    KIND, PUBLIC, .zo = conservative_settings, .name = "zo-sgd-conservative", .summary = "zo-sgd that takes the best of the step, its opposite, and none: five losses",
    .rule = "p as zo-sgd; of W, W - lr p z and W + lr p z the one with the least loss",
    .options = conservative_options, .update = update_sgd, .bytes = bytes_none,
};
const struct opt_kind opt_zo_adam = {
    KIND, PUBLIC, .zo = settings, .name = "zo-adam", .summary = "Adam on zo-sgd's gradient", .rule = "g = p z as zo-sgd; W = W - Adam's step of g",
    .options = adam_options, .init = init_adam, .update = update_adam, .bytes = bytes_adam,
};
const struct opt_kind opt_forward_gradient = {
    KIND_OF(OPT_SLOPE), .zo = forward_settings, .name = "forward-gradient", .summary = "SGD from the slope along one direction",
    .rule = "z normal; j = the loss's slope along z, here the central difference of two losses in f32 at zo_eps; W = (1 - lr decay) W - lr j z. f32 weights",
    .source = "Baydin et al. 2022; ZO-LLM", .options = forward_options, .update = update_sgd, .bytes = bytes_none,
};
