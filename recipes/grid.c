#include "recipes/grid.h"
#include "libtrain/base/status.h"
#include "parallel/mpi.h"
#include "parallel/partition.h"
#include "recipes/pipeline.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int grid_open(struct job *j)
{
    int size = j->comm->size, rank = j->comm->rank;
    j->stages = size > 1 ? (int)j->r->parallel.pipeline : 1;
    if (size % j->stages)
        return tr_fail(TR_EINPUT, "%d ranks cannot be dealt to parallel.pipeline = %d stages (%s): start a multiple of %d", size, j->stages, j->r->path, j->stages);
    int data = size / j->stages;
    TR_TRY(par_group(&j->data, j->comm, rank / data * data, 1, data));
    return par_group(&j->pipe, j->comm, rank % data, data, j->stages);
}

struct job_traffic job_traffic(const struct job *j)
{
    const struct tr_comm *line[] = { j->comm, j->data, j->pipe };
    struct job_traffic sum = { 0 };
    for (int i = 0; i < 3; i++) {
        const struct tr_comm *c = line[i];
        if ((i > 0 && c == j->comm) || (i > 1 && c == j->data)) continue; /* each once */
        sum.sent += c->sent;
        sum.waited += c->waited;
        sum.moved += c->moved * (uint64_t)(j->comm->size / c->size);
    }
    return sum;
}

/* ---- who has what */

int grid_hold_stages(struct job *j)
{
    int size = j->stages, chunks = pipeline_chunks(j->pipeline);
    struct tr_stage *stage;
    TR_TRY(tr_calloc(&j->held, (size_t)j->net->n_params, ((size_t)size + 1) * sizeof *j->held));
    TR_TRY(tr_calloc(&stage, (size_t)chunks, sizeof *stage));
    for (int r = 0; r < size; r++) {
        struct tr_cut cut = pipeline_cut(j->pipeline, r, stage);
        for (int64_t i = 0; i < j->net->n_params; i++) {
            const struct tr_param *p = &j->net->param[i];
            bool has = p->spread;
            for (int c = 0; c < chunks; c++) has |= p->layer >= stage[c].from && p->layer < stage[c].to;
            for (int k = r + 1; k <= size && has; k++) j->held[i * (size + 1) + k] = p->spread ? cut.vocab_begin + cut.vocab_rows : tr_rows(&p->value);
        }
    }
    free(stage);
    return TR_OK;
}

int grid_deal_rows(struct job *j)
{
    struct par_item *item;
    TR_TRY(tr_calloc(&item, (size_t)j->net->n_params, sizeof *item));
    for (int64_t i = 0; i < j->net->n_params; i++) {
        const struct tr_param *p = &j->net->param[i];
        const struct tr_tensor *w = p->spread ? &p->shard : &p->value;
        item[i] = (struct par_item){ tr_rows(w), true, 4 * (size_t)tr_count(w) };
    }
    int rc = par_deal(j->first, item, j->net->n_params, j->data->size);
    free(item);
    return rc;
}

/* Ranks with most and least. A plan for ranks that are not there is of the one with most. */
static int weigh_ranks(struct job *j, const struct par_item *item, int64_t n)
{
    size_t *load;
    int most = 0;
    TR_TRY(tr_calloc(&load, (size_t)j->comm->size, sizeof *load));
    par_loads(load, j->first, item, n, j->comm->size);
    j->dealt_least = load[0];
    for (int r = 1; r < j->comm->size; r++) {
        if (load[r] > load[most]) most = r;
        if (load[r] < j->dealt_least) j->dealt_least = load[r];
    }
    j->dealt_most = load[most];
    if (j->comm->planned) j->comm->rank = most;
    free(load);
    return TR_OK;
}

/* Rows of a parameter on a stage: [*begin, *begin + the result). */
static int64_t on_stage(const struct job *j, int64_t i, int stage, int64_t *begin)
{
    const int64_t *held = j->held + i * (j->stages + 1) + stage;
    *begin = j->stages > 1 ? held[0] : 0;
    return j->stages > 1 ? held[1] - held[0] : tr_rows(&j->net->param[i].value);
}

