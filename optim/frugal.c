/* FRUGAL: a part of each matrix gradient goes through a rule with state, the rest through one without.
 * Letters: G[M,N], LO the shorter side, D = density. Selections of the part, drawn anew every update_gap steps:
 *   svd, random, randperm   P[R,N] (M >= N, low = G P^T) or P[M,R] (low = P^T G), R = D LO rounded; orthonormal rows
 *   columns, rows, randk    K = floor(D count) columns, rows or single entries: low = those
 *   blockwise               D of all matrices, whole; the others have no part and no state
 * State: moments shaped like low and P or the indices. The rest of the gradient, G - back(low), moves by its sign, by itself,
 * or not at all. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/linalg.h"
#include "libtrain/kernel/update.h"
#include "optim/project.h"
#include <math.h>
#include <stdlib.h>

enum { SVD, RANDOM, RANDPERM, COLUMNS, ROWS, RANDK, BLOCKWISE };
enum { ORDER_RANDOM, ASCENDING, DESCENDING };
enum { SIGN_SGD, SGD, NOTHING };
enum { ZERO, CODE };

struct frugal {
    struct opt_base base;
    double beta1, beta2, eps, momentum, dampening, density, inactive_lr_scale, proj_params_lr_scale;
    int64_t update_gap;
    int selection, svd, inactive_update_rule, sgd_start, block_order;
    bool reset_statistics, correct_bias;
};
struct frugal_state { struct tr_tensor p, index, m, v; uint64_t t, refreshes, active; int64_t dim[2]; const struct frugal *config; };

#define OPTIONS(BETA2, WD) \
    { "weight_decay", TR_OPT_REAL, offsetof(struct frugal, base.weight_decay), WD, 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" }, \
    { "beta1", TR_OPT_REAL, offsetof(struct frugal, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" }, \
    { "beta2", TR_OPT_REAL, offsetof(struct frugal, beta2), BETA2, 0, 0.999999999, NULL, "of the second moment (lion: share of the momentum that stays)" }, \
    { "eps", TR_OPT_REAL, offsetof(struct frugal, eps), "1e-8", 0, 1, NULL, "added to the corrected root" }, \
    { "correct_bias", TR_OPT_BOOL, offsetof(struct frugal, correct_bias), "true", 0, 0, NULL, "undo the moments' start at zero" }
#define PART_OPTIONS \
    { "density", TR_OPT_REAL, offsetof(struct frugal, density), "0.25", 0, 1, NULL, "share of the gradient that has state" }, \
    { "update_gap", TR_OPT_INT, offsetof(struct frugal, update_gap), "200", 1, 1e15, NULL, "updates between two selections" }, \
    { "selection", TR_OPT_CHOICE, offsetof(struct frugal, selection), "columns", 0, 0, "svd|random|randperm|columns|rows|randk|blockwise", "which part has state" }, \
    { "block_order", TR_OPT_CHOICE, offsetof(struct frugal, block_order), "random", 0, 0, "random|ascending|descending", "blockwise: which matrices come next" }, \
    OPT_SVD_OPTION(frugal, svd), \
    { "reset_statistics", TR_OPT_BOOL, offsetof(struct frugal, reset_statistics), "true", 0, 0, NULL, "moments start again at each selection" }, \
    { "inactive_update_rule", TR_OPT_CHOICE, offsetof(struct frugal, inactive_update_rule), "sign_sgd", 0, 0, "sign_sgd|sgd|no", "how the rest moves" }, \
    { "inactive_lr_scale", TR_OPT_REAL, offsetof(struct frugal, inactive_lr_scale), "1", 0, 1e9, NULL, "rate of the rest, relative" }, \
    { "proj_params_lr_scale", TR_OPT_REAL, offsetof(struct frugal, proj_params_lr_scale), "1", 0, 1e9, NULL, "rate of matrices, relative to train.lr" }
static const struct tr_option options[] = { OPTIONS("0.999", "0.01"), PART_OPTIONS, OPT_END };
static const struct tr_option lion_options[] = { OPTIONS("0.99", "0"), PART_OPTIONS, OPT_END };
static const struct tr_option sgd_options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct frugal, base.weight_decay), "0", 0, 1e6, NULL, "matrices: W shrinks by lr times this before the update" },
    { "momentum", TR_OPT_REAL, offsetof(struct frugal, momentum), "0", 0, 1, NULL, "share of the last step that goes on" },
    { "dampening", TR_OPT_REAL, offsetof(struct frugal, dampening), "0", 0, 1, NULL, "share of the new gradient that is left out of the momentum" },
    { "sgd_start", TR_OPT_CHOICE, offsetof(struct frugal, sgd_start), "zero", 0, 0, "zero|code", "where momentum begins: at zero, or at the first gradient as the authors' code has it" },
    PART_OPTIONS, OPT_END,
};

/* Shape of low, of the projection (or how many indices), and whether there is any state at all. */
struct cut { int64_t low[2], p[2], k; int axis; bool right; };

