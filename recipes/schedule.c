/* Learning-rate schedules: linear warm-up to lr, then constant, linear or cosine to min_lr at the last step, or wsd
 * (constant, and linear to min_lr over the last fifth). */
#include "recipes/job.h"
#include <math.h>

double job_lr(const struct recipe *r, int64_t steps, int64_t k)
{
    double lr = r->train.lr, min = r->train.min_lr;
    int64_t warmup = r->train.warmup;
    if (k < warmup) return lr * (double)(k + 1) / (double)warmup;
    double done = steps > warmup ? (double)(k - warmup) / (double)(steps - warmup) : 0;
    if (done > 1) done = 1;
    switch (r->train.schedule) {
    case RECIPE_LINEAR: return min + (lr - min) * (1 - done);
    case RECIPE_COSINE: return min + (lr - min) * 0.5 * (1 + cos(M_PI * done));
    case RECIPE_WSD: return done < 0.8 ? lr : min + (lr - min) * (1 - done) / 0.2;
    default: return lr;
    }
}
