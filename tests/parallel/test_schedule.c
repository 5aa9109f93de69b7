/* Pipeline schedules: every kind over sizes, damaged tables, closed forms, small ones by their text. */
#include "tests/support/support.h"
#include "libtrain/base/rng.h"
#include "parallel/schedule/schedule.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 64 };

static void every_one_is_accepted(void **state)
{
    int64_t made = 0;
    for (const char *const *name = par_schedule_names(); *name; name++)
        for (int p = 1; p <= 16; p++)
            for (int m = p; m <= MOST; m++)
                for (int v = 0; v < 3; v++) {
                    struct par_schedule s;
                    bool many = !strcmp(*name, "interleaved");
                    int chunks = many ? 2 + (m / p) % 3 : 0;
                    if (many && m % p) {
                        assert_int_equal(par_schedule_make(&s, *name, p, chunks, m, (enum par_vocabulary)v), TR_EINPUT);
                        continue;
                    }
                    assert_ok(par_schedule_make(&s, *name, p, chunks, m, (enum par_vocabulary)v));
                    if (par_schedule_check(&s)) fail_msg("%s, %d ranks, %d micro-batches, vocabulary %d: %s", *name, p, m, v, tr_message());
                    par_schedule_release(&s);
                    made++;
                }
    assert_true(made > 9000);
}

static void fewer_micro_batches_than_ranks(void **state)
{
    for (const char *const *name = par_schedule_names(); *name; name++)
        for (int p = 2; p <= 9; p++)
            for (int m = 1; m < p; m++) {
                struct par_schedule s;
                int rc = par_schedule_make(&s, *name, p, 0, m, PAR_VOCABULARY_ALG2);
                if (!strcmp(*name, "interleaved")) {
                    assert_int_equal(rc, TR_EINPUT);
                    assert_non_null(strstr(tr_message(), "use "));
                    continue;
                }
                assert_ok(rc);
                assert_ok(par_schedule_check(&s));
                par_schedule_release(&s);
            }
}

/* ---- damage */

static uint64_t draws;

static int below(int n) { return (int)tr_below(tr_key(7, TR_RNG_SAMPLE, 0, 0), draws++, (uint64_t)n); }

static int64_t find(const struct par_schedule *s, int rank, enum par_pass_kind kind, int chunk, int micro)
{
    for (int64_t i = s->row[rank]; i < s->row[rank + 1]; i++)
        if (s->pass[i].kind == kind && s->pass[i].chunk == chunk && s->pass[i].micro == micro) return i;
    return -1;
}

static void swap(struct par_schedule *s, int64_t a, int64_t b)
{
    struct par_pass p = s->pass[a];
    s->pass[a] = s->pass[b];
    s->pass[b] = p;
}

/* Two passes of a rank, one of which needs the other, change places. */
static bool against_need(struct par_schedule *s)
{
    int r = below(s->ranks), c = below(s->chunks), m = below(s->micros);
    int64_t f = find(s, r, PAR_F, c, m), b = find(s, r, PAR_B, c, m), w = find(s, r, PAR_W, c, m), S = find(s, r, PAR_S, 0, m), T = find(s, r, PAR_T, 0, m);
    switch (below(4)) {
    case 0: swap(s, f, b); return true;
    case 1: if (w >= 0) swap(s, b, w); return w >= 0;
    case 2: if (S >= 0) swap(s, S, T); return S >= 0;
    default: if (s->chunks > 1) swap(s, find(s, r, PAR_F, 0, m), find(s, r, PAR_F, s->chunks - 1, m)); return s->chunks > 1;
    }
}

