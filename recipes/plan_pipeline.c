/* `train plan --schedule`: a pipeline simulated from stated figures of a device: time, bubble and memory of each rank. Nothing
 * here is measured but device.flops where the recipe leaves it to this machine. */
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "parallel/cut.h"
#include "parallel/schedule/schedule.h"
#include "recipes/commands.h"
#include "recipes/forecast.h"
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what a layer costs, for the tokens of a micro-batch */

struct layer { double forward, input, weight, bytes, params, state; };   /* seconds of F, B, W; bytes held; numbers; bytes of optimizer state */

struct model { struct layer block, embed, head; double tokens, width, vocab, element, rate, flops; };   /* flops: of a micro-batch, all passes, nothing twice */

static int rate_of(const struct recipe *r, const struct tr_shape *s, double *out)
{
    bool bf16 = r->model.compute == RECIPE_COMPUTE_AUTO ? r->model.dtype != RECIPE_F32 && tr_gemm_has_bf16() : r->model.compute == RECIPE_COMPUTE_BF16;
    int64_t wide = s->intermediate < 8192 ? s->intermediate : 8192, deep = s->hidden < 4096 ? s->hidden : 4096; /* a large model's would not fit here */
    *out = r->device.flops > 0 ? r->device.flops : 1e9 * tr_gemm_rate(bf16 ? TR_BF16 : TR_F32, 512, wide, deep);
    return *out > 0 ? TR_OK : tr_fail(TR_EFAIL, "the matmul rate of this machine could not be measured; set device.flops");
}

/* State of an [m,n] matrix by the optimizer's own formula, with the recipe's keys; of `rest` with its defaults. */
static int state_bytes(const struct recipe *r, bool matrix, double m, double n, double *out)
{
    const char *name = "adamw";
    for (size_t i = 0; i < r->n_optimizer; i++)
        if (!strcmp(r->optimizer[i].section, "optimizer") && !strcmp(r->optimizer[i].key, "name")) name = r->optimizer[i].value;
    const struct opt_kind *k = opt_find(name), *own = k;
    if (k && k->matrices_only && !matrix) k = opt_find(k->rest);
    if (!k) return tr_fail(TR_EINPUT, "unknown optimizer '%.40s' (%s)", name, r->path);
    void *config;
    TR_TRY(tr_calloc(&config, 1, k->config_size));
    int rc = tr_options_default(k->options, config);
    for (size_t i = 0; i < r->n_optimizer && rc == TR_OK && k == own; i++) {
        const struct opt_entry *e = &r->optimizer[i];
        const struct tr_option *o = k->options;
        while (o->name && strcmp(o->name, e->key)) o++;
        if (o->name && !strcmp(e->section, "optimizer")) rc = tr_options_set(e->section, k->options, config, e->key, e->value, e->place);
    }
    if (rc == TR_OK) *out = (double)k->bytes(config, (int64_t)m, (int64_t)n);
    tr_options_release(k->options, config);
    free(config);
    return rc;
}

static int block_state(const struct recipe *r, const struct tr_shape *s, double *out)
{
    double q = (double)(s->heads * s->head_dim), kv = (double)(s->kv_heads * s->head_dim), h = (double)s->hidden, f = (double)s->intermediate;
    double shape[][2] = { { q, h }, { kv, h }, { kv, h }, { h, q }, { f, h }, { s->arch == TR_GPT2 ? 0 : f, h }, { h, f } }, one;
    *out = 0;
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        if (shape[i][0] <= 0) continue;
        TR_TRY(state_bytes(r, true, shape[i][0], shape[i][1], &one));
        *out += one;
    }
    return TR_OK;
}

