/* Every part of a step on SmolLM2-135M's shapes (2048 tokens) in the kernels in use, beside the machine's own rates: parts that are matmul
 * beside the best product (GFLOP/s), the others beside a plain copy of memory far beyond the caches (GB/s read and written). So a
 * change of a kernel shows its price.
 *
 *     build/tests/kernel/bench_kernels [PART]...      only parts whose name begins so
 *
 * THREADS=n (default: all), TR_KERNELS=ref|avx2|avx512. Best of several runs; the machine's rates are taken again before each part,
 * since what else runs slows both alike. */
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 2048, C = 576, I = 1536, V = 49152, HEADS = 9, KV = 3, D = 64, Q = (HEADS + 2 * KV) * D, S = 512 };

static struct tr_tensor make(enum tr_dtype dtype, int64_t rows, int64_t cols)
{
    struct tr_tensor t;
    if (rows ? tr_tensor_new(&t, TR_WORKSPACE, dtype, TR_DIMS(rows, cols)) : tr_tensor_new(&t, TR_WORKSPACE, dtype, TR_DIMS(cols))) exit(1);
    if (dtype == TR_F32 || dtype == TR_BF16) tr_kernels()->random_normal(&t, tr_key(1, TR_RNG_INIT, (uint64_t)(rows + cols), 0), 0.5f);
    if (dtype == TR_INT8) tr_kernels()->fill(&(struct tr_tensor){ .data = t.quant.scale, .dtype = TR_F32, .ndim = 1, .dim = { rows * tr_groups(&t) }, .ld = rows * tr_groups(&t) }, 0.01f);
    return t;
}

/* What the parts work on. */
static struct {
    enum tr_dtype act;
    struct tr_tensor x, y, dy, r, stat, g, b, dg, db, qkv, dqkv, o, lse, cs, pos, start, gu, dgu, a, ids, logits, dlogits, loss, target, work, embed, dembed;
    struct tr_tensor w_f32, w_bf16, w_int8, grad, m, v, m8, v8, most, most_v, norm, low, vector, w_up, big, copy;
    struct tr_layout layout;
    struct tr_attention heads;
    int64_t seq[N / S + 1];
} k;

static void make_all(void)
{
    k.act = tr_gemm_has_bf16() ? TR_BF16 : TR_F32;
    struct { struct tr_tensor *t; enum tr_dtype dtype; int64_t rows, cols; } all[] = {
        { &k.x, k.act, N, C }, { &k.y, k.act, N, C }, { &k.dy, k.act, N, C }, { &k.r, TR_F32, N, 1 }, { &k.stat, TR_F32, N, 2 }, { &k.g, TR_F32, 0, C }, { &k.b, TR_F32, 0, C },
        { &k.dg, TR_F32, 0, C }, { &k.db, TR_F32, 0, C }, { &k.qkv, k.act, N, Q }, { &k.dqkv, k.act, N, Q }, { &k.o, k.act, N, HEADS * D }, { &k.lse, TR_F32, N, HEADS }, { &k.cs, TR_F32, S, D },
        { &k.pos, TR_I32, 0, N }, { &k.start, TR_I32, 0, N }, { &k.gu, k.act, N, 2 * I }, { &k.dgu, k.act, N, 2 * I }, { &k.a, k.act, N, I }, { &k.ids, TR_I32, 0, N }, { &k.logits, TR_F32, S, V },
        { &k.dlogits, k.act, S, V }, { &k.loss, TR_F32, 0, S }, { &k.target, TR_I32, 0, S }, { &k.embed, k.act, V, C }, { &k.dembed, TR_F32, V, C }, { &k.w_f32, TR_F32, 8 * I, C }, { &k.w_bf16, TR_BF16, 8 * I, C },
        { &k.w_int8, TR_INT8, 8 * I, C }, { &k.grad, TR_F32, 8 * I, C }, { &k.m, TR_F32, 8 * I, C }, { &k.v, TR_F32, 8 * I, C }, { &k.m8, TR_U8, 0, 8 * I * C }, { &k.v8, TR_U8, 0, 8 * I * C },
        { &k.most, TR_F32, 0, 8 * I * C / TR_BLOCK_8BIT }, { &k.most_v, TR_F32, 0, 8 * I * C / TR_BLOCK_8BIT }, { &k.norm, TR_F32, 0, 8 * I }, { &k.w_up, k.act, 2 * I, C }, { &k.big, TR_F32, 1, 1 << 25 }, { &k.copy, TR_F32, 1, 1 << 25 } };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i].t = make(all[i].dtype, all[i].rows, all[i].cols);
    for (int i = 0; i <= N / S; i++) k.seq[i] = (int64_t)i * S;
    for (int i = 0; i < N; i++) {
        ((int32_t *)k.pos.data)[i] = i % S;
        ((int32_t *)k.start.data)[i] = i / S * S;
        ((int32_t *)k.ids.data)[i] = i * 7919 % V;
    }
    for (int i = 0; i < S; i++) ((int32_t *)k.target.data)[i] = i * 90;
    k.layout = (struct tr_layout){ N, N / S, k.start, k.pos, k.seq };
    k.heads = (struct tr_attention){ HEADS, KV, D, 0.125f };
    tr_kernels()->random_normal(&k.v, tr_key(2, TR_RNG_INIT, 0, 0), 0);
    tr_kernels()->fill(&k.v, 1e-4f);
    k.work = make(TR_U8, 0, (int64_t)tr_kernels()->attention_work(&k.layout, &k.heads, k.act, true) + 64);
}

