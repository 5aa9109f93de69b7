/* Loops of optimizers over weights, state and gradients: one pass over memory each. Weights f32 or bf16 [O,C] or [C],
 * gradients f32 with rows maybe longer, moments f32 or bf16, dense. A weight in bf16 is rounded stochastically, so that
 * updates below its precision are not lost. */
#ifndef TR_UPDATE_H
#define TR_UPDATE_H
#include "libtrain/kernel/rounding.h"
#include "libtrain/tensor/tensor.h"

/* w = (before w - rate x) after, where x is what the rule says; bias corrections are folded into rate and root. Of int8 weights
 * only: draws are f32 uniforms of the weight's shape instead of the noise, published_grid as kernel/rounding.h says. */
struct tr_apply { float before, rate, after; struct tr_noise noise; const struct tr_tensor *draws; bool published_grid; };

/* u = m / (sqrt(v) root + eps). The betas in double: 1 - beta is rounded once, as other programs do. Moments in bf16 are
 * rounded with `noise` as weights are. */
struct tr_adam { double beta1, beta2; float root, eps; struct tr_noise noise; };

/* Sign rules: x = sign(step_m m + step_g g), m = keep_m m + keep_g g; noise as above. */
struct tr_sign { float step_m, step_g, keep_m, keep_g; struct tr_noise noise; };

/* State in 8 bits: blocks of so many elements, row after row, each element a code, each block with its largest magnitude.
 * The codes' 256 values are sorted, between -1 and 1 (with signs) or 0 and 1 (bitsandbytes' dynamic map, 2021). */
enum { TR_BLOCK_8BIT = 256 };
struct tr_book { float value[256], middle[255]; };   /* middle: where the nearest value changes */
const struct tr_book *tr_book_8bit(bool with_sign);

/* A direction: element i of a parameter is the standard normal at i of `key`, 0 where the uniform at i of `mask` is below
 * `zeros`; or `given` (f32, the parameter's shape). first: which element of the parameter the tensor begins with. */
struct tr_direction { struct tr_key key, mask; double zeros; int64_t first; const struct tr_tensor *given; };

struct tr_updates {
    /* x = g */
    void (*apply)(struct tr_tensor *w, const struct tr_tensor *g, const struct tr_apply *a);
    /* x = g f[row] (axis 0) or g f[column] (axis 1) */
    void (*apply_scaled)(struct tr_tensor *w, const struct tr_tensor *g, const struct tr_tensor *f, int axis, const struct tr_apply *a);
    /* m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, x = u */
    void (*adam)(struct tr_tensor *w, struct tr_tensor *m, struct tr_tensor *v, const struct tr_tensor *g, const struct tr_adam *h, const struct tr_apply *a);
    /* The same without a weight: u out (may be g). */
    void (*adam_direction)(struct tr_tensor *u, struct tr_tensor *m, struct tr_tensor *v, const struct tr_tensor *g, const struct tr_adam *h);
    /* g = g + decay w; then b = momentum b + keep g (first: b = g); x = nesterov ? g + momentum b : b. b NULL: x = g. */
    void (*sgd)(struct tr_tensor *w, struct tr_tensor *b, const struct tr_tensor *g, float decay, float momentum, float keep, bool nesterov, bool first, const struct tr_apply *a);
    /* n[i] = norm of row i (axis 0) or column i (axis 1) of x; f32, summed in double by rows or fixed row blocks */
    void (*norms)(struct tr_tensor *n, const struct tr_tensor *x, int axis);
    /* m NULL: x = sign(g) */
    void (*sign)(struct tr_tensor *w, struct tr_tensor *m, const struct tr_tensor *g, const struct tr_sign *h, const struct tr_apply *a);
    /* ---- in place on a gradient */
    void (*clamp)(struct tr_tensor *g, float limit);
    /* m = keep_m m + keep_g g, then g = out_g g + out_m m */
    void (*momentum)(struct tr_tensor *g, struct tr_tensor *m, float keep_m, float keep_g, float out_g, float out_m);
    /* g = g row[r] col[c] */
    void (*scale_outer)(struct tr_tensor *g, const struct tr_tensor *row, const struct tr_tensor *col);
    /* v = beta v + (1 - beta) (g^2 + eps), g = g / sqrt(v) */
    void (*root_direction)(struct tr_tensor *g, struct tr_tensor *v, float beta, float eps);
    /* g = Adam's direction from moments in 8 bits: m, v u8 [count], m_most, v_most f32 [blocks]. g is f32. */
    void (*adam_8bit)(struct tr_tensor *g, struct tr_tensor *m, struct tr_tensor *v, struct tr_tensor *m_most, struct tr_tensor *v_most, const struct tr_adam *h);
    /* g = factor sign(g) */
    void (*sign_scale)(struct tr_tensor *g, float factor);
    /* Selected rows (axis 0, low [K,N]), columns (1, low [M,K]) or entries (2, low [K], numbered row after row): index i32 [K],
     * distinct. low = g's; g's = factor low. */
    void (*pick)(struct tr_tensor *low, const struct tr_tensor *g, const struct tr_tensor *index, int axis);
    void (*place)(struct tr_tensor *g, const struct tr_tensor *low, const struct tr_tensor *index, int axis, float factor);
    /* u = sign(step_m m + step_g u), m = keep_m m + keep_g u */
    void (*lion_direction)(struct tr_tensor *u, struct tr_tensor *m, const struct tr_sign *h);
    /* g = sign(g) min(1, |g| / (scale h + eps)) */
    void (*cut_step)(struct tr_tensor *g, const struct tr_tensor *h, float scale, float eps);
    /* g = sign(g) min(most, |g| / max(h, eps)) */
    void (*cut_ratio)(struct tr_tensor *g, const struct tr_tensor *h, float eps, float most);
    /* w = before w + scale z; w dense or with long rows, f32 (or bf16, rounded to nearest) */
    void (*move)(struct tr_tensor *w, float before, float scale, const struct tr_direction *z);
    /* g = scale g z; f32 */
    void (*weigh)(struct tr_tensor *g, float scale, const struct tr_direction *z);
    /* h = keep h + take g^2 */
    void (*mean_squares)(struct tr_tensor *h, const struct tr_tensor *g, float keep, float take);
};

/* In dry mode functions that do nothing. */
const struct tr_updates *tr_updates(void);

#endif
