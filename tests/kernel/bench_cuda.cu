/* The kernels for CUDA devices on a device: each against plain loops in double, then its rate on shapes of a model. Stands alone:
 *
 *     nvcc -std=c++17 -O3 --fmad=false -arch=sm_90 -I. tests/kernel/bench_cuda.cu libtrain/kernel/cuda/[a-z]*.cu -o bench_cuda
 *     ./bench_cuda           all; exit 1 if a result is wrong
 *     ./bench_cuda check     no rates
 *
 * GB/s count what must be read and written once; a plain copy on the device stands first, for comparison. TFLOP/s count the products
 * that the mask leaves, the backward pass as 2.5 forward ones (its kernels do 3.5). */
#include <cuda_runtime.h>
#include "libtrain/kernel/cuda/launch.h"
#include <algorithm>
#include <chrono>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

typedef std::vector<float> floats;
typedef std::vector<int32_t> ints;
static int wrong;
static bool rates = true;

static void must(int err, const char *what)
{
    if (!err) err = (int)cudaStreamSynchronize(nullptr);
    if (!err) return;
    printf("%s: %s\n", what, tr_cuda_text(err));
    exit(1);
}

static float bf16(float f)
{
    unsigned u;
    memcpy(&u, &f, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&f, &u, 4);
    return f;
}

static void *on_device(const void *host, size_t bytes)
{
    void *p = nullptr;
    must((int)cudaMalloc(&p, bytes + 256), "cudaMalloc");
    if (host) must((int)cudaMemcpyAsync(p, host, bytes, cudaMemcpyHostToDevice, nullptr), "copy to the device");
    return p;
}

static int32_t *on_device(const ints &x) { return static_cast<int32_t *>(on_device(x.data(), x.size() * 4)); }

static float next_uniform()
{
    static uint64_t x = 88172645463325252u;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return (float)(x >> 40) / 16777216.0f;
}

/* A matrix on the device, and for checks its numbers here. */
struct matrix { tr_mat d; floats h; };

static tr_mat blank(int64_t rows, int64_t cols, int dtype)
{
    tr_mat t = {};
    size_t bytes = (size_t)(rows * cols) * (dtype == TR_CUDA_BF16 ? 2 : 4);
    t.data = on_device(nullptr, bytes), t.rows = rows, t.cols = t.ld = cols, t.dtype = dtype;
    return t;
}

static matrix make(int64_t rows, int64_t cols, int dtype, float size)
{
    matrix m = { blank(rows, cols, dtype), floats((size_t)(rows * cols)) };
    std::vector<uint16_t> half(m.h.size());
    for (size_t i = 0; i < m.h.size(); i++) {
        m.h[i] = size * (next_uniform() + next_uniform() + next_uniform() - 1.5f) * 2;
        if (dtype != TR_CUDA_BF16) continue;
        unsigned u;
        m.h[i] = bf16(m.h[i]);
        memcpy(&u, &m.h[i], 4);
        half[i] = (uint16_t)(u >> 16);
    }
    must(tr_cuda_write(m.d, dtype == TR_CUDA_BF16 ? (void *)half.data() : (void *)m.h.data(), nullptr), "write");
    return m;
}

/* For rates: the numbers do not matter, but are of everyday size. */
static tr_mat big(int64_t rows, int64_t cols, int dtype)
{
    tr_mat t = blank(rows, cols, dtype);
    must(tr_cuda_fill(t, 0.5f, nullptr), "fill");
    return t;
}

static floats fetch(tr_mat t)
{
    floats f((size_t)(t.rows * t.cols));
    if (t.dtype == TR_CUDA_F32) {
        must(tr_cuda_read(t, f.data(), nullptr), "read");
        return f;
    }
    std::vector<uint16_t> half(f.size());
    must(tr_cuda_read(t, half.data(), nullptr), "read");
    for (size_t i = 0; i < f.size(); i++) {
        unsigned u = (unsigned)half[i] << 16;
        memcpy(&f[i], &u, 4);
    }
    return f;
}

static void release(tr_mat t) { must((int)cudaFree(t.data), "free"); }

