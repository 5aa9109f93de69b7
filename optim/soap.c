/* SOAP: Adam in the eigenbasis of Shampoo's two Gram matrices. Letters: G [M,N].
 * State, f32: moments [M,N]; for a side of at most max_precond_dim its Gram matrix and basis, squares of the side. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/linalg.h"
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"
#include <math.h>

struct soap {
    struct opt_base base;
    double beta1, beta2, shampoo_beta, eps;
    int64_t precondition_frequency, max_precond_dim;
    bool correct_bias, normalize_grads, precondition_1d;
};
struct side { struct tr_tensor gram, q; };
struct soap_state { struct tr_tensor m, v; struct side left, right; uint64_t t, begun; };

static const struct tr_option options[] = {
    { "weight_decay", TR_OPT_REAL, offsetof(struct soap, base.weight_decay), "0.01", 0, 1e6, NULL, "decoupled, after the update" },
    { "beta1", TR_OPT_REAL, offsetof(struct soap, beta1), "0.95", 0, 0.999999999, NULL, "of the first moment" },
    { "beta2", TR_OPT_REAL, offsetof(struct soap, beta2), "0.95", 0, 0.999999999, NULL, "of the second moment" },
    { "shampoo_beta", TR_OPT_REAL, offsetof(struct soap, shampoo_beta), "-1", -1, 0.999999999, NULL, "of the Gram matrices; below 0 = beta2" },
    { "eps", TR_OPT_REAL, offsetof(struct soap, eps), "1e-8", 0, 1, NULL, "added to the root" },
    { "precondition_frequency", TR_OPT_INT, offsetof(struct soap, precondition_frequency), "10", 1, 1e15, NULL, "updates between two power steps of the bases" },
    { "max_precond_dim", TR_OPT_INT, offsetof(struct soap, max_precond_dim), "10000", 1, 1 << 20, NULL, "longer sides are left as they are" },
    { "correct_bias", TR_OPT_BOOL, offsetof(struct soap, correct_bias), "true", 0, 0, NULL, "undo the moments' start at zero" },
    { "normalize_grads", TR_OPT_BOOL, offsetof(struct soap, normalize_grads), "false", 0, 0, NULL, "each step has rms 1 before the rate" },
    { "precondition_1d", TR_OPT_BOOL, offsetof(struct soap, precondition_1d), "false", 0, 0, NULL, "vectors have a basis, too" },
    OPT_END,
};

struct sides { bool left, right; };

static struct sides sides_of(const struct soap *c, int64_t m, int64_t n, bool vector)
{
    return (struct sides){ .left = !vector && m <= c->max_precond_dim, .right = (!vector || c->precondition_1d) && n <= c->max_precond_dim };
}

static int side_init(struct side *s, int64_t d)
{
    TR_TRY(tr_tensor_new(&s->gram, TR_OPTIMIZER, TR_F32, TR_DIMS(d, d)));
    return tr_tensor_new(&s->q, TR_OPTIMIZER, TR_F32, TR_DIMS(d, d));
}

static int init(const void *config, void *state, const struct tr_param *p)
{
    struct soap_state *s = state;
    int64_t m = tr_rows(&p->value), n = tr_cols(&p->value);
    struct sides d = sides_of(config, m, n, p->value.ndim == 1);
    TR_TRY(tr_tensor_new(&s->m, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim));
    TR_TRY(tr_tensor_new(&s->v, TR_OPTIMIZER, TR_F32, p->value.ndim, p->value.dim));
    if (d.left) TR_TRY(side_init(&s->left, m));
    return d.right ? side_init(&s->right, n) : TR_OK;
}

/* to = QL^T x QR (in), or QL x QR^T (out); to and x [M,N], apart. */
static int turn(struct tr_tensor *to, const struct soap_state *st, const struct tr_tensor *x, bool in)
{
    struct tr_tensor half = { 0 };
    bool left = st->left.q.ndim, right = st->right.q.ndim;
    int rc;
    if (!left && !right) {
        tr_kernels()->copy(to, x);
        return TR_OK;
    }
    if (!left) return tr_gemm_f32(to, 1, x, false, &st->right.q, !in, 0);
    if (!right) return tr_gemm_f32(to, 1, &st->left.q, in, x, false, 0);
    TR_TRY(tr_tensor_arena(&half, TR_WORKSPACE, TR_F32, TR_DIMS(tr_rows(x), tr_cols(x)), 0));
    TR_GO(tr_gemm_f32(&half, 1, &st->left.q, in, x, false, 0));
    TR_GO(tr_gemm_f32(to, 1, &half, false, &st->right.q, !in, 0));
done:
    tr_tensor_release(&half);
    return rc;
}

/* Gram matrices = keep of them + (1 - s) g g^T and g^T g. */
static int gather(struct soap_state *st, const struct tr_tensor *g, double keep, double s)
{
    if (st->left.q.ndim) TR_TRY(tr_gemm_f32(&st->left.gram, (float)(1 - s), g, false, g, true, (float)keep));
    return st->right.q.ndim ? tr_gemm_f32(&st->right.gram, (float)(1 - s), g, true, g, false, (float)keep) : TR_OK;
}

