/* LOMO: plain SGD in the walk backward, without state. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"

struct lomo { struct opt_base base; double clip_grad_value; };

static const struct tr_option options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct lomo, base.weight_decay), "0", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" },
    { "clip_grad_value", TR_OPT_REAL, offsetof(struct lomo, clip_grad_value), "0", 0, 1e30, NULL, "each number of the gradient is cut to this magnitude; 0 = off" },
    OPT_END,
};

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct lomo *c = config;
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), (float)s->lr, 1, opt_rounding(s) };
    if (c->clip_grad_value > 0) tr_updates()->clamp(s->grad, (float)c->clip_grad_value);
    tr_updates()->apply(&s->p->value, s->grad, &a);
    return TR_OK;
}

static size_t bytes(const void *config, int64_t m, int64_t n) { return 0; }

const struct opt_kind opt_lomo = {
    .name = "lomo", .summary = "SGD inside backward: no state, one gradient alive", .source = "Lv et al. 2023, LOMO; lomo-optim",
    .rule = "g = clip(g); W = (1 - lr decay) W - lr g. Gradients live one at a time with memory.fused_update",
    .options = options, .config_size = sizeof(struct lomo), .update = update, .bytes = bytes,
};