/* ---- the parts. bytes: read and written at least once; or flops. */

static const struct tr_apply nearest = { 1, 1e-6f, 1, { { { 0, 0 } }, 0 } }, stochastic = { 1, 1e-6f, 1, { { { 3, 4 } }, 0 } };
static const struct tr_adam adam = { 0.9, 0.999, 1, 1e-8f };
static const struct tr_sign lion = { 0.9f, 0.1f, 0.99f, 0.01f };
#define K tr_kernels()
#define U tr_updates()
#define PART(NAME, CALL) static void NAME(void) { CALL; }
PART(copy_memory, K->copy(&k.copy, &k.big))
PART(add, K->add(&k.y, &k.x, &k.dy))
PART(rms_norm, K->rms_norm(&k.y, &k.r, &k.x, &k.g, 1e-5f))
PART(rms_rebuild, K->rms_norm_rebuild(&k.y, &k.r, &k.x, &k.g))
PART(rms_backward, K->rms_norm_backward(&k.y, true, &k.dg, &k.dy, &k.x, &k.r, &k.g))
PART(layer_norm, K->layer_norm(&k.y, &k.stat, &k.x, &k.g, &k.b, 1e-5f))
PART(layer_backward, K->layer_norm_backward(&k.y, true, &k.dg, &k.db, &k.dy, &k.x, &k.stat, &k.g))
PART(rope, K->rope(&k.qkv, &k.cs, &k.pos, HEADS + KV, false))
PART(swiglu, K->swiglu(&k.a, &k.gu))
PART(swiglu_backward, K->swiglu_backward(&k.dgu, &k.a, &k.gu))
PART(gelu, K->gelu(&k.dgu, &k.gu))
PART(gelu_backward, K->gelu_backward(&k.dgu, &k.dgu, &k.gu))
PART(embed, K->embed(&k.y, &k.embed, &k.ids, false))
PART(embed_backward, K->embed_backward(&k.dembed, &k.dy, &k.ids))
PART(cross_entropy, K->cross_entropy(&k.loss, &k.dlogits, &k.logits, &k.target, 1e-3f))
PART(attention, K->attention(&k.o, &k.lse, &k.qkv, &k.layout, &k.heads))
PART(attention_backward, K->attention_backward(&k.dqkv, &k.o, &k.o, &k.lse, &k.qkv, &k.layout, &k.heads, &k.work))
PART(product, if (tr_gemm_forward(&k.gu, &k.x, &k.w_up, false)) exit(1))
PART(product_dx, if (tr_gemm_dx(&k.y, &k.gu, &k.w_up, false)) exit(1))
PART(product_dw, if (tr_gemm_dw(&(struct tr_tensor){ .data = k.grad.data, .dtype = TR_F32, .ndim = 2, .dim = { 2 * I, C }, .ld = C }, &k.gu, &k.x, false)) exit(1))
PART(adam_f32, U->adam(&k.w_f32, &k.m, &k.v, &k.grad, &adam, &nearest))
PART(adam_bf16, U->adam(&k.w_bf16, &k.m, &k.v, &k.grad, &adam, &stochastic))
PART(adam_int8, U->adam(&k.w_int8, &k.m, &k.v, &k.grad, &adam, &stochastic))
PART(adam_8bit, U->adam_8bit(&k.grad, &k.m8, &k.v8, &k.most, &k.most_v, &adam))
PART(adam_direction, U->adam_direction(&k.grad, &k.m, &k.v, &k.grad, &adam))
PART(apply_f32, U->apply(&k.w_f32, &k.grad, &nearest))
PART(apply_bf16, U->apply(&k.w_bf16, &k.grad, &stochastic))
PART(apply_int8, U->apply(&k.w_int8, &k.grad, &stochastic))
PART(lion_bf16, U->sign(&k.w_bf16, &k.m, &k.grad, &lion, &stochastic))
PART(root_direction, U->root_direction(&k.grad, &k.v, 0.99f, 1e-8f))
PART(norms, U->norms(&k.norm, &k.grad, 0))
PART(sum_squares, (void)!(K->sum_squares(&k.grad) > 0))

