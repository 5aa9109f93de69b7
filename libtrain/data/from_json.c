/* A tokenizer from tokenizer.json (Hugging Face) and the files beside it. */
#include "libtrain/data/tokenizer_impl.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reader { struct tr_tokenizer *t; const char *path; const json_t *root; bool byte_level, spaces; };

static bool is(const json_t *v, const char *text)
{
    const char *s = json_string_value(v);
    return s && !strcmp(s, text);
}

static int unsupported(const struct reader *r, const char *part, const json_t *type)
{
    const char *name = json_string_value(type);
    return tr_fail(TR_EINPUT, "unsupported tokenizer (%s): %s '%.40s' is not known here; use the model's GGUF file or "
        "another tokenizer", r->path, part, name ? name : "?");
}

static int load(json_t **out, const char *path)
{
    struct tr_buf b = { 0 };
    json_error_t e;
    TR_TRY(tr_read_file(&b, path));
    *out = json_loadb(b.data ? b.data : "", b.size, 0, &e);
    tr_buf_release(&b);
    if (!*out) return tr_fail(TR_EINPUT, "bad JSON (%s:%d): %s", path, e.line, e.text);
    if (!json_is_object(*out)) {
        json_decref(*out);
        return tr_fail(TR_EINPUT, "bad JSON (%s:1): it must be an object", path);
    }
    return TR_OK;
}

/* ---- what happens to the text before it is encoded */

static int read_normalizer(struct reader *r, const json_t *n)
{
    const json_t *type = json_object_get(n, "type"), *list = json_object_get(n, "normalizers"),
        *pattern = json_object_get(n, "pattern");
    if (!n || json_is_null(n)) return TR_OK;
    if (is(type, "Sequence")) {
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *part = json_array_get(list, i);
            if (is(json_object_get(part, "type"), "Sequence")) return unsupported(r, "a normalizer inside another", type);
            TR_TRY(read_normalizer(r, part));
        }
        return TR_OK;
    }
    if (is(type, "NFC")) return r->t->nfc = true, TR_OK;
    if (is(type, "Prepend") && is(json_object_get(n, "prepend"), "\u2581")) return r->t->prefix = TR_PREFIX_ALWAYS, TR_OK;
    if (is(type, "Replace") && is(json_object_get(pattern, "String"), " ") && is(json_object_get(n, "content"), "\u2581"))
        return r->spaces = true, TR_OK;
    return unsupported(r, "normalizer", type);
}

static int read_split(struct reader *r, const json_t *p)
{
    const json_t *pattern = json_object_get(p, "pattern"), *behavior = json_object_get(p, "behavior");
    const char *regex = json_string_value(json_object_get(pattern, "Regex")),
        *text = json_string_value(json_object_get(pattern, "String"));
    bool gaps = is(behavior, "Isolated");
    if (!gaps && !(is(behavior, "Removed") && json_is_true(json_object_get(p, "invert"))))
        return unsupported(r, "split behavior", behavior);
    if (regex) return tr_split_add(&r->t->split, regex, gaps);
    if (!text || strstr(text, "\\E")) return unsupported(r, "split pattern", pattern);
    struct tr_buf b = { 0 };
    int rc = tr_buf_printf(&b, "\\Q%s\\E", text);
    if (rc == TR_OK) rc = tr_split_add(&r->t->split, b.data, gaps);
    tr_buf_release(&b);
    return rc;
}

static int read_metaspace(struct reader *r, const json_t *p)
{
    const json_t *scheme = json_object_get(p, "prepend_scheme"), *split = json_object_get(p, "split"),
        *add = json_object_get(p, "add_prefix_space");
    if (!is(json_object_get(p, "replacement"), "\u2581"))
        return unsupported(r, "Metaspace replacement", json_object_get(p, "replacement"));
    r->spaces = true;
    r->t->prefix_once = true;
    if (is(scheme, "never") || (!scheme && json_is_false(add))) r->t->prefix = TR_PREFIX_NEVER;
    else r->t->prefix = is(scheme, "first") ? TR_PREFIX_FIRST : TR_PREFIX_ALWAYS;
    if (!split || json_is_true(split)) r->t->cut = TR_CUT_SPACES;
    return TR_OK;
}

