/* Plain C: the specification. */
#define NAME(x) tr_ref_loops_##x
#define TABLE_NAME "ref"
#define EXP expf
#define TANH tanhf
#define ATTENTION(x) tr_ref_##x
#include "libtrain/kernel/loops/table.h"
