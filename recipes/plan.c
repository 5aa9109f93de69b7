/* `train plan`: what the run will need, without allocating it. */
#include "libtrain/base/file.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "parallel/links.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "parallel/links.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens/s from the matmul rate of this machine on the model's widest layer, measured now, and the share of it that steps
 * reach (`train bench` on SmolLM2's shape: 0.83 with everything kept or products rebuilt). Blocks that run again add a third
 * to the blocks' work; micro-batches below 512 tokens lose what small products lose. */
static double matmul_rate(const struct job *j)
{
    enum tr_dtype compute = j->r->model.dtype != RECIPE_F32 && tr_gemm_has_bf16() ? TR_BF16 : TR_F32;
    if (j->r->model.compute != RECIPE_COMPUTE_AUTO) compute = j->r->model.compute == RECIPE_COMPUTE_BF16 ? TR_BF16 : TR_F32;
    return 1e9 * tr_gemm_rate(compute, 512, j->shape.intermediate, j->shape.hidden);
}

struct rates { double matmul, read, write; };   /* FLOP/s; bytes/s of the disk, 0 where nothing is offloaded */

/* The share of a step's disk time that computing does not hide: the thread that moves bytes takes its part of the cores and
 * of the memory's rate (`train bench` on SmolLM2's shape with and without memory.offload). */
static const double DISK_SEEN = 0.5;

static double expected_speed(const struct job *j, const struct rates *rate, const struct forecast *f)
{
    const struct tr_shape *s = &j->shape;
    double head = 6.0 * (double)(s->vocab * s->hidden), attention = 6.0 * (double)(s->layers * s->heads * s->head_dim) * (double)j->r->data.sequence;
    double blocks = 6.0 * (double)tr_shape_matmul_params(s) - head + attention, tokens = (double)tr_loader_max_tokens(j->loader, j->micro_batch);
    if (j->recompute == TR_BLOCK) blocks *= 4.0 / 3;
    double computing = tokens * (double)j->rounds * (head + blocks) / (0.83 * rate->matmul * (tokens / (tokens + 40)));
    double moving = rate->read > 0 ? (double)f->disk.read / rate->read + (double)f->disk.written / rate->write : 0;
    double seconds = computing + DISK_SEEN * moving;
    return tokens * (double)j->rounds * j->data->size / (seconds > moving ? seconds : moving);
}

/* Where the offload files will be, or the nearest folder above that is there already. */
static int existing_folder(char **out, const char *folder)
{
    TR_TRY(tr_strdup(out, folder));
    while (!tr_is_dir(*out)) {
        char *slash = strrchr(*out, '/');
        if (!slash || slash == *out) {
            free(*out);
            return tr_strdup(out, slash ? "/" : ".");
        }
        *slash = 0;
    }
    return TR_OK;
}

/* Rates of the disk under `folder`, measured now with the file of a run. */
static int disk_rates(struct rates *rate, const char *folder)
{
    enum { SIZE = 64 << 20 };
    struct tr_spill *s = NULL;
    char *there = NULL;
    void *memory = NULL;
    int rc;
    TR_GO(existing_folder(&there, folder));
    TR_GO(tr_spill_open(&s, there));
    TR_GO(tr_mem_alloc(&memory, SIZE, TR_OTHER));
    memset(memory, 1, SIZE);
    double t0 = tr_now();
    TR_GO(tr_spill_wait(s, tr_spill_write(s, 0, memory, SIZE)));
    double t1 = tr_now();
    TR_GO(tr_spill_wait(s, tr_spill_read(s, 0, memory, SIZE)));
    rate->write = SIZE / (t1 - t0);
    rate->read = SIZE / (tr_now() - t1);
done:
    tr_spill_close(s);
    tr_mem_free(memory, SIZE, TR_OTHER);
    free(there);
    return rc;
}

static json_t *categories(const size_t *at)
{
    json_t *m = json_object();
    for (int c = 0; c < TR_CATEGORIES; c++) json_object_set_new(m, tr_category_name((enum tr_category)c), json_integer((json_int_t)at[c]));
    return m;
}

static void print_json(const struct job *j, const struct forecast *f, double speed, bool fits)
{
    json_t *o = json_object(), *step = json_array(), *d = json_object();
    json_object_set_new(o, "peak", json_integer((json_int_t)f->ledger.peak));
    json_object_set_new(o, "peak_rss", json_integer(f->peak_rss));
    if (tr_device()) json_object_set_new(o, "device", json_integer(f->device));
    json_object_set_new(o, "memory", categories(f->ledger.at_peak));
    for (int p = 0; p < FORECAST_PHASES; p++) {
        json_t *one = json_object();
        json_object_set_new(one, "phase", json_string(forecast_phase_name((enum forecast_phase)p)));
        json_object_set_new(one, "total", json_integer((json_int_t)f->phase[p].total));
        json_object_set_new(one, "memory", categories(f->phase[p].at));
        json_array_append_new(step, one);
    }
    json_object_set_new(o, "step", step);
    json_object_set_new(o, "tokens_per_s", json_real(speed));
    json_object_set_new(o, "ranks", json_integer(j->comm->size));
    json_object_set_new(o, "rank", json_integer(f->rank));
    json_object_set_new(o, "dealt", json_pack("[I,I]", (json_int_t)f->dealt_least, (json_int_t)f->dealt_most));
    json_object_set_new(o, "sent_per_step", json_integer((json_int_t)f->sent[1]));
    json_object_set_new(o, "gradients_per_step", json_integer((json_int_t)f->held[1]));
    if (f->refresh > 1) { /* steps whose subspaces are new, which the peak is of */
        json_object_set_new(o, "refresh", json_pack("{s:I,s:I,s:I}", "every", (json_int_t)f->refresh, "sent", (json_int_t)f->sent[0], "gradients", (json_int_t)f->held[0]));
    }
    json_object_set_new(d, "file", json_integer((json_int_t)f->disk.file));
    json_object_set_new(d, "read_per_step", json_integer((json_int_t)f->disk.read));
    json_object_set_new(d, "written_per_step", json_integer((json_int_t)f->disk.written));
    json_object_set_new(o, "offload", d);
    json_object_set_new(o, "fits", json_boolean(fits));
    json_dumpf(o, stdout, JSON_REAL_PRECISION(6) | JSON_COMPACT);
    putchar('\n');
    json_decref(o);
}

/* Categories side by side, the step's phases one under another; what stays below 0.05 MB everywhere has no column. */
static void print_step(const struct forecast *f)
{
    bool shown[TR_CATEGORIES] = { false };
    for (int c = 0; c < TR_CATEGORIES; c++)
        for (int p = 0; p < FORECAST_PHASES; p++) shown[c] |= f->phase[p].at[c] >= 50000;
    printf("\n%-20s", "a step, in MB");
    for (int c = 0; c < TR_CATEGORIES; c++)
        if (shown[c]) printf(" %11s", tr_category_name((enum tr_category)c));
    printf(" %11s\n", "total");
    for (int p = 0; p < FORECAST_PHASES; p++) {
        if (!f->phase[p].total) continue;
        printf("%-20s", forecast_phase_name((enum forecast_phase)p));
        for (int c = 0; c < TR_CATEGORIES; c++)
            if (shown[c]) printf(" %11.1f", (double)f->phase[p].at[c] / 1e6);
        printf(" %11.1f%s\n", (double)f->phase[p].total / 1e6, (enum forecast_phase)p == forecast_peak_phase(f) ? "  <- peak" : "");
    }
    putchar('\n');
}

static const char *offload_folder(const struct job *j) { return j->r->memory.offload_dir[0] ? j->r->memory.offload_dir : j->r->run.dir; }

static void print_table(const struct job *j, const struct forecast *f, double speed, bool fits)
{
    printf("%-15s %12s %12s\n", "category", "at the peak", "between steps");
    for (int c = 0; c < TR_CATEGORIES; c++)
        printf("%-15s %9.1f MB %9.1f MB\n", tr_category_name((enum tr_category)c), (double)f->ledger.at_peak[c] / 1e6, (double)f->state[c] / 1e6);
    printf("%-15s %9.1f MB   (resident at most %.1f MB, libraries included)\n", "peak", (double)f->ledger.peak / 1e6, (double)f->peak_rss / 1e6);
    if (tr_device()) printf("%-15s %9.1f MB   (of %.1f MB that are free there)\n", "on the device", (double)f->device / 1e6, (double)tr_device()->available() / 1e6);
    print_step(f);
    printf("%" PRId64 " parameters, %" PRId64 " steps of %" PRId64 " sequences (%" PRId64 " micro-batches), about %.0f tokens/s expected\n",
           tr_shape_params(&j->shape), j->steps, j->batch, j->micro_batches, speed);
    if (f->disk.file > 0)
        printf("memory.offload: %.1f MB wait on disk (%s); a step reads %.1f MB and writes %.1f MB; in memory stay weights, gradients and what is at work\n",
               (double)f->disk.file / 1e6, offload_folder(j), (double)f->disk.read / 1e6, (double)f->disk.written / 1e6);
    if (f->refresh > 1) {
        printf("gradients are summed as projections: at most %.1f MB, and %.1f MB in one step of %" PRId64 ", when subspaces are new", (double)f->held[1] / 1e6, (double)f->held[0] / 1e6, f->refresh);
        if (j->comm->size > 1) printf("; %.1f MB are sent then", (double)f->sent[0] / 1e6);
        puts("");
    }
    if (j->comm->size > 1) {
        printf("for each of %d ranks at ZeRO stage %" PRId64 " (rank %d is shown); each sends about %.1f MB a step\n", j->comm->size, j->r->parallel.zero, f->rank, (double)f->sent[1] / 1e6);
        if (f->dealt_most) printf("%s of a rank: %.1f to %.1f MB; the one with most is shown\n", j->r->parallel.zero == 3 ? "optimizer state and weights" : "optimizer state", (double)f->dealt_least / 1e6, (double)f->dealt_most / 1e6);
    }
    if (j->r->memory.budget > 0) printf("%s memory.budget = %.2f GB\n", fits ? "fits" : "does not fit", (double)j->r->memory.budget / 1e9);
}

/* ---- search */

struct choice { int64_t micro_batch; enum tr_recompute recompute; bool disk; double speed; struct forecast f; };
struct choices { struct choice *c; size_t n, cap; };

static int by_speed(const void *a, const void *b)
{
    const struct choice *x = a, *y = b;
    if (x->speed != y->speed) return x->speed < y->speed ? 1 : -1;
    return forecast_limited(&x->f) < forecast_limited(&y->f) ? -1 : forecast_limited(&x->f) > forecast_limited(&y->f);
}

static int take(struct job *j, const struct choice *c) { return job_resolve(j, c->micro_batch, c->recompute); }

/* Every way to cut the batch, to hold activations, and to let state and activations wait. The optimizer stays: it decides
 * what is learned. So does fused_update: it is used wherever it can be. */
static int try_all(struct choices *all, struct job *j)
{
    bool offload = j->r->memory.offload == RECIPE_OFFLOAD_NONE;
    for (int64_t m = j->batch; m >= 1; m--)
        for (int k = TR_KEEP; k <= TR_BLOCK && j->batch % (m * j->data->size) == 0; k++)
            for (int disk = !offload; disk < 2; disk++) {
                TR_TRY(tr_grow(&all->c, all->n, &all->cap, sizeof *all->c));
                struct choice *c = &all->c[all->n];
                *c = (struct choice){ .micro_batch = m, .recompute = (enum tr_recompute)k, .disk = disk };
                TR_TRY(take(j, c));
                TR_TRY(forecast_with(j, disk ? "memory.offload=disk" : NULL, &c->f));
                all->n++;
            }
    struct rates rate = { 0 };
    TR_TRY(disk_rates(&rate, offload_folder(j))); /* after the forecasts: they fork, and measuring starts threads */
    rate.matmul = matmul_rate(j);
    for (size_t i = 0; i < all->n; i++) {
        TR_TRY(take(j, &all->c[i]));
        all->c[i].speed = expected_speed(j, &rate, &all->c[i].f);
    }
    qsort(all->c, all->n, sizeof *all->c, by_speed);
    return TR_OK;
}

static int print_search(struct job *j)
{
    static const char *const names[] = { "none", "selective", "block" };
    struct choices all = { 0 };
    const struct choice *first = NULL, *least = NULL;
    int64_t budget = j->r->memory.budget;
    int rc;
    TR_GO(try_all(&all, j));
    printf("%-12s %-11s %-8s %12s %12s\n", "micro_batch", "recompute", "offload", "resident", "tokens/s");
    for (size_t i = 0; i < all.n; i++) {
        const struct choice *c = &all.c[i];
        if (!least || forecast_limited(&c->f) < forecast_limited(&least->f)) least = c;
        if (budget > 0 && forecast_limited(&c->f) > budget) continue;
        printf("%-12" PRId64 " %-11s %-8s %9.1f MB %12.0f\n", c->micro_batch, names[c->recompute], c->disk ? "disk" : "none", (double)forecast_limited(&c->f) / 1e6, c->speed);
        if (!first) first = c;
    }
    if (first) {
        printf("fastest: --set train.micro_batch=%" PRId64 " --set memory.recompute=%s --set memory.offload=%s\n", first->micro_batch, names[first->recompute], first->disk ? "disk" : "none");
        goto done;
    }
    puts("nothing fits");
    if (!least) TR_GO(tr_fail(TR_EINPUT, "no way to cut train.batch = %" PRId64 " for %d ranks", j->batch, j->data->size));
    TR_GO(take(j, least));
    TR_GO(recipe_set((struct recipe *)(uintptr_t)j->r, least->disk ? "memory.offload=disk" : "memory.offload=none"));
    rc = forecast_check(j, &least->f);
done:
    free(all.c);
    return rc;
}

int recipe_plan(struct recipe *r, bool json, bool search)
{
    struct job j = { 0 };
    struct forecast f;
    int rc;
    TR_GO(job_open(&j, r));
    /* Ranks that are not there. */
    struct tr_comm planned = { .kind = j.comm->kind, .size = (int)r->parallel.data, .local = 1, .planned = true, .doing = "" };
    if (r->parallel.backend != RECIPE_BACKEND_MPI) par_links_plan(&planned);
    if (j.comm->size == 1) j.comm = j.data = &planned;
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
    struct rates rate = { 0 };
    if (f.disk.file > 0) TR_GO(disk_rates(&rate, offload_folder(&j)));
    rate.matmul = matmul_rate(&j);
    double speed = expected_speed(&j, &rate, &f);
    if (json) print_json(&j, &f, speed, fit == TR_OK);
    else print_table(&j, &f, speed, fit == TR_OK);
    rc = fit ? tr_fail(fit, "%s", why) : TR_OK;
done:
    job_release(&j);
    return rc;
}
