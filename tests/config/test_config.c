/* INI text and option tables: places, awkward lines, and every way to be wrong. */
#include "tests/support/support.h"
#include "libtrain/base/rng.h"
#include "libtrain/config/ini.h"
#include <stdlib.h>
#include <string.h>

static int parse(struct tr_ini *ini, const char *text) { return tr_ini_parse(ini, "a.ini", text, strlen(text)); }

static void good_lines(void **state)
{
    struct tr_ini ini;
    assert_ok(parse(&ini, "\xef\xbb\xbf; comment\r\n[model] ; more\r\n  path = a b.gguf  # tail\r\nname=\"x ; y # z\"\n[optimizer.group.a-b]\nmatch = *norm*, *e;f*\nempty =\n"));
    assert_int_equal(ini.n, 4);
    assert_string_equal(ini.entry[0].section, "model");
    assert_string_equal(ini.entry[0].value, "a b.gguf");
    assert_int_equal(ini.entry[0].line, 3);
    assert_string_equal(ini.entry[1].value, "x ; y # z");
    assert_string_equal(ini.entry[2].section, "optimizer.group.a-b");
    assert_string_equal(ini.entry[2].value, "*norm*, *e;f*");
    assert_string_equal(ini.entry[3].value, "");
    tr_ini_release(&ini);
}

static void long_lines(void **state)
{
    size_t n = 100000;
    char *text = malloc(n + 64);
    struct tr_ini ini;
    strcpy(text, "[data]\ntrain = ");
    size_t at = strlen(text);
    memset(text + at, 'x', n);
    strcpy(text + at + n, "\n");
    assert_ok(parse(&ini, text));
    assert_int_equal(strlen(ini.entry[0].value), n);
    tr_ini_release(&ini);
    free(text);
}

