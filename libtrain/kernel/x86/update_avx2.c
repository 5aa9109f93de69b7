#define NAME(x) tr_update_avx2_##x
#include "libtrain/kernel/update_tmpl.h"