static struct cut cut_of(const struct frugal *c, int64_t m, int64_t n)
{
    struct cut s = { .right = m >= n };
    if (c->selection == BLOCKWISE) return s; /* its state comes and goes whole */
    if (c->selection >= COLUMNS) {
        int64_t count = c->selection == COLUMNS ? n : c->selection == ROWS ? m : m * n;
        s.k = (int64_t)floor(c->density * (double)count);
        s.axis = c->selection == COLUMNS ? 1 : c->selection == ROWS ? 0 : 2;
        s.low[0] = s.axis == 1 ? m : s.axis == 0 ? s.k : 1;
        s.low[1] = s.axis == 0 ? n : s.k;
        return s;
    }
    s.k = (int64_t)nearbyint(c->density * (double)(s.right ? n : m)); /* half to even */
    s.p[0] = s.right ? s.k : m;
    s.p[1] = s.right ? n : s.k;
    s.low[0] = s.right ? m : s.k;
    s.low[1] = s.right ? s.k : n;
    return s;
}

static int init_selection(const struct frugal *c, struct frugal_state *s, const struct tr_param *p, struct cut *d)
{
    *d = cut_of(c, tr_rows(&p->value), tr_cols(&p->value));
    s->config = c;
    s->dim[0] = tr_rows(&p->value);
    s->dim[1] = tr_cols(&p->value);
    if (!d->k) return TR_OK;
    if (c->selection == RANDK && tr_count(&p->value) > INT32_MAX) return tr_fail(TR_EINPUT, "optimizer.selection = randk: '%s' has more entries than can be numbered; choose columns", p->name);
    TR_TRY(c->selection >= COLUMNS ? tr_tensor_new(&s->index, TR_OPTIMIZER, TR_I32, TR_DIMS(d->k)) : tr_tensor_new(&s->p, TR_OPTIMIZER, TR_F32, 2, d->p));
    return tr_tensor_new(&s->m, TR_OPTIMIZER, c->base.moments, 2, d->low);
}

static int init(const void *config, void *state, const struct tr_param *p)
{
    const struct frugal *c = config;
    struct cut d;
    struct frugal_state *s = state;
    TR_TRY(init_selection(config, s, p, &d));
    return d.k ? tr_tensor_new(&s->v, TR_OPTIMIZER, c->base.moments, 2, d.low) : TR_OK;
}

static int init_sgd(const void *config, void *state, const struct tr_param *p)
{
    struct cut d;
    struct frugal_state *s = state;
    TR_TRY(init_selection(config, s, p, &d));
    if (!(((const struct frugal *)config)->momentum > 0)) tr_tensor_release(&s->m);
    return TR_OK;
}

static int init_lion(const void *config, void *state, const struct tr_param *p)
{
    struct cut d;
    return init_selection(config, state, p, &d);
}

/* ---- selections */

static int draw_indices(struct tr_tensor *index, int64_t count, struct tr_key key)
{
    int64_t k = tr_count(index);
    void *mem;
    TR_TRY(tr_arena_alloc(&mem, (size_t)count * sizeof(int64_t) + (size_t)k * sizeof(int32_t), TR_WORKSPACE));
    if (!tr_mem_is_dry()) {
        int64_t *order = mem;
        int32_t *first = (int32_t *)(order + count);
        tr_permutation(order, count, key);
        for (int64_t i = 0; i < k; i++) first[i] = (int32_t)order[i];
        tr_tensor_write(index, first);
    }
    tr_arena_free(mem, TR_WORKSPACE);
    return TR_OK;
}