static int measure(struct model *m, const struct recipe *r, const struct tr_shape *s)
{
    double q = (double)(s->heads * s->head_dim), kv = (double)(s->kv_heads * s->head_dim), h = (double)s->hidden, f = (double)s->intermediate, T = (double)r->data.sequence, V = (double)s->vocab;
    double n = T * (double)r->train.micro_batch, matrices = (double)(tr_shape_matmul_params(s) - s->vocab * s->hidden) / (double)s->layers;
    *m = (struct model){ .tokens = n, .width = h, .vocab = V, .element = r->model.dtype == RECIPE_F32 ? 4 : 2 };
    TR_TRY(rate_of(r, s, &m->rate));
    double linear = 2 * n * matrices / m->rate, attention = 2 * n * T * q / m->rate; /* causal: half of 4 n T q */
    m->block = (struct layer){ .forward = linear + attention, .input = linear + 2 * attention, .weight = linear, .params = matrices + 2 * h };
    m->flops = m->rate * ((double)s->layers * (3 * linear + 3 * attention)) + 6 * n * h * V;
    double b = m->element, rows = 4 * ((double)s->heads + 2);
    switch (r->memory.recompute) {
    case RECIPE_RECOMPUTE_NONE: m->block.bytes = n * (b * (6 * h + 2 * kv + 3 * f) + rows); break;
    case RECIPE_RECOMPUTE_BLOCK:
        m->block.bytes = n * b * h;
        m->block.input += linear + attention;
        break;
    default: m->block.bytes = n * (b * (4 * h + 2 * kv + 2 * f) + rows);
    }
    m->head = (struct layer){ .forward = 2 * n * h * V / m->rate, .input = 2 * n * h * V / m->rate, .weight = 2 * n * h * V / m->rate, .params = h * V };
    m->embed = (struct layer){ .params = s->tied ? 0 : h * V };
    TR_TRY(block_state(r, s, &m->block.state));
    TR_TRY(state_bytes(r, false, V, h, &m->head.state));
    m->embed.state = s->tied ? 0 : m->head.state;
    return TR_OK;
}

/* ---- a pipeline of it */

struct pipeline {
    struct par_schedule schedule;
    struct par_simulation time;
    struct par_costs costs;
    int *first, stages;
    double *figures, *state, *params;    /* [stages or ranks] numbers behind costs; per rank: optimizer bytes, numbers */
    int64_t *rows;                       /* [ranks + 1] of a shared vocabulary: rank r has [rows[r], rows[r + 1]) */
    double *weights, *rest, *total;      /* [ranks] bytes: weights with gradients and state; boundary and loss buffers; all */
    double sent, sync, seconds;          /* bytes of a rank and step between stages, and of gradients; seconds of a step */
};

enum cut { CUT_EVEN, CUT_BY_COST };

static void release(struct pipeline *p)
{
    par_schedule_release(&p->schedule);
    par_simulation_release(&p->time);
    free(p->first);
    free(p->rows);
    free(p->figures);
}

/* As in a run: rows of the vocabulary level the work of whole layers. */
static int share_vocabulary(struct pipeline *p, const struct model *m)
{
    double *work = NULL;
    int rc;
    TR_TRY(tr_calloc(&p->rows, (size_t)p->schedule.ranks + 1, sizeof *p->rows));
    TR_GO(tr_calloc(&work, (size_t)p->schedule.ranks, sizeof *work));
    for (int i = 0; i < p->stages; i++) work[par_stage_rank(&p->schedule, i, NULL)] += (p->first[i + 1] - p->first[i]) * (m->block.forward + m->block.input + m->block.weight);
    par_share_rows(p->rows, (int64_t)m->vocab, p->schedule.ranks, work, (m->head.forward + m->head.input + m->head.weight) / m->vocab);
    rc = TR_OK;
done:
    free(work);
    return rc;
}

static int deal(struct pipeline *p, const struct recipe *r, const struct model *m, int layers, enum cut cut)
{
    double *seconds = NULL, plain = p->schedule.vocabulary ? 0 : 1;
    int rc;
    TR_TRY(tr_calloc(&p->first, (size_t)p->stages + 1, sizeof *p->first));
    if (r->parallel.layers[0]) return par_cut_by_hand(p->first, layers, p->stages, r->parallel.layers);
    if (cut == CUT_EVEN) return par_cut_even(p->first, layers, p->stages);
    TR_GO(tr_calloc(&seconds, (size_t)layers, sizeof *seconds));
    for (int i = 0; i < layers; i++) seconds[i] = m->block.forward + m->block.input + m->block.weight;
    rc = par_cut_by_cost(p->first, layers, p->stages, seconds, 0, plain * (m->head.forward + m->head.input + m->head.weight));
done:
    free(seconds);
    return rc;
}