static int read_pre_tokenizer(struct reader *r, const json_t *p, int depth)
{
    const json_t *type = json_object_get(p, "type"), *list = json_object_get(p, "pretokenizers");
    bool whole_words, nfc;
    if (!p || json_is_null(p)) return TR_OK;
    if (is(type, "Sequence") && depth < 4) {
        for (size_t i = 0; i < json_array_size(list); i++) TR_TRY(read_pre_tokenizer(r, json_array_get(list, i), depth + 1));
        return TR_OK;
    }
    if (is(type, "Split")) return read_split(r, p);
    if (is(type, "Digits"))
        return tr_split_add(&r->t->split, json_is_true(json_object_get(p, "individual_digits")) ? "\\p{N}" : "\\p{N}+", true);
    if (is(type, "Metaspace")) return read_metaspace(r, p);
    if (is(type, "ByteLevel") && !json_is_true(json_object_get(p, "add_prefix_space"))) {
        r->byte_level = true;
        return json_is_false(json_object_get(p, "use_regex")) ? TR_OK : tr_split_named(&r->t->split, "gpt-2", &whole_words, &nfc);
    }
    return unsupported(r, "pre_tokenizer", type);
}

/* ---- vocabulary */

static int count_pieces(const struct reader *r, const json_t *vocab, const json_t *added, int64_t *n)
{
    int64_t largest = -1, most = 2 * (int64_t)(json_object_size(vocab) + json_array_size(added)) + 1024;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)vocab, key, v)
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= most)
            return tr_fail(TR_EINPUT, "bad vocabulary (%s): '%.40s' has no id, or one far beyond the number of tokens",
                r->path, key);
        else if (json_integer_value(v) > largest) largest = json_integer_value(v);
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *id = json_object_get(json_array_get(added, i), "id");
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= most ||
            !json_is_string(json_object_get(json_array_get(added, i), "content")))
            return tr_fail(TR_EINPUT, "bad vocabulary (%s): added_tokens[%zu] has no content, no id, or one far beyond "
                "the number of tokens", r->path, i);
        if (json_integer_value(id) > largest) largest = json_integer_value(id);
    }
    *n = largest + 1;
    return TR_OK;
}

static int set_piece(struct tr_tokenizer *t, const char *key, int64_t id, bool byte_fallback)
{
    char bytes[256];
    size_t n = strlen(key);
    unsigned b;
    int end = 0;
    if (t->model == TR_MODEL_BYTE_LEVEL && n <= sizeof bytes && tr_alphabet_bytes(bytes, &n, key, n))
        return tr_vocab_set(&t->vocab, id, bytes, n, TR_PIECE_NORMAL);
    n = strlen(key);
    if (byte_fallback && n == 6 && sscanf(key, "<0x%2X>%n", &b, &end) == 1 && end == 6) {
        char c = (char)b;
        return tr_vocab_set(&t->vocab, id, &c, 1, TR_PIECE_BYTE);
    }
    return tr_vocab_set(&t->vocab, id, key, n, TR_PIECE_NORMAL);
}

static int read_merges(struct reader *r, const json_t *merges)
{
    size_t n = json_array_size(merges);
    TR_TRY(tr_merges_init(&r->t->bpe.merges, n));
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(merges, i), *a = json_array_get(m, 0), *b = json_array_get(m, 1);
        const char *s = json_string_value(m), *gap = s && *s ? strchr(s + 1, ' ') : NULL;
        if (json_is_string(a) && json_is_string(b))
            TR_TRY(tr_tokenizer_add_merge(r->t, json_string_value(a), json_string_length(a), json_string_value(b),
                json_string_length(b), (int32_t)i, r->path));
        else if (gap) TR_TRY(tr_tokenizer_add_merge(r->t, s, (size_t)(gap - s), gap + 1, strlen(gap + 1), (int32_t)i, r->path));
        else return tr_fail(TR_EINPUT, "bad merge (%s): number %zu is not two texts", r->path, i);
    }
    return TR_OK;
}