/* Largest error, against the largest value. */
template <class W> static void check(const char *what, const floats &got, const W &want, double limit)
{
    double worst = 0, size = 1e-30;
    size_t bad = 0;
    for (size_t i = 0; i < got.size(); i++) {
        double e = fabs((double)got[i] - (double)want[i]);
        bad += !(e < 1e30);
        worst = e > worst ? e : worst;
        size = fabs((double)want[i]) > size ? fabs((double)want[i]) : size;
    }
    bool ok = !bad && worst <= limit * size;
    printf("  %-44s error %.1e of %.1e  %s\n", what, worst / size, limit, ok ? "ok" : "WRONG");
    wrong += !ok;
}

template <class F> static double seconds(F run)
{
    must(run(), "warm up");
    double best = 1e30;
    for (int batch = 0; batch < 5; batch++) {
        auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < 10; i++)
            if (int err = run()) must(err, "run");
        must(0, "run");
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / 10);
    }
    return best;
}

template <class F> static void rate(const char *what, double bytes, double flops, F run)
{
    if (!rates) return;
    double s = seconds(run);
    if (flops > 0) printf("%-46s %9.3f ms %8.1f TFLOP/s\n", what, s * 1e3, flops / s * 1e-12);
    else printf("%-46s %9.3f ms %8.1f GB/s\n", what, s * 1e3, bytes / s * 1e-9);
    fflush(stdout);
}

static const int kinds[] = { TR_CUDA_F32, TR_CUDA_BF16 };
static const char *name_of(int dtype) { return dtype == TR_CUDA_BF16 ? "bf16" : "f32"; }
static char line[128];
#define NAME(...) (snprintf(line, sizeof line, __VA_ARGS__), line)

/* ---- attention */

struct heads { tr_cuda_heads a; std::vector<int64_t> seq; ints start; int32_t *d_start; };

static void layout(heads &h, int64_t H, int64_t K, int64_t D, std::vector<int64_t> lengths, int64_t window)
{
    h.seq = { 0 };
    h.start.clear();
    for (int64_t n : lengths) {
        for (int64_t i = 0; i < n; i++) h.start.push_back((int32_t)(h.seq.back() + std::max((int64_t)0, i - window + 1)));
        h.seq.push_back(h.seq.back() + n);
    }
    h.d_start = on_device(h.start);
    h.a = { H, K, D, (int64_t)lengths.size(), h.seq.data(), 1 / sqrtf((float)D) };
}

