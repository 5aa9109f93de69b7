/* Muon: momentum whose singular values are all made about 1. State: the momentum [O,C], f32. What is no matrix takes Adam at
 * a rate of its own (muon-aux). */
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include "optim/newton_schulz.h"
#include <math.h>

enum { SPECTRAL, RMS_MATCH };

struct muon { struct opt_base base; double momentum; struct opt_newton_schulz ns; int scale; bool nesterov; };
struct muon_state { struct tr_tensor m; };

static const struct tr_option options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct muon, base.weight_decay), "0", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" },
    { "momentum", TR_OPT_REAL, offsetof(struct muon, momentum), "0.95", 0, 0.999999999, NULL, "share of the momentum that stays" },
    { "nesterov", TR_OPT_BOOL, offsetof(struct muon, nesterov), "true", 0, 0, NULL, "look one step ahead" },
    { "muon_scale", TR_OPT_CHOICE, offsetof(struct muon, scale), "spectral", 0, 0, "spectral|rms_match", "times sqrt(max(1, rows/columns)), or 0.2 sqrt(max(rows, columns)) for AdamW's rates" },
    OPT_NEWTON_SCHULZ_OPTIONS(muon, ns),
    OPT_END,
};

static int init(const void *config, void *state, const struct tr_param *p)
{
    return tr_tensor_new(&((struct muon_state *)state)->m, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim);
}

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct muon *c = config;
    double m = (double)tr_rows(s->grad), n = (double)tr_cols(s->grad), keep = c->momentum;
    double by = c->scale == SPECTRAL ? sqrt(fmax(1, m / n)) : 0.2 * sqrt(fmax(m, n));
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), (float)(s->lr * by), 1, opt_rounding(s) };
    tr_updates()->momentum(s->grad, &((struct muon_state *)state)->m, (float)keep, (float)(1 - keep), c->nesterov ? (float)(1 - keep) : 0, c->nesterov ? (float)keep : 1);
    TR_TRY(opt_orthogonalise(s->grad, &c->ns));
    tr_updates()->apply(&s->p->value, s->grad, &a);
    return TR_OK;
}

static int visit(void *state, struct opt_lister *l) { return opt_list_tensor(l, "momentum", &((struct muon_state *)state)->m); }
static size_t bytes(const void *config, int64_t m, int64_t n) { return 4 * (size_t)(m * n); }

const struct opt_kind opt_muon = {
    .name = "muon", .summary = "momentum made orthogonal by Newton-Schulz steps", .source = "Jordan et al. 2024, Muon; the author's code",
    .rule = "m = keep m + (1 - keep) g; O = Newton-Schulz((1 - keep) g + keep m); W = (1 - lr decay) W - lr sqrt(max(1, rows/columns)) O",
    .options = options, .config_size = sizeof(struct muon), .state_size = sizeof(struct muon_state), .matrices_only = true, .rest = "muon-aux",
    .init = init, .update = update, .visit = visit, .bytes = bytes,
};

/* ---- Adam for the rest */

struct aux { struct opt_base base; double decay, lr, beta1, beta2, eps; };
struct aux_state { struct tr_tensor m, v; uint64_t t; };

static const struct tr_option aux_options[] = {
    { "aux_weight_decay", TR_OPT_REAL, offsetof(struct aux, decay), "0", 0, 1e6, NULL, "decoupled decay of embedding and head" },
    { "aux_lr", TR_OPT_REAL, offsetof(struct aux, lr), "3e-4", 0, 1e6, NULL, "learning rate of what is no matrix; it follows the schedule of train.lr" },
    { "aux_beta1", TR_OPT_REAL, offsetof(struct aux, beta1), "0.9", 0, 0.999999999, NULL, "of its first moment" },
    { "aux_beta2", TR_OPT_REAL, offsetof(struct aux, beta2), "0.95", 0, 0.999999999, NULL, "of its second moment" },
    { "aux_eps", TR_OPT_REAL, offsetof(struct aux, eps), "1e-10", 0, 1, NULL, "added to its corrected root" },
    { "weight_decay", TR_OPT_REAL, offsetof(struct aux, base.weight_decay), "0", 0, 1e6, NULL, "of the matrices; not used here" },
    OPT_END,
};

static int init_aux(const void *config, void *state, const struct tr_param *p)
{
    struct aux_state *s = state;
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim));
    return tr_tensor_new(&s->v, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim);
}

static int update_aux(const void *config, void *state, const struct opt_step *s)
{
    const struct aux *c = config;
    struct aux_state *st = state;
    int64_t t = (int64_t)++st->t;
    double lr = c->lr * s->schedule;
    struct tr_adam h = { c->beta1, c->beta2, (float)(1 / sqrt(opt_correction(c->beta2, t))), (float)c->eps };
    double decay = s->p->value.ndim > 1 ? c->decay : 0;
    struct tr_apply a = { (float)(1 - lr * decay), (float)(lr / opt_correction(c->beta1, t)), 1, opt_rounding(s) };
    tr_updates()->adam(&s->p->value, &st->m, &st->v, s->grad, &h, &a);
    return TR_OK;
}

static int visit_aux(void *state, struct opt_lister *l)
{
    struct aux_state *s = state;
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    return opt_list_words(l, "t", &s->t, 1);
}

static size_t bytes_aux(const void *config, int64_t m, int64_t n) { return 8 * (size_t)(m * n); }

const struct opt_kind opt_muon_aux = {
    .name = "muon-aux", .summary = "Adam at a rate of its own, for what muon leaves", .source = "Jordan et al. 2024, Muon; the author's code",
    .rule = "AdamW in torch's order with aux_lr, aux_beta1, aux_beta2, aux_eps and aux_weight_decay",
    .options = aux_options, .by_rows = true, .config_size = sizeof(struct aux), .state_size = sizeof(struct aux_state),
    .init = init_aux, .update = update_aux, .visit = visit_aux, .bytes = bytes_aux,
};