static int cost(struct pipeline *p, const struct recipe *r, const struct model *m)
{
    struct par_schedule *s = &p->schedule;
    int n = p->stages, ranks = s->ranks, last = n - 1;
    TR_TRY(tr_calloc(&p->figures, 4 * (size_t)n + 8 * (size_t)ranks, sizeof *p->figures));
    double *f = p->figures, *b = f + n, *w = b + n, *held = w + n, *S = held + n, *T = S + ranks, *shard = T + ranks, plain = s->vocabulary ? 0 : 1;
    p->state = shard + ranks;
    p->params = p->state + ranks;
    p->weights = p->params + ranks;
    p->rest = p->weights + ranks;
    p->total = p->rest + ranks;
    for (int i = 0; i < n; i++) {
        double layers = p->first[i + 1] - p->first[i], head = plain * (i == last), embed = plain * (i == 0);
        int rank = par_stage_rank(s, i, NULL);
        f[i] = layers * m->block.forward + head * m->head.forward;
        b[i] = layers * m->block.input + head * m->head.input;
        w[i] = layers * m->block.weight + head * m->head.weight;
        held[i] = layers * m->block.bytes + m->tokens * m->width * m->element * (i == 0 || i == last);
        p->params[rank] += layers * m->block.params + head * m->head.params + embed * m->embed.params;
        p->state[rank] += layers * m->block.state + head * m->head.state + embed * m->embed.state;
        p->rest[rank] += head * 512 * m->vocab * 4; /* the loss head works in segments */
    }
    double buffers = m->tokens * m->width * m->element, data = (double)r->parallel.data, zero = (double)r->parallel.zero;
    for (int k = 0; k < ranks; k++) {
        double mine = (double)(p->rows[k + 1] - p->rows[k]) / m->vocab, part = mine * m->head.forward;
        S[k] = s->vocabulary == PAR_VOCABULARY_ALG2 ? 2 * part : part;
        T[k] = s->vocabulary == PAR_VOCABULARY_ALG2 ? part : 2 * part;
        shard[k] = m->tokens * (mine * m->vocab * m->element + m->width * m->element + (s->vocabulary == PAR_VOCABULARY_ALG2 ? 4 * m->width : 0));
        p->params[k] += (1 - plain) * (m->head.params + m->embed.params) * mine;
        p->state[k] += (1 - plain) * (m->head.state + m->embed.state) * mine;
        double weight = r->model.dtype == RECIPE_F32 ? 4 : r->model.dtype == RECIPE_INT8 ? 1 + 5.0 / TR_QUANT_GROUP : 2;
        p->weights[k] = p->params[k] * (weight / (zero >= 3 ? data : 1) + 4 / (zero >= 2 ? data : 1)) + p->state[k] / (zero >= 1 ? data : 1);
        p->rest[k] += ranks > 1 ? 4 * buffers : 0;
    }
    /* W needs the inputs of the products and the gradients of their outputs, about as much as F left: all stays until W. */
    p->costs = (struct par_costs){ .seconds = { f, b, w, S, T }, .held = held, .kept = held, .shard = shard,
        .send = r->device.latency + buffers / r->device.link, .gather = r->device.latency * ceil(log2(ranks + 1)) + 4 * m->tokens * m->width / r->device.link };
    return TR_OK;
}

static int build(struct pipeline *p, const struct recipe *r, const struct tr_shape *shape, const struct model *m, const char *schedule, enum par_vocabulary vocabulary, enum cut cut)
{
    int64_t micros = r->train.batch / r->train.micro_batch / r->parallel.data;
    TR_TRY(par_schedule_make(&p->schedule, schedule, (int)r->parallel.pipeline, 0, (int)micros, vocabulary));
    p->stages = p->schedule.ranks * p->schedule.chunks;
    if (p->stages > shape->layers)
        return tr_fail(TR_EINPUT, "parallel.pipeline = %" PRId64 " with schedule %s (%s): %d stages for %" PRId64 " layers; set parallel.pipeline to at most %" PRId64,
                       r->parallel.pipeline, schedule, r->path, p->stages, shape->layers, shape->layers / p->schedule.chunks);
    TR_TRY(par_schedule_check(&p->schedule));
    TR_TRY(deal(p, r, m, (int)shape->layers, cut));
    TR_TRY(share_vocabulary(p, m));
    TR_TRY(cost(p, r, m));
    TR_TRY(par_schedule_simulate(&p->time, &p->schedule, &p->costs));
    double most = 0, data = (double)r->parallel.data;
    for (int k = 0; k < p->schedule.ranks; k++) {
        p->total[k] = p->weights[k] + p->rest[k] + p->time.peak[k];
        if (p->params[k] > most) most = p->params[k];
    }
    p->sync = 2 * 4 * most * (data - 1) / data;
    p->sent = p->schedule.ranks > 1 ? 2 * (double)micros * p->schedule.chunks * m->tokens * m->width * m->element : 0;
    p->seconds = p->time.seconds + p->sync / r->device.link;
    return TR_OK;
}

