/* CRC32C (Castagnoli), the checksum of snapshots. */
#ifndef TR_CRC_H
#define TR_CRC_H
#include <stddef.h>
#include <stdint.h>

/* The checksum of what `crc` covers followed by these bytes; start with 0. */
uint32_t tr_crc32c(uint32_t crc, const void *bytes, size_t n);
/* The same without the CPU's instruction. */
uint32_t tr_crc32c_plain(uint32_t crc, const void *bytes, size_t n);

#endif