static void check_attention(int64_t H, int64_t K, int64_t D, int dtype, int64_t window)
{
    heads h;
    layout(h, H, K, D, { 150, 333, 1 }, window);
    int64_t n = h.seq.back(), Q = (H + 2 * K) * D, O = H * D;
    matrix qkv = make(n, Q, dtype, 1), g = make(n, O, dtype, 1);
    std::vector<double> o((size_t)(n * O)), lse((size_t)(n * H)), d((size_t)(n * Q));
    for (int64_t i = 0; i < n; i++)
        for (int64_t y = 0; y < H; y++) {
            int64_t first = h.start[(size_t)i], kc = (H + y / (H / K)) * D, vc = kc + K * D;
            std::vector<double> p((size_t)(i + 1 - first)), dp(p.size());
            double most = -INFINITY, sum = 0, delta = 0;
            const float *q = &qkv.h[(size_t)(i * Q + y * D)], *gi = &g.h[(size_t)(i * O + y * D)];
            for (size_t j = 0; j < p.size(); j++) {
                const float *k = &qkv.h[(size_t)((first + (int64_t)j) * Q + kc)], *v = &qkv.h[(size_t)((first + (int64_t)j) * Q + vc)];
                for (int64_t c = 0; c < D; c++) p[j] += (double)q[c] * k[c], dp[j] += (double)gi[c] * v[c];
                most = std::max(most, p[j] *= h.a.scale);
            }
            for (double &x : p) sum += x = exp(x - most);
            lse[(size_t)(i * H + y)] = most + log(sum);
            for (size_t j = 0; j < p.size(); j++) {
                delta += (p[j] /= sum) * dp[j];
                for (int64_t c = 0; c < D; c++) o[(size_t)(i * O + y * D + c)] += p[j] * qkv.h[(size_t)((first + (int64_t)j) * Q + vc + c)];
            }
            for (size_t j = 0; j < p.size(); j++) {
                double ds = h.a.scale * p[j] * (dp[j] - delta);
                size_t at = (size_t)((first + (int64_t)j) * Q);
                for (int64_t c = 0; c < D; c++) {
                    d[(size_t)(i * Q + y * D + c)] += ds * qkv.h[at + (size_t)(kc + c)];
                    d[at + (size_t)(kc + c)] += ds * q[c];
                    d[at + (size_t)(vc + c)] += p[j] * gi[c];
                }
            }
        }
    tr_mat out = blank(n, O, dtype), l = blank(n, H, TR_CUDA_F32), dqkv = blank(n, Q, dtype), delta = blank(n, H, TR_CUDA_F32);
    double limit = dtype == TR_CUDA_BF16 ? 1e-2 : 3e-6;
    must(tr_cuda_attention(out, static_cast<float *>(l.data), H, qkv.d, h.d_start, &h.a, nullptr), "attention");
    check(NAME("attention %s heads %d/%d of %d, window %d", name_of(dtype), (int)H, (int)K, (int)D, (int)window), fetch(out), o, limit);
    check("  lse", fetch(l), lse, 3e-6);
    must(tr_cuda_attention_backward(dqkv, g.d, out, static_cast<float *>(l.data), H, qkv.d, h.d_start, &h.a, static_cast<float *>(delta.data), nullptr), "attention backward");
    floats first = fetch(dqkv);
    check("  gradient", first, d, limit);
    must(tr_cuda_attention_backward(dqkv, g.d, out, static_cast<float *>(l.data), H, qkv.d, h.d_start, &h.a, static_cast<float *>(delta.data), nullptr), "attention backward");
    check("  gradient again", fetch(dqkv), first, 0);
    tr_mat q = qkv.d, k = qkv.d, v = qkv.d, one = out;
    size_t size = dtype == TR_CUDA_BF16 ? 2 : 4;
    int64_t at = h.seq[2] - 1;   /* the last token of the second sequence */
    q.data = (char *)q.data + (size_t)(at * Q) * size, q.rows = 1;
    k.data = (char *)k.data + (size_t)O * size, v.data = (char *)v.data + (size_t)(O + K * D) * size;
    one.rows = 1;
    must(tr_cuda_attention_cached(one, q, k, v, h.start[(size_t)at], at + 1, &h.a, nullptr), "attention cached");
    check("  one query", fetch(one), std::vector<double>(o.begin() + at * O, o.begin() + (at + 1) * O), limit);
    for (tr_mat t : { qkv.d, g.d, out, l, dqkv, delta }) release(t);
}

static void rate_attention(int64_t H, int64_t K, int64_t D, int dtype, int64_t T, int64_t seqs)
{
    if (!rates) return;
    heads h;
    layout(h, H, K, D, std::vector<int64_t>((size_t)seqs, T), T);
    int64_t n = T * seqs, Q = (H + 2 * K) * D;
    tr_mat qkv = big(n, Q, dtype), o = big(n, H * D, dtype), l = big(n, H, TR_CUDA_F32), dqkv = big(n, Q, dtype), delta = big(n, H, TR_CUDA_F32);
    double flops = 4.0 * (double)(seqs * H * D) * (double)T * (double)(T + 1) / 2;
    rate(NAME("attention %s H=%d/%d D=%d T=%d x %d", name_of(dtype), (int)H, (int)K, (int)D, (int)T, (int)seqs), 0, flops,
         [&] { return tr_cuda_attention(o, static_cast<float *>(l.data), H, qkv, h.d_start, &h.a, nullptr); });
    rate("  backward", 0, 2.5 * flops, [&] {
        return tr_cuda_attention_backward(dqkv, o, o, static_cast<float *>(l.data), H, qkv, h.d_start, &h.a, static_cast<float *>(delta.data), nullptr);
    });
    for (tr_mat t : { qkv, o, l, dqkv, delta }) release(t);
}

/* ---- rows */

