/* HDF5 files: what is written is read back, and no file makes more than an error. */
#include "tests/support/support.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/file.h"
#include "libtrain/base/h5.h"
#include "libtrain/base/rng.h"
#include "libtrain/tensor/tensor.h"
#include <errno.h>
#include <hdf5.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *path_of(const char *name)
{
    char *path;
    assert_ok(tr_path_join(&path, test_folder(), name));
    return path;
}

static void assert_message(const char *part)
{
    if (!strstr(tr_message(), part)) fail_msg("'%s' is not in: %s", part, tr_message());
}

static int collect(void *self, const char *name, bool is_group)
{
    return tr_buf_printf(self, "%s%s ", name, is_group ? "/" : "");
}

static int collect_attr(void *self, const char *name) { return tr_buf_printf(self, "%s ", name); }
static int stop(void *self, const char *name, bool is_group) { return tr_fail(TR_EBUDGET, "stop"); }

static void round_trip(void **state)
{
    char *path = path_of("round.h5");
    struct tr_h5 *f;
    float x[6] = { 1, -2.5f, 3, INFINITY, 5, 1e-30f }, y[6];
    double d[6] = { 1e300, 2 }, e[6];
    uint16_t b[6] = { 0x3f80, 0xc020, 0, 0x7f80, 1, 2 }, c[6];
    int32_t tokens[6] = { 0, -100, 7, 1 << 30, 5, 6 }, u[6];
    int8_t q[6] = { -128, 127, 0, 1, 2, 3 }, p[6];
    uint64_t words[3] = { 1, UINT64_MAX, (uint64_t)1 << 63 }, more[3];
    for (int compress = 0; compress < 2; compress++) {
        assert_ok(tr_h5_create(&f, path));
        assert_ok(tr_h5_write(f, "grad/model.layers.0.weight", TR_F32, TR_DIMS(2, 3), x, compress));
        assert_ok(tr_h5_write(f, "loss", TR_F64, TR_DIMS(1), d, compress));
        assert_ok(tr_h5_write(f, "b", TR_BF16, TR_DIMS(3, 2), b, compress));
        assert_ok(tr_h5_write(f, "h", TR_F16, TR_DIMS(2), b, compress));
        assert_ok(tr_h5_write(f, "tokens", TR_I32, TR_DIMS(1, 2, 3), tokens, compress));
        assert_ok(tr_h5_write(f, "q", TR_INT8, TR_DIMS(6), q, compress));
        assert_ok(tr_h5_write(f, "none", TR_F32, TR_DIMS(0, 3), NULL, compress));
        assert_ok(tr_h5_write_words(f, "words", words, 3));
        assert_ok(tr_h5_set_text(f, "/", "name", "grüß"));
        assert_ok(tr_h5_set_text(f, "/", "name", "again"));
        assert_ok(tr_h5_set_real(f, "/", "lr", 1e-3));
        assert_ok(tr_h5_set_int(f, "grad", "steps", 20));
        assert_ok(tr_h5_close(f));

        assert_ok(tr_h5_open(&f, path));
        enum tr_dtype type;
        int ndim;
        int64_t dim[4];
        assert_ok(tr_h5_info(f, "grad/model.layers.0.weight", &type, &ndim, dim));
        assert_true(type == TR_F32 && ndim == 2 && dim[0] == 2 && dim[1] == 3);
        assert_ok(tr_h5_read(f, "grad/model.layers.0.weight", TR_F32, y));
        assert_memory_equal(x, y, sizeof x);
        assert_ok(tr_h5_read_rows(f, "grad/model.layers.0.weight", TR_F64, 1, 1, e));
        assert_true(isinf(e[0]) && e[1] == 5 && e[2] == 1e-30f);
        assert_ok(tr_h5_read(f, "grad/model.layers.0.weight", TR_BF16, c));
        assert_true(c[0] == 0x3f80 && c[1] == 0xc020 && c[3] == 0x7f80);
        assert_ok(tr_h5_info(f, "b", &type, &ndim, dim));
        assert_true(type == TR_BF16 && ndim == 2);
        assert_ok(tr_h5_read(f, "b", TR_BF16, c));
        assert_memory_equal(b, c, sizeof b);
        assert_ok(tr_h5_read(f, "b", TR_F32, y));
        assert_true(y[0] == 1 && y[1] == -2.5f && isinf(y[3]));
        assert_ok(tr_h5_info(f, "h", &type, &ndim, dim));
        assert_int_equal(type, TR_F16);
        assert_ok(tr_h5_read(f, "h", TR_F16, c));
        assert_memory_equal(b, c, 4);
        assert_ok(tr_h5_read(f, "h", TR_F32, y));
        assert_true(y[0] == 1.875f);
        assert_ok(tr_h5_info(f, "tokens", &type, &ndim, dim));
        assert_true(type == TR_I32 && ndim == 3 && dim[2] == 3);
        assert_ok(tr_h5_read(f, "tokens", TR_I32, u));
        assert_memory_equal(tokens, u, sizeof u);
        assert_ok(tr_h5_info(f, "q", &type, &ndim, dim));
        assert_int_equal(type, TR_INT8);
        assert_ok(tr_h5_read(f, "q", TR_INT8, p));
        assert_memory_equal(q, p, sizeof p);
        assert_ok(tr_h5_info(f, "none", &type, &ndim, dim));
        assert_ok(tr_h5_read(f, "none", TR_F32, NULL));
        assert_ok(tr_h5_read_words(f, "words", more, 3));
        assert_memory_equal(words, more, sizeof more);

        char *text;
        double real;
        assert_ok(tr_h5_attr_text(f, "/", "name", &text));
        assert_string_equal(text, "again");
        free(text);
        assert_ok(tr_h5_attr_real(f, "/", "lr", &real));
        assert_true(real == 1e-3);
        assert_ok(tr_h5_attr_real(f, "grad", "steps", &real));
        assert_true(real == 20);
        assert_true(tr_h5_has(f, "grad/model.layers.0.weight") && !tr_h5_has(f, "grad/no/way") && !tr_h5_has(f, "loss/x"));
        assert_true(tr_h5_has_attr(f, "/", "lr") && !tr_h5_has_attr(f, "/", "rl") && !tr_h5_has_attr(f, "gone", "lr"));
        struct tr_buf names = { 0 };
        assert_ok(tr_h5_list(f, "/", collect, &names));
        assert_ok(tr_h5_attrs(f, "/", collect_attr, &names));
        assert_string_equal(names.data, "b grad/ h loss none q tokens words lr name ");
        tr_buf_release(&names);
        assert_int_equal(tr_h5_list(f, "/", stop, NULL), TR_EBUDGET);
        assert_ok(tr_h5_close(f));
    }
    free(path);
}

