/* Records and pages of runs as short and as broken as they come, and the members of a comparison. */
#include "tests/support/support.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "recipes/metrics.h"
#include "recipes/plot.h"
#include "recipes/recipe.h"
#include "recipes/report.h"
#include "recipes/trace.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void write_file(const char *name, const char *text)
{
    struct tr_buf b = { (char *)(uintptr_t)text, strlen(text), 0 };
    assert_ok(tr_write_file(test_folder(), name, &b));
}

static char *page(void)
{
    char path[600];
    struct tr_buf b = { 0 };
    snprintf(path, sizeof path, "%s/report.html", test_folder());
    assert_ok(tr_read_file(&b, path));
    return b.data;
}

/* No number that no browser can draw, no name of a number that is none. */
static void assert_drawable(const char *html)
{
    assert_null(strstr(html, "nan"));
    assert_null(strstr(html, "inf,"));
    assert_null(strstr(html, ",inf"));
}

#define ROW(step, loss, more) "{\"step\":" #step ",\"loss\":" #loss ",\"tokens\":9,\"tokens_per_s\":3.0,\"step_s\":2.0,\"memory\":{\"optimizer\":70,\"peak\":900,\"peak_rss\":1000}" more "}\n"

static void sums_of_short_runs(void **state)
{
    struct metrics_row *rows;
    struct metrics_sum s;
    size_t n;
    assert_ok(metrics_sum_up(&s, NULL, 0));
    assert_true(isnan(s.last) && isnan(s.valid) && s.peak == 0);
    write_file("metrics.jsonl", ROW(1, 4.5, ""));
    assert_ok(metrics_read(&rows, &n, test_folder()));
    assert_ok(metrics_sum_up(&s, rows, n));
    assert_true(n == 1 && s.first == 4.5 && s.mean_last == 4.5 && isnan(s.valid) && s.seconds == 2 && s.peak == 900 && s.state == 70);
    free(rows);
    /* Half of a line, a step written again after a resume, a loss that is no number, validation now and then. */
    write_file("metrics.jsonl", ROW(1, 4.0, ",\"valid_loss\":5.0") ROW(2, 3.0, ",\"valid_loss\":2.0") "{\"step\":3,\"lo\n" ROW(2, 3.5, ",\"valid_loss\":2.5") ROW(3, null, ",\"valid_loss\":null") "{\"step\":4");
    assert_ok(metrics_read(&rows, &n, test_folder()));
    assert_ok(metrics_sum_up(&s, rows, n));
    assert_int_equal(n, 3);
    assert_true(s.first == 4 && isnan(s.last) && isnan(s.mean_last) && s.valid == 2.5 && s.best_valid == 2.5 && s.tokens_per_s == 3);
    free(rows);
}

static void reports_of_short_runs(void **state)
{
    static const char *const runs[] = { ROW(1, 4.5, ""), ROW(1, null, ""), ROW(1, 4.5, ",\"valid_loss\":null"), ROW(1, 4.5, ",\"valid_loss\":3.0"), ROW(7, 1e300, "") ROW(8, -2, "") };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        write_file("metrics.jsonl", runs[i]);
        assert_ok(report_write(test_folder(), "a <title> & more", "key = <value>\n"));
        char *html = page();
        assert_drawable(html);
        assert_non_null(strstr(html, "a &lt;title&gt; &amp; more"));
        assert_non_null(strstr(html, "key = &lt;value&gt;"));
        assert_null(strstr(html, "<script"));
        free(html);
    }
}

static void pictures_of_nothing(void **state)
{
    double x[] = { 1, 2, 3 }, none[] = { NAN, NAN, NAN }, some[] = { 5, INFINITY, 7 };
    struct plot_series own[] = { { "a", "#000", some, x, 3 }, { "b", "#000", none, x, 0 }, { "c", "#000", none, x, 3 } };
    struct plot plots[] = { { .title = "t", .unit = "u", .x_label = "x", .x = x, .n = 0, .series = own, .n_series = 0 },
                            { .title = "t", .unit = "u", .x_label = "x", .series = own, .n_series = 3, .y_to = 6 },
                            { .title = "t", .unit = "u", .x_label = "x", .x = x, .n = 1, .series = own + 2, .n_series = 1, .stacked = true, .mark = "m" },
                            { .title = "t", .unit = "u", .x_label = "x", .x = x, .n = 3, .series = own, .n_series = 1, .stacked = true, .x_to = 2, .width = 430, .height = 230 } };
    for (size_t i = 0; i < sizeof plots / sizeof *plots; i++) {
        struct tr_buf svg = { 0 };
        assert_ok(plot_svg(&svg, &plots[i]));
        assert_drawable(svg.data);
        assert_int_equal(strncmp(svg.data, "<svg ", 5), 0);
        tr_buf_release(&svg);
    }
}

