/* Byte pair encoding of one word: neighbours are merged, the best pair first, the leftmost of equals. Short words rescan
 * their symbols; long ones keep the pairs in a heap. Words seen before come from a small cache. */
#include "libtrain/data/tokenizer_impl.h"
#include "libtrain/base/status.h"
#include <stdlib.h>
#include <string.h>

/* ---- merges */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 32)) * 0x9e3779b97f4a7c15u;
    return x ^ (x >> 29);
}

int tr_merges_init(struct tr_merges *m, size_t count)
{
    uint64_t size = 16;
    while (size < 2 * (uint64_t)count) size *= 2;
    TR_TRY(tr_calloc(&m->slot, size, sizeof *m->slot));
    for (uint64_t i = 0; i < size; i++) m->slot[i].rank = -1;
    m->mask = size - 1;
    return TR_OK;
}

static struct tr_merge *merge_slot(const struct tr_merges *m, uint64_t pair)
{
    uint64_t k = mix(pair) & m->mask;
    while (m->slot[k].rank >= 0 && m->slot[k].pair != pair) k = (k + 1) & m->mask;
    return &m->slot[k];
}

void tr_merges_add(struct tr_merges *m, int32_t left, int32_t right, int32_t rank, int32_t id)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    struct tr_merge *s = merge_slot(m, pair);
    if (s->rank < 0) *s = (struct tr_merge){ pair, rank, id }; /* of two equal ones the first counts */
}

/* ---- cache of words: the last one with a hash wins */

enum { CACHE_SLOTS = 1 << 14, CACHE_BYTES = 24, CACHE_IDS = 10 };
struct tr_word_cache {
    struct cached { int32_t id[CACHE_IDS]; uint8_t at[CACHE_IDS]; uint8_t n, ids; char text[CACHE_BYTES]; } slot[CACHE_SLOTS];
};

static struct cached *cache_slot(struct tr_bpe *b, const char *word, size_t n)
{
    if (n > CACHE_BYTES) return NULL;
    if (!b->cache && tr_calloc(&b->cache, 1, sizeof *b->cache) != TR_OK) return NULL;
    return &b->cache->slot[tr_hash_bytes(word, n) & (CACHE_SLOTS - 1)];
}

void tr_bpe_release(struct tr_bpe *b)
{
    free(b->merges.slot);
    free(b->symbol);
    free(b->heap);
    free(b->cache);
    *b = (struct tr_bpe){ 0 };
}

/* ---- merging */

/* What becomes of two neighbours: false when nothing. Smaller ranks go first. */
static bool pair_rank(const struct tr_tokenizer *t, const char *word, const struct tr_symbol *l,
    const struct tr_symbol *r, double *rank, int32_t *id)
{
    if (t->scored) {
        *id = tr_vocab_find(&t->vocab, word + l->at, (size_t)(l->n + r->n));
        if (*id < 0) return false;
        *rank = -(double)t->vocab.piece[*id].score;
        return true;
    }
    if (l->id < 0 || r->id < 0 || !t->bpe.merges.slot) return false;
    const struct tr_merge *m = merge_slot(&t->bpe.merges, (uint64_t)(uint32_t)l->id << 32 | (uint32_t)r->id);
    *rank = m->rank;
    *id = m->id;
    return m->rank >= 0;
}

static size_t char_bytes(unsigned char c) { return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4; }

static int first_symbols(struct tr_tokenizer *t, const char *word, size_t n, size_t *count)
{
    struct tr_bpe *b = &t->bpe;
    size_t k = 0;
    for (size_t i = 0, size; i < n; i += size, k++) {
        bool bytes = t->model == TR_MODEL_BYTE_LEVEL;
        size = bytes ? 1 : char_bytes((unsigned char)word[i]);
        if (size > n - i) size = n - i;
        TR_TRY(tr_grow(&b->symbol, k, &b->symbol_cap, sizeof *b->symbol));
        int32_t id = bytes ? t->byte_id[(unsigned char)word[i]] : tr_vocab_find(&t->vocab, word + i, size);
        b->symbol[k] = (struct tr_symbol){ .at = (int32_t)i, .n = (int32_t)size, .id = id, .prev = (int32_t)k - 1,
            .next = (int32_t)k + 1 };
    }
    b->symbol[k - 1].next = -1;
    *count = k;
    return TR_OK;
}

static void join(struct tr_symbol *s, int32_t left, int32_t id)
{
    int32_t right = s[left].next;
    s[left].n += s[right].n;
    s[left].id = id;
    s[left].next = s[right].next;
    if (s[right].next >= 0) s[s[right].next].prev = left;
    s[right].n = 0;
}

static void merge_short(struct tr_tokenizer *t, const char *word, size_t count)
{
    struct tr_symbol *s = t->bpe.symbol;
    double rank[32];
    int32_t id[32];
    for (size_t i = 0; i + 1 < count; i++)
        if (!pair_rank(t, word, &s[i], &s[i + 1], &rank[i], &id[i])) id[i] = -1;
    for (;;) {
        int32_t best = -1;
        for (int32_t i = 0; s[i].next >= 0; i = s[i].next)
            if (id[i] >= 0 && (best < 0 || rank[i] < rank[best])) best = i;
        if (best < 0) return;
        join(s, best, id[best]);
        int32_t prev = s[best].prev, next = s[best].next;
        if (next < 0 || !pair_rank(t, word, &s[best], &s[next], &rank[best], &id[best])) id[best] = -1;
        if (prev >= 0 && !pair_rank(t, word, &s[prev], &s[best], &rank[prev], &id[prev])) id[prev] = -1;
    }
}

