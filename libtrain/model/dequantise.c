/* Blocks of GGUF's element types to f32. Layouts as the format defines them: scales are f16, nibbles pair element i with
 * i + 16 (Q4, Q5) or i + 32 (K types). */
#include "libtrain/model/weights_impl.h"
#include "libtrain/base/dtype.h"
#include <string.h>

static float half_at(const unsigned char *p)
{
    uint32_t h = (uint32_t)p[0] | (uint32_t)p[1] << 8, sign = (h & 0x8000u) << 16, e = (h >> 10) & 31, m = h & 1023, u;
    float f;
    if (e == 0) {
        f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    u = e == 31 ? sign | 0x7f800000u | m << 13 : sign | (e + 112) << 23 | m << 13;
    memcpy(&f, &u, 4);
    return f;
}

static uint32_t word_at(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }

/* Q4_0: d, 16 bytes; (q - 8) d.  Q4_1: d, m, 16 bytes; q d + m. */
static void q4(const unsigned char *b, bool offset, float *y)
{
    float d = half_at(b), m = offset ? half_at(b + 2) : -8 * d;
    const unsigned char *q = b + (offset ? 4 : 2);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(q[i] & 15) * d + m;
        y[i + 16] = (float)(q[i] >> 4) * d + m;
    }
}

/* As Q4 with a fifth bit for each element in a word of 32. */
static void q5(const unsigned char *b, bool offset, float *y)
{
    float d = half_at(b), m = offset ? half_at(b + 2) : -16 * d;
    const unsigned char *h = b + (offset ? 4 : 2), *q = h + 4;
    uint32_t high = word_at(h);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((q[i] & 15) | ((high >> i) & 1) << 4) * d + m;
        y[i + 16] = (float)((q[i] >> 4) | ((high >> (i + 16)) & 1) << 4) * d + m;
    }
}

/* Scale and minimum of sub-block j of 8, six bits each, packed in 12 bytes. */
static void scale_min(int j, const unsigned char *s, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    }
}

/* Q4_K: d, dmin, 12 bytes of scales, 128 of nibbles.  Q5_K: 32 bytes of fifth bits before the nibbles. */
static void q45_k(const unsigned char *b, bool five, float *y)
{
    float d = half_at(b), dmin = half_at(b + 2);
    const unsigned char *s = b + 4, *high = b + 16, *q = b + (five ? 48 : 16);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        scale_min(j, s, &scale, &min);
        for (int i = 0; i < 32; i++) {
            int v = j % 2 ? q[32 * (j / 2) + i] >> 4 : q[32 * (j / 2) + i] & 15;
            if (five) v |= ((high[i] >> j) & 1) << 4;
            y[32 * j + i] = d * (float)scale * (float)v - dmin * (float)min;
        }
    }
}

/* Q6_K: 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, d. */
static void q6_k(const unsigned char *b, float *y)
{
    float d = half_at(b + 208);
    for (int half = 0; half < 2; half++) {
        const unsigned char *low = b + 64 * half, *high = b + 128 + 32 * half, *s = b + 192 + 8 * half;
        float *out = y + 128 * half;
        for (int i = 0; i < 32; i++)
            for (int k = 0; k < 4; k++) {
                int nibble = k < 2 ? low[i + 32 * k] & 15 : low[i + 32 * (k - 2)] >> 4;
                int v = (nibble | ((high[i] >> (2 * k)) & 3) << 4) - 32;
                out[i + 32 * k] = d * (float)(int8_t)s[i / 16 + 2 * k] * (float)v;
            }
    }
}

void tr_dequantise(enum tr_stored type, const unsigned char *data, int64_t blocks, float *out)
{
    const struct tr_stored_type *st = &tr_stored_types[type];
    if (type == ST_F32) {
        memcpy(out, data, (size_t)blocks * 4);
        return;
    }
    for (int64_t b = 0; b < blocks; b++, data += st->bytes, out += st->block) {
        double wide;
        switch (type) {
        case ST_F16: *out = half_at(data); break;
        case ST_BF16: *out = tr_bf16_to_f32((uint16_t)(data[0] | data[1] << 8)); break;
        case ST_F64: memcpy(&wide, data, 8); *out = (float)wide; break;
        case ST_Q4_0: q4(data, false, out); break;
        case ST_Q4_1: q4(data, true, out); break;
        case ST_Q5_0: q5(data, false, out); break;
        case ST_Q5_1: q5(data, true, out); break;
        case ST_Q8_0: for (int i = 0; i < 32; i++) out[i] = half_at(data) * (float)(int8_t)data[2 + i]; break;
        case ST_Q4_K: q45_k(data, false, out); break;
        case ST_Q5_K: q45_k(data, true, out); break;
        case ST_Q6_K: q6_k(data, out); break;
        default: break;
        }
    }
}
