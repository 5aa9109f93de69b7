/* Files: whole reads, maps, and writing that leaves the old file or the new one. */
#include "tests/support/support.h"
#include "libtrain/base/file.h"
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char *in(const char *name)
{
    char *path;
    assert_ok(tr_path_join(&path, test_folder(), name));
    return path;
}

static void put(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static void holds(const char *path, const char *text)
{
    struct tr_buf b = { 0 };
    assert_ok(tr_read_file(&b, path));
    assert_string_equal(b.data, text);
    tr_buf_release(&b);
}

/* Files in a folder, hidden ones too. */
static int entries(const char *path)
{
    int n = 0;
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(d);
    return n;
}

static void whole_reads(void **state)
{
    static const size_t sizes[] = { 0, 1, 65535, 65536, 65537, 300000 };
    char *path = in("whole"), *bytes = malloc(300000);
    for (int i = 0; i < 300000; i++) bytes[i] = (char)(i * 7 + i / 256);
    for (int i = 0; i < 6; i++) {
        put(path, bytes, sizes[i]);
        struct tr_buf b = { 0 };
        assert_ok(tr_buf_puts(&b, "ab"));
        assert_ok(tr_read_file(&b, path)); /* appends */
        assert_int_equal(b.size, sizes[i] + 2);
        assert_memory_equal(b.data, "ab", 2);
        assert_memory_equal(b.data + 2, bytes, sizes[i]);
        assert_int_equal(b.data[b.size], 0);
        tr_buf_release(&b);
        struct tr_map m;
        assert_ok(tr_map_open(&m, path));
        assert_int_equal(m.size, sizes[i]);
        if (sizes[i]) assert_memory_equal(m.data, bytes, sizes[i]);
        else assert_null(m.data);
        tr_map_close(&m);
        tr_map_close(&m);
    }
    free(bytes);
    free(path);
}

static void unreadable(void **state)
{
    struct tr_buf b = { 0 };
    struct tr_map m;
    char *path = in("no such file");
    assert_int_equal(tr_read_file(&b, path), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "no such file"));
    assert_int_equal(tr_map_open(&m, path), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "no such file"));
    assert_int_equal(tr_read_file(&b, test_folder()), TR_EINPUT);
    assert_int_equal(tr_map_open(&m, test_folder()), TR_EINPUT);
    assert_null(m.data);
    assert_int_equal(tr_map_open(&m, "/dev/null"), TR_EINPUT); /* a device has no bytes to map */
    free(path);
    path = in("fifo"); /* nobody will ever write to it: it must be refused, not waited for */
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(tr_map_open(&m, path), TR_EINPUT);
    unlink(path);
    free(path);
    tr_buf_release(&b);
}

static void old_or_new(void **state)
{
    char *dir = in("atomic"), *path;
    assert_ok(tr_mkdirs(dir));
    assert_ok(tr_path_join(&path, dir, "x.json"));
    put(path, "old", 3);
    struct tr_tmpfile t;
    assert_ok(tr_tmpfile_open(&t, path));
    fputs("half of the n", t.f);
    fflush(t.f);
    holds(path, "old");
    assert_int_equal(entries(dir), 2);
    tr_tmpfile_release(&t);
    holds(path, "old");
    assert_int_equal(entries(dir), 1); /* nothing is left behind */
    assert_ok(tr_tmpfile_open(&t, path));
    fputs("new", t.f);
    assert_ok(tr_tmpfile_commit(&t));
    holds(path, "new");
    assert_int_equal(entries(dir), 1);
    tr_tmpfile_release(&t);
    unlink(path);
    assert_ok(tr_tmpfile_open(&t, path)); /* also where nothing was */
    tr_tmpfile_release(&t);
    assert_false(tr_exists(path));
    assert_ok(tr_tmpfile_open(&t, path));
    fputs("first", t.f);
    assert_ok(tr_tmpfile_commit(&t));
    holds(path, "first");
    free(path);
    free(dir);
}

static void no_place_to_write(void **state)
{
    struct tr_tmpfile t;
    char *path = in("absent/x");
    assert_int_equal(tr_tmpfile_open(&t, path), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "absent/x"));
    assert_null(t.f);
    tr_tmpfile_release(&t);
    free(path);
    path = in("folder");
    assert_ok(tr_mkdirs(path));
    assert_ok(tr_tmpfile_open(&t, path)); /* the name is taken by a folder: seen when it is moved there */
    assert_int_equal(tr_tmpfile_commit(&t), TR_EFAIL);
    assert_true(tr_is_dir(path));
    free(path);
}

/* A disk that is full in the middle, played by a limit on the size of files. */
static void full_disk(void **state)
{
    char *dir = in("full"), *path;
    assert_ok(tr_mkdirs(dir));
    assert_ok(tr_path_join(&path, dir, "state"));
    put(path, "old", 3);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit few = { 10000, 10000 };
        struct tr_tmpfile t;
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &few);
        int rc = tr_tmpfile_open(&t, path);
        for (int i = 0; i < 10000 && rc == TR_OK; i++) fputs("0123456789", t.f);
        if (rc == TR_OK) rc = tr_tmpfile_commit(&t);
        _exit(rc == TR_EFAIL && strstr(tr_message(), "state") ? 0 : 1);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    holds(path, "old");
    assert_int_equal(entries(dir), 1);
    free(path);
    free(dir);
}

static void folders(void **state)
{
    char *deep = in("a/b//c/"), *file = in("a/file"), *below = in("a/file/d");
    assert_ok(tr_mkdirs(deep));
    assert_true(tr_is_dir(deep));
    assert_ok(tr_mkdirs(deep));
    put(file, "x", 1);
    assert_false(tr_is_dir(file));
    assert_true(tr_exists(file));
    assert_int_equal(tr_mkdirs(file), TR_EFAIL);
    assert_int_equal(tr_mkdirs(below), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "a/file"));
    assert_int_equal(tr_mkdirs(""), TR_EFAIL);
    assert_ok(tr_mkdirs("/"));
    assert_ok(tr_mkdirs("."));
    free(deep);
    free(file);
    free(below);
    static const char *const joined[][3] = { { "a", "b", "a/b" }, { "a/", "b", "a/b" }, { "", "b", "b" }, { "/", "b", "/b" } };
    for (int i = 0; i < 4; i++) {
        char *p;
        assert_ok(tr_path_join(&p, joined[i][0], joined[i][1]));
        assert_string_equal(p, joined[i][2]);
        free(p);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(whole_reads), cmocka_unit_test(unreadable), cmocka_unit_test(old_or_new),
        cmocka_unit_test(no_place_to_write), cmocka_unit_test(full_disk), cmocka_unit_test(folders) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
