#include "tests/support/support.h"
#include "libtrain/base/h5.h"
#include "libtrain/base/log.h"
#include "libtrain/data/data.h"
#include "libtrain/data/show.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tr_tokenizer *bytes;
static struct tr_data_config config;

static const char *put(const char *name, const char *text, size_t n)
{
    static char path[4][512];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", test_folder(), name);
    FILE *f = fopen(p, "wb");
    assert_non_null(f);
    fwrite(text, 1, n, f);
    fclose(f);
    return p;
}

static const char *puts_file(const char *name, const char *text) { return put(name, text, strlen(text)); }

static struct tr_dataset *open_ok(const char *path)
{
    struct tr_dataset *d;
    assert_ok(tr_dataset_open(&d, &config, path, bytes, 257));
    return d;
}

static void refuses(const char *path, const char *says)
{
    struct tr_dataset *d;
    assert_int_equal(tr_dataset_open(&d, &config, path, bytes, 257), TR_EINPUT);
    if (!strstr(tr_message(), says)) fail_msg("'%s' does not say '%s'", tr_message(), says);
}

static int defaults(void **state)
{
    tr_options_release(tr_data_section.options, &config);
    memset(&config, 0, sizeof config);
    assert_ok(tr_options_default(tr_data_section.options, &config));
    if (!bytes) assert_ok(tr_tokenizer_open(&bytes, NULL, "bytes"));
    return 0;
}

static void text_windows(void **state)
{
    struct tr_loader *l;
    const struct tr_batch *b;
    config.sequence = 4;
    config.shuffle = false;
    for (int n = 2; n < 14; n++) {
        struct tr_dataset *d = open_ok(put("t.txt", "abcdefghijklmn", (size_t)n));
        struct tr_data_counts c = tr_dataset_counts(d);
        int windows = (n + 3) / 4 - (n % 4 == 1);
        assert_int_equal(c.examples, windows);
        assert_int_equal(c.counted, n - 1);
        assert_ok(tr_loader_new(&l, d, &config, 1, false));
        assert_int_equal(tr_loader_sequences(l), windows);
        assert_int_equal(tr_loader_peek_counted(l, windows), n - 1);
        assert_ok(tr_loader_next(l, windows, &b));
        for (int64_t i = 0; i < b->n; i++) {
            assert_int_equal(b->ids[i], 'a' + i);
            assert_int_equal(b->targets[i], i + 1 < n ? 'a' + i + 1 : -100);
            assert_int_equal(b->pos[i], i % 4);
            assert_int_equal(b->start[i], i - i % 4);
        }
        assert_int_equal(b->seq[b->n_seqs], b->n);
        tr_loader_free(l);
        tr_dataset_free(d);
    }
}

static void prompts_and_packing(void **state)
{
    static const char lines[] = "{\"prompt\": \"ab\", \"completion\": \"cd\"}\n\n{\"text\": \"xyz\"}\n{\"prompt\": "
        "\"long prompt\", \"completion\": \"cut\"}\n{\"prompt\": \"q\", \"completion\": \"r\"}";
    struct tr_loader *l;
    const struct tr_batch *b;
    config.sequence = 9;
    config.shuffle = false;
    struct tr_dataset *d = open_ok(puts_file("p.jsonl", lines));
    struct tr_data_counts c = tr_dataset_counts(d);
    assert_int_equal(c.examples, 3);
    assert_int_equal(c.dropped_empty, 1);
    assert_int_equal(c.truncated, 1);
    assert_int_equal(c.sequences, 2); /* "abcd" and "xyz" fill one, "qr" begins another */
    assert_int_equal(c.counted, 3 + 3 + 2);
    assert_int_equal(c.longest, 5);
    assert_ok(tr_loader_new(&l, d, &config, 1, false));
    assert_ok(tr_loader_next(l, 2, &b));
    static const int32_t ids[] = { 'a', 'b', 'c', 'd', 256, 'x', 'y', 'z', 256, 'q', 'r', 256 };
    static const int32_t targets[] = { -100, 'c', 'd', 256, -100, 'y', 'z', 256, -100, 'r', 256, -100 };
    static const int32_t start[] = { 0, 0, 0, 0, 0, 5, 5, 5, 5, 9, 9, 9 }, pos[] = { 0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2 };
    assert_int_equal(b->n, 12);
    assert_int_equal(b->n_seqs, 2);
    assert_int_equal(b->seq[1], 9);
    assert_int_equal(b->counted, 8);
    assert_memory_equal(b->ids, ids, sizeof ids);
    assert_memory_equal(b->targets, targets, sizeof targets);
    assert_memory_equal(b->start, start, sizeof start);
    assert_memory_equal(b->pos, pos, sizeof pos);
    tr_loader_free(l);
    tr_dataset_free(d);

    config.pack = config.mask_prompt = false;
    d = open_ok(puts_file("p.jsonl", lines));
    assert_int_equal(tr_dataset_counts(d).sequences, 4);
    assert_int_equal(tr_dataset_counts(d).counted, 4 + 3 + 8 + 2);
    tr_dataset_free(d);
}

