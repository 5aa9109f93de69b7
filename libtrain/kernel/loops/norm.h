/* Rows are split into groups as wide as the gain; r has one entry for each. */
static void NAME(rms_norm)(struct tr_tensor *y, struct tr_tensor *r, const struct tr_tensor *x, const struct tr_tensor *g, float eps)
{
    int64_t W = tr_cols(g), groups = tr_cols(x) / W, rows = tr_rows(x) * groups;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float u[TR_CHUNK], v[TR_CHUNK];
        int64_t row = i / groups, at = i % groups * W;
        double sum = 0;
        TR_FOR_CHUNKS(c, n, W) {
            tr_load_row(u, x, row, at + c, n);
            sum += dot(u, u, n);
        }
        float ri = 1 / sqrtf((float)(sum / (double)W) + eps);
        ((float *)r->data)[i] = ri;
        TR_FOR_CHUNKS(c, n, W) {
            tr_load_row(u, x, row, at + c, n);
            tr_load_row(v, g, 0, c, n);
            for (int64_t k = 0; k < n; k++) u[k] = u[k] * ri * v[k];
            tr_store_row(y, row, at + c, n, u);
        }
    }
}

static void NAME(rms_norm_rebuild)(struct tr_tensor *y, const struct tr_tensor *r, const struct tr_tensor *x, const struct tr_tensor *g)
{
    int64_t W = tr_cols(g), groups = tr_cols(x) / W, rows = tr_rows(x) * groups;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float u[TR_CHUNK], v[TR_CHUNK], ri = ((const float *)r->data)[i];
        int64_t row = i / groups, at = i % groups * W;
        TR_FOR_CHUNKS(c, n, W) {
            tr_load_row(u, x, row, at + c, n);
            tr_load_row(v, g, 0, c, n);
            for (int64_t k = 0; k < n; k++) u[k] = u[k] * ri * v[k];
            tr_store_row(y, row, at + c, n, u);
        }
    }
}

/* dg first (it reads dy, which dx may overwrite): a thread owns columns and walks the rows in order. */
static void NAME(rms_norm_backward)(struct tr_tensor *dx, bool acc, struct tr_tensor *dg, const struct tr_tensor *dy,
                              const struct tr_tensor *x, const struct tr_tensor *r, const struct tr_tensor *g)
{
    int64_t W = tr_cols(g), groups = tr_cols(x) / W, rows = tr_rows(x) * groups, chunks = (W + 63) / 64;
    if (dg)
#pragma omp parallel for schedule(static)
        for (int64_t q = 0; q < chunks; q++) {
            int64_t c = q * 64, n = W - c < 64 ? W - c : 64;
            float sum[64] = { 0 }, u[64], d[64];
            for (int64_t i = 0; i < rows; i++) {
                float ri = ((const float *)r->data)[i];
                tr_load_row(u, x, i / groups, i % groups * W + c, n);
                tr_load_row(d, dy, i / groups, i % groups * W + c, n);
                for (int64_t k = 0; k < n; k++) sum[k] += d[k] * u[k] * ri;
            }
            for (int64_t k = 0; k < n; k++) ((float *)dg->data)[c + k] += sum[k];
        }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float u[TR_CHUNK], v[TR_CHUNK], d[TR_CHUNK], ri = ((const float *)r->data)[i];
        int64_t row = i / groups, at = i % groups * W;
        double along = 0;
        TR_FOR_CHUNKS(c, n, W) {
            tr_load_row(u, x, row, at + c, n);
            tr_load_row(v, g, 0, c, n);
            tr_load_row(d, dy, row, at + c, n);
            for (int64_t k = 0; k < n; k++) d[k] *= v[k];
            along += dot(d, u, n);
        }
        float mean = (float)(along / (double)W) * ri;
        TR_FOR_CHUNKS(c, n, W) {
            float o[TR_CHUNK];
            tr_load_row(u, x, row, at + c, n);
            tr_load_row(v, g, 0, c, n);
            tr_load_row(d, dy, row, at + c, n);
            if (acc) tr_load_row(o, dx, row, at + c, n);
            for (int64_t k = 0; k < n; k++) o[k] = (acc ? o[k] : 0) + ri * (d[k] * v[k] - u[k] * ri * mean);
            tr_store_row(dx, row, at + c, n, o);
        }
    }
}

