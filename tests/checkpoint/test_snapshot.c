/* Snapshots: the same bits come back, and no damage, kill or full disk costs more than the newest of them. */
#include "tests/support/support.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/rng.h"
#include "libtrain/tensor/tensor.h"
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* One of each kind: a matrix of several parts, a bf16 row view into a wider stack, int8 with scales, a cube, a long vector. */
enum { MATRIX, STACK, QUANT, CUBE, VECTOR, N_TENSORS, N_SCALES = 40 * 3 };
struct state {
    struct tr_tensor own[N_TENSORS], view;
    uint64_t words[3], more[1];
    bool extra;              /* lists one word more */
};

static const char *const names[N_TENSORS] = { "param/model.embed_tokens.weight", "param/model.layers.0.self_attn.k_proj.weight",
    "param/model.layers.0.mlp.up_proj.weight", "optimizer/cube/m", "optimizer/vector/m" };

static void state_init(struct state *s)
{
    memset(s, 0, sizeof *s);
    assert_ok(tr_tensor_new(&s->own[MATRIX], TR_WEIGHTS, TR_F32, TR_DIMS(3000, 130)));
    assert_ok(tr_tensor_new(&s->own[STACK], TR_WEIGHTS, TR_BF16, TR_DIMS(60, 48)));
    assert_ok(tr_tensor_new(&s->own[QUANT], TR_WEIGHTS, TR_INT8, TR_DIMS(40, 300)));
    assert_ok(tr_tensor_new(&s->own[CUBE], TR_OPTIMIZER, TR_F32, TR_DIMS(4, 5, 6)));
    assert_ok(tr_tensor_new(&s->own[VECTOR], TR_OPTIMIZER, TR_F32, TR_DIMS(300000)));
    s->view = tr_rows_view(&s->own[STACK], 20, 30);
    s->view = tr_cols_view(&s->view, 8, 33); /* rows of 33 within 48 */
}

static void state_release(struct state *s)
{
    for (int i = 0; i < N_TENSORS; i++) tr_tensor_release(&s->own[i]);
}

/* Bytes that follow from the step. Host memory here, so they are written directly. */
static void state_fill(struct state *s, int64_t step)
{
    for (int i = 0; i < N_TENSORS; i++) {
        unsigned char *p = s->own[i].data;
        uint32_t x = (uint32_t)(step * 977 + i * 31 + 1);
        for (size_t k = 0; k < tr_bytes(&s->own[i]); k++) p[k] = (unsigned char)((x = x * 1664525u + 1013904223u) >> 24);
    }
    for (int i = 0; i < N_SCALES; i++) s->own[QUANT].quant.scale[i] = (float)(step + i), s->own[QUANT].quant.zero[i] = (int8_t)(i - step);
    for (int i = 0; i < 3; i++) s->words[i] = UINT64_MAX - (uint64_t)(step * 3 + i);
}

static int visit(void *self, struct tr_visitor *v)
{
    struct state *s = self;
    for (int i = 0; i < N_TENSORS; i++) TR_TRY(v->tensor(v->self, names[i], i == STACK ? &s->view : &s->own[i]));
    TR_TRY(v->words(v->self, "run/position", s->words, 3));
    return s->extra ? v->words(v->self, "run/more", s->more, 1) : TR_OK;
}

/* What a snapshot restores is what state_fill(step) writes; the stack around the view is untouched. */
static void assert_is_step(const struct state *s, int64_t step)
{
    struct state want;
    state_init(&want);
    state_fill(&want, step);
    for (int i = 0; i < N_TENSORS; i++) {
        if (i == STACK)
            for (int r = 0; r < 30; r++)
                assert_memory_equal((uint16_t *)s->view.data + r * 48, (uint16_t *)want.view.data + r * 48, 66);
        else assert_memory_equal(s->own[i].data, want.own[i].data, tr_bytes(&want.own[i]));
    }
    assert_memory_equal(s->own[QUANT].quant.scale, want.own[QUANT].quant.scale, tr_quant_bytes(&s->own[QUANT]));
    assert_memory_equal(s->words, want.words, sizeof want.words);
    state_release(&want);
}

static char *run_folder(void)
{
    static int n;
    struct tr_buf b = { 0 };
    assert_ok(tr_buf_printf(&b, "%s/run%d", test_folder(), n++));
    return b.data;
}

