/* Memory that waits in a file: what comes back is what went, in order; nothing is left in the folder; a full disk is told. */
#include "tests/support/support.h"
#include "libtrain/base/mem.h"
#include "libtrain/base/spill.h"
#include "libtrain/base/status.h"
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned char byte_of(size_t i, unsigned seed) { return (unsigned char)((i * 2654435761u + seed * 40503u) >> 13); }

static unsigned char *bytes(size_t n, unsigned seed)
{
    unsigned char *p = malloc(n);
    assert_non_null(p);
    for (size_t i = 0; i < n; i++) p[i] = byte_of(i, seed);
    return p;
}

static int entries(const char *folder)
{
    DIR *d = opendir(folder);
    int n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(d);
    return n;
}

/* Sizes below, at and past a place and the thread's buffer; more jobs than the queue holds. */
static void what_went_comes_back(void **state)
{
    static const size_t sizes[] = { 1, 4095, 4096, 4097, 65536, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (9 << 20) + 12345 };
    enum { N = sizeof sizes / sizeof *sizes };
    char folder[600];
    struct tr_spill *s;
    unsigned char *from[N], *to[N];
    uint64_t at[N], end = 0, read = 0, ticket = 0;
    size_t before = tr_mem_ledger().total;
    snprintf(folder, sizeof folder, "%s/spill/made/when/missing", test_folder());
    assert_ok(tr_spill_open(&s, folder));
    assert_true(tr_mem_ledger().total > before);
    assert_int_equal(entries(folder), 0);
    for (int i = 0; i < N; i++) {
        from[i] = bytes(sizes[i], (unsigned)i);
        to[i] = malloc(sizes[i]);
        at[i] = end;
        end += tr_spill_room(sizes[i]);
        ticket = tr_spill_write(s, at[i], from[i], sizes[i]);
    }
    for (int i = N - 1; i >= 0; i--) ticket = tr_spill_read(s, at[i], to[i], sizes[i]); /* before the writes are known to be done */
    assert_ok(tr_spill_wait(s, ticket));
    for (int i = 0; i < N; i++) assert_memory_equal(from[i], to[i], sizes[i]);
    for (int k = 0; k < 200; k++) { /* a later write to a place wins, the neighbour stays */
        from[1][0] = (unsigned char)k;
        ticket = tr_spill_write(s, at[1], from[1], sizes[1]);
        ticket = tr_spill_read(s, at[1], to[1], sizes[1]);
        ticket = tr_spill_read(s, at[2], to[2], sizes[2]);
        if (k % 50 == 49) {
            assert_ok(tr_spill_wait(s, ticket));
            assert_memory_equal(from[1], to[1], sizes[1]);
            assert_memory_equal(from[2], to[2], sizes[2]);
        } else assert_ok(tr_spill_wait(s, ticket - 1));
        read += sizes[1] + sizes[2];
    }
    for (int i = 0; i < N; i++) read += sizes[i];
    assert_int_equal(tr_spill_counts(s).read, read);
    assert_int_equal(tr_spill_counts(s).file, end);
    tr_spill_close(s);
    assert_int_equal(entries(folder), 0);
    assert_int_equal(tr_mem_ledger().total, before);
    for (int i = 0; i < N; i++) {
        free(from[i]);
        free(to[i]);
    }
}

/* A limit on the size of files stands for the full disk. */
static void a_full_disk_is_told(void **state)
{
    struct rlimit old, low;
    struct tr_spill *s;
    unsigned char *p = bytes(8 << 20, 1);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    assert_ok(tr_spill_open(&s, test_folder()));
    low = old;
    low.rlim_cur = 1 << 20;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    uint64_t first = tr_spill_write(s, 0, p, 4096), second = tr_spill_write(s, 4096, p, 8 << 20);
    tr_spill_wait(s, first);
    assert_int_equal(tr_spill_wait(s, second), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "write"));
    assert_non_null(strstr(tr_message(), test_folder()));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(tr_spill_wait(s, tr_spill_write(s, 0, p, 4096)), TR_EFAIL); /* it does not go on as if nothing had been */
    tr_spill_close(s);
    free(p);
}

static void a_folder_that_cannot_be(void **state)
{
    struct tr_spill *s;
    char file[600], inside[640];
    snprintf(file, sizeof file, "%s/a-file", test_folder());
    snprintf(inside, sizeof inside, "%s/sub", file);
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(tr_spill_open(&s, inside), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "a-file"));
}

static void foretold_without_a_file(void **state)
{
    struct tr_spill *s;
    char folder[600];
    snprintf(folder, sizeof folder, "%s/never", test_folder());
    tr_mem_dry(true);
    assert_ok(tr_spill_open(&s, folder));
    assert_ok(tr_spill_wait(s, tr_spill_write(s, 8192, (void *)1, 5000)));
    assert_ok(tr_spill_wait(s, tr_spill_read(s, 8192, (void *)1, 100)));
    assert_int_equal(tr_spill_counts(s).written, 5000);
    assert_int_equal(tr_spill_counts(s).read, 100);
    assert_int_equal(tr_spill_counts(s).file, 16384);
    tr_spill_close(s);
    tr_mem_dry(false);
    assert_true(access(folder, F_OK) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(what_went_comes_back), cmocka_unit_test(a_full_disk_is_told),
        cmocka_unit_test(a_folder_that_cannot_be), cmocka_unit_test(foretold_without_a_file) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
