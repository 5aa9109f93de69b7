/* A tokenizer from the metadata of a GGUF file. */
#include "libtrain/data/tokenizer_impl.h"
#include "libtrain/base/status.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY(name) "tokenizer.ggml." name

static int get_id(const json_t *meta, const char *key, int32_t *id)
{
    const json_t *v = json_object_get(meta, key);
    if (!v) return TR_OK;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
        return tr_fail(TR_EINPUT, "bad metadata (%s): it must be a token id; the model file is damaged", key);
    *id = (int32_t)json_integer_value(v);
    return TR_OK;
}

/* "<0x0A>" to its byte, or -1. */
static int byte_of(const char *s, size_t n)
{
    unsigned b;
    char text[8] = "";
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>') return -1;
    memcpy(text, s + 3, 2);
    return strspn(text, "0123456789abcdefABCDEF") == 2 && sscanf(text, "%2x", &b) == 1 ? (int)b : -1;
}

static int set_piece(struct tr_tokenizer *t, int32_t id, const char *s, size_t n, int kind)
{
    char bytes[256];
    size_t count;
    if (t->model == TR_MODEL_SENTENCE && kind == TR_PIECE_BYTE) {
        int b = byte_of(s, n);
        char c = (char)b;
        if (b < 0) return tr_fail(TR_EINPUT, "bad metadata (" KEY("tokens") "): token %d is marked as a byte but reads "
            "'%.20s'; the model file is damaged", id, s);
        return tr_vocab_set(&t->vocab, id, &c, 1, kind);
    }
    if (t->model == TR_MODEL_BYTE_LEVEL && kind == TR_PIECE_NORMAL && n <= sizeof bytes && tr_alphabet_bytes(bytes, &count, s, n))
        return tr_vocab_set(&t->vocab, id, bytes, count, kind);
    return tr_vocab_set(&t->vocab, id, s, n, kind);
}

static int read_pieces(struct tr_tokenizer *t, const json_t *meta)
{
    const json_t *tokens = json_object_get(meta, KEY("tokens")), *types = json_object_get(meta, KEY("token_type"));
    const json_t *scores = json_object_get(meta, KEY("scores"));
    size_t n = json_array_size(tokens);
    if (!n) return tr_fail(TR_EINPUT, "no tokens (" KEY("tokens") "): the model file holds no vocabulary; set model.tokenizer");
    if (types && json_array_size(types) != n)
        return tr_fail(TR_EINPUT, "bad metadata (" KEY("token_type") "): %zu types for %zu tokens; the model file is "
        "damaged", json_array_size(types), n);
    if (t->scored && json_array_size(scores) != n)
        return tr_fail(TR_EINPUT, "bad metadata (" KEY("scores") "): %zu scores for %zu tokens; the model file is "
            "damaged", json_array_size(scores), n);
    TR_TRY(tr_vocab_init(&t->vocab, (int64_t)n));
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_array_get(tokens, i), *type = types ? json_array_get(types, i) : NULL;
        if (!json_is_string(s) || (type && !json_is_integer(type)))
            return tr_fail(TR_EINPUT, "bad metadata (" KEY("tokens") "): token %zu is no text or its type no number; "
                "the model file is damaged", i);
        bool byte = t->scored && byte_of(json_string_value(s), json_string_length(s)) >= 0; /* only asked without types */
        json_int_t kind = type ? json_integer_value(type) : byte ? TR_PIECE_BYTE : TR_PIECE_NORMAL;
        if (kind < 0 || kind > TR_PIECE_BYTE) return tr_fail(TR_EINPUT, "bad metadata (" KEY("token_type") "): token "
            "%zu has type %lld; the model file is damaged", i, (long long)kind);
        TR_TRY(set_piece(t, (int32_t)i, json_string_value(s), json_string_length(s), (int)kind));
        if (t->scored) t->vocab.piece[i].score = (float)json_number_value(json_array_get(scores, i));
    }
    return TR_OK;
}

