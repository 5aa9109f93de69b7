/* What is trained on: files to examples, examples to micro-batches. */
#ifndef TR_DATA_H
#define TR_DATA_H
#include "libtrain/config/option.h"
#include "libtrain/data/tokenizer.h"
#include "libtrain/tensor/visit.h"

struct tr_data_config {
    char *train, *valid;      /* file, folder or glob */
    int format;               /* auto | text | chat | prompt */
    int64_t sequence;         /* tokens */
    bool pack, mask_prompt, shuffle;
    char *template_name;      /* chat template: auto | chatml | llama-2 | llama-3 | qwen | mistral | zephyr */
};
extern const struct tr_section tr_data_section;   /* "data": table of tr_data_config */

/* One micro-batch in host memory: n tokens in n_seqs sequences one after another, no padding. Documents packed into one
 * sequence do not see each other: start and pos restart at each. */
struct tr_batch {
    int64_t n, n_seqs, counted;      /* counted: targets that are not -100 */
    int32_t *ids, *targets;          /* [n]; target -100 = not counted */
    int32_t *start, *pos;            /* [n]; start: index in this batch of the first token of i's document */
    int64_t *seq;                    /* [n_seqs + 1] */
};

struct tr_dataset;                   /* examples of one split, tokenized */

/* Reads and tokenizes `path` (train or valid). Progress on stderr beyond two seconds. t may be NULL where only HDF5 files
 * are read. vocab: ids at or beyond it are an error. Errors: TR_EINPUT with file:line (bad JSON, missing keys, invalid UTF-8, wrong HDF5 types or shapes, no example
 * left). Examples without a counted token are skipped, counted, and said once. */
int tr_dataset_open(struct tr_dataset **out, const struct tr_data_config *c, const char *path, const struct tr_tokenizer *t, int64_t vocab);
void tr_dataset_free(struct tr_dataset *d);

struct tr_data_counts { int64_t examples, tokens, counted, longest, dropped_empty, truncated, sequences; };
struct tr_data_counts tr_dataset_counts(const struct tr_dataset *d);
/* Example i in file order, before packing and shuffling: ids and whether each is a training target. Borrowed. */
int tr_dataset_example(const struct tr_dataset *d, int64_t i, const int32_t **ids, const uint8_t **counted, int64_t *n);

struct tr_loader;                    /* a walk over a dataset, in an order that depends on seed and epoch alone */

/* The walk is the same on every rank; each takes its share and skips the others'. */
int tr_loader_new(struct tr_loader **out, const struct tr_dataset *d, const struct tr_data_config *c, uint64_t seed, bool shuffle);
void tr_loader_free(struct tr_loader *l);
int64_t tr_loader_sequences(const struct tr_loader *l);      /* per epoch */
/* The next `sequences` sequences of the walk, as one micro-batch (borrowed until the next call; storage is made for the
 * largest at tr_loader_new). Wraps into the next epoch. counted may be 0 never: such sequences do not exist. */
int tr_loader_next(struct tr_loader *l, int64_t sequences, const struct tr_batch **out);
/* Passes over the next `sequences` sequences: another rank's share. */
void tr_loader_skip(struct tr_loader *l, int64_t sequences);
/* Where the walk is, and back there: for rules that look at a batch several times. */
struct tr_loader_place { uint64_t epoch; int64_t index; };
struct tr_loader_place tr_loader_tell(const struct tr_loader *l);
void tr_loader_seek(struct tr_loader *l, struct tr_loader_place at);
/* Counted tokens of the next `sequences` sequences without consuming them. */
int64_t tr_loader_peek_counted(const struct tr_loader *l, int64_t sequences);
/* Largest number of tokens that `sequences` sequences can have. */
int64_t tr_loader_max_tokens(const struct tr_loader *l, int64_t sequences);
/* From now on every sequence is as long as any of the data, and has as many counted tokens as any of the next `sequences` of
 * the walk: for forecasts. */
void tr_loader_widest(struct tr_loader *l, int64_t sequences);
/* The position, for snapshots: one visitor call `words`. */
int tr_loader_visit(struct tr_loader *l, struct tr_visitor *v);

#endif