/* Each of them TR_EINPUT with the file's and the thing's name. */
static void wrong_use(void **state)
{
    char *path = path_of("wrong.h5"), *text;
    struct tr_h5 *f;
    float x[6] = { 0 };
    double real;
    uint64_t words[4];
    enum tr_dtype type;
    int ndim;
    int64_t dim[4];
    assert_ok(tr_h5_create(&f, path));
    assert_ok(tr_h5_write(f, "real", TR_F32, TR_DIMS(2, 3), x, false));
    assert_ok(tr_h5_set_real(f, "/", "number", 1));
    assert_ok(tr_h5_set_text(f, "/", "text", "word"));
    assert_ok(tr_h5_write(f, "group/x", TR_F32, TR_DIMS(1), x, false));
    assert_ok(tr_h5_close(f));
    assert_ok(tr_h5_open(&f, path));
    assert_int_equal(tr_h5_read(f, "missing", TR_F32, x), TR_EINPUT);
    assert_message("missing");
    assert_message("wrong.h5");
    assert_int_equal(tr_h5_read(f, "missing/deeper", TR_F32, x), TR_EINPUT);
    assert_int_equal(tr_h5_read(f, "group", TR_F32, x), TR_EINPUT);
    assert_int_equal(tr_h5_read(f, "real", TR_I32, x), TR_EINPUT);
    assert_message("whole");
    assert_int_equal(tr_h5_read_rows(f, "real", TR_F32, 1, 2, x), TR_EINPUT);
    assert_int_equal(tr_h5_read_rows(f, "real", TR_F32, -1, 1, x), TR_EINPUT);
    assert_int_equal(tr_h5_read_rows(f, "real", TR_F32, INT64_MAX, INT64_MAX, x), TR_EINPUT);
    assert_int_equal(tr_h5_read_words(f, "real", words, 2), TR_EINPUT);
    assert_int_equal(tr_h5_attr_text(f, "/", "number", &text), TR_EINPUT);
    assert_int_equal(tr_h5_attr_text(f, "/", "gone", &text), TR_EINPUT);
    assert_message("gone");
    assert_int_equal(tr_h5_attr_real(f, "/", "text", &real), TR_EINPUT);
    assert_int_equal(tr_h5_attr_real(f, "nothing", "text", &real), TR_EINPUT);
    assert_int_equal(tr_h5_list(f, "real", collect, NULL), TR_EINPUT);
    assert_int_equal(tr_h5_list(f, "nothing", collect, NULL), TR_EINPUT);
    assert_ok(tr_h5_close(f));
    assert_ok(tr_h5_close(NULL));
    free(path);

    path = path_of("gone.h5");
    assert_int_equal(tr_h5_open(&f, path), TR_EINPUT);
    assert_message("No such file");
    assert_null(f);
    free(path);
    assert_int_equal(tr_h5_open(&f, test_folder()), TR_EINPUT);
    assert_message("folder");
    path = path_of("no/such/folder.h5");
    assert_int_equal(tr_h5_create(&f, path), TR_EFAIL);
    assert_message("No such file");
    free(path);
    path = path_of("text.h5");
    FILE *t = fopen(path, "w");
    fputs("this is not HDF5", t);
    fclose(t);
    assert_int_equal(tr_h5_open(&f, path), TR_EINPUT);
    assert_message("not an HDF5");
    free(path);
    (void)type, (void)ndim, (void)dim;
}

