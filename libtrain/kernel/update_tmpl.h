/* The loops of update.h, compiled once for each instruction set: written plainly so that the compiler vectorises them.
 * Before including: NAME(x) gives the symbol of this variant. */
#include "libtrain/base/normal.h"
#include "libtrain/kernel/int8.h"
#include "libtrain/kernel/update.h"
#include <math.h>
#include <stdlib.h>

enum { CHUNK = 1024, NORM_ROWS = 8, NORM_CHUNK = 256 /* a multiple of int8's groups */ };

#define ROWS_IN_PARALLEL(t) _Pragma("omp parallel for schedule(static)") for (int64_t r = 0; r < tr_rows(t); r++)
#define CHUNKS(c, n, cols) for (int64_t c = 0, n; n = (cols) - c < CHUNK ? (cols) - c : CHUNK, c < (cols); c += CHUNK)

static inline void load(float *restrict out, const struct tr_tensor *t, int64_t r, int64_t c, int64_t n)
{
    if (t->dtype == TR_F32) {
        const float *x = (const float *)t->data + r * t->ld + c;
        for (int64_t i = 0; i < n; i++) out[i] = x[i];
    } else if (t->dtype == TR_BF16) {
        const uint16_t *x = (const uint16_t *)t->data + r * t->ld + c;
        for (int64_t i = 0; i < n; i++) out[i] = tr_bf16_to_f32(x[i]);
    } else { /* int8: chunks begin at a group */
        const int8_t *x = (const int8_t *)t->data + r * t->ld + c, *zero = t->quant.zero + r * tr_groups(t) + c / TR_QUANT_GROUP;
        const float *scale = t->quant.scale + r * tr_groups(t) + c / TR_QUANT_GROUP;
        for (int64_t i = 0; i < n; i++) out[i] = (float)(x[i] - zero[i / TR_QUANT_GROUP]) * scale[i / TR_QUANT_GROUP];
    }
}

static inline void store(struct tr_tensor *t, int64_t r, int64_t c, int64_t n, const float *restrict x)
{
    if (t->dtype == TR_F32) {
        float *y = (float *)t->data + r * t->ld + c;
        for (int64_t i = 0; i < n; i++) y[i] = x[i];
    } else {
        uint16_t *y = (uint16_t *)t->data + r * t->ld + c;
        for (int64_t i = 0; i < n; i++) y[i] = tr_f32_to_bf16(x[i]);
    }
}

/* bf16 is rounded stochastically (key {0,0}: to nearest). */
static inline void store_weight(struct tr_tensor *t, int64_t r, int64_t c, int64_t n, const float *restrict x, struct tr_noise noise)
{
    if (t->dtype == TR_F32 || tr_to_nearest(noise)) {
        store(t, r, c, n, x);
        return;
    }
    uint16_t *y = (uint16_t *)t->data + r * t->ld + c;
    uint32_t first = noise.first + (uint32_t)(r * tr_cols(t) + c);
    for (int64_t i = 0; i < n; i++) y[i] = tr_bf16_stochastic(x[i], first + (uint32_t)i, noise.key);
}

/* int8 with a new grid for each group, rounded stochastically (key {0,0}: to nearest); `draws`: the uniforms instead of the key's. */
static inline void store_int8(struct tr_tensor *t, int64_t r, int64_t c, int64_t n, const float *restrict x, const struct tr_apply *a)
{
    int8_t *q = (int8_t *)t->data + r * t->ld + c;
    int64_t first_group = r * tr_groups(t) + c / TR_QUANT_GROUP;
    uint32_t first = a->noise.first + (uint32_t)(r * tr_cols(t) + c);
    bool nearest = !a->draws && tr_to_nearest(a->noise);
    for (int64_t k = 0; k < n; k += TR_QUANT_GROUP) {
        int64_t size = n - k < TR_QUANT_GROUP ? n - k : TR_QUANT_GROUP;
        float u[TR_QUANT_GROUP];
        struct tr_grid8 grid = tr_grid8(x + k, size, a->published_grid);
        t->quant.scale[first_group + k / TR_QUANT_GROUP] = grid.scale;
        t->quant.zero[first_group + k / TR_QUANT_GROUP] = (int8_t)grid.zero;
        if (nearest) {
            tr_grid8_nearest(q + k, x + k, size, grid);
            continue;
        }
        if (a->draws) load(u, a->draws, r, c + k, size);
        else for (int64_t i = 0; i < size; i++) u[i] = (float)tr_bits16(first + (uint32_t)(k + i), a->noise.key) * 0x1p-16f;
        tr_grid8_stochastic(q + k, x + k, u, size, grid);
    }
}

