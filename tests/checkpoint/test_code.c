/* The erasure code over nodes: whatever m of k + m members are lost, the others give back their slots byte by byte, for slots of
 * all sizes; and what stands in a recipe. */
#include "tests/support/support.h"
#include "checkpoint/nodes.h"
#include "libtrain/base/file.h"
#include "libtrain/base/rng.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- members: threads that exchange through memory */

enum { MOST = 9 };
static struct { pthread_barrier_t barrier; const unsigned char *in[MOST]; const size_t *n[MOST]; } meeting;

static int meet(struct tr_comm *c, const void *in, const size_t *in_n, void *out, const size_t *out_n)
{
    unsigned char *to = out;
    meeting.in[c->rank] = in;
    meeting.n[c->rank] = in_n;
    pthread_barrier_wait(&meeting.barrier);
    for (int q = 0; q < c->size; q++) {
        size_t at = 0;
        for (int r = 0; r < c->rank; r++) at += meeting.n[q][r];
        assert_true(meeting.n[q][c->rank] == out_n[q]);
        memcpy(to, meeting.in[q] + at, out_n[q]);
        to += out_n[q];
    }
    pthread_barrier_wait(&meeting.barrier);
    return TR_OK;
}
static const struct tr_comm_kind kind = { .name = "threads", .all_to_all = meet };

struct member {
    struct tr_comm comm;
    struct ckpt_ring ring;
    struct ckpt_shared s;            /* an object without its file: a place and memory */
    struct ckpt_place place;
    struct ckpt_slot *slot;
    unsigned char *want;
    void *room;
    const bool *lost;
    bool rebuilds;
    int rc;
};

static void *work(void *self)
{
    struct member *b = self;
    b->rc = b->rebuilds ? ckpt_parity_rebuild(&b->ring, &b->s, 0, b->slot, b->lost, b->room) : ckpt_parity_make(&b->ring, &b->s, 0, b->slot, b->room);
    return NULL;
}

static void together(struct member *b, int n, bool rebuilds, const bool *lost)
{
    pthread_t thread[MOST];
    pthread_barrier_init(&meeting.barrier, NULL, (unsigned)n);
    for (int i = 0; i < n; i++) {
        b[i].rebuilds = rebuilds;
        b[i].lost = lost;
        assert_int_equal(pthread_create(&thread[i], NULL, work, &b[i]), 0);
    }
    for (int i = 0; i < n; i++) {
        pthread_join(thread[i], NULL);
        assert_ok(b[i].rc);
    }
    pthread_barrier_destroy(&meeting.barrier);
}

static void init(struct member *b, int i, int k, int m, uint64_t entries, uint64_t payload, uint64_t longest)
{
    *b = (struct member){ .comm = { .kind = &kind, .rank = i, .size = k + m } };
    assert_ok(ckpt_code_init(&b->ring.code, k, m));
    b->ring.group = &b->comm;
    b->place = (struct ckpt_place){ .size = { entries, payload, (uint64_t)m * ckpt_parity_segment(k, longest) } };
    b->place.slot_bytes = ckpt_shared_slot_bytes(&b->place.size);
    size_t bytes = ckpt_shared_rank_bytes(&b->place.size);
    b->s.base = calloc(1, bytes);
    b->s.place = &b->place;
    b->slot = ckpt_shared_slot(&b->s, 0, i % CKPT_SLOTS);
    b->want = malloc(b->place.slot_bytes);
    b->room = malloc(ckpt_parity_room(k, m));
    assert_true(b->s.base && b->want && b->room);
    unsigned char *p = (unsigned char *)b->slot;
    for (uint64_t x = 0; x < b->place.slot_bytes; x++) p[x] = (unsigned char)tr_below(tr_key(5, TR_RNG_SAMPLE, (uint64_t)i, 0), x, 256);
    atomic_store(&b->slot->word, ckpt_word(7, false));
    memcpy(b->want, b->slot, b->place.slot_bytes);
}

/* All patterns of up to m losses, one after another on the same members. */
static void lose_all(int k, int m, const uint64_t *payload)
{
    int n = k + m;
    struct member b[MOST];
    uint64_t longest = 0;
    for (int i = 0; i < n; i++) {
        uint64_t bytes = ckpt_shared_slot_bytes(&(struct ckpt_size){ (uint64_t)i % 3, payload[i % 3], 0 });
        longest = bytes > longest ? bytes : longest;
    }
    for (int i = 0; i < n; i++) init(&b[i], i, k, m, (uint64_t)i % 3, payload[i % 3], longest);
    together(b, n, false, NULL);
    for (int pattern = 1; pattern < 1 << n; pattern++) {
        bool lost[MOST];
        if (__builtin_popcount((unsigned)pattern) > m) continue;
        for (int i = 0; i < n; i++) {
            lost[i] = pattern >> i & 1;
            if (lost[i]) memset(b[i].slot, 0xa5, (size_t)ckpt_shared_rank_bytes(&b[i].place.size) / CKPT_SLOTS);
            assert_true(ckpt_parity_holds(&b[i].s, 0, b[i].slot) == !lost[i]);
        }
        together(b, n, true, lost);
        for (int i = 0; i < n; i++)
            if (memcmp(b[i].slot, b[i].want, b[i].place.slot_bytes)) fail_msg("%d+%d: member %d of pattern %x", k, m, i, pattern);
        together(b, n, false, NULL); /* and are protected again */
        for (int i = 0; i < n; i++) assert_true(ckpt_parity_holds(&b[i].s, 0, b[i].slot));
    }
    for (int i = 0; i < n; i++) {
        free(b[i].s.base);
        free(b[i].want);
        free(b[i].room);
    }
}