static int read_model(struct reader *r, const json_t *model)
{
    static const char *const none[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    const json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges"),
        *added = json_object_get(r->root, "added_tokens");
    const json_t *type = json_object_get(model, "type"), *unknown = json_object_get(model, "unk_token");
    struct tr_tokenizer *t = r->t;
    const char *key;
    json_t *v;
    int64_t n;
    if (!json_is_object(model) || (type && !is(type, "BPE"))) return unsupported(r, "model", type);
    if (!json_is_object(vocab) || !json_is_array(merges))
        return tr_fail(TR_EINPUT, "bad tokenizer (%s): model.vocab or model.merges is missing", r->path);
    for (int i = 0; i < 2; i++)
        if (json_string_length(json_object_get(model, none[i])) > 0)
            return unsupported(r, none[i], json_object_get(model, none[i]));
    t->model = r->byte_level ? TR_MODEL_BYTE_LEVEL : TR_MODEL_SENTENCE;
    if (!r->byte_level && !r->spaces) return unsupported(r, "BPE without ByteLevel or U+2581", type);
    t->whole_words = json_is_true(json_object_get(model, "ignore_merges"));

    TR_TRY(count_pieces(r, vocab, added, &n));
    TR_TRY(tr_vocab_init(&t->vocab, n));
    json_object_foreach((json_t *)vocab, key, v)
        TR_TRY(set_piece(t, key, json_integer_value(v), json_is_true(json_object_get(model, "byte_fallback"))));
    TR_TRY(tr_vocab_index(&t->vocab));
    TR_TRY(read_merges(r, merges));
    if (json_is_string(unknown) && json_is_integer(v = json_object_get(vocab, json_string_value(unknown))))
        t->unknown = (int32_t)json_integer_value(v);

    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *a = json_array_get(added, i), *text = json_object_get(a, "content");
        int64_t id = json_integer_value(json_object_get(a, "id"));
        if (json_is_true(json_object_get(a, "single_word"))) return unsupported(r, "single_word of the added token", text);
        TR_TRY(tr_vocab_set(&t->vocab, id, json_string_value(text), json_string_length(text),
            json_is_true(json_object_get(a, "special")) ? TR_PIECE_CONTROL : TR_PIECE_USER));
        t->vocab.piece[id].lstrip = json_is_true(json_object_get(a, "lstrip"));
        t->vocab.piece[id].rstrip = json_is_true(json_object_get(a, "rstrip"));
    }
    return tr_vocab_index(&t->vocab);
}

/* ---- the files beside it */

static int32_t named(const struct tr_tokenizer *t, const json_t *v)
{
    if (json_is_object(v)) v = json_object_get(v, "content");
    if (!json_is_string(v)) return -1;
    int32_t id = tr_vocab_special(&t->vocab, json_string_value(v), json_string_length(v));
    return id >= 0 ? id : tr_vocab_find(&t->vocab, json_string_value(v), json_string_length(v));
}

/* Does the post-processor put the first special token before the text? */
static void read_post(struct tr_tokenizer *t, const json_t *p, int depth)
{
    const json_t *list = json_object_get(p, "processors"), *first = json_array_get(json_object_get(p, "single"), 0);
    for (size_t i = 0; depth < 4 && i < json_array_size(list); i++) read_post(t, json_array_get(list, i), depth + 1);
    int32_t id = named(t, json_object_get(json_object_get(first, "SpecialToken"), "id"));
    if (!is(json_object_get(p, "type"), "TemplateProcessing") || id < 0) return;
    t->adds_bos = true;
    if (t->bos < 0) t->bos = id;
}

static int read_template(struct tr_tokenizer *t, const json_t *v)
{
    if (json_is_array(v)) { /* several under names: the one named default */
        const json_t *list = v;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (i == 0 || is(json_object_get(json_array_get(list, i), "name"), "default"))
                v = json_object_get(json_array_get(list, i), "template");
    }
    return json_is_string(v) && !t->chat_template ? tr_strdup(&t->chat_template, json_string_value(v)) : TR_OK;
}

