/* The settings behind the keys of [optimizer] and its groups. Private to this room. */
#ifndef OPT_SETTINGS_H
#define OPT_SETTINGS_H
#include "optim/kinds.h"

/* Keys that every kind has. */
struct opt_common { char *name, *exclude; double lr_scale; bool decay_vectors; int state_dtype; };

/* A configuration in use: of the whole run, of its `rest`, or of a group. */
struct opt_setting {
    char *match;                  /* patterns; NULL for the base */
    struct opt_common common;
    const struct opt_kind *kind;
    void *config, *no_decay;      /* the same without weight decay, for vectors */
    const struct opt_kind *rest;
    void *rest_config, *rest_no_decay;
};

struct opt_settings { struct opt_setting *s; size_t n; };   /* groups in order, the base last */

/* Checks every key; errors TR_EINPUT with the place. */
int opt_settings_build(struct opt_settings *all, const struct opt_entry *e, size_t n, const char *path);
/* A rank that was asked for (by one of e) and is above `most`, the largest smaller side of the matrices that take it: TR_EINPUT. */
int opt_rank_check(const struct opt_setting *s, int64_t most, const struct opt_entry *e, size_t n);
void opt_settings_release(struct opt_settings *all);
/* A copy whose decay is 0. Texts stay the original's. */
int opt_without_decay(void **out, const struct opt_kind *k, const void *config);

#endif
