/* Philox4x32-10 against its published vectors, and what is built on it. */
#include "tests/support/support.h"
#include "libtrain/base/rng.h"
#include <math.h>
#include <stdbool.h>
#include <string.h>

/* The generator once more, with all four words of the counter, as in the paper's table. */
static void philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t x[4], k[2] = { key[0], key[1] };
    memcpy(x, counter, sizeof x);
    for (int r = 0; r < 10; r++) {
        uint64_t p = 0xD2511F53ull * x[0], q = 0xCD9E8D57ull * x[2];
        uint32_t y[4] = { (uint32_t)(q >> 32) ^ x[1] ^ k[0], (uint32_t)q, (uint32_t)(p >> 32) ^ x[3] ^ k[1], (uint32_t)p };
        memcpy(x, y, sizeof x);
        k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
    }
    memcpy(out, x, sizeof x);
}

static void known_answers(void **state)
{
    static const struct { uint32_t counter[4], key[2], out[4]; } known[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 }, { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    uint32_t out[4];
    for (int i = 0; i < 3; i++) {
        philox(out, known[i].counter, known[i].key);
        assert_memory_equal(out, known[i].out, sizeof out);
    }
    tr_philox(out, (struct tr_key){ { 0, 0 } }, 0);
    assert_memory_equal(out, known[0].out, sizeof out);
    for (uint64_t i = 0; i < 1000; i++) { /* ours is the same with a counter of 64 bits */
        uint64_t c = i * 0x9e3779b97f4a7c15u;
        uint32_t key[2] = { (uint32_t)(i * 2654435761u), (uint32_t)(c >> 7) }, counter[4] = { (uint32_t)c, (uint32_t)(c >> 32), 0, 0 }, want[4];
        philox(want, counter, key);
        tr_philox(out, (struct tr_key){ { key[0], key[1] } }, c);
        assert_memory_equal(out, want, sizeof out);
    }
}

static void keys_differ(void **state)
{
    struct tr_key k[400];
    int n = 0;
    for (uint64_t seed = 0; seed < 5; seed++)
        for (int p = TR_RNG_INIT; p <= TR_RNG_DROPOUT; p += 3)
            for (uint64_t subject = 0; subject < 4; subject++)
                for (uint64_t step = 0; step < 4; step++) k[n++] = tr_key(seed, (enum tr_purpose)p, subject, step);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++)
            if (!memcmp(&k[i], &k[j], sizeof k[i])) fail_msg("keys %d and %d are the same", i, j);
    assert_true(tr_hash("model.layers.0.mlp.up_proj.weight") != tr_hash("model.layers.1.mlp.up_proj.weight"));
    assert_true(tr_hash("") != tr_hash("a"));
}

/* A snapshot names streams by these numbers: they must never change. */
static void streams_are_fixed(void **state)
{
    struct tr_key k = tr_key(1, TR_RNG_INIT, tr_hash("w"), 2);
    uint32_t w[4];
    tr_philox(w, k, 3);
    assert_int_equal(k.k[0], 0xac56446au);
    assert_int_equal(k.k[1], 0x0f1b5b9cu);
    assert_int_equal(w[0], 0x4738d3e8u);
}

static void moments(void **state)
{
    enum { N = 200000 };
    struct tr_key key = tr_key(7, TR_RNG_SAMPLE, 0, 0);
    double m[5] = { 0 }, u1 = 0, u2 = 0, pair = 0, before = 0;
    int tail = 0;
    for (uint64_t i = 0; i < N; i++) {
        double x = tr_normal(key, i), u = tr_uniform(key, i), p = 1;
        for (int j = 0; j < 5; j++, p *= x) m[j] += p / N;
        tail += fabs(x) > 3;
        pair += x * before / N;
        before = x;
        assert_true(u >= 0 && u < 1);
        u1 += u / N, u2 += u * u / N;
    }
    assert_true(fabs(m[1]) < 0.01);
    assert_true(fabs(m[2] - 1) < 0.015);
    assert_true(fabs(m[3]) < 0.04);
    assert_true(fabs(m[4] - 3) < 0.1);
    assert_true(fabs(pair) < 0.01);                    /* the two numbers of a pair are independent */
    assert_true(fabs(tail / (double)N - 0.0027) < 0.0006);
    assert_true(fabs(u1 - 0.5) < 0.004 && fabs(u2 - 1.0 / 3) < 0.004);
}

static void order_does_not_matter(void **state)
{
    struct tr_key key = tr_key(7, TR_RNG_PROJECTION, 1, 2);
    double first[64];
    for (uint64_t i = 0; i < 64; i++) first[i] = tr_normal(key, i);
    for (int i = 63; i >= 0; i--) assert_true(tr_normal(key, (uint64_t)i) == first[i]);
    assert_true(tr_normal(key, UINT64_MAX) == tr_normal(key, UINT64_MAX) && isfinite(tr_normal(key, UINT64_MAX)));
}

static void below_is_fair(void **state)
{
    struct tr_key key = tr_key(3, TR_RNG_SHUFFLE, 0, 0);
    int count[7] = { 0 };
    for (uint64_t i = 0; i < 70000; i++) {
        uint64_t x = tr_below(key, i, 7);
        assert_true(x < 7);
        count[x]++;
    }
    for (int i = 0; i < 7; i++) assert_in_range(count[i], 9600, 10400);
    assert_int_equal(tr_below(key, 5, 1), 0);
    assert_true(tr_below(key, 5, UINT64_MAX) < UINT64_MAX);
}

static void permutations(void **state)
{
    enum { N = 1000, TRIES = 3000 };
    int64_t order[N], again[N];
    bool seen[N] = { 0 };
    tr_permutation(order, N, tr_key(1, TR_RNG_SHUFFLE, 0, 0));
    tr_permutation(again, N, tr_key(1, TR_RNG_SHUFFLE, 0, 0));
    assert_memory_equal(order, again, sizeof order);
    for (int i = 0; i < N; i++) {
        assert_in_range(order[i], 0, N - 1);
        assert_false(seen[order[i]]);
        seen[order[i]] = true;
    }
    tr_permutation(again, N, tr_key(1, TR_RNG_SHUFFLE, 0, 1));
    assert_memory_not_equal(order, again, sizeof order);
    tr_permutation(order, 1, tr_key(1, TR_RNG_SHUFFLE, 0, 0));
    assert_int_equal(order[0], 0);
    tr_permutation(order, 0, tr_key(1, TR_RNG_SHUFFLE, 0, 0));
    int at[4][4] = { 0 };
    for (uint64_t t = 0; t < TRIES; t++) { /* each element is found equally often at each place */
        tr_permutation(order, 4, tr_key(1, TR_RNG_SHUFFLE, 9, t));
        for (int i = 0; i < 4; i++) at[i][order[i]]++;
    }
    for (int i = 0; i < 16; i++) assert_in_range(at[i / 4][i % 4], TRIES / 4 - 120, TRIES / 4 + 120);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(known_answers), cmocka_unit_test(keys_differ), cmocka_unit_test(streams_are_fixed),
        cmocka_unit_test(moments), cmocka_unit_test(order_does_not_matter), cmocka_unit_test(below_is_fair), cmocka_unit_test(permutations) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
