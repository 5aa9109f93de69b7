/* Rules that move every weight by lr, up or down: signSGD and Lion. State: a momentum [O,C] in f32 or bf16 (signSGD: when set). */
#include "libtrain/base/status.h"
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"

struct sign { struct opt_base base; double momentum, beta1, beta2; };
struct sign_state { struct tr_tensor m; };

static const struct tr_option sgd_options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct sign, base.weight_decay), "0", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" },
    { "momentum", TR_OPT_REAL, offsetof(struct sign, momentum), "0", 0, 0.999999999, NULL, "share of the old average that stays" },
    OPT_END,
};
static const struct tr_option lion_options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct sign, base.weight_decay), "0", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" },
    { "beta1", TR_OPT_REAL, offsetof(struct sign, beta1), "0.9", 0, 0.999999999, NULL, "weight of the momentum in the step" },
    { "beta2", TR_OPT_REAL, offsetof(struct sign, beta2), "0.99", 0, 0.999999999, NULL, "share of the momentum that stays" },
    OPT_END,
};

static int init_sgd(const void *config, void *state, const struct tr_param *p)
{
    const struct sign *c = config;
    struct sign_state *s = state;
    return c->momentum > 0 ? tr_tensor_new(&s->m, TR_OPTIMIZER, c->base.moments, p->value.ndim, p->value.dim) : TR_OK;
}

static int init_lion(const void *config, void *state, const struct tr_param *p)
{
    const struct sign *c = config;
    struct sign_state *s = state;
    return tr_tensor_new(&s->m, TR_OPTIMIZER, c->base.moments, p->value.ndim, p->value.dim);
}

static int update(const struct sign *c, struct sign_state *st, const struct opt_step *s, const struct tr_sign *h)
{
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), (float)s->lr, 1, opt_rounding(s) };
    tr_updates()->sign(&s->p->value, st->m.ndim ? &st->m : NULL, s->grad, h, &a);
    return TR_OK;
}

static int update_sgd(const void *config, void *state, const struct opt_step *s)
{
    const struct sign *c = config;
    float keep = (float)c->momentum, take = (float)(1 - c->momentum);
    return update(c, state, s, &(struct tr_sign){ keep, take, keep, take, opt_moment_rounding(s) });
}

static int update_lion(const void *config, void *state, const struct opt_step *s)
{
    const struct sign *c = config;
    return update(c, state, s, &(struct tr_sign){ (float)c->beta1, (float)(1 - c->beta1), (float)c->beta2, (float)(1 - c->beta2), opt_moment_rounding(s) });
}

static int visit(void *state, struct opt_lister *l) { return opt_list_tensor(l, "momentum", &((struct sign_state *)state)->m); }
static size_t bytes_sgd(const void *config, int64_t m, int64_t n) { return ((const struct sign *)config)->momentum > 0 ? opt_moment_size(config) * (size_t)(m * n) : 0; }
static size_t bytes_lion(const void *config, int64_t m, int64_t n) { return opt_moment_size(config) * (size_t)(m * n); }

#define KIND .config_size = sizeof(struct sign), .state_size = sizeof(struct sign_state), .visit = visit, .bf16_moments = true
const struct opt_kind opt_signsgd = {
    KIND, .name = "signsgd", .summary = "every weight moves by lr against its gradient's sign", .source = "Bernstein et al. 2018, signSGD",
    .rule = "W = (1 - lr decay) W - lr sign(b), b = g or b = momentum b + (1 - momentum) g",
    .options = sgd_options, .by_rows = true, .init = init_sgd, .update = update_sgd, .bytes = bytes_sgd,
};
const struct opt_kind opt_lion = {
    KIND, .name = "lion", .summary = "sign of an average of momentum and gradient; half of AdamW's state", .source = "Chen et al. 2023, Lion",
    .rule = "u = sign(beta1 m + (1 - beta1) g); W = (1 - lr decay) W - lr u; then m = beta2 m + (1 - beta2) g",
    .options = lion_options, .by_rows = true, .init = init_lion, .update = update_lion, .bytes = bytes_lion,
};