/* P of random directions: singular vectors of a random matrix of G's shape's shorter side, or unit vectors. */
static int draw_projection(struct tr_tensor *p, const struct frugal *c, const struct opt_step *s, bool right, int64_t refresh, struct tr_key key)
{
    struct tr_tensor noise = { 0 }, index = { 0 };
    int64_t side = right ? tr_cols(p) : tr_rows(p), k = right ? tr_rows(p) : tr_cols(p);
    int rc;
    if (c->selection == SVD) return opt_singular_vectors(p, c->svd, s, right, NULL, refresh);
    if (c->selection == RANDOM) {
        TR_GO(tr_tensor_arena(&noise, TR_WORKSPACE, TR_F32, TR_DIMS(right ? k : side, right ? side : k), 0));
        tr_kernels()->random_normal(&noise, key, 1);
        TR_GO(tr_singular_vectors(p, &noise, right, NULL));
        goto done;
    }
    TR_GO(tr_tensor_arena(&index, TR_WORKSPACE, TR_I32, TR_DIMS(k), 0));
    TR_GO(draw_indices(&index, side, key));
    tr_kernels()->fill(p, 0);
    TR_GO(tr_tensor_arena(&noise, TR_WORKSPACE, TR_F32, TR_DIMS(k), 0)); /* ones, one for each chosen direction */
    tr_kernels()->fill(&noise, 1);
    for (int64_t i = 0; i < k; i++) { /* column index[i] of row i (right), row index[i] of column i */
        struct tr_tensor one = tr_cols_view(&noise, i, 1), at = tr_cols_view(&index, i, 1), line = right ? tr_rows_view(p, i, 1) : tr_cols_view(p, i, 1);
        tr_updates()->place(&line, &one, &at, right ? 1 : 0, 1);
    }
done:
    tr_tensor_release(&noise);
    tr_tensor_release(&index);
    return rc;
}

static int refresh(const struct frugal *c, struct frugal_state *st, const struct opt_step *s, const struct cut *d)
{
    int64_t k = (int64_t)st->refreshes++;
    struct tr_key key = tr_key(s->seed, TR_RNG_SELECTION, tr_hash(s->p->name), (uint64_t)k);
    struct tr_tensor *to = st->p.ndim ? &st->p : &st->index, given;
    if (c->reset_statistics && k > 0) {
        tr_kernels()->fill(&st->m, 0);
        if (st->v.ndim) tr_kernels()->fill(&st->v, 0);
        st->t = 0;
    }
    if (!s->given) {
        if (st->p.ndim) return draw_projection(to, c, s, d->right, k, key);
        return draw_indices(to, d->axis == 1 ? tr_cols(s->grad) : d->axis == 0 ? tr_rows(s->grad) : tr_count(s->grad), key);
    }
    TR_TRY(s->given->get(s->given->self, "projection", k, &given));
    if (tr_count(&given) != tr_count(to) || given.dim[0] != to->dim[0]) return tr_fail(TR_EINPUT, "a selection of '%s' has another shape than its state", s->p->name);
    if (st->p.ndim) {
        tr_kernels()->copy(to, &given);
        return TR_OK;
    }
    float *real = calloc((size_t)tr_count(to) * 2, sizeof *real);
    if (!real) return tr_fail(TR_EFAIL, "no memory for a selection");
    int32_t *whole = (int32_t *)(real + tr_count(to));
    int64_t most = d->axis == 1 ? tr_cols(s->grad) : d->axis == 0 ? tr_rows(s->grad) : tr_count(s->grad);
    int rc = TR_OK;
    tr_tensor_read(&given, real);
    for (int64_t i = 0; i < tr_count(to); i++) {
        if (!(real[i] >= 0 && real[i] < (float)most)) rc = tr_fail(TR_EINPUT, "a selection of '%s' lies outside of it", s->p->name);
        else whole[i] = (int32_t)real[i];
    }
    if (rc == TR_OK) tr_tensor_write(to, whole);
    free(real);
    return rc;
}

/* ---- blocks */

