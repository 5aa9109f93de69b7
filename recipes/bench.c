/* `train bench`: tokens/s, share of the machine's own matmul rate, memory, and where the time goes. */
#include "libtrain/base/profile.h"
#include "libtrain/base/log.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "recipes/bench_snapshots.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

/* The matmul rate on the model's own shapes, weighted by the FLOPs that each has in a step. Each shape keeps the best of
 * its samples: they are taken between the steps, since another process slows matmul and step alike. */
enum { SHAPES = 5 };
struct rates { struct { int64_t n, o, c, times; double best; } m[SHAPES]; enum tr_dtype compute; };

static struct rates rates_of(const struct job *j, int64_t tokens)
{
    const struct tr_shape *s = &j->shape;
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, up = s->arch == TR_GPT2 ? s->intermediate : 2 * s->intermediate;
    return (struct rates){ { { tokens, q + 2 * kv, s->hidden, s->layers, 0 }, { tokens, s->hidden, q, s->layers, 0 }, { tokens, up, s->hidden, s->layers, 0 },
        { tokens, s->hidden, s->intermediate, s->layers, 0 }, { tokens < 512 ? tokens : 512, s->vocab, s->hidden, 1, 0 } }, j->net->compute };
}

static void sample(struct rates *r)
{
    for (int i = 0; i < SHAPES; i++) {
        double rate = tr_gemm_rate(r->compute, r->m[i].n, r->m[i].o, r->m[i].c);
        if (rate > r->m[i].best) r->m[i].best = rate;
    }
}

static double mean_rate(const struct rates *r)
{
    double flops = 0, seconds = 0;
    for (int i = 0; i < SHAPES; i++) {
        double f = (double)r->m[i].o * (double)r->m[i].c * (double)r->m[i].times;
        flops += f;
        seconds += f / r->m[i].best;
    }
    return flops / seconds;
}

static void add_memory(json_t *o, const struct tr_ledger *l)
{
    json_t *m = json_object();
    for (int c = 0; c < TR_CATEGORIES; c++) json_object_set_new(m, tr_category_name(c), json_integer((json_int_t)l->at_peak[c]));
    json_object_set_new(o, "memory", m);
    json_object_set_new(o, "peak", json_integer((json_int_t)l->peak));
    json_object_set_new(o, "peak_rss", json_integer((json_int_t)tr_rss_peak()));
}

int recipe_bench(struct recipe *r)
{
    struct job j = { 0 };
    struct forecast foretold;
    struct bench_snapshots snapshots = { 0 };
    double *seconds = NULL, *rates = NULL, tokens = 0;
    int rc;
    TR_GO(bench_snapshots_open(&snapshots, r));
    TR_GO(job_open(&j, r));
    TR_GO(job_tokenizer(&j, false));
    TR_GO(job_data(&j, true));
    TR_GO(forecast_fit(&j, &foretold)); /* memory.recompute = auto is resolved, a budget is kept */
    TR_GO(job_net(&j, true));
    TR_GO(job_training(&j));
    job_forget_files(&j);
    int64_t n = r->train.steps > 1 ? r->train.steps : 6, counted = 0;
    TR_GO(tr_calloc(&seconds, (size_t)n, sizeof *seconds));
    TR_GO(tr_calloc(&rates, (size_t)n, sizeof *rates));
    TR_GO(bench_snapshots_start(&snapshots, &j, n));
    struct rates gemms = rates_of(&j, tr_loader_max_tokens(j.loader, j.micro_batch));
    double part[TR_PARTS] = { 0 };
    size_t rss = 0;
    for (int64_t i = 0; i < n; i++) {
        struct step_result s;
        tr_part_reset();
        double t = tr_now();
        TR_GO(job_step(&j, &s));
        t = tr_now() - t;
        tr_part_enter(TR_PART_OTHER);
        tr_progress(true, "step %" PRId64 "/%" PRId64 "  loss %.4f  %.0f tokens/s%s", i + 1, n, s.loss, (double)s.tokens / t, i ? "" : "  (warm-up)");
        if (i == 0) continue;
        seconds[counted] = t;
        rates[counted++] = (double)s.tokens / t;
        tokens += (double)s.tokens;
        for (int p = 0; p < TR_PARTS; p++) part[p] += tr_part_seconds((enum tr_part)p);
        rss = tr_rss_peak(); /* of the steps: the samples below take buffers of their own */
        sample(&gemms);
        bench_snapshots_step(&snapshots, &j, t);
        if (i + 1 < n) TR_GO(bench_snapshots_begin(&snapshots, &j)); /* nothing comes between it and the step that it meets */
    }
    for (int p = 0; p < TR_PARTS; p++) part[p] /= (double)counted;
    struct tr_ledger l = tr_mem_ledger();
    double gemm = mean_rate(&gemms), rate = bench_median(rates, counted), flops = 6.0 * (double)tr_shape_matmul_params(&j.shape);
    const struct tr_shape *s = &j.shape;
    double attention = 6.0 * (double)(s->layers * s->heads * s->head_dim) * (double)r->data.sequence; /* causal half of 12 */
    json_t *o = json_object(), *b = json_object();
    json_object_set_new(o, "tokens_per_s", json_real(rate));
    json_object_set_new(o, "step_s", json_real(bench_median(seconds, counted)));
    json_object_set_new(o, "tokens_per_step", json_real(tokens / (double)counted));
    json_object_set_new(o, "flops_per_token", json_real(flops));
    json_object_set_new(o, "attention_flops_per_token", json_real(attention));
    json_object_set_new(o, "gemm_gflops", json_real(gemm));
    json_object_set_new(o, "mfu", json_real(rate * flops / (gemm * 1e9)));
    add_memory(o, &l);
    json_object_set_new(o, "peak_rss", json_integer((json_int_t)rss));
    for (int p = 0; p < TR_PARTS; p++) json_object_set_new(b, tr_part_name(p), json_real(part[p]));
    json_object_set_new(o, "breakdown", b);
    json_object_set_new(o, "kernels", json_string(tr_kernels()->name));
    json_object_set_new(o, "compute", json_string(tr_dtype_name(j.net->compute)));
    json_object_set_new(o, "threads", json_integer(tr_threads()));
    TR_GO(bench_snapshots_report(&snapshots, &j, o));
    fflush(stderr);
    json_dumpf(o, stdout, JSON_REAL_PRECISION(6) | JSON_COMPACT);
    putchar('\n');
    json_decref(o);
done:
    free(seconds);
    free(rates);
    j.done = true;
    job_release(&j);
    bench_snapshots_close(&snapshots);
    return rc;
}
