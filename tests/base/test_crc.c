/* CRC32C against the check value of its definition and against itself in pieces. */
#include "tests/support/support.h"
#include "libtrain/base/crc.h"
#include <string.h>

static void check_value(void **state)
{
    assert_int_equal(tr_crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(tr_crc32c_plain(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(tr_crc32c(0, "", 0), 0);
}

static void pieces(void **state)
{
    unsigned char x[300];
    for (int i = 0; i < 300; i++) x[i] = (unsigned char)(i * i + 7);
    uint32_t whole = tr_crc32c(0, x, 300);
    for (size_t cut = 0; cut <= 300; cut++) {
        assert_int_equal(tr_crc32c(tr_crc32c(0, x, cut), x + cut, 300 - cut), whole);
        assert_int_equal(tr_crc32c_plain(0, x + cut, 300 - cut), tr_crc32c(0, x + cut, 300 - cut));
    }
    for (int bit = 0; bit < 8; bit++) {
        x[100] ^= (unsigned char)(1 << bit);
        assert_int_not_equal(tr_crc32c(0, x, 300), whole);
        x[100] ^= (unsigned char)(1 << bit);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(check_value), cmocka_unit_test(pieces) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