static int read_merges(struct tr_tokenizer *t, const json_t *meta)
{
    const json_t *merges = json_object_get(meta, KEY("merges"));
    size_t n = json_array_size(merges);
    if (!json_is_array(merges)) return tr_fail(TR_EINPUT, "no merges (" KEY("merges") "): the model file holds none; "
        "set model.tokenizer");
    TR_TRY(tr_merges_init(&t->bpe.merges, n));
    /* A merge may speak of pieces that are special tokens too: for now all of them make words. */
    uint8_t *kind = NULL;
    int rc = tr_calloc(&kind, (size_t)t->vocab.n, 1);
    for (int32_t i = 0; rc == TR_OK && i < t->vocab.n; i++) {
        kind[i] = t->vocab.piece[i].kind;
        t->vocab.piece[i].kind = TR_PIECE_NORMAL;
    }
    if (rc == TR_OK) rc = tr_vocab_index(&t->vocab);
    for (size_t i = 0; rc == TR_OK && i < n; i++) {
        const json_t *m = json_array_get(merges, i);
        const char *s = json_string_value(m), *gap = s && *s ? memchr(s + 1, ' ', json_string_length(m) - 1) : NULL;
        if (!gap) rc = tr_fail(TR_EINPUT, "bad merge (" KEY("merges") "): number %zu is not two texts; the model file "
            "is damaged", i);
        else rc = tr_tokenizer_add_merge(t, s, (size_t)(gap - s), gap + 1,
            json_string_length(m) - (size_t)(gap - s) - 1, (int32_t)i, KEY("merges"));
    }
    for (int32_t i = 0; rc == TR_OK && i < t->vocab.n; i++) t->vocab.piece[i].kind = kind[i];
    free(kind);
    return rc;
}

int tr_tokenizer_from_gguf(struct tr_tokenizer *t, const json_t *meta)
{
    const char *model = json_string_value(json_object_get(meta, KEY("model"))),
        *pre = json_string_value(json_object_get(meta, KEY("pre")));
    if (!model) return tr_fail(TR_EINPUT, "no tokenizer (" KEY("model") "): the model file holds none; set "
        "model.tokenizer to a folder or tokenizer.json");
    if (!strcmp(model, "gpt2")) t->model = TR_MODEL_BYTE_LEVEL;
    else if (!strcmp(model, "llama")) t->model = TR_MODEL_SENTENCE, t->scored = true;
    else return tr_fail(TR_EINPUT, "unsupported tokenizer '%.40s' (" KEY("model") "): known are gpt2 and llama; set "
        "model.tokenizer to the model's tokenizer.json", model);

    if (!t->scored) TR_TRY(tr_split_named(&t->split, pre ? pre : "gpt-2", &t->whole_words, &t->nfc));
    TR_TRY(read_pieces(t, meta));
    if (!t->scored) TR_TRY(read_merges(t, meta));
    TR_TRY(tr_vocab_index(&t->vocab));

    TR_TRY(get_id(meta, KEY("bos_token_id"), &t->bos));
    TR_TRY(get_id(meta, KEY("eos_token_id"), &t->eos));
    TR_TRY(get_id(meta, KEY("eot_token_id"), &t->eot));
    if (t->scored) TR_TRY(get_id(meta, KEY("unknown_token_id"), &t->unknown)); /* byte-level text knows no unknown */
    const json_t *adds = json_object_get(meta, KEY("add_bos_token")), *prefix = json_object_get(meta, KEY("add_space_prefix"));
    t->adds_bos = adds ? json_is_true(adds) : t->scored || t->whole_words;
    t->prefix = t->scored && !(prefix && !json_is_true(prefix)) ? TR_PREFIX_ALWAYS : TR_PREFIX_NEVER;
    const char *template = json_string_value(json_object_get(meta, "tokenizer.chat_template"));
    if (template) TR_TRY(tr_strdup(&t->chat_template, template));
    return tr_tokenizer_finish(t, "tokenizer.ggml");
}
