/* AdamW in its two orders of epsilon: torch's, and the older one of transformers on which GaLore and APOLLO build.
 * State: two moments [O,C] in f32 or bf16. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/update.h"
#include "optim/adamw.h"
#include <math.h>


static const struct tr_option torch_options[] = { OPT_ADAMW_OPTIONS, OPT_END };
static const struct tr_option hf_options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct opt_adamw_config, base.weight_decay), "0", 0, 1e6, NULL, "decoupled: W shrinks by lr times this after the update" },
    { "beta1", TR_OPT_REAL, offsetof(struct opt_adamw_config, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" },
    { "beta2", TR_OPT_REAL, offsetof(struct opt_adamw_config, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" },
    { "eps", TR_OPT_REAL, offsetof(struct opt_adamw_config, eps), "1e-6", 0, 1, NULL, "added to the uncorrected root" },
    { "correct_bias", TR_OPT_BOOL, offsetof(struct opt_adamw_config, correct_bias), "true", 0, 0, NULL, "undo the moments' start at zero" },
    OPT_END,
};

int opt_adamw_init(const void *config, void *state, const struct tr_param *p)
{
    struct opt_adamw_state *s = state;
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, ((const struct opt_base *)config)->moments, p->value.ndim, p->value.dim));
    return tr_tensor_new(&s->v, TR_OPTIMIZER, ((const struct opt_base *)config)->moments, p->value.ndim, p->value.dim);
}


int opt_adamw_update(const void *config, void *state, const struct opt_step *s)
{
    const struct opt_adamw_config *c = config;
    struct opt_adamw_state *st = state;
    int64_t t = (int64_t)++st->t;
    struct tr_adam h = { c->beta1, c->beta2, (float)(1 / sqrt(opt_correction(c->beta2, t))), (float)c->eps, opt_moment_rounding(s) };
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), (float)(s->lr / opt_correction(c->beta1, t)), 1, opt_rounding(s) };
    tr_updates()->adam(&s->p->value, &st->m, &st->v, s->grad, &h, &a);
    return TR_OK;
}

static int update_hf(const void *config, void *state, const struct opt_step *s)
{
    const struct opt_adamw_config *c = config;
    struct opt_adamw_state *st = state;
    int64_t t = (int64_t)++st->t;
    double rate = c->correct_bias ? s->lr * sqrt(opt_correction(c->beta2, t)) / opt_correction(c->beta1, t) : s->lr;
    struct tr_adam h = { c->beta1, c->beta2, 1, (float)c->eps, opt_moment_rounding(s) };
    struct tr_apply a = { 1, (float)rate, (float)(1 - s->lr * c->base.weight_decay), opt_rounding(s) };
    tr_updates()->adam(&s->p->value, &st->m, &st->v, s->grad, &h, &a);
    return TR_OK;
}

int opt_adamw_visit(void *state, struct opt_lister *l)
{
    struct opt_adamw_state *s = state;
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    return opt_list_words(l, "t", &s->t, 1);
}

size_t opt_adamw_bytes(const void *config, int64_t m, int64_t n) { return 2 * opt_moment_size(config) * (size_t)(m * n); }

const struct opt_kind opt_adamw = {
    .name = "adamw", .summary = "Adam with decoupled weight decay, torch's order", .source = "Loshchilov and Hutter 2019; torch.optim.AdamW",
    .rule = "W = (1 - lr decay) W; m, v = moments of g; W = W - lr/(1 - beta1^t) m / (sqrt(v)/sqrt(1 - beta2^t) + eps)",
    .options = torch_options, .by_rows = true, .bf16_moments = true, .in_8bit = "adamw-8bit", .config_size = sizeof(struct opt_adamw_config), .state_size = sizeof(struct opt_adamw_state),
    .init = opt_adamw_init, .update = opt_adamw_update, .visit = opt_adamw_visit, .bytes = opt_adamw_bytes,
};
const struct opt_kind opt_adamw_hf = {
    .name = "adamw-hf", .summary = "Adam with decoupled weight decay, the order of GaLore's and APOLLO's code", .source = "transformers' former AdamW",
    .rule = "m, v = moments of g; W = W - lr sqrt(1 - beta2^t)/(1 - beta1^t) m / (sqrt(v) + eps); W = (1 - lr decay) W",
    .options = hf_options, .by_rows = true, .bf16_moments = true, .config_size = sizeof(struct opt_adamw_config), .state_size = sizeof(struct opt_adamw_state),
    .init = opt_adamw_init, .update = update_hf, .visit = opt_adamw_visit, .bytes = opt_adamw_bytes,
};
