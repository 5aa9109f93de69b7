#include "libtrain/data/dataset_impl.h"
#include "libtrain/base/rng.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct tr_loader {
    const struct tr_dataset *d;
    uint64_t seed;
    bool shuffle;
    uint64_t epoch;
    int64_t index;                          /* the next sequence of the epoch */
    struct { int64_t *order; uint64_t epoch; bool made; } walk[2];   /* by parity: a batch may reach into the next epoch */
    struct tr_batch batch;
    int64_t token_cap, seq_cap;
    int64_t most_counted;                   /* in one sequence */
    bool widest, gaps;                      /* gaps: not every token of every sequence is counted */
    int64_t ledger;
};

static int64_t sequence_at(const struct tr_loader *loader, uint64_t epoch, int64_t index);
static void advance(const struct tr_loader *l, uint64_t *epoch, int64_t *index);

/* Of the next `sequences` of the walk. */
static void find_most_counted(struct tr_loader *l, int64_t sequences)
{
    const struct tr_dataset *d = l->d;
    uint64_t epoch = l->epoch;
    int64_t index = l->index;
    l->most_counted = 0;
    l->gaps = false;
    for (int64_t i = 0; i < sequences; i++, advance(l, &epoch, &index)) {
        int64_t counted = 0, tokens = 0, s = sequence_at(l, epoch, index);
        for (int64_t e = d->first[s]; e < d->first[s + 1]; e++) {
            counted += d->example[e].counted;
            tokens += d->example[e].n;
        }
        l->gaps |= counted < tokens;
        if (counted > l->most_counted) l->most_counted = counted;
    }
}

int tr_loader_new(struct tr_loader **out, const struct tr_dataset *d, const struct tr_data_config *c, uint64_t seed, bool shuffle)
{
    struct tr_loader *l;
    TR_TRY(tr_calloc(&l, 1, sizeof *l));
    *l = (struct tr_loader){ .d = d, .seed = seed, .shuffle = shuffle };
    int rc = TR_OK;
    for (int i = 0; shuffle && rc == TR_OK && i < 2; i++) rc = tr_calloc(&l->walk[i].order, d->sequences, sizeof(int64_t));
    if (rc != TR_OK) {
        tr_loader_free(l);
        return rc;
    }
    l->ledger = shuffle ? (int64_t)(2 * d->sequences * sizeof(int64_t)) : 0;
    tr_mem_count(TR_OTHER, l->ledger);
    *out = l;
    return TR_OK;
}

void tr_loader_free(struct tr_loader *l)
{
    if (!l) return;
    tr_mem_count(TR_OTHER, -l->ledger);
    free(l->walk[0].order);
    free(l->walk[1].order);
    free(l->batch.ids);
    free(l->batch.seq);
    free(l);
}

/* ---- the walk */

/* The sequence at a place of the walk: its number depends on seed, epoch and place alone. */
static int64_t sequence_at(const struct tr_loader *loader, uint64_t epoch, int64_t index)
{
    struct tr_loader *l = (struct tr_loader *)loader; /* orders are only kept, never decided here */
    if (!l->shuffle) return index;
    int k = (int)(epoch & 1);
    if (!l->walk[k].made || l->walk[k].epoch != epoch) {
        tr_permutation(l->walk[k].order, (int64_t)l->d->sequences, tr_key(l->seed, TR_RNG_SHUFFLE, 0, epoch));
        l->walk[k].epoch = epoch;
        l->walk[k].made = true;
    }
    return l->walk[k].order[index];
}

static void advance(const struct tr_loader *l, uint64_t *epoch, int64_t *index)
{
    if (++*index < (int64_t)l->d->sequences) return;
    *index = 0;
    ++*epoch;
}

int64_t tr_loader_sequences(const struct tr_loader *l) { return (int64_t)l->d->sequences; }

int64_t tr_loader_peek_counted(const struct tr_loader *l, int64_t sequences)
{
    uint64_t epoch = l->epoch;
    int64_t index = l->index, counted = 0;
    for (int64_t i = 0; i < sequences; i++, advance(l, &epoch, &index)) {
        int64_t s = sequence_at(l, epoch, index);
        for (int64_t e = l->d->first[s]; e < l->d->first[s + 1]; e++) counted += l->d->example[e].counted;
    }
    return counted;
}

int64_t tr_loader_max_tokens(const struct tr_loader *l, int64_t sequences)
{
    int64_t n;
    return __builtin_mul_overflow(sequences, l->d->longest_sequence, &n) ? INT64_MAX : n;
}

/* ---- micro-batches */

