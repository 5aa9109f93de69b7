/* Snapshots in memory: what is copied is the state of one step whatever changes meanwhile; a version is complete on all ranks or
 * counts for nothing; what the ranks leave behind is found, checked, and written to disk by the keeper. */
#include "tests/support/support.h"
#include "checkpoint/capture.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/file.h"
#include "checkpoint/keeper.h"
#include "checkpoint/source.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/rng.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a state in three groups, as a run lists it whole and by ranks */

enum { MATRIX, QUANT, STACK, CUBE, VECTOR, N_TENSORS, GROUPS = 3 };
static const struct { const char *name; int64_t group; } item[N_TENSORS] = { { "param/a", 0 }, { "param/b", 1 }, { "param/c", 2 }, { "optimizer/a/m", 0 }, { "optimizer/b/v", 1 } };
struct state { struct tr_tensor own[N_TENSORS], view; uint64_t words[2], t; bool dies; };

static struct tr_tensor *tensor(struct state *s, int i) { return i == STACK ? &s->view : &s->own[i]; }

static void state_init(struct state *s)
{
    memset(s, 0, sizeof *s);
    assert_ok(tr_tensor_new(&s->own[MATRIX], TR_WEIGHTS, TR_F32, TR_DIMS(3001, 130)));
    assert_ok(tr_tensor_new(&s->own[QUANT], TR_WEIGHTS, TR_INT8, TR_DIMS(41, 300)));
    assert_ok(tr_tensor_new(&s->own[STACK], TR_WEIGHTS, TR_BF16, TR_DIMS(60, 48)));
    assert_ok(tr_tensor_new(&s->own[CUBE], TR_OPTIMIZER, TR_F32, TR_DIMS(4, 5, 6)));
    assert_ok(tr_tensor_new(&s->own[VECTOR], TR_OPTIMIZER, TR_F32, TR_DIMS(30001)));
    s->view = tr_rows_view(&s->own[STACK], 20, 30);
    s->view = tr_cols_view(&s->view, 8, 33); /* rows of 33 within 48 */
}

static void state_release(struct state *s)
{
    for (int i = 0; i < N_TENSORS; i++) tr_tensor_release(&s->own[i]);
}

static void fill_tensor(struct state *s, int i, int64_t step)
{
    struct tr_tensor *t = &s->own[i];
    unsigned char *p = t->data;
    uint32_t x = (uint32_t)(step * 977 + i * 31 + 1);
    for (size_t k = 0; k < tr_bytes(t); k++) p[k] = (unsigned char)((x = x * 1664525u + 1013904223u) >> 24);
    for (int64_t k = 0; t->quant.scale && k < tr_rows(t) * tr_groups(t); k++) t->quant.scale[k] = (float)(step + k);
}

/* The state after `step`, changed as an update does it: behind the gates, last group first. */
static void change(struct state *s, struct ckpt_capture *c, int64_t step)
{
    for (int64_t g = GROUPS - 1; g >= 0; g--) {
        ckpt_capture_gate(c, g);
        for (int i = 0; i < N_TENSORS; i++)
            if (item[i].group == g) fill_tensor(s, i, step);
        if (g == 1) s->t = (uint64_t)step;
    }
    s->words[0] = (uint64_t)step;
    s->words[1] = ~(uint64_t)step;
}

static int visit(void *self, struct tr_visitor *v)
{
    struct state *s = self;
    for (int i = 0; i < N_TENSORS; i++) TR_TRY(v->tensor(v->self, item[i].name, tensor(s, i)));
    TR_TRY(v->words(v->self, "optimizer/b/t", &s->t, 1));
    return v->words(v->self, "run/position", s->words, 2);
}

static int owned(void *self, const struct tr_owned *v)
{
    struct state *s = self;
    if (s->dies && v->rank > 0) raise(SIGKILL);
    for (int64_t g = 0; g < GROUPS; g++)
        for (int i = 0; i < N_TENSORS; i++) {
            if (item[i].group != g) continue;
            TR_TRY(tr_owned_share(v, g, item[i].name, tensor(s, i)));
            if (i == VECTOR) TR_TRY(v->words(v->self, g, "optimizer/b/t", &s->t, v->rank == 0));
        }
    return v->words(v->self, GROUPS, "run/position", s->words, v->rank == 0 ? 2 : 0);
}