static bool before(const struct tr_bigram *a, const struct tr_bigram *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static int push(struct tr_tokenizer *t, const char *word, int32_t left, size_t *heap)
{
    struct tr_bpe *b = &t->bpe;
    const struct tr_symbol *s = b->symbol;
    struct tr_bigram g = { .left = left };
    if (left < 0 || s[left].next < 0 || !pair_rank(t, word, &s[left], &s[s[left].next], &g.rank, &g.id)) return TR_OK;
    g.n = s[left].n + s[s[left].next].n;
    TR_TRY(tr_grow(&b->heap, *heap, &b->heap_cap, sizeof *b->heap));
    size_t i = (*heap)++;
    for (; i > 0 && before(&g, &b->heap[(i - 1) / 2]); i = (i - 1) / 2) b->heap[i] = b->heap[(i - 1) / 2];
    b->heap[i] = g;
    return TR_OK;
}

static struct tr_bigram pop(struct tr_bigram *h, size_t *heap)
{
    struct tr_bigram top = h[0], last = h[--*heap];
    size_t n = *heap, i = 0;
    for (size_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && before(&h[k + 1], &h[k])) k++;
        if (!before(&h[k], &last)) break;
        h[i] = h[k];
    }
    h[i] = last;
    return top;
}

static int merge_long(struct tr_tokenizer *t, const char *word, size_t count)
{
    struct tr_symbol *s = t->bpe.symbol;
    size_t heap = 0;
    for (size_t i = 0; i + 1 < count; i++) TR_TRY(push(t, word, (int32_t)i, &heap));
    while (heap > 0) {
        struct tr_bigram g = pop(t->bpe.heap, &heap);
        int32_t next = s[g.left].n > 0 ? s[g.left].next : -1;
        double rank;
        int32_t id;
        if (next < 0 || s[g.left].n + s[next].n != g.n) continue;                                /* stale */
        if (!pair_rank(t, word, &s[g.left], &s[next], &rank, &id) || rank != g.rank || id != g.id) continue;
        join(s, g.left, g.id);
        TR_TRY(push(t, word, s[g.left].prev, &heap));
        TR_TRY(push(t, word, g.left, &heap));
    }
    return TR_OK;
}

/* ---- symbols to ids */

static int add(struct tr_tokens *out, int32_t id, size_t from)
{
    TR_TRY(tr_grow(&out->id, out->n, &out->cap, sizeof *out->id));
    TR_TRY(tr_grow(&out->from, out->n, &out->from_cap, sizeof *out->from));
    out->id[out->n] = id;
    out->from[out->n++] = (int32_t)from;
    return TR_OK;
}

int tr_encode_id(struct tr_tokens *out, int32_t id, int32_t from) { return add(out, id, (size_t)from); }

/* A symbol without a piece: its bytes, where the vocabulary has them all, else the unknown token, else nothing. */
static int add_fallback(const struct tr_tokenizer *t, struct tr_tokens *out, const char *text, size_t n, size_t from)
{
    bool all = true;
    for (size_t i = 0; i < n; i++) all &= t->byte_id[(unsigned char)text[i]] >= 0;
    if (!all) return t->unknown >= 0 ? add(out, t->unknown, from) : TR_OK;
    for (size_t i = 0; i < n; i++) TR_TRY(add(out, t->byte_id[(unsigned char)text[i]], from + i));
    return TR_OK;
}

static int merge_word(struct tr_tokenizer *t, struct tr_tokens *out, const char *word, size_t n, size_t base)
{
    size_t count;
    if (t->whole_words) {
        int32_t id = tr_vocab_find(&t->vocab, word, n);
        if (id >= 0) return add(out, id, base);
    }
    TR_TRY(first_symbols(t, word, n, &count));
    if (count <= 32) merge_short(t, word, count);
    else TR_TRY(merge_long(t, word, count));
    const struct tr_symbol *s = t->bpe.symbol;
    for (int32_t i = 0; i >= 0; i = s[i].next) {
        if (s[i].id >= 0) TR_TRY(add(out, s[i].id, base + (size_t)s[i].at));
        else TR_TRY(add_fallback(t, out, word + s[i].at, (size_t)s[i].n, base + (size_t)s[i].at));
    }
    return TR_OK;
}

int tr_bpe_word(struct tr_tokenizer *t, struct tr_tokens *out, const char *word, size_t n, size_t base)
{
    struct cached *c = cache_slot(&t->bpe, word, n);
    if (c && c->n == n && !memcmp(c->text, word, n)) {
        for (int i = 0; i < c->ids; i++) TR_TRY(add(out, c->id[i], base + c->at[i]));
        return TR_OK;
    }
    size_t begin = out->n;
    TR_TRY(merge_word(t, out, word, n, base));
    if (!c || out->n - begin > CACHE_IDS) return TR_OK;
    c->n = (uint8_t)n;
    c->ids = (uint8_t)(out->n - begin);
    memcpy(c->text, word, n);
    for (int i = 0; i < c->ids && i < CACHE_IDS; i++) {
        c->id[i] = out->id[begin + (size_t)i];
        c->at[i] = (uint8_t)((size_t)out->from[begin + (size_t)i] - base);
    }
    return TR_OK;
}
