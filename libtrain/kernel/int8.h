/* The grid of a group of int8 weights: value = scale (code - zero). Ours has 254 steps over the values and 0, and one to spare,
 * so that stochastic rounding never leaves it: right on average everywhere, the largest weights too. The published one
 * (Q-GaLore's and Q-APOLLO's code, uint8: ours less 128) has 255 steps and cuts what is rounded past its ends, which
 * pulls the ends of a group towards 0 a little with every step. */
#ifndef TR_INT8_H
#define TR_INT8_H
#include <stdbool.h>
#include <stdint.h>

struct tr_grid8 { float scale; int32_t zero; };   /* zero and codes: -128..127 */

/* To the nearest whole number, ties to even; |x| < 2^22. */
static inline float tr_whole(float x) { return (x + 12582912.0f) - 12582912.0f; }

static inline struct tr_grid8 tr_grid8(const float *x, int64_t n, bool published)
{
    enum { LANES = 16 };   /* a lowest and a highest for each: what the compiler makes vectors of */
    float lows[LANES] = { 0 }, highs[LANES] = { 0 }, low = 0, high = 0;
    int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int k = 0; k < LANES; k++) lows[k] = x[i + k] < lows[k] ? x[i + k] : lows[k];
        for (int k = 0; k < LANES; k++) highs[k] = x[i + k] > highs[k] ? x[i + k] : highs[k];
    }
    for (int64_t i = whole; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    for (int half = LANES / 2; half; half /= 2) {
        for (int k = 0; k < half; k++) lows[k] = lows[k + half] < lows[k] ? lows[k + half] : lows[k];
        for (int k = 0; k < half; k++) highs[k] = highs[k + half] > highs[k] ? highs[k + half] : highs[k];
    }
    low = lows[0] < low ? lows[0] : low;
    high = highs[0] > high ? highs[0] : high;
    float range = high - low, scale = (range > 1e-5f ? range : 1e-5f) / (published ? 255 : 254), steps = -low / scale;
    int32_t zero = (int32_t)tr_whole(steps);
    zero += !published && (float)zero < steps;   /* up, so that the lowest value has a code below it */
    return (struct tr_grid8){ scale, zero - 128 };
}

static inline int8_t tr_code8(int32_t steps, int32_t zero)
{
    int32_t code = steps + zero;
    return (int8_t)(code > 127 ? 127 : code < -128 ? -128 : code);
}

static inline void tr_grid8_nearest(int8_t *restrict q, const float *restrict x, int64_t n, struct tr_grid8 g)
{
    for (int64_t i = 0; i < n; i++) q[i] = tr_code8((int32_t)tr_whole(x[i] / g.scale), g.zero);
}

/* One step up with the probability of what is left over: u is uniform in [0, 1). */
static inline void tr_grid8_stochastic(int8_t *restrict q, const float *restrict x, const float *restrict u, int64_t n, struct tr_grid8 g)
{
    for (int64_t i = 0; i < n; i++) {
        float steps = x[i] / g.scale, below = (float)(int32_t)steps;
        below -= below > steps ? 1.0f : 0.0f;
        q[i] = tr_code8((int32_t)below + (u[i] < steps - below), g.zero);
    }
}

#endif
