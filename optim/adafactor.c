/* Adafactor and AdaLOMO: second moments of a matrix from its row and column means. State: [O] and [C] in f32 (a vector: its
 * second moment), and a first moment [O,C] where beta1 is set. Letters: G [O,C], R = rms(W) before the step. */
#include "optim/adafactor.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include <math.h>
#include <stdlib.h>

static const struct tr_option options[] = { OPT_ADAFACTOR_OPTIONS(opt_adafactor, ), OPT_ADAFACTOR_RATE_OPTIONS(opt_adafactor, , "0"), OPT_END };
static const struct tr_option lomo_options[] = { OPT_ADAFACTOR_OPTIONS(opt_adafactor, ), OPT_END };

int opt_adafactor_init(const struct opt_adafactor *c, struct opt_adafactor_state *s, int ndim, const int64_t *dim)
{
    TR_TRY(tr_tensor_new(&s->col, TR_OPTIMIZER, TR_F32, TR_DIMS(dim[ndim - 1])));
    if (ndim > 1) TR_TRY(tr_tensor_new(&s->row, TR_OPTIMIZER, TR_F32, TR_DIMS(dim[0])));
    return c->beta1 > 0 ? tr_tensor_new(&s->m, TR_OPTIMIZER, TR_F32, ndim, dim) : TR_OK;
}

static int init(const void *config, void *state, const struct tr_param *p) { return opt_adafactor_init(config, state, p->value.ndim, p->value.dim); }

static double rms(const struct tr_tensor *x) { return sqrt(tr_kernels()->sum_squares(x) / (double)tr_count(x)); }

/* One side: the state takes the means of g^2 + eps1 along `axis`; f = 1 / sqrt(state), times sqrt(mean of the state) for rows. */
static int side(struct tr_tensor *f, struct tr_tensor *kept, const struct tr_tensor *g, int axis, double b, double eps1)
{
    int64_t n = tr_count(kept), over = axis == 0 ? tr_cols(g) : tr_rows(g);
    float *host = calloc((size_t)n * 2, sizeof *host), *old = host + n;
    if (!host) return tr_fail(TR_EFAIL, "no memory for the factors of a matrix");
    int rc = tr_tensor_arena(f, TR_WORKSPACE, TR_F32, TR_DIMS(n), 0);
    if (rc == TR_OK) {
        double sum = 0;
        tr_updates()->norms(f, g, axis);
        tr_tensor_read(f, host);
        tr_tensor_read(kept, old);
        for (int64_t i = 0; i < n; i++) {
            old[i] = (float)(b * (double)old[i] + (1 - b) * ((double)host[i] * (double)host[i] / (double)over + eps1));
            sum += (double)old[i];
        }
        double mean = axis == 0 ? sum / (double)n : 1;
        for (int64_t i = 0; i < n; i++) host[i] = (float)sqrt(mean / (double)old[i]);
        tr_tensor_write(kept, old);
        tr_tensor_write(f, host);
    }
    free(host);
    return rc;
}

/* g becomes d, the direction before clipping. */
static int direction(const struct opt_adafactor *c, struct opt_adafactor_state *st, struct tr_tensor *g, double b)
{
    struct tr_tensor fr = { 0 }, fc = { 0 };
    if (!st->row.ndim) {
        tr_updates()->root_direction(g, &st->col, (float)b, (float)c->eps1);
        return TR_OK;
    }
    int rc = side(&fr, &st->row, g, 0, b, c->eps1);
    if (rc == TR_OK) rc = side(&fc, &st->col, g, 1, b, c->eps1);
    if (rc == TR_OK) tr_updates()->scale_outer(g, &fr, &fc);
    tr_tensor_release(&fc);
    tr_tensor_release(&fr);
    return rc;
}

int opt_adafactor_direction(const struct opt_adafactor *c, struct opt_adafactor_state *st, struct tr_tensor *g, const struct tr_tensor *w,
                            double base_lr, bool scaled, double *lr, double *rate)
{
    double t = (double)++st->t, b = 1 - pow(t, c->decay_rate);
    *lr = c->relative_step ? fmin(c->warmup_init ? 1e-6 * t : 1e-2, 1 / sqrt(t)) : base_lr;
    if (scaled) *lr *= fmax(c->eps2, rms(w));
    TR_TRY(direction(c, st, g, b));
    *rate = *lr / fmax(1, rms(g) / c->clip_threshold);
    if (!st->m.ndim) return TR_OK;
    tr_updates()->momentum(g, &st->m, (float)c->beta1, (float)((1 - c->beta1) * *rate), 0, 1);
    *rate = 1;
    return TR_OK;
}

static int step(const struct opt_adafactor *c, struct opt_adafactor_state *st, const struct opt_step *s, bool scaled)
{
    double lr, rate;
    TR_TRY(opt_adafactor_direction(c, st, s->grad, &s->p->value, s->lr, scaled, &lr, &rate));
    struct tr_apply a = { (float)(1 - lr * c->base.weight_decay), (float)rate, 1, opt_rounding(s) };
    tr_updates()->apply(&s->p->value, s->grad, &a);
    return TR_OK;
}

static int update(const void *config, void *state, const struct opt_step *s) { return step(config, state, s, ((const struct opt_adafactor *)config)->scale_parameter); }
static int update_lomo(const void *config, void *state, const struct opt_step *s) { return step(config, state, s, true); }

int opt_adafactor_list(struct opt_adafactor_state *s, struct opt_lister *l)
{
    TR_TRY(opt_list_tensor(l, "row", &s->row));
    TR_TRY(opt_list_tensor(l, "col", &s->col));
    TR_TRY(opt_list_tensor(l, "m", &s->m));
    return opt_list_words(l, "t", &s->t, 1);
}

static int visit(void *state, struct opt_lister *l) { return opt_adafactor_list(state, l); }

size_t opt_adafactor_bytes(const struct opt_adafactor *c, int64_t m, int64_t n, bool matrix)
{
    return 4 * (size_t)(matrix ? m + n : n) + (c->beta1 > 0 ? 4 * (size_t)(m * n) : 0);
}

static size_t bytes(const void *config, int64_t m, int64_t n) { return opt_adafactor_bytes(config, m, n, m > 1); }

#define KIND .config_size = sizeof(struct opt_adafactor), .state_size = sizeof(struct opt_adafactor_state), .init = init, .visit = visit, .bytes = bytes
const struct opt_kind opt_adafactor = {
    KIND, .name = "adafactor", .summary = "second moments from row and column means: almost no state", .source = "Shazeer and Stern 2018, Adafactor; transformers",
    .rule = "b = 1 - t^decay_rate; row, col = means of g^2 + eps1; d = g / (sqrt(row/mean(row)) sqrt(col)); d = d / max(1, rms(d)/clip_threshold); W = (1 - lr decay) W - lr d",
    .options = options, .update = update,
};
const struct opt_kind opt_adalomo = {
    KIND, .name = "adalomo", .summary = "Adafactor's step at a rate relative to the weight, inside backward", .source = "Lv et al. 2023, AdaLOMO; lomo-optim",
    .rule = "d as adafactor; lr_t = lr max(eps2, rms(W)); W = (1 - lr_t decay) W - lr_t d. Gradients live one at a time with memory.fused_update",
    .options = lomo_options, .update = update_lomo,
};
