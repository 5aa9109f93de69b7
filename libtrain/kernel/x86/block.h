/* Small products out of the first caches: c[rows, LANES nv] (+)= a b, the lanes of b being columns. A word is the unit of
 * the inner sum: one f32, or two neighbouring bf16 where PAIRS is 1; c is f32.
 *   a: word (row r, step s) at a[r * a_row + s * a_step], broadcast to all lanes
 *   b: word (step s, column v) at b[s * ldb + v]
 * Blocks of up to ROWS x 3 vectors of c stay in registers over all steps: one sum per element in the order of s. What c held
 * is replaced, is where the sum starts, or is added to it at the end. */
#ifndef TR_X86_BLOCK_H
#define TR_X86_BLOCK_H
#include "libtrain/kernel/x86/lanes.h"
#include <stddef.h>

typedef uint32_t __attribute__((may_alias)) tr_word;

#if defined(__AVX512F__)
enum { BLOCK_ROWS = 8 };
#else
enum { BLOCK_ROWS = 4 };
#endif

enum { REPLACE, CONTINUE, ADD };

static inline __attribute__((always_inline)) vf v_madd(vf acc, const tr_word *a, vf b, const int pairs)
{
#if defined(__AVX512F__)
    __m512i word = _mm512_set1_epi32((int)*a);
#if defined(__AVX512BF16__)
    if (pairs) return _mm512_dpbf16_ps(acc, (__m512bh)word, (__m512bh)_mm512_castps_si512(b));
#endif
    return _mm512_fmadd_ps(_mm512_castsi512_ps(word), b, acc);
#else
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_set1_epi32((int)*a)), b, acc);
#endif
}

static inline __attribute__((always_inline)) void block(float *c, int64_t ldc, int old, const tr_word *a, int64_t a_row,
    int64_t a_step, const tr_word *b, int64_t ldb, int64_t steps, const int rows, const int nv, const int pairs)
{
    vf acc[BLOCK_ROWS][3];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < nv; v++) acc[r][v] = old == CONTINUE ? v_load(c + r * ldc + v * LANES) : v_zero();
    for (int64_t s = 0; s < steps; s++) {
        vf bv[3];
#pragma GCC unroll 3
        for (int v = 0; v < nv; v++) bv[v] = v_load((const float *)(b + s * ldb) + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
            for (int v = 0; v < nv; v++) acc[r][v] = v_madd(acc[r][v], a + r * a_row + s * a_step, bv[v], pairs);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < nv; v++) {
            float *to = c + r * ldc + v * LANES;
            v_store(to, old == ADD ? v_add(v_load(to), acc[r][v]) : acc[r][v]);
        }
}

/* One copy of each form, kept out of line: with strides known to the compiler gcc 12 makes slower loops of them. */
typedef void block_form(float *c, int64_t ldc, int old, const tr_word *a, int64_t a_row, int64_t a_step, const tr_word *b,
                        int64_t ldb, int64_t steps);
#define BLOCK_FORM(name, rows, nv, pairs) \
    static __attribute__((noinline)) void name(float *c, int64_t ldc, int old, const tr_word *a, int64_t a_row, \
        int64_t a_step, const tr_word *b, int64_t ldb, int64_t steps) \
    { block(c, ldc, old, a, a_row, a_step, b, ldb, steps, rows, nv, pairs); }
