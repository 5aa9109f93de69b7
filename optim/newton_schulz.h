/* The orthogonal factor of a matrix by Newton-Schulz steps. Private to this room. */
#ifndef OPT_NEWTON_SCHULZ_H
#define OPT_NEWTON_SCHULZ_H
#include "optim/kinds.h"

struct opt_newton_schulz { double a, b, c, eps; int64_t steps; };

#define OPT_NEWTON_SCHULZ_OPTIONS(T, FIELD) \
    { "ns_steps", TR_OPT_INT, offsetof(struct T, FIELD.steps), "5", 1, 100, NULL, "Newton-Schulz steps" }, \
    { "ns_a", TR_OPT_REAL, offsetof(struct T, FIELD.a), "3.4445", -100, 100, NULL, "X = a X + (b A + c A^2) X with A = X X^T" }, \
    { "ns_b", TR_OPT_REAL, offsetof(struct T, FIELD.b), "-4.7750", -100, 100, NULL, "its second number" }, \
    { "ns_c", TR_OPT_REAL, offsetof(struct T, FIELD.c), "2.0315", -100, 100, NULL, "its third number" }, \
    { "ns_eps", TR_OPT_REAL, offsetof(struct T, FIELD.eps), "1e-7", 0, 1, NULL, "added to the norm that X is divided by first" }

/* x (f32 [M,N], rows maybe longer) in place; work in the arena: another x and two squares of the smaller side.
 * Source: Jordan et al. 2024, Muon. */
int opt_orthogonalise(struct tr_tensor *x, const struct opt_newton_schulz *c);

#endif