static void chat(void **state)
{
    const int32_t *ids;
    const uint8_t *counted;
    int64_t n, sum = 0;
    struct tr_buf text = { 0 };
    config.template_name = (free(config.template_name), strdup("chatml"));
    struct tr_dataset *d = open_ok(puts_file("c.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, "
        "{\"role\": \"assistant\", \"content\": \"Yo\"}]}\n"
                                                        "{\"messages\": [{\"role\": \"user\", \"content\": \"nobody "
                                                            "answers\"}]}\n"));
    assert_int_equal(tr_dataset_counts(d).dropped_empty, 1);
    assert_ok(tr_dataset_example(d, 0, &ids, &counted, &n));
    for (int64_t i = 0; i < n; i++) {
        if (counted[i]) assert_ok(tr_decode(bytes, &text, ids[i], true));
        sum += counted[i];
    }
    assert_string_equal(text.data, "Yo<|im_end|>");
    assert_int_equal(sum, tr_dataset_counts(d).counted);
    tr_buf_release(&text);

    char *shown = NULL;
    size_t size;
    FILE *f = open_memstream(&shown, &size);
    assert_ok(tr_data_show(f, d, bytes, false, false));
    fclose(f);
    assert_non_null(strstr(shown, "assistant\n[Yo<|im_end|>]\n"));
    free(shown);
    f = open_memstream(&shown, &size);
    assert_ok(tr_data_show(f, d, bytes, true, false));
    fclose(f);
    json_t *row = json_loads(shown, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(row, "ids")), n);
    assert_int_equal(json_array_size(json_object_get(row, "counted")), n);
    json_decref(row);
    free(shown);
    tr_dataset_free(d);
}

static void hdf5(void **state)
{
    char path[512];
    struct tr_h5 *f;
    struct tr_loader *l;
    const struct tr_batch *b;
    int32_t tokens[3][4] = { { 1, 2, 3, 4 }, { 5, 6, 7, 8 }, { 9, 9, 9, 9 } }, targets[3][4] = { { 2, -100, 4, 250 },
        { -100, -100, -100, -100 }, { -100, 7, -100, -100 } };
    config.shuffle = false;
    config.sequence = 4;
    snprintf(path, sizeof path, "%s/rows.h5", test_folder());
    for (int given = 0; given < 2; given++) {
        assert_ok(tr_h5_create(&f, path));
        assert_ok(tr_h5_write(f, "tokens", TR_I32, 2, (int64_t[]){ 3, 4 }, tokens, false));
        if (given) assert_ok(tr_h5_write(f, "targets", TR_I32, 2, (int64_t[]){ 3, 4 }, targets, false));
        assert_ok(tr_h5_close(f));
        struct tr_dataset *d = open_ok(path);
        assert_int_equal(tr_dataset_counts(d).sequences, given ? 2 : 3);
        assert_int_equal(tr_dataset_counts(d).counted, given ? 4 : 9);
        assert_ok(tr_loader_new(&l, d, &config, 0, false));
        assert_ok(tr_loader_next(l, 2, &b));
        if (given) {
            assert_memory_equal(b->targets, targets[0], 16);
            assert_memory_equal(b->targets + 4, targets[2], 16);
        } else assert_int_equal(b->targets[2], 4), assert_int_equal(b->targets[3], -100);
        tr_loader_free(l);
        tr_dataset_free(d);
    }
    config.sequence = 3;
    refuses(path, "set data.sequence = 4");
    config.sequence = 8;
    tokens[1][2] = 300;
    assert_ok(tr_h5_create(&f, path));
    assert_ok(tr_h5_write(f, "tokens", TR_I32, 2, (int64_t[]){ 3, 4 }, tokens, false));
    assert_ok(tr_h5_close(f));
    refuses(path, "bad token id 300");
    assert_ok(tr_h5_create(&f, path));
    assert_ok(tr_h5_write(f, "tokens", TR_I32, 1, (int64_t[]){ 12 }, tokens, false));
    assert_ok(tr_h5_close(f));
    refuses(path, "[N,T]");
    refuses(puts_file("damaged.h5", "no HDF5 at all"), "damaged.h5");
}

