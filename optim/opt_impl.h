/* The optimizer of a run, opened. Private to this room. */
#ifndef OPT_OPT_IMPL_H
#define OPT_OPT_IMPL_H
#include "optim/offload.h"
#include "optim/settings.h"

/* first: rows of each rank, NULL where all is here; then `own` is this rank's rows and p the whole. block: among those that can
 * take turns, -1 for other layers; away: it is not its turn, there is no state. */
struct item { const struct opt_kind *kind; const void *config; void *state; struct tr_param *p; const int64_t *first; struct tr_param own; double lr_scale; int block; bool away; };
struct opt {
    struct opt_settings all;
    struct item *item;
    int64_t n;
    int blocks;
    uint64_t seed;
    double tokens, lr;
    bool projects;                 /* see struct opt_setup */
    struct tr_comm *comm, *sharers;
    int share_at;
    void (*leaves)(void *self, int64_t i);   /* see struct opt_setup */
    void *self;
    struct opt_offload *offload;   /* NULL: all state is in memory */
};

/* Finds the blocks of layers that can take turns. */
int opt_blocks(struct opt *o);
/* A state is made (where this rank has rows), or given back. */
int opt_item_make(struct opt *o, struct item *it);
void opt_item_release(struct opt *o, struct item *it);
/* kind->update with the state brought and given up again. */
int opt_item_update(struct opt *o, struct item *it, const struct opt_step *s);
/* Rules that learn from losses move f32 weights; beside rules that learn from gradients their parameters are frozen while those do. */
int opt_check_needs(const struct opt *o, const char *path);

#endif
