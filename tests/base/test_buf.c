/* Status messages, growable bytes, arrays that grow. */
#include "tests/support/support.h"
#include "libtrain/base/buf.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void messages(void **state)
{
    assert_int_equal(tr_fail(TR_EINPUT, "unknown key '%s' (%s:%d)", "a.b", "x.ini", 14), TR_EINPUT);
    assert_string_equal(tr_message(), "unknown key 'a.b' (x.ini:14)");
    assert_int_equal(tr_fail(TR_EFAIL, "outer: %s", tr_message()), TR_EFAIL); /* the old text inside the new */
    assert_string_equal(tr_message(), "outer: unknown key 'a.b' (x.ini:14)");
    tr_fail(TR_EINPUT, "name '%s'", "two\nlines\tand\033[1m colour");
    assert_string_equal(tr_message(), "name 'two lines and [1m colour'");
    char *longer = malloc(10001);
    memset(longer, 'x', 10000);
    longer[10000] = 0;
    tr_fail(TR_EINPUT, "%s", longer);
    assert_true(strlen(tr_message()) > 1000 && strlen(tr_message()) < 10000);
    free(longer);
}

static int inner(int code) { return code ? tr_fail(code, "inner failed with %d", code) : TR_OK; }
static int early(int code, int *after)
{
    TR_TRY(inner(code));
    ++*after;
    return TR_OK;
}
static int undone(int code, int *released)
{
    int rc;
    TR_GO(inner(TR_OK));
    TR_GO(inner(code));
    *released += 10;
done:
    ++*released;
    return rc;
}

static void early_returns(void **state)
{
    int after = 0, released = 0;
    assert_int_equal(early(TR_EDAMAGED, &after), TR_EDAMAGED);
    assert_int_equal(after, 0);
    assert_string_equal(tr_message(), "inner failed with 4");
    assert_int_equal(early(TR_OK, &after), TR_OK);
    assert_int_equal(after, 1);
    assert_int_equal(undone(TR_EINPUT, &released), TR_EINPUT);
    assert_int_equal(released, 1);
    assert_int_equal(undone(TR_OK, &released), TR_OK);
    assert_int_equal(released, 12);
}

static void *other_thread(void *arg)
{
    tr_fail(TR_EFAIL, "of another thread");
    return NULL;
}

static void a_message_per_thread(void **state)
{
    pthread_t t;
    tr_fail(TR_EFAIL, "mine");
    assert_int_equal(pthread_create(&t, NULL, other_thread, NULL), 0);
    pthread_join(t, NULL);
    assert_string_equal(tr_message(), "mine");
}

static void growing(void **state)
{
    struct tr_buf b = { 0 };
    for (int i = 0; i < 5000; i++) {
        assert_ok(tr_buf_printf(&b, "%d,", i % 10));
        assert_int_equal(b.size, 2 * (size_t)(i + 1));
        assert_int_equal(b.data[b.size], 0);
    }
    for (int i = 0; i < 5000; i++) assert_true(b.data[2 * i] == '0' + i % 10 && b.data[2 * i + 1] == ',');
    assert_ok(tr_buf_add(&b, "a\0b", 3));
    assert_int_equal(b.size, 10003);
    assert_memory_equal(b.data + 10000, "a\0b\0", 4);
    assert_ok(tr_buf_add(&b, NULL, 0));
    assert_ok(tr_buf_puts(&b, ""));
    assert_int_equal(b.size, 10003);
    size_t cap = b.cap;
    assert_int_equal(tr_buf_reserve(&b, SIZE_MAX), TR_EFAIL);
    assert_int_equal(tr_buf_reserve(&b, SIZE_MAX - b.size), TR_EFAIL);
    assert_int_equal(b.cap, cap);    /* a refusal changes nothing */
    assert_int_equal(b.size, 10003);
    tr_buf_release(&b);
    assert_null(b.data);
    assert_int_equal(b.size + b.cap, 0);
    tr_buf_release(&b);
    assert_ok(tr_buf_reserve(&b, 0)); /* data is terminated as soon as it exists */
    assert_int_equal(b.data[0], 0);
    tr_buf_release(&b);
}

static void long_text(void **state)
{
    struct tr_buf b = { 0 };
    char *word = malloc(70001);
    memset(word, 'w', 70000);
    word[70000] = 0;
    assert_ok(tr_buf_printf(&b, "<%s|%s>", word, word));
    assert_int_equal(b.size, 140003);
    assert_true(b.data[0] == '<' && b.data[70001] == '|' && b.data[140002] == '>');
    tr_buf_release(&b);
    free(word);
}

static void copies(void **state)
{
    char *s;
    assert_ok(tr_strdup(&s, "whole"));
    assert_string_equal(s, "whole");
    free(s);
    assert_ok(tr_strndup(&s, "whole", 3));
    assert_string_equal(s, "who");
    free(s);
    assert_ok(tr_strndup(&s, "", 0));
    assert_string_equal(s, "");
    free(s);
    double *d;
    assert_ok(tr_calloc(&d, 100, sizeof *d));
    for (int i = 0; i < 100; i++) assert_true(d[i] == 0);
    free(d);
    assert_int_equal(tr_calloc(&d, SIZE_MAX / 4, 8), TR_EFAIL);
    assert_null(d);
    assert_ok(tr_calloc(&d, 0, 8));
    assert_non_null(d);
    free(d);
}

static void arrays(void **state)
{
    int64_t *a = NULL;
    size_t cap = 0;
    for (size_t n = 0; n < 1000; n++) {
        assert_ok(tr_grow(&a, n, &cap, sizeof *a));
        assert_true(cap > n);
        a[n] = (int64_t)n;
    }
    for (int64_t n = 0; n < 1000; n++) assert_int_equal(a[n], n);
    size_t huge = SIZE_MAX / 16;
    assert_int_equal(tr_grow(&a, huge, &huge, sizeof *a), TR_EFAIL);
    assert_int_equal(a[999], 999);
    free(a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(messages), cmocka_unit_test(early_returns), cmocka_unit_test(a_message_per_thread),
        cmocka_unit_test(growing), cmocka_unit_test(long_text), cmocka_unit_test(copies), cmocka_unit_test(arrays) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
