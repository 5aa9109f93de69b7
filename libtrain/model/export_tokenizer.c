/* Tokenizers between GGUF metadata and Hugging Face files. */
#include "libtrain/base/status.h"
#include "libtrain/model/export.h"
#include <stdlib.h>
#include <string.h>

/* Rules that cut text before merges, by GGUF's name: a pre_tokenizer of tokenizer.json. */
static json_t *pre_tokenizer(const char *pre)
{
    static const char llama3[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    static const char qwen2[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    bool split = !strcmp(pre, "llama-bpe") || !strcmp(pre, "llama3") || !strcmp(pre, "qwen2");
    json_t *bytes = json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", !split);
    if (!strcmp(pre, "smollm")) return json_pack("{s:s,s:[{s:s,s:b},o]}", "type", "Sequence", "pretokenizers", "type", "Digits", "individual_digits", 1, bytes);
    if (!split) return bytes;
    return json_pack("{s:s,s:[{s:s,s:{s:s},s:s,s:b},o]}", "type", "Sequence", "pretokenizers", "type", "Split", "pattern", "Regex", strcmp(pre, "qwen2") ? llama3 : qwen2,
                     "behavior", "Isolated", "invert", 0, bytes);
}

static const char *text_at(const json_t *array, size_t i)
{
    const char *s = json_string_value(json_array_get(array, i));
    return s ? s : "";
}

static const char *token_of(const json_t *gguf, const json_t *tokens, const char *key)
{
    const json_t *id = json_object_get(gguf, key);
    return json_is_integer(id) && json_integer_value(id) >= 0 && (size_t)json_integer_value(id) < json_array_size(tokens) ? text_at(tokens, (size_t)json_integer_value(id)) : NULL;
}

/* A sentence-piece vocabulary has scores, not merges: every way to put a piece together from two others, best score first. */
struct merge { size_t id, cut; double score; };

static int by_score(const void *a, const void *b)
{
    const struct merge *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return x->id != y->id ? (x->id < y->id ? -1 : 1) : x->cut < y->cut ? -1 : 1;
}

static int merges_from_scores(json_t *merges, const json_t *vocab, const json_t *tokens, const json_t *scores)
{
    struct merge *all = NULL;
    size_t n = 0, cap = 0;
    char left[256];
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const char *s = text_at(tokens, i);
        size_t size = strlen(s);
        for (size_t cut = 1; cut < size && size < sizeof left; cut++) {
            if (((unsigned char)s[cut] & 0xc0) == 0x80) continue;
            memcpy(left, s, cut);
            left[cut] = 0;
            if (!json_object_get(vocab, left) || !json_object_get(vocab, s + cut)) continue;
            TR_TRY(tr_grow(&all, n, &cap, sizeof *all));
            all[n++] = (struct merge){ i, cut, json_number_value(json_array_get(scores, i)) };
        }
    }
    if (n) qsort(all, n, sizeof *all, by_score);
    for (size_t k = 0; k < n; k++) {
        const char *s = text_at(tokens, all[k].id);
        json_array_append_new(merges, json_pack("[s#,s]", s, (int)all[k].cut, s + all[k].cut));
    }
    free(all);
    return TR_OK;
}

static json_t *merge_pairs(const json_t *merges) /* "a b" to ["a", "b"] */
{
    json_t *pairs = json_array();
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const char *s = text_at(merges, i), *space = s[0] ? strchr(s + 1, ' ') : NULL;
        if (space) json_array_append_new(pairs, json_pack("[s#,s]", s, (int)(space - s), space + 1));
    }
    return pairs;
}