struct range { double least, most; };

static struct range range_of(const double *x, int n)
{
    struct range r = { x[0], x[0] };
    for (int i = 1; i < n; i++) {
        if (x[i] < r.least) r.least = x[i];
        if (x[i] > r.most) r.most = x[i];
    }
    return r;
}

static double use_of(const struct pipeline *p, const struct model *m) { return m->flops * p->schedule.micros / (p->seconds * m->rate * p->schedule.ranks); }

/* ---- what is printed */

static void print_ranks(const struct pipeline *p)
{
    const struct par_schedule *s = &p->schedule;
    printf("%-5s %7s %12s %15s %12s %9s %9s %8s\n", "rank", "layers", "parameters", "weights+state", "activations", "buffers", "total", "busy");
    for (int r = 0; r < s->ranks; r++) {
        int layers = 0;
        for (int c = 0; c < s->chunks; c++) layers += p->first[par_stage(s, r, c) + 1] - p->first[par_stage(s, r, c)];
        printf("%-5d %7d %10.1f M %12.2f GB %9.2f GB %6.2f GB %6.2f GB %6.1f %%\n", r, layers, p->params[r] / 1e6, p->weights[r] / 1e9, p->time.peak[r] / 1e9, p->rest[r] / 1e9, p->total[r] / 1e9,
               100 * p->time.busy[r] / p->time.seconds);
    }
}

static void print_summary(const struct pipeline *p, const struct recipe *r, const struct model *m)
{
    struct range memory = range_of(p->total, p->schedule.ranks), busy = range_of(p->time.busy, p->schedule.ranks);
    double tokens = m->tokens * p->schedule.micros * (double)r->parallel.data;
    printf("simulated: %.3g s a step (%.3g s of them summing gradients), bubble %.1f %%, %.0f tokens/s, %.1f %% of the device's rate\n", p->seconds, p->seconds - p->time.seconds, 100 * p->time.bubble,
           tokens / p->seconds, 100 * use_of(p, m));
    printf("simulated: largest rank %.2f GB, %.2f x the smallest; work of the busiest %.2f x the least busy; a rank sends up to %.1f MB between stages and %.1f MB of gradients a step\n", memory.most / 1e9,
           memory.most / memory.least, busy.most / busy.least, p->sent / 1e6, p->sync / 1e6);
    if (p->schedule.micros < p->schedule.ranks)
        printf("note: %d micro-batches for %d ranks leave most of them waiting; a smaller train.micro_batch or a larger train.batch fills them\n", p->schedule.micros, p->schedule.ranks);
}

/* Text unless quiet; SVG where it is asked for. */
static int draw(const struct pipeline *p, const char *svg, bool quiet)
{
    struct tr_buf out = { 0 };
    char *folder = NULL;
    const char *name = svg;
    int rc;
    if (!quiet) {
        TR_GO(par_schedule_draw(&out, &p->schedule, &p->time, 120));
        printf("\n%s\n", out.data);
        out.size = 0;
    }
    rc = TR_OK;
    if (!svg[0]) goto done;
    char title[160];
    snprintf(title, sizeof title, "simulated: %d ranks, %d micro-batches, %.3g s, bubble %.1f %%", p->schedule.ranks, p->schedule.micros, p->time.seconds, 100 * p->time.bubble);
    TR_GO(par_schedule_svg(&out, &p->schedule, &p->time, &p->costs, title));
    const char *slash = strrchr(svg, '/');
    if (slash) name = slash + 1;
    TR_GO(slash ? tr_strndup(&folder, svg, slash > svg ? (size_t)(slash - svg) : 1) : tr_strdup(&folder, "."));
    TR_GO(tr_write_file(folder, name, &out));
    if (!quiet) printf("%s holds the picture\n", svg);
done:
    free(folder);
    tr_buf_release(&out);
    return rc;
}

