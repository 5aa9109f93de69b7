static void NAME(write)(struct tr_tensor *t, const void *host)
{
    size_t row = (size_t)tr_cols(t) * tr_dtype_size(t->dtype), step = (size_t)t->ld * tr_dtype_size(t->dtype);
    for (int64_t r = 0; r < tr_rows(t); r++) memcpy((char *)t->data + (size_t)r * step, (const char *)host + (size_t)r * row, row);
}

static void NAME(read)(const struct tr_tensor *t, void *host)
{
    size_t row = (size_t)tr_cols(t) * tr_dtype_size(t->dtype), step = (size_t)t->ld * tr_dtype_size(t->dtype);
    for (int64_t r = 0; r < tr_rows(t); r++) memcpy((char *)host + (size_t)r * row, (const char *)t->data + (size_t)r * step, row);
}

#define ROWS(t, r) _Pragma("omp parallel for schedule(static)") for (int64_t r = 0; r < tr_rows(t); r++)

static void NAME(copy)(struct tr_tensor *y, const struct tr_tensor *x)
{
    if (y->dtype == TR_INT8) {
        int64_t G = y->quant.group, groups = tr_groups(y);
        ROWS(y, r) for (int64_t g = 0; g < groups; g++) {
            float b[TR_QUANT_GROUP];
            int64_t n = tr_cols(y) - g * G < G ? tr_cols(y) - g * G : G;
            tr_load_row(b, x, r, g * G, n);
            tr_store_group(y, r, g, b, n);
        }
        return;
    }
    ROWS(y, r) TR_FOR_CHUNKS(c, n, tr_cols(y)) {
        float b[TR_CHUNK];
        tr_load_row(b, x, r, c, n);
        tr_store_row(y, r, c, n, b);
    }
}

static void NAME(fill)(struct tr_tensor *y, float value)
{
    float b[TR_CHUNK];
    for (int k = 0; k < TR_CHUNK; k++) b[k] = value;
    ROWS(y, r) TR_FOR_CHUNKS(c, n, tr_cols(y)) tr_store_row(y, r, c, n, b);
}

static void NAME(random_normal)(struct tr_tensor *y, struct tr_key key, float std)
{
    int64_t cols = tr_cols(y);
    ROWS(y, r) TR_FOR_CHUNKS(c, n, cols) {
        float b[TR_CHUNK];
        tr_normals_into(b, key, (uint64_t)(r * cols + c), n, std);
        tr_store_row(y, r, c, n, b);
    }
}

static void NAME(add)(struct tr_tensor *y, const struct tr_tensor *a, const struct tr_tensor *b)
{
    ROWS(y, r) TR_FOR_CHUNKS(c, n, tr_cols(y)) {
        float u[TR_CHUNK], v[TR_CHUNK];
        tr_load_row(u, a, r, c, n);
        tr_load_row(v, b, r, c, n);
        for (int64_t k = 0; k < n; k++) u[k] += v[k];
        tr_store_row(y, r, c, n, u);
    }
}

static void NAME(axpy)(struct tr_tensor *y, float alpha, const struct tr_tensor *x)
{
    ROWS(y, r) TR_FOR_CHUNKS(c, n, tr_cols(y)) {
        float u[TR_CHUNK], v[TR_CHUNK];
        tr_load_row(u, y, r, c, n);
        tr_load_row(v, x, r, c, n);
        for (int64_t k = 0; k < n; k++) u[k] += alpha * v[k];
        tr_store_row(y, r, c, n, u);
    }
}

static void NAME(softmax_gradient)(struct tr_tensor *q, const struct tr_tensor *part_N, const struct tr_tensor *target_N, float scale)
{
    ROWS(q, r) {
        float part = ((const float *)part_N->data)[r];
        int64_t hit = target_N ? ((const int32_t *)target_N->data)[r] : -1;
        TR_FOR_CHUNKS(c, n, tr_cols(q)) {
            float u[TR_CHUNK];
            tr_load_row(u, q, r, c, n);
            for (int64_t k = 0; k < n; k++) u[k] *= part;
            if (hit >= c && hit < c + n) u[hit - c] -= 1;
            for (int64_t k = 0; k < n; k++) u[k] *= scale;
            tr_store_row(q, r, c, n, u);
        }
    }
}

static void NAME(scale)(struct tr_tensor *y, float alpha)
{
    ROWS(y, r) TR_FOR_CHUNKS(c, n, tr_cols(y)) {
        float u[TR_CHUNK];
        tr_load_row(u, y, r, c, n);
        for (int64_t k = 0; k < n; k++) u[k] *= alpha;
        tr_store_row(y, r, c, n, u);
    }
}

static double NAME(sum_squares)(const struct tr_tensor *x) /* a row is summed in order, rows by blocks of 64 in order */
{
    int64_t rows = tr_rows(x), blocks = (rows + 63) / 64;
    double *part = calloc((size_t)blocks + 1, sizeof *part), sum = 0;
    if (!part) return NAN;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t r = 64 * b; r < rows && r < 64 * b + 64; r++) TR_FOR_CHUNKS(c, n, tr_cols(x)) {
            float u[TR_CHUNK];
            tr_load_row(u, x, r, c, n);
            part[b] += dot(u, u, n);
        }
    for (int64_t b = 0; b < blocks; b++) sum += part[b];
    free(part);
    return sum;
}

