static void NAME(embed)(struct tr_tensor *y, const struct tr_tensor *w, const struct tr_tensor *ids, bool acc)
{
    const int32_t *id = ids->data;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tr_rows(y); i++) TR_FOR_CHUNKS(c, n, tr_cols(y)) {
        float u[TR_CHUNK], v[TR_CHUNK];
        tr_load_row(u, w, id[i], c, n);
        if (acc) {
            tr_load_row(v, y, i, c, n);
            for (int64_t k = 0; k < n; k++) u[k] += v[k];
        }
        tr_store_row(y, i, c, n, u);
    }
}

/* A thread owns columns and walks the tokens in order: equal ids meet without a race and in one order. */
static void NAME(embed_backward)(struct tr_tensor *dw, const struct tr_tensor *dy, const struct tr_tensor *ids)
{
    const int32_t *id = ids->data;
    int64_t C = tr_cols(dy), chunks = (C + 63) / 64;
#pragma omp parallel for schedule(static)
    for (int64_t q = 0; q < chunks; q++) {
        int64_t c = q * 64, n = C - c < 64 ? C - c : 64;
        float d[64];
        for (int64_t i = 0; i < tr_rows(dy); i++) {
            float *to = (float *)dw->data + id[i] * dw->ld + c;
            tr_load_row(d, dy, i, c, n);
            for (int64_t k = 0; k < n; k++) to[k] += d[k];
        }
    }
}

static void NAME(scatter)(struct tr_tensor *y, const struct tr_tensor *x, const struct tr_tensor *rows)
{
    const int32_t *row = rows->data;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tr_rows(x); i++) TR_FOR_CHUNKS(c, n, tr_cols(x)) {
        float u[TR_CHUNK];
        tr_load_row(u, x, i, c, n);
        tr_store_row(y, row[i], c, n, u);
    }
}

static void NAME(rope)(struct tr_tensor *x, const struct tr_tensor *cs, const struct tr_tensor *pos, int64_t heads, bool inverse)
{
    int64_t D = tr_cols(cs), half = D / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tr_rows(x); i++) {
        const float *c = (const float *)cs->data + ((const int32_t *)pos->data)[i] * cs->ld, *s = c + half;
        for (int64_t h = 0; h < heads; h++)
            for (int64_t d = 0; d < half; d += TR_CHUNK) {
                int64_t n = half - d < TR_CHUNK ? half - d : TR_CHUNK;
                float a[TR_CHUNK], b[TR_CHUNK];
                tr_load_row(a, x, i, h * D + d, n);
                tr_load_row(b, x, i, h * D + half + d, n);
                for (int64_t k = 0; k < n; k++) {
                    float sn = sign * s[d + k], u = a[k] * c[d + k] - b[k] * sn;
                    b[k] = b[k] * c[d + k] + a[k] * sn;
                    a[k] = u;
                }
                tr_store_row(x, i, h * D + d, n, a);
                tr_store_row(x, i, h * D + half + d, n, b);
            }
    }
}
