/* Loops of further rules; part of update_tmpl.h. */

static void NAME(sign)(struct tr_tensor *w, struct tr_tensor *m, const struct tr_tensor *g, const struct tr_sign *h, const struct tr_apply *a)
{
    ROWS_IN_PARALLEL(w) CHUNKS(c, n, tr_cols(w)) {
        float x[CHUNK], u[CHUNK];
        load(x, g, r, c, n);
        if (m) {
            float mm[CHUNK];
            load(mm, m, r, c, n);
            for (int64_t i = 0; i < n; i++) {
                u[i] = h->step_m * mm[i] + h->step_g * x[i];
                mm[i] = h->keep_m * mm[i] + h->keep_g * x[i];
            }
            store_weight(m, r, c, n, mm, h->noise);
        } else for (int64_t i = 0; i < n; i++) u[i] = x[i];
        for (int64_t i = 0; i < n; i++) x[i] = u[i] > 0 ? 1.0f : u[i] < 0 ? -1.0f : 0.0f;
        step_weight(w, r, c, n, x, a);
    }
}

static void NAME(clamp)(struct tr_tensor *g, float limit)
{
    ROWS_IN_PARALLEL(g) CHUNKS(c, n, tr_cols(g)) {
        float x[CHUNK];
        load(x, g, r, c, n);
        for (int64_t i = 0; i < n; i++) x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
        store(g, r, c, n, x);
    }
}

static void NAME(momentum)(struct tr_tensor *g, struct tr_tensor *m, float keep_m, float keep_g, float out_g, float out_m)
{
    ROWS_IN_PARALLEL(g) CHUNKS(c, n, tr_cols(g)) {
        float x[CHUNK], u[CHUNK];
        load(x, g, r, c, n);
        load(u, m, r, c, n);
        for (int64_t i = 0; i < n; i++) {
            u[i] = keep_m * u[i] + keep_g * x[i];
            x[i] = out_g * x[i] + out_m * u[i];
        }
        store(m, r, c, n, u);
        store(g, r, c, n, x);
    }
}

static void NAME(scale_outer)(struct tr_tensor *g, const struct tr_tensor *row, const struct tr_tensor *col)
{
    const float *fr = row->data, *fc = col->data;
    ROWS_IN_PARALLEL(g) CHUNKS(c, n, tr_cols(g)) {
        float x[CHUNK];
        load(x, g, r, c, n);
        for (int64_t i = 0; i < n; i++) x[i] *= fr[r] * fc[c + i];
        store(g, r, c, n, x);
    }
}

static void NAME(root_direction)(struct tr_tensor *g, struct tr_tensor *v, float beta, float eps)
{
    ROWS_IN_PARALLEL(g) CHUNKS(c, n, tr_cols(g)) {
        float x[CHUNK], u[CHUNK];
        load(x, g, r, c, n);
        load(u, v, r, c, n);
        for (int64_t i = 0; i < n; i++) {
            u[i] = beta * u[i] + (1 - beta) * (x[i] * x[i] + eps);
            x[i] = x[i] / sqrtf(u[i]);
        }
        store(v, r, c, n, u);
        store(g, r, c, n, x);
    }
}

/* A block's codes: of each value the nearest of 256 sorted ones, ties to the lower, which is the number of midpoints below it, found in
 * eight halvings. The halvings are the outer loop, so that all values of the block go through one side by side: a search
 * for each value by itself costs five times as much, its branches cannot be foretold. */
