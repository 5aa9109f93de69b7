/* Cuts of layers against trying them all. */
#include "tests/support/support.h"
#include "libtrain/base/rng.h"
#include "parallel/cut.h"
#include <string.h>

static double slowest(const int *first, int stages, const double *seconds, double begin, double end)
{
    double most = 0;
    for (int k = 0; k < stages; k++) {
        double sum = (k == 0 ? begin : 0) + (k == stages - 1 ? end : 0);
        for (int i = first[k]; i < first[k + 1]; i++) sum += seconds[i];
        if (sum > most) most = sum;
    }
    return most;
}

static double best_of_all(int layers, int stages, const double *seconds, double begin, double end)
{
    double best = 1e30;
    for (int mask = 0; mask < 1 << (layers - 1); mask++) { /* a bit: a stage begins behind that layer */
        int first[17] = { 0 }, n = 1;
        if (__builtin_popcount((unsigned)mask) != stages - 1) continue;
        for (int i = 0; i < layers - 1; i++)
            if (mask >> i & 1) first[n++] = i + 1;
        first[n] = layers;
        double s = slowest(first, stages, seconds, begin, end);
        if (s < best) best = s;
    }
    return best;
}

static void no_cut_is_faster(void **state)
{
    uint64_t at = 0;
    struct tr_key key = tr_key(3, TR_RNG_SAMPLE, 0, 0);
    for (int round = 0; round < 200; round++) {
        int layers = 1 + (int)tr_below(key, at++, 10), stages = 1 + (int)tr_below(key, at++, (uint64_t)layers), first[17];
        double seconds[16], begin = (double)tr_below(key, at++, 5), end = (double)tr_below(key, at++, 20);
        for (int i = 0; i < layers; i++) seconds[i] = 1 + (double)tr_below(key, at++, 9);
        assert_ok(par_cut_by_cost(first, layers, stages, seconds, begin, end));
        assert_int_equal(first[0], 0);
        assert_int_equal(first[stages], layers);
        for (int k = 0; k < stages; k++) assert_true(first[k] < first[k + 1]);
        assert_true(slowest(first, stages, seconds, begin, end) == best_of_all(layers, stages, seconds, begin, end));
    }
}

static void what_is_alike_is_cut_evenly(void **state)
{
    double seconds[126];
    int first[65], even[65];
    for (int i = 0; i < 126; i++) seconds[i] = 0.1;
    for (int stages = 1; stages <= 64; stages++) {
        assert_ok(par_cut_by_cost(first, 126, stages, seconds, 0, 0));
        assert_ok(par_cut_even(even, 126, stages));
        for (int k = 0; k < stages; k++) {
            assert_in_range(first[k + 1] - first[k], 126 / stages, (126 + stages - 1) / stages);
            assert_in_range(even[k + 1] - even[k], 126 / stages, (126 + stages - 1) / stages);
        }
    }
}

static void too_many_stages(void **state)
{
    int first[8];
    double seconds[4] = { 1, 1, 1, 1 };
    assert_int_equal(par_cut_even(first, 4, 5), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "at most 4 stages"));
    assert_int_equal(par_cut_by_cost(first, 4, 5, seconds, 0, 0), TR_EINPUT);
    assert_int_equal(par_cut_even(first, 4, 0), TR_EINPUT);
}

static void by_hand(void **state)
{
    static const char *const bad[] = { "4,4", "4,4,4", "4,4,2,1", "0,5,6", "4,4,x", "4,4,3,", "4;4,3", "-1,6,6", "", "99999999999,1,1" };
    int first[4];
    assert_ok(par_cut_by_hand(first, 11, 3, "4,4,3"));
    assert_memory_equal(first, ((int[]){ 0, 4, 8, 11 }), sizeof first);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(par_cut_by_hand(first, 11, 3, bad[i]), TR_EINPUT);
        assert_non_null(strstr(tr_message(), "3 numbers of 1 or more that add up to 11, as 3,4,4"));
    }
}

static void rows_level_the_work(void **state)
{
    static const struct { int ranks; int64_t rows; double work[4], row; int64_t want[5]; } cases[] = {
        { 4, 100, { 7, 7, 7, 7 }, 0.1, { 0, 25, 50, 75, 100 } },
        { 4, 10, { 7, 7, 7, 7 }, 1, { 0, 2, 5, 7, 10 } },
        { 4, 80, { 7, 7, 8, 8 }, 0.1, { 0, 25, 50, 65, 80 } },
        { 4, 40, { 7, 30, 8, 8 }, 1, { 0, 14, 15, 27, 40 } },     /* one that is above has a row all the same */
        { 3, 3, { 1, 50, 2 }, 1, { 0, 1, 2, 3 } },
        { 2, 9, { 0, 100 }, 1, { 0, 8, 9 } },
        { 1, 5, { 3 }, 1, { 0, 5 } },
    };
    int64_t first[5];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        par_share_rows(first, cases[i].rows, cases[i].ranks, cases[i].work, cases[i].row);
        assert_memory_equal(first, cases[i].want, ((size_t)cases[i].ranks + 1) * sizeof *first);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(no_cut_is_faster), cmocka_unit_test(what_is_alike_is_cut_evenly), cmocka_unit_test(rows_level_the_work), cmocka_unit_test(too_many_stages),
                                         cmocka_unit_test(by_hand) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
