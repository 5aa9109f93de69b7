/* Groups of int8 weights; the rounding itself is in rounding.h. */
#ifndef TR_INT8_H
#define TR_INT8_H
#include "libtrain/kernel/rounding.h"

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
    return tr_grid8_between(low, high, published);
}

static inline void tr_grid8_nearest(int8_t *restrict q, const float *restrict x, int64_t n, struct tr_grid8 g)
{
    for (int64_t i = 0; i < n; i++) q[i] = tr_code8_nearest(x[i], g);
}

static inline void tr_grid8_stochastic(int8_t *restrict q, const float *restrict x, const float *restrict u, int64_t n, struct tr_grid8 g)
{
    for (int64_t i = 0; i < n; i++) q[i] = tr_code8_stochastic(x[i], u[i], g);
}

#endif