static inline float encode(uint8_t *restrict code, const float *restrict x, int64_t n, const struct tr_book *book)
{
    float most = 0, y[TR_BLOCK_8BIT] = { 0 };
    int32_t at[TR_BLOCK_8BIT] = { 0 };
    const float *restrict middle = book->middle;
    for (int64_t i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float by = most > 0 ? 1 / most : 0;
    if (n == TR_BLOCK_8BIT) for (int64_t i = 0; i < TR_BLOCK_8BIT; i++) y[i] = x[i] * by;
    else for (int64_t i = 0; i < n; i++) y[i] = most > 0 ? x[i] / most : 0;
    for (int32_t step = 128; step; step /= 2)
        for (int i = 0; i < TR_BLOCK_8BIT; i++) at[i] += step * (y[i] > middle[at[i] + step - 1]);
    for (int64_t i = 0; i < n; i++) code[i] = (uint8_t)at[i];
    return most;
}

/* Elements are numbered row after row whatever the rows' stride; a block may begin within one. */
static void NAME(adam_8bit)(struct tr_tensor *g, struct tr_tensor *m, struct tr_tensor *v, struct tr_tensor *m_most, struct tr_tensor *v_most, const struct tr_adam *h)
{
    int64_t cols = tr_cols(g), count = tr_rows(g) * cols;
    float *ms = m_most->data, *vs = v_most->data, b1 = (float)h->beta1, b2 = (float)h->beta2, k1 = (float)(1 - h->beta1), k2 = (float)(1 - h->beta2);
    uint8_t *mc = m->data, *vc = v->data;
    const struct tr_book *with_sign = tr_book_8bit(true), *positive = tr_book_8bit(false);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < (count + TR_BLOCK_8BIT - 1) / TR_BLOCK_8BIT; block++) {
        int64_t begin = block * TR_BLOCK_8BIT, n = count - begin < TR_BLOCK_8BIT ? count - begin : TR_BLOCK_8BIT;
        float x[TR_BLOCK_8BIT], mm[TR_BLOCK_8BIT], vv[TR_BLOCK_8BIT];
        for (int64_t at = 0, part; at < n; at += part) {
            int64_t r = (begin + at) / cols, c = (begin + at) % cols;
            part = cols - c < n - at ? cols - c : n - at;
            memcpy(x + at, (const float *)g->data + r * g->ld + c, (size_t)part * sizeof *x);
        }
        for (int64_t i = 0; i < n; i++) {
            mm[i] = b1 * (with_sign->value[mc[begin + i]] * ms[block]) + k1 * x[i];
            vv[i] = b2 * (positive->value[vc[begin + i]] * vs[block]) + k2 * (x[i] * x[i]);
            x[i] = mm[i] / (sqrtf(vv[i]) * h->root + h->eps);
        }
        ms[block] = encode(mc + begin, mm, n, with_sign);
        vs[block] = encode(vc + begin, vv, n, positive);
        for (int64_t at = 0, part; at < n; at += part) {
            int64_t r = (begin + at) / cols, c = (begin + at) % cols;
            part = cols - c < n - at ? cols - c : n - at;
            memcpy((float *)g->data + r * g->ld + c, x + at, (size_t)part * sizeof *x);
        }
    }
}

static void NAME(sign_scale)(struct tr_tensor *g, float factor)
{
    ROWS_IN_PARALLEL(g) CHUNKS(c, n, tr_cols(g)) {
        float x[CHUNK];
        load(x, g, r, c, n);
        for (int64_t i = 0; i < n; i++) x[i] = x[i] > 0 ? factor : x[i] < 0 ? -factor : 0;
        store(g, r, c, n, x);
    }
}

static void NAME(cut_step)(struct tr_tensor *g, const struct tr_tensor *h, float scale, float eps)
{
    ROWS_IN_PARALLEL(g) CHUNKS(c, n, tr_cols(g)) {
        float x[CHUNK], u[CHUNK];
        load(x, g, r, c, n);
        load(u, h, r, c, n);
        for (int64_t i = 0; i < n; i++) {
            float y = fabsf(x[i]) / (scale * u[i] + eps);
            x[i] = copysignf(y < 1 ? y : 1, x[i]) * (x[i] != 0);
        }
        store(g, r, c, n, x);
    }
}

static void NAME(cut_ratio)(struct tr_tensor *g, const struct tr_tensor *h, float eps, float most)
{
    ROWS_IN_PARALLEL(g) CHUNKS(c, n, tr_cols(g)) {
        float x[CHUNK], v[CHUNK];
        load(x, g, r, c, n);
        load(v, h, r, c, n);
        for (int64_t i = 0; i < n; i++) {
            float y = x[i] / (v[i] > eps ? v[i] : eps);
            x[i] = y > most ? most : y < -most ? -most : y;
        }
        store(g, r, c, n, x);
    }
}