static int block_state(struct frugal_state *st, const struct frugal *c)
{
    tr_tensor_release(&st->m);
    tr_tensor_release(&st->v);
    if (!st->active) return TR_OK;
    TR_TRY(tr_tensor_new(&st->m, TR_OPTIMIZER, c->base.moments, 2, st->dim));
    return tr_tensor_new(&st->v, TR_OPTIMIZER, c->base.moments, 2, st->dim);
}

/* Whether matrix `member` of `members` is among those with state in period k. */
static int drawn(const struct frugal *c, const struct opt_step *s, int64_t k, bool *active)
{
    int64_t count = (int64_t)nearbyint(c->density * (double)s->members), at = s->member;
    if (c->block_order == ORDER_RANDOM) {
        int64_t *order;
        TR_TRY(tr_calloc(&order, (size_t)s->members, sizeof *order));
        tr_permutation(order, s->members, tr_key(s->seed, TR_RNG_SELECTION, 0, (uint64_t)k));
        for (int64_t i = 0; i < s->members; i++)
            if (order[i] == s->member) at = i;
        free(order);
    } else { /* a cursor that moves by `count` and wraps */
        if (c->block_order == DESCENDING) at = s->members - 1 - at;
        at = ((at - k * count) % s->members + s->members) % s->members;
    }
    *active = at < count;
    return TR_OK;
}

/* At the start of a period: state for the matrices whose turn it is, none for the others; it begins anew for those that stay. */
static int choose_block(const struct frugal *c, struct frugal_state *st, const struct opt_step *s)
{
    bool active;
    struct tr_tensor given;
    if ((s->t - 1) % c->update_gap) return TR_OK;
    int64_t k = (int64_t)st->refreshes++;
    if (s->given) {
        float flag;
        TR_TRY(s->given->get(s->given->self, "projection", k, &given));
        if (tr_count(&given) != 1) return tr_fail(TR_EINPUT, "the selection of '%s' is no single number", s->p->name);
        tr_tensor_read(&given, &flag);
        active = flag != 0;
    } else TR_TRY(drawn(c, s, k, &active));
    st->active = active;
    st->t = 0;
    return block_state(st, c);
}

/* Which matrices have state after a step, so that a restore finds them. */
static int restoring(const void *config, void *state, const struct opt_step *s)
{
    const struct frugal *c = config;
    struct frugal_state *st = state;
    bool active;
    if (c->selection != BLOCKWISE) return TR_OK;
    TR_TRY(drawn(c, s, (s->t - 1) / c->update_gap, &active));
    if (active == (st->active != 0)) return TR_OK;
    st->active = active;
    return block_state(st, c);
}

/* ---- the step */

/* What the rest of the gradient becomes, in place. */
static void rest_of(const struct frugal *c, struct tr_tensor *g, double rate)
{
    if (c->inactive_update_rule == SIGN_SGD) tr_updates()->sign_scale(g, (float)rate);
    else if (c->inactive_update_rule == SGD) tr_kernels()->scale(g, (float)rate);
    else tr_kernels()->fill(g, 0);
}

static int down(struct tr_tensor *low, const struct frugal_state *st, const struct cut *d, const struct tr_tensor *g)
{
    if (st->p.ndim) return d->right ? tr_gemm_f32(low, 1, g, false, &st->p, true, 0) : tr_gemm_f32(low, 1, &st->p, true, g, false, 0);
    tr_updates()->pick(low, g, &st->index, d->axis);
    return TR_OK;
}

enum inner { ADAM, LION, MOMENTUM };

