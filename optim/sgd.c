/* Stochastic gradient descent as torch.optim.SGD. State: the momentum buffer [O,C] when momentum is on. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"

struct sgd { struct opt_base base; double momentum, dampening; bool nesterov; int start; };
enum { GRADIENT, CODE };
struct sgd_state { struct tr_tensor b; uint64_t t; };

static const struct tr_option options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct sgd, base.weight_decay), "0", 0, 1e6, NULL, "coupled: added to the gradient" },
    { "momentum", TR_OPT_REAL, offsetof(struct sgd, momentum), "0", 0, 1, NULL, "share of the last step that goes on" },
    { "dampening", TR_OPT_REAL, offsetof(struct sgd, dampening), "0", 0, 1, NULL, "share of the new gradient that is left out of the momentum" },
    { "nesterov", TR_OPT_BOOL, offsetof(struct sgd, nesterov), "false", 0, 0, NULL, "look ahead along the momentum" },
    { "sgd_start", TR_OPT_CHOICE, offsetof(struct sgd, start), "gradient", 0, 0, "gradient|code", "where momentum begins: at the first gradient, or at the weights as FRUGAL's code has it" },
    OPT_END,
};

static int init(const void *config, void *state, const struct tr_param *p)
{
    const struct sgd *c = config;
    struct sgd_state *s = state;
    return c->momentum > 0 ? tr_tensor_new(&s->b, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim) : TR_OK;
}

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct sgd *c = config;
    struct sgd_state *st = state;
    struct tr_apply a = { 1, (float)s->lr, 1, opt_rounding(s) };
    bool from_weights = c->start == CODE && st->b.ndim && st->t == 0;
    if (from_weights) tr_kernels()->copy(&st->b, &s->p->value);
    tr_updates()->sgd(&s->p->value, st->b.ndim ? &st->b : NULL, s->grad, (float)c->base.weight_decay, (float)c->momentum,
                      (float)(1 - c->dampening), c->nesterov, st->t == 0 && !from_weights, &a);
    st->t++;
    return TR_OK;
}

static int visit(void *state, struct opt_lister *l)
{
    struct sgd_state *s = state;
    TR_TRY(opt_list_tensor(l, "momentum", &s->b));
    return opt_list_words(l, "t", &s->t, 1);
}

static size_t bytes(const void *config, int64_t m, int64_t n) { return ((const struct sgd *)config)->momentum > 0 ? 4 * (size_t)(m * n) : 0; }

const struct opt_kind opt_sgd = {
    .name = "sgd", .summary = "stochastic gradient descent, with momentum when set", .source = "torch.optim.SGD",
    .rule = "g = g + decay W; b = momentum b + (1 - dampening) g (first step: b = g); W = W - lr b",
    .options = options, .by_rows = true, .config_size = sizeof(struct sgd), .state_size = sizeof(struct sgd_state),
    .init = init, .update = update, .visit = visit, .bytes = bytes,
};
