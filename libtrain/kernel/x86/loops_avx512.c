#include "libtrain/kernel/loops/fastmath.h"
#define NAME(x) tr_avx512_loops_##x
#define TABLE_NAME "avx512"
#define EXP tr_exp
#define TANH tr_tanh
#define ATTENTION(x) tr_avx512_##x
#include "libtrain/kernel/loops/table.h"