/* The rows that ranks of a stage have of a parameter, counted over all ranks: those of the stages before have the rows before. */
static void note_dealt(struct job *j, int64_t i, int stage, int64_t begin, const int64_t *first)
{
    int ranks = j->data->size, size = j->comm->size;
    for (int r = stage * ranks + 1; r <= size; r++) {
        int at = r - stage * ranks;
        j->dealt[i * (size + 1) + r] = begin + first[at < ranks ? at : ranks];
    }
}

/* The parameters of a stage to the ranks that share it, without regard to the other stages. */
static int deal_stage(struct job *j, const struct par_item *item, int64_t n, int stage)
{
    int ranks = j->data->size;
    int64_t *first = NULL, m = 0, begin, rows;
    struct par_item *some = NULL;
    int rc;
    TR_GO(tr_calloc(&first, (size_t)n, ((size_t)ranks + 1) * sizeof *first));
    TR_GO(tr_calloc(&some, (size_t)n, sizeof *some));
    for (int64_t i = 0; i < n; i++) {
        if (!(rows = on_stage(j, i, stage, &begin))) continue;
        some[m] = item[i];
        if (item[i].rows) some[m].rows = rows;
        m++;
    }
    TR_GO(par_deal(first, some, m, ranks));
    for (int64_t i = 0, k = 0; i < n; i++) {
        if (!on_stage(j, i, stage, &begin)) continue;
        if (!j->net->param[i].spread || stage == j->pipe->rank) memcpy(j->first + i * (ranks + 1), first + k * (ranks + 1), ((size_t)ranks + 1) * sizeof *first);
        if (j->stages > 1) note_dealt(j, i, stage, begin, first + k * (ranks + 1));
        k++;
    }
    rc = TR_OK;
done:
    free(some);
    free(first);
    return rc;
}

/* A rule that needs a matrix whole cannot have rows of it. */
static int check_spread(const struct job *j, const struct opt_share *share, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (j->net->param[i].spread && share[i].rows && !share[i].by_rows)
            return tr_fail(TR_EINPUT, "parallel.vocabulary with optimizer.name = %s (%s): its rule needs '%s' whole; set parallel.vocabulary = none, or give it name = adamw in an [optimizer.group.NAME] with match = %s",
                           recipe_optimizer(j->r), j->r->path, j->net->param[i].name, j->net->param[i].name);
    return TR_OK;
}

int grid_deal_state(void *self, struct opt_share *share, int64_t n)
{
    struct job *j = self;
    struct par_item *item;
    int rc;
    TR_TRY(tr_calloc(&item, (size_t)n, sizeof *item));
    for (int64_t i = 0; i < n; i++) {
        const struct tr_tensor *w = &j->net->param[i].value;
        size_t weight = j->net->sharded ? tr_bytes(w) + tr_quant_bytes(w) : 0;
        item[i] = (struct par_item){ share[i].rows, share[i].by_rows, share[i].bytes + weight };
    }
    TR_GO(check_spread(j, share, n));
    if (j->stages > 1) TR_GO(tr_calloc(&j->dealt, (size_t)n, ((size_t)j->comm->size + 1) * sizeof *j->dealt));
    for (int stage = 0; stage < j->stages; stage++) TR_GO(deal_stage(j, item, n, stage));
    for (int64_t i = 0; i < n; i++) share[i].first = j->stages > 1 ? j->dealt + i * (j->comm->size + 1) : j->first + i * (j->data->size + 1);
    rc = j->stages > 1 ? TR_OK : weigh_ranks(j, item, n);
    for (int64_t i = 0; i < n && rc == TR_OK && j->net->sharded; i++) {
        const int64_t *first = share[i].first + j->comm->rank;
        rc = tr_net_shard(&j->net->param[i], first[0], first[1] - first[0]);
    }
done:
    free(item);
    return rc;
}

int grid_deal_stages(void *self, struct opt_share *share, int64_t n)
{
    struct job *j = self;
    for (int64_t i = 0; i < n; i++) share[i].first = j->held + i * (j->stages + 1);
    return check_spread(j, share, n);
}

int grid_gather_weight(void *self, const struct tr_param *p, struct tr_tensor *whole)
{
    struct job *j = self;
    struct tr_comm *c = j->stages > 1 ? j->pipe : j->data;
    return tr_comm_gather_rows(c, whole, &p->shard, (j->stages > 1 ? j->held : j->first) + p->index * (c->size + 1));
}