#define BLOCK_FORMS(name, pairs) \
    BLOCK_FORM(name##_row_1, 1, 1, pairs) BLOCK_FORM(name##_row_2, 1, 2, pairs) BLOCK_FORM(name##_row_3, 1, 3, pairs) \
    BLOCK_FORM(name##_half_1, BLOCK_ROWS / 2, 1, pairs) BLOCK_FORM(name##_half_2, BLOCK_ROWS / 2, 2, pairs) \
    BLOCK_FORM(name##_half_3, BLOCK_ROWS / 2, 3, pairs) \
    BLOCK_FORM(name##_1, BLOCK_ROWS, 1, pairs) BLOCK_FORM(name##_2, BLOCK_ROWS, 2, pairs) \
    BLOCK_FORM(name##_3, BLOCK_ROWS, 3, pairs)
#define BLOCK_TABLE(name) { { name##_row_1, name##_row_2, name##_row_3 }, { name##_half_1, name##_half_2, name##_half_3 }, \
                            { name##_1, name##_2, name##_3 } }
BLOCK_FORMS(single, 0)
#if defined(__AVX512BF16__)
BLOCK_FORMS(pair, 1)
static block_form *const block_forms[2][3][3] = { BLOCK_TABLE(single), BLOCK_TABLE(pair) };
#else
static block_form *const block_forms[1][3][3] = { BLOCK_TABLE(single) };
#endif

/* Rows of the smallest form that holds n, and the form. */
static inline int64_t form_rows(int64_t n) { return n == 1 ? 1 : n <= BLOCK_ROWS / 2 ? BLOCK_ROWS / 2 : BLOCK_ROWS; }
static inline block_form *form(int pairs, int64_t rows, int64_t nv)
{
    return block_forms[pairs][rows == 1 ? 0 : rows <= BLOCK_ROWS / 2 ? 1 : 2][nv - 1];
}

/* What product() and the attention around it count in: rows of c, its lanes, and words of a and b. */
#if defined(__AMX_BF16__)
enum { UNIT_ROWS = 32, UNIT_LANES = 32, UNIT_WORDS = 16 };
#else
enum { UNIT_ROWS = BLOCK_ROWS, UNIT_LANES = LANES, UNIT_WORDS = 8 };
#endif

#if defined(__AMX_BF16__)
#include "libtrain/kernel/x86/tiles.h"

static inline void product_begin(void) { tiles_begin(); }
static inline void product_end(void) { tiles_end(); }

/* By AMX tiles: a_step is 1, pairs is 1. */
static inline void product(float *c, int64_t ldc, int old, const tr_word *a, int64_t a_row,
    int64_t a_step, const tr_word *b, int64_t ldb, int64_t rows, int64_t nv, int64_t steps, const int pairs)
{
    for (int64_t v = 0; v < nv; v += 2)
        for (int64_t r = 0; r < rows; r += UNIT_ROWS)
            tiles_block(c + r * ldc + v * LANES, ldc, old, a + r * a_row, a_row, b + v * LANES, ldb, steps);
}
#else
/* Around all products of a thread. */
static inline void product_begin(void) {}
static inline void product_end(void) {}

/* rows is a multiple of UNIT_ROWS. */
static inline void product(float *c, int64_t ldc, int old, const tr_word *a, int64_t a_row,
    int64_t a_step, const tr_word *b, int64_t ldb, int64_t rows, int64_t nv, int64_t steps, const int pairs)
{
    for (int64_t v = 0; v < nv;) {
        int64_t n = nv - v == 4 || nv - v == 2 ? 2 : nv - v == 1 ? 1 : 3;    /* 4 as 2 + 2: an odd vector wastes loads */
        for (int64_t r = 0; r < rows; r += BLOCK_ROWS)
            form(pairs, BLOCK_ROWS, n)(c + r * ldc + v * LANES, ldc, old, a + r * a_row, a_row, a_step, b + v * LANES, ldb,
                                       steps);
        v += n;
    }
}
#endif

#if defined(__AVX512F__)
/* Turns 16 x 16 words. Quarters of four rows are merged as they are loaded, so that only steps within 128 bits are left. */
static inline void transpose_16(float *d, int64_t ldd, const float *s, int64_t lds)
{
    for (int64_t q = 0; q < 16; q += 4) {
        __m512 x[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const float *from = s + j * lds + q;
            x[j] = _mm512_castps128_ps512(_mm_loadu_ps(from));
            x[j] = _mm512_mask_broadcast_f32x4(x[j], 0x00f0, _mm_loadu_ps(from + 4 * lds));
            x[j] = _mm512_mask_broadcast_f32x4(x[j], 0x0f00, _mm_loadu_ps(from + 8 * lds));
            x[j] = _mm512_mask_broadcast_f32x4(x[j], 0xf000, _mm_loadu_ps(from + 12 * lds));
        }
        __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[0], x[1])), b = _mm512_castps_pd(_mm512_unpacklo_ps(x[2], x[3]));
        __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(x[0], x[1])), e = _mm512_castps_pd(_mm512_unpackhi_ps(x[2], x[3]));
        _mm512_storeu_pd(d + q * ldd, _mm512_unpacklo_pd(a, b));
        _mm512_storeu_pd(d + (q + 1) * ldd, _mm512_unpackhi_pd(a, b));
        _mm512_storeu_pd(d + (q + 2) * ldd, _mm512_unpacklo_pd(c, e));
        _mm512_storeu_pd(d + (q + 3) * ldd, _mm512_unpackhi_pd(c, e));
    }
}
#endif

/* Turns words [rows, cols] with row stride lds into [cols, rows] with row stride ldd; both multiples of 8. */
static inline void transpose(float *d, int64_t ldd, const float *s, int64_t lds, int64_t rows, int64_t cols)
{
    int64_t whole = 0;    /* columns done of the pair of eights that begins at i */
    for (int64_t i = 0; i < rows; i += 8) {
#if defined(__AVX512F__)
        if (i % 16 == 0) {
            whole = rows - i >= 16 ? cols / 16 * 16 : 0;
            for (int64_t j = 0; j < whole; j += 16) transpose_16(d + j * ldd + i, ldd, s + i * lds + j, lds);
        }
#endif
        for (int64_t j = whole; j < cols; j += 8) {
            __m256 x[8], y[8];
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) x[k] = _mm256_loadu_ps(s + (i + k) * lds + j);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                y[2 * k] = _mm256_unpacklo_ps(x[2 * k], x[2 * k + 1]);
                y[2 * k + 1] = _mm256_unpackhi_ps(x[2 * k], x[2 * k + 1]);
            }
#pragma GCC unroll 2
            for (int k = 0; k < 8; k += 4) {
                x[k] = _mm256_shuffle_ps(y[k], y[k + 2], 0x44);
                x[k + 1] = _mm256_shuffle_ps(y[k], y[k + 2], 0xee);
                x[k + 2] = _mm256_shuffle_ps(y[k + 1], y[k + 3], 0x44);
                x[k + 3] = _mm256_shuffle_ps(y[k + 1], y[k + 3], 0xee);
            }
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                _mm256_storeu_ps(d + (j + k) * ldd + i, _mm256_permute2f128_ps(x[k], x[k + 4], 0x20));
                _mm256_storeu_ps(d + (j + k + 4) * ldd + i, _mm256_permute2f128_ps(x[k], x[k + 4], 0x31));
            }
        }
    }
}

#endif