static int make_room(struct tr_loader *l, int64_t sequences)
{
    int64_t tokens = tr_loader_max_tokens(l, sequences);
    if (sequences < 1 || tokens > INT32_MAX / 4)
        return tr_fail(TR_EINPUT, "bad micro-batch (train.micro_batch): %" PRId64 " sequences of up to %" PRId64 " "
        "tokens", sequences, l->d->longest_sequence);
    if (tokens <= l->token_cap && sequences <= l->seq_cap) return TR_OK;
    int32_t *ids = NULL;
    int64_t *seq = NULL;
    TR_TRY(tr_calloc(&ids, (size_t)tokens, 4 * sizeof *ids));
    int rc = tr_calloc(&seq, (size_t)sequences + 1, sizeof *seq);
    if (rc != TR_OK) {
        free(ids);
        return rc;
    }
    int64_t bytes = 16 * tokens + 8 * (sequences + 1), before = l->token_cap ? 16 * l->token_cap + 8 * (l->seq_cap + 1) : 0;
    tr_mem_count(TR_OTHER, bytes - before);
    l->ledger += bytes - before;
    free(l->batch.ids);
    free(l->batch.seq);
    l->batch = (struct tr_batch){ .ids = ids, .targets = ids + tokens, .start = ids + 2 * tokens,
        .pos = ids + 3 * tokens, .seq = seq };
    l->token_cap = tokens;
    l->seq_cap = sequences;
    return TR_OK;
}

static void add_sequence(struct tr_batch *b, const struct tr_dataset *d, int64_t s)
{
    for (int64_t i = d->first[s]; i < d->first[s + 1]; i++) {
        const struct tr_example *e = &d->example[i];
        memcpy(b->ids + b->n, d->ids + e->begin, (size_t)e->n * sizeof *b->ids);
        for (int32_t k = 0; k < e->n; k++) {
            b->targets[b->n + k] = tr_example_target(d, e, k);
            b->start[b->n + k] = (int32_t)b->n;
            b->pos[b->n + k] = k;
        }
        b->n += e->n;
        b->counted += e->counted;
    }
    b->seq[++b->n_seqs] = b->n;
}

/* Where there are gaps at all, the last sequence of a micro-batch has one: rows are gathered then. */
static void add_widest(struct tr_batch *b, const struct tr_loader *l, bool last)
{
    bool gap = last && l->gaps && l->most_counted == l->d->longest_sequence && l->most_counted > 1;
    int64_t counted = l->most_counted - gap;
    for (int64_t k = 0; k < l->d->longest_sequence; k++) {
        b->ids[b->n + k] = 0;
        b->targets[b->n + k] = k < counted ? 0 : -100;
        b->start[b->n + k] = (int32_t)b->n;
        b->pos[b->n + k] = (int32_t)k;
    }
    b->n += l->d->longest_sequence;
    b->counted += counted;
    b->seq[++b->n_seqs] = b->n;
}

void tr_loader_widest(struct tr_loader *l, int64_t sequences)
{
    int64_t all = (int64_t)l->d->sequences;
    l->widest = true;
    find_most_counted(l, sequences < all ? sequences : all); /* from the start of an epoch: every one once */
}

int tr_loader_next(struct tr_loader *l, int64_t sequences, const struct tr_batch **out)
{
    TR_TRY(make_room(l, sequences));
    l->batch.n = l->batch.n_seqs = l->batch.counted = 0;
    l->batch.seq[0] = 0;
    for (int64_t i = 0; i < sequences; i++, advance(l, &l->epoch, &l->index))
        if (l->widest) add_widest(&l->batch, l, i == sequences - 1);
        else add_sequence(&l->batch, l->d, sequence_at(l, l->epoch, l->index));
    *out = &l->batch;
    return TR_OK;
}

void tr_loader_skip(struct tr_loader *l, int64_t sequences)
{
    for (int64_t i = 0; i < sequences; i++) advance(l, &l->epoch, &l->index);
}

struct tr_loader_place tr_loader_tell(const struct tr_loader *l) { return (struct tr_loader_place){ l->epoch, l->index }; }

void tr_loader_seek(struct tr_loader *l, struct tr_loader_place at)
{
    l->epoch = at.epoch;
    l->index = at.index;
}

int tr_loader_visit(struct tr_loader *l, struct tr_visitor *v)
{
    uint64_t w[3] = { l->epoch, (uint64_t)l->index, l->d->hash };
    TR_TRY(v->words(v->self, "data/position", w, 3));
    if (w[2] != l->d->hash)
        return tr_fail(TR_EINPUT, "the data changed (data.train): the snapshot's position belongs to other data or "
            "another data.sequence; restore them, or start a new run from the snapshot's model");
    if (w[1] >= l->d->sequences) return tr_fail(TR_EDAMAGED, "damaged snapshot (data/position): place %" PRIu64 " of "
        "%zu sequences", w[1], l->d->sequences);
    l->epoch = w[0];
    l->index = (int64_t)w[1];
    return TR_OK;
}
