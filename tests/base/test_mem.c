/* The ledger, blocks, the step arena, and the same in dry mode. */
#include "tests/support/support.h"
#include "libtrain/base/mem.h"
#include "libtrain/base/rng.h"
#include <stdlib.h>
#include <string.h>

static size_t sum(const size_t now[TR_CATEGORIES])
{
    size_t s = 0;
    for (int c = 0; c < TR_CATEGORIES; c++) s += now[c];
    return s;
}

static void blocks(void **state)
{
    static const size_t sizes[] = { 1, 63, 64, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20 };
    void *p[8];
    size_t total = 0;
    for (int i = 0; i < 8; i++) {
        assert_ok(tr_mem_alloc(&p[i], sizes[i], i % 2 ? TR_WEIGHTS : TR_OPTIMIZER));
        assert_int_equal((uintptr_t)p[i] % (sizes[i] > 1 << 20 ? 4096 : 64), 0);
        unsigned char any = 0;
        for (size_t k = 0; k < sizes[i]; k++) any |= ((unsigned char *)p[i])[k];
        assert_int_equal(any, 0);
        memset(p[i], 0xff, sizes[i]); /* the whole block is ours */
        total += sizes[i];
        assert_int_equal(tr_mem_ledger().total, total);
        assert_int_equal(sum(tr_mem_ledger().now), total);
    }
    assert_int_equal(tr_mem_ledger().now[TR_WEIGHTS], 63 + 4097 + (1 << 20) + (5 << 20));
    for (int i = 0; i < 8; i++) tr_mem_free(p[i], sizes[i], i % 2 ? TR_WEIGHTS : TR_OPTIMIZER);
    assert_int_equal(tr_mem_ledger().total, 0);
    assert_int_equal(sum(tr_mem_ledger().now), 0);
    void *none = &none;
    assert_ok(tr_mem_alloc(&none, 0, TR_OTHER));
    assert_null(none);
    tr_mem_free(NULL, 100, TR_OTHER);
    assert_int_equal(tr_mem_ledger().total, 0);
}

static void impossible_sizes(void **state)
{
    static const size_t sizes[] = { SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2, (size_t)1 << 62 };
    struct tr_ledger before = tr_mem_ledger();
    for (int i = 0; i < 4; i++) {
        void *p = &p;
        assert_int_equal(tr_mem_alloc(&p, sizes[i], TR_WEIGHTS), TR_EFAIL);
        assert_null(p);
        assert_non_null(strstr(tr_message(), "no memory (weights)"));
        assert_int_equal(tr_arena_alloc(&p, sizes[i], TR_ACTIVATIONS), TR_EFAIL);
        assert_null(p);
    }
    struct tr_ledger after = tr_mem_ledger();
    assert_memory_equal(&before, &after, sizeof before);
}

static void peaks(void **state)
{
    void *a, *b;
    tr_mem_reset_peak();
    assert_ok(tr_mem_alloc(&a, 1000, TR_WEIGHTS));
    assert_ok(tr_mem_alloc(&b, 500, TR_GRADIENTS));
    tr_mem_free(b, 500, TR_GRADIENTS);
    tr_mem_count(TR_OTHER, 400);
    assert_int_equal(tr_mem_ledger().peak, 1500);
    assert_int_equal(tr_mem_ledger().at_peak[TR_GRADIENTS], 500);
    assert_int_equal(tr_mem_ledger().at_peak[TR_OTHER], 0);
    tr_mem_reset_peak();
    assert_int_equal(tr_mem_ledger().peak, 1400);
    assert_int_equal(tr_mem_ledger().at_peak[TR_OTHER], 400);
    tr_mem_count(TR_OTHER, -400);
    tr_mem_free(a, 1000, TR_WEIGHTS);
    for (int c = 0; c < TR_CATEGORIES; c++) assert_true(strlen(tr_category_name((enum tr_category)c)) > 3);
}

static int changes;
static size_t last_total;
static void on_change(void *self, const struct tr_ledger *l)
{
    assert_ptr_equal(self, &changes);
    changes++;
    last_total = l->total;
}

static void trace(void **state)
{
    void *p;
    tr_mem_trace(on_change, &changes);
    assert_ok(tr_mem_alloc(&p, 100, TR_OTHER));
    assert_int_equal(last_total, 100);
    tr_mem_free(p, 100, TR_OTHER);
    tr_mem_trace(NULL, NULL);
    assert_int_equal(changes, 2);
    assert_int_equal(last_total, 0);
}

static char *take(size_t bytes)
{
    void *p;
    assert_ok(tr_arena_alloc(&p, bytes, TR_ACTIVATIONS));
    return p;
}