static bool is_step(struct state *s, int64_t step)
{
    struct state want;
    state_init(&want);
    change(&want, NULL, step);
    bool same = !memcmp(s->words, want.words, sizeof want.words) && s->t == want.t;
    for (int i = 0; i < N_TENSORS; i++) {
        if (i != STACK) same &= !memcmp(s->own[i].data, want.own[i].data, tr_bytes(&want.own[i]));
        for (int r = 0; i == STACK && r < 30; r++) same &= !memcmp((uint16_t *)s->view.data + r * 48, (uint16_t *)want.view.data + r * 48, 66);
    }
    same &= !memcmp(s->own[QUANT].quant.scale, want.own[QUANT].quant.scale, 41 * 3 * sizeof(float));
    state_release(&want);
    return same;
}

/* ---- ranks: processes that are forked, with collectives over memory that they share */

struct meeting { pthread_barrier_t barrier; char part[4][256]; };
static struct meeting *meeting;

static int meet_gather(struct tr_comm *c, const void *in, void *out, const size_t *n)
{
    char *to = out;
    memcpy(meeting->part[c->rank], in, n[c->rank]);
    pthread_barrier_wait(&meeting->barrier);
    for (int r = 0; r < c->size; to += n[r++]) memcpy(to, meeting->part[r], n[r]);
    pthread_barrier_wait(&meeting->barrier);
    return TR_OK;
}

static int meet_barrier(struct tr_comm *c) { return pthread_barrier_wait(&meeting->barrier), TR_OK; }
static const struct tr_comm_kind meet_kind = { "forked", NULL, meet_gather, meet_barrier };

static void call_meeting(int ranks)
{
    pthread_barrierattr_t a;
    meeting = mmap(NULL, sizeof *meeting, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(meeting != MAP_FAILED);
    pthread_barrierattr_init(&a);
    pthread_barrierattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&meeting->barrier, &a, (unsigned)ranks);
}

/* A run as one rank of it sees it. Fails by its exit status: it lives in a child. */
struct rank { struct tr_comm comm; struct state s; struct ckpt_capture *c; };
#define NEED(what) do { if (!(what)) { fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #what, tr_message()); _exit(1); } } while (0)

static int64_t begin_run(struct rank *k, const char *folder, int rank, int ranks)
{
    struct ckpt_shared *left = NULL;
    int64_t version = -1;
    k->comm = (struct tr_comm){ .kind = ranks > 1 ? &meet_kind : tr_comm_alone()->kind, .rank = rank, .size = ranks, .local = ranks, .doing = "" };
    state_init(&k->s);
    NEED(ckpt_capture_new(&k->c, &(struct ckpt_capture_setup){ .folder = folder, .nodes = { .sets.nodes = 1, .per = ranks, .comm = &k->comm }, .owned = owned, .self = &k->s, .groups = GROUPS, .recipe = "[model]\n", .keep = 2 }) == TR_OK);
    if (rank == 0) NEED(ckpt_shared_claim(&left, folder, 0) == TR_OK);
    if (left) version = ckpt_shared_newest(left, INT64_MAX);
    NEED(ckpt_capture_attach(k->c, left, &version) == TR_OK);
    if (version >= 0) {
        struct ckpt_source src;
        NEED(ckpt_source_memory(&src, ckpt_capture_shared(k->c), version, true) == TR_OK);
        NEED(ckpt_load_source(&src, NULL, visit, &k->s, NULL) == TR_OK);
        ckpt_source_release(&src);
        NEED(is_step(&k->s, version));
    }
    NEED(ckpt_capture_start(k->c, version < 0 ? 0 : version, version >= 0) == TR_OK);
    return version;
}

/* A step as a run makes it: the state changes behind the gates, the figures are added up, a version is begun. */
static void step(struct rank *k, int64_t n, bool to_disk)
{
    double sum;
    change(&k->s, k->c, n);
    ckpt_capture_settle(k->c);
    sum = ckpt_capture_say(k->c);
    NEED(tr_comm_sum(&k->comm, &sum, 1) == TR_OK);
    ckpt_capture_hear(k->c, sum);
    NEED(ckpt_capture_begin(k->c, n, to_disk) == TR_OK);
}

static pid_t start(void (*f)(const char *folder, int rank), const char *folder, int rank)
{
    fflush(NULL);
    pid_t child = fork();
    if (child) return child;
    f(folder, rank);
    _exit(0);
}

