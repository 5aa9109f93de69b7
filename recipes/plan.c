/* `train plan`: what the run will need, without allocating it. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

/* Tokens/s from the matmul rate of this machine on the model's widest layer, and the share of it that steps reach
 * (0.75 as measured by bench on the presets; recompute runs the forward of blocks again: 4/3 of the work). */
static double expected_speed(const struct job *j)
{
    const struct tr_shape *s = &j->shape;
    enum tr_dtype compute = j->r->model.dtype != RECIPE_F32 && tr_gemm_has_bf16() ? TR_BF16 : TR_F32;
    if (j->r->model.compute != RECIPE_COMPUTE_AUTO) compute = j->r->model.compute == RECIPE_COMPUTE_BF16 ? TR_BF16 : TR_F32;
    double flops = 6.0 * (double)tr_shape_matmul_params(s) + 6.0 * (double)(s->layers * s->heads * s->head_dim) * (double)j->r->data.sequence;
    if (j->r->memory.recompute == RECIPE_RECOMPUTE_BLOCK) flops *= 4.0 / 3;
    return 0.75e9 * tr_gemm_rate(compute, 512, s->intermediate, s->hidden) / flops;
}

static void print_json(const struct forecast *f, double speed, bool fits)
{
    json_t *o = json_object(), *m = json_object();
    for (int c = 0; c < TR_CATEGORIES; c++) json_object_set_new(m, tr_category_name((enum tr_category)c), json_integer((json_int_t)f->ledger.at_peak[c]));
    json_object_set_new(o, "peak", json_integer((json_int_t)f->ledger.peak));
    json_object_set_new(o, "peak_rss", json_integer(f->peak_rss));
    json_object_set_new(o, "memory", m);
    json_object_set_new(o, "tokens_per_s", json_real(speed));
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
    if (j->r->memory.budget > 0) printf("%s memory.budget = %.2f GB\n", fits ? "fits" : "does not fit", (double)j->r->memory.budget / 1e9);
}

int recipe_plan(struct recipe *r, bool json, bool search)
{
    struct job j = { 0 };
    struct forecast f;
    int rc;
    if (search) return tr_fail(TR_EINPUT, "--search is not there yet; try settings with --set and compare their plans");
    TR_GO(job_open(&j, r));
    TR_GO(job_tokenizer(&j, false));
    TR_GO(job_data(&j, true));
    TR_GO(forecast_run(&j, &f));
    bool fits = r->memory.budget <= 0 || f.peak_rss <= r->memory.budget;
    double speed = expected_speed(&j);
    if (json) print_json(&f, speed, fits);
    else print_table(&j, &f, speed, fits);
    rc = forecast_check(&j, &f);
done:
    job_release(&j);
    return rc;
}
