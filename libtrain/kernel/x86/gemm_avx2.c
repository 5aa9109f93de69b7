#include "libtrain/kernel/x86/gemm_tmpl.h"

int tr_avx2_product(const struct tr_product *p, bool dry, bool pairs) { return run_packed(p, dry, pairs); }
