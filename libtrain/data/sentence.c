/* Text as SentencePiece sees it: spaces become U+2581 and stand before the word they precede. */
#include "libtrain/data/tokenizer_impl.h"
#include "libtrain/base/status.h"
#include <string.h>

#define SPACE "\u2581"

static bool space_at(const char *text, size_t i, size_t n) { return i + 3 <= n && !memcmp(text + i, SPACE, 3); }

static int normalise(const struct tr_tokenizer *t, struct tr_buf *out, const char *text, size_t n, size_t base, size_t *prefix)
{
    bool add = t->prefix == TR_PREFIX_ALWAYS || (t->prefix == TR_PREFIX_FIRST && base == 0);
    if (t->prefix_once && (text[0] == ' ' || space_at(text, 0, n))) add = false;
    *prefix = add ? 3 : 0;
    if (add) TR_TRY(tr_buf_puts(out, SPACE));
    for (size_t i = 0; i < n; ) {
        size_t k = i;
        while (k < n && text[k] != ' ') k++;
        TR_TRY(tr_buf_add(out, text + i, k - i));
        if (k < n) TR_TRY(tr_buf_puts(out, SPACE));
        i = k + 1;
    }
    return TR_OK;
}

/* End of the part that begins at i. */
static size_t part_end(const struct tr_tokenizer *t, const char *text, size_t i, size_t n)
{
    bool other = t->cut == TR_CUT_SPACES; /* a space after this ends the part */
    if (t->cut == TR_CUT_NONE) return n;
    for (size_t k = i; k < n; k++) {
        bool space = space_at(text, k, n);
        if (space && other && k > i) return k;
        if (space) k += 2;
        else other = true;
    }
    return n;
}

int tr_sentence_encode(struct tr_tokenizer *t, struct tr_tokens *out, const char *text, size_t n, size_t base)
{
    struct tr_buf b = { 0 };
    size_t prefix, begin = out->n;
    int rc = normalise(t, &b, text, n, base, &prefix);
    for (size_t i = 0, end; rc == TR_OK && i < b.size; i = end) {
        end = part_end(t, b.data, i, b.size);
        rc = tr_bpe_word(t, out, b.data + i, end - i, i);
    }
    size_t place = prefix, source = 0; /* the same place in the new text and in the old */
    for (size_t i = begin; rc == TR_OK && i < out->n; i++) {
        while (place < (size_t)out->from[i]) {
            place += text[source] == ' ' ? 3 : 1;
            source++;
        }
        out->from[i] = (int32_t)(base + source);
    }
    tr_buf_release(&b);
    return rc;
}