static void ends_well(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void is_killed(pid_t child)
{
    int status;
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
}

static char *run_folder(void)
{
    static int n;
    struct tr_buf b = { 0 };
    assert_ok(tr_buf_printf(&b, "%s/run%d", test_folder(), n++));
    assert_ok(tr_mkdirs(b.data));
    return b.data;
}

static bool has_memory(const char *folder)
{
    struct ckpt_shared *s;
    assert_ok(ckpt_shared_open(&s, folder, 0));
    ckpt_shared_close(s);
    return s != NULL;
}

static void wait_until_gone(const char *folder)
{
    for (int i = 0; i < 1000 && has_memory(folder); i++) usleep(10000);
    assert_false(has_memory(folder));
}

static void assert_file_is(const char *folder, int64_t want)
{
    struct state s;
    int64_t step = -1;
    state_init(&s);
    assert_ok(ckpt_load(folder, &step, visit, &s));
    assert_int_equal(step, want);
    assert_true(is_step(&s, want));
    state_release(&s);
}

/* ---- one rank */

static void same_file(const char *folder, struct rank *k, int64_t version)
{
    struct ckpt_image img;
    struct tr_buf a = { 0 }, b = { 0 };
    char path[700], other[600];
    snprintf(other, sizeof other, "%s/other", folder);
    NEED(ckpt_image_open(&img, ckpt_capture_shared(k->c), version) == TR_OK);
    NEED(ckpt_save_image(other, &img, "[model]\n", 0, 0) == TR_OK);
    ckpt_image_release(&img);
    snprintf(path, sizeof path, "%s/snapshots/step-%08d.h5", other, (int)version);
    NEED(tr_read_file(&a, path) == TR_OK);
    NEED(ckpt_save(other, version, visit, &k->s, "[model]\n", 0, 0) == TR_OK);
    NEED(tr_read_file(&b, path) == TR_OK);
    NEED(a.size == b.size && !memcmp(a.data, b.data, a.size)); /* a file does not show which way it was written */
    tr_buf_release(&a);
    tr_buf_release(&b);
}

static void run_alone(const char *folder, int rank)
{
    struct rank k;
    NEED(begin_run(&k, folder, 0, 1) == -1);
    for (int64_t n = 1; n <= 20; n++) {
        step(&k, n, n % 7 == 0);
        if (n % 3 == 0) continue; /* the next step changes at once what is still to be copied */
        ckpt_capture_settle(k.c);
        NEED(ckpt_shared_newest(ckpt_capture_shared(k.c), INT64_MAX) == n);
        NEED(n < 2 || ckpt_shared_newest(ckpt_capture_shared(k.c), n) >= 1);
        struct ckpt_source src;
        struct state s;
        state_init(&s);
        NEED(ckpt_source_memory(&src, ckpt_capture_shared(k.c), n, true) == TR_OK);
        NEED(ckpt_load_source(&src, NULL, visit, &s, NULL) == TR_OK);
        NEED(is_step(&s, n));
        ckpt_source_release(&src);
        state_release(&s);
    }
    step(&k, 21, true);
    NEED(ckpt_capture_finish(k.c, 21) == TR_OK);
    same_file(folder, &k, 21);
    ckpt_capture_free(k.c, true);
    state_release(&k.s);
    NEED(tr_mem_ledger().total == 0);
}

static void copied_while_it_changes(void **state)
{
    char *folder = run_folder();
    ends_well(start(run_alone, folder, 0));
    assert_file_is(folder, 21);
    assert_false(has_memory(folder));
    free(folder);
}

static void run_stopped_keeper(const char *folder, int rank)
{
    struct rank k;
    int64_t keeper;
    begin_run(&k, folder, 0, 1);
    while (!(keeper = ckpt_shared_holder((struct ckpt_shared *)(uintptr_t)ckpt_capture_shared(k.c), CKPT_KEEPER, NULL))) usleep(1000);
    kill((pid_t)keeper, SIGSTOP);
    step(&k, 1, true);
    step(&k, 2, true);
    step(&k, 3, false); /* no slot: both are to be written */
    struct ckpt_capture_stats stats = ckpt_capture_stats(k.c);
    NEED(stats.begun == 2 && stats.left_out == 1);
    ckpt_capture_settle(k.c);
    NEED(ckpt_shared_complete(ckpt_capture_shared(k.c), 1) && ckpt_shared_complete(ckpt_capture_shared(k.c), 2));
    kill((pid_t)keeper, SIGKILL); /* another one takes its place */
    step(&k, 4, true);
    NEED(ckpt_capture_finish(k.c, 4) == TR_OK);
    ckpt_capture_free(k.c, true);
}

static void slots_wait_for_the_disk(void **state)
{
    char *folder = run_folder();
    ends_well(start(run_stopped_keeper, folder, 0));
    assert_file_is(folder, 4);
    free(folder);
}

static void run_full_disk(const char *folder, int rank)
{
    struct rank k;
    char path[600];
    snprintf(path, sizeof path, "%s/snapshots", folder);
    begin_run(&k, folder, 0, 1);
    FILE *f = fopen(path, "w"); /* in the way of the folder */
    NEED(f && !fclose(f));
    step(&k, 1, true);
    NEED(ckpt_capture_finish(k.c, 1) == TR_EFAIL && strstr(tr_message(), "snapshots"));
    NEED(ckpt_shared_newest(ckpt_capture_shared(k.c), INT64_MAX) == 1); /* still in memory */
    unlink(path);
    step(&k, 2, true);
    NEED(ckpt_capture_finish(k.c, 2) == TR_OK);
    ckpt_capture_free(k.c, true);
}

static void a_disk_that_fails(void **state)
{
    char *folder = run_folder();
    ends_well(start(run_full_disk, folder, 0));
    assert_file_is(folder, 2);
    free(folder);
}

/* ---- what is left behind */

static int ready[2];

static void run_until_killed(const char *folder, int rank)
{
    struct rank k;
    begin_run(&k, folder, 0, 1);
    for (int64_t n = 1; n <= 5; n++) step(&k, n, false);
    ckpt_capture_settle(k.c);
    NEED(write(ready[1], "x", 1) == 1);
    for (;;) pause();
}

static pid_t start_and_wait(const char *folder)
{
    char x;
    assert_int_equal(pipe(ready), 0);
    pid_t child = start(run_until_killed, folder, 0);
    assert_int_equal(read(ready[0], &x, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return child;
}

static void orphans_go_to_disk(void **state)
{
    char *folder = run_folder();
    is_killed(start_and_wait(folder));
    wait_until_gone(folder);
    assert_file_is(folder, 5);
    free(folder);
}

static void one_run_at_a_time(void **state)
{
    char *folder = run_folder(), copy[600], from[700], to[700];
    struct ckpt_shared *s;
    pid_t child = start_and_wait(folder);
    assert_int_equal(ckpt_shared_claim(&s, folder, 0), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "in use"));
    snprintf(copy, sizeof copy, "%s-copy", folder);
    snprintf(from, sizeof from, "%s/.memory", folder);
    snprintf(to, sizeof to, "%s/.memory", copy);
    assert_ok(tr_mkdirs(copy));
    struct tr_buf name = { 0 };
    assert_ok(tr_read_file(&name, from));
    assert_ok(tr_write_file(copy, ".memory", &name));
    assert_false(has_memory(copy)); /* a copied folder owns nothing */
    tr_buf_release(&name);
    is_killed(child);
    wait_until_gone(folder);
    free(folder);
}

static void run_again(const char *folder, int rank)
{
    struct rank k;
    NEED(begin_run(&k, folder, 0, 1) == 5);
    step(&k, 6, true);
    NEED(ckpt_capture_finish(k.c, 6) == TR_OK);
    ckpt_capture_free(k.c, true);
}

/* Rank and keeper are killed: the memory is still there, and is resumed from. */
static void all_are_killed(void **state)
{
    char *folder = run_folder();
    pid_t child = start_and_wait(folder);
    int64_t keeper = 0;
    for (int i = 0; i < 1000 && !(keeper = ckpt_keeper_of(folder)); i++) usleep(10000);
    assert_true(keeper > 0);
    kill((pid_t)keeper, SIGKILL);
    is_killed(child);
    assert_true(has_memory(folder));
    ends_well(start(run_again, folder, 0));
    assert_file_is(folder, 6);
    free(folder);
}

/* ---- two ranks, one of which dies while it lists its part of version 5 */

static void run_of_two(const char *folder, int rank)
{
    struct rank k;
    begin_run(&k, folder, rank, 2);
    for (int64_t n = 1; n <= 5; n++) {
        k.s.dies = n == 5;
        step(&k, n, false);
    }
    ckpt_capture_settle(k.c);
    for (;;) pause();
}

static void run_of_one_after_two(const char *folder, int rank)
{
    struct rank k;
    NEED(begin_run(&k, folder, 0, 1) == -2); /* another layout: it is on disk now */
    int64_t step = 0;
    NEED(ckpt_load(folder, &step, visit, &k.s) == TR_OK && step == 4);
    NEED(is_step(&k.s, 4));
    ckpt_capture_free(k.c, true);
}

static int reads_well(const char *folder)
{
    struct ckpt_shared *s;
    struct ckpt_source src;
    assert_ok(ckpt_shared_open(&s, folder, 0));
    if (!s) return TR_EDAMAGED;
    int64_t v = ckpt_shared_newest(s, INT64_MAX);
    int rc = v == 4 ? ckpt_source_memory(&src, s, v, true) : TR_EDAMAGED;
    if (rc == TR_OK) {
        struct state st;
        state_init(&st);
        assert_ok(ckpt_load_source(&src, NULL, visit, &st, NULL));
        assert_true(is_step(&st, v));
        state_release(&st);
        ckpt_source_release(&src);
    }
    ckpt_shared_close(s);
    return rc;
}

/* A flipped bit in what describes or is a part of version 4 is found; what nobody reads may change. */
static void flip_bits(const char *folder)
{
    struct ckpt_shared *s;
    assert_ok(ckpt_shared_open(&s, folder, 0));
    for (int i = 0; i < 200; i++) {
        uint32_t rank = (uint32_t)(i % 2);
        struct ckpt_slot *slot = ckpt_shared_slot(s, rank, ckpt_shared_find(s, rank, 4));
        struct ckpt_entry *e = ckpt_slot_entries(slot) + tr_below(tr_key(1, TR_RNG_SAMPLE, 0, 0), (uint64_t)i, slot->n);
        unsigned char *p = i % 3 ? ckpt_slot_payload(s, rank, slot) + e->at : (unsigned char *)e;
        p += tr_below(tr_key(2, TR_RNG_SAMPLE, 0, 0), (uint64_t)i, i % 3 ? e->bytes : sizeof *e);
        *p ^= (unsigned char)(1 << i % 8);
        assert_int_equal(reads_well(folder), TR_EDAMAGED);
        *p ^= (unsigned char)(1 << i % 8);
    }
    struct ckpt_head *h = s->head;
    for (size_t i = 0; i < offsetof(struct ckpt_head, crc) + 4; i++) {
        ((unsigned char *)h)[i] ^= 1;
        assert_int_equal(reads_well(folder), TR_EDAMAGED);
        ((unsigned char *)h)[i] ^= 1;
    }
    ckpt_shared_close(s);
    assert_ok(reads_well(folder));
}

static void complete_or_nothing(void **state)
{
    char *folder = run_folder();
    int status;
    call_meeting(2);
    ckpt_keeper_become_supervisor(getpid()); /* so the keeper waits for a new launch */
    pid_t zero = start(run_of_two, folder, 0), one = start(run_of_two, folder, 1);
    waitpid(one, &status, 0);
    assert_true(WIFSIGNALED(status));
    for (int i = 0; i < 200; i++) { /* rank 0 has its part of version 5 soon */
        struct ckpt_shared *s;
        assert_ok(ckpt_shared_open(&s, folder, 0));
        bool has = ckpt_shared_find(s, 0, 5) >= 0;
        ckpt_shared_close(s);
        if (has) break;
        usleep(10000);
    }
    is_killed(zero);
    assert_ok(reads_well(folder));
    flip_bits(folder);
    ends_well(start(run_of_one_after_two, folder, 0));
    ckpt_keeper_become_supervisor(0);
    assert_false(has_memory(folder));
    munmap(meeting, sizeof *meeting);
    free(folder);
}

static void too_little_memory(void **state)
{
    char *folder = run_folder();
    struct ckpt_shared *s;
    struct ckpt_size size = { 10, (uint64_t)1 << 44, 0 };
    struct ckpt_sets sets = { .nodes = 1 };
    assert_int_equal(ckpt_shared_create(&s, folder, &sets, &size, 1, 100), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "35184372.1 MB of /dev/shm"));
    assert_non_null(strstr(tr_message(), "checkpoint.memory_every = 0"));
    assert_false(has_memory(folder));
    free(folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copied_while_it_changes), cmocka_unit_test(slots_wait_for_the_disk), cmocka_unit_test(a_disk_that_fails),
        cmocka_unit_test(orphans_go_to_disk), cmocka_unit_test(one_run_at_a_time), cmocka_unit_test(all_are_killed),
        cmocka_unit_test(complete_or_nothing), cmocka_unit_test(too_little_memory),
    };
    if (argc == 3 && !strcmp(argv[1], "keep")) return ckpt_keeper_run(argv[2]); /* as the program does */
    tr_log_quiet(true);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