static void assert_message(const char *part)
{
    if (!strstr(tr_message(), part)) fail_msg("'%s' is not in: %s", part, tr_message());
}

static int count_files(const char *folder, bool hidden)
{
    char *path;
    int n = 0;
    assert_ok(tr_path_join(&path, folder, "snapshots"));
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d)); )
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) n += (e->d_name[0] == '.') == hidden;
    if (d) closedir(d);
    free(path);
    return n;
}

static void overwrite(const char *path, const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void round_trip(void **state)
{
    struct state s;
    state_init(&s);
    for (int compress = 0; compress < 2; compress++) {
        char *folder = run_folder(), *path;
        int64_t step = -1;
        size_t before = tr_mem_ledger().total;
        tr_mem_reset_peak();
        state_fill(&s, 7);
        assert_ok(ckpt_save(folder, 7, visit, &s, "[model]\npath = x\n", 0, compress));
        assert_int_equal(tr_mem_ledger().total, before);
        assert_true(tr_mem_ledger().peak - before <= 2 * CKPT_PART); /* large tensors pass in parts */
        assert_int_equal(count_files(folder, true), 0);
        state_fill(&s, 8);
        assert_ok(ckpt_load(folder, &step, visit, &s));
        assert_int_equal(step, 7);
        assert_is_step(&s, 7);
        state_fill(&s, 8);
        assert_ok(ckpt_newest(&path, &step, folder));
        assert_ok(ckpt_load(path, &step, visit, &s));
        assert_is_step(&s, 7);

        state_fill(&s, 9);
        uint64_t word = s.words[0];
        assert_ok(ckpt_load_some(path, &step, visit, &s, "param/"));
        assert_true(s.words[0] == word); /* not of the prefix: kept */
        char *text = NULL;
        size_t size;
        FILE *out = open_memstream(&text, &size);
        assert_ok(ckpt_inspect(out, path, true));
        fclose(out);
        assert_non_null(strstr(text, "after step 7"));
        assert_non_null(strstr(text, "bf16   [30, 33]"));
        assert_non_null(strstr(text, "run/position"));
        assert_non_null(strstr(text, "path = x"));
        assert_null(strstr(text, "DAMAGED"));
        free(text);
        free(path);
        free(folder);
    }
    state_release(&s);
    assert_int_equal(tr_mem_ledger().total, 0);
}

static void of_another_model(void **state)
{
    struct state s, t;
    char *folder = run_folder();
    int64_t step;
    state_init(&s);
    state_init(&t);
    state_fill(&s, 1);
    state_fill(&t, 2);
    assert_ok(ckpt_save(folder, 1, visit, &s, NULL, 0, 0));
    struct tr_tensor kept = t.own[CUBE];
    t.own[CUBE] = tr_reshape(&kept, TR_DIMS(5, 4, 6));
    assert_int_equal(ckpt_load(folder, &step, visit, &t), TR_EINPUT);
    assert_message("'optimizer/cube/m' is f32 [5, 4, 6] here and f32 [4, 5, 6] there");
    t.own[CUBE] = tr_reshape(&kept, TR_DIMS(120));
    assert_int_equal(ckpt_load(folder, &step, visit, &t), TR_EINPUT);
    t.own[CUBE] = kept;
    t.own[CUBE].dtype = TR_I32;
    assert_int_equal(ckpt_load(folder, &step, visit, &t), TR_EINPUT);
    assert_message("i32 [4, 5, 6]");
    t.own[CUBE] = kept;
    t.own[QUANT].quant.group = 65;
    assert_int_equal(ckpt_load(folder, &step, visit, &t), TR_EINPUT);
    assert_message("groups of 65");
    t.own[QUANT].quant.group = TR_QUANT_GROUP;
    t.extra = true;
    assert_int_equal(ckpt_load(folder, &step, visit, &t), TR_EINPUT);
    assert_message("'run/more' is 1 words here and missing there");
    assert_is_step(&t, 2); /* nothing was overwritten */
    assert_ok(ckpt_save(folder, 3, visit, &t, NULL, 0, 0));
    assert_int_equal(ckpt_load(folder, &step, visit, &s), TR_EINPUT);
    assert_message("'run/more' is unknown here");
    assert_is_step(&s, 1);
    state_release(&s);
    state_release(&t);
    free(folder);
}

static void newest_and_keep(void **state)
{
    struct state s;
    char *folder = run_folder(), *path = NULL, *file;
    int64_t step = -1;
    state_init(&s);
    assert_int_equal(ckpt_newest(&path, &step, folder), TR_EINPUT);
    assert_message("no snapshot");
    for (int64_t i = 10; i <= 50; i += 10) {
        state_fill(&s, i);
        assert_ok(ckpt_save(folder, i, visit, &s, NULL, 3, 0));
    }
    assert_int_equal(count_files(folder, false), 3);
    assert_ok(ckpt_save(folder, 5, visit, &s, NULL, 3, 0)); /* older than all, but just written */
    assert_int_equal(count_files(folder, false), 4);
    for (int64_t i = 50; i >= 30; i -= 10) { /* damage the newest, then the next, ... */
        assert_ok(ckpt_newest(&path, &step, folder));
        assert_int_equal(step, i);
        free(path);
        assert_ok(ckpt_load(folder, &step, visit, &s));
        assert_is_step(&s, i);
        assert_ok(ckpt_file_path(&file, folder, i));
        overwrite(file, "", 0);
        assert_int_equal(ckpt_load(file, &step, visit, &s), TR_EDAMAGED);
        free(file);
    }
    assert_ok(ckpt_newest(&path, &step, folder));
    assert_int_equal(step, 5);
    overwrite(path, "rubbish", 7);
    free(path);
    assert_int_equal(ckpt_newest(&path, &step, folder), TR_EDAMAGED);
    assert_null(path);
    assert_int_equal(ckpt_load(folder, &step, visit, &s), TR_EDAMAGED);
    assert_int_equal(ckpt_load("/nowhere/step-00000001.h5", &step, visit, &s), TR_EINPUT);
    assert_int_equal(ckpt_load("/etc/passwd", &step, visit, &s), TR_EINPUT);
    state_release(&s);
    free(folder);
}

/* Every cut and every flipped bit is noticed before HDF5 sees the file. */
static void damage(void **state)
{
    struct state s;
    char *folder = run_folder(), *path;
    int64_t step;
    struct tr_buf b = { 0 };
    state_init(&s);
    state_fill(&s, 1);
    assert_ok(ckpt_save(folder, 1, visit, &s, "recipe", 0, 1));
    assert_ok(ckpt_newest(&path, &step, folder));
    assert_ok(tr_read_file(&b, path));
    state_fill(&s, 2);
    for (size_t n = 0; n < b.size; n = n < 1000 ? n + 37 : n * 5 / 4) {
        overwrite(path, b.data, n);
        assert_int_equal(ckpt_load(path, &step, visit, &s), TR_EDAMAGED);
        assert_message(path);
    }
    overwrite(path, b.data, b.size - 1);
    assert_int_equal(ckpt_load(path, &step, visit, &s), TR_EDAMAGED);
    FILE *f = fopen(path, "wb");
    fwrite(b.data, 1, b.size, f);
    fputc(0, f);
    fclose(f);
    assert_int_equal(ckpt_load(path, &step, visit, &s), TR_EDAMAGED);
    overwrite(path, b.data, b.size);
    f = fopen(path, "r+b");
    setvbuf(f, NULL, _IONBF, 0);
    for (size_t at = 0; at < b.size; at = at < 600 ? at + 1 : at + b.size / 150) {
        char flipped = (char)(b.data[at] ^ (1 << at % 8));
        fseek(f, (long)at, SEEK_SET);
        fwrite(&flipped, 1, 1, f);
        assert_int_equal(ckpt_load(path, &step, visit, &s), TR_EDAMAGED);
        fseek(f, (long)at, SEEK_SET);
        fwrite(b.data + at, 1, 1, f);
    }
    fclose(f);
    assert_is_step(&s, 2);
    assert_ok(ckpt_load(path, &step, visit, &s));
    assert_is_step(&s, 1);
    tr_buf_release(&b);
    state_release(&s);
    free(path);
    free(folder);
}

/* A tensor's own checksum: bytes that change although the file's checksum was made to hold. */
static void resealed(void **state)
{
    struct state s;
    char *folder = run_folder(), *path;
    int64_t step;
    struct tr_buf b = { 0 };
    state_init(&s);
    state_fill(&s, 1);
    assert_ok(ckpt_save(folder, 1, visit, &s, "recipe", 0, 0));
    assert_ok(ckpt_newest(&path, &step, folder));
    assert_ok(tr_read_file(&b, path));
    char *at = memmem(b.data, b.size, s.own[CUBE].data, 64);
    assert_non_null(at);
    *at ^= 1;
    overwrite(path, b.data, b.size);
    FILE *f = fopen(path, "r+b");
    assert_ok(ckpt_file_seal(f, path));
    fclose(f);
    assert_ok(ckpt_file_verify(path));
    assert_int_equal(ckpt_load(path, &step, visit, &s), TR_EDAMAGED);
    assert_message("'optimizer/cube/m'");
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    assert_ok(ckpt_inspect(out, path, true));
    fclose(out);
    assert_non_null(strstr(text, "optimizer/cube/m  DAMAGED"));
    free(text);
    tr_buf_release(&b);
    state_release(&s);
    free(path);
    free(folder);
}

/* Killed at any moment while it saves step after step: the newest is whole, not older than the last one announced, and
 * the next save clears away what was left. */
static void killed(void **state)
{
    struct state s;
    char *folder = run_folder();
    int64_t step, last = 0;
    state_init(&s);
    for (int round = 0; round < 12; round++) {
        int pipes[2];
        assert_int_equal(pipe(pipes), 0);
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            for (int64_t i = last + 1;; i++) {
                state_fill(&s, i);
                if (ckpt_save(folder, i, visit, &s, NULL, 2, round % 2) != TR_OK) _exit(1);
                if (write(pipes[1], &i, sizeof i) != sizeof i) _exit(1);
            }
        }
        close(pipes[1]);
        int64_t said = 0, more;
        assert_int_equal(read(pipes[0], &said, sizeof said), sizeof said);
        struct timespec pause = { 0, (long)tr_below(tr_key(1, TR_RNG_SAMPLE, 0, 0), (uint64_t)round, 60000000) };
        nanosleep(&pause, NULL);
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status));
        while (read(pipes[0], &more, sizeof more) == sizeof more) said = more;
        close(pipes[0]);
        assert_ok(ckpt_load(folder, &step, visit, &s));
        assert_true(step >= said && step <= said + 1);
        assert_is_step(&s, step);
        last = step;
    }
    assert_ok(ckpt_save(folder, last + 1, visit, &s, NULL, 2, 0));
    assert_int_equal(count_files(folder, true), 0);
    assert_int_equal(count_files(folder, false), 2);
    state_release(&s);
    free(folder);
}