static void normalise(struct tr_tensor *y, int64_t i, const struct tr_tensor *x, float mean, float rstd, const struct tr_tensor *g, const struct tr_tensor *b)
{
    float u[TR_CHUNK], v[TR_CHUNK], w[TR_CHUNK];
    TR_FOR_CHUNKS(c, n, tr_cols(x)) {
        tr_load_row(u, x, i, c, n);
        tr_load_row(v, g, 0, c, n);
        tr_load_row(w, b, 0, c, n);
        for (int64_t k = 0; k < n; k++) u[k] = (u[k] - mean) * rstd * v[k] + w[k];
        tr_store_row(y, i, c, n, u);
    }
}

static void NAME(layer_norm)(struct tr_tensor *y, struct tr_tensor *stat, const struct tr_tensor *x, const struct tr_tensor *g, const struct tr_tensor *b, float eps)
{
    int64_t C = tr_cols(x);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tr_rows(x); i++) {
        float u[TR_CHUNK], *s = (float *)stat->data + 2 * i;
        double sum = 0, var = 0;
        TR_FOR_CHUNKS(c, n, C) {
            tr_load_row(u, x, i, c, n);
            sum += dot(u, NULL, n);
        }
        double mean = sum / (double)C;
        TR_FOR_CHUNKS(c, n, C) {
            tr_load_row(u, x, i, c, n);
            for (int64_t k = 0; k < n; k++) u[k] -= (float)mean;
            var += dot(u, u, n);
        }
        s[0] = (float)mean;
        s[1] = 1 / sqrtf((float)(var / (double)C) + eps);
        normalise(y, i, x, s[0], s[1], g, b);
    }
}

static void NAME(layer_norm_rebuild)(struct tr_tensor *y, const struct tr_tensor *stat, const struct tr_tensor *x, const struct tr_tensor *g, const struct tr_tensor *b)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tr_rows(x); i++) normalise(y, i, x, ((const float *)stat->data)[2 * i], ((const float *)stat->data)[2 * i + 1], g, b);
}

static void NAME(layer_norm_backward)(struct tr_tensor *dx, bool acc, struct tr_tensor *dg, struct tr_tensor *db, const struct tr_tensor *dy,
                                const struct tr_tensor *x, const struct tr_tensor *stat, const struct tr_tensor *g)
{
    int64_t C = tr_cols(x), rows = tr_rows(x), chunks = (C + 63) / 64;
    const float *s = stat->data;
#pragma omp parallel for schedule(static)
    for (int64_t q = 0; q < chunks; q++) {
        int64_t c = q * 64, n = C - c < 64 ? C - c : 64;
        float sg[64] = { 0 }, sb[64] = { 0 }, u[64], d[64];
        for (int64_t i = 0; i < rows; i++) {
            tr_load_row(u, x, i, c, n);
            tr_load_row(d, dy, i, c, n);
            for (int64_t k = 0; k < n; k++) {
                sg[k] += d[k] * (u[k] - s[2 * i]) * s[2 * i + 1];
                sb[k] += d[k];
            }
        }
        for (int64_t k = 0; k < n; k++) {
            ((float *)dg->data)[c + k] += sg[k];
            ((float *)db->data)[c + k] += sb[k];
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float u[TR_CHUNK], v[TR_CHUNK], d[TR_CHUNK], o[TR_CHUNK], mean = s[2 * i], rstd = s[2 * i + 1];
        double m1 = 0, m2 = 0;
        TR_FOR_CHUNKS(c, n, C) {
            tr_load_row(u, x, i, c, n);
            tr_load_row(v, g, 0, c, n);
            tr_load_row(d, dy, i, c, n);
            for (int64_t k = 0; k < n; k++) {
                d[k] *= v[k];
                u[k] = (u[k] - mean) * rstd;
            }
            m1 += dot(d, NULL, n);
            m2 += dot(d, u, n);
        }
        float a = (float)(m1 / (double)C), b = (float)(m2 / (double)C);
        TR_FOR_CHUNKS(c, n, C) {
            tr_load_row(u, x, i, c, n);
            tr_load_row(v, g, 0, c, n);
            tr_load_row(d, dy, i, c, n);
            if (acc) tr_load_row(o, dx, i, c, n);
            for (int64_t k = 0; k < n; k++) o[k] = (acc ? o[k] : 0) + rstd * (d[k] * v[k] - a - (u[k] - mean) * rstd * b);
            tr_store_row(dx, i, c, n, o);
        }
    }
}
