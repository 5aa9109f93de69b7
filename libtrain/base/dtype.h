/* Element types. */
#ifndef TR_DTYPE_H
#define TR_DTYPE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum tr_dtype { TR_F32, TR_BF16, TR_F16, TR_I32, TR_U8, TR_INT8 /* quantised in groups, see tensor.h */, TR_F64, TR_DTYPES };

static inline size_t tr_dtype_size(enum tr_dtype t)
{
    static const unsigned char size[TR_DTYPES] = { 4, 2, 2, 4, 1, 1, 8 };
    return size[t];
}

static inline const char *tr_dtype_name(enum tr_dtype t)
{
    static const char *const name[TR_DTYPES] = { "f32", "bf16", "f16", "i32", "u8", "int8", "f64" };
    return name[t];
}

static inline float tr_bf16_to_f32(uint16_t x)
{
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t tr_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

#endif
