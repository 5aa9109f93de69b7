/* exp and tanh that a compiler can vectorise: no table, no branch. Relative error of exp below 2e-7 over all of f32;
 * beyond the range of f32 it is
 * infinite or the smallest normal number; NaN stays NaN. */
#ifndef TR_LOOPS_FASTMATH_H
#define TR_LOOPS_FASTMATH_H
#include <stdint.h>
#include <string.h>

static inline float tr_exp(float x)
{
    float c = x > 88.3762626f ? 88.3762626f : x < -87.3f ? -87.3f : x; /* NaN passes both comparisons */
    float k = c * 1.44269504f, r = k + 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    float n = r - 12582912.0f;
    float f = (c - n * 0.693145752f) - n * 1.42860677e-6f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    int32_t e = (int32_t)n;
    uint32_t bits = (uint32_t)(e + 127) << 23;
    float two;
    memcpy(&two, &bits, 4);
    return x > 88.72f ? __builtin_inff() : p * two;
}

static inline float tr_tanh(float x)
{
    float c = x > 15 ? 15 : x < -15 ? -15 : x, e = tr_exp(2 * c);
    return 1 - 2 / (e + 1);
}

#endif
