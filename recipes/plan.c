/* `train plan`: what the run will need, without allocating it. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

/* Tokens/s from the matmul rate of this machine on the model's widest layer, measured now, and the share of it that steps
 * reach (`train bench` on SmolLM2's shape: 0.83 with everything kept or products rebuilt). Blocks that run again add a third
 * to the blocks' work; micro-batches below 512 tokens lose what small products lose. */
static double matmul_rate(const struct job *j)
{
    enum tr_dtype compute = j->r->model.dtype != RECIPE_F32 && tr_gemm_has_bf16() ? TR_BF16 : TR_F32;
    if (j->r->model.compute != RECIPE_COMPUTE_AUTO) compute = j->r->model.compute == RECIPE_COMPUTE_BF16 ? TR_BF16 : TR_F32;
    return 1e9 * tr_gemm_rate(compute, 512, j->shape.intermediate, j->shape.hidden);
}

static double expected_speed(const struct job *j, double rate)
{
    const struct tr_shape *s = &j->shape;
    double head = 6.0 * (double)(s->vocab * s->hidden), attention = 6.0 * (double)(s->layers * s->heads * s->head_dim) * (double)j->r->data.sequence;
    double blocks = 6.0 * (double)tr_shape_matmul_params(s) - head + attention, tokens = (double)tr_loader_max_tokens(j->loader, j->micro_batch);
    if (j->recompute == TR_BLOCK) blocks *= 4.0 / 3;
    return 0.83 * rate * (tokens / (tokens + 40)) / (head + blocks);
}

/* Bytes that a rank sends in a step: rows of others' gradients each round, then its rows of weights, or at stage 0 of sums. */
static double traffic(const struct job *j)
{
    double n = (double)tr_shape_params(&j->shape), others = (double)(j->comm->size - 1) / j->comm->size;
    double weight = j->r->model.dtype == RECIPE_BF16 ? 2 : j->r->model.dtype == RECIPE_INT8 ? 1 + 4.0 / TR_QUANT_GROUP : 4;
    return others * n * (4 * (double)j->rounds + (j->r->parallel.zero ? weight : 4));
}

static void print_json(const struct job *j, const struct forecast *f, double speed, bool fits)
{
    json_t *o = json_object(), *m = json_object();
    for (int c = 0; c < TR_CATEGORIES; c++) json_object_set_new(m, tr_category_name((enum tr_category)c), json_integer((json_int_t)f->ledger.at_peak[c]));
    json_object_set_new(o, "peak", json_integer((json_int_t)f->ledger.peak));
    json_object_set_new(o, "peak_rss", json_integer(f->peak_rss));
    json_object_set_new(o, "memory", m);
    json_object_set_new(o, "tokens_per_s", json_real(speed));
    json_object_set_new(o, "ranks", json_integer(j->comm->size));
    json_object_set_new(o, "sent_per_step", json_integer((json_int_t)traffic(j)));
    json_t *d = json_object();
    json_object_set_new(d, "file", json_integer((json_int_t)f->disk.file));
    json_object_set_new(d, "read_per_step", json_integer((json_int_t)f->disk.read));
    json_object_set_new(d, "written_per_step", json_integer((json_int_t)f->disk.written));
    json_object_set_new(o, "offload", d);
    json_object_set_new(o, "fits", json_boolean(fits));
    json_dumpf(o, stdout, JSON_REAL_PRECISION(6) | JSON_COMPACT);
    putchar('\n');
    json_decref(o);
}

static void print_table(const struct job *j, const struct forecast *f, double speed, bool fits)
{
    printf("%-15s %12s %12s\n", "category", "at the peak", "between steps");
    for (int c = 0; c < TR_CATEGORIES; c++)
        printf("%-15s %9.1f MB %9.1f MB\n", tr_category_name((enum tr_category)c), (double)f->ledger.at_peak[c] / 1e6, (double)f->state[c] / 1e6);
    printf("%-15s %9.1f MB   (resident at most %.1f MB, libraries included)\n", "peak", (double)f->ledger.peak / 1e6, (double)f->peak_rss / 1e6);
    printf("%" PRId64 " parameters, %" PRId64 " steps of %" PRId64 " sequences (%" PRId64 " micro-batches), about %.0f tokens/s expected\n",
           tr_shape_params(&j->shape), j->steps, j->batch, j->micro_batches, speed);
    if (f->disk.file > 0)
        printf("memory.offload: %.1f MB wait on disk (%s); a step reads %.1f MB and writes %.1f MB; in memory stay weights, gradients and what is at work\n",
               (double)f->disk.file / 1e6, j->r->memory.offload_dir[0] ? j->r->memory.offload_dir : j->r->run.dir, (double)f->disk.read / 1e6, (double)f->disk.written / 1e6);
    if (j->comm->size > 1) {
        double sent = traffic(j);
        printf("for each of %d ranks at ZeRO stage %" PRId64 " (rank 0 is shown); each sends about %.1f MB a step\n", j->comm->size, j->r->parallel.zero, sent / 1e6);
    }
    if (j->r->memory.budget > 0) printf("%s memory.budget = %.2f GB\n", fits ? "fits" : "does not fit", (double)j->r->memory.budget / 1e9);
}

