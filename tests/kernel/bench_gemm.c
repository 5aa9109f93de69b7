/* Rates of products, attention and loss on this machine, as shares of one reference product taken in the same run:
 * X[2048,576] W[1536,576]^T in bf16 where that is native, else f32. CPU time of one thread, best of several.
 *
 *     build/tests/kernel/bench_gemm [products|mixed|attention|loss]...
 *
 * THREADS=n uses n threads and wall time; TR_GEMM=onednn|openblas|ref takes another implementation. */
#include "libtrain/base/rng.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "tests/kernel/variants.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(omp_get_max_threads() == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Weights and large blocks lie in huge pages in the program, too; without them narrow pieces of wide rows cost half. */
static struct tr_tensor make(enum tr_dtype dtype, int64_t rows, int64_t cols, int64_t pad)
{
    struct tr_tensor t;
    if (pad == 0 ? tr_tensor_new(&t, TR_WORKSPACE, dtype, TR_DIMS(rows, cols)) : tr_tensor_arena(&t, TR_WORKSPACE, dtype, TR_DIMS(rows, cols), pad)) exit(1);
    uint32_t x = 12345;
    for (int64_t i = 0; i < rows * (cols + pad); i++) {
        x = x * 1664525u + 1013904223u;
        float v = (float)(x >> 8) * 0x1p-23f - 1;
        if (dtype == TR_F32) ((float *)t.data)[i] = v;
        else if (dtype == TR_BF16) ((uint16_t *)t.data)[i] = tr_f32_to_bf16(v);
        else memset((char *)t.data + i, 0, 1);
    }
    return t;
}

static struct tr_tensor X, W, Y;
static double reference_rate;

static double best_of(double flops, int (*run)(void *), void *with)
{
    double best = 1e30, spent = 0;
    for (int i = 0; i < 3 || (spent < 0.3 && i < 300); i++) {
        double t0 = now();
        if (run(with) != TR_OK) {
            printf("%s\n", tr_message());
            exit(1);
        }
        double s = now() - t0;
        if (i && s < best) best = s;
        spent += s;
    }
    return flops / best * 1e-9;
}

static int run_reference(void *with) { return tr_gemm_forward(&Y, &X, &W, false); }

static void refresh(void)
{
    reference_rate = best_of(2.0 * 2048 * 576 * 1536, run_reference, NULL);
}

struct call { int op; struct tr_tensor *c, *a, *b; bool acc; };

static int run_call(void *with)
{
    struct call *k = with;
    return k->op == 0 ? tr_gemm_forward(k->c, k->a, k->b, k->acc) : k->op == 1 ? tr_gemm_dx(k->c, k->a, k->b, k->acc)
                                                                              : tr_gemm_dw(k->c, k->a, k->b, k->acc);
}

static double rate_of(int op, enum tr_dtype compute, enum tr_dtype out, enum tr_dtype weights, int64_t t, int64_t o, int64_t c, bool acc, int64_t pad)
{
    struct tr_tensor x = make(compute, t, c, 0), dy = make(compute, t, o, 0), w = { 0 }, y = { 0 };
    if (op < 2) w = make(weights, o, c, 0);
    if (weights == TR_INT8) {
        static float scale[1 << 21];
        static int8_t zero[1 << 21];
        for (size_t i = 0; i < sizeof scale / sizeof *scale; i++) scale[i] = 0.01f;
        w.quant = (struct tr_quant){ scale, zero, 128, false };
    }
    y = op == 0 ? make(out, t, o, 0) : op == 1 ? make(out, t, c, 0) : make(TR_F32, o, c, pad);
    struct call k = { op, &y, op == 0 ? &x : &dy, op < 2 ? &w : &x, acc };
    double rate = best_of(2.0 * (double)t * (double)o * (double)c, run_call, &k);
    tr_tensor_release(&x);
    tr_tensor_release(&dy);
    tr_tensor_release(&w);
    tr_tensor_release(&y);
    return rate;
}