static void NAME(sum_squares_panels)(double *sum, const struct tr_tensor *x, const int64_t *begin, int n)
{
    for (int k = 0; k < n; k++) {
        struct tr_tensor panel = tr_rows_view(x, begin[k], begin[k + 1] - begin[k]);
        sum[k] = begin[k + 1] > begin[k] ? NAME(sum_squares)(&panel) : 0;
    }
}

static bool NAME(all_finite)(const struct tr_tensor *x)
{
    int bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad)
    for (int64_t r = 0; r < tr_rows(x); r++) TR_FOR_CHUNKS(c, n, tr_cols(x)) {
        float u[TR_CHUNK];
        tr_load_row(u, x, r, c, n);
        for (int64_t k = 0; k < n; k++) {
            uint32_t bits;
            memcpy(&bits, &u[k], 4);
            bad |= (bits & 0x7f800000u) == 0x7f800000u;
        }
    }
    return !bad;
}

static void NAME(swiglu)(struct tr_tensor *a, const struct tr_tensor *gu)
{
    int64_t I = tr_cols(a);
    ROWS(a, r) TR_FOR_CHUNKS(c, n, I) {
        float g[TR_CHUNK], u[TR_CHUNK];
        tr_load_row(g, gu, r, c, n);
        tr_load_row(u, gu, r, I + c, n);
        for (int64_t k = 0; k < n; k++) u[k] *= g[k] / (1 + EXP(-g[k]));
        tr_store_row(a, r, c, n, u);
    }
}

static void NAME(swiglu_backward)(struct tr_tensor *dgu, const struct tr_tensor *da, const struct tr_tensor *gu)
{
    int64_t I = tr_cols(da);
    ROWS(da, r) TR_FOR_CHUNKS(c, n, I) {
        float g[TR_CHUNK], u[TR_CHUNK], d[TR_CHUNK];
        tr_load_row(g, gu, r, c, n);
        tr_load_row(u, gu, r, I + c, n);
        tr_load_row(d, da, r, c, n);
        for (int64_t k = 0; k < n; k++) {
            float s = 1 / (1 + EXP(-g[k])), silu = g[k] * s;
            float dg = d[k] * u[k] * (s + silu * (1 - s));
            u[k] = d[k] * silu;
            g[k] = dg;
        }
        tr_store_row(dgu, r, c, n, g);
        tr_store_row(dgu, r, I + c, n, u);
    }
}

static const float GELU_A = 0.7978845608028654f, GELU_B = 0.044715f; /* sqrt(2/pi) */

static void NAME(gelu)(struct tr_tensor *y, const struct tr_tensor *x)
{
    ROWS(y, r) TR_FOR_CHUNKS(c, n, tr_cols(y)) {
        float u[TR_CHUNK];
        tr_load_row(u, x, r, c, n);
        for (int64_t k = 0; k < n; k++) u[k] = 0.5f * u[k] * (1 + TANH(GELU_A * (u[k] + GELU_B * u[k] * u[k] * u[k])));
        tr_store_row(y, r, c, n, u);
    }
}

static void NAME(gelu_backward)(struct tr_tensor *dx, const struct tr_tensor *dy, const struct tr_tensor *x)
{
    ROWS(dx, r) TR_FOR_CHUNKS(c, n, tr_cols(dx)) {
        float u[TR_CHUNK], d[TR_CHUNK];
        tr_load_row(u, x, r, c, n);
        tr_load_row(d, dy, r, c, n);
        for (int64_t k = 0; k < n; k++) {
            float t = TANH(GELU_A * (u[k] + GELU_B * u[k] * u[k] * u[k]));
            d[k] *= 0.5f * (1 + t) + 0.5f * u[k] * (1 - t * t) * GELU_A * (1 + 3 * GELU_B * u[k] * u[k]);
        }
        tr_store_row(dx, r, c, n, d);
    }
}

static void NAME(add_bias)(struct tr_tensor *y, const struct tr_tensor *b)
{
    ROWS(y, r) TR_FOR_CHUNKS(c, n, tr_cols(y)) {
        float u[TR_CHUNK], v[TR_CHUNK];
        tr_load_row(u, y, r, c, n);
        tr_load_row(v, b, 0, c, n);
        for (int64_t k = 0; k < n; k++) u[k] += v[k];
        tr_store_row(y, r, c, n, u);
    }
}

/* Sums over rows: a thread owns columns and walks all rows in order, so the bits do not depend on the threads. */
static void NAME(bias_backward)(struct tr_tensor *db, const struct tr_tensor *dy)
{
    int64_t O = tr_cols(dy), chunks = (O + 63) / 64;
#pragma omp parallel for schedule(static)
    for (int64_t q = 0; q < chunks; q++) {
        int64_t c = q * 64, n = O - c < 64 ? O - c : 64;
        float sum[64] = { 0 }, v[64];
        for (int64_t r = 0; r < tr_rows(dy); r++) {
            tr_load_row(v, dy, r, c, n);
            for (int64_t k = 0; k < n; k++) sum[k] += v[k];
        }
        for (int64_t k = 0; k < n; k++) ((float *)db->data)[c + k] += sum[k];
    }
}
