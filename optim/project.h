/* Subspaces of a matrix gradient from its singular vectors. Private to this room.
 * Letters: G[M,N], rank R. Right: P[R,N], low = G P^T [M,R]; left: P[M,R], low = P^T G [R,N]; full: A[M,R], B[R,N],
 * low = A^T G B^T [R,R]. */
#ifndef OPT_PROJECT_H
#define OPT_PROJECT_H
#include "optim/kinds.h"

enum { OPT_EXACT, OPT_RANDOM };
enum { OPT_STD, OPT_REVERSE_STD, OPT_RIGHT, OPT_LEFT, OPT_FULL };

/* Part of a configuration. std compresses the shorter side; a rank above it counts as it. */
struct opt_projector { int64_t rank, update_gap; int proj_type, svd; double scale; };

#define OPT_PROJECTOR_OPTIONS(T, FIELD, TYPE, TYPES) \
    { "rank", TR_OPT_INT, offsetof(struct T, FIELD.rank), "128", 1, 1 << 20, NULL, "of the subspace; at most the smaller side counts" }, \
    { "update_gap", TR_OPT_INT, offsetof(struct T, FIELD.update_gap), "200", 1, 1e15, NULL, "updates between two decompositions" }, \
    { "scale", TR_OPT_REAL, offsetof(struct T, FIELD.scale), "0.25", 0, 1e9, NULL, "multiplies the step that comes back from the subspace" }, \
    { "proj_type", TR_OPT_CHOICE, offsetof(struct T, FIELD.proj_type), TYPE, 0, 0, TYPES, "sides that are projected; std compresses the shorter one" }, \
    OPT_SVD_OPTION(T, FIELD.svd)
#define OPT_SVD_OPTION(T, FIELD) \
    { "svd", TR_OPT_CHOICE, offsetof(struct T, FIELD), "exact", 0, 0, "exact|random", "how singular vectors are found; random: nearly the same, much faster where rank is far below the smaller side" }
#define OPT_PROJ_TYPES "std|reverse_std|right|left|full"

struct opt_sides { int64_t r; bool left, right; };
struct opt_sides opt_sides_of(const struct opt_projector *c, int64_t m, int64_t n);
int64_t opt_low_count(struct opt_sides d, int64_t m, int64_t n);
size_t opt_basis_bytes(struct opt_sides d, int64_t m, int64_t n);

/* The first R singular vectors of s->grad, as `svd` says; k: which refresh. See linalg.h; old: NULL at the first. */
int opt_singular_vectors(struct tr_tensor *p, int svd, const struct opt_step *s, bool right, const struct tr_tensor *old, int64_t k);

/* Part of a state: one or both bases, f32. */
struct opt_basis { struct tr_tensor left, right; };
int opt_basis_init(struct opt_basis *b, const struct opt_projector *c, const struct tr_param *p, enum tr_category category);
/* Zeroed tensor shaped like low, for moments. */
int opt_low_new(struct tr_tensor *t, enum tr_dtype dtype, const struct opt_basis *b, const struct tr_param *p);
int opt_basis_list(struct opt_basis *b, struct opt_lister *l);
/* Whether update t (from 1) has a refresh. */
bool opt_basis_due(const struct opt_projector *c, int64_t t);
/* *low = projection of the gradient, after new bases from it where they are due (given ones may be [N,R] on the right); or s->grad
 * itself where it came projected. The caller releases it. */
int opt_project_down(struct tr_tensor *low, struct opt_basis *b, const struct opt_projector *c, const struct opt_step *s);
/* The weight moves by back(low), see struct tr_apply. */
int opt_project_back(const struct opt_step *s, const struct opt_basis *b, const struct tr_tensor *low, const struct tr_apply *a);
/* For struct opt_low: the shape of low; and its functions for states that begin with a basis. */
void opt_basis_shape(const struct opt_projector *c, int64_t m, int64_t n, int64_t dim[2]);
int opt_basis_visit(void *state, struct opt_lister *l);
int opt_basis_project_state(const void *config, const void *state, struct tr_tensor *low, const struct tr_tensor *g);

#endif