/* The first backward of the last stage waits for the last forward, and the first rank's last forward waits for a backward. */
static bool round_in_a_circle(struct par_schedule *s)
{
    int r = 0, c = 0;
    while (par_stage(s, r, c) != s->ranks * s->chunks - 1) {
        if (++c < s->chunks) continue;
        c = 0;
        r++;
    }
    if (s->ranks < 2) return false;
    int64_t first = find(s, r, PAR_B, c, 0), last = find(s, r, PAR_F, c, s->micros - 1), start = find(s, 0, PAR_F, 0, s->micros - 1), back = find(s, 0, PAR_B, 0, 0);
    if (start < back || first > last) return false; /* all forwards come first: no circle */
    struct par_pass p = s->pass[first];
    memmove(&s->pass[first], &s->pass[first + 1], (size_t)(last - first) * sizeof p);
    s->pass[last] = p;
    return true;
}

static bool damage(struct par_schedule *s)
{
    int r = below(s->ranks);
    int64_t n = s->row[r + 1] - s->row[r], i = s->row[r] + below((int)n), j = s->row[r] + below((int)n);
    switch (below(8)) {
    case 0: s->pass[i] = s->pass[j]; return i != j;                                      /* one twice, one missing */
    case 1: s->pass[i].micro = below(2) ? s->micros : -1; return true;
    case 2: s->pass[i].micro = (s->pass[i].micro + 1) % s->micros; return s->micros > 1;
    case 3: s->pass[i].kind = (uint8_t)((s->pass[i].kind + 1 + below(5)) % 6); return true;
    case 4: s->pass[i].chunk++; return true;
    case 5: s->row[1 + below(s->ranks)]--; return true;                                  /* one of a rank is another's, or lost */
    case 6: return round_in_a_circle(s);
    default: return against_need(s);
    }
}

static void the_damaged_are_rejected(void **state)
{
    int rejected = 0;
    while (rejected < 4000) {
        const char *const *names = par_schedule_names();
        int p = 2 + below(8), m = p * (1 + below(3));
        struct par_schedule s;
        assert_ok(par_schedule_make(&s, names[below(5)], p, 0, m, (enum par_vocabulary)below(3)));
        struct tr_buf before = { 0 }, after = { 0 };
        assert_ok(par_schedule_text(&before, &s));
        if (damage(&s)) {
            assert_ok(par_schedule_text(&after, &s));
            int rc = par_schedule_check(&s);
            if (rc != TR_EINPUT) fail_msg("accepted:\n%swas:\n%s", after.data, before.data);
            rejected++;
        }
        tr_buf_release(&before);
        tr_buf_release(&after);
        par_schedule_release(&s);
    }
}

/* A table that keeps every need but does all forwards first holds too much. */
static void too_much_is_rejected(void **state)
{
    struct par_schedule s;
    assert_ok(par_schedule_make(&s, "1f1b", 4, 0, 8, PAR_VOCABULARY_NONE));
    for (int r = 0; r < 4; r++)
        for (int i = 0; i < 16; i++) s.pass[s.row[r] + i] = (struct par_pass){ i < 8 ? PAR_F : PAR_B, 0, i % 8 };
    assert_int_equal(par_schedule_check(&s), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "holds the activations of 8"));
    par_schedule_release(&s);
}

/* Messages out of order stop somebody when nothing is buffered. */
static void damaged_messages_are_rejected(void **state)
{
    int rejected = 0;
    while (rejected < 300) {
        int p = 2 + below(5);
        struct par_schedule s;
        struct par_steps t;
        assert_ok(par_schedule_make(&s, par_schedule_names()[below(5)], p, 0, 2 * p, (enum par_vocabulary)below(3)));
        assert_ok(par_schedule_lower(&t, &s));
        assert_ok(par_steps_check(&t, &s));
        int r = below(p);
        int64_t i = t.row[r] + below((int)(t.row[r + 1] - t.row[r]));
        if (t.step[i].kind != PAR_COMPUTE) {
            t.step[i].pass.micro = (t.step[i].pass.micro + 1) % s.micros;
            assert_int_equal(par_steps_check(&t, &s), TR_EINPUT);
            rejected++;
        }
        par_steps_release(&t);
        par_schedule_release(&s);
    }
}

