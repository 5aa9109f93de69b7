/* AdamW with moments in 8 bits, blocks of 256. State of a parameter of N elements: two bytes an element and two f32 a block;
 * of one below min_8bit_size, two f32 an element. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"
#include <math.h>

struct adamw8 { struct opt_base base; double beta1, beta2, eps; int64_t min_8bit_size; };
struct adamw8_state { struct tr_tensor m, v, m_most, v_most; uint64_t t; };

static const struct tr_option options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct adamw8, base.weight_decay), "0.01", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" },
    { "beta1", TR_OPT_REAL, offsetof(struct adamw8, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" },
    { "beta2", TR_OPT_REAL, offsetof(struct adamw8, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" },
    { "eps", TR_OPT_REAL, offsetof(struct adamw8, eps), "1e-8", 0, 1, NULL, "added to the corrected root" },
    { "min_8bit_size", TR_OPT_INT, offsetof(struct adamw8, min_8bit_size), "4096", 0, 1e15, NULL, "parameters of fewer elements keep moments in f32" },
    OPT_END,
};

static int64_t blocks_of(int64_t n) { return (n + TR_BLOCK_8BIT - 1) / TR_BLOCK_8BIT; }

static int init(const void *config, void *state, const struct tr_param *p)
{
    const struct adamw8 *c = config;
    struct adamw8_state *s = state;
    int64_t n = tr_count(&p->value);
    if (n < c->min_8bit_size) {
        TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim));
        return tr_tensor_new(&s->v, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim);
    }
    /* A block's largest magnitude starts at 0, so that its codes mean 0 whatever they are. */
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_U8, TR_DIMS(n)));
    TR_TRY(tr_tensor_new(&s->v, TR_OPTIMIZER, TR_U8, TR_DIMS(n)));
    TR_TRY(tr_tensor_new(&s->m_most, TR_OPTIMIZER, TR_F32, TR_DIMS(blocks_of(n))));
    return tr_tensor_new(&s->v_most, TR_OPTIMIZER, TR_F32, TR_DIMS(blocks_of(n)));
}

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct adamw8 *c = config;
    struct adamw8_state *st = state;
    int64_t t = (int64_t)++st->t;
    struct tr_adam h = { c->beta1, c->beta2, (float)(1 / sqrt(opt_correction(c->beta2, t))), (float)c->eps };
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), (float)(s->lr / opt_correction(c->beta1, t)), 1,
                          opt_rounding(s) };
    if (!st->m_most.ndim) {
        tr_updates()->adam(&s->p->value, &st->m, &st->v, s->grad, &h, &a);
        return TR_OK;
    }
    tr_updates()->adam_8bit(s->grad, &st->m, &st->v, &st->m_most, &st->v_most, &h);
    tr_updates()->apply(&s->p->value, s->grad, &a);
    return TR_OK;
}

static int visit(void *state, struct opt_lister *l)
{
    struct adamw8_state *s = state;
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    TR_TRY(opt_list_tensor(l, "m_most", &s->m_most));
    TR_TRY(opt_list_tensor(l, "v_most", &s->v_most));
    return opt_list_words(l, "t", &s->t, 1);
}

static size_t bytes(const void *config, int64_t m, int64_t n)
{
    int64_t count = m * n;
    return count < ((const struct adamw8 *)config)->min_8bit_size ? 8 * (size_t)count : 2 * (size_t)count + 8 * (size_t)blocks_of(count);
}

const struct opt_kind opt_adamw_8bit = {
    .name = "adamw-8bit", .in_8bit = "adamw-8bit", .summary = "AdamW with both moments in 8 bits: a quarter of its state", .source = "Dettmers et al. 2021, 8-bit optimizers; bitsandbytes",
    .rule = "AdamW's; after each update m and v are stored as the nearest of 256 values times the largest of their block of 256",
    .options = options, .config_size = sizeof(struct adamw8), .state_size = sizeof(struct adamw8_state),
    .init = init, .update = update, .visit = visit, .bytes = bytes,
};
