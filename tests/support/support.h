/* Helpers of the tests. Include this instead of cmocka.h. */
#ifndef TEST_SUPPORT_H
#define TEST_SUPPORT_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "libtrain/base/status.h"

/* Fails with the message of the status. */
#define assert_ok(call) do { int rc_ = (call); if (rc_ != TR_OK) fail_msg("%s: %d %s", #call, rc_, tr_message()); } while (0)

/* A fresh folder under $TMPDIR, removed at exit. */
const char *test_folder(void);

/* Fills n floats with reproducible normal numbers times std. */
void test_normal(float *x, int64_t n, uint64_t seed, float std);

#endif
