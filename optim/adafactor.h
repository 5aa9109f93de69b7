/* Adafactor as part of other rules. Private to this room. Letters: G [O,C], R = rms(W) before the step. */
#ifndef OPT_ADAFACTOR_H
#define OPT_ADAFACTOR_H
#include "optim/kinds.h"

struct opt_adafactor {
    struct opt_base base;
    double eps1, eps2, clip_threshold, decay_rate, beta1;
    bool relative_step, scale_parameter, warmup_init;
};
/* A matrix has row and col, a vector its second moment in col; m where beta1 is set. */
struct opt_adafactor_state { struct tr_tensor row, col, m; uint64_t t; };

#define OPT_ADAFACTOR_OPTIONS(T, IN) \
    { "weight_decay", TR_OPT_REAL, offsetof(struct T, IN base.weight_decay), "0", 0, 1e6, NULL, "W shrinks by the scaled rate times this before the update" }, \
    { "eps1", TR_OPT_REAL, offsetof(struct T, IN eps1), "1e-30", 0, 1, NULL, "added to the squared gradient" }, \
    { "eps2", TR_OPT_REAL, offsetof(struct T, IN eps2), "1e-3", 0, 1, NULL, "least rms of a weight that the rate is scaled by" }, \
    { "clip_threshold", TR_OPT_REAL, offsetof(struct T, IN clip_threshold), "1", 1e-30, 1e30, NULL, "largest rms of a step before the rate" }, \
    { "decay_rate", TR_OPT_REAL, offsetof(struct T, IN decay_rate), "-0.8", -10, 0, NULL, "the second moment keeps 1 - t^this" }
#define OPT_ADAFACTOR_RATE_OPTIONS(T, IN, BETA1) \
    { "beta1", TR_OPT_REAL, offsetof(struct T, IN beta1), BETA1, 0, 0.999999999, NULL, "of a first moment; 0 = none" }, \
    { "relative_step", TR_OPT_BOOL, offsetof(struct T, IN relative_step), "false", 0, 0, NULL, "the rate is min(0.01, 1/sqrt(t)), train.lr is not used" }, \
    { "scale_parameter", TR_OPT_BOOL, offsetof(struct T, IN scale_parameter), "false", 0, 0, NULL, "the rate is scaled by max(eps2, R)" }, \
    { "warmup_init", TR_OPT_BOOL, offsetof(struct T, IN warmup_init), "false", 0, 0, NULL, "relative_step begins at 1e-6 t" }

int opt_adafactor_init(const struct opt_adafactor *c, struct opt_adafactor_state *s, int ndim, const int64_t *dim);
/* g becomes the direction d; *rate multiplies it (the first moment already holds the rate: then 1), *lr is the scaled rate
 * that decay uses. w: the weight whose rms scales the rate when `scaled`. */
int opt_adafactor_direction(const struct opt_adafactor *c, struct opt_adafactor_state *st, struct tr_tensor *g, const struct tr_tensor *w,
                            double base_lr, bool scaled, double *lr, double *rate);
int opt_adafactor_list(struct opt_adafactor_state *s, struct opt_lister *l);
size_t opt_adafactor_bytes(const struct opt_adafactor *c, int64_t m, int64_t n, bool matrix);

#endif