static void check_rows(int dtype, int64_t R, int64_t C)
{
    matrix x = make(R, C, dtype, 1), dy = make(R, C, dtype, 1), g = make(1, C, TR_CUDA_F32, 1), b = make(1, C, TR_CUDA_F32, 1);
    tr_mat y = blank(R, C, dtype), r = blank(R, 2, TR_CUDA_F32), dx = blank(R, C, dtype), dg = blank(1, C, TR_CUDA_F32), db = blank(1, C, TR_CUDA_F32);
    double limit = dtype == TR_CUDA_BF16 ? 5e-3 : 2e-6;
    std::vector<double> wy(x.h.size()), wd(x.h.size()), wg((size_t)C), ly(x.h.size()), ld(x.h.size()), lg((size_t)C), lb((size_t)C);
    for (int64_t i = 0; i < R; i++) {
        const float *xi = &x.h[(size_t)(i * C)], *di = &dy.h[(size_t)(i * C)];
        double squares = 0, along = 0, mean = 0, var = 0, a = 0, c2 = 0;
        for (int64_t c = 0; c < C; c++) squares += (double)xi[c] * xi[c], along += (double)di[c] * g.h[(size_t)c] * xi[c], mean += xi[c];
        double ri = 1 / sqrt(squares / (double)C + 1e-5);
        mean /= (double)C;
        for (int64_t c = 0; c < C; c++) var += (xi[c] - mean) * (xi[c] - mean);
        double rs = 1 / sqrt(var / (double)C + 1e-5);
        for (int64_t c = 0; c < C; c++) a += (double)di[c] * g.h[(size_t)c], c2 += (double)di[c] * g.h[(size_t)c] * (xi[c] - mean) * rs;
        for (int64_t c = 0; c < C; c++) {
            size_t at = (size_t)(i * C + c);
            double d = (double)di[c] * g.h[(size_t)c], xh = (xi[c] - mean) * rs;
            wy[at] = xi[c] * ri * g.h[(size_t)c];
            wd[at] = ri * (d - xi[c] * ri * ri * along / (double)C);
            wg[(size_t)c] += di[c] * xi[c] * ri;
            ly[at] = xh * g.h[(size_t)c] + b.h[(size_t)c];
            ld[at] = rs * (d - a / (double)C - xh * c2 / (double)C);
            lg[(size_t)c] += di[c] * xh;
            lb[(size_t)c] += di[c];
        }
    }
    float *rp = static_cast<float *>(r.data), *dgp = static_cast<float *>(dg.data), *dbp = static_cast<float *>(db.data);
    must(tr_cuda_fill(dg, 0, nullptr), "fill");
    must(tr_cuda_rms_norm(y, rp, x.d, g.d, 1e-5f, nullptr), "rms_norm");
    check(NAME("rms_norm %s [%d, %d]", name_of(dtype), (int)R, (int)C), fetch(y), wy, limit);
    must(tr_cuda_rms_norm_backward(dx, 0, dgp, dy.d, x.d, rp, g.d, nullptr), "rms_norm_backward");
    check("  dx", fetch(dx), wd, limit);
    check("  dg", fetch(dg), wg, 1e-5);
    must(tr_cuda_fill(dg, 0, nullptr), "fill");
    must(tr_cuda_fill(db, 0, nullptr), "fill");
    must(tr_cuda_layer_norm(y, rp, x.d, g.d, b.d, 1e-5f, nullptr), "layer_norm");
    check("layer_norm", fetch(y), ly, limit);
    must(tr_cuda_layer_norm_backward(dx, 0, dgp, dbp, dy.d, x.d, rp, g.d, nullptr), "layer_norm_backward");
    check("  dx", fetch(dx), ld, limit);
    check("  dg", fetch(dg), lg, 1e-5);
    check("  db", fetch(db), lb, 1e-5);
    for (tr_mat t : { x.d, dy.d, g.d, b.d, y, r, dx, dg, db }) release(t);
}

static void check_elements(int dtype, int64_t R, int64_t C)
{
    matrix gu = make(R, 2 * C, dtype, 2), da = make(R, C, dtype, 1);
    tr_mat a = blank(R, C, dtype), dgu = blank(R, 2 * C, dtype);
    std::vector<double> wa(da.h.size()), wd(gu.h.size()), ws(da.h.size());
    double limit = dtype == TR_CUDA_BF16 ? 5e-3 : 2e-6, squares = 0, got;
    for (int64_t i = 0; i < R; i++)
        for (int64_t c = 0; c < C; c++) {
            double g = gu.h[(size_t)(i * 2 * C + c)], u = gu.h[(size_t)(i * 2 * C + C + c)], d = da.h[(size_t)(i * C + c)], s = 1 / (1 + exp(-g));
            wa[(size_t)(i * C + c)] = u * g * s;
            wd[(size_t)(i * 2 * C + c)] = d * u * (s + g * s * (1 - s));
            wd[(size_t)(i * 2 * C + C + c)] = d * g * s;
            ws[(size_t)(i * C + c)] = 2 * d;
            squares += d * d;
        }
    must(tr_cuda_swiglu(a, gu.d, nullptr), "swiglu");
    check(NAME("swiglu %s [%d, %d]", name_of(dtype), (int)R, (int)C), fetch(a), wa, limit);
    must(tr_cuda_swiglu_backward(dgu, da.d, gu.d, nullptr), "swiglu_backward");
    check("  backward", fetch(dgu), wd, limit);
    must(tr_cuda_add(a, da.d, da.d, nullptr), "add");
    check("add", fetch(a), ws, 0);
    int64_t all[] = { 0, da.d.rows };
    must(tr_cuda_total(&got, da.d, all, 1, 1, nullptr), "sum_squares");
    check("sum of squares", floats(1, (float)got), std::vector<double>(1, squares), 1e-6);
    for (tr_mat t : { gu.d, da.d, a, dgu }) release(t);
}