/* ---- closed forms */

struct unit { double one[1024], b[1024], w[1024], v[64], zero[1024]; struct par_costs costs; };

static struct unit *units(double b, double w, double v)
{
    static struct unit u;
    for (int i = 0; i < 1024; i++) u.one[i] = 1, u.b[i] = b, u.w[i] = w, u.zero[i] = 0;
    for (int i = 0; i < 64; i++) u.v[i] = v;
    u.costs = (struct par_costs){ .seconds = { u.one, u.b, u.w, u.v, u.v }, .held = u.one, .kept = u.one, .shard = u.zero };
    return &u;
}

static struct par_simulation simulate(const char *name, int p, int chunks, int m, enum par_vocabulary v, const struct unit *u)
{
    struct par_schedule s;
    struct par_simulation out;
    assert_ok(par_schedule_make(&s, name, p, chunks, m, v));
    assert_ok(par_schedule_simulate(&out, &s, &u->costs));
    par_schedule_release(&s);
    return out;
}

static void times_are_the_closed_forms(void **state)
{
    for (int p = 2; p <= 16; p++)
        for (int k = 1; k <= 4; k++) {
            struct par_simulation a = simulate("1f1b", p, 0, k * p, PAR_VOCABULARY_NONE, units(1, 1, 0));
            assert_true(a.seconds == 3.0 * k * p + 3.0 * (p - 1));
            assert_true(fabs(a.bubble - (p - 1.0) / (k * p + p - 1.0)) < 1e-12);
            par_simulation_release(&a);
            for (int v = 2; v <= 4; v++) {
                a = simulate("interleaved", p, v, k * p, PAR_VOCABULARY_NONE, units(1, 1, 0));
                if (a.seconds != 3.0 * k * p * v + 3.0 * (p - 1)) fail_msg("interleaved p %d v %d m %d: %g", p, v, k * p, a.seconds);
                par_simulation_release(&a);
            }
            a = simulate("zero-bubble", p, 0, k * p, PAR_VOCABULARY_NONE, units(1, 1, 0));
            if (a.seconds > 3.0 * k * p + (p - 1)) fail_msg("zero-bubble p %d m %d: %g", p, k * p, a.seconds);
            par_simulation_release(&a);
        }
}

static void activations_are_the_closed_forms(void **state)
{
    for (int p = 2; p <= 16; p++)
        for (int v = 0; v < 3; v++) {
            static const int more[] = { 0, 2, 1 };
            struct par_simulation a = simulate("1f1b", p, 0, 4 * p, (enum par_vocabulary)v, units(1, 1, 0.25));
            for (int r = 0; r < p; r++) assert_true(a.peak[r] == p - r + more[v]);
            par_simulation_release(&a);
            a = simulate("zero-bubble", p, 0, 4 * p, (enum par_vocabulary)v, units(1, 1, 0.25));
            for (int r = 0; r < p; r++) assert_true(a.peak[r] <= p + more[v]);
            par_simulation_release(&a);
        }
}

static void v_half_is_balanced(void **state)
{
    for (int p = 2; p <= 16; p++)
        for (int v = 0; v < 3; v++) {
            struct unit *u = units(1, 1, 0.25);
            u->costs.kept = u->zero; /* given back at B */
            static const int more[] = { 0, 2, 1 };
            struct par_simulation a = simulate("v-half", p, 0, 8 * p, (enum par_vocabulary)v, u);
            for (int r = 0; r < p; r++) {
                if (a.peak[r] > 2 * ((p + 2) / 2 + more[v])) fail_msg("p %d vocabulary %d rank %d holds %g", p, v, r, a.peak[r]);
                if (fabs(a.peak[r] - a.peak[0]) > 1) fail_msg("p %d vocabulary %d: rank %d holds %g, rank 0 %g", p, v, r, a.peak[r], a.peak[0]);
            }
            par_simulation_release(&a);
        }
}

