/* `train` with the emulated device, for tests of whole runs. */
#include "libtrain/kernel/device.h"
#include <stdlib.h>

__attribute__((constructor)) static void use_module(void) { tr_device_use_module(getenv("TR_TEST_EMULATED")); }
