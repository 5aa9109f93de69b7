/* The inside of a dataset, shared by the files that make, walk and show it. */
#ifndef TR_DATASET_IMPL_H
#define TR_DATASET_IMPL_H
#include "libtrain/data/chat.h"
#include "libtrain/data/data.h"

/* A document, a window of a text, or a row of an HDF5 file: tokens [begin, begin + n) of the dataset. */
struct tr_example {
    int64_t begin;
    int32_t n, counted;      /* counted: targets of this example that are not -100 */
    bool continues;          /* a window whose last token predicts the first one behind it */
    bool alone;              /* fills a sequence of its own */
};

struct tr_dataset {
    int32_t *ids;            /* [tokens] */
    uint8_t *is_target;      /* [tokens] 1: this token is predicted by the one before it */
    int32_t *targets;        /* [tokens] as given by HDF5 files; NULL for text, where is_target decides */
    size_t tokens, ids_cap, is_target_cap, targets_cap;
    struct tr_example *example;
    size_t examples, examples_cap;
    int64_t *first;          /* [sequences + 1] index of the first example of each sequence */
    size_t sequences, first_cap;
    int64_t longest_sequence;
    struct tr_data_counts counts;
    uint64_t hash;
    int64_t ledger;          /* bytes counted in the ledger */
};

/* The target of token k of an example, or -100. */
static inline int32_t tr_example_target(const struct tr_dataset *d, const struct tr_example *e, int64_t k)
{
    int64_t next = e->begin + k + 1;
    if (d->targets) return d->targets[e->begin + k];
    return (k + 1 < e->n || e->continues) && d->is_target[next] ? d->ids[next] : -100;
}

/* What reading needs to know. */
struct tr_reading {
    struct tr_dataset *d;
    const struct tr_data_config *c;
    const struct tr_tokenizer *t;
    const struct tr_chat *chat;      /* found at the first conversation */
    const char *file;
    int64_t vocab, line;
    int64_t dropped_line;            /* place of the first example without a counted token */
    char *dropped_file;
    double begin;                    /* tr_now at the start, for progress */
};

enum tr_format { TR_FORMAT_AUTO, TR_FORMAT_TEXT, TR_FORMAT_CHAT, TR_FORMAT_PROMPT };   /* data.format */

/* Reads one file. (read_text.c, read_jsonl.c, read_h5.c) */
int tr_read_text(struct tr_reading *r);
int tr_read_jsonl(struct tr_reading *r);
int tr_read_h5(struct tr_reading *r);
/* Appends a token; is_target as above. Errors: TR_EINPUT for an id beyond the vocabulary. */
int tr_dataset_token(struct tr_reading *r, int32_t id, bool is_target);
/* Makes an example of the e.n tokens from `begin` on; one without a counted target is only counted as dropped, its tokens
 * are the caller's to forget. */
int tr_dataset_add_example(struct tr_reading *r, size_t begin, struct tr_example e);

#endif
