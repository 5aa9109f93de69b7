/* Plain C variant, the dry one, and the choice between all. */
#include "libtrain/kernel/kernel.h"
#include "train_config.h"
#define NAME(x) tr_update_ref_##x
#include "libtrain/kernel/update_tmpl.h"
#include <stdlib.h>

typedef struct tr_tensor T;
static void dry_apply(T *w, const T *g, const struct tr_apply *a) {}
static void dry_scaled(T *w, const T *g, const T *f, int axis, const struct tr_apply *a) {}
static void dry_adam(T *w, T *m, T *v, const T *g, const struct tr_adam *h, const struct tr_apply *a) {}
static void dry_direction(T *u, T *m, T *v, const T *g, const struct tr_adam *h) {}
static void dry_sgd(T *w, T *b, const T *g, float d, float m, float k, bool n, bool f, const struct tr_apply *a) {}
static void dry_norms(T *n, const T *x, int axis) {}
static const struct tr_updates dry = { dry_apply, dry_scaled, dry_adam, dry_direction, dry_sgd, dry_norms };

#if HAVE_X86
extern const struct tr_updates tr_update_avx2_table, tr_update_avx512_table;
#endif

const struct tr_updates *tr_updates(void)
{
    if (tr_mem_is_dry()) return &dry;
#if HAVE_X86
    const char *name = tr_kernels()->name;
    if (!strcmp(name, "avx512")) return &tr_update_avx512_table;
    if (!strcmp(name, "avx2")) return &tr_update_avx2_table;
#endif
    return &tr_update_ref_table;
}