static void best_fit(void **state)
{
    char *a = take(1000), *wall1 = take(1), *b = take(300), *wall2 = take(64), *c = take(600), *wall3 = take(0);
    assert_int_equal((uintptr_t)a % 64, 0);
    assert_ptr_equal(wall1, a + 1024);
    assert_ptr_equal(b, wall1 + 64);
    assert_int_equal(tr_mem_ledger().now[TR_ACTIVATIONS], 1024 + 64 + 320 + 64 + 640 + 64);
    tr_arena_free(a, TR_ACTIVATIONS);
    tr_arena_free(b, TR_ACTIVATIONS);
    tr_arena_free(c, TR_ACTIVATIONS);
    assert_ptr_equal(take(320), b);    /* exact, though the first hole fits too */
    assert_ptr_equal(take(500), c);    /* the smallest that fits */
    assert_ptr_equal(take(700), a);
    assert_ptr_equal(take(64), c + 512);
    tr_arena_free(wall1, TR_ACTIVATIONS);
    tr_arena_free(b, TR_ACTIVATIONS);
    tr_arena_free(wall2, TR_ACTIVATIONS);
    assert_ptr_equal(take(1024 - 704 + 64 + 320 + 64), a + 704);    /* neighbours have merged */
    tr_arena_reset();
    assert_int_equal(tr_mem_ledger().now[TR_ACTIVATIONS], 0);
    assert_ptr_equal(take(10), a);
    tr_arena_reset();
    (void)wall3;
}

/* A long random life: nothing overlaps, the ledger is right, and after all is freed the arena is one piece again. */
static void random_life(void **state)
{
    enum { LIVE = 40, TURNS = 20000 };
    static char *p[LIVE];
    static size_t bytes[LIVE];
    struct tr_key key = tr_key(1, TR_RNG_SAMPLE, 0, 0);
    char *first = take(64);
    tr_arena_free(first, TR_ACTIVATIONS);
    size_t alive = 0;
    for (uint64_t t = 0; t < TURNS; t++) {
        size_t i = tr_below(key, 2 * t, LIVE);
        if (p[i]) {
            for (size_t k = 0; k < bytes[i]; k++) if (p[i][k] != (char)i) fail_msg("block %zu was overwritten at turn %d", i, (int)t);
            tr_arena_free(p[i], TR_ACTIVATIONS);
            alive -= (bytes[i] + 63) / 64 * 64;
            p[i] = NULL;
        } else {
            bytes[i] = 1 + tr_below(key, 2 * t + 1, 3000);
            p[i] = take(bytes[i]);
            memset(p[i], (int)i, bytes[i]);
            alive += (bytes[i] + 63) / 64 * 64;
        }
        assert_int_equal(tr_mem_ledger().now[TR_ACTIVATIONS], alive);
    }
    for (int i = 0; i < LIVE; i++) tr_arena_free(p[i], TR_ACTIVATIONS);
    assert_ptr_equal(take(1 << 20), first);
    assert_true(tr_mem_ledger().arena_reserved >= 1 << 20);
    assert_true(tr_mem_ledger().arena_reserved < 2 << 20);
    tr_arena_reset();
}

/* Dry: the ledger and the arena's addresses go as in real, without bytes; and the modes can be changed. */
static void dry_counts_as_real(void **state)
{
    struct tr_ledger l[2];
    size_t offset[2][3];
    tr_mem_dry(true); /* back and forth once, so that both modes begin with an empty arena */
    for (int dry = 1; dry >= 0; dry--) {
        tr_mem_dry(dry);
        assert_true(tr_mem_is_dry() == dry);
        tr_mem_reset_peak();
        void *w, *big;
        size_t huge = dry ? (size_t)1 << 44 : 1 << 22;
        assert_ok(tr_mem_alloc(&w, 12345, TR_WEIGHTS));
        assert_ok(tr_mem_alloc(&big, huge, TR_OPTIMIZER)); /* 16 TiB is no problem in a forecast */
        assert_int_equal(tr_mem_ledger().now[TR_OPTIMIZER], huge);
        tr_mem_free(big, huge, TR_OPTIMIZER);
        tr_mem_reset_peak();
        char *a = take(100), *b = take(5000), *c;
        tr_arena_free(a, TR_ACTIVATIONS);
        c = take(200);
        offset[dry][0] = 0, offset[dry][1] = (size_t)(b - a), offset[dry][2] = (size_t)(c - a);
        if (!dry) memset(b, 1, 5000);
        l[dry] = tr_mem_ledger();
        tr_arena_free(b, TR_ACTIVATIONS);
        tr_arena_free(c, TR_ACTIVATIONS);
        tr_mem_free(w, 12345, TR_WEIGHTS);
        assert_int_equal(tr_mem_ledger().total, 0);
    }
    assert_memory_equal(offset[0], offset[1], sizeof offset[0]);
    assert_memory_equal(&l[0], &l[1], sizeof l[0]);
}

