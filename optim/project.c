#include "optim/project.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/linalg.h"
#include <stdlib.h>

struct opt_sides opt_sides_of(const struct opt_projector *c, int64_t m, int64_t n)
{
    int64_t lo = m < n ? m : n;
    struct opt_sides s = { .r = c->rank < lo ? c->rank : lo };
    s.right = c->proj_type == OPT_FULL || c->proj_type == OPT_RIGHT || (c->proj_type == OPT_STD && m >= n) || (c->proj_type == OPT_REVERSE_STD && m < n);
    s.left = c->proj_type == OPT_FULL || !s.right;
    return s;
}

int64_t opt_low_count(struct opt_sides d, int64_t m, int64_t n) { return (d.left ? d.r : m) * (d.right ? d.r : n); }

size_t opt_basis_bytes(struct opt_sides d, int64_t m, int64_t n) { return 4 * (size_t)((d.left ? m * d.r : 0) + (d.right ? d.r * n : 0)); }

int opt_basis_init(struct opt_basis *b, const struct opt_projector *c, const struct tr_param *p, enum tr_category category)
{
    int64_t m = tr_rows(&p->value), n = tr_cols(&p->value);
    struct opt_sides d = opt_sides_of(c, m, n);
    if (d.left) TR_TRY(tr_tensor_new(&b->left, category, TR_F32, TR_DIMS(m, d.r)));
    return d.right ? tr_tensor_new(&b->right, category, TR_F32, TR_DIMS(d.r, n)) : TR_OK;
}

int opt_low_new(struct tr_tensor *t, enum tr_dtype dtype, const struct opt_basis *b, const struct tr_param *p)
{
    int64_t rows = b->left.ndim ? tr_cols(&b->left) : tr_rows(&p->value), cols = b->right.ndim ? tr_rows(&b->right) : tr_cols(&p->value);
    return tr_tensor_new(t, TR_OPTIMIZER, dtype, TR_DIMS(rows, cols));
}

int opt_basis_list(struct opt_basis *b, struct opt_lister *l)
{
    TR_TRY(opt_list_tensor(l, "projection_left", &b->left));
    return opt_list_tensor(l, "projection_right", &b->right);
}

/* Given as [N,R] where P is [R,N]. */
static int turn(struct tr_tensor *p, const struct tr_tensor *given)
{
    int64_t r = tr_rows(p), n = tr_cols(p);
    float *from = calloc((size_t)(r * n) * 2, sizeof *from), *to = from + r * n;
    if (!from) return tr_fail(TR_EFAIL, "no memory for a projection");
    tr_tensor_read(given, from);
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < n; j++) to[i * n + j] = from[j * r + i];
    tr_tensor_write(p, to);
    free(from);
    return TR_OK;
}

static int take_given(struct tr_tensor *p, const struct opt_step *s, bool right, bool full, int64_t k)
{
    struct tr_tensor given;
    TR_TRY(s->given->get(s->given->self, !full ? "projection" : right ? "projection_right" : "projection_left", k, &given));
    if (given.ndim == 2 && given.dim[0] == p->dim[0] && given.dim[1] == p->dim[1]) {
        tr_kernels()->copy(p, &given);
        return TR_OK;
    }
    if (full && right && given.ndim == 2 && given.dim[0] == p->dim[1] && given.dim[1] == p->dim[0]) return turn(p, &given);
    return tr_fail(TR_EINPUT, "a projection of '%s' has another shape than [%d, %d]", s->p->name, (int)p->dim[0], (int)p->dim[1]);
}

int opt_singular_vectors(struct tr_tensor *p, int svd, const struct opt_step *s, bool right, const struct tr_tensor *old, int64_t k)
{
    if (svd == OPT_EXACT) return tr_singular_vectors(p, s->grad, right, old);
    return tr_random_range(p, s->grad, right, old, tr_key(s->seed, TR_RNG_PROJECTION, tr_hash(s->p->name), (uint64_t)(2 * k + right)));
}

