#include "libtrain/data/tokenizer_impl.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

void tr_tokens_release(struct tr_tokens *t)
{
    free(t->id);
    free(t->from);
    *t = (struct tr_tokens){ 0 };
}

/* ---- opening */

/* GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and following. */
bool tr_alphabet_bytes(char *out, size_t *out_n, const char *text, size_t n)
{
    static int16_t byte_of[0x144];
    if (!byte_of['!']) {
        int next = 0x100;
        memset(byte_of, -1, sizeof byte_of);
        for (int b = 0; b < 256; b++) byte_of[(b >= 33 && b <= 126) || (b >= 161 && b != 173) ? b : next++] = (int16_t)b;
    }
    *out_n = 0;
    for (size_t i = 0; i < n; ) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &c);
        if (k <= 0 || c >= 0x144 || byte_of[c] < 0) return false;
        out[(*out_n)++] = (char)byte_of[c];
        i += (size_t)k;
    }
    return true;
}

int tr_tokenizer_add_merge(struct tr_tokenizer *t, const char *left, size_t nl, const char *right, size_t nr,
    int32_t rank, const char *where)
{
    char *text = NULL;
    int rc = tr_calloc(&text, nl + nr + 1, 1);
    if (rc != TR_OK) return rc;
    size_t a = nl, b = nr;
    bool ok = true;
    if (t->model == TR_MODEL_BYTE_LEVEL) ok = tr_alphabet_bytes(text, &a, left, nl) && tr_alphabet_bytes(text + a, &b, right, nr);
    else memcpy(text, left, nl), memcpy(text + nl, right, nr);
    int32_t l = ok ? tr_vocab_find(&t->vocab, text, a) : -1, r = ok ? tr_vocab_find(&t->vocab, text + a, b) : -1;
    int32_t id = ok ? tr_vocab_find(&t->vocab, text, a + b) : -1;
    if (l < 0 || r < 0 || id < 0) rc = tr_fail(TR_EINPUT, "bad merge (%s): '%.*s' and '%.*s', number %d, or their sum "
        "are no tokens; the model file is damaged",
                                               where, (int)(nl < 60 ? nl : 60), left, (int)(nr < 60 ? nr : 60), right, rank);
    else tr_merges_add(&t->bpe.merges, l, r, rank, id);
    free(text);
    return rc;
}

/* No piece has a space behind another character: then no merge crosses the border between two words. */
static bool pieces_are_words(const struct tr_vocab *v)
{
    for (int32_t i = 0; i < v->n; i++) {
        const struct tr_piece *p = &v->piece[i];
        bool other = false;
        if (p->kind != TR_PIECE_NORMAL) continue;
        for (uint32_t k = 0; k < p->n; k++) {
            bool space = k + 3 <= p->n && !memcmp(v->pool.data + p->at + k, "\u2581", 3);
            if (space && other) return false;
            if (space) k += 2;
            else other = true;
        }
    }
    return true;
}

int tr_tokenizer_finish(struct tr_tokenizer *t, const char *where)
{
    struct tr_vocab *v = &t->vocab;
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        t->byte_id[b] = t->model == TR_MODEL_BYTE_LEVEL ? tr_vocab_find(v, &c, 1) : -1;
    }
    for (int32_t i = 0; t->model == TR_MODEL_SENTENCE && i < v->n; i++)
        if (v->piece[i].kind == TR_PIECE_BYTE) t->byte_id[(unsigned char)v->pool.data[v->piece[i].at]] = i;
    int32_t ids[] = { t->bos, t->eos, t->unknown, t->eot };
    for (int i = 0; i < 4; i++)
        if (ids[i] < -1 || ids[i] >= v->n) return tr_fail(TR_EINPUT, "bad token id (%s): %d is outside the vocabulary "
            "of %d", where, ids[i], v->n);
    if (t->cut == TR_CUT_NONE && t->model == TR_MODEL_SENTENCE && pieces_are_words(v)) t->cut = TR_CUT_WORDS;
    return TR_OK;
}

