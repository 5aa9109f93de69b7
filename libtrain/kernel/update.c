/* Plain C variant, the dry one, and the choice between all. */
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/kernel.h"
#include "train_config.h"
#define NAME(x) tr_update_ref_##x
#include "libtrain/kernel/update_tmpl.h"

typedef struct tr_tensor T;
static void dry_apply(T *w, const T *g, const struct tr_apply *a) {}
static void dry_scaled(T *w, const T *g, const T *f, int axis, const struct tr_apply *a) {}
static void dry_adam(T *w, T *m, T *v, const T *g, const struct tr_adam *h, const struct tr_apply *a) {}
static void dry_direction(T *u, T *m, T *v, const T *g, const struct tr_adam *h) {}
static void dry_sgd(T *w, T *b, const T *g, float d, float m, float k, bool n, bool f, const struct tr_apply *a) {}
static void dry_norms(T *n, const T *x, int axis) {}
static void dry_sign(T *w, T *m, const T *g, const struct tr_sign *h, const struct tr_apply *a) {}
static void dry_clamp(T *g, float limit) {}
static void dry_momentum(T *g, T *m, float km, float kg, float og, float om) {}
static void dry_outer(T *g, const T *row, const T *col) {}
static void dry_root(T *g, T *v, float beta, float eps) {}
static void dry_adam_8bit(T *g, T *m, T *v, T *mm, T *vm, const struct tr_adam *h) {}
static void dry_pick(T *low, const T *g, const T *index, int axis) {}
static void dry_place(T *g, const T *low, const T *index, int axis, float factor) {}
static void dry_lion(T *u, T *m, const struct tr_sign *h) {}
static void dry_cut(T *g, const T *h, float scale, float eps) {}
static void dry_ratio(T *g, const T *h, float eps, float most) {}
static void dry_move(T *w, float before, float scale, const struct tr_direction *z) {}
static void dry_weigh(T *g, float scale, const struct tr_direction *z) {}
static void dry_squares(T *h, const T *g, float keep, float take) {}
static const struct tr_updates dry = { dry_apply, dry_scaled, dry_adam, dry_direction, dry_sgd, dry_norms,
                                       dry_sign, dry_clamp, dry_momentum, dry_outer, dry_root, dry_adam_8bit,
                                       dry_clamp, dry_pick, dry_place, dry_lion, dry_cut, dry_ratio, dry_move, dry_weigh, dry_squares };

#if HAVE_X86
extern const struct tr_updates tr_update_avx2_table, tr_update_avx512_table;
#endif

const struct tr_updates *tr_updates(void)
{
    if (tr_mem_is_dry()) return &dry;
    if (tr_device()) return tr_device()->updates;
#if HAVE_X86
    const char *name = tr_kernels()->name;
    if (!strcmp(name, "avx512") || !strcmp(name, "amx")) return &tr_update_avx512_table;
    if (!strcmp(name, "avx2")) return &tr_update_avx2_table;
#endif
    return &tr_update_ref_table;
}
