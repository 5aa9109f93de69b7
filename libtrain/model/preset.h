/* Shapes by name. */
#ifndef TR_PRESET_H
#define TR_PRESET_H
#include "libtrain/model/model.h"

/* What an architecture implies before any number is known: biases, ties, epsilons. Sizes are 0. */
struct tr_shape tr_shape_default(enum tr_arch arch);
/* The shape of a preset. Errors: TR_EINPUT with the nearest name. */
int tr_shape_preset(struct tr_shape *s, const char *name);

#endif
