#include "libtrain/data/tokenizer_impl.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PIECES = 1 << 24 };

uint64_t tr_hash_bytes(const char *text, size_t n)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ n, w;
    for (; n >= 8; text += 8, n -= 8) {
        memcpy(&w, text, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    w = 0;
    memcpy(&w, text, n);
    h = (h ^ w) * 0xc4ceb9fe1a85ec53u;
    return h ^ (h >> 29);
}

int tr_vocab_init(struct tr_vocab *v, int64_t n)
{
    if (n < 1 || n > MOST_PIECES) return tr_fail(TR_EINPUT, "bad vocabulary (tokenizer): it has %" PRId64 " tokens; 1 "
        "to %d are supported", n, MOST_PIECES);
    TR_TRY(tr_calloc(&v->piece, (size_t)n, sizeof *v->piece));
    v->n = (int32_t)n;
    return TR_OK;
}

void tr_vocab_release(struct tr_vocab *v)
{
    tr_buf_release(&v->pool);
    free(v->piece);
    free(v->slot);
    free(v->special);
    *v = (struct tr_vocab){ 0 };
}

int tr_vocab_set(struct tr_vocab *v, int64_t id, const char *text, size_t n, int kind)
{
    if (id < 0 || id >= v->n) return tr_fail(TR_EINPUT, "bad token id (tokenizer): %" PRId64 " is outside the "
        "vocabulary of %d", id, v->n);
    if (v->pool.size + n > UINT32_MAX / 2) return tr_fail(TR_EINPUT, "bad vocabulary (tokenizer): its texts are larger "
        "than 2 GiB");
    v->piece[id] = (struct tr_piece){ .at = (uint32_t)v->pool.size, .n = (uint32_t)n, .kind = (uint8_t)kind };
    return tr_buf_add(&v->pool, text, n);
}

static bool is_special(const struct tr_piece *p) { return (p->kind == TR_PIECE_CONTROL || p->kind == TR_PIECE_USER) && p->n > 0; }

static bool in_words(const struct tr_piece *p) { return p->kind == TR_PIECE_NORMAL && p->n > 0; }

static int compare_specials(const void *a, const void *b, void *self)
{
    const struct tr_vocab *v = self;
    const struct tr_piece *x = &v->piece[*(const int32_t *)a], *y = &v->piece[*(const int32_t *)b];
    unsigned char i = (unsigned char)v->pool.data[x->at], j = (unsigned char)v->pool.data[y->at];
    if (i != j) return i < j ? -1 : 1;
    if (x->n != y->n) return x->n > y->n ? -1 : 1;
    return *(const int32_t *)a < *(const int32_t *)b ? -1 : 1;
}

static int index_specials(struct tr_vocab *v)
{
    int32_t n = 0;
    for (int32_t i = 0; i < v->n; i++) n += is_special(&v->piece[i]);
    free(v->special);
    v->special = NULL;
    TR_TRY(tr_calloc(&v->special, (size_t)n + 1, sizeof *v->special));
    v->specials = 0;
    for (int32_t i = 0; i < v->n; i++)
        if (is_special(&v->piece[i])) v->special[v->specials++] = i;
    qsort_r(v->special, (size_t)n, sizeof *v->special, compare_specials, v);
    for (int32_t i = 0, b = 0; b <= 256; b++) {
        while (i < n && (unsigned char)v->pool.data[v->piece[v->special[i]].at] < b) i++;
        v->first[b] = i;
    }
    return TR_OK;
}

int tr_vocab_index(struct tr_vocab *v)
{
    uint32_t size = 16;
    while (size < 2 * (uint32_t)v->n) size *= 2;
    free(v->slot);
    v->slot = NULL;
    TR_TRY(tr_calloc(&v->slot, size, sizeof *v->slot));
    v->mask = size - 1;
    for (int32_t i = 0; i < v->n; i++) {
        const struct tr_piece *p = &v->piece[i];
        if (!in_words(p) || tr_vocab_find(v, v->pool.data + p->at, p->n) >= 0)
            continue;   /* of two equal ones the first counts */
        uint32_t k = (uint32_t)tr_hash_bytes(v->pool.data + p->at, p->n) & v->mask;
        while (v->slot[k]) k = (k + 1) & v->mask;
        v->slot[k] = (uint32_t)i + 1;
    }
    return index_specials(v);
}

int32_t tr_vocab_find(const struct tr_vocab *v, const char *text, size_t n)
{
    for (uint32_t k = (uint32_t)tr_hash_bytes(text, n) & v->mask; v->slot[k]; k = (k + 1) & v->mask) {
        const struct tr_piece *p = &v->piece[v->slot[k] - 1];
        if (p->n == n && !memcmp(v->pool.data + p->at, text, n)) return (int32_t)v->slot[k] - 1;
    }
    return -1;
}

int32_t tr_vocab_special_at(const struct tr_vocab *v, const char *text, size_t n, bool control)
{
    unsigned char c = (unsigned char)text[0];
    for (int32_t i = v->first[c]; i < v->first[c + 1]; i++) {
        const struct tr_piece *p = &v->piece[v->special[i]];
        if ((control || p->kind == TR_PIECE_USER) && p->n <= n && !memcmp(v->pool.data + p->at, text, p->n)) return v->special[i];
    }
    return -1;
}

int32_t tr_vocab_special(const struct tr_vocab *v, const char *text, size_t n)
{
    for (int32_t i = 0; i < v->specials; i++) {
        const struct tr_piece *p = &v->piece[v->special[i]];
        if (p->n == n && !memcmp(v->pool.data + p->at, text, n)) return v->special[i];
    }
    return -1;
}