static int first_basis(struct side *side, const struct opt_step *s, const char *what)
{
    struct tr_tensor given;
    if (!side->q.ndim) return TR_OK;
    if (!s->given) return tr_eigenvectors(&side->q, &side->gram);
    TR_TRY(s->given->get(s->given->self, what, 0, &given));
    if (!tr_same_shape(&given, &side->q)) return tr_fail(TR_EINPUT, "a basis of '%s' has another shape than its side", s->p->name);
    tr_kernels()->copy(&side->q, &given);
    return TR_OK;
}

/* A power step of a basis; v's rows (axis 0) or columns go along when its vectors change places. */
static int renew(struct side *side, struct tr_tensor *v, int axis)
{
    struct tr_tensor order = { 0 }, moved = { 0 };
    int rc;
    if (!side->q.ndim) return TR_OK;
    TR_GO(tr_tensor_arena(&order, TR_WORKSPACE, TR_I32, TR_DIMS(tr_rows(&side->q)), 0));
    TR_GO(tr_tensor_arena(&moved, TR_WORKSPACE, TR_F32, TR_DIMS(tr_rows(v), tr_cols(v)), 0));
    TR_GO(tr_power_step(&side->q, &order, &side->gram));
    tr_updates()->pick(&moved, v, &order, axis);
    tr_kernels()->copy(v, &moved);
    rc = TR_OK;
done:
    tr_tensor_release(&moved);
    tr_tensor_release(&order);
    return rc;
}

static int step(const struct soap *c, struct soap_state *st, const struct opt_step *s, double shampoo)
{
    struct tr_tensor u = { 0 }, full = { 0 }, *g = s->grad;
    int64_t t = (int64_t)++st->t, dim[2] = { tr_rows(g), tr_cols(g) };
    struct tr_tensor m = tr_reshape(&st->m, 2, dim), v = tr_reshape(&st->v, 2, dim);
    double rate = c->correct_bias ? s->lr * sqrt(opt_correction(c->beta2, t)) / opt_correction(c->beta1, t) : s->lr;
    struct tr_apply a = { 1, (float)rate, (float)(1 - s->lr * c->base.weight_decay), opt_rounding(s) };
    int rc;
    TR_GO(tr_tensor_arena(&u, TR_WORKSPACE, TR_F32, 2, dim, 0));
    TR_GO(tr_tensor_arena(&full, TR_WORKSPACE, TR_F32, 2, dim, 0));
    TR_GO(turn(&u, st, g, true));
    tr_updates()->adam_direction(&u, &m, &v, &u, &(struct tr_adam){ c->beta1, c->beta2, 1, (float)c->eps });
    TR_GO(turn(&full, st, &u, false));
    if (c->normalize_grads) a.rate = (float)((double)a.rate / (1e-30 + sqrt(tr_kernels()->sum_squares(&full) / (double)tr_count(&full))));
    struct tr_tensor w = s->p->value.ndim == 1 ? tr_reshape(&s->p->value, 2, dim) : s->p->value;
    tr_updates()->apply(&w, &full, &a);
    /* the first moment goes through the old bases to the new ones; the second stays where it is */
    TR_GO(turn(&full, st, &m, false));
    TR_GO(gather(st, g, shampoo, shampoo));
    if (t % c->precondition_frequency == 0) {
        TR_GO(renew(&st->left, &v, 0));
        TR_GO(renew(&st->right, &v, 1));
    }
    TR_GO(turn(&m, st, &full, true));
done:
    tr_tensor_release(&full);
    tr_tensor_release(&u);
    return rc;
}

/* The first call only looks: bases come from it, no weight moves, as in the authors' code. */
static int update(const void *config, void *state, const struct opt_step *s)
{
    const struct soap *c = config;
    struct soap_state *st = state;
    double shampoo = c->shampoo_beta >= 0 ? c->shampoo_beta : c->beta2;
    if (st->begun) return step(c, st, s, shampoo);
    st->begun = 1;
    TR_TRY(gather(st, s->grad, 0, shampoo));
    TR_TRY(first_basis(&st->left, s, "projection_left"));
    return first_basis(&st->right, s, "projection_right");
}

static int visit(void *state, struct opt_lister *l)
{
    struct soap_state *s = state;
    struct { const char *name; struct tr_tensor *t; } all[] = { { "m", &s->m }, { "v", &s->v }, { "gram_left", &s->left.gram }, { "basis_left", &s->left.q },
                                                              { "gram_right", &s->right.gram }, { "basis_right", &s->right.q } };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) TR_TRY(opt_list_tensor(l, all[i].name, all[i].t));
    TR_TRY(opt_list_words(l, "t", &s->t, 1));
    return opt_list_words(l, "begun", &s->begun, 1);
}

static size_t bytes(const void *config, int64_t m, int64_t n)
{
    struct sides d = sides_of(config, m, n, m == 1);
    return 8 * (size_t)(m * n) + (d.left ? 8 * (size_t)(m * m) : 0) + (d.right ? 8 * (size_t)(n * n) : 0);
}

const struct opt_kind opt_soap = {
    .name = "soap", .summary = "Adam in the eigenbasis of Shampoo's Gram matrices", .source = "Vyas et al. 2024, SOAP; the authors' code",
    .rule = "p = QL^T G QR; u = Adam direction of p; W = W - a QL u QR^T; W = (1 - lr decay) W; L, R = moving G G^T, G^T G; "
            "each precondition_frequency updates QL = qr(L QL), QR = qr(R QR). The first step only sets the bases",
    .options = options, .config_size = sizeof(struct soap), .state_size = sizeof(struct soap_state),
    .init = init, .update = update, .visit = visit, .bytes = bytes,
};