/* n elements of a direction from `at` on. */
static inline void direction(float *restrict d, const struct tr_direction *z, int64_t at, int64_t n)
{
    if (z->given) memcpy(d, (const float *)z->given->data + at, (size_t)n * sizeof *d);
    else tr_normals_into(d, z->key, (uint64_t)at, n, 1);
    if (z->zeros > 0 && !z->given)
        for (int64_t i = 0; i < n; i++) d[i] = tr_uniform(z->mask, (uint64_t)(at + i)) < z->zeros ? 0 : d[i];
}

static void NAME(move)(struct tr_tensor *w, float before, float scale, const struct tr_direction *z)
{
    int64_t cols = tr_cols(w);
    ROWS_IN_PARALLEL(w) CHUNKS(c, n, cols) {
        float x[CHUNK], d[CHUNK];
        load(x, w, r, c, n);
        direction(d, z, z->first + r * cols + c, n);
        for (int64_t i = 0; i < n; i++) x[i] = before * x[i] + scale * d[i];
        store(w, r, c, n, x);
    }
}

static void NAME(weigh)(struct tr_tensor *g, float scale, const struct tr_direction *z)
{
    int64_t cols = tr_cols(g);
    ROWS_IN_PARALLEL(g) CHUNKS(c, n, cols) {
        float x[CHUNK], d[CHUNK];
        load(x, g, r, c, n);
        direction(d, z, z->first + r * cols + c, n);
        for (int64_t i = 0; i < n; i++) x[i] *= scale * d[i];
        store(g, r, c, n, x);
    }
}

static void NAME(mean_squares)(struct tr_tensor *h, const struct tr_tensor *g, float keep, float take)
{
    ROWS_IN_PARALLEL(h) CHUNKS(c, n, tr_cols(h)) {
        float x[CHUNK], u[CHUNK];
        load(x, g, r, c, n);
        load(u, h, r, c, n);
        for (int64_t i = 0; i < n; i++) u[i] = keep * u[i] + take * (x[i] * x[i]);
        store(h, r, c, n, u);
    }
}

/* Where element (r, c) of a selection lies in the matrix. */
static inline int64_t selected(const struct tr_tensor *g, const int32_t *index, int axis, int64_t r, int64_t c)
{
    if (axis == 0) return index[r] * g->ld + c;
    if (axis == 1) return r * g->ld + index[c];
    return index[c] / tr_cols(g) * g->ld + index[c] % tr_cols(g);
}

static void NAME(pick)(struct tr_tensor *low, const struct tr_tensor *g, const struct tr_tensor *index, int axis)
{
    const float *from = g->data;
    ROWS_IN_PARALLEL(low) for (int64_t c = 0; c < tr_cols(low); c++)
        ((float *)low->data)[r * low->ld + c] = from[selected(g, index->data, axis, r, c)];
}

static void NAME(place)(struct tr_tensor *g, const struct tr_tensor *low, const struct tr_tensor *index, int axis, float factor)
{
    float *to = g->data;
    ROWS_IN_PARALLEL(low) for (int64_t c = 0; c < tr_cols(low); c++)
        to[selected(g, index->data, axis, r, c)] = factor * ((const float *)low->data)[r * low->ld + c];
}

static void NAME(lion_direction)(struct tr_tensor *u, struct tr_tensor *m, const struct tr_sign *h)
{
    ROWS_IN_PARALLEL(u) CHUNKS(c, n, tr_cols(u)) {
        float x[CHUNK], mm[CHUNK];
        load(x, u, r, c, n);
        load(mm, m, r, c, n);
        for (int64_t i = 0; i < n; i++) {
            float y = h->step_m * mm[i] + h->step_g * x[i];
            mm[i] = h->keep_m * mm[i] + h->keep_g * x[i];
            x[i] = y > 0 ? 1.0f : y < 0 ? -1.0f : 0.0f;
        }
        store_weight(m, r, c, n, mm, h->noise);
        store(u, r, c, n, x);
    }
}