struct part { const char *name; void (*run)(void); double bytes, flops; };

static double best_seconds(void (*run)(void), double least)
{
    double best = 1e30, spent = 0;
    for (int i = 0; i < 3 || (spent < least && i < 200); i++) {
        double t = tr_now();
        run();
        t = tr_now() - t;
        if (i && t < best) best = t;
        spent += t;
    }
    return best;
}

static void show(const struct part *p)
{
    double own = p->flops > 0 ? tr_gemm_rate(k.act, N, 2 * I, C) : 2e-9 * (double)tr_bytes(&k.big) / best_seconds(copy_memory, 0.1);
    double s = best_seconds(p->run, 0.2), rate = 1e-9 * (p->flops > 0 ? p->flops : p->bytes) / s;
    printf("%-20s %9.3f ms %9.1f %s %7.2f of %.1f\n", p->name, s * 1e3, rate, p->flops > 0 ? "GFLOP/s" : "GB/s   ", rate / own, own);
}

int main(int argc, char **argv)
{
    tr_set_threads(getenv("THREADS") ? atoi(getenv("THREADS")) : 0);
    make_all();
    const double a = (double)tr_dtype_size(k.act), x = a * N * C, mat = 8.0 * I * C, attend = 4.0 * N * HEADS * D * (S + 1) / 2.0, up = 2.0 * N * 2 * I * C;
    const struct part parts[] = {
        { "product", product, 0, up }, { "product_dx", product_dx, 0, up }, { "product_dw", product_dw, 0, up },
        { "attention", attention, 0, attend }, { "attention_backward", attention_backward, 0, 2.5 * attend },
        { "add", add, 3 * x, 0 }, { "rms_norm", rms_norm, 2 * x, 0 }, { "rms_norm_rebuild", rms_rebuild, 2 * x, 0 }, { "rms_norm_backward", rms_backward, 4 * x, 0 },
        { "layer_norm", layer_norm, 2 * x, 0 }, { "layer_norm_backward", layer_backward, 4 * x, 0 }, { "rope", rope, 2 * a * N * (HEADS + KV) * D, 0 },
        { "swiglu", swiglu, 3 * a * N * I, 0 }, { "swiglu_backward", swiglu_backward, 5 * a * N * I, 0 }, { "gelu", gelu, 4 * a * N * I, 0 }, { "gelu_backward", gelu_backward, 6 * a * N * I, 0 },
        { "embed", embed, 2 * x, 0 }, { "embed_backward", embed_backward, x + 8.0 * N * C, 0 }, { "cross_entropy", cross_entropy, (4 + a) * S * V, 0 },
        { "adam f32", adam_f32, 28 * mat, 0 }, { "adam bf16", adam_bf16, 24 * mat, 0 }, { "adam int8", adam_int8, 22 * mat, 0 }, { "adam_8bit", adam_8bit, 12 * mat, 0 },
        { "adam_direction", adam_direction, 24 * mat, 0 }, { "apply f32", apply_f32, 12 * mat, 0 }, { "apply bf16", apply_bf16, 8 * mat, 0 }, { "apply int8", apply_int8, 6 * mat, 0 },
        { "lion bf16", lion_bf16, 16 * mat, 0 }, { "root_direction", root_direction, 16 * mat, 0 }, { "norms", norms, 4 * mat, 0 }, { "sum_squares", sum_squares, 4 * mat, 0 },
    };
    printf("%s kernels, %s, %d threads; the last column: the machine's own product or copy\n", tr_kernels()->name, tr_dtype_name(k.act), tr_threads());
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        bool wanted = argc == 1;
        for (int n = 1; n < argc; n++) wanted |= !strncmp(parts[i].name, argv[n], strlen(argv[n]));
        if (wanted) show(&parts[i]);
    }
    return 0;
}
