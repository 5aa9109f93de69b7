/* What our own products share: rows of a stored matrix as words of the product, in panels of COLS columns (b) or blocks of
 * BLOCK_ROWS rows (a), and how sums become c. */
#ifndef TR_X86_GEMM_PACK_H
#define TR_X86_GEMM_PACK_H
#include "libtrain/kernel/gemm/impl.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/x86/block.h"
#include <math.h>

/* Columns of a panel, and what the words of K are rounded up to (by zeros). */
#if defined(__AMX_BF16__)
enum { COLS = UNIT_LANES, WORDS = UNIT_WORDS };
#else
enum { COLS = 3 * LANES, WORDS = 1 };
#endif

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

enum { SOME_COLS = 192 };    /* packed at a time; whole panels and blocks of any width */

/* Words of n elements of K. */
static int64_t words_of(int64_t n, int pack) { return up((n + pack - 1) / pack, WORDS); }

/* Rounded to bf16; with pairs the CPU has an instruction for it. */
static inline void store_half(uint16_t *h, vf x)
{
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i *)h, (__m256i)_mm512_cvtneps_pbh(x));
#else
    v_store_bf16(h, x);
#endif
}

/* Columns [c, c + n) of a stored row as the compute type: bf16 when pack is 2, else f32. */
static void fetch(void *to, const struct tr_operand *o, int64_t row, int64_t c, int64_t n, int pack)
{
    int64_t i = 0, at = row * o->ld + c;
    float *f = to;
    uint16_t *h = to;
    if (pack == 2 && o->dtype == TR_BF16) memcpy(to, (const uint16_t *)o->data + at, (size_t)n * 2);
    else if (pack == 1 && o->dtype == TR_F32) memcpy(to, (const float *)o->data + at, (size_t)n * 4);
    else if (o->dtype == TR_BF16) {
        const uint16_t *x = (const uint16_t *)o->data + at;
        for (; i + LANES <= n; i += LANES) v_store(f + i, v_load_bf16(x + i));
        for (; i < n; i++) f[i] = tr_bf16_to_f32(x[i]);
    } else if (o->dtype == TR_F32) {
        const float *x = (const float *)o->data + at;
        for (; i + LANES <= n; i += LANES) store_half(h + i, v_load(x + i));
        for (; i < n; i++) h[i] = tr_f32_to_bf16(x[i]);
    } else {
        const int8_t *x = (const int8_t *)o->data + at, *zero = o->zero + row * o->groups;
        uint32_t g = (uint32_t)c / (uint32_t)o->group;
        for (const float *scale = o->scale + row * o->groups; i < n; g++) {
            int64_t end = least(n, (g + 1) * o->group - c);
            float s = scale[g], z = zero[g];
            for (; i + LANES <= end; i += LANES) {
                vf y = v_mul(v_sub(v_load_int8(x + i), v_set(z)), v_set(s));
                if (pack == 2) store_half(h + i, y);
                else v_store(f + i, y);
            }
            for (; i < end; i++) {
                if (pack == 2) h[i] = tr_f32_to_bf16(s * ((float)x[i] - z));
                else f[i] = s * ((float)x[i] - z);
            }
        }
    }
}

static bool is_native(const struct tr_operand *o, int pack) { return o->dtype == (pack == 2 ? TR_BF16 : TR_F32); }
static const char *stored(const struct tr_operand *o, int64_t row, int64_t c)
{
    return (const char *)o->data + (row * o->ld + c) * (int64_t)tr_dtype_size(o->dtype);
}

/* n words out of two stored rows, word i holding element i of both (pack 2; high NULL gives zeros), or a copy of one. */
static inline void weave(tr_word *w, const void *low, const void *high, int64_t n, int pack)
{
    if (pack == 1) {
        memcpy(w, low, (size_t)n * 4);
        return;
    }
    const uint16_t *a = low, *b = high;
    for (int64_t i = 0; i < n; i++) w[i] = (uint32_t)a[i] | (b ? (uint32_t)b[i] << 16 : 0);
}

/* One vector of words of a full panel. */
static inline __attribute__((always_inline)) vi weave_lanes(const void *low, const void *high, int64_t i, const int pack)
{
    if (pack == 1) return v_load_int((const int32_t *)low + i);
#if defined(__AVX512F__)
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i x = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)((const uint16_t *)low + i)));
    __m256i y = _mm256_loadu_si256((const __m256i *)((const uint16_t *)high + i));
    return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(x, y, 1));
#else
    __builtin_unreachable();    /* pairs are an AVX-512 form */
#endif
}

static inline void store_lanes(tr_word *w, vi x)
{
#if defined(__AVX512F__)
    _mm512_storeu_si512(w, x);
#else
    _mm256_storeu_si256((__m256i *)w, x);
#endif
}

/* `cols` words, all in whole panels of b or of a, out of one or two stored rows. */
static inline __attribute__((always_inline)) void weave_panels(tr_word *w, int64_t width, int64_t stride, const void *low,
                                                               const void *high, int64_t cols, const int pack)
{
    if (width == COLS) {
        for (int64_t j = 0; j < cols; j += COLS)
            for (int64_t i = 0; i < COLS; i += LANES) store_lanes(w + j / COLS * stride + i, weave_lanes(low, high, j + i, pack));
        return;
    }
    for (int64_t j = 0; j < cols; j += LANES) {    /* a: a vector is two panels of BLOCK_ROWS words */
        vi x = weave_lanes(low, high, j, pack);
#if defined(__AVX512F__)
        _mm256_storeu_si256((__m256i *)(w + j / BLOCK_ROWS * stride), _mm512_castsi512_si256(x));
        _mm256_storeu_si256((__m256i *)(w + (j / BLOCK_ROWS + 1) * stride), _mm512_extracti64x4_epi64(x, 1));
#else
        _mm_storeu_si128((__m128i *)(w + j / BLOCK_ROWS * stride), _mm256_castsi256_si128(x));
        _mm_storeu_si128((__m128i *)(w + (j / BLOCK_ROWS + 1) * stride), _mm256_extracti128_si256(x, 1));
#endif
    }
}