static void full_disk(void **state)
{
    struct state s;
    char *folder = run_folder();
    int64_t step;
    state_init(&s);
    state_fill(&s, 1);
    assert_ok(ckpt_save(folder, 1, visit, &s, NULL, 1, 0));
    for (rlim_t limit = 0; limit < 2600000; limit += limit < 4096 ? 512 : 130000) {
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            struct rlimit r;
            signal(SIGXFSZ, SIG_IGN);
            getrlimit(RLIMIT_FSIZE, &r);
            rlim_t old = r.rlim_cur;
            r.rlim_cur = limit;
            setrlimit(RLIMIT_FSIZE, &r);
            state_fill(&s, 2);
            if (ckpt_save(folder, 2, visit, &s, NULL, 1, 0) != TR_EFAIL) _exit(1);
            if (!strstr(tr_message(), "File too large") || !strstr(tr_message(), "step-00000002")) _exit(2);
            r.rlim_cur = old;
            setrlimit(RLIMIT_FSIZE, &r);
            if (ckpt_save(folder, 0, visit, &s, NULL, 0, 0) != TR_OK) _exit(3); /* HDF5 still works */
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        if (status) fail_msg("limit %ld: status %x", (long)limit, status);
        assert_int_equal(count_files(folder, true), 0);
        assert_ok(ckpt_load(folder, &step, visit, &s));
        assert_int_equal(step, 1);
        assert_is_step(&s, 1);
    }
    state_release(&s);
    free(folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip), cmocka_unit_test(of_another_model), cmocka_unit_test(newest_and_keep),
        cmocka_unit_test(damage), cmocka_unit_test(resealed), cmocka_unit_test(killed), cmocka_unit_test(full_disk),
    };
    tr_log_quiet(true);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