static int step(const struct frugal *c, struct frugal_state *st, const struct opt_step *s, enum inner inner)
{
    struct tr_tensor low = { 0 }, whole = { 0 }, *g = s->grad;
    struct cut d = cut_of(c, tr_rows(&s->p->value), tr_cols(&s->p->value));
    double lp = s->lr * c->proj_params_lr_scale, li = lp * c->inactive_lr_scale, rate = lp;
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), 1, 1, opt_rounding(s) };
    int rc;
    if (c->selection == BLOCKWISE && inner == ADAM) TR_TRY(choose_block(c, st, s));
    if (st->active) {
        int64_t t = (int64_t)++st->t;
        struct tr_adam h = { c->beta1, c->beta2, (float)(c->correct_bias ? 1 / sqrt(opt_correction(c->beta2, t)) : 1), (float)c->eps, opt_moment_rounding(s) };
        a.rate = (float)(c->correct_bias ? lp / opt_correction(c->beta1, t) : lp);
        tr_updates()->adam(&s->p->value, &st->m, &st->v, g, &h, &a);
        return TR_OK;
    }
    if (!d.k) {
        rest_of(c, g, li);
        tr_updates()->apply(&s->p->value, g, &a);
        return TR_OK;
    }
    if ((s->t - 1) % c->update_gap == 0) TR_TRY(refresh(c, st, s, &d));
    int64_t t = (int64_t)++st->t;
    if (s->low) { /* there is no rest: it does not move */
        low = *s->grad;
        low.owner = 0;
        TR_TRY(tr_tensor_arena(&whole, TR_WORKSPACE, TR_F32, TR_DIMS(tr_rows(&s->p->value), tr_cols(&s->p->value)), 0));
        g = &whole;
    } else {
        TR_TRY(tr_tensor_arena(&low, TR_WORKSPACE, TR_F32, 2, d.low, 0));
        TR_GO(down(&low, st, &d, g));
        if (st->p.ndim) TR_GO(d.right ? tr_gemm_f32(g, -1, &low, false, &st->p, false, 1) : tr_gemm_f32(g, -1, &st->p, false, &low, false, 1));
    }
    rest_of(c, g, li);
    if (inner == MOMENTUM) {
        if (st->m.ndim && st->t == 1 && c->sgd_start == CODE) tr_kernels()->copy(&st->m, &low);
        if (st->m.ndim) tr_updates()->momentum(&low, &st->m, (float)c->momentum, (float)(1 - c->dampening), 0, 1);
    } else if (inner == LION) tr_updates()->lion_direction(&low, &st->m, &(struct tr_sign){ (float)c->beta1, (float)(1 - c->beta1), (float)c->beta2, (float)(1 - c->beta2), opt_moment_rounding(s) });
    else {
        struct tr_adam h = { c->beta1, c->beta2, (float)(c->correct_bias ? 1 / sqrt(opt_correction(c->beta2, t)) : 1), (float)c->eps, opt_moment_rounding(s) };
        tr_updates()->adam_direction(&low, &st->m, &st->v, &low, &h);
        if (c->correct_bias) rate /= opt_correction(c->beta1, t);
    }
    if (!st->p.ndim) tr_updates()->place(g, &low, &st->index, d.axis, (float)rate);
    else TR_GO(d.right ? tr_gemm_f32(g, (float)rate, &low, false, &st->p, false, 1) : tr_gemm_f32(g, (float)rate, &st->p, false, &low, false, 1));
    tr_updates()->apply(&s->p->value, g, &a);
    rc = TR_OK;
done:
    tr_tensor_release(&whole);
    tr_tensor_release(&low);
    return rc;
}

static int64_t low_every(const void *config) { return ((const struct frugal *)config)->update_gap; }

/* Where the rest of the gradient does not move, the part that has state is all that an update needs. */
static bool low_shape(const void *config, int64_t m, int64_t n, int64_t dim[2])
{
    const struct frugal *c = config;
    struct cut d = cut_of(c, m, n);
    dim[0] = d.low[0];
    dim[1] = d.low[1];
    return c->inactive_update_rule == NOTHING && d.k > 0;
}

static int low_init(const void *config, void *state, const struct tr_param *p)
{
    const struct frugal *c = config;
    struct frugal_state *s = state;
    struct cut d = cut_of(c, tr_rows(&p->value), tr_cols(&p->value));
    return c->selection >= COLUMNS ? tr_tensor_new(&s->index, TR_COMMUNICATION, TR_I32, TR_DIMS(d.k)) : tr_tensor_new(&s->p, TR_COMMUNICATION, TR_F32, 2, d.p);
}

static int low_visit(void *state, struct opt_lister *l)
{
    struct frugal_state *s = state;
    TR_TRY(opt_list_tensor(l, "projection", &s->p));
    return opt_list_tensor(l, "selection", &s->index);
}

