/* AdamW's settings and state, for kinds that give it to some layers at a time. Private to this room. */
#ifndef OPT_ADAMW_H
#define OPT_ADAMW_H
#include "optim/kinds.h"

struct opt_adamw_config { struct opt_base base; double beta1, beta2, eps; bool correct_bias; };
struct opt_adamw_state { struct tr_tensor m, v; uint64_t t; };

/* Rows of an option table that begins with a struct opt_adamw_config: torch's defaults. */
#define OPT_ADAMW_OPTIONS \
    { "weight_decay", TR_OPT_REAL, offsetof(struct opt_adamw_config, base.weight_decay), "0.01", 0, 1e6, NULL, "decoupled: W shrinks by lr times this before the update" }, \
    { "beta1", TR_OPT_REAL, offsetof(struct opt_adamw_config, beta1), "0.9", 0, 0.999999999, NULL, "of the first moment" }, \
    { "beta2", TR_OPT_REAL, offsetof(struct opt_adamw_config, beta2), "0.999", 0, 0.999999999, NULL, "of the second moment" }, \
    { "eps", TR_OPT_REAL, offsetof(struct opt_adamw_config, eps), "1e-8", 0, 1, NULL, "added to the corrected root" }

int opt_adamw_init(const void *config, void *state, const struct tr_param *p);
int opt_adamw_update(const void *config, void *state, const struct opt_step *s);   /* torch's order */
int opt_adamw_visit(void *state, struct opt_lister *l);
size_t opt_adamw_bytes(const void *config, int64_t m, int64_t n);

#endif
