/* A recorded run that is being replayed. Private to replay*.c. */
#ifndef RECIPE_REPLAY_IMPL_H
#define RECIPE_REPLAY_IMPL_H
#include "libtrain/base/h5.h"
#include "optim/optim.h"

struct recorded { struct tr_param *p; struct tr_tensor given[4]; int n_given; };

struct replay {
    struct tr_h5 *in, *out;
    const char *path, *unused;
    const struct opt_kind *kind;
    double lr;
    int64_t steps, draws;          /* draws: directions a step, of rules that learn from losses */
    struct opt_entry *entry;
    size_t n_entries;
    struct tr_param *param;
    struct recorded *rec;
    int64_t n, room;
};

/* *out = "param/NAME", with "/WHAT" behind it unless NULL. */
int replay_path(char **out, const char *name, const char *what);
/* One more parameter of the run (self: struct replay), as tr_h5_list calls. */
int replay_param(void *self, const char *name, bool is_group);
/* Row t of a dataset [steps, shape] of the parameter, into host memory. */
int replay_row(const struct replay *r, const struct tr_param *p, const char *what, int64_t t, float *host);
/* The weight after step t; host is room for it. */
int replay_write(struct replay *r, const struct tr_param *p, int64_t t, float *host);

/* Rules that learn from losses: which parameters move together, and all steps over the recorded objective, the sum over all
 * parameters of curvature (theta - target)^2 / 2 in double. */
int replay_blocks(struct replay *r);
int replay_losses(struct replay *r, struct opt *o);

#endif