static void every_loss(void **state)
{
    static const int codes[][2] = { { 1, 1 }, { 2, 1 }, { 3, 1 }, { 1, 2 }, { 2, 2 }, { 4, 2 }, { 1, 3 }, { 5, 3 } };
    static const uint64_t sizes[][3] = { { 1, 1, 1 }, { 0, 5000, 12289 }, { CKPT_EXCHANGE * 2 - 4096, 3 * CKPT_EXCHANGE + 1, 77 } };
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        for (int s = 0; s < 3; s++)
            if (!test_sanitized() || i % 3 == 2 || s == 1) lose_all(codes[i][0], codes[i][1], sizes[s]);
}

/* A flipped bit of a slot, or of what is kept of others, makes that member one that is lost. */
static void a_flipped_bit(void **state)
{
    struct member b[3];
    for (int i = 0; i < 3; i++) init(&b[i], i, 2, 1, 1, 100, 8192);
    together(b, 3, false, NULL);
    unsigned char *slot = (unsigned char *)b[1].slot, *pieces = ckpt_parity_pieces(ckpt_slot_parity(&b[1].s, 0, b[1].slot));
    for (uint64_t x = 0; x < b[1].place.slot_bytes + b[1].place.size.parity; x += x < 64 ? 1 : 37) {
        unsigned char *p = x < b[1].place.slot_bytes ? slot + x : pieces + (x - b[1].place.slot_bytes);
        *p ^= (unsigned char)(1 << x % 8);
        assert_false(ckpt_parity_holds(&b[1].s, 0, b[1].slot));
        *p ^= (unsigned char)(1 << x % 8);
    }
    assert_true(ckpt_parity_holds(&b[1].s, 0, b[1].slot));
    for (int i = 0; i < 3; i++) {
        free(b[i].s.base);
        free(b[i].want);
        free(b[i].room);
    }
}

/* Every choice of k of k + m pieces has an inverse, up to the largest codes. */
static void large_codes(void **state)
{
    static struct ckpt_code c;
    unsigned char bytes[CKPT_CODE_MOST][17], out[17], *piece[CKPT_CODE_MOST];
    for (int k = 1; k < CKPT_CODE_MOST; k += test_sanitized() ? 10 : 3) {
        int n = CKPT_CODE_MOST, have[CKPT_CODE_MOST];
        assert_ok(ckpt_code_init(&c, k, n - k));
        for (int i = 0; i < n; i++) piece[i] = bytes[i];
        for (int i = 0; i < k; i++)
            for (int x = 0; x < 17; x++) bytes[i][x] = (unsigned char)(i * 37 + x * x);
        for (int j = 0; j < n - k; j++) ckpt_code_parity(&c, j, 17, piece, bytes[k + j]);
        for (uint64_t trial = 0; trial < 200; trial++) {
            int order[CKPT_CODE_MOST];
            for (int i = 0; i < n; i++) order[i] = i;
            for (int i = 0; i < k; i++) {
                int x = i + (int)tr_below(tr_key(8, TR_RNG_SAMPLE, (uint64_t)k, 0), trial * 64 + (uint64_t)i, (uint64_t)(n - i)), t = order[i];
                order[i] = order[x];
                order[x] = t;
                have[i] = order[i];
                piece[i] = bytes[have[i]];
            }
            for (int want = 0; want < k; want++) {
                assert_ok(ckpt_code_rebuild(&c, have, want, 17, piece, out));
                assert_memory_equal(out, bytes[want], 17);
            }
        }
    }
}

static void what_stands_in_a_recipe(void **state)
{
    static const char *const bad[] = { "", "3", "3+", "+1", "3+1+1", "3+1 ", " 3+1", "3-1", "-3+1", "3+-1", "3 + 1", "0+1", "1+0", "32+1", "31+2", "99999999999999999999+1", "1+99999999999999999999", "3+1x", "0x3+1" };
    int k, m;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (ckpt_code_parse(bad[i], &k, &m) != TR_EINPUT) fail_msg("'%s' is taken", bad[i]);
    assert_ok(ckpt_code_parse("3+1", &k, &m));
    assert_true(k == 3 && m == 1);
    assert_ok(ckpt_code_parse("31+1", &k, &m));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_loss), cmocka_unit_test(a_flipped_bit), cmocka_unit_test(large_codes), cmocka_unit_test(what_stands_in_a_recipe) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