static void check_loss(int64_t R, int64_t V)
{
    matrix x = make(R, V, TR_CUDA_F32, 3);
    ints target((size_t)R);
    for (int64_t i = 0; i < R; i++) target[(size_t)i] = i % 5 == 3 ? -100 : (int32_t)(i * 7919 % V);
    int32_t *t = on_device(target);
    tr_mat d = blank(R, V, TR_CUDA_BF16), loss = blank(R, 1, TR_CUDA_F32);
    std::vector<double> wl((size_t)R), wd(x.h.size());
    for (int64_t i = 0; i < R; i++) {
        if (target[(size_t)i] < 0) continue;
        const float *xi = &x.h[(size_t)(i * V)];
        double sum = 0;
        for (int64_t v = 0; v < V; v++) sum += exp((double)xi[v]);
        wl[(size_t)i] = log(sum) - xi[target[(size_t)i]];
        for (int64_t v = 0; v < V; v++) wd[(size_t)(i * V + v)] = (exp((double)xi[v]) / sum - (v == target[(size_t)i])) * 0.25;
    }
    must(tr_cuda_cross_entropy(static_cast<float *>(loss.data), d, x.d, t, 0.25f, nullptr), "cross_entropy");
    check(NAME("cross_entropy [%d, %d]", (int)R, (int)V), fetch(loss), wl, 2e-6);
    check("  gradient bf16", fetch(d), wd, 5e-3);
    must(tr_cuda_cross_entropy(static_cast<float *>(loss.data), x.d, x.d, t, 0.25f, nullptr), "cross_entropy");
    check("  gradient f32 in place", fetch(x.d), wd, 2e-6);
    for (tr_mat m : { x.d, d, loss }) release(m);
}

static void check_embedding(int dtype, int64_t N, int64_t V, int64_t C)
{
    matrix w = make(V, C, dtype, 1), dy = make(N, C, dtype, 1), dw = make(V, C, TR_CUDA_F32, 1);
    ints ids((size_t)N);
    for (int64_t i = 0; i < N; i++) ids[(size_t)i] = i % 3 ? (int32_t)(i * i % V) : 5;   /* one id is often there */
    int32_t *d_ids = on_device(ids);
    tr_mat y = blank(N, C, dtype);
    floats wy((size_t)(N * C)), wd = dw.h;
    for (int64_t i = 0; i < N; i++)
        for (int64_t c = 0; c < C; c++) {
            wy[(size_t)(i * C + c)] = w.h[(size_t)(ids[(size_t)i] * C + c)];
            wd[(size_t)(ids[(size_t)i] * C + c)] += dy.h[(size_t)(i * C + c)];
        }
    must(tr_cuda_embed(y, w.d, d_ids, 0, nullptr), "embed");
    check(NAME("embed %s", name_of(dtype)), fetch(y), wy, 0);
    must(tr_cuda_embed_backward(dw.d, dy.d, d_ids, nullptr), "embed_backward");
    check("  backward", fetch(dw.d), wd, 1e-5);
    for (tr_mat t : { w.d, dy.d, dw.d, y }) release(t);
}

