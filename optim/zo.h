/* Rules that learn from losses alone. Private to this room. */
#ifndef OPT_ZO_H
#define OPT_ZO_H
#include "libtrain/kernel/update.h"
#include "optim/kinds.h"

enum { OPT_ZO_DRAWS = 64 };
enum { OPT_TWO_SIDE, OPT_ONE_SIDE };
enum { OPT_WHOLE, OPT_COORDINATE, OPT_JOINT };

/* Part of a configuration, right behind its opt_base: how the losses are taken. */
struct opt_zo { double zo_eps, sparsity; int64_t q, resample; int mode, blockwise; bool conservative; };

/* What update gets instead of a gradient, in opt_step: g = sum of slope[i] z[i]. */
struct opt_slopes { double slope[OPT_ZO_DRAWS]; struct tr_direction z[OPT_ZO_DRAWS]; int64_t n; };

#endif
