/* The inside of the tokenizer, shared by its files only. */
#ifndef TR_TOKENIZER_IMPL_H
#define TR_TOKENIZER_IMPL_H
#include "libtrain/data/tokenizer.h"

/* ---- vocab.c: pieces of text and their ids */

enum tr_piece_kind { TR_PIECE_NONE, TR_PIECE_NORMAL, TR_PIECE_UNKNOWN, TR_PIECE_CONTROL, TR_PIECE_USER, TR_PIECE_UNUSED, TR_PIECE_BYTE };

struct tr_piece { uint32_t at, n; float score; uint8_t kind; bool lstrip, rstrip; };   /* bytes [at, at + n) of the pool */

struct tr_vocab {
    struct tr_buf pool;
    struct tr_piece *piece;      /* [n], by id */
    int32_t n;
    uint32_t *slot, mask;        /* open addressing: id + 1 of pieces that words are made of; 0 is free */
    int32_t *special;            /* [specials] ids of control and user tokens, by first byte, then longest first */
    int32_t specials;
    int32_t first[257];          /* range of `special` that begins with a byte */
};

int tr_vocab_init(struct tr_vocab *v, int64_t n);          /* n empty pieces */
void tr_vocab_release(struct tr_vocab *v);
int tr_vocab_set(struct tr_vocab *v, int64_t id, const char *text, size_t n, int kind);
/* After the last set: the tables for looking up. */
int tr_vocab_index(struct tr_vocab *v);
/* The id of a piece of words, or -1. */
int32_t tr_vocab_find(const struct tr_vocab *v, const char *text, size_t n);
/* The id of a special token by its text, or -1. */
int32_t tr_vocab_special(const struct tr_vocab *v, const char *text, size_t n);
/* The longest special token at the start of the text, or -1. Control tokens only when `control`. */
int32_t tr_vocab_special_at(const struct tr_vocab *v, const char *text, size_t n, bool control);
uint64_t tr_hash_bytes(const char *text, size_t n);

/* ---- split.c: text to words by regular expressions, one after the other */

enum { TR_SPLIT_MAX = 4 };
struct tr_split {
    struct tr_split_rule { void *code, *match; bool gaps; } rule[TR_SPLIT_MAX];   /* gaps: what lies between matches is a word too */
    int n;
};
typedef int tr_word_fn(void *self, const char *text, size_t from, size_t n);

/* Adds a rule. Errors: TR_EINPUT for an expression that does not compile or too many rules. */
int tr_split_add(struct tr_split *s, const char *pattern, bool gaps);
/* The rules under the name that GGUF files use (tokenizer.ggml.pre). */
int tr_split_named(struct tr_split *s, const char *name, bool *whole_words, bool *nfc);
void tr_split_release(struct tr_split *s);
/* Calls `each` for the words of text[from, from + n) in order. The text must be valid UTF-8. */
int tr_split_words(const struct tr_split *s, const char *text, size_t from, size_t n, tr_word_fn *each, void *self);

/* ---- bpe.c: words to ids by merging neighbours */

struct tr_merge { uint64_t pair; int32_t rank, id; };      /* pair: left << 32 | right; rank -1 is a free slot */
struct tr_merges { struct tr_merge *slot; uint64_t mask; };
struct tr_symbol { int32_t at, n, id, prev, next; };       /* a run of bytes of the word; id -1 is not in the vocabulary */
struct tr_bigram { double rank; int32_t left, n, id; };    /* in the heap; n: bytes of both, stale when they changed */
struct tr_word_cache;

struct tr_bpe {
    struct tr_merges merges;
    struct tr_symbol *symbol;    /* work space of one word */
    struct tr_bigram *heap;
    size_t symbol_cap, heap_cap;
    struct tr_word_cache *cache;
};

int tr_merges_init(struct tr_merges *m, size_t count);
void tr_merges_add(struct tr_merges *m, int32_t left, int32_t right, int32_t rank, int32_t id);
void tr_bpe_release(struct tr_bpe *b);

/* ---- the tokenizer */

enum tr_token_model { TR_MODEL_BYTES, TR_MODEL_BYTE_LEVEL, TR_MODEL_SENTENCE };
enum tr_prefix { TR_PREFIX_NEVER, TR_PREFIX_FIRST, TR_PREFIX_ALWAYS };
enum tr_cut { TR_CUT_NONE, TR_CUT_WORDS, TR_CUT_SPACES };

struct tr_tokenizer {
    enum tr_token_model model;
    bool scored;                 /* sentence: merges by the score of the result, not from a list */
    bool whole_words;            /* a word that is a piece stays whole, whatever the merges say */
    bool nfc;                    /* text is composed first */
    enum tr_prefix prefix;       /* sentence: a space before the whole text or before each part between special tokens */
    bool prefix_once;            /* sentence: no second space where the text begins with one */
    enum tr_cut cut;             /* sentence: what is merged apart: all, words with their spaces, or at every space */
    struct tr_vocab vocab;
    struct tr_split split;
    struct tr_bpe bpe;
    int32_t byte_id[256];        /* the piece that is one byte, or -1 */
    int32_t unknown, bos, eos, eot;
    bool adds_bos;
    char *chat_template;
};

/* Appends ids and places (base + offset) of one word. */
int tr_bpe_word(struct tr_tokenizer *t, struct tr_tokens *out, const char *word, size_t n, size_t base);
/* Sentence pieces of a text without special tokens. (sentence.c) */
int tr_sentence_encode(struct tr_tokenizer *t, struct tr_tokens *out, const char *text, size_t n, size_t base);
/* What every source ends with: tables, byte pieces. */
int tr_tokenizer_finish(struct tr_tokenizer *t, const char *where);
/* Sources. (from_gguf.c, from_json.c) */
int tr_tokenizer_from_gguf(struct tr_tokenizer *t, const json_t *meta);
int tr_tokenizer_from_json(struct tr_tokenizer *t, const char *path);
/* Adds the merge of two pieces given as their texts in the file. */
int tr_tokenizer_add_merge(struct tr_tokenizer *t, const char *left, size_t nl, const char *right, size_t nr, int32_t rank, const char *where);
/* Bytes of a piece written in GPT-2's alphabet, in which each byte is a printable character; false when another
 * character occurs. out has room for n bytes. */
bool tr_alphabet_bytes(char *out, size_t *out_n, const char *text, size_t n);

/* Offset of the first byte that is not UTF-8, or n. */
size_t tr_utf8_check(const char *text, size_t n);
/* Bytes of the white space character at the start, as Python's str.strip knows it; 0 when it is another. */
size_t tr_space_bytes(const char *text, size_t n);

#endif
