/* Products on a device, with work memory of its arena. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/gemm/impl.h"

static bool takes(const struct tr_product *p) { return true; }

static int run(const struct tr_product *p, bool dry)
{
    size_t bytes = tr_device()->product_work(p);
    void *work;
    TR_TRY(tr_device_arena(&work, bytes, TR_WORKSPACE));
    if (!dry) tr_device()->product(p, work, bytes);
    tr_device_arena_free(work, TR_WORKSPACE);   /* what comes after is queued behind it */
    return TR_OK;
}

/* A dW is one product: its bits are those of this cut of the tokens. */
const struct tr_gemm_impl tr_gemm_device = { .name = "device", .takes = takes, .run = run, .any_cut = true };