static int shape_of(struct job *j, const struct recipe *r)
{
    TR_TRY(job_open(j, r));
    int64_t micros = r->train.batch / r->train.micro_batch;
    if (micros % r->parallel.data == 0 && micros < 1 << 24) return TR_OK;
    return tr_fail(TR_EINPUT, "%" PRId64 " micro-batches (%s) cannot be dealt to parallel.data = %" PRId64 "; set train.batch to a multiple of %" PRId64, micros, r->path, r->parallel.data,
                   r->train.micro_batch * r->parallel.data);
}

static void print_head(const struct recipe *r, const struct tr_shape *s, const struct model *m)
{
    printf("simulated, not run: %" PRId64 " x %" PRId64 " = %" PRId64 " ranks (data x pipeline), %.2f G parameters, ZeRO %" PRId64 "; each device %.3g matmul FLOP/s%s, %.3g bytes/s and %.3g s a message\n",
           r->parallel.data, r->parallel.pipeline, r->parallel.data * r->parallel.pipeline, 1e-9 * (double)tr_shape_params(s), r->parallel.zero, m->rate,
           r->device.flops > 0 ? "" : " (measured here)", r->device.link, r->device.latency);
}

/* ---- the run's own code, without memory, as each rank in turn */

enum { MOST_RANKS = 64 };   /* of which each is shown */

/* [ranks], or NULL where there is no data to train on or the ranks are too many. */
static int forecast_ranks(struct job *j, struct forecast **out)
{
    const struct recipe *r = j->r;
    int n = (int)(r->parallel.data * r->parallel.pipeline), rc;
    *out = NULL;
    if (!r->data.train[0] || n > MOST_RANKS || n < 2 || j->comm->size > 1) return TR_OK;
    TR_TRY(job_tokenizer(j, false));
    TR_TRY(job_data(j, true));
    TR_TRY(tr_calloc(out, (size_t)n, sizeof **out));
    for (int k = 0; k < n; k++) TR_GO(forecast_of_rank(j, k, &(*out)[k]));
    return TR_OK;
done:
    free(*out);
    *out = NULL;
    return rc;
}

static void print_ledgers(const struct forecast *f, int n)
{
    printf("\nwhat the run counts, to the byte, at each rank's peak (snapshots to disk and evaluation apart), in MB:\n%-5s", "rank");
    for (int c = 0; c < TR_CATEGORIES; c++) printf(" %13s", tr_category_name((enum tr_category)c));
    printf(" %9s %9s\n", "peak", "resident");
    for (int k = 0; k < n; k++) {
        printf("%-5d", k);
        for (int c = 0; c < TR_CATEGORIES; c++) printf(" %13.1f", (double)f[k].ledger.at_peak[c] / 1e6);
        printf(" %9.1f %9.1f\n", (double)f[k].ledger.peak / 1e6, (double)f[k].peak_rss / 1e6);
    }
}

static json_t *numbers(const double *x, int n)
{
    json_t *a = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(a, json_integer((json_int_t)x[i]));
    return a;
}

static void print_json(const struct pipeline *p, const struct recipe *r, const struct model *m, const struct forecast *f, double most, bool fits)
{
    int ranks = p->schedule.ranks;
    json_t *o = json_pack("{s:b,s:I,s:I,s:f,s:f,s:f,s:f,s:b}", "simulated", 1, "ranks", (json_int_t)(ranks * r->parallel.data), "peak", (json_int_t)most, "seconds", p->seconds, "bubble", p->time.bubble,
                          "tokens_per_s", m->tokens * p->schedule.micros * (double)r->parallel.data / p->seconds, "of_rate", use_of(p, m), "fits", fits);
    json_object_set_new(o, "total", numbers(p->total, ranks));
    json_object_set_new(o, "weights_and_state", numbers(p->weights, ranks));
    json_object_set_new(o, "activations", numbers(p->time.peak, ranks));
    json_t *ledger = json_array();
    for (int64_t k = 0; f && k < ranks * r->parallel.data; k++) json_array_append_new(ledger, json_integer((json_int_t)f[k].ledger.peak));
    json_object_set_new(o, "ledger", ledger);
    json_dumpf(o, stdout, JSON_REAL_PRECISION(6) | JSON_COMPACT);
    putchar('\n');
    json_decref(o);
}

