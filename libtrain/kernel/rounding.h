/* How one number is rounded to bf16 or int8: for loops of the CPU and kernels of CUDA devices alike.
 *
 * int8: value = scale (code - zero). Our grid of a group has 254 steps over the values and 0, and one to spare,
 * so that stochastic rounding never leaves it: right on average everywhere, the largest weights too. The published one
 * (Q-GaLore's and Q-APOLLO's code, uint8: ours less 128) has 255 steps and cuts what is rounded past its ends, which
 * pulls the ends of a group towards 0 a little with every step. */
#ifndef TR_ROUNDING_H
#define TR_ROUNDING_H
#include "libtrain/base/both.h"
#include "libtrain/base/rng.h"
#include <stdbool.h>
#include <string.h>

/* Element i of a tensor is rounded with a hash of (key, first + i); key {0,0}: to nearest. first: which element of the parameter
 * the tensor begins with, so that rows have the same bits wherever they are. */
struct tr_noise { struct tr_key key; uint32_t first; };

TR_BOTH bool tr_to_nearest(struct tr_noise z) { return !z.key.k[0] && !z.key.k[1]; }

/* Another stream of the same key. */
TR_BOTH struct tr_noise tr_second(struct tr_noise z)
{
    if (tr_to_nearest(z)) return z;
    z.key.k[0] ^= 0x85EBCA6Bu;
    z.key.k[1] += 0x9E3779B9u;
    return z;
}

TR_BOTH uint32_t tr_bits16(uint32_t index, struct tr_key k) /* 16 random bits that depend on every bit of index and key */
{
    uint32_t x = index * 0x9E3779B9u ^ k.k[0];
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= (x >> 15) ^ k.k[1];
    x *= 0x846ca68bu;
    return x >> 16;
}

/* bf16 with stochastic rounding: 16 random bits below the cut, then cut. Infinite and NaN are kept; the largest finite
 * value cannot carry into infinity because it is kept too. */
TR_BOTH uint16_t tr_bf16_stochastic(float x, uint32_t index, struct tr_key key)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    uint32_t magnitude = u & 0x7fffffffu, add = magnitude >= 0x7f7f0000u ? 0 : tr_bits16(index, key);
    return (uint16_t)((u + add) >> 16 | (magnitude > 0x7f800000u ? 0x40u : 0));
}

struct tr_grid8 { float scale; int32_t zero; };   /* zero and codes: -128..127 */

/* To the nearest whole number, ties to even; |x| < 2^22. */
TR_BOTH float tr_whole(float x) { return (x + 12582912.0f) - 12582912.0f; }

/* The grid of a group between low <= 0 and high >= 0. */
TR_BOTH struct tr_grid8 tr_grid8_between(float low, float high, bool published)
{
    float range = high - low, scale = (range > 1e-5f ? range : 1e-5f) / (published ? 255 : 254), steps = -low / scale;
    int32_t zero = (int32_t)tr_whole(steps);
    zero += !published && (float)zero < steps;   /* up, so that the lowest value has a code below it */
    struct tr_grid8 g = { scale, zero - 128 };
    return g;
}

TR_BOTH int8_t tr_code8(int32_t steps, int32_t zero)
{
    int32_t code = steps + zero;
    return (int8_t)(code > 127 ? 127 : code < -128 ? -128 : code);
}

TR_BOTH int8_t tr_code8_nearest(float x, struct tr_grid8 g) { return tr_code8((int32_t)tr_whole(x / g.scale), g.zero); }

/* One step up with the probability of what is left over: u is uniform in [0, 1). */
TR_BOTH int8_t tr_code8_stochastic(float x, float u, struct tr_grid8 g)
{
    float steps = x / g.scale, below = (float)(int32_t)steps;
    below -= below > steps ? 1.0f : 0.0f;
    return tr_code8((int32_t)below + (u < steps - below), g.zero);
}

#endif