static void products(enum tr_dtype compute)
{
    static const struct { const char *name; int64_t o, c; } shapes[] = { { "o", 576, 576 }, { "qkv", 960, 576 }, { "gate+up", 3072, 576 },
        { "down", 576, 1536 }, { "head", 49152, 576 }, { "7B gate", 11008, 4096 } };
    static const int64_t tokens[] = { 1, 4, 32, 64, 128, 256, 512, 2048 };
    printf("\nproducts %s        fwd  fwd f32  dX   dX+acc  dW  dW+pad dW+pad+acc  (reference %.0f GFLOP/s)\n", tr_dtype_name(compute), reference_rate);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
            int64_t n = tokens[t], o = shapes[s].o, c = shapes[s].c;
            if (o * c > 5e6 && n != 1 && n != 256 && n != 512) continue;
            refresh();
            printf("%-8s T=%-5d  ", shapes[s].name, (int)n);
            printf("  %5.2f", rate_of(0, compute, compute, compute, n, o, c, false, 0) / reference_rate);
            printf("  %5.2f", rate_of(0, compute, TR_F32, compute, n, o, c, false, 0) / reference_rate);
            printf("  %5.2f", rate_of(1, compute, compute, compute, n, o, c, false, 0) / reference_rate);
            printf("  %5.2f", rate_of(1, compute, compute, compute, n, o, c, true, 0) / reference_rate);
            printf("  %5.2f", rate_of(2, compute, TR_F32, compute, n, o, c, false, 0) / reference_rate);
            printf("  %5.2f", rate_of(2, compute, TR_F32, compute, n, o, c, false, 16) / reference_rate);
            printf("  %5.2f\n", rate_of(2, compute, TR_F32, compute, n, o, c, true, 16) / reference_rate);
        }
    }
}

static void mixed(enum tr_dtype compute)
{
    static const enum tr_dtype weights[] = { TR_INT8, TR_BF16 };
    for (int i = 0; i < 2; i++) {
        if (weights[i] == compute) continue;
        printf("\nweights %s, compute %s: 11008 x 4096    fwd   dX\n", tr_dtype_name(weights[i]), tr_dtype_name(compute));
        for (int64_t n = 1; n <= 1024; n *= n < 256 ? 16 : 4) {
            refresh();
            printf("T=%-5d  %5.3f", (int)n, rate_of(0, compute, compute, weights[i], n, 11008, 4096, false, 0) / reference_rate);
            printf("  %5.3f\n", rate_of(1, compute, compute, weights[i], n, 11008, 4096, false, 0) / reference_rate);
        }
    }
}

struct attend { const struct variant *k; struct tr_tensor *o, *lse, *qkv, *dqkv, *g, *work; struct tr_layout *layout; struct tr_attention *a; bool backward; };

static int run_attend(void *with)
{
    struct attend *r = with;
    if (r->backward) r->k->backward(r->dqkv, r->g, r->o, r->lse, r->qkv, r->layout, r->a, r->work);
    else r->k->attention(r->o, r->lse, r->qkv, r->layout, r->a);
    return TR_OK;
}