/* Vocabulary passes in place: a barrier costs at most an interval. */
static void vocabulary_costs_no_more_waiting(void **state)
{
    for (const char *const *name = par_schedule_names(); *name; name++)
        for (int p = 2; p <= 16; p *= 2)
            for (int v = 1; v < 3; v++) {
                struct par_simulation plain = simulate(*name, p, 0, 8 * p, PAR_VOCABULARY_NONE, units(1, 1, 0)), with = simulate(*name, p, 0, 8 * p, (enum par_vocabulary)v, units(1, 1, 0.125));

                if (with.bubble > plain.bubble + (v == 1 ? 2 : 1) / (8.0 * p) + 0.02) fail_msg("%s p %d vocabulary %d: bubble %.4f, plain %.4f", *name, p, v, with.bubble, plain.bubble);
                par_simulation_release(&plain);
                par_simulation_release(&with);
            }
}

/* ---- by their text */

static void small_ones(void **state)
{
    static const struct { const char *name; int ranks, chunks, micros; enum par_vocabulary v; const char *text; } golden[] = {
        { "1f1b", 2, 0, 3, PAR_VOCABULARY_NONE, "F0 F1 B0 F2 B1 B2\nF0 B0 F1 B1 F2 B2\n" },
        { "1f1b", 3, 0, 3, PAR_VOCABULARY_NONE, "F0 F1 F2 B0 B1 B2\nF0 F1 B0 F2 B1 B2\nF0 B0 F1 B1 F2 B2\n" },
        { "1f1b", 2, 0, 4, PAR_VOCABULARY_ALG2, "F0 F1 S0 F2 T0 S1 B0 F3 T1 S2 B1 T2 S3 B2 T3 B3\nF0 S0 F1 T0 S1 B0 F2 T1 S2 B1 F3 T2 S3 B2 T3 B3\n" },
        { "1f1b", 2, 0, 4, PAR_VOCABULARY_ALG1, "F0 F1 S0 F2 T0 S1 F3 T1 S2 B0 T2 S3 B1 T3 B2 B3\nF0 S0 F1 T0 S1 F2 T1 S2 B0 F3 T2 S3 B1 T3 B2 B3\n" },
        { "interleaved", 2, 2, 2, PAR_VOCABULARY_NONE, "F0a F1a F0b F1b B0b B1b B0a B1a\nF0a F1a F0b B0b F1b B1b B0a B1a\n" },
        { "interleaved", 2, 2, 4, PAR_VOCABULARY_ALG2, "F0a F1a F0b S0 F1b T0 S1 F2a B0b T1 F3a B1b F2b B0a S2 F3b B1a T2 S3 B2b T3 B3b B2a B3a\nF0a F1a F0b S0 F1b T0 S1 B0b F2a T1 B1b F3a B0a F2b S2 B1a F3b T2 S3 B2b T3 B3b B2a B3a\n" },
        { "zero-bubble", 2, 0, 3, PAR_VOCABULARY_NONE, "F0 F1 B0 W0 F2 B1 W1 B2 W2\nF0 B0 F1 B1 W0 F2 B2 W1 W2\n" },
        { "zero-bubble", 3, 0, 4, PAR_VOCABULARY_NONE, "F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3\nF0 F1 B0 F2 B1 W0 F3 B2 W1 B3 W2 W3\nF0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3\n" },
        { "zero-bubble", 2, 0, 3, PAR_VOCABULARY_ALG1, "F0 F1 S0 F2 T0 S1 T1 S2 B0 W0 T2 B1 W1 B2 W2\nF0 S0 F1 T0 S1 F2 T1 S2 B0 T2 B1 W0 B2 W1 W2\n" },
        { "v-half", 2, 0, 2, PAR_VOCABULARY_NONE, "F0a F0b F1a B0b W0b F1b B0a B1b W1b W0a B1a W1a\nF0a F0b F1a F1b B0b W0b B0a W0a B1b W1b B1a W1a\n" },
        { "v-half", 2, 0, 3, PAR_VOCABULARY_ALG2, "F0a F0b S0 F1a F1b T0 S1 F2a B0b W0b F2b T1 S2 B0a B1b W1b W0a T2 B1a B2b W2b W1a B2a W2a\nF0a F0b S0 F1a F1b T0 S1 F2a F2b B0b W0b T1 S2 B0a W0a B1b W1b T2 B1a W1a B2b W2b B2a W2a\n" },
        { "v-min", 2, 0, 2, PAR_VOCABULARY_NONE, "F0a F0b B0b W0b F1a B0a W0a F1b B1b W1b B1a W1a\nF0a F0b B0b B0a F1a F1b W0b W0a B1b B1a W1b W1a\n" },
    };
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        struct par_schedule s;
        struct tr_buf text = { 0 };
        assert_ok(par_schedule_make(&s, golden[i].name, golden[i].ranks, golden[i].chunks, golden[i].micros, golden[i].v));
        assert_ok(par_schedule_text(&text, &s));
        assert_string_equal(text.data, golden[i].text);
        tr_buf_release(&text);
        par_schedule_release(&s);
    }
}

