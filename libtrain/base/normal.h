/* Standard normals by Box and Muller in double. Only + - * / and sqrt and whole-number operations: every compiler target
 * gives the same bits, so this is compiled into the kernels of each instruction set, into those of CUDA devices and into base alike. */
#ifndef TR_NORMAL_H
#define TR_NORMAL_H
#include "libtrain/base/both.h"
#include "libtrain/base/rng.h"
#include <math.h>
#include <string.h>

/* log of x in (0, 1], to 2 units of the last place: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1)). */
TR_BOTH double tr_log_unit(double x)
{
    int64_t bits, e;
    double m;
    memcpy(&bits, &x, 8);
    e = (bits - 0x3fe6a09e667f3bcd) >> 52;
    bits -= (int64_t)((uint64_t)e << 52);
    memcpy(&m, &bits, 8);
    double s = (m - 1) / (m + 1), z = s * s;
    double p = 1.0 / 21;
    p = p * z + 1.0 / 19;
    p = p * z + 1.0 / 17;
    p = p * z + 1.0 / 15;
    p = p * z + 1.0 / 13;
    p = p * z + 1.0 / 11;
    p = p * z + 1.0 / 9;
    p = p * z + 1.0 / 7;
    p = p * z + 1.0 / 5;
    p = p * z + 1.0 / 3;
    return (double)(int32_t)e * 0.693147180559945309417 + (2 * s + 2 * s * z * p);
}

/* cos and sin of a full turn times u, u in [0, 1): the nearest quarter turn, and Taylor's series of what is left. */
TR_BOTH void tr_turn(double u, double *c, double *s)
{
    int32_t q = (int32_t)(4 * u + 0.5);
    double a = (u - 0.25 * q) * 6.28318530717958647693, z = a * a;
    double p = -1.0 / 1307674368000, r = 1.0 / 20922789888000; /* 1/15!, 1/16! */
    p = p * z + 1.0 / 6227020800;
    p = p * z - 1.0 / 39916800;
    p = p * z + 1.0 / 362880;
    p = p * z - 1.0 / 5040;
    p = p * z + 1.0 / 120;
    p = p * z - 1.0 / 6;
    p = a + a * z * p;
    r = r * z - 1.0 / 87178291200;
    r = r * z + 1.0 / 479001600;
    r = r * z - 1.0 / 3628800;
    r = r * z + 1.0 / 40320;
    r = r * z - 1.0 / 720;
    r = r * z + 1.0 / 24;
    r = r * z - 0.5;
    r = 1 + z * r;
    double x = q & 1 ? p : r, y = q & 1 ? r : p;
    *c = (q + 1) & 2 ? -x : x;
    *s = q & 2 ? -y : y;
}

/* tr_philox, for where it should be part of a loop. */
TR_BOTH void tr_philox_inline(uint32_t c[4], struct tr_key key, uint64_t counter)
{
    uint32_t k0 = key.k[0], k1 = key.k[1];
    c[0] = (uint32_t)counter, c[1] = (uint32_t)(counter >> 32), c[2] = c[3] = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(b >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)b;
        c[3] = (uint32_t)a;
        c[0] = n0;
        c[2] = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* Numbers 2 pair and 2 pair + 1 of the stream: two words make one uniform of 53 bits, two uniforms two normals. */
TR_BOTH void tr_normal_pair(struct tr_key key, uint64_t pair, double *even, double *odd)
{
    uint32_t c0 = (uint32_t)pair, c1 = (uint32_t)(pair >> 32), c2 = 0, c3 = 0, k0 = key.k[0], k1 = key.k[1];
    for (int round = 0; round < 10; round++) { /* tr_philox, in the open so that a loop over pairs is vectorised */
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    double u = ((double)c0 * 2097152.0 + (double)(c1 >> 11) + 0.5) * 0x1p-53, v = ((double)c2 * 2097152.0 + (double)(c3 >> 11)) * 0x1p-53;
    double radius = sqrt(-2 * tr_log_unit(u)), c, s;
    tr_turn(v, &c, &s);
    *even = radius * c;
    *odd = radius * s;
}

/* out[i] = std * number first + i of the stream. */
static inline void tr_normals_into(float *out, struct tr_key key, uint64_t first, int64_t n, double std)
{
    double even, odd;
    int64_t i = 0;
    if (first % 2 && n > 0) {
        tr_normal_pair(key, first / 2, &even, &odd);
        out[i++] = (float)(std * odd);
    }
    int64_t pairs = (n - i) / 2;
    for (int64_t k = 0; k < pairs; k++) {
        tr_normal_pair(key, (first + (uint64_t)i) / 2 + (uint64_t)k, &even, &odd);
        out[i + 2 * k] = (float)(std * even);
        out[i + 2 * k + 1] = (float)(std * odd);
    }
    i += 2 * pairs;
    if (i < n) {
        tr_normal_pair(key, (first + (uint64_t)i) / 2, &even, &odd);
        out[i] = (float)(std * even);
    }
}

#endif