/* A step of AdamW in f32 against double, and that rounding to bf16 is right on average. */
static void check_updates()
{
    const int64_t R = 300, C = 1001;
    matrix w = make(R, C, TR_CUDA_F32, 1), g = make(R, C, TR_CUDA_F32, 1), m = make(R, C, TR_CUDA_F32, 1), v = make(R, C, TR_CUDA_F32, 1);
    for (float &x : v.h) x = fabsf(x) + 0.01f;
    must(tr_cuda_write(v.d, v.h.data(), nullptr), "write");
    tr_cuda_step a = { 0.99f, 1e-2f, 1, {}, {}, 0 };
    tr_cuda_moments h = { 0.9f, 0.1f, 0.999f, 0.001f, 1, 1e-8f, {} };
    std::vector<double> want(w.h.size());
    for (size_t i = 0; i < want.size(); i++)
        want[i] = 0.99 * w.h[i] - 1e-2 * (0.9 * m.h[i] + 0.1 * g.h[i]) / (sqrt(0.999 * v.h[i] + 0.001 * g.h[i] * g.h[i]) + 1e-8);
    must(tr_cuda_adam(w.d, m.d, v.d, g.d, h, a, nullptr), "adam");
    check("adam f32", fetch(w.d), want, 1e-6);
    tr_mat half = blank(R, C, TR_CUDA_BF16);
    must(tr_cuda_fill(half, 1, nullptr), "fill");
    must(tr_cuda_fill(g.d, 1, nullptr), "fill");
    for (uint32_t t = 0; t < 50; t++) {
        tr_cuda_step tiny = { 1, -1e-4f, 1, { { { t, 7 } }, 0 }, {}, 0 };
        must(tr_cuda_apply(half, g.d, tiny, nullptr), "apply");
    }
    double mean = 0;
    for (float x : fetch(half)) mean += x / (double)(R * C);
    check("stochastic rounding on average", floats(1, (float)mean), std::vector<double>(1, 1.005), 1e-4);
    must(tr_cuda_random_normal(m.d, { { 1, 2 } }, 1, nullptr), "random_normal");
    double one = 0, two = 0;
    for (float x : fetch(m.d)) one += x / (double)(R * C), two += (double)x * x / (double)(R * C);
    check("normal numbers' second moment", floats(1, (float)two), std::vector<double>(1, 1), 1e-2);
    check("  and mean", floats(1, (float)one + 1), std::vector<double>(1, 1), 1e-2);
    for (tr_mat t : { w.d, g.d, m.d, v.d, half }) release(t);
}

static void rate_updates()
{
    if (!rates) return;
    const int64_t R = 24576, C = 4096;   /* 100 M weights */
    double n = (double)R * (double)C;
    tr_mat w = big(R, C, TR_CUDA_BF16), g = big(R, C, TR_CUDA_F32), m = big(R, C, TR_CUDA_F32), v = big(R, C, TR_CUDA_F32), wf = big(R, C, TR_CUDA_F32), q = blank(R, C, TR_CUDA_F32);
    q.dtype = TR_CUDA_INT8, q.group = 128, q.groups = C / 128;
    q.scale = static_cast<float *>(on_device(nullptr, (size_t)(R * q.groups) * 4));
    q.zero = static_cast<signed char *>(on_device(nullptr, (size_t)(R * q.groups)));
    tr_noise noise = { { { 1, 2 } }, 0 };
    tr_cuda_step a = { 1, 1e-6f, 1, noise, {}, 0 };
    tr_cuda_moments h = { 0.9f, 0.1f, 0.999f, 0.001f, 1, 1e-8f, {} }, hn = h;
    hn.noise = noise;
    rate("adam, 100 M f32 weights", 28 * n, 0, [&] { return tr_cuda_adam(wf, m, v, g, h, a, nullptr); });
    rate("adam, bf16 weights", 24 * n, 0, [&] { return tr_cuda_adam(w, m, v, g, h, a, nullptr); });
    tr_mat mb = wf, vb = w;   /* as bf16 moments: their bytes serve */
    mb.dtype = vb.dtype = TR_CUDA_BF16;
    tr_mat wb = big(R, C, TR_CUDA_BF16);
    rate("adam, bf16 weights and moments", 16 * n, 0, [&] { return tr_cuda_adam(wb, mb, vb, g, hn, a, nullptr); });
    rate("quantise to int8", 5 * n, 0, [&] { return tr_cuda_copy(q, g, nullptr); });
    rate("int8 to bf16", 3 * n, 0, [&] { return tr_cuda_copy(wb, q, nullptr); });
    rate("adam, int8 weights", 22 * n, 0, [&] { return tr_cuda_adam(q, m, v, g, h, a, nullptr); });
    rate("apply, bf16 weights", 8 * n, 0, [&] { return tr_cuda_apply(wb, g, a, nullptr); });
    tr_cuda_books books;
    for (int i = 0; i < 256; i++) books.with_sign[i] = ((float)i - 127) / 128, books.positive[i] = (float)i / 255;
    uint8_t *code = static_cast<uint8_t *>(on_device(nullptr, (size_t)(2 * R * C)));
    float *most = static_cast<float *>(on_device(nullptr, (size_t)(R * C / 32)));
    must((int)cudaMemsetAsync(code, 0, (size_t)(2 * R * C), nullptr), "memset");
    must((int)cudaMemsetAsync(most, 0, (size_t)(R * C / 32), nullptr), "memset");
    rate("adam_8bit", 12 * n, 0, [&] { return tr_cuda_adam_8bit(g, code, code + R * C, most, most + R * C / 256, &books, h, nullptr); });
    rate("norms of rows", 4 * n, 0, [&] { return tr_cuda_norms(static_cast<float *>(m.data), g, 0, nullptr); });
    rate("norms of columns", 4 * n, 0, [&] { return tr_cuda_norms(static_cast<float *>(m.data), g, 1, nullptr); });
    rate("random_normal f32", 4 * n, 0, [&] { return tr_cuda_random_normal(g, { { 1, 2 } }, 1, nullptr); });
    tr_cuda_direction z = { { { 1, 2 } }, { { 0, 0 } }, 0, 0, nullptr };
    rate("move along a direction, bf16", 4 * n, 0, [&] { return tr_cuda_move(wb, 1, 1e-6f, z, nullptr); });
    for (tr_mat t : { w, g, m, v, wf, q, wb }) release(t);
}