static void resident(void **state)
{
    size_t before = tr_rss_now();
    void *p;
    assert_ok(tr_mem_alloc(&p, 64 << 20, TR_OTHER));
    memset(p, 1, 64 << 20);
    assert_true(tr_rss_now() >= before + (60 << 20));
    size_t now = tr_rss_now();
    assert_true(tr_rss_peak() + (1 << 20) >= now); /* the kernel counts pages by thread and adds them up now and then */
    tr_mem_free(p, 64 << 20, TR_OTHER);
    assert_true(tr_rss_now() < before + (32 << 20));
}

static size_t pieces, piece[8];

static int fake_alloc(void **out, size_t bytes)
{
    piece[pieces++] = bytes;
    return bytes > 1 << 30 || posix_memalign(out, 256, bytes) ? 1 : 0;
}

static void fake_free(void *p)
{
    pieces--;
    free(p);
}

static char *take_device(size_t bytes)
{
    void *p;
    assert_ok(tr_device_arena(&p, bytes, TR_ACTIVATIONS));
    return p;
}

/* Tensors' memory is the device's, all else the host's; the arena there is what was reserved, and grows in pieces of its own. */
static void on_a_device(void **state)
{
    enum { RESERVED = 1 << 20, PIECE = 64 << 20 };
    static const struct tr_device_memory fake = { fake_alloc, fake_free };
    size_t host = tr_mem_ledger().arena_reserved;
    void *w, *h, *none = &none;
    tr_mem_device(&fake);
    assert_ok(tr_device_alloc(&w, 1000, TR_WEIGHTS));
    assert_ok(tr_mem_alloc(&h, 500, TR_WEIGHTS));
    assert_int_equal(pieces, 1);
    assert_int_equal(tr_mem_ledger().now[TR_WEIGHTS], 1500);
    assert_int_equal(tr_mem_ledger().device, 1000);
    assert_int_equal(tr_device_alloc(&none, (size_t)1 << 31, TR_WEIGHTS), TR_EFAIL);
    assert_non_null(strstr(tr_message(), "no memory on the device (weights)"));
    assert_null(none);
    pieces--;
    assert_ok(tr_device_reserve(RESERVED));
    char *a = take_device(1000), *b = take_device(RESERVED - 1024);
    assert_ptr_equal(b, a + 1024);
    assert_int_equal(tr_mem_ledger().device_reserved, RESERVED);
    assert_int_equal(pieces, 2);
    char *c = take_device(100), *d = take_device(PIECE + 1);   /* beyond it: a piece, and one larger than a piece */
    assert_int_equal(pieces, 4);
    assert_int_equal(piece[2], PIECE);
    assert_int_equal(piece[3], PIECE + 256);
    assert_int_equal(tr_mem_ledger().arena_reserved, host);
    tr_device_arena_free(a, TR_ACTIVATIONS);
    tr_device_arena_free(d, TR_ACTIVATIONS);
    tr_device_arena_free(c, TR_ACTIVATIONS);
    tr_device_arena_free(b, TR_ACTIVATIONS);
    assert_ptr_equal(take_device(RESERVED), a);    /* pieces never merge, whatever their addresses */
    assert_ptr_equal(take_device(PIECE), c);
    assert_ptr_equal(take_device(PIECE + 256), d);
    assert_int_equal(pieces, 4);
    tr_arena_reset();
    assert_int_equal(tr_mem_ledger().now[TR_ACTIVATIONS], 0);
    assert_ptr_equal(take_device(PIECE + 1), d);
    tr_arena_reset();
    tr_device_free(w, 1000, TR_WEIGHTS);
    tr_mem_free(h, 500, TR_WEIGHTS);
    tr_mem_device(NULL);
    assert_int_equal(pieces, 0);
    assert_int_equal(tr_mem_ledger().device_reserved, 0);
    assert_int_equal(tr_mem_ledger().total, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(blocks), cmocka_unit_test(impossible_sizes), cmocka_unit_test(peaks), cmocka_unit_test(trace),
        cmocka_unit_test(best_fit), cmocka_unit_test(random_life), cmocka_unit_test(dry_counts_as_real), cmocka_unit_test(resident), cmocka_unit_test(on_a_device) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