/* Stored rows are k (n of them from k0): panels of `width` columns from c on, each of `words` rows of `width` words, of which
 * those of n are written; columns past `cols` are zeros. width is COLS, BLOCK_ROWS, or what a last narrow panel has. */
static void pack_by_rows(tr_word *to, int64_t width, int64_t words, const struct tr_operand *o, int64_t k0, int64_t n, int64_t c,
                         int64_t cols, int pack)
{
    int64_t unit = width == BLOCK_ROWS ? LANES : width;
    for (int64_t j = 0; WORDS > 1 && n % (pack * WORDS) && j < cols; j += width)    /* past the end of K */
        memset(to + j * words + n / pack * width, 0, (size_t)((words_of(n, pack) - n / pack) * width) * 4);
    uint32_t wide[2][SOME_COLS];
    for (int64_t k = 0; k < n; k += pack) {
        for (int64_t part = 0; part < cols; part += SOME_COLS) {
            int64_t some = least(cols - part, SOME_COLS), whole = width == COLS || width == BLOCK_ROWS ? some / unit * unit : 0;
            const void *row[2] = { stored(o, k0 + k, c + part), pack == 2 && k + 1 < n ? stored(o, k0 + k + 1, c + part) : NULL };
            for (int i = 0; i < 2 && !is_native(o, pack); i++) {
                if (!row[i]) continue;
                fetch(wide[i], o, k0 + k + i, c + part, some, pack);
                row[i] = wide[i];
            }
            if (pack == 2 && !row[1]) whole = 0;
            tr_word *w = to + part * words + k / pack * width;
            if (pack == 1) weave_panels(w, width, words * width, row[0], NULL, whole, 1);
            else weave_panels(w, width, words * width, row[0], row[1], whole, 2);
            for (int64_t j = whole; j < some; j += width) {
                int64_t m = least(width, some - j);
                size_t skip = (size_t)j * (pack == 2 ? 2 : 4);
                weave(w + j * words, (const char *)row[0] + skip, row[1] ? (const char *)row[1] + skip : NULL, m, pack);
                if (m < width) memset(w + j * words + m, 0, (size_t)(width - m) * 4);
            }
        }
    }
}

/* Stored rows are columns of b: the panel of `width` columns from c, of which `cols` exist, k in [k0, k0 + n). */
static void pack_by_columns(tr_word *to, int64_t width, const struct tr_operand *o, int64_t k0, int64_t n, int64_t c,
                            int64_t cols, int pack)
{
    int64_t words = words_of(n, pack), whole = is_native(o, pack) ? n / pack / 8 * 8 : 0;
    int64_t straight = whole && o->ld % pack == 0 ? cols / 8 * 8 : 0;
    float rows[8 * 64], turned[8 * 64];
    if (straight) transpose((float *)to, width, (const float *)(const void *)stored(o, c, k0), o->ld / pack, straight, whole);
    for (int64_t j = 0; j < width; j += 8) {
        for (int64_t k = j < straight ? whole : 0; k < words; k += 64) {
            int64_t some = least(words - k, 64), elements = least(n - k * pack, 64 * pack);
            memset(rows, 0, sizeof rows);
            for (int64_t r = 0; r < 8 && j + r < cols && elements > 0; r++)
                fetch(rows + r * 64, o, c + j + r, k0 + k * pack, elements, pack);
            transpose(turned, 8, rows, 64, 8, 64);
            for (int64_t i = 0; i < some; i++) memcpy(to + (k + i) * width + j, turned + i * 8, 32);
        }
    }
}

/* c = alpha sum + beta c for a corner of a block whose sums are in t. */
static void finish(const struct tr_product *p, int pack, const float *t, int64_t ldt, int64_t i, int64_t j, int64_t rows,
                   int64_t cols)
{
    vf alpha = v_set(p->alpha), beta = v_set(p->beta);
    for (int64_t r = 0; r < rows; r++) {
        float *f = (float *)p->c + (i + r) * p->c_ld + j;
        uint16_t *h = (uint16_t *)p->c + (i + r) * p->c_ld + j;
        int64_t n = 0;
        for (; n + LANES <= cols; n += LANES) {
            vf y = v_mul(v_load(t + r * ldt + n), alpha);
            if (p->c_dtype == TR_F32) v_store(f + n, p->beta != 0 ? v_fma(v_load(f + n), beta, y) : y);
            else if (pack == 2) store_half(h + n, p->beta != 0 ? v_fma(v_load_bf16(h + n), beta, y) : y);
            else v_store_bf16(h + n, p->beta != 0 ? v_fma(v_load_bf16(h + n), beta, y) : y);
        }
        for (; n < cols; n++) {
            float y = t[r * ldt + n] * p->alpha;
            if (p->c_dtype == TR_F32) f[n] = p->beta != 0 ? fmaf(f[n], p->beta, y) : y;
            else h[n] = tr_f32_to_bf16(p->beta != 0 ? fmaf(tr_bf16_to_f32(h[n]), p->beta, y) : y);
        }
    }
}

static void move(float *to, int64_t ldt, const float *from, int64_t ldf, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * ldt, from + r * ldf, (size_t)cols * sizeof *to);
}

#endif