static inline void step_weight(struct tr_tensor *w, int64_t r, int64_t c, int64_t n, const float *restrict x, const struct tr_apply *a)
{
    float u[CHUNK];
    load(u, w, r, c, n);
    for (int64_t i = 0; i < n; i++) u[i] = (a->before * u[i] - a->rate * x[i]) * a->after;
    if (w->dtype == TR_INT8) store_int8(w, r, c, n, u, a);
    else store_weight(w, r, c, n, u, a->noise);
}

static void NAME(apply)(struct tr_tensor *w, const struct tr_tensor *g, const struct tr_apply *a)
{
    if (w->quant.flat) {
        struct tr_tensor by_group = tr_flat_view(w), same = tr_reshape(g, 2, by_group.dim), u;
        struct tr_apply flat = *a;
        if (a->draws) u = tr_reshape(a->draws, 2, by_group.dim), flat.draws = &u;
        NAME(apply)(&by_group, &same, &flat);
        return;
    }
    ROWS_IN_PARALLEL(w) CHUNKS(c, n, tr_cols(w)) {
        float x[CHUNK];
        load(x, g, r, c, n);
        step_weight(w, r, c, n, x, a);
    }
}

static void NAME(apply_scaled)(struct tr_tensor *w, const struct tr_tensor *g, const struct tr_tensor *f, int axis, const struct tr_apply *a)
{
    const float *s = f->data;
    ROWS_IN_PARALLEL(w) CHUNKS(c, n, tr_cols(w)) {
        float x[CHUNK];
        load(x, g, r, c, n);
        if (axis == 0) for (int64_t i = 0; i < n; i++) x[i] *= s[r];
        else for (int64_t i = 0; i < n; i++) x[i] *= s[c + i];
        step_weight(w, r, c, n, x, a);
    }
}

static inline void adam_chunk(float *restrict x, struct tr_tensor *m, struct tr_tensor *v, const struct tr_tensor *g, int64_t r, int64_t c, int64_t n, const struct tr_adam *h)
{
    float mm[CHUNK], vv[CHUNK];
    load(x, g, r, c, n);
    load(mm, m, r, c, n);
    load(vv, v, r, c, n);
    float b1 = (float)h->beta1, b2 = (float)h->beta2, k1 = (float)(1 - h->beta1), k2 = (float)(1 - h->beta2);
    for (int64_t i = 0; i < n; i++) {
        mm[i] = b1 * mm[i] + k1 * x[i];
        vv[i] = b2 * vv[i] + k2 * (x[i] * x[i]);
        x[i] = mm[i] / (sqrtf(vv[i]) * h->root + h->eps);
    }
    store_weight(m, r, c, n, mm, h->noise);
    store_weight(v, r, c, n, vv, tr_second(h->noise));
}

static void NAME(adam)(struct tr_tensor *w, struct tr_tensor *m, struct tr_tensor *v, const struct tr_tensor *g, const struct tr_adam *h, const struct tr_apply *a)
{
    ROWS_IN_PARALLEL(w) CHUNKS(c, n, tr_cols(w)) {
        float x[CHUNK];
        adam_chunk(x, m, v, g, r, c, n, h);
        step_weight(w, r, c, n, x, a);
    }
}