static void refused(void **state)
{
    static const struct { const char *name; int ranks, chunks, micros; const char *says; } bad[] = {
        { "1f1c", 2, 0, 4, "did you mean '1f1b'" }, { "interleaved", 4, 2, 6, "use 4 or 8, or 1f1b" }, { "interleaved", 4, 2, 3, "use 4, or 1f1b" },
        { "interleaved", 2, 1, 4, "needs 2 or more" }, { "v-half", 2, 3, 4, "it has 2" }, { "1f1b", 0, 0, 4, "at least 1" }, { "1f1b", 2, 0, 0, "at least 1" },
        { "1f1b", 4096, 0, 1 << 24, "use larger micro-batches" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct par_schedule s;
        assert_int_equal(par_schedule_make(&s, bad[i].name, bad[i].ranks, bad[i].chunks, bad[i].micros, PAR_VOCABULARY_NONE), TR_EINPUT);
        if (!strstr(tr_message(), bad[i].says)) fail_msg("'%s' does not say '%s'", tr_message(), bad[i].says);
    }
}

static void pictures(void **state)
{
    struct unit *u = units(1, 1, 0);
    struct par_schedule s;
    struct par_simulation m;
    struct tr_buf text = { 0 }, svg = { 0 };
    assert_ok(par_schedule_make(&s, "1f1b", 2, 0, 2, PAR_VOCABULARY_NONE));
    assert_ok(par_schedule_simulate(&m, &s, &u->costs));
    assert_ok(par_schedule_draw(&text, &s, &m, 18));
    assert_memory_equal(text.data, "  0 FFFF....BBBB..BBBB\n  1 ..FFBBBBFFBBBB....\n", 46);
    assert_ok(par_schedule_svg(&svg, &s, &m, &u->costs, "title"));
    int rects = 0;
    for (const char *p = svg.data; (p = strstr(p, "<rect class=")); p++) rects++;
    assert_int_equal(rects, 8);
    assert_non_null(strstr(svg.data, "rank 0: at most 2 bytes"));
    tr_buf_release(&text);
    tr_buf_release(&svg);
    par_simulation_release(&m);
    par_schedule_release(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_one_is_accepted), cmocka_unit_test(fewer_micro_batches_than_ranks), cmocka_unit_test(the_damaged_are_rejected), cmocka_unit_test(too_much_is_rejected),
        cmocka_unit_test(damaged_messages_are_rejected), cmocka_unit_test(times_are_the_closed_forms), cmocka_unit_test(activations_are_the_closed_forms),
        cmocka_unit_test(v_half_is_balanced), cmocka_unit_test(vocabulary_costs_no_more_waiting), cmocka_unit_test(small_ones), cmocka_unit_test(refused), cmocka_unit_test(pictures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