static void bad_input(void **state)
{
    refuses("", "data.train");
    refuses("/nowhere/at/all.txt", "/nowhere/at/all.txt");
    struct tr_dataset *d;
    assert_int_equal(tr_dataset_open(&d, &config, puts_file("v.txt", "abc"), NULL, 257), TR_EINPUT);
    refuses(puts_file("e.txt", ""), "empty");
    refuses(puts_file("e.jsonl", "\n \n"), "no example");
    refuses(puts_file("j.jsonl", "{\"text\": \"a\"}\n{\"text\": \"a\"\n"), "j.jsonl:2");
    refuses(puts_file("j.jsonl", "{\"text\": \"a\"}\n[1]\n"), "j.jsonl:2");
    refuses(puts_file("j.jsonl", "{\"words\": \"a\"}\n"), "j.jsonl:1");
    refuses(puts_file("j.jsonl", "\n{\"prompt\": \"a\"}\n"), "completion");
    refuses(puts_file("j.jsonl", "{\"text\": \"\xff\"}\n"), "j.jsonl:1");
    refuses(puts_file("j.jsonl", "{\"messages\": []}\n"), "data.template_name");
    refuses(puts_file("j.jsonl", "{\"text\": \"a\", \"n\": 1e999}\n"), "j.jsonl:1");
    config.template_name = (free(config.template_name), strdup("zephyr"));
    refuses(puts_file("j.jsonl", "{\"messages\": [{\"role\": \"user\"}]}\n"), "j.jsonl:1");
    config.format = 2;
    refuses(puts_file("j.jsonl", "{\"text\": \"a\"}\n"), "messages");
    config.format = 0;
    assert_int_equal(tr_dataset_open(&d, &config, puts_file("v.txt", "abc"), bytes, 'c'), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "bad token id 99"));
}

static void folders(void **state)
{
    char path[512];
    const int32_t *ids;
    const uint8_t *counted;
    int64_t n;
    snprintf(path, sizeof path, "mkdir -p '%s/set[1]'", test_folder());
    assert_int_equal(system(path), 0);
    snprintf(path, sizeof path, "%s/set[1]", test_folder());
    refuses(path, "folder");
    puts_file("set[1]/b.txt", "bbb");
    puts_file("set[1]/a.jsonl", "{\"text\": \"aaa\"}");
    puts_file("set[1]/read.me", "no data");
    struct tr_dataset *d = open_ok(path);
    assert_int_equal(tr_dataset_counts(d).examples, 2);
    assert_ok(tr_dataset_example(d, 0, &ids, &counted, &n));
    assert_int_equal(ids[0], 'a');
    tr_dataset_free(d);
    snprintf(path, sizeof path, "%s/set?1]/*.txt", test_folder());
    d = open_ok(path);
    assert_int_equal(tr_dataset_counts(d).examples, 1);
    tr_dataset_free(d);
}

/* ---- properties of the walk */

static struct tr_dataset *many(int documents)
{
    struct tr_buf b = { 0 };
    for (int i = 0; i < documents; i++) assert_ok(tr_buf_printf(&b, "{\"text\": \"%c%.*s\"}\n", 'A' + i % 26,
        i * 7 % 23, "abcdefghijklmnopqrstuvwxyz"));
    struct tr_dataset *d = open_ok(put("many.jsonl", b.data, b.size));
    tr_buf_release(&b);
    return d;
}

static void packing(void **state)
{
    config.sequence = 40;
    struct tr_dataset *d = many(200);
    struct tr_data_counts c = tr_dataset_counts(d);
    struct tr_loader *l;
    const struct tr_batch *b;
    int64_t tokens = 0, counted = 0, documents = 0;
    assert_true(c.sequences < c.examples && c.sequences * 40 >= c.tokens);
    assert_ok(tr_loader_new(&l, d, &config, 5, true));
    for (int64_t left = c.sequences; left > 0; ) {
        int64_t n = left < 7 ? left : 7, expected = tr_loader_peek_counted(l, n);
        assert_ok(tr_loader_next(l, n, &b));
        assert_int_equal(b->counted, expected);
        assert_true(b->n <= tr_loader_max_tokens(l, n));
        int64_t targets = 0;
        for (int64_t s = 0; s < b->n_seqs; s++) {
            assert_true(b->seq[s + 1] > b->seq[s] && b->seq[s + 1] - b->seq[s] <= 40);
            for (int64_t i = b->seq[s]; i < b->seq[s + 1]; i++) {
                assert_true(b->start[i] >= b->seq[s] && b->start[i] + b->pos[i] == i);
                documents += b->pos[i] == 0;
                bool last = i + 1 == b->n || b->start[i + 1] != b->start[i]; /* no target from another document */
                assert_true(last ? b->targets[i] == -100 : b->targets[i] == b->ids[i + 1]);
                targets += b->targets[i] != -100;
            }
        }
        assert_int_equal(targets, b->counted);
        tokens += b->n;
        counted += b->counted;
        left -= n;
    }
    assert_int_equal(tokens, c.tokens);
    assert_int_equal(counted, c.counted);
    assert_int_equal(documents, c.examples);
    tr_loader_free(l);
    tr_dataset_free(d);
}

