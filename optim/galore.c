/* GaLore: AdamW in the subspace of the gradient's first singular vectors.
 * Letters: G[M,N], rank R. Right: P[R,N], low = G P^T [M,R]; left: P[M,R], low = P^T G [R,N]; full: A[M,R], B[R,N],
 * low = A^T G B^T [R,R]. State: the basis and two moments shaped like low, f32 (inner adamw-8bit: moments in 8 bits). */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/linalg.h"
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"
#include <math.h>

enum { STD, REVERSE_STD, RIGHT, LEFT, FULL };

struct galore {
    struct opt_base base;
    double beta1, beta2, eps, scale;
    int64_t rank, update_gap, min_8bit_size;
    int proj_type;
    bool correct_bias;
};
struct galore_state { struct tr_tensor left, right, m, v, m_most, v_most; uint64_t t; };

#define OPTIONS(EPS) \
    { "weight_decay", TR_OPT_REAL, offsetof(struct galore, base.weight_decay), "0", 0, 1e6, NULL, "decoupled, after the update" }, \
    { "beta1", TR_OPT_REAL, offsetof(struct galore, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" }, \
    { "beta2", TR_OPT_REAL, offsetof(struct galore, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" }, \
    { "eps", TR_OPT_REAL, offsetof(struct galore, eps), EPS, 0, 1, NULL, "added to the root" }, \
    { "rank", TR_OPT_INT, offsetof(struct galore, rank), "128", 1, 1 << 20, NULL, "of the subspace; at most the smaller side counts" }, \
    { "update_gap", TR_OPT_INT, offsetof(struct galore, update_gap), "200", 1, 1e15, NULL, "updates between two decompositions" }, \
    { "scale", TR_OPT_REAL, offsetof(struct galore, scale), "0.25", 0, 1e9, NULL, "multiplies the step that comes back from the subspace" }, \
    { "proj_type", TR_OPT_CHOICE, offsetof(struct galore, proj_type), "std", 0, 0, "std|reverse_std|right|left|full", "sides that are projected; std compresses the shorter one" }
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

struct sides { int64_t r; bool left, right; };

static struct sides sides_of(const struct galore *c, int64_t m, int64_t n)
{
    int64_t lo = m < n ? m : n;
    struct sides s = { .r = c->rank < lo ? c->rank : lo };
    s.right = c->proj_type == FULL || c->proj_type == RIGHT || (c->proj_type == STD && m >= n) || (c->proj_type == REVERSE_STD && m < n);
    s.left = c->proj_type == FULL || !s.right;
    return s;
}

static int64_t low_count(struct sides d, int64_t m, int64_t n) { return (d.left ? d.r : m) * (d.right ? d.r : n); }
static int64_t blocks_of(int64_t n) { return (n + TR_BLOCK_8BIT - 1) / TR_BLOCK_8BIT; }

static int init_basis(const struct galore *c, struct galore_state *s, const struct tr_param *p, struct sides *d)
{
    int64_t m = tr_rows(&p->value), n = tr_cols(&p->value);
    *d = sides_of(c, m, n);
    if (d->left) TR_TRY(tr_tensor_new(&s->left, TR_OPTIMIZER, TR_F32, TR_DIMS(m, d->r)));
    return d->right ? tr_tensor_new(&s->right, TR_OPTIMIZER, TR_F32, TR_DIMS(d->r, n)) : TR_OK;
}

static int init_moments(struct galore_state *s, const struct tr_param *p, struct sides d)
{
    int64_t dim[2] = { d.left ? d.r : tr_rows(&p->value), d.right ? d.r : tr_cols(&p->value) };
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_F32, 2, dim));
    return tr_tensor_new(&s->v, TR_OPTIMIZER, TR_F32, 2, dim);
}

static int init(const void *config, void *state, const struct tr_param *p)
{
    struct sides d;
    TR_TRY(init_basis(config, state, p, &d));
    return init_moments(state, p, d);
}

