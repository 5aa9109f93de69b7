#include "libtrain/base/crc.h"
#include "train_config.h"
#include <string.h>

static uint32_t by_table(uint32_t crc, const unsigned char *p, size_t n)
{
    static uint32_t table[16]; /* by nibbles: small, and only for CPUs without the instruction */
    if (!table[1])
        for (uint32_t i = 1; i < 16; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 4; bit++) c = c & 1 ? (c >> 1) ^ 0x82f63b78u : c >> 1;
            table[i] = c;
        }
    for (; n--; p++) {
        crc = (crc >> 4) ^ table[(crc ^ *p) & 15];
        crc = (crc >> 4) ^ table[(crc ^ (*p >> 4)) & 15];
    }
    return crc;
}

#if HAVE_X86
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const unsigned char *p, size_t n)
{
    uint64_t c = crc, word;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&word, p, 8);
        c = __builtin_ia32_crc32di(c, word);
    }
    crc = (uint32_t)c;
    for (; n--; p++) crc = __builtin_ia32_crc32qi(crc, *p);
    return crc;
}
#endif

uint32_t tr_crc32c_plain(uint32_t crc, const void *bytes, size_t n) { return ~by_table(~crc, bytes, n); }

uint32_t tr_crc32c(uint32_t crc, const void *bytes, size_t n)
{
#if HAVE_X86
    if (__builtin_cpu_supports("sse4.2")) return ~by_instruction(~crc, bytes, n);
#endif
    return tr_crc32c_plain(crc, bytes, n);
}
