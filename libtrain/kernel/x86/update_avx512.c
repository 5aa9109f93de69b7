#define NAME(x) tr_update_avx512_##x
#include "libtrain/kernel/update_tmpl.h"