static int init_8bit(const void *config, void *state, const struct tr_param *p)
{
    const struct galore *c = config;
    struct galore_state *s = state;
    struct sides d;
    TR_TRY(init_basis(c, s, p, &d));
    int64_t n = low_count(d, tr_rows(&p->value), tr_cols(&p->value));
    if (n < c->min_8bit_size) return init_moments(s, p, d);
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_U8, TR_DIMS(n)));
    TR_TRY(tr_tensor_new(&s->v, TR_OPTIMIZER, TR_U8, TR_DIMS(n)));
    TR_TRY(tr_tensor_new(&s->m_most, TR_OPTIMIZER, TR_F32, TR_DIMS(blocks_of(n))));
    return tr_tensor_new(&s->v_most, TR_OPTIMIZER, TR_F32, TR_DIMS(blocks_of(n)));
}

/* A new basis from the gradient, or the one that is given. */
static int refresh(struct tr_tensor *p, const struct opt_step *s, bool right, bool full, int64_t k)
{
    struct tr_tensor fresh = { 0 };
    int rc;
    if (s->given) TR_TRY(s->given->get(s->given->self, !full ? "projection" : right ? "projection_right" : "projection_left", k, &fresh));
    else {
        TR_TRY(tr_tensor_arena(&fresh, TR_WORKSPACE, TR_F32, 2, p->dim, 0));
        TR_GO(tr_singular_vectors(&fresh, s->grad, right, k > 0 ? p : NULL));
    }
    if (fresh.dim[0] != p->dim[0] || fresh.dim[1] != p->dim[1]) TR_GO(tr_fail(TR_EINPUT, "a projection of '%s' has another shape than [%d, %d]", s->p->name, (int)p->dim[0], (int)p->dim[1]));
    tr_kernels()->copy(p, &fresh);
    rc = TR_OK;
done:
    tr_tensor_release(&fresh);
    return rc;
}

/* low in the arena. */
static int down(struct tr_tensor *low, const struct galore_state *st, const struct tr_tensor *g)
{
    int64_t m = tr_rows(g), n = tr_cols(g), rl = st->left.ndim ? tr_cols(&st->left) : m, rr = st->right.ndim ? tr_rows(&st->right) : n;
    struct tr_tensor half = { 0 };
    int rc;
    TR_TRY(tr_tensor_arena(low, TR_WORKSPACE, TR_F32, TR_DIMS(rl, rr), 0));
    if (!st->left.ndim) return tr_gemm_f32(low, 1, g, false, &st->right, true, 0);
    if (!st->right.ndim) return tr_gemm_f32(low, 1, &st->left, true, g, false, 0);
    TR_GO(tr_tensor_arena(&half, TR_WORKSPACE, TR_F32, TR_DIMS(rl, n), 0));
    TR_GO(tr_gemm_f32(&half, 1, &st->left, true, g, false, 0));
    TR_GO(tr_gemm_f32(low, 1, &half, false, &st->right, true, 0));
done:
    tr_tensor_release(&half);
    return rc;
}

/* The step in the subspace becomes one of the whole matrix, in the gradient's place. */
static int back(struct tr_tensor *g, const struct galore_state *st, const struct tr_tensor *low)
{
    struct tr_tensor half = { 0 };
    int rc;
    if (!st->left.ndim) return tr_gemm_f32(g, 1, low, false, &st->right, false, 0);
    if (!st->right.ndim) return tr_gemm_f32(g, 1, &st->left, false, low, false, 0);
    TR_TRY(tr_tensor_arena(&half, TR_WORKSPACE, TR_F32, TR_DIMS(tr_rows(low), tr_cols(g)), 0));
    TR_GO(tr_gemm_f32(&half, 1, low, false, &st->right, false, 0));
    TR_GO(tr_gemm_f32(g, 1, &st->left, false, &half, false, 0));
done:
    tr_tensor_release(&half);
    return rc;
}

