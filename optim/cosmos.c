/* COSMOS: SOAP's step in a leading subspace of the inputs, Muon's for what is left of the gradient.
 * Letters: G [M,N], rank R. State, f32: momentum [M,N], basis P [N,R], S [R,R] (the Gram matrix in the basis), second moment of
 * G P [M,R]. A vector, or a matrix of more than max_rows rows, has Adam's two moments. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/linalg.h"
#include "libtrain/kernel/update.h"
#include "optim/newton_schulz.h"
#include <math.h>

struct cosmos {
    struct opt_base base;
    double beta1, beta2, eps, lr_ratio, gamma;
    int64_t rank, max_rows;
    struct opt_newton_schulz ns;
    bool nesterov;
    int without, adam;   /* options nesterov_off, adam_branch */
};
struct cosmos_state { struct tr_tensor m, p, s, v; uint64_t t; };
enum { CODE, OTHER };

static const struct tr_option options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct cosmos, base.weight_decay), "0", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" },
    { "beta1", TR_OPT_REAL, offsetof(struct cosmos, beta1), "0.9", 0, 0.999999999, NULL, "of the momentum" },
    { "beta2", TR_OPT_REAL, offsetof(struct cosmos, beta2), "0.999", 0, 0.999999999, NULL, "of the second moments and the Gram matrix" },
    { "eps", TR_OPT_REAL, offsetof(struct cosmos, eps), "1e-8", 0, 1, NULL, "added to roots and norms" },
    { "lr_ratio", TR_OPT_REAL, offsetof(struct cosmos, lr_ratio), "0.1", 0, 1e6, NULL, "rate of matrices, relative to train.lr" },
    { "rank", TR_OPT_INT, offsetof(struct cosmos, rank), "64", 1, 1 << 20, NULL, "of the subspace; at most the columns count" },
    { "gamma", TR_OPT_REAL, offsetof(struct cosmos, gamma), "0.2", 0, 1e6, NULL, "weight of what lies outside the subspace" },
    { "nesterov", TR_OPT_BOOL, offsetof(struct cosmos, nesterov), "true", 0, 0, NULL, "mix gradient and momentum" },
    { "nesterov_off", TR_OPT_CHOICE, offsetof(struct cosmos, without), "code", 0, 0, "code|momentum", "without nesterov: the gradient alone, as the authors' code has it, or the momentum" },
    { "adam_branch", TR_OPT_CHOICE, offsetof(struct cosmos, adam), "code", 0, 0, "code|exact", "vectors: first moment with 0.1 g and 1 - 0.9^t whatever beta1, or Adam's" },
    { "max_rows", TR_OPT_INT, offsetof(struct cosmos, max_rows), "10000", 1, 1e15, NULL, "matrices of more rows take Adam" },
    OPT_NEWTON_SCHULZ_OPTIONS(cosmos, ns),
    OPT_END,
};

static bool is_matrix(const struct cosmos *c, const struct tr_tensor *w) { return w->ndim == 2 && tr_rows(w) <= c->max_rows; }
static int64_t rank_of(const struct cosmos *c, int64_t n) { return c->rank < n ? c->rank : n; }

static int init(const void *config, void *state, const struct tr_param *p)
{
    const struct cosmos *c = config;
    struct cosmos_state *s = state;
    int64_t n = tr_cols(&p->value), r = rank_of(c, n);
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim));
    if (!is_matrix(c, &p->value)) return tr_tensor_new(&s->v, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim);
    TR_TRY(tr_tensor_new(&s->p, TR_OPTIMIZER, TR_F32, TR_DIMS(n, r)));
    TR_TRY(tr_tensor_new(&s->s, TR_OPTIMIZER, TR_F32, TR_DIMS(r, r)));
    return tr_tensor_new(&s->v, TR_OPTIMIZER, TR_F32, TR_DIMS(tr_rows(&p->value), r));
}

static double norm(const struct tr_tensor *x) { return sqrt(tr_kernels()->sum_squares(x)); }

/* u = x / (sqrt(v) root + eps), v the moment of g^2: Adam's direction whose first moment is x itself. */
static void direction(struct tr_tensor *u, struct tr_tensor *x, struct tr_tensor *v, const struct tr_tensor *g, double beta2, double root, double eps)
{
    tr_updates()->adam_direction(u, x, v, g, &(struct tr_adam){ 1, beta2, (float)root, (float)eps });
}