int tr_tokenizer_open(struct tr_tokenizer **out, const json_t *gguf, const char *path)
{
    struct tr_tokenizer *t;
    int rc;
    TR_TRY(tr_calloc(&t, 1, sizeof *t));
    t->bos = t->eos = t->eot = t->unknown = -1;
    if (path && !strcmp(path, "bytes")) {
        t->model = TR_MODEL_BYTES;
        t->eos = 256;
        rc = TR_OK;
    } else if (path && *path) rc = tr_tokenizer_from_json(t, path);
    else if (gguf) rc = tr_tokenizer_from_gguf(t, gguf);
    else rc = tr_fail(TR_EINPUT, "no tokenizer (model): the model brings none; set model.tokenizer to a folder or "
        "tokenizer.json, or to bytes");
    if (rc != TR_OK) {
        tr_tokenizer_free(t);
        return rc;
    }
    *out = t;
    return TR_OK;
}

void tr_tokenizer_free(struct tr_tokenizer *t)
{
    if (!t) return;
    tr_vocab_release(&t->vocab);
    tr_split_release(&t->split);
    tr_bpe_release(&t->bpe);
    free(t->chat_template);
    free(t);
}

/* ---- questions */

int32_t tr_tokenizer_size(const struct tr_tokenizer *t) { return t->model == TR_MODEL_BYTES ? 257 : t->vocab.n; }
int32_t tr_tokenizer_bos(const struct tr_tokenizer *t) { return t->bos; }
int32_t tr_tokenizer_eos(const struct tr_tokenizer *t) { return t->eos; }
bool tr_tokenizer_adds_bos(const struct tr_tokenizer *t) { return t->adds_bos && t->bos >= 0; }
const char *tr_tokenizer_template(const struct tr_tokenizer *t) { return t->chat_template; }

bool tr_tokenizer_ends(const struct tr_tokenizer *t, int32_t id)
{
    static const char *const ends[] = { "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>",
        "<|end|>", "<end_of_turn>", "</s>" };
    if (id < 0 || id >= tr_tokenizer_size(t)) return false;
    if (id == t->eos || id == t->eot) return true;
    if (t->model == TR_MODEL_BYTES || t->vocab.piece[id].kind != TR_PIECE_CONTROL) return false;
    const struct tr_piece *p = &t->vocab.piece[id];
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (strlen(ends[i]) == p->n && !memcmp(ends[i], t->vocab.pool.data + p->at, p->n)) return true;
    return false;
}

/* ---- text to ids */

struct words { struct tr_tokenizer *t; struct tr_tokens *out; size_t base; const int32_t *map; };

static int each_word(void *self, const char *text, size_t from, size_t n)
{
    struct words *w = self;
    size_t begin = w->out->n;
    if (!w->map) return tr_bpe_word(w->t, w->out, text + from, n, w->base + from);
    TR_TRY(tr_bpe_word(w->t, w->out, text + from, n, from));
    for (size_t i = begin; i < w->out->n; i++) w->out->from[i] = (int32_t)w->base + w->map[w->out->from[i]];
    return TR_OK;
}

/* Composes the text (NFC). *composed stays empty when it is composed already. map: for each new byte an old place. ASCII
 * never joins what stands before it, so the text is taken in parts that begin with it. */