static void rate_rows()
{
    if (!rates) return;
    const int64_t N = 8192, C = 4096, I = 11008, V = 49152, rows = 4096;
    double x = 2.0 * (double)N * (double)C;
    tr_mat a = big(N, C, TR_CUDA_BF16), b = big(N, C, TR_CUDA_BF16), y = big(N, C, TR_CUDA_BF16), g = big(1, C, TR_CUDA_BF16), r = big(N, 2, TR_CUDA_F32), dg = big(2, C, TR_CUDA_F32);
    float *rp = static_cast<float *>(r.data), *dgp = static_cast<float *>(dg.data);
    double total;
    rate("copy by the driver, 512 MiB", 2 * 536870912.0, 0, [&, p = on_device(nullptr, 536870912), q = on_device(nullptr, 536870912)] {
        return (int)cudaMemcpyAsync(p, q, 536870912, cudaMemcpyDeviceToDevice, nullptr);
    });
    rate("copy bf16 [8192, 4096]", 2 * x, 0, [&] { return tr_cuda_copy(y, a, nullptr); });
    rate("add", 3 * x, 0, [&] { return tr_cuda_add(y, a, b, nullptr); });
    rate("scale", 2 * x, 0, [&] { return tr_cuda_scale(y, 1, nullptr); });
    rate("rms_norm", 2 * x, 0, [&] { return tr_cuda_rms_norm(y, rp, a, g, 1e-5f, nullptr); });
    rate("rms_norm_rebuild", 2 * x, 0, [&] { return tr_cuda_rms_norm_rebuild(y, rp, a, g, nullptr); });
    rate("rms_norm_backward", 3 * x, 0, [&] { return tr_cuda_rms_norm_backward(y, 0, dgp, b, a, rp, g, nullptr); });
    rate("layer_norm", 2 * x, 0, [&] { return tr_cuda_layer_norm(y, rp, a, g, g, 1e-5f, nullptr); });
    rate("layer_norm_backward", 3 * x, 0, [&] { return tr_cuda_layer_norm_backward(y, 0, dgp, dgp + C, b, a, rp, g, nullptr); });
    rate("gelu", 2 * x, 0, [&] { return tr_cuda_gelu(y, a, nullptr); });
    rate("bias_backward", x, 0, [&] { return tr_cuda_bias_backward(dgp, a, nullptr); });
    int64_t all[] = { 0, a.rows };
    rate("sum of squares", x, 0, [&] { return tr_cuda_total(&total, a, all, 1, 1, nullptr); });
    tr_mat small = a;
    small.cols = small.ld = 576, small.rows = N * C / 576;
    tr_mat to = small, gain = g;
    to.data = y.data, gain.cols = gain.ld = 576;
    tr_mat rs = big(small.rows, 2, TR_CUDA_F32);
    rate("add, rows of 576", 3 * x, 0, [&] { return tr_cuda_add(to, small, small, nullptr); });
    rate("rms_norm, rows of 576", 2 * x, 0, [&] { return tr_cuda_rms_norm(to, static_cast<float *>(rs.data), small, gain, 1e-5f, nullptr); });
    gain.cols = gain.ld = 64;
    tr_mat ro = big(N * C / 64, 1, TR_CUDA_F32);
    rate("rms_norm, heads of 64", 2 * x, 0, [&] { return tr_cuda_rms_norm(y, static_cast<float *>(ro.data), a, gain, 1e-5f, nullptr); });
    tr_mat cs = big(2048, 128, TR_CUDA_F32);
    ints pos((size_t)N);
    for (int64_t i = 0; i < N; i++) pos[(size_t)i] = (int32_t)(i % 2048);
    int32_t *d_pos = on_device(pos);
    rate("rope, heads of 128", 2 * x, 0, [&] { return tr_cuda_rope(y, cs, d_pos, C / 128, 0, nullptr); });
    tr_mat gu = big(N, 2 * I, TR_CUDA_BF16), act = big(N, I, TR_CUDA_BF16), dgu = big(N, 2 * I, TR_CUDA_BF16);
    double i = 2.0 * (double)N * (double)I;
    rate("swiglu [8192, 11008]", 3 * i, 0, [&] { return tr_cuda_swiglu(act, gu, nullptr); });
    rate("swiglu_backward", 5 * i, 0, [&] { return tr_cuda_swiglu_backward(dgu, act, gu, nullptr); });
    for (tr_mat t : { gu, act, dgu }) release(t);
    tr_mat logits = big(rows, V, TR_CUDA_F32), dl = big(rows, V, TR_CUDA_BF16), loss = big(rows, 1, TR_CUDA_F32);
    ints ids((size_t)N);
    for (int64_t k = 0; k < N; k++) ids[(size_t)k] = k % 10 ? (int32_t)(k * 7919 % V) : 11;
    int32_t *t = on_device(ids);
    double v = (double)rows * (double)V;
    rate("cross_entropy 4096 x 49152, bf16 gradient", 6 * v, 0, [&] { return tr_cuda_cross_entropy(static_cast<float *>(loss.data), dl, logits, t, 1e-3f, nullptr); });
    rate("  f32 gradient in place", 8 * v, 0, [&] { return tr_cuda_cross_entropy(static_cast<float *>(loss.data), logits, logits, t, 1e-3f, nullptr); });
    for (tr_mat m : { logits, dl, loss }) release(m);
    tr_mat w = big(V, C, TR_CUDA_BF16), dw = big(V, C, TR_CUDA_F32);
    rate("embed 8192 of 49152 x 4096", 2 * x, 0, [&] { return tr_cuda_embed(y, w, t, 0, nullptr); });
    rate("embed_backward", x + 8.0 * 0.9 * (double)N * (double)C, 0, [&] { return tr_cuda_embed_backward(dw, a, t, nullptr); });
    for (tr_mat m : { w, dw, a, b, y, g, r, dg, rs, ro, cs }) release(m);
}

int main(int argc, char **argv)
{
    rates = argc < 2 || strcmp(argv[1], "check");
    for (int k : kinds) {
        check_attention(4, 2, 64, k, 1 << 30);
        check_attention(3, 1, 128, k, 100);
        check_attention(2, 2, 80, k, 1 << 30);
        check_rows(k, 130, 1000);
        check_rows(k, 37, 4096);
        check_rows(k, 3, 9000);
        check_elements(k, 130, 1000);
        check_elements(k, 131, 77);
        check_embedding(k, 1000, 300, 200);
    }
    check_updates();
    check_loss(12, 49152);
    check_loss(7, 1001);
    printf("%d wrong\n", wrong);
    rate_rows();
    rate_updates();
    for (int64_t D : { 64, 128 }) {
        rate_attention(16, 16, D, TR_CUDA_BF16, 2048, 1);
        rate_attention(16, 16, D, TR_CUDA_BF16, 2048, 4);
    }
    rate_attention(32, 8, 128, TR_CUDA_BF16, 8192, 1);
    rate_attention(16, 16, 64, TR_CUDA_F32, 2048, 1);
    return wrong != 0;
}