/* h and rate: Adam's, in the order of epsilon that the inner rule has. */
static int step(const struct galore *c, struct galore_state *st, const struct opt_step *s, const struct tr_adam *h, double rate)
{
    struct tr_tensor low = { 0 };
    struct tr_apply a = { 1, (float)(rate * c->scale), (float)(1 - s->lr * c->base.weight_decay), tr_key(s->seed, TR_RNG_ROUNDING, tr_hash(s->p->name), (uint64_t)s->t) };
    int64_t done = (int64_t)st->t - 1;
    bool full = c->proj_type == FULL;
    int rc;
    if (done % c->update_gap == 0) {
        if (st->left.ndim) TR_TRY(refresh(&st->left, s, false, full, done / c->update_gap));
        if (st->right.ndim) TR_TRY(refresh(&st->right, s, true, full, done / c->update_gap));
    }
    TR_GO(down(&low, st, s->grad));
    if (st->m_most.ndim) tr_updates()->adam_8bit(&low, &st->m, &st->v, &st->m_most, &st->v_most, h);
    else tr_updates()->adam_direction(&low, &st->m, &st->v, &low, h);
    TR_GO(back(s->grad, st, &low));
    tr_updates()->apply(&s->p->value, s->grad, &a);
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
    return step(c, st, s, &(struct tr_adam){ c->beta1, c->beta2, 1, (float)c->eps }, rate);
}

static int update_8bit(const void *config, void *state, const struct opt_step *s)
{
    const struct galore *c = config;
    struct galore_state *st = state;
    int64_t t = (int64_t)++st->t;
    struct tr_adam h = { c->beta1, c->beta2, (float)(1 / sqrt(opt_correction(c->beta2, t))), (float)c->eps };
    return step(c, st, s, &h, s->lr / opt_correction(c->beta1, t));
}

static int visit(void *state, struct opt_lister *l)
{
    struct galore_state *s = state;
    TR_TRY(opt_list_tensor(l, "projection_left", &s->left));
    TR_TRY(opt_list_tensor(l, "projection_right", &s->right));
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    TR_TRY(opt_list_tensor(l, "m_most", &s->m_most));
    TR_TRY(opt_list_tensor(l, "v_most", &s->v_most));
    return opt_list_words(l, "t", &s->t, 1);
}

static size_t basis_bytes(struct sides d, int64_t m, int64_t n) { return 4 * (size_t)((d.left ? m * d.r : 0) + (d.right ? d.r * n : 0)); }

static size_t bytes(const void *config, int64_t m, int64_t n)
{
    struct sides d = sides_of(config, m, n);
    return basis_bytes(d, m, n) + 8 * (size_t)low_count(d, m, n);
}

static size_t bytes_8bit(const void *config, int64_t m, int64_t n)
{
    struct sides d = sides_of(config, m, n);
    int64_t low = low_count(d, m, n);
    return basis_bytes(d, m, n) + (low < ((const struct galore *)config)->min_8bit_size ? 8 * (size_t)low : 2 * (size_t)low + 8 * (size_t)blocks_of(low));
}

#define KIND .config_size = sizeof(struct galore), .state_size = sizeof(struct galore_state), .matrices_only = true, .visit = visit, \
    .source = "Zhao et al. 2024, GaLore; galore-torch", \
    .rule = "P = first singular vectors of G, each update_gap steps; low = G P^T or P^T G; u = Adam direction of low; W = W - a scale (u P or P u); W = (1 - lr decay) W"
const struct opt_kind opt_galore = {
    KIND, .name = "galore", .summary = "AdamW in the subspace of the gradient's first singular vectors", .options = options, .rest = "adamw-hf",
    .init = init, .update = update, .bytes = bytes,
};
const struct opt_kind opt_galore_8bit = {
    KIND, .name = "galore-8bit", .summary = "galore with its moments in 8 bits", .options = options_8bit, .rest = "adamw-8bit",
    .init = init_8bit, .update = update_8bit, .bytes = bytes_8bit,
};