static json_t *sentence_parts(json_t *o) /* normalizer, decoder of llama-2's tokenizer */
{
    json_object_set_new(o, "normalizer", json_pack("{s:s,s:[{s:s,s:s},{s:s,s:{s:s},s:s}]}", "type", "Sequence", "normalizers", "type", "Prepend", "prepend", "\xe2\x96\x81",
                                                   "type", "Replace", "pattern", "String", " ", "content", "\xe2\x96\x81"));
    json_object_set_new(o, "pre_tokenizer", json_null());
    json_object_set_new(o, "decoder", json_pack("{s:s,s:[{s:s,s:{s:s},s:s},{s:s},{s:s},{s:s,s:s,s:i,s:i}]}", "type", "Sequence", "decoders", "type", "Replace", "pattern", "String",
                                                "\xe2\x96\x81", "content", " ", "type", "ByteFallback", "type", "Fuse", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return o;
}

int tr_tokenizer_json_from_gguf(json_t **tokenizer, json_t **config, const json_t *g)
{
    const json_t *tokens = json_object_get(g, "tokenizer.ggml.tokens"), *types = json_object_get(g, "tokenizer.ggml.token_type");
    const char *model = json_string_value(json_object_get(g, "tokenizer.ggml.model")), *pre = json_string_value(json_object_get(g, "tokenizer.ggml.pre"));
    *tokenizer = *config = NULL;
    if (!json_is_array(tokens) || !model) return TR_OK;
    bool sentence = !strcmp(model, "llama");
    json_t *vocab = json_object(), *added = json_array(), *merges;
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        json_int_t type = json_integer_value(json_array_get(types, i));
        json_object_set_new(vocab, text_at(tokens, i), json_integer((json_int_t)i));
        if (type == 3 || type == 4) /* control, user defined */
            json_array_append_new(added, json_pack("{s:I,s:s,s:b,s:b,s:b,s:b,s:b}", "id", (json_int_t)i, "content", text_at(tokens, i), "single_word", 0, "lstrip", 0,
                                                   "rstrip", 0, "normalized", 0, "special", type == 3));
    }
    if (sentence) {
        merges = json_array();
        TR_TRY(merges_from_scores(merges, vocab, tokens, json_object_get(g, "tokenizer.ggml.scores")));
    } else merges = merge_pairs(json_object_get(g, "tokenizer.ggml.merges"));
    json_t *bpe = json_pack("{s:s,s:n,s:o?,s:n,s:n,s:b,s:b,s:b,s:o,s:o}", "type", "BPE", "dropout", "unk_token", sentence ? json_string(text_at(tokens, 0)) : NULL,
                            "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", sentence, "byte_fallback", sentence,
                            "ignore_merges", pre && (!strcmp(pre, "llama-bpe") || !strcmp(pre, "llama3")), "vocab", vocab, "merges", merges);
    json_t *o = json_pack("{s:s,s:n,s:n,s:o}", "version", "1.0", "truncation", "padding", "added_tokens", added);
    if (sentence) sentence_parts(o);
    else {
        json_object_set_new(o, "normalizer", pre && !strcmp(pre, "qwen2") ? json_pack("{s:s}", "type", "NFC") : json_null());
        json_object_set_new(o, "pre_tokenizer", pre_tokenizer(pre ? pre : "gpt-2"));
        json_object_set_new(o, "decoder", json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1, "use_regex", 1));
    }
    const char *bos = token_of(g, tokens, "tokenizer.ggml.bos_token_id");
    bool add_bos = json_is_true(json_object_get(g, "tokenizer.ggml.add_bos_token")) || (sentence && !json_object_get(g, "tokenizer.ggml.add_bos_token"));
    if (bos && add_bos)
        json_object_set_new(o, "post_processor", json_pack("{s:s,s:[{s:{s:s,s:i}},{s:{s:s,s:i}}],s:[],s:{s:{s:s,s:[I],s:[s]}}}", "type", "TemplateProcessing", "single",
                            "SpecialToken", "id", bos, "type_id", 0, "Sequence", "id", "A", "type_id", 0, "pair", "special_tokens", bos, "id", bos, "ids",
                            json_integer_value(json_object_get(g, "tokenizer.ggml.bos_token_id")), "tokens", bos));
    else json_object_set_new(o, "post_processor", json_null());
    json_object_set_new(o, "model", bpe);
    *tokenizer = o;

    static const char *const names[] = { "bos", "eos", "padding", "unknown" }, *const keys[] = { "bos_token", "eos_token", "pad_token", "unk_token" };
    *config = json_pack("{s:s,s:b,s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "clean_up_tokenization_spaces", 0, "add_bos_token", add_bos);
    for (int i = 0; i < 4; i++) {
        char key[64];
        snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", names[i]);
        const char *token = token_of(g, tokens, key);
        if (token) json_object_set_new(*config, keys[i], json_string(token));
    }
    const json_t *chat = json_object_get(g, "tokenizer.chat_template");
    if (chat) json_object_set_new(*config, "chat_template", json_string(json_string_value(chat)));
    return TR_OK;
}

/* ---- the other way round */

int tr_json_read(json_t **out, const char *folder, const char *name)
{
    char *path;
    struct tr_buf text = { 0 };
    json_error_t error;
    *out = NULL;
    TR_TRY(tr_path_join(&path, folder, name));
    int rc = TR_OK;
    if (tr_exists(path)) {
        rc = tr_read_file(&text, path);
        if (rc == TR_OK && !(*out = json_loadb(text.data ? text.data : "", text.size, 0, &error))) rc = tr_fail(TR_EINPUT, "'%s' (line %d): it is no JSON: %.100s", path, error.line, error.text);
    }
    tr_buf_release(&text);
    free(path);
    return rc;
}

/* GGUF's name of the rule that a tokenizer.json cuts by. */
static const char *pre_name(const json_t *tokenizer)
{
    char *text = json_dumps(json_object_get(tokenizer, "pre_tokenizer"), JSON_COMPACT | JSON_ENCODE_ANY);
    const char *name = "gpt-2";
    if (text && strstr(text, "{1,3}")) name = "llama-bpe";
    else if (text && strstr(text, "\"Digits\"")) name = "smollm";
    else if (text && strstr(text, "\"Split\"")) name = "qwen2";
    free(text);
    return name;
}

static void set_id(json_t *out, const char *key, const json_t *vocab_ids, const json_t *config, const char *name)
{
    const json_t *v = json_object_get(config, name);
    const char *token = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
    const json_t *id = token ? json_object_get(vocab_ids, token) : NULL;
    if (id) json_object_set_new(out, key, json_integer(json_integer_value(id)));
}

int tr_gguf_tokenizer_from_folder(json_t **out, const char *folder)
{
    json_t *tokenizer = NULL, *config = NULL, *v;
    const char *key;
    *out = NULL;
    TR_TRY(tr_json_read(&tokenizer, folder, "tokenizer.json"));
    int rc = tr_json_read(&config, folder, "tokenizer_config.json");
    json_t *model = json_object_get(tokenizer, "model"), *vocab = json_object_get(model, "vocab"), *added = json_object_get(tokenizer, "added_tokens");
    if (rc != TR_OK || !json_is_object(vocab)) {
        json_decref(tokenizer);
        json_decref(config);
        return rc;
    }
    json_int_t most = -1;
    json_t *ids = json_deep_copy(vocab);
    for (size_t i = 0; i < json_array_size(added); i++) {
        json_t *a = json_array_get(added, i);
        if (json_is_string(json_object_get(a, "content")) && json_is_integer(json_object_get(a, "id"))) json_object_set(ids, json_string_value(json_object_get(a, "content")), json_object_get(a, "id"));
    }
    json_object_foreach(ids, key, v) if (json_integer_value(v) > most && json_integer_value(v) < 1 << 24) most = json_integer_value(v);
    json_t *tokens = json_array(), *types = json_array(), *merges = json_array(), *o = json_object();
    for (json_int_t i = 0; i <= most; i++) {
        char pad[32];
        snprintf(pad, sizeof pad, "[PAD%d]", (int)i);
        json_array_append_new(tokens, json_string(pad));
        json_array_append_new(types, json_integer(5)); /* unused */
    }
    bool fallback = json_is_true(json_object_get(model, "byte_fallback"));
    json_object_foreach(ids, key, v) {
        size_t i = (size_t)json_integer_value(v);
        if (json_integer_value(v) < 0 || json_integer_value(v) > most) continue;
        json_array_set_new(tokens, i, json_string(key));
        json_array_set_new(types, i, json_integer(fallback && strlen(key) == 6 && !strncmp(key, "<0x", 3) ? 6 : 1));
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        json_t *a = json_array_get(added, i);
        if (json_is_integer(json_object_get(a, "id"))) json_array_set_new(types, (size_t)json_integer_value(json_object_get(a, "id")), json_integer(json_is_true(json_object_get(a, "special")) ? 3 : 4));
    }
    json_t *list = json_object_get(model, "merges");
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *m = json_array_get(list, i);
        if (json_is_string(m)) json_array_append(merges, m);
        else json_array_append_new(merges, json_sprintf("%s %s", text_at(m, 0), text_at(m, 1)));
    }
    json_object_set_new(o, "tokenizer.ggml.model", json_string(fallback ? "llama" : "gpt2"));
    if (!fallback) json_object_set_new(o, "tokenizer.ggml.pre", json_string(pre_name(tokenizer)));
    json_object_set_new(o, "tokenizer.ggml.tokens", tokens);
    json_object_set_new(o, "tokenizer.ggml.token_type", types);
    if (!fallback) json_object_set_new(o, "tokenizer.ggml.merges", merges);
    else {
        json_t *scores = json_array();
        for (json_int_t i = 0; i <= most; i++) json_array_append_new(scores, json_real(-(double)i)); /* ids of sentence pieces go by rank */
        json_object_set_new(o, "tokenizer.ggml.scores", scores);
        json_decref(merges);
    }
    set_id(o, "tokenizer.ggml.bos_token_id", ids, config, "bos_token");
    set_id(o, "tokenizer.ggml.eos_token_id", ids, config, "eos_token");
    set_id(o, "tokenizer.ggml.padding_token_id", ids, config, "pad_token");
    if (json_is_boolean(json_object_get(config, "add_bos_token"))) json_object_set(o, "tokenizer.ggml.add_bos_token", json_object_get(config, "add_bos_token"));
    if (json_is_string(json_object_get(config, "chat_template"))) json_object_set(o, "tokenizer.chat_template", json_object_get(config, "chat_template"));
    json_decref(ids);
    json_decref(tokenizer);
    json_decref(config);
    *out = o;
    return TR_OK;
}