static void NAME(adam_direction)(struct tr_tensor *u, struct tr_tensor *m, struct tr_tensor *v, const struct tr_tensor *g, const struct tr_adam *h)
{
    ROWS_IN_PARALLEL(u) CHUNKS(c, n, tr_cols(u)) {
        float x[CHUNK];
        adam_chunk(x, m, v, g, r, c, n, h);
        store(u, r, c, n, x);
    }
}

static void NAME(sgd)(struct tr_tensor *w, struct tr_tensor *b, const struct tr_tensor *g, float decay, float momentum, float keep, bool nesterov, bool first, const struct tr_apply *a)
{
    ROWS_IN_PARALLEL(w) CHUNKS(c, n, tr_cols(w)) {
        float x[CHUNK], u[CHUNK];
        load(x, g, r, c, n);
        load(u, w, r, c, n);
        for (int64_t i = 0; i < n; i++) x[i] += decay * u[i];
        if (b) {
            load(u, b, r, c, n);
            if (first) for (int64_t i = 0; i < n; i++) u[i] = x[i];
            else for (int64_t i = 0; i < n; i++) u[i] = momentum * u[i] + keep * x[i];
            store(b, r, c, n, u);
            if (nesterov) for (int64_t i = 0; i < n; i++) x[i] += momentum * u[i];
            else for (int64_t i = 0; i < n; i++) x[i] = u[i];
        }
        step_weight(w, r, c, n, x, a);
    }
}

static void NAME(norms)(struct tr_tensor *out, const struct tr_tensor *x, int axis)
{
    float *s = out->data;
    int64_t rows = tr_rows(x), cols = tr_cols(x);
    if (axis == 0) {
#pragma omp parallel for schedule(static)
        for (int64_t first = 0; first < rows; first += NORM_ROWS) { /* each row in its own order, several side by side: a sum waits for itself */
            double sum[NORM_ROWS] = { 0 };
            float u[NORM_ROWS][NORM_CHUNK] = { { 0 } };
            int64_t here = rows - first < NORM_ROWS ? rows - first : NORM_ROWS;
            for (int64_t c = 0; c < cols; c += NORM_CHUNK) {
                int64_t n = cols - c < NORM_CHUNK ? cols - c : NORM_CHUNK;
                for (int64_t k = 0; k < here; k++) load(u[k], x, first + k, c, n);
                for (int64_t i = 0; i < n; i++)
                    for (int k = 0; k < NORM_ROWS; k++) sum[k] += (double)u[k][i] * (double)u[k][i];
            }
            for (int64_t k = 0; k < here; k++) s[first + k] = (float)sqrt(sum[k]);
        }
        return;
    }
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < (cols + 63) / 64; c++) { /* a thread owns columns and walks the rows in order */
        double sum[64] = { 0 };
        float u[64];
        int64_t n = cols - 64 * c < 64 ? cols - 64 * c : 64;
        for (int64_t r = 0; r < rows; r++) {
            load(u, x, r, 64 * c, n);
            for (int64_t i = 0; i < n; i++) sum[i] += (double)u[i] * (double)u[i];
        }
        for (int64_t i = 0; i < n; i++) s[64 * c + i] = (float)sqrt(sum[i]);
    }
}

#include "libtrain/kernel/update_rules.h"

extern const struct tr_updates NAME(table);
const struct tr_updates NAME(table) = {
    .apply = NAME(apply), .apply_scaled = NAME(apply_scaled), .adam = NAME(adam), .adam_direction = NAME(adam_direction), .sgd = NAME(sgd), .norms = NAME(norms),
    .sign = NAME(sign), .clamp = NAME(clamp), .momentum = NAME(momentum), .scale_outer = NAME(scale_outer), .root_direction = NAME(root_direction), .adam_8bit = NAME(adam_8bit),
    .sign_scale = NAME(sign_scale), .pick = NAME(pick), .place = NAME(place), .lion_direction = NAME(lion_direction),
    .cut_step = NAME(cut_step), .cut_ratio = NAME(cut_ratio), .move = NAME(move), .weigh = NAME(weigh), .mean_squares = NAME(mean_squares),
};