/* The first basis: the leading right singular vectors of g. */
static int first_basis(struct cosmos_state *st, const struct opt_step *s)
{
    struct tr_tensor given, rows = { 0 }, unit = { 0 };
    int64_t n = tr_rows(&st->p), r = tr_cols(&st->p);
    int rc;
    if (s->given) {
        TR_TRY(s->given->get(s->given->self, "projection", 0, &given));
        if (given.ndim != 2 || given.dim[0] != n || given.dim[1] != r) return tr_fail(TR_EINPUT, "the projection of '%s' has another shape than [%d, %d]", s->p->name, (int)n, (int)r);
        tr_kernels()->copy(&st->p, &given);
        return TR_OK;
    }
    int64_t most = tr_rows(s->grad) < r ? tr_rows(s->grad) : r; /* a matrix has no more of them than rows */
    TR_GO(tr_tensor_arena(&rows, TR_WORKSPACE, TR_F32, TR_DIMS(r, n), 0));
    TR_GO(tr_tensor_arena(&unit, TR_WORKSPACE, TR_F32, TR_DIMS(r, r), 0));
    struct tr_tensor top = tr_rows_view(&rows, 0, most);
    if (most < r) tr_kernels()->random_normal(&rows, tr_key(s->seed, TR_RNG_PROJECTION, tr_hash(s->p->name), 0), 1);
    TR_GO(tr_singular_vectors(&top, s->grad, true, NULL));
    tr_kernels()->fill(&unit, 0);
    TR_GO(tr_add_diagonal(&unit, 1));
    TR_GO(tr_gemm_f32(&st->p, 1, &rows, true, &unit, false, 0)); /* turned */
    rc = most < r ? tr_orthonormal(&st->p) : TR_OK;
done:
    tr_tensor_release(&unit);
    tr_tensor_release(&rows);
    return rc;
}

/* One power step of the moving Gram matrix: P = qr(beta2 P S + (1 - beta2) G^T G P), S in the new basis. */
static int move_basis(const struct cosmos *c, struct cosmos_state *st, const struct tr_tensor *g)
{
    struct tr_tensor low = { 0 }, q = { 0 }, turn = { 0 }, half = { 0 };
    int64_t m = tr_rows(g), n = tr_rows(&st->p), r = tr_cols(&st->p);
    float b = (float)c->beta2;
    int rc;
    TR_GO(tr_tensor_arena(&low, TR_WORKSPACE, TR_F32, TR_DIMS(m, r), 0));
    TR_GO(tr_tensor_arena(&q, TR_WORKSPACE, TR_F32, TR_DIMS(n, r), 0));
    TR_GO(tr_tensor_arena(&turn, TR_WORKSPACE, TR_F32, TR_DIMS(r, r), 0));
    TR_GO(tr_tensor_arena(&half, TR_WORKSPACE, TR_F32, TR_DIMS(r, r), 0));
    TR_GO(tr_gemm_f32(&low, 1, g, false, &st->p, false, 0));
    if (st->t > 1) {
        TR_GO(tr_gemm_f32(&q, 1 - b, g, true, &low, false, 0));
        TR_GO(tr_gemm_f32(&q, b, &st->p, false, &st->s, false, 1));
        TR_GO(tr_orthonormal(&q));
        TR_GO(tr_gemm_f32(&turn, 1, &st->p, true, &q, false, 0));
        TR_GO(tr_gemm_f32(&half, 1, &turn, true, &st->s, false, 0));
        TR_GO(tr_gemm_f32(&st->s, b, &half, false, &turn, false, 0));
        tr_kernels()->copy(&st->p, &q);
        TR_GO(tr_gemm_f32(&low, 1, g, false, &st->p, false, 0));
    }
    TR_GO(tr_gemm_f32(&st->s, 1 - b, &low, true, &low, false, 1));
    rc = TR_OK;
done:
    tr_tensor_release(&half);
    tr_tensor_release(&turn);
    tr_tensor_release(&q);
    tr_tensor_release(&low);
    return rc;
}