static int refresh(struct tr_tensor *p, const struct opt_projector *c, const struct opt_step *s, bool right, bool full, int64_t k)
{
    struct tr_tensor fresh = { 0 };
    if (s->given) return take_given(p, s, right, full, k);
    TR_TRY(tr_tensor_arena(&fresh, TR_WORKSPACE, TR_F32, 2, p->dim, 0));
    int rc = opt_singular_vectors(&fresh, c->svd, s, right, k > 0 ? p : NULL, k);
    if (rc == TR_OK) tr_kernels()->copy(p, &fresh);
    tr_tensor_release(&fresh);
    return rc;
}

bool opt_basis_due(const struct opt_projector *c, int64_t t) { return (t - 1) % c->update_gap == 0; }

static int refresh_due(struct opt_basis *b, const struct opt_projector *c, const struct opt_step *s)
{
    bool full = b->left.ndim && b->right.ndim;
    int64_t k = (s->t - 1) / c->update_gap;
    if (!opt_basis_due(c, s->t)) return TR_OK;
    if (b->left.ndim) TR_TRY(refresh(&b->left, c, s, false, full, k));
    return b->right.ndim ? refresh(&b->right, c, s, true, full, k) : TR_OK;
}

void opt_basis_shape(const struct opt_projector *c, int64_t m, int64_t n, int64_t dim[2])
{
    struct opt_sides d = opt_sides_of(c, m, n);
    dim[0] = d.left ? d.r : m;
    dim[1] = d.right ? d.r : n;
}

static int down(const struct opt_basis *b, struct tr_tensor *low, const struct tr_tensor *g)
{
    struct tr_tensor half = { 0 };
    int rc;
    if (!b->left.ndim) return tr_gemm_f32(low, 1, g, false, &b->right, true, 0);
    if (!b->right.ndim) return tr_gemm_f32(low, 1, &b->left, true, g, false, 0);
    TR_TRY(tr_tensor_arena(&half, TR_WORKSPACE, TR_F32, TR_DIMS(tr_rows(low), tr_cols(g)), 0));
    TR_GO(tr_gemm_f32(&half, 1, &b->left, true, g, false, 0));
    TR_GO(tr_gemm_f32(low, 1, &half, false, &b->right, true, 0));
done:
    tr_tensor_release(&half);
    return rc;
}

int opt_project_down(struct tr_tensor *low, struct opt_basis *b, const struct opt_projector *c, const struct opt_step *s)
{
    int64_t dim[2];
    if (s->low) {
        *low = *s->grad;
        low->owner = 0;
        return TR_OK;
    }
    TR_TRY(refresh_due(b, c, s));
    opt_basis_shape(c, tr_rows(s->grad), tr_cols(s->grad), dim);
    TR_TRY(tr_tensor_arena(low, TR_WORKSPACE, TR_F32, 2, dim, 0));
    return down(b, low, s->grad);
}

int opt_basis_visit(void *state, struct opt_lister *l) { return opt_basis_list(state, l); }
int opt_basis_project_state(const void *config, const void *state, struct tr_tensor *low, const struct tr_tensor *g) { return down(state, low, g); }

static int back(struct tr_tensor *g, const struct opt_basis *b, const struct tr_tensor *low)
{
    struct tr_tensor half = { 0 };
    int rc;
    if (!b->left.ndim) return tr_gemm_f32(g, 1, low, false, &b->right, false, 0);
    if (!b->right.ndim) return tr_gemm_f32(g, 1, &b->left, false, low, false, 0);
    TR_TRY(tr_tensor_arena(&half, TR_WORKSPACE, TR_F32, TR_DIMS(tr_rows(low), tr_cols(g)), 0));
    TR_GO(tr_gemm_f32(&half, 1, low, false, &b->right, false, 0));
    TR_GO(tr_gemm_f32(g, 1, &b->left, false, &half, false, 0));
done:
    tr_tensor_release(&half);
    return rc;
}

int opt_project_back(const struct opt_step *s, const struct opt_basis *b, const struct tr_tensor *low, const struct tr_apply *a)
{
    struct tr_tensor whole = { 0 }, *g = s->low ? &whole : s->grad; /* what is left of the gradient holds the step */
    int rc;
    if (s->low) TR_TRY(tr_tensor_arena(&whole, TR_WORKSPACE, TR_F32, TR_DIMS(tr_rows(&s->p->value), tr_cols(&s->p->value)), 0));
    TR_GO(back(g, b, low));
    tr_updates()->apply(&s->p->value, g, a);
done:
    tr_tensor_release(&whole);
    return rc;
}
