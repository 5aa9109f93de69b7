/* The members of a comparison: one recipe through several optimizers, each a run of its own in a sub-folder. */
#ifndef RECIPE_COMPARE_H
#define RECIPE_COMPARE_H
#include "recipes/forecast.h"
#include "recipes/metrics.h"
#include "recipes/recipe.h"
#include "recipes/trace.h"

enum member_state { MEMBER_WAITING, MEMBER_STOPPED, MEMBER_FAILED, MEMBER_COMPLETE };

struct member {
    char *name;
    int place;                     /* in the list that was given: its colour */
    struct recipe r;
    bool same;                     /* its folder is of a run of this very recipe */
    enum member_state state;
    int code;                      /* of a failure */
    char why[1024];                /* its message */
    /* what its folder holds of this recipe */
    struct metrics_row *rows;
    size_t n;
    struct metrics_sum sum;
    struct forecast_note plan;
    struct trace_columns trace;
};

struct comparison {
    char *dir, *title;             /* the recipe's run folder and name */
    struct member *m, **order;     /* as given; best first */
    size_t n;
    bool valid;                    /* members are judged by validation loss, else by the mean training loss at the end */
};

/* The number by which members are ordered; NAN when a member has none. */
double member_loss(const struct comparison *c, const struct member *m);
/* "", "stopped at step 12", "failed at step 3" or "not run yet". */
void member_remark(char *out, size_t size, const struct member *m);

/* Writes compare.html, compare.csv, curves.csv, memory.csv and the pictures as .svg into the folder of the comparison. */
int compare_write(const struct comparison *c);

#endif
