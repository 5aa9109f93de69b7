/* AdamW for some layers at a time: BAdam, one block after the other, and LISA, some drawn by chance beside embeddings and head.
 * Whose turn it is follows from the step alone, so that nothing of it need be saved. A layer whose turn is over gives its state
 * back; one whose turn begins starts anew. The others do not move, have no gradient, and what lies below the lowest
 * layer at work is not even recorded. */
#include "libtrain/base/rng.h"
#include "libtrain/base/status.h"
#include "optim/adamw.h"
#include <stdlib.h>
#include <string.h>

enum { RANDOM, ASCENDING, DESCENDING };

/* One table of keys for both; each kind shows its own. */
struct turns { struct opt_adamw_config adamw; int64_t every, layers; int order; bool embeddings; };

static const struct tr_option badam_options[] = {
    OPT_ADAMW_OPTIONS,
    { "switch_block_every", TR_OPT_INT, offsetof(struct turns, every), "100", 1, 1e15, NULL, "steps of a turn" },
    { "switch_mode", TR_OPT_CHOICE, offsetof(struct turns, order), "random", 0, 0, "random|ascending|descending", "order of the blocks; random: each once before any comes again" },
    { "train_embeddings", TR_OPT_BOOL, offsetof(struct turns, embeddings), "false", 0, 0, NULL, "embeddings, final norm and output head train all the time, too" },
    OPT_END,
};
static const struct tr_option lisa_options[] = {
    OPT_ADAMW_OPTIONS,
    { "interval_steps", TR_OPT_INT, offsetof(struct turns, every), "20", 1, 1e15, NULL, "steps between two draws" },
    { "activated_layers", TR_OPT_INT, offsetof(struct turns, layers), "2", 1, 1 << 20, NULL, "layers that train at a time, beside embeddings, final norm and output head" },
    OPT_END,
};

/* Place of a block in the order of permutation `draw`. */
static int place_of(int block, int blocks, uint64_t seed, uint64_t draw, int *at)
{
    int64_t *order;
    TR_TRY(tr_calloc(&order, (size_t)blocks, sizeof *order));
    tr_permutation(order, blocks, tr_key(seed, TR_RNG_SELECTION, tr_hash("turns"), draw));
    for (int i = 0; i < blocks; i++)
        if (order[i] == block) *at = i;
    free(order);
    return TR_OK;
}

static int badam_turn(const void *config, const struct opt_turn *t, bool *trains)
{
    const struct turns *c = config;
    int64_t turn = (t->step - 1) / c->every;
    int at = t->block;
    *trains = t->block < 0 && c->embeddings;
    if (t->block < 0) return TR_OK;
    if (c->order == DESCENDING) at = t->blocks - 1 - at;
    if (c->order == RANDOM) TR_TRY(place_of(t->block, t->blocks, t->seed, (uint64_t)(turn / t->blocks), &at));
    *trains = tr_mem_is_dry() ? t->block == 0 : at == turn % t->blocks; /* a forecast sees the turn that records most */
    return TR_OK;
}

static int lisa_turn(const void *config, const struct opt_turn *t, bool *trains)
{
    const struct turns *c = config;
    int at = 0;
    if (t->block >= 0) TR_TRY(place_of(t->block, t->blocks, t->seed, (uint64_t)((t->step - 1) / c->every), &at));
    if (tr_mem_is_dry()) at = t->blocks - 1 - t->block; /* gradients of the highest layers are there longest */
    *trains = t->block < 0 || at < c->layers;
    return TR_OK;
}

/* A block that is drawn again by the next sweep starts anew, as after any other turn. */
static bool badam_anew(const void *config, const struct opt_turn *t) { return t->block >= 0 && (t->step - 1) % ((const struct turns *)config)->every == 0; }
static bool lisa_anew(const void *config, const struct opt_turn *t) { return false; }

#define KIND(TABLE) .options = TABLE, .config_size = sizeof(struct turns), .state_size = sizeof(struct opt_adamw_state), .by_rows = true, .bf16_moments = true, \
    .init = opt_adamw_init, .update = opt_adamw_update, .visit = opt_adamw_visit, .bytes = opt_adamw_bytes
const struct opt_kind opt_badam = {
    KIND(badam_options), .name = "badam", .turn = badam_turn, .anew = badam_anew, .summary = "AdamW block by block: the state of one transformer block at a time", .source = "Luo et al. 2024, BAdam",
    .rule = "AdamW for the block whose turn it is, its moments and step count from zero; the others stand still, and backward ends at that block",
};
const struct opt_kind opt_lisa = {
    KIND(lisa_options), .name = "lisa", .turn = lisa_turn, .anew = lisa_anew, .summary = "AdamW for embeddings, head and a few layers drawn anew every so many steps", .source = "Pan et al. 2024, LISA; LMFlow",
    .rule = "every interval_steps, activated_layers of the layers are drawn; AdamW for them, embeddings, final norm and head; state is dropped when a layer's turn is over",
};
