/* Our own products for AVX2 and AVX-512: the only ones here whose bits do not depend on how rows, columns or the tokens of
 * a sum are cut, and which widen weights while packing them. */
#include "libtrain/kernel/gemm/impl.h"
#include "libtrain/kernel/kernel.h"
#include "train_config.h"
#if HAVE_X86

static bool takes(const struct tr_product *p)
{
    return tr_cpu().avx2;
}

static int run(const struct tr_product *p, bool dry)
{
    struct tr_cpu cpu = tr_cpu();
    if (cpu.amx_bf16 && p->a.dtype == TR_BF16) return tr_amx_product(p, dry);
    if (cpu.avx512) return tr_avx512_product(p, dry, cpu.avx512_bf16 && p->a.dtype == TR_BF16);
    return tr_avx2_product(p, dry, false);
}

const struct tr_gemm_impl tr_gemm_packed = { .name = "packed", .takes = takes, .run = run, .any_cut = true };
#endif