/* g becomes A + gamma B. */
static int mix(const struct cosmos *c, struct cosmos_state *st, struct tr_tensor *g)
{
    struct tr_tensor low = { 0 }, z = { 0 }, u = { 0 };
    int64_t m = tr_rows(g), n = tr_cols(g), r = tr_cols(&st->p);
    double grown = opt_correction(c->beta1, (int64_t)st->t) / (1 - c->beta1), root = 1 / sqrt(opt_correction(c->beta2, (int64_t)st->t));
    float by = (float)(1 / (1 + c->beta1 * grown)), alone = (float)(1 / grown);
    int rc;
    TR_GO(tr_tensor_arena(&low, TR_WORKSPACE, TR_F32, TR_DIMS(m, r), 0));
    TR_GO(tr_tensor_arena(&z, TR_WORKSPACE, TR_F32, TR_DIMS(m, r), 0));
    TR_GO(tr_tensor_arena(&u, TR_WORKSPACE, TR_F32, TR_DIMS(m, r), 0));
    TR_GO(tr_gemm_f32(&low, 1, g, false, &st->p, false, 0));
    if (c->nesterov) tr_updates()->momentum(g, &st->m, (float)c->beta1, 1, by, (float)c->beta1 * by);
    else tr_updates()->momentum(g, &st->m, (float)c->beta1, 1, c->without == CODE ? alone : 0, c->without == CODE ? 0 : alone);
    TR_GO(tr_gemm_f32(&z, 1, g, false, &st->p, false, 0));
    TR_GO(tr_gemm_f32(g, -1, &z, false, &st->p, true, 1));
    direction(&u, &z, &st->v, &low, c->beta2, root, c->eps);
    TR_GO(opt_orthogonalise(g, &c->ns));
    tr_kernels()->scale(g, (float)(c->gamma * sqrt((double)(m * n)) / (norm(g) + c->eps)));
    TR_GO(tr_gemm_f32(g, 1, &u, false, &st->p, true, 1));
    rc = TR_OK;
done:
    tr_tensor_release(&u);
    tr_tensor_release(&z);
    tr_tensor_release(&low);
    return rc;
}

static int update_vector(const struct cosmos *c, struct cosmos_state *st, const struct opt_step *s, struct tr_apply *a)
{
    struct tr_tensor x;
    double keep = c->adam == CODE ? 0.9 : c->beta1, root = 1 / sqrt(opt_correction(c->beta2, (int64_t)st->t));
    TR_TRY(tr_tensor_arena(&x, TR_WORKSPACE, TR_F32, s->grad->ndim, s->grad->dim, 0));
    tr_kernels()->copy(&x, s->grad);
    tr_updates()->momentum(&x, &st->m, (float)c->beta1, (float)(1 - keep), 0, 1);
    direction(s->grad, &x, &st->v, s->grad, c->beta2, root, c->eps);
    tr_tensor_release(&x);
    a->rate = (float)(s->lr / opt_correction(keep, (int64_t)st->t));
    return TR_OK;
}

static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct cosmos *c = config;
    struct cosmos_state *st = state;
    struct tr_apply a = { (float)(1 - s->lr * c->base.weight_decay), 0, 1, opt_rounding(s) };
    st->t++;
    if (!st->p.ndim) TR_TRY(update_vector(c, st, s, &a));
    else {
        if (st->t == 1) TR_TRY(first_basis(st, s));
        TR_TRY(move_basis(c, st, s->grad));
        TR_TRY(mix(c, st, s->grad));
        a.rate = (float)(s->lr * c->lr_ratio * sqrt((double)tr_count(s->grad)) / (norm(s->grad) + c->eps));
    }
    tr_updates()->apply(&s->p->value, s->grad, &a);
    return TR_OK;
}

static int visit(void *state, struct opt_lister *l)
{
    struct cosmos_state *s = state;
    TR_TRY(opt_list_tensor(l, "momentum", &s->m));
    TR_TRY(opt_list_tensor(l, "projection", &s->p));
    TR_TRY(opt_list_tensor(l, "gram", &s->s));
    TR_TRY(opt_list_tensor(l, "v", &s->v));
    return opt_list_words(l, "t", &s->t, 1);
}

static size_t bytes(const void *config, int64_t m, int64_t n)
{
    const struct cosmos *c = config;
    int64_t r = rank_of(c, n);
    return m == 1 || m > c->max_rows ? 8 * (size_t)(m * n) : 4 * (size_t)(m * n + n * r + r * r + m * r);
}

const struct opt_kind opt_cosmos = {
    .name = "cosmos", .summary = "SOAP's step in a leading subspace, Muon's for the rest", .source = "Liu et al. 2025, COSMOS; the authors' code",
    .rule = "P = leading basis of the moving G^T G; A = (ghat P / (sqrt(v) + eps)) P^T; B = Newton-Schulz(ghat - ghat P P^T), normed; U = A + gamma B; "
            "W = (1 - lr decay) W - lr lr_ratio sqrt(rows columns) U/|U|",
    .options = options, .config_size = sizeof(struct cosmos), .state_size = sizeof(struct cosmos_state),
    .init = init, .update = update, .visit = visit, .bytes = bytes,
};
