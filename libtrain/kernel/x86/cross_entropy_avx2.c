#define TABLE avx2
#include "libtrain/kernel/x86/cross_entropy_tmpl.h"
