/* The rules of optimizers over the launches. */
#include "libtrain/kernel/cuda/table_impl.h"

typedef struct tr_tensor T;
#define mat tr_cuda_mat
#define at tr_cuda_at

static struct tr_cuda_step step_of(const struct tr_apply *a)
{
    return (struct tr_cuda_step){ a->before, a->rate, a->after, a->noise, mat(a->draws), a->published_grid };
}

/* The betas in double until 1 - beta is rounded once. */
static struct tr_cuda_moments moments(const struct tr_adam *h)
{
    return (struct tr_cuda_moments){ (float)h->beta1, (float)(1 - h->beta1), (float)h->beta2, (float)(1 - h->beta2), h->root, h->eps, h->noise };
}

static struct tr_cuda_signs signs(const struct tr_sign *h) { return (struct tr_cuda_signs){ h->step_m, h->step_g, h->keep_m, h->keep_g, h->noise }; }

static struct tr_cuda_direction direction(const struct tr_direction *z)
{
    return (struct tr_cuda_direction){ z->key, z->mask, z->zeros, z->first, z->given ? at(z->given) : NULL };
}

/* Groups that run through the whole matrix, a row for each. */
static struct tr_mat by_group(struct tr_mat m, int64_t group)
{
    m.rows = m.rows * m.cols / group, m.cols = m.ld = group, m.groups = 1;
    return m;
}

static void cu_apply(T *w, const T *g, const struct tr_apply *a)
{
    if (!w->quant.flat) {
        RUN(apply, mat(w), mat(g), step_of(a));
        return;
    }
    struct tr_cuda_step flat = step_of(a);
    flat.draws = by_group(flat.draws, w->quant.group);
    RUN(apply, by_group(mat(w), w->quant.group), by_group(mat(g), w->quant.group), flat);
}

static void cu_apply_scaled(T *w, const T *g, const T *f, int axis, const struct tr_apply *a) { RUN(apply_scaled, mat(w), mat(g), at(f), axis, step_of(a)); }

static void cu_adam(T *w, T *m, T *v, const T *g, const struct tr_adam *h, const struct tr_apply *a)
{
    RUN(adam, mat(w), mat(m), mat(v), mat(g), moments(h), step_of(a));
}

static void cu_adam_direction(T *u, T *m, T *v, const T *g, const struct tr_adam *h) { RUN(adam_direction, mat(u), mat(m), mat(v), mat(g), moments(h)); }

static void cu_sgd(T *w, T *b, const T *g, float decay, float momentum, float keep, bool nesterov, bool first, const struct tr_apply *a)
{
    RUN(sgd, mat(w), mat(b), mat(g), ((struct tr_cuda_velocity){ decay, momentum, keep, nesterov, first }), step_of(a));
}

static void cu_norms(T *n, const T *x, int axis) { RUN(norms, at(n), mat(x), axis); }
static void cu_sign(T *w, T *m, const T *g, const struct tr_sign *h, const struct tr_apply *a) { RUN(sign, mat(w), mat(m), mat(g), signs(h), step_of(a)); }
static void cu_clamp(T *g, float limit) { RUN(clamp, mat(g), limit); }
static void cu_momentum(T *g, T *m, float keep_m, float keep_g, float out_g, float out_m) { RUN(momentum, mat(g), mat(m), keep_m, keep_g, out_g, out_m); }
static void cu_scale_outer(T *g, const T *row, const T *col) { RUN(scale_outer, mat(g), at(row), at(col)); }
static void cu_root_direction(T *g, T *v, float beta, float eps) { RUN(root_direction, mat(g), mat(v), beta, eps); }

static void cu_adam_8bit(T *g, T *m, T *v, T *m_most, T *v_most, const struct tr_adam *h)
{
    struct tr_cuda_books books;
    memcpy(books.with_sign, tr_book_8bit(true)->value, sizeof books.with_sign);
    memcpy(books.positive, tr_book_8bit(false)->value, sizeof books.positive);
    RUN(adam_8bit, mat(g), at(m), at(v), at(m_most), at(v_most), &books, moments(h));
}

static void cu_sign_scale(T *g, float factor) { RUN(sign_scale, mat(g), factor); }
static void cu_pick(T *low, const T *g, const T *index, int axis) { RUN(pick, mat(low), mat(g), at(index), axis); }
static void cu_place(T *g, const T *low, const T *index, int axis, float factor) { RUN(place, mat(g), mat(low), at(index), axis, factor); }
static void cu_lion_direction(T *u, T *m, const struct tr_sign *h) { RUN(lion_direction, mat(u), mat(m), signs(h)); }
static void cu_cut_step(T *g, const T *h, float scale, float eps) { RUN(cut_step, mat(g), mat(h), scale, eps); }
static void cu_cut_ratio(T *g, const T *h, float eps, float most) { RUN(cut_ratio, mat(g), mat(h), eps, most); }
static void cu_move(T *w, float before, float scale, const struct tr_direction *z) { RUN(move, mat(w), before, scale, direction(z)); }
static void cu_weigh(T *g, float scale, const struct tr_direction *z) { RUN(weigh, mat(g), scale, direction(z)); }
static void cu_mean_squares(T *h, const T *g, float keep, float take) { RUN(mean_squares, mat(h), mat(g), keep, take); }

const struct tr_updates tr_cuda_updates = {
    .apply = cu_apply, .apply_scaled = cu_apply_scaled, .adam = cu_adam, .adam_direction = cu_adam_direction, .sgd = cu_sgd, .norms = cu_norms,
    .sign = cu_sign, .clamp = cu_clamp, .momentum = cu_momentum, .scale_outer = cu_scale_outer, .root_direction = cu_root_direction,
    .adam_8bit = cu_adam_8bit, .sign_scale = cu_sign_scale, .pick = cu_pick, .place = cu_place, .lion_direction = cu_lion_direction,
    .cut_step = cu_cut_step, .cut_ratio = cu_cut_ratio, .move = cu_move, .weigh = cu_weigh, .mean_squares = cu_mean_squares,
};
