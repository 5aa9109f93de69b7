/* Vectors of f32 lanes: sixteen with AVX-512, eight with AVX2. Include only in files that are compiled for one of them.
 * Where min and max meet a NaN the second operand is returned, so that NaN passes through. */
#ifndef TR_X86_LANES_H
#define TR_X86_LANES_H
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;
static inline vf v_zero(void) { return _mm512_setzero_ps(); }
static inline vf v_set(float x) { return _mm512_set1_ps(x); }
static inline vf v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline bool v_any_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
static inline float v_sum(vf x) { return _mm512_reduce_add_ps(x); }
static inline float v_largest(vf x) { return _mm512_reduce_max_ps(x); }
static inline vi v_load_int(const int32_t *p) { return _mm512_loadu_si512(p); }

/* x where first <= key <= last, elsewhere minus infinity. */
static inline vf v_keep(vf x, int32_t key, vi first, vi last)
{
    __m512i k = _mm512_set1_epi32(key);
    vm keep = _mm512_cmple_epi32_mask(first, k) & _mm512_cmple_epi32_mask(k, last);
    return _mm512_mask_mov_ps(v_set(-__builtin_inff()), keep, x);
}

/* The first n lanes from p (0 <= n <= LANES), the others `rest`; and back. */
static inline vm v_head(int64_t n) { return (vm)((1u << n) - 1); }
static inline vf v_load_head(const float *p, int64_t n, float rest) { return _mm512_mask_loadu_ps(v_set(rest), v_head(n), p); }
static inline void v_store_head(float *p, int64_t n, vf x) { _mm512_mask_storeu_ps(p, v_head(n), x); }

static inline vf v_scale_exp2(vf x, vf n, vf t) { return _mm512_scalef_ps(x, n); }
static inline vf v_round(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static const float EXP2_LEAST = -200.0f;

/* bf16: the words of sixteen or eight neighbours, rounded to nearest even, NaN kept. Integer steps: the same bits with and
 * without avx512_bf16. */
static inline vf v_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline vf v_load_int8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline __m256i v_round_bf16(vf x)
{
    __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    vm nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
static inline void v_store_bf16(uint16_t *p, vf x) { _mm256_storeu_si256((__m256i *)p, v_round_bf16(x)); }
#else
enum { LANES = 8 };
typedef __m256 vf;
typedef __m256i vi;
static inline vf v_zero(void) { return _mm256_setzero_ps(); }
static inline vf v_set(float x) { return _mm256_set1_ps(x); }
static inline vf v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline bool v_any_gt(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
static inline float v_sum(vf x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float v_largest(vf x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static inline vi v_load_int(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

static inline vf v_keep(vf x, int32_t key, vi first, vi last)
{
    __m256i k = _mm256_set1_epi32(key), out = _mm256_or_si256(_mm256_cmpgt_epi32(first, k), _mm256_cmpgt_epi32(k, last));
    return _mm256_blendv_ps(x, v_set(-__builtin_inff()), _mm256_castsi256_ps(out));
}

static inline __m256i v_head(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vf v_load_head(const float *p, int64_t n, float rest)
{
    return _mm256_blendv_ps(v_set(rest), _mm256_maskload_ps(p, v_head(n)), _mm256_castsi256_ps(v_head(n)));
}
static inline void v_store_head(float *p, int64_t n, vf x) { _mm256_maskstore_ps(p, v_head(n), x); }

/* 2^n by the exponent bits; where t is below the least normal exponent the result is 0 (but NaN stays). */
static inline vf v_scale_exp2(vf x, vf n, vf t)
{
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    vf keep = _mm256_cmp_ps(t, v_set(-126.0f), _CMP_NLT_UQ);
    return _mm256_and_ps(keep, _mm256_mul_ps(x, _mm256_castsi256_ps(bits)));
}
static inline vf v_round(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static const float EXP2_LEAST = -126.5f;

static inline vf v_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
static inline vf v_load_int8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline __m128i v_round_bf16(vf x)
{
    __m256i u = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    r = _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    r = _mm256_srli_epi32(r, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
static inline void v_store_bf16(uint16_t *p, vf x) { _mm_storeu_si128((__m128i *)p, v_round_bf16(x)); }
#endif

/* 2^t: t cut at 128 above; below 2^-126 (AVX2) or 2^-149 it is 0. NaN passes. Relative error 6e-8 (degree 6) or 2e-7
 * (degree 5); the coefficients interpolate 2^f at Chebyshev nodes of [-1/2, 1/2]. */
static inline __attribute__((always_inline)) vf v_exp2(vf t, const int degree)
{
    t = v_max(v_set(EXP2_LEAST), t);
    vf n = v_round(t), f = v_sub(t, n), p;
    if (degree == 6) {
        p = v_fma(v_set(1.545316295e-04f), f, v_set(1.339086336e-03f));
        p = v_fma(p, f, v_set(9.618082557e-03f));
        p = v_fma(p, f, v_set(5.550357114e-02f));
        p = v_fma(p, f, v_set(2.402265076e-01f));
        p = v_fma(p, f, v_set(6.931471880e-01f));
    } else {
        p = v_fma(v_set(1.338130254e-03f), f, v_set(9.666368515e-03f));
        p = v_fma(p, f, v_set(5.550381014e-02f));
        p = v_fma(p, f, v_set(2.402234904e-01f));
        p = v_fma(p, f, v_set(6.931471806e-01f));
    }
    p = v_fma(p, f, v_set(1.0f));
    return v_scale_exp2(p, n, t);
}

static const float LOG2E = 1.44269504088896340736f, LN2 = 0.69314718055994530942f;

#endif
