/* Helpers of the tests. Include this instead of cmocka.h. */
#ifndef TEST_SUPPORT_H
#define TEST_SUPPORT_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <cmocka.h>
#include "libtrain/base/status.h"

/* Fails with the message of the status. */
#define assert_ok(call) do { int rc_ = (call); if (rc_ != TR_OK) fail_msg("%s: %d %s", #call, rc_, tr_message()); } while (0)

/* A fresh folder under $TMPDIR, removed at exit. */
const char *test_folder(void);

/* Under sanitizers (TEST_SANITIZED is set), where everything takes ten times as long: families are tested at their ends. */
bool test_sanitized(void);

/* Fills n floats with reproducible normal numbers times std. */
void test_normal(float *x, int64_t n, uint64_t seed, float std);

/* TR_TEST_DEVICE (or what the build gives a test without it) says where to compute: cpu, emulated (tests/emulate) or cuda. Where
 * there is no device of that name the program ends as skipped with the reason, as failed with TR_REQUIRE_DEVICE=1. */
struct tr_device_module;
/* Tensors and kernels are the place-th device's from now on; nothing on the CPU. */
void test_device(int place);
/* The module alone, whose kernels may work on this program's own memory: static, heap and stack. */
const struct tr_device_module *test_module(void);

#endif