/* ---- search */

struct choice { int64_t micro_batch; enum tr_recompute recompute; double speed; struct forecast f; };

static int by_speed(const void *a, const void *b)
{
    const struct choice *x = a, *y = b;
    if (x->speed != y->speed) return x->speed < y->speed ? 1 : -1;
    return x->f.peak_rss < y->f.peak_rss ? -1 : x->f.peak_rss > y->f.peak_rss;
}

/* Every way to cut the batch and to hold activations; prints those that fit, fastest first. */
static int print_search(struct job *j)
{
    static const char *const names[] = { "none", "selective", "block" };
    struct choice all[192];
    size_t n = 0, shown = 0;
    int64_t budget = j->r->memory.budget;
    for (int64_t m = j->batch; m >= 1 && n + 3 <= sizeof all / sizeof *all; m--)
        for (int k = TR_KEEP; k <= TR_BLOCK && j->batch % (m * j->comm->size) == 0; k++) {
            struct choice *c = &all[n];
            *c = (struct choice){ .micro_batch = m, .recompute = (enum tr_recompute)k };
            TR_TRY(job_resolve(j, m, c->recompute));
            TR_TRY(forecast_run(j, &c->f));
            n++;
        }
    double rate = matmul_rate(j); /* after the forecasts: they fork, and measuring starts threads */
    for (size_t i = 0; i < n; i++) {
        j->micro_batch = all[i].micro_batch;
        j->recompute = all[i].recompute;
        all[i].speed = expected_speed(j, rate);
    }
    qsort(all, n, sizeof *all, by_speed);
    printf("%-12s %-11s %12s %12s\n", "micro_batch", "recompute", "resident", "tokens/s");
    for (size_t i = 0; i < n; i++) {
        if (budget > 0 && all[i].f.peak_rss > budget) continue;
        printf("%-12" PRId64 " %-11s %9.1f MB %12.0f\n", all[i].micro_batch, names[all[i].recompute], (double)all[i].f.peak_rss / 1e6, all[i].speed);
        if (!shown++) j->micro_batch = all[i].micro_batch, j->recompute = all[i].recompute;
    }
    if (!shown) {
        size_t least = 0;
        for (size_t i = 1; i < n; i++)
            if (all[i].f.peak_rss < all[least].f.peak_rss) least = i;
        TR_TRY(job_resolve(j, all[least].micro_batch, all[least].recompute));
        puts("nothing fits");
        return forecast_check(j, &all[least].f);
    }
    printf("fastest: --set train.micro_batch=%" PRId64 " --set memory.recompute=%s\n", j->micro_batch, names[j->recompute]);
    return TR_OK;
}

int recipe_plan(struct recipe *r, bool json, bool search)
{
    struct job j = { 0 };
    struct forecast f;
    int rc;
    TR_GO(job_open(&j, r));
    /* Ranks that are not there: what rank 0 of them would need. */
    struct tr_comm planned = { .kind = j.comm->kind, .size = (int)r->parallel.data, .local = 1, .doing = "" };
    if (j.comm->size == 1) j.comm = &planned;
    TR_GO(job_tokenizer(&j, false));
    TR_GO(job_data(&j, true));
    if (search) {
        rc = print_search(&j);
        goto done;
    }
    int fit = forecast_fit(&j, &f);
    if (fit != TR_OK && fit != TR_EBUDGET) TR_GO(fit);
    char why[1024];
    snprintf(why, sizeof why, "%s", fit ? tr_message() : "");
    double speed = expected_speed(&j, matmul_rate(&j));
    if (json) print_json(&j, &f, speed, fit == TR_OK);
    else print_table(&j, &f, speed, fit == TR_OK);
    rc = fit ? tr_fail(fit, "%s", why) : TR_OK;
done:
    job_release(&j);
    return rc;
}