struct kept { uint64_t w[8]; int64_t n; bool restore; };
static int keep(void *self, const char *name, uint64_t *words, int64_t count)
{
    struct kept *k = self;
    assert_true(count <= 8);
    assert_string_equal(name, "data/position");
    if (k->restore) memcpy(words, k->w, (size_t)count * 8);
    else memcpy(k->w, words, (size_t)count * 8);
    return TR_OK;
}

static void position(void **state)
{
    config.sequence = 30;
    struct tr_dataset *d = many(60), *other;
    struct tr_loader *a, *b;
    const struct tr_batch *x, *y;
    struct kept k = { .restore = false };
    struct tr_visitor v = { .self = &k, .words = keep };
    int64_t n = tr_dataset_counts(d).sequences;
    assert_ok(tr_loader_new(&a, d, &config, 9, true));
    int32_t first[30];
    assert_ok(tr_loader_next(a, 1, &x));
    memcpy(first, x->ids, (size_t)x->n * 4);
    for (int64_t step = 1; step < 3 * n; step += 3) {
        k.restore = false;
        assert_ok(tr_loader_visit(a, &v));
        assert_ok(tr_loader_new(&b, d, &config, 9, true));
        k.restore = true;
        assert_ok(tr_loader_visit(b, &v));
        assert_int_equal(tr_loader_peek_counted(a, 2 * n + 3), tr_loader_peek_counted(b, 2 * n + 3));
        assert_ok(tr_loader_next(a, 3, &x)); /* now and then across the end of an epoch */
        assert_ok(tr_loader_next(b, 3, &y));
        assert_int_equal(x->n, y->n);
        assert_memory_equal(x->ids, y->ids, (size_t)x->n * 4);
        assert_memory_equal(x->targets, y->targets, (size_t)x->n * 4);
        tr_loader_free(b);
    }
    k.restore = true;
    config.sequence = 20;
    other = many(60);
    assert_ok(tr_loader_new(&b, other, &config, 9, true));
    assert_int_equal(tr_loader_visit(b, &v), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "data.train"));
    k.w[2] = 0;
    tr_loader_free(b);
    tr_dataset_free(other);
    k.restore = false;
    assert_ok(tr_loader_visit(a, &v));
    k.w[1] = (uint64_t)n;
    k.restore = true;
    assert_int_equal(tr_loader_visit(a, &v), TR_EDAMAGED);
    tr_loader_free(a);

    int64_t differ = 0; /* another seed and another epoch are other orders */
    assert_ok(tr_loader_new(&a, d, &config, 9, true));
    assert_ok(tr_loader_new(&b, d, &config, 10, true));
    for (int64_t i = 0; i < n; i++) {
        assert_ok(tr_loader_next(a, 1, &x));
        assert_ok(tr_loader_next(b, 1, &y));
        differ += x->ids[0] != y->ids[0];
    }
    assert_true(differ > n / 3);
    tr_loader_free(a);
    tr_loader_free(b);
    tr_dataset_free(d);
}

/* Damaged lines give an example or an error, never more. */
static void fuzz(void **state)
{
    static const char line[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"H\\u00e9 \\ud83d\\ude00\"}, "
        "{\"role\": \"assistant\", \"content\": \"Yo\\n\"}]}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    char damaged[sizeof line];
    unsigned x = 1;
    tr_log_quiet(true);
    config.template_name = (free(config.template_name), strdup("llama-3"));
    for (int i = 0; i < 3000; i++) {
        struct tr_dataset *d;
        size_t n = sizeof line - 1;
        memcpy(damaged, line, sizeof line);
        for (int k = 0; k < 1 + i % 3; k++) {
            x = x * 1664525u + 1013904223u;
            damaged[(x >> 8) % n] = (char)(x >> 24);
        }
        if (i % 7 == 0) n = (x >> 10) % n + 1;
        int rc = tr_dataset_open(&d, &config, put("fuzz.jsonl", damaged, n), bytes, 257);
        assert_true(rc == TR_OK || rc == TR_EINPUT);
        if (rc == TR_OK) tr_dataset_free(d);
    }
}

int main(int argc, char **argv)
{
#define T(f) cmocka_unit_test_setup(f, defaults)
    const struct CMUnitTest tests[] = { T(text_windows), T(prompts_and_packing), T(chat), T(hdf5), T(bad_input),
        T(folders), T(packing), T(position), T(fuzz) };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tr_options_release(tr_data_section.options, &config);
    tr_tokenizer_free(bytes);
    return failed;
}