/* Datasets that HDF5 itself would open without a word. */
static void hostile(void **state)
{
    char *path = path_of("hostile.h5"), *other = path_of("secret.bin");
    struct tr_h5 *f;
    assert_ok(tr_h5_create(&f, path)); /* switches HDF5's printing off */
    assert_ok(tr_h5_close(f));
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hsize_t five[5] = { 1, 1, 1, 1, 1 }, one = 4, bomb[2] = { (hsize_t)1 << 40, 1 << 20 }, over[2] = { (hsize_t)1 << 40, (hsize_t)1 << 40 };
    hsize_t chunk[2] = { 16, 16 };
    hid_t plist = H5Pcreate(H5P_DATASET_CREATE), space;
    FILE *s = fopen(other, "w");
    fputs("0123456789abcdef", s);
    fclose(s);
    H5Pset_external(plist, other, 0, 16);
    space = H5Screate_simple(1, &one, NULL);
    H5Dclose(H5Dcreate2(file, "external", H5T_STD_I32LE, space, H5P_DEFAULT, plist, H5P_DEFAULT));
    H5Dclose(H5Dcreate2(file, "unwritten", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    hid_t string = H5Tcopy(H5T_C_S1);
    H5Tset_size(string, 8);
    H5Dclose(H5Dcreate2(file, "string", string, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Dclose(H5Dcreate2(file, "null", H5T_STD_I32LE, H5Screate(H5S_NULL), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    space = H5Screate_simple(5, five, NULL);
    H5Dclose(H5Dcreate2(file, "rank5", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(plist, 2, chunk);
    H5Dclose(H5Dcreate2(file, "bomb", H5T_STD_I32LE, H5Screate_simple(2, bomb, NULL), H5P_DEFAULT, plist, H5P_DEFAULT));
    hid_t big = H5Dcreate2(file, "overflow", H5T_STD_I32LE, H5Screate_simple(2, over, NULL), H5P_DEFAULT, plist, H5P_DEFAULT);
    if (big >= 0) H5Dclose(big);
    H5Pset_scaleoffset(plist, H5Z_SO_INT, 0);
    hsize_t some[2] = { 64, 64 };
    H5Dclose(H5Dcreate2(file, "scaleoffset", H5T_STD_I32LE, H5Screate_simple(2, some, NULL), H5P_DEFAULT, plist, H5P_DEFAULT));
    H5Lcreate_external(path, "unwritten", file, "outside", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/soft", file, "soft", H5P_DEFAULT, H5P_DEFAULT);
    H5Gclose(H5Gcreate2(file, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Lcreate_hard(file, "g", file, "g/again", H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file);

    assert_ok(tr_h5_open(&f, path));
    static const char *const names[] = { "external", "unwritten", "string", "null", "rank5", "bomb", "overflow", "scaleoffset", "outside", "soft", "g", "g/again" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        enum tr_dtype type;
        int ndim, rc;
        int64_t dim[4];
        if ((rc = tr_h5_info(f, names[i], &type, &ndim, dim)) != TR_EINPUT) fail_msg("%s: %d", names[i], rc);
        assert_message(names[i]);
        int32_t one_row[4];
        assert_int_equal(tr_h5_read_rows(f, names[i], TR_I32, 0, 0, one_row), TR_EINPUT);
    }
    assert_ok(tr_h5_close(f));
    free(path);
    free(other);
}

static void truncated(void **state)
{
    char *path = path_of("whole.h5"), *cut = path_of("cut.h5");
    struct tr_h5 *f;
    float x[1000], y[1000];
    test_normal(x, 1000, 1, 1);
    assert_ok(tr_h5_create(&f, path));
    assert_ok(tr_h5_write(f, "a/x", TR_F32, TR_DIMS(10, 100), x, false));
    assert_ok(tr_h5_write(f, "z", TR_F32, TR_DIMS(10, 100), x, true));
    assert_ok(tr_h5_close(f));
    struct tr_buf b = { 0 };
    assert_ok(tr_read_file(&b, path));
    for (size_t n = 0; n < b.size; n += n < 100 ? 7 : 97) {
        FILE *t = fopen(cut, "wb");
        assert_int_equal(fwrite(b.data, 1, n, t), n);
        fclose(t);
        assert_int_equal(tr_h5_open(&f, cut), TR_EINPUT);
        assert_message("cut.h5");
    }
    assert_ok(tr_h5_open(&f, path));
    assert_ok(tr_h5_read(f, "z", TR_F32, y));
    assert_memory_equal(x, y, sizeof x);
    assert_ok(tr_h5_close(f));
    tr_buf_release(&b);
    free(path);
    free(cut);
}

static struct tr_h5 *walked;

static int read_it(void *self, const char *name, bool is_group)
{
    enum tr_dtype type;
    int ndim;
    int64_t dim[4], n = 1;
    double *x;
    char *path;
    assert_ok(tr_path_join(&path, self, name));
    if (is_group && strlen(path) < 40) (void)tr_h5_list(walked, path, read_it, path);
    if (!is_group && tr_h5_info(walked, path, &type, &ndim, dim) == TR_OK) {
        for (int i = 0; i < ndim; i++) n *= dim[i];
        assert_true(n < 1 << 26); /* info promises that what it tells can be allocated */
        assert_non_null(x = malloc((size_t)n * 8 + 8));
        (void)tr_h5_read(walked, path, TR_F64, x);
        free(x);
    }
    free(path);
    return TR_OK;
}

/* Flipped bytes: numbers or an error, but HDF5's crashes and endless loops stay outside. */
static void flipped(void **state)
{
    char *path = path_of("flip.h5");
    struct tr_h5 *f;
    struct tr_buf b = { 0 };
    float x[1000];
    test_normal(x, 1000, 1, 1);
    assert_ok(tr_h5_create(&f, path));
    assert_ok(tr_h5_write(f, "a/x", TR_F32, TR_DIMS(10, 100), x, false));
    assert_ok(tr_h5_write(f, "z", TR_F32, TR_DIMS(10, 100), x, true));
    assert_ok(tr_h5_set_text(f, "a/x", "dtype", "f32"));
    assert_ok(tr_h5_close(f));
    assert_ok(tr_read_file(&b, path));
    for (uint64_t i = 0; i < 300; i++) {
        struct tr_key key = tr_key(1, TR_RNG_SAMPLE, 0, i);
        size_t at = tr_below(key, 0, b.size);
        char old = b.data[at];
        b.data[at] = (char)tr_below(key, 1, 256);
        FILE *t = fopen(path, "wb");
        fwrite(b.data, 1, b.size, t);
        fclose(t);
        if (tr_h5_open(&walked, path) == TR_OK) {
            (void)tr_h5_list(walked, "/", read_it, "/");
            assert_ok(tr_h5_close(walked));
        }
        b.data[at] = old;
    }
    tr_buf_release(&b);
    free(path);
}

/* Writes come through here: from call `writes_left` on each one fails while `disk_full` says so. */
static bool disk_full;
static int64_t writes_left;
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at)
{
    if (disk_full && writes_left-- <= 0) return errno = ENOSPC, -1;
    return syscall(SYS_pwrite64, fd, bytes, n, at);
}

/* Four tensors into a file; the first failure. */
static int write_some(const char *path, const float *x)
{
    struct tr_h5 *f = NULL;
    int rc = tr_h5_create(&f, path), last = rc;
    for (int i = 0; f && i < 4; i++) {
        char name[32];
        snprintf(name, sizeof name, "group%d/x", i);
        last = tr_h5_write(f, name, TR_F32, TR_DIMS(256, 256), x, i % 2);
        if (rc != TR_OK && last != TR_EFAIL) _exit(10); /* once failed, always failed */
        if (last != TR_OK) rc = last;
        last = tr_h5_set_text(f, name, "dtype", "f32");
        if (last != TR_OK) rc = last;
    }
    last = f ? tr_h5_close(f) : rc;
    return rc ? rc : last;
}

static void works_afterwards(const char *path, float *x)
{
    struct tr_h5 *f;
    if (tr_h5_create(&f, path) || tr_h5_write(f, "x", TR_F32, TR_DIMS(256), x, true) || tr_h5_close(f)) _exit(14);
    if (tr_h5_open(&f, path) || tr_h5_read(f, "x", TR_F32, x) || tr_h5_close(f)) _exit(15);
    H5close(); /* what the library does at exit */
    _exit(0);
}

/* From each write on, all fail: also those into gaps of a file that has grown beyond them. */
static void failing_writes(void **state)
{
    char *path = path_of("failing.h5"), *after = path_of("after.h5");
    float *x = calloc(1 << 16, 4);
    test_normal(x, 1 << 16, 1, 1);
    int status = 0;
    int64_t n = 0;
    for (; n < 1000; n++) {
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            disk_full = true;
            writes_left = n;
            int rc = write_some(path, x);
            if (rc == TR_OK && writes_left >= 0) _exit(99); /* all calls were tried */
            if (rc != TR_EFAIL || !strstr(tr_message(), "failing.h5") || !strstr(tr_message(), "No space left")) _exit(13);
            disk_full = false;
            works_afterwards(after, x);
        }
        waitpid(child, &status, 0);
        if (status) break;
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 99) fail_msg("write %ld: status %x", (long)n, status);
    assert_true(n > 4);
    free(x);
    free(path);
    free(after);
}

/* The disk fills up at every possible place: an error, and a library that still works afterwards. */
static void full_disk(void **state)
{
    char *path = path_of("full.h5"), *after = path_of("after.h5");
    float *x = calloc(1 << 16, 4);
    test_normal(x, 1 << 16, 1, 1);
    for (rlim_t limit = 0; limit < (1 << 19); limit += limit < 8192 ? 500 : 40000) {
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            signal(SIGXFSZ, SIG_IGN);
            struct rlimit r, small;
            getrlimit(RLIMIT_FSIZE, &r);
            small = (struct rlimit){ limit, r.rlim_max };
            setrlimit(RLIMIT_FSIZE, &small);
            int rc = write_some(path, x);
            if (rc != TR_EFAIL) _exit(12);
            if (!strstr(tr_message(), "full.h5") || (!strstr(tr_message(), "File too large"))) { fprintf(stderr, "%s\n", tr_message()); _exit(13); }
            setrlimit(RLIMIT_FSIZE, &r);
            works_afterwards(after, x);
        }
        int status;
        waitpid(child, &status, 0);
        if (status) fail_msg("limit %ld: status %x", (long)limit, status);
    }
    free(x);
    free(path);
    free(after);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip), cmocka_unit_test(wrong_use), cmocka_unit_test(hostile),
        cmocka_unit_test(truncated), cmocka_unit_test(flipped), cmocka_unit_test(failing_writes), cmocka_unit_test(full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