static int read_id(const struct tr_tokenizer *t, const json_t *v, int32_t *id)
{
    if (json_is_array(v)) v = json_array_get(v, 0);
    if (*id < 0 && json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) < t->vocab.n)
        *id = (int32_t)json_integer_value(v);
    return TR_OK;
}

static int read_neighbour(struct tr_tokenizer *t, const char *folder, const char *name)
{
    char *path = NULL;
    json_t *root = NULL;
    int rc = tr_path_join(&path, folder, name);
    if (rc == TR_OK && tr_exists(path) && (rc = load(&root, path)) == TR_OK) {
        int32_t bos = named(t, json_object_get(root, "bos_token")), eos = named(t, json_object_get(root, "eos_token"));
        if (bos >= 0) t->bos = bos;
        if (eos >= 0) t->eos = eos;
        const json_t *adds = json_object_get(root, "add_bos_token");
        if (json_is_boolean(adds)) t->adds_bos = json_is_true(adds);
        read_id(t, json_object_get(root, "bos_token_id"), &t->bos);
        read_id(t, json_object_get(root, "eos_token_id"), &t->eos);
        rc = read_template(t, json_object_get(root, "chat_template"));
        json_decref(root);
    }
    free(path);
    return rc;
}

static int read_jinja(struct tr_tokenizer *t, const char *folder)
{
    char *path = NULL;
    struct tr_buf b = { 0 };
    int rc = tr_path_join(&path, folder, "chat_template.jinja");
    if (rc == TR_OK && tr_exists(path)) rc = tr_read_file(&b, path);
    if (rc == TR_OK && b.size) rc = tr_strndup(&t->chat_template, b.data, b.size);
    free(path);
    tr_buf_release(&b);
    return rc;
}

static int read_all(struct tr_tokenizer *t, const char *path, const char *folder)
{
    json_t *root;
    TR_TRY(load(&root, path));
    struct reader r = { .t = t, .path = path, .root = root };
    int rc;
    TR_GO(read_normalizer(&r, json_object_get(root, "normalizer")));
    TR_GO(read_pre_tokenizer(&r, json_object_get(root, "pre_tokenizer"), 0));
    TR_GO(read_model(&r, json_object_get(root, "model")));
    TR_GO(tr_tokenizer_finish(t, path));
    read_post(t, json_object_get(root, "post_processor"), 0);
    TR_GO(read_jinja(t, folder));
    TR_GO(read_neighbour(t, folder, "tokenizer_config.json"));
    TR_GO(read_neighbour(t, folder, "generation_config.json"));
    TR_GO(read_neighbour(t, folder, "config.json"));
done:
    json_decref(root);
    return rc;
}

static int folder_of(char **out, const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? tr_strndup(out, path, slash == path ? 1 : (size_t)(slash - path)) : tr_strdup(out, ".");
}

int tr_tokenizer_from_json(struct tr_tokenizer *t, const char *path)
{
    char *file = NULL, *folder = NULL;
    const char *dot = strrchr(path, '.');
    bool is_dir = tr_is_dir(path), weights = dot && !strcmp(dot, ".safetensors");
    int rc;
    if (dot && !strcmp(dot, ".gguf"))
        return tr_fail(TR_EINPUT, "unsupported tokenizer file (%s): name the GGUF file as model.path, or a tokenizer.json as "
            "model.tokenizer", path);
    TR_GO(is_dir ? tr_strdup(&folder, path) : folder_of(&folder, path));
    TR_GO(is_dir || weights ? tr_path_join(&file, folder, "tokenizer.json") : tr_strdup(&file, path));
    if ((is_dir || weights) && !tr_exists(file))
        TR_GO(tr_fail(TR_EINPUT, "no tokenizer (%s): the folder has no tokenizer.json; set model.tokenizer to another one, "
            "or to bytes", folder));
    rc = read_all(t, file, folder);
done:
    free(file);
    free(folder);
    return rc;
}
