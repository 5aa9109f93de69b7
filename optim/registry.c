#include "optim/kinds.h"
#include <string.h>

const struct opt_kind *const opt_kinds[] = {
    &opt_sgd, &opt_signsgd, &opt_adamw, &opt_adamw_hf, &opt_adamw_8bit, &opt_adafactor, &opt_lion, &opt_lomo, &opt_adalomo,
    &opt_galore, &opt_galore_8bit, &opt_galore_adafactor, &opt_natural_galore, &opt_apollo, &opt_apollo_mini, &opt_q_apollo, &opt_frugal, &opt_frugal_lion, &opt_frugal_sgd, &opt_sophia_g, &opt_sophia_h,
    &opt_badam, &opt_lisa, &opt_muon, &opt_muon_aux, &opt_soap, &opt_cosmos,
    &opt_zo_sgd, &opt_zo_sgd_sign, &opt_zo_sgd_momentum, &opt_zo_sgd_conservative, &opt_zo_adam, &opt_forward_gradient,
    NULL,
};

const struct opt_kind *opt_find(const char *name)
{
    for (int i = 0; opt_kinds[i]; i++) {
        const char *a = opt_kinds[i]->name, *b = name;
        while (*a && (*a == *b || (*a == '-' && *b == '_'))) a++, b++;
        if (!*a && !*b) return opt_kinds[i];
    }
    return NULL;
}