static void attention(enum tr_dtype dtype, int64_t heads, int64_t kv, int64_t dim, int64_t batch, int64_t t)
{
    int64_t n = batch * t, bounds[65];
    for (int64_t s = 0; s <= batch; s++) bounds[s] = s * t;
    struct tr_tensor start = make(TR_I32, n, 1, 0), qkv = make(dtype, n, (heads + 2 * kv) * dim, 0), dqkv = make(dtype, n, (heads + 2 * kv) * dim, 0);
    struct tr_tensor o = make(dtype, n, heads * dim, 0), g = make(dtype, n, heads * dim, 0), lse = make(TR_F32, n, heads, 0);
    for (int64_t i = 0; i < n; i++) ((int32_t *)start.data)[i] = (int32_t)(i / t * t);
    struct tr_layout layout = { .n_tokens = n, .n_seqs = batch, .start_N = start, .pos_N = start, .seq = bounds };
    struct tr_attention a = { heads, kv, dim, 0.125f };
    double flops = 4.0 * (double)(batch * heads * dim) * (double)t * (double)(t + 1) / 2;
    for (int k = 1; k < variant_count(); k++) {
        struct tr_tensor work = make(TR_U8, 1, (int64_t)variants[k].work(&layout, &a, dtype, true) + 64, 0);
        struct attend r = { &variants[k], &o, &lse, &qkv, &dqkv, &g, &work, &layout, &a, false };
        refresh();
        double fwd = best_of(flops, run_attend, &r);
        r.backward = true;
        double bwd = best_of(2.5 * flops, run_attend, &r);
        printf("%-7s %-5s heads %d/%d of %-4d %d x %-5d  fwd %.2f  bwd %.2f  both %.2f   work %.1f MB\n", variants[k].name, tr_dtype_name(dtype),
               (int)heads, (int)kv, (int)dim, (int)batch, (int)t, fwd / reference_rate, bwd / reference_rate,
               3.5 / (1 / fwd + 2.5 / bwd) / reference_rate, (double)tr_bytes(&work) / 1e6);
        tr_tensor_release(&work);
    }
    struct tr_tensor *all[] = { &start, &qkv, &dqkv, &o, &g, &lse };
    for (int i = 0; i < 6; i++) tr_tensor_release(all[i]);
}

struct loss { const struct variant *k; struct tr_tensor *loss, *d, *x, *target; };
static int run_loss(void *with)
{
    struct loss *r = with;
    r->k->cross_entropy(r->loss, r->d, r->x, r->target, 1);
    return TR_OK;
}

static void losses(void)
{
    struct tr_tensor x = make(TR_F32, 512, 49152, 0), d = make(TR_BF16, 512, 49152, 0), l = make(TR_F32, 512, 1, 0), t = make(TR_I32, 512, 1, 0);
    for (int i = 0; i < 512; i++) ((int32_t *)t.data)[i] = i * 90;
    for (int k = 0; k < variant_count(); k++) {
        struct loss r = { &variants[k], &l, &d, &x, &t };
        printf("loss %-7s %.3f ns per logit\n", variants[k].name, 1 / best_of(512.0 * 49152, run_loss, &r));
    }
    tr_tensor_release(&x);
    tr_tensor_release(&d);
    tr_tensor_release(&l);
    tr_tensor_release(&t);
}

int main(int argc, char **argv)
{
    const char *threads = getenv("THREADS");    /* more than one: wall time */
    tr_set_threads(threads ? atoi(threads) : 1);
    enum tr_dtype dtype = tr_gemm_has_bf16() ? TR_BF16 : TR_F32;
    X = make(dtype, 2048, 576, 0), W = make(dtype, 1536, 576, 0), Y = make(dtype, 2048, 1536, 0);
    refresh();
    for (int i = 1; i < argc || i == 1; i++) {
        const char *what = argc > 1 ? argv[i] : "all";
        if (!strcmp(what, "all") || !strcmp(what, "attention")) {
            for (int d = 0; d < 2; d++) {
                enum tr_dtype t = d ? TR_F32 : TR_BF16;
                attention(t, 9, 3, 64, 4, 512);
                attention(t, 9, 3, 64, 1, 2048);
                attention(t, 9, 3, 64, 1, 8192);
                attention(t, 32, 32, 128, 1, 1024);
                attention(t, 12, 12, 64, 2, 1024);
                attention(t, 6, 2, 80, 2, 1024);
            }
        }
        if (!strcmp(what, "all") || !strcmp(what, "loss")) losses();
        if (!strcmp(what, "all") || !strcmp(what, "mixed")) {
            if (dtype == TR_BF16) mixed(TR_BF16);
            mixed(TR_F32);
        }
        if (!strcmp(what, "all") || !strcmp(what, "products")) {
            if (dtype == TR_BF16) products(TR_BF16);
            products(TR_F32);
        }
    }
    printf("reference: %.0f GFLOP/s\n", reference_rate);
    return 0;
}