static void bad_lines(void **state)
{
    static const struct { const char *text, *place; } bad[] = {
        { "[model\npath=x", "a.ini:1" }, { "path = x\n", "a.ini:1" }, { "[a]\n\nword\n", "a.ini:3" }, { "[a]\nk = \"open\n", "a.ini:2" }, { "[a]\nk=1\nk=2\n", "a.ini:3" },
        { "[a]\n= 3\n", "a.ini:2" }, { "[a]\nx\xff=1\n", "a.ini:2" }, { "[a]\nb c = 1\n", "a.ini:2" }, { "[]\n", "a.ini:1" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tr_ini ini;
        assert_int_equal(parse(&ini, bad[i].text), TR_EINPUT);
        if (!strstr(tr_message(), bad[i].place)) fail_msg("'%s' should name %s: %s", bad[i].text, bad[i].place, tr_message());
    }
}

struct thing { int64_t n, bytes; double x; bool b; int c; char *t; };
static const struct tr_option table[] = {
    { "rank", TR_OPT_INT, offsetof(struct thing, n), "8", 1, 100, NULL, "a number" },
    { "budget", TR_OPT_SIZE, offsetof(struct thing, bytes), "0", 0, 0, NULL, "bytes" },
    { "lr", TR_OPT_REAL, offsetof(struct thing, x), "1e-3", 0, 1, NULL, "a rate" },
    { "fused", TR_OPT_BOOL, offsetof(struct thing, b), "true", 0, 0, NULL, "a switch" },
    { "schedule", TR_OPT_CHOICE, offsetof(struct thing, c), "zero-bubble", 0, 0, "1f1b|zero-bubble|v-half", "a choice" },
    { "path", TR_OPT_TEXT, offsetof(struct thing, t), "", 0, 0, NULL, "a text" },
    { NULL, TR_OPT_INT, 0, NULL, 0, 0, NULL, NULL },
};

static int set(struct thing *t, const char *key, const char *value) { return tr_options_set("optimizer", table, t, key, value, (struct tr_place){ "recipes/a.ini", 14 }); }

static void options(void **state)
{
    struct thing t;
    assert_ok(tr_options_default(table, &t));
    assert_int_equal(t.n, 8);
    assert_int_equal(t.c, 1);
    assert_ok(set(&t, "schedule", "v_half"));
    assert_int_equal(t.c, 2);
    assert_ok(set(&t, "budget", "12G"));
    assert_true(t.bytes == 12000000000);
    assert_ok(set(&t, "budget", "8 GiB"));
    assert_true(t.bytes == (int64_t)8 << 30);
    assert_ok(set(&t, "fused", "Off"));
    assert_false(t.b);
    assert_ok(set(&t, "path", "a; b"));
    static const struct { const char *key, *value; } bad[] = { { "rank", "0" }, { "rank", "101" }, { "rank", "8x" }, { "rank", "" }, { "rank", "99999999999999999999" }, { "lr", "nan" },
        { "lr", "inf" }, { "lr", "2" }, { "fused", "maybe" }, { "schedule", "fast" }, { "budget", "12Q" }, { "budget", "-1" }, { "budget", "1e300" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(set(&t, bad[i].key, bad[i].value), TR_EINPUT);
        assert_non_null(strstr(tr_message(), "recipes/a.ini:14"));
        assert_non_null(strstr(tr_message(), bad[i].key));
    }
    assert_int_equal(set(&t, "rnak", "8"), TR_EINPUT);
    assert_string_equal(tr_message(), "unknown key 'optimizer.rnak' (recipes/a.ini:14): did you mean 'optimizer.rank'?");
    struct tr_buf out = { 0 };
    assert_ok(tr_options_print(&out, table, &t)); /* what is printed reads back to the same */
    struct tr_buf text = { 0 };
    assert_ok(tr_buf_printf(&text, "[optimizer]\n%s", out.data));
    struct tr_ini ini;
    struct thing back;
    assert_ok(parse(&ini, text.data));
    assert_ok(tr_options_default(table, &back));
    for (size_t i = 0; i < ini.n; i++) assert_ok(set(&back, ini.entry[i].key, ini.entry[i].value));
    assert_true(back.n == t.n && back.bytes == t.bytes && back.x == t.x && back.b == t.b && back.c == t.c && !strcmp(back.t, t.t));
    tr_options_release(table, &back);
    tr_options_release(table, &t);
    tr_ini_release(&ini);
    tr_buf_release(&text);
    tr_buf_release(&out);
}

static void nearest(void **state)
{
    static const char *const names[] = { "rank", "update_gap", "scale", NULL };
    assert_string_equal(tr_nearest("rnak", names), "rank");
    assert_string_equal(tr_nearest("updat_gap", names), "update_gap");
    assert_null(tr_nearest("momentum", names));
    assert_null(tr_nearest("averyverylongwordthatisbeyondthelimitofforty", names));
}

/* Damaged text never crashes: bytes flipped at places that a counter chooses. */
static void fuzz(void **state)
{
    static const char seed[] = "[model]\npath = \"a b\" ; c\n[optimizer.group.x]\nmatch = *norm*, y # z\nrank = 8\n";
    for (uint64_t i = 0; i < 20000; i++) {
        char text[sizeof seed];
        struct tr_ini ini;
        memcpy(text, seed, sizeof seed);
        struct tr_key key = tr_key(i, TR_RNG_PROBE, 0, 0);
        for (uint64_t k = 0; k < 1 + i % 4; k++) text[tr_below(key, 2 * k, sizeof seed - 1)] = (char)tr_below(key, 2 * k + 1, 256);
        int rc = tr_ini_parse(&ini, "f.ini", text, sizeof seed - 1 - (size_t)(i % 7));
        assert_true(rc == TR_OK || rc == TR_EINPUT);
        if (rc == TR_OK) tr_ini_release(&ini);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(good_lines), cmocka_unit_test(long_lines), cmocka_unit_test(bad_lines), cmocka_unit_test(options), cmocka_unit_test(nearest), cmocka_unit_test(fuzz) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