/* Many names: the legend takes rows of its own, none lies beyond the picture. */
static void legends_that_are_long(void **state)
{
    double x[] = { 1, 2 }, y[] = { 1, 2 };
    struct plot_series s[20];
    struct tr_buf svg = { 0 };
    for (int i = 0; i < 20; i++) s[i] = (struct plot_series){ "a-rather-long-name", plot_colours[i % 8], y, x, 2 };
    assert_ok(plot_svg(&svg, &(struct plot){ .title = "t", .unit = "u", .x_label = "x", .series = s, .n_series = 20 }));
    int names = 0;
    for (const char *at = svg.data; (at = strstr(at, "<rect x=\"")); at += 9, names++) assert_true(atof(at + 9) >= 0 && atof(at + 9) + 26 + 7 * 18 <= 860);
    assert_int_equal(names, 20);
    tr_buf_release(&svg);
}

static void traces_that_are_cut(void **state)
{
    struct trace_columns t;
    write_file("memory.csv", "ms,weights,gradients,optimizer,activations,workspace,communication,snapshot,other\n0.5,1,2,3,4,5,6,7,8\n1.5,1,2,3,4,5,6,7,9\n2.5,1,2");
    assert_ok(trace_read(&t, test_folder()));
    assert_int_equal(t.n, 2);
    assert_true(t.ms[1] == 1.5 && t.bytes[TR_WEIGHTS][0] == 1 && t.bytes[TR_OTHER][1] == 9);
    free(t.ms);
    write_file("memory.csv", "nonsense");
    assert_ok(trace_read(&t, test_folder()));
    assert_int_equal(t.n, 0);
    free(t.ms);
    struct trace *live;
    assert_ok(trace_begin(&live));
    assert_ok(trace_end(live, test_folder()));
    assert_ok(trace_read(&t, test_folder()));
    assert_true(t.n >= 1);
    free(t.ms);
}

static const char *optimizer_key(const struct recipe *r, const char *key)
{
    for (size_t i = 0; i < r->n_optimizer; i++)
        if (!strcmp(r->optimizer[i].section, "optimizer") && !strcmp(r->optimizer[i].key, key)) return r->optimizer[i].value;
    return NULL;
}

/* File, then the member's section, then --set; keys of other optimizers are passed over, but not those of its own section. */
static void members_of_a_comparison(void **state)
{
    static const char text[] = "[model]\npreset = llama-tiny\n[data]\ntrain = x.txt\n[train]\nlr = 1e-3\nwarmup = 3\n[optimizer]\nname = galore\nrank = 8\nbeta1 = 0.8\n"
                               "[optimizer.group.head]\nmatch = lm_head*\nname = sgd\n[compare.wide]\noptimizer.name = galore\noptimizer.rank = 16\ntrain.lr = 2e-3\ntrain.warmup = 5\n";
    char path[600];
    struct recipe r;
    write_file("members.ini", text);
    snprintf(path, sizeof path, "%s/members.ini", test_folder());
    assert_ok(recipe_load_member(&r, path, NULL, 0, "wide"));
    assert_string_equal(optimizer_key(&r, "rank"), "16");
    assert_true(r.train.lr == 2e-3 && r.train.warmup == 5);
    assert_string_equal(r.run.dir, "runs/members/wide");
    assert_string_equal(r.run.name, "members: wide");
    recipe_release(&r);
    const char *sets[] = { "train.lr=4e-3", "compare.wide.optimizer.rank=32", "compare.adamw.train.warmup=7" };
    assert_ok(recipe_load_member(&r, path, sets, 3, "wide"));
    assert_string_equal(optimizer_key(&r, "rank"), "32");
    assert_true(r.train.lr == 4e-3 && r.train.warmup == 5);
    recipe_release(&r);
    assert_ok(recipe_load_member(&r, path, sets, 3, "adamw"));
    assert_null(optimizer_key(&r, "rank"));
    assert_string_equal(optimizer_key(&r, "beta1"), "0.8");
    assert_true(r.train.lr == 4e-3 && r.train.warmup == 7);
    struct tr_buf once = { 0 }, again = { 0 };
    assert_ok(recipe_print(&r, &once));
    recipe_release(&r);
    write_file("again.ini", once.data); /* what a run leaves as config.ini is a recipe that says the same */
    snprintf(path, sizeof path, "%s/again.ini", test_folder());
    assert_ok(recipe_load(&r, path, NULL, 0));
    assert_ok(recipe_print(&r, &again));
    assert_string_equal(once.data, again.data);
    recipe_release(&r);
    tr_buf_release(&once);
    tr_buf_release(&again);
    snprintf(path, sizeof path, "%s/members.ini", test_folder());
    const char *foreign[] = { "compare.sgd.optimizer.rank=4" };
    assert_int_equal(recipe_load_member(&r, path, foreign, 1, "sgd"), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "optimizer.rank"));
    recipe_release(&r);
    assert_int_equal(recipe_load_member(&r, path, NULL, 0, "wid"), TR_EINPUT);
    assert_non_null(strstr(tr_message(), "did you mean 'wide'"));
    recipe_release(&r);
}

int main(void)
{
    tr_log_quiet(true);
    const struct CMUnitTest tests[] = { cmocka_unit_test(sums_of_short_runs), cmocka_unit_test(reports_of_short_runs), cmocka_unit_test(pictures_of_nothing),
        cmocka_unit_test(legends_that_are_long), cmocka_unit_test(traces_that_are_cut), cmocka_unit_test(members_of_a_comparison) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