int recipe_plan_schedule(struct recipe *r, const char *svg, bool json)
{
    struct job j = { 0 };
    struct pipeline p = { 0 };
    struct model m;
    struct forecast *ranks = NULL;
    const char *name = par_schedule_names()[r->parallel.schedule];
    int rc;
    TR_GO(shape_of(&j, r));
    TR_GO(forecast_ranks(&j, &ranks)); /* before anything starts threads: it forks */
    TR_GO(measure(&m, r, &j.shape));
    TR_GO(build(&p, r, &j.shape, &m, name, (enum par_vocabulary)r->parallel.vocabulary, CUT_BY_COST));
    double most = range_of(p.total, p.schedule.ranks).most, budget = (double)r->memory.budget;
    bool fits = budget <= 0 || most <= budget;
    if (json) print_json(&p, r, &m, ranks, most, fits);
    if (!json) {
        print_head(r, &j.shape, &m);
        printf("%s, vocabulary parallelism %s, %d micro-batches of %.0f tokens; layers cut by %s\n\n", name, ((const char *[]){ "none", "alg1", "alg2" })[r->parallel.vocabulary], p.schedule.micros, m.tokens,
               r->parallel.layers[0] ? "hand" : "cost");
        print_ranks(&p);
    }
    TR_GO(draw(&p, svg, json));
    if (!json) print_summary(&p, r, &m);
    if (!json && ranks) print_ledgers(ranks, (int)(r->parallel.data * r->parallel.pipeline));
    if (!fits)
        rc = tr_fail(TR_EBUDGET, "memory budget %.2f GB (%s): the largest rank would need %.2f GB, simulated (weights with gradients and state %.2f GB at most, activations %.2f GB at most); "
                     "more stages, parallel.zero, memory.recompute = block, schedule v-half or a smaller train.micro_batch save memory", budget / 1e9, r->path, most / 1e9,
                     range_of(p.weights, p.schedule.ranks).most / 1e9, range_of(p.time.peak, p.schedule.ranks).most / 1e9);
done:
    free(ranks);
    release(&p);
    job_release(&j);
    return rc;
}

static int print_line(const struct recipe *r, const struct tr_shape *shape, int64_t vocab, const char *schedule, int method)
{
    static const char *const names[] = { "plain cut", "cut by cost", "alg1", "alg2" };
    static const enum par_vocabulary vocabulary[] = { PAR_VOCABULARY_NONE, PAR_VOCABULARY_NONE, PAR_VOCABULARY_ALG1, PAR_VOCABULARY_ALG2 };
    struct tr_shape s = *shape;
    struct pipeline p = { 0 };
    struct model m;
    int rc;
    s.vocab = vocab;
    TR_GO(measure(&m, r, &s));
    TR_GO(build(&p, r, &s, &m, schedule, vocabulary[method], method == 1 ? CUT_BY_COST : CUT_EVEN));
    struct range memory = range_of(p.total, p.schedule.ranks), busy = range_of(p.time.busy, p.schedule.ranks);
    printf("%-12s %7" PRId64 "k %-12s %8.1f %% %9.1f %% %9.2f GB %9.2f %9.2f\n", schedule, vocab / 1024, names[method], 100 * use_of(&p, &m), 100 * p.time.bubble, memory.most / 1e9, memory.most / memory.least,
           busy.most / busy.least);
done:
    release(&p);
    return rc;
}

int recipe_plan_vocabularies(struct recipe *r)
{
    static const char *const schedules[] = { "1f1b", "v-half" };
    struct job j = { 0 };
    struct model m;
    int rc;
    TR_GO(shape_of(&j, r));
    TR_GO(measure(&m, r, &j.shape));
    r->device.flops = r->device.flops > 0 ? r->device.flops : m.rate; /* measured once */
    print_head(r, &j.shape, &m);
    printf("\n%-12s %8s %-12s %10s %11s %12s %9s %9s\n", "schedule", "vocab", "method", "of rate", "bubble", "largest rank", "max/min", "work");
    for (int k = 0; k < 2; k++)
        for (int64_t vocab = 32768; vocab <= 262144; vocab *= 2)
            for (int method = 0; method < 4; method++) TR_GO(print_line(r, &j.shape, vocab, schedules[k], method));
    puts("simulated; max/min: memory of the largest rank over the smallest; work: busy seconds of the busiest rank over the least busy");
done:
    job_release(&j);
    return rc;
}