static int low_project(const void *config, const void *state, struct tr_tensor *low, const struct tr_tensor *g)
{
    struct cut d = cut_of(config, tr_rows(g), tr_cols(g));
    return down(low, state, &d, g);
}

static const struct opt_low projected = { " Where inactive_update_rule = no:", low_every, low_shape, low_init, low_visit, low_project };

static bool state_moves(const void *config) { return ((const struct frugal *)config)->selection == BLOCKWISE; }

static bool holds(const void *state)
{
    const struct frugal_state *s = state;
    return s->config && (!state_moves(s->config) || s->active);
}

static int no_blocks(const void *config)
{
    return state_moves(config) ? tr_fail(TR_EINPUT, "optimizer.selection = blockwise: only frugal itself has it; choose columns, or optimizer.name = frugal") : TR_OK;
}

static int update(const void *config, void *state, const struct opt_step *s) { return step(config, state, s, ADAM); }
static int update_lion(const void *config, void *state, const struct opt_step *s) { return step(config, state, s, LION); }
static int update_sgd(const void *config, void *state, const struct opt_step *s) { return step(config, state, s, MOMENTUM); }

static int visit(void *state, struct opt_lister *l)
{
    struct frugal_state *s = state;
    TR_TRY(opt_list_words(l, "active", &s->active, 1));
    TR_TRY(opt_list_tensor(l, "projection", &s->p));
    TR_TRY(opt_list_tensor(l, "selection", &s->index));
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    TR_TRY(opt_list_words(l, "t", &s->t, 1));
    return opt_list_words(l, "refreshes", &s->refreshes, 1);
}

static size_t size_of(const struct frugal *c, int64_t m, int64_t n, int moments)
{
    struct cut d = cut_of(c, m, n);
    if (c->selection == BLOCKWISE) return 2 * opt_moment_size(c) * (size_t)(m * n);
    return !d.k ? 0 : 4 * (size_t)(c->selection >= COLUMNS ? d.k : d.p[0] * d.p[1]) + opt_moment_size(c) * (size_t)moments * (size_t)(d.low[0] * d.low[1]);
}
static size_t bytes(const void *config, int64_t m, int64_t n) { return size_of(config, m, n, 2); }
static size_t bytes_sgd(const void *config, int64_t m, int64_t n) { return size_of(config, m, n, ((const struct frugal *)config)->momentum > 0); }
static size_t bytes_lion(const void *config, int64_t m, int64_t n) { return size_of(config, m, n, 1); }

#define PLAIN .config_size = sizeof(struct frugal), .state_size = sizeof(struct frugal_state), .matrices_only = true, .visit = visit, \
    .low = &projected, .source = "Zmushko et al. 2024, FRUGAL; the authors' code"
#define KIND PLAIN, .bf16_moments = true
const struct opt_kind opt_frugal = {
    KIND, .name = "frugal", .summary = "AdamW on a part of each gradient, sign steps for the rest: state for `density` of it", .options = options, .rest = "adamw",
    .rule = "low = part of G; W = (1 - lr decay) W - back(AdamW step of low) - lr inactive_lr_scale sign(G - back(low)); a new part each update_gap steps",
    .init = init, .update = update, .bytes = bytes, .state_moves = state_moves, .holds = holds, .restoring = restoring,
};
const struct opt_kind opt_frugal_lion = {
    KIND, .name = "frugal-lion", .summary = "frugal with Lion on the part that has state", .options = lion_options, .rest = "lion",
    .rule = "low = part of G; W = (1 - lr decay) W - lr back(Lion's sign of low) - lr inactive_lr_scale sign(G - back(low))",
    .init = init_lion, .update = update_lion, .bytes = bytes_lion, .check = no_blocks,
};
const struct opt_kind opt_frugal_sgd = {
    PLAIN, .name = "frugal-sgd", .summary = "frugal with SGD on the part that has state", .options = sgd_options, .rest = "sgd",
    .rule = "low = part of G; b = momentum b + (1 - dampening) low; W = (1 - lr decay) W - lr back(b) - lr inactive_lr_scale sign(G - back(low))",
    .init = init_sgd, .update = update_sgd, .bytes = bytes_sgd, .check = no_blocks,
};