static int compose(struct tr_buf *composed, int32_t **map, const char *text, size_t n)
{
    size_t cap = 0, i = 0, ascii = 0;
    while (ascii < n && !(text[ascii] & 0x80)) ascii++;
    if (ascii == n) return TR_OK;
    while (i < n) {
        size_t end = i + 1;
        while (end < n && (text[end] & 0x80)) end++;
        utf8proc_uint8_t *part = NULL;
        utf8proc_ssize_t k = utf8proc_map((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(end - i), &part,
            UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        if (k < 0) return tr_fail(TR_EFAIL, "cannot compose text (tokenizer): %s", utf8proc_errmsg(k));
        int rc = tr_buf_add(composed, part, (size_t)k);
        for (size_t p = composed->size - (rc == TR_OK ? (size_t)k : 0); rc == TR_OK && p < composed->size; p++) {
            rc = tr_grow(map, p, &cap, sizeof **map);
            size_t at = p - (composed->size - (size_t)k);
            if (rc == TR_OK) (*map)[p] = (int32_t)(i + (at < end - i ? at : end - i - 1));
        }
        free(part);
        TR_TRY(rc);
        i = end;
    }
    if (composed->size == n && !memcmp(composed->data, text, n)) composed->size = 0;
    return TR_OK;
}

/* Text between special tokens. */
static int encode_plain(struct tr_tokenizer *t, struct tr_tokens *out, const char *text, size_t n, size_t base)
{
    if (n == 0) return TR_OK;
    if (t->model == TR_MODEL_SENTENCE) return tr_sentence_encode(t, out, text, n, base);
    struct tr_buf composed = { 0 };
    int32_t *map = NULL;
    int rc = t->nfc ? compose(&composed, &map, text, n) : TR_OK;
    struct words w = { t, out, base, composed.size ? map : NULL };
    if (rc == TR_OK) rc = composed.size ? tr_split_words(&t->split, composed.data, 0, composed.size, each_word, &w)
                                        : tr_split_words(&t->split, text, 0, n, each_word, &w);
    tr_buf_release(&composed);
    free(map);
    return rc;
}

/* Bytes of the white space character that ends before `end`, or 0. */
static size_t space_before(const char *text, size_t begin, size_t end)
{
    for (size_t k = 1; k <= 3 && k <= end - begin; k++)
        if (tr_space_bytes(text + end - k, k) == k) return k;
    return 0;
}

int tr_encode(const struct tr_tokenizer *tokenizer, struct tr_tokens *out, const char *text, size_t n, bool special)
{
    struct tr_tokenizer *t = (struct tr_tokenizer *)tokenizer; /* only its work space changes */
    if (n > INT32_MAX / 4) return tr_fail(TR_EINPUT, "text too large (tokenizer): %zu bytes at once; split it into "
        "files below 512 MiB", n);
    if (t->model == TR_MODEL_BYTES) {
        for (size_t i = 0; i < n; i++) TR_TRY(tr_encode_id(out, (unsigned char)text[i], (int32_t)i));
        return TR_OK;
    }
    size_t bad = tr_utf8_check(text, n);
    if (bad < n) return tr_fail(TR_EINPUT, "text is not UTF-8 (byte %zu): convert it first, for example with iconv", bad);
    size_t done = 0;
    for (size_t i = 0; i < n && t->vocab.specials > 0; ) {
        int32_t id = tr_vocab_special_at(&t->vocab, text + i, n - i, special);
        if (id < 0) {
            i++;
            continue;
        }
        const struct tr_piece *p = &t->vocab.piece[id];
        size_t begin = i, end = i + p->n;
        for (size_t k; p->lstrip && (k = space_before(text, done, begin)); begin -= k) {}
        for (size_t k; p->rstrip && (k = tr_space_bytes(text + end, n - end)); end += k) {}
        TR_TRY(encode_plain(t, out, text + done, begin - done, done));
        TR_TRY(tr_encode_id(out, id, (int32_t)begin));
        done = i = end;
    }
    return encode_plain(t, out, text + done, n - done, done);
}

/* ---- ids to text */

int tr_decode(const struct tr_tokenizer *t, struct tr_buf *out, int32_t id, bool special)
{
    if (id < 0 || id >= tr_tokenizer_size(t)) return tr_fail(TR_EINPUT, "bad token id (%d): the vocabulary ends at %d",
        id, tr_tokenizer_size(t) - 1);
    if (t->model == TR_MODEL_BYTES) {
        char c = (char)id;
        if (id == 256) return special ? tr_buf_puts(out, "<|endoftext|>") : TR_OK;
        return tr_buf_add(out, &c, 1);
    }
    const struct tr_piece *p = &t->vocab.piece[id];
    const char *s = t->vocab.pool.data + p->at;
    if ((p->kind == TR_PIECE_CONTROL || p->kind == TR_PIECE_UNKNOWN) && !special) return TR_OK;
    if (t->model != TR_MODEL_SENTENCE || p->kind != TR_PIECE_NORMAL) return p->n ? tr_buf_add(out, s, p->n) : TR_OK;
    for (uint32_t i = 0; i < p->n; ) { /* sentence pieces write spaces as U+2581 */
        bool space = i + 3 <= p->n && !memcmp(s + i, "\u2581", 3);
        TR_TRY(tr_buf_add(out, space ? " " : s + i, 1));
        i += space ? 3 : 1;
    }
    return TR_OK;
}
