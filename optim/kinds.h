/* The family. Private to this room. */
#ifndef OPT_KINDS_H
#define OPT_KINDS_H
#include "libtrain/kernel/update.h"
#include "optim/optim.h"

extern const struct opt_kind opt_sgd, opt_signsgd, opt_adamw, opt_adamw_hf, opt_adamw_8bit, opt_adafactor, opt_lion, opt_lomo, opt_adalomo, opt_galore,
    opt_galore_8bit, opt_galore_adafactor, opt_natural_galore, opt_apollo, opt_apollo_mini, opt_q_apollo, opt_frugal, opt_frugal_lion, opt_frugal_sgd, opt_sophia_g, opt_sophia_h,
    opt_badam, opt_lisa, opt_muon, opt_muon_aux, opt_soap, opt_cosmos,
    opt_zo_sgd, opt_zo_sgd_sign, opt_zo_sgd_momentum, opt_zo_sgd_conservative, opt_zo_adam, opt_forward_gradient;

#define OPT_END { NULL, TR_OPT_INT, 0, NULL, 0, 0, NULL, NULL }

/* What weights and moments of fewer bits are rounded with; bytes of an element of a moment. */
struct tr_noise opt_rounding(const struct opt_step *s);
struct tr_noise opt_moment_rounding(const struct opt_step *s);
size_t opt_moment_size(const void *config);

/* 1 - beta^t without loss of digits for small 1 - beta. */
double opt_correction(double beta, int64_t t);

#endif
