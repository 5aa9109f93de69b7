/* Every optimizer: recorded runs of the public implementations, and what must hold for each member of the family. */
#include "tests/support/support.h"
#include "libtrain/base/file.h"
#include "libtrain/base/h5.h"
#include "libtrain/base/rng.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include "optim/optim.h"
#include "recipes/replay.h"
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *tests_folder;

/* ---- recorded runs */

static float *read_all(const char *file, const char *name, int64_t *count, int64_t *first)
{
    struct tr_h5 *f;
    enum tr_dtype type;
    int ndim;
    int64_t dim[4];
    assert_ok(tr_h5_open_known(&f, file));
    assert_ok(tr_h5_info(f, name, &type, &ndim, dim));
    *first = dim[0];
    *count = 1;
    for (int i = 0; i < ndim; i++) *count *= dim[i];
    float *x = malloc((size_t)*count * sizeof *x);
    assert_ok(tr_h5_read(f, name, TR_F32, x));
    assert_ok(tr_h5_close(f));
    return x;
}

/* The rule of reference: within 1e-5 of the largest weight and 1e-3 of the way travelled. */
static void assert_follows(const char *is, const char *want, const char *param)
{
    char name[2][160];
    int64_t n, m, k, steps;
    snprintf(name[0], sizeof name[0], "param/%s/weight", param);
    snprintf(name[1], sizeof name[1], "param/%s/init", param);
    float *a = read_all(is, name[0], &n, &steps), *b = read_all(want, name[0], &m, &steps), *init = read_all(want, name[1], &k, &m);
    double off = 0, largest = 0, travel = 0;
    assert_int_equal(n, k * steps);
    for (int64_t i = 0; i < n; i++) {
        off = fmax(off, isfinite(a[i]) ? fabs((double)a[i] - (double)b[i]) : INFINITY);
        largest = fmax(largest, fabs((double)b[i]));
        travel = fmax(travel, fabs((double)b[i] - (double)init[i % k]));
    }
    if (!(off <= 1e-5 * largest && off <= 1e-3 * travel)) fail_msg("%s %s: off by %g of the weights, %g of the travel", want, param, off / largest, off / travel);
    free(a);
    free(b);
    free(init);
}

static void recorded_runs(void **state)
{
    static const char *const files[] = { "sgd", "sgd_momentum", "signsgd_momentum", "adamw", "adamw_hf", "adamw8bit", "adafactor", "adafactor_relative", "lion", "lomo",
        "adalomo", "apollo", "apollo_mini", "apollo_no_limiter", "galore_adamw", "galore_full", "galore_adamw8bit", "frugal_columns_keep", "frugal_rows",
        "frugal_randk", "frugal_svd", "frugal_lion_columns", "frugal_sgd_columns", "frugal_block_random", "frugal_block_descending", "sophia_g", "sophia_h", "galore_adafactor", "natural_galore", "muon", "soap", "cosmos", "mezo", "zo_sgd_one_side", "zo_sgd_q", "zo_sgd_sign", "zo_sgd_momentum", "zo_sgd_conservative", "zo_adam",
        "zo_block_coordinate", "zo_block_joint", "forward_gradient", "q_apollo", "q_apollo_mini_nearest" };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char want[600], is[600];
        snprintf(want, sizeof want, "%s/optim/reference/%s.h5", tests_folder, files[i]);
        snprintf(is, sizeof is, "%s/%s.h5", test_folder(), files[i]);
        assert_ok(recipe_replay(want, is));
        bool losses = !strncmp(files[i], "zo_", 3) || !strcmp(files[i], "mezo") || !strcmp(files[i], "forward_gradient");
        assert_follows(is, want, losses ? "layers.0.attn.weight" : "attn.weight");
        assert_follows(is, want, losses ? "layers.1.mlp.weight" : "mlp.weight");
        assert_follows(is, want, losses ? "layers.1.layernorm.weight" : "norm.weight");
    }
}

static void recordings_that_are_wrong(void **state)
{
    char good[600], bad[600], out[600];
    snprintf(good, sizeof good, "%s/optim/reference/apollo.h5", tests_folder);
    snprintf(bad, sizeof bad, "%s/bad.h5", test_folder());
    snprintf(out, sizeof out, "%s/out.h5", test_folder());
    assert_int_equal(recipe_replay("/nowhere.h5", out), TR_EINPUT);
    struct tr_buf whole = { 0 };
    assert_ok(tr_read_file(&whole, good));
    for (size_t cut = 0; cut < whole.size; cut += whole.size / 7) {
        FILE *f = fopen(bad, "wb");
        assert_int_equal(fwrite(whole.data, 1, cut, f), cut);
        fclose(f);
        assert_int_equal(recipe_replay(bad, out), TR_EINPUT);
        assert_false(tr_exists(out));
    }
    tr_buf_release(&whole);
    static const char *const kinds[] = { "no-such", "sgd" };
    for (int i = 0; i < 2; i++) { /* unknown; and a key that sgd does not have */
        struct tr_h5 *f;
        assert_ok(tr_h5_create(&f, bad));
        assert_ok(tr_h5_set_text(f, "/", "optimizer", kinds[i]));
        assert_ok(tr_h5_set_real(f, "/", "lr", 0.1));
        assert_ok(tr_h5_set_int(f, "/", "steps", 1));
        assert_ok(tr_h5_set_real(f, "/", "beta7", 0.1));
        assert_ok(tr_h5_close(f));
        assert_int_equal(recipe_replay(bad, out), TR_EINPUT);
        assert_non_null(strstr(tr_message(), i ? "beta7" : "no-such"));
        assert_false(tr_exists(out));
    }
}

/* ---- the family */

enum { PARAMS = 5 };
struct family { struct tr_param p[PARAMS]; struct opt *o; char kind[40]; struct opt_entry e[3]; };

/* Settings that are as good as kinds of their own. */
static const struct { const char *kind, *key, *value; } variants[] = { { "galore", "svd", "random" }, { "frugal", "selection", "blockwise" },
    { "adamw", "state_dtype", "bf16" }, { "adamw-hf", "state_dtype", "bf16" }, { "lion", "state_dtype", "bf16" }, { "galore", "state_dtype", "bf16" },
    { "natural-galore", "state_dtype", "bf16" }, { "apollo", "state_dtype", "bf16" }, { "frugal", "state_dtype", "bf16" }, { "frugal-lion", "state_dtype", "bf16" },
    { "adamw", "state_dtype", "int8" }, { "galore", "state_dtype", "int8" } };
enum { VARIANTS = sizeof variants / sizeof *variants };

static int kinds(void)
{
    int n = 0;
    while (opt_kinds[n]) n++;
    return n;
}
static int members(void) { return kinds() + VARIANTS; }

static int member(const char *kind)
{
    int k = 0;
    while (opt_kinds[k] != opt_find(kind)) k++;
    return k;
}

static struct opt_entry entry(const char *key, const char *value)
{
    return (struct opt_entry){ (char *)(uintptr_t)"optimizer", (char *)(uintptr_t)key, (char *)(uintptr_t)value, { 0 } };
}

static const struct { enum tr_role role; int64_t rows, cols; } shapes[PARAMS] = { { TR_EMBEDDING, 30, 72 }, { TR_MATRIX, 40, 150 }, { TR_MATRIX, 150, 40 },
    { TR_MATRIX, 72, 72 }, { TR_NORM, 0, 72 } };

static void fill(struct tr_tensor *t, uint64_t seed)
{
    struct tr_tensor f;
    assert_ok(tr_tensor_arena(&f, TR_WORKSPACE, TR_F32, t->ndim, t->dim, 0));
    tr_kernels()->random_normal(&f, tr_key(seed, TR_RNG_INIT, 1, 0), 0.1f);
    tr_kernels()->copy(t, &f);
    tr_tensor_release(&f);
}

static void family_init(struct family *f, int k, enum tr_dtype dtype)
{
    int v = k - kinds();
    memset(f, 0, sizeof *f);
    snprintf(f->kind, sizeof f->kind, "%s%s%s", v < 0 ? opt_kinds[k]->name : variants[v].kind, v < 0 ? "" : " ", v < 0 ? "" : variants[v].value);
    f->e[0] = entry("name", v < 0 ? opt_kinds[k]->name : variants[v].kind);
    f->e[1] = entry("weight_decay", "0");
    if (v >= 0) f->e[2] = entry(variants[v].key, variants[v].value);
    for (int i = 0; i < PARAMS; i++) {
        struct tr_param *p = &f->p[i];
        *p = (struct tr_param){ .role = shapes[i].role, .index = i, .trainable = true };
        snprintf(p->name, sizeof p->name, "w%d", i);
        if (shapes[i].rows) assert_ok(tr_tensor_new(&p->value, TR_WEIGHTS, dtype, TR_DIMS(shapes[i].rows, shapes[i].cols)));
        else assert_ok(tr_tensor_new(&p->value, TR_WEIGHTS, dtype == TR_INT8 ? TR_BF16 : dtype, TR_DIMS(shapes[i].cols)));
        fill(&p->value, (uint64_t)i);
    }
    size_t n = v >= 0 ? 3 : opt_has_key(opt_kinds[k]->name, "weight_decay") ? 2 : 1;
    struct opt_setup setup = { .entry = f->e, .n = n, .path = "test", .seed = 9 };
    assert_ok(opt_new(&f->o, &setup, f->p, PARAMS));
}

static void family_release(struct family *f)
{
    opt_free(f->o);
    for (int i = 0; i < PARAMS; i++) tr_tensor_release(&f->p[i].value);
}

static const struct opt_kind *kind_of(const struct family *f) { return opt_find(f->e[0].value); }
static const struct opt_kind *kind_at(int k) { return k < kinds() ? opt_kinds[k] : opt_find(variants[k - kinds()].kind); }

/* Rules that move weights by little steps for a loss or a probe keep to f32. */
static bool takes(const struct opt_kind *k, enum tr_dtype dtype) { return dtype == TR_F32 || (k->needs == OPT_GRADIENT && k->probe != OPT_PROBE_HESSIAN); }

/* A loss whose gradient is that of family_step. */
struct linear { struct family *f; int64_t step; float scale; };

static int linear_loss(void *self, double *loss)
{
    struct linear *l = self;
    *loss = 0;
    for (int i = 0; i < PARAMS; i++) {
        const struct tr_tensor *w = &l->f->p[i].value;
        struct tr_tensor g;
        assert_ok(tr_tensor_arena(&g, TR_WORKSPACE, TR_F32, w->ndim, w->dim, 0));
        tr_kernels()->random_normal(&g, tr_key(5, TR_RNG_PROBE, (uint64_t)i, (uint64_t)l->step), l->scale);
        for (int64_t k = 0; k < tr_count(w); k++) *loss += (double)((float *)w->data)[k] * (double)((float *)g.data)[k];
        tr_tensor_release(&g);
    }
    return TR_OK;
}

/* One step; the gradients follow from its number, rows wider than the matrix. scale 0: no gradient. */
static void family_step(struct family *f, int64_t step, float scale)
{
    if (kind_of(f)->needs != OPT_GRADIENT) {
        struct linear l = { f, step, scale };
        struct opt_evaluator e = { .self = &l, .loss = linear_loss };
        double at;
        assert_ok(opt_step_by_losses(f->o, 1e-3, step, &e, &at));
        return;
    }
    assert_ok(opt_begin(f->o, step));
    for (int i = 0; i < PARAMS; i++) {
        struct tr_tensor g, wide;
        int64_t rows = shapes[i].rows ? shapes[i].rows : 1, cols = shapes[i].cols;
        assert_ok(tr_tensor_arena(&wide, TR_GRADIENTS, TR_F32, TR_DIMS(rows, cols), shapes[i].rows ? 16 : 0));
        g = wide;
        g.owner = 0;
        if (!shapes[i].rows) g = tr_tensor_view(wide.data, TR_F32, 1, &cols);
        if (scale == 0) tr_kernels()->fill(&g, 0);
        else tr_kernels()->random_normal(&g, tr_key(5, TR_RNG_PROBE, (uint64_t)i, (uint64_t)step), scale);
        assert_ok(opt_update(f->o, &f->p[i], &g, 1e-3, step, NULL));
        tr_tensor_release(&wide);
    }
}

static void assert_same_weights(const struct family *a, const struct family *b, const char *why)
{
    for (int i = 0; i < PARAMS; i++)
        if (memcmp(a->p[i].value.data, b->p[i].value.data, tr_bytes(&a->p[i].value))) fail_msg("%s: parameter %d differs %s", a->kind, i, why);
}

struct kept { void *bytes[64]; size_t size[64]; int n, at; bool restore; };

static int keep_bytes(struct kept *k, void *p, size_t n)
{
    if (k->restore) {
        assert_int_equal(k->size[k->at], n);
        memcpy(p, k->bytes[k->at++], n);
        return TR_OK;
    }
    k->size[k->n] = n;
    k->bytes[k->n] = memcpy(malloc(n), p, n);
    k->n++;
    return TR_OK;
}
static int keep_tensor(void *self, const char *name, struct tr_tensor *t) { return keep_bytes(self, t->data, tr_bytes(t)); }
static int keep_words(void *self, const char *name, uint64_t *words, int64_t count) { return keep_bytes(self, words, 8 * (size_t)count); }

static void formula_is_ledger(void **state)
{
    for (int k = 0; k < members(); k++) {
        struct family f;
        size_t before = tr_mem_ledger().now[TR_OPTIMIZER];
        family_init(&f, k, TR_F32);
        size_t used = tr_mem_ledger().now[TR_OPTIMIZER] - before;
        if (used == opt_state_bytes(f.o) && kind_of(&f)->needs == OPT_GRADIENT) { /* and where state comes and goes */
            family_step(&f, 1, 0.1f);
            used = tr_mem_ledger().now[TR_OPTIMIZER] - before;
        }
        if (used != opt_state_bytes(f.o)) fail_msg("%s: %zu bytes, %zu by the formula", f.kind, used, opt_state_bytes(f.o));
        family_release(&f);
        assert_int_equal(tr_mem_ledger().now[TR_OPTIMIZER], before);
    }
}

static void nothing_moves_without_a_gradient(void **state)
{
    for (int k = 0; k < members(); k++) {
        struct family f, still;
        family_init(&f, k, TR_F32);
        family_init(&still, k, TR_F32);
        for (int64_t t = 1; t < 4; t++) family_step(&f, t, 0);
        if (kind_of(&f)->needs == OPT_GRADIENT) assert_same_weights(&f, &still, "after steps without a gradient");
        else
            for (int i = 0; i < PARAMS; i++) /* moved and moved back: to a few units in the last place */
                for (int64_t n = 0; n < tr_count(&f.p[i].value); n++)
                    assert_true(fabsf(((float *)f.p[i].value.data)[n] - ((float *)still.p[i].value.data)[n]) < 1e-6f);
        family_release(&f);
        family_release(&still);
    }
}

/* Steps that follow the gradient reduce <w, g> whatever the rule. */
static void steps_go_down(void **state)
{
    for (int k = 0; k < members(); k++)
        for (int dtype = 0; dtype < 3; dtype++) {
            struct family f;
            struct tr_tensor before, after, g;
            int64_t n = 150 * 40;
            enum tr_dtype type = dtype == 0 ? TR_F32 : dtype == 1 ? TR_BF16 : TR_INT8;
            if (!takes(kind_at(k), type)) continue;
            family_init(&f, k, type);
            assert_ok(tr_tensor_new(&before, TR_OTHER, TR_F32, TR_DIMS(150, 40)));
            assert_ok(tr_tensor_new(&after, TR_OTHER, TR_F32, TR_DIMS(150, 40)));
            assert_ok(tr_tensor_new(&g, TR_OTHER, TR_F32, TR_DIMS(150, 40)));
            double dot = 0;
            for (int64_t t = 1; t <= 2 && dot == 0; t++) { /* the first may only look */
                tr_kernels()->copy(&before, &f.p[2].value);
                family_step(&f, t, 0.1f);
                tr_kernels()->copy(&after, &f.p[2].value);
                tr_kernels()->random_normal(&g, tr_key(5, TR_RNG_PROBE, 2, (uint64_t)t), 0.1f);
                for (int64_t i = 0; i < n; i++) dot += ((double)((float *)after.data)[i] - (double)((float *)before.data)[i]) * (double)((float *)g.data)[i];
            }
            if (!(dot < 0)) fail_msg("%s, type %d: the step goes up (%g)", f.kind, dtype, dot);
            tr_tensor_release(&g);
            tr_tensor_release(&after);
            tr_tensor_release(&before);
            family_release(&f);
        }
}

static void continued_is_undisturbed(void **state)
{
    for (int k = 0; k < members(); k++)
        for (int dtype = 0; dtype < 3; dtype++) {
            enum tr_dtype type = dtype == 0 ? TR_F32 : dtype == 1 ? TR_BF16 : TR_INT8;
            struct family one, two;
            struct kept kept = { .n = 0 };
            if (!takes(kind_at(k), type)) continue;
            struct tr_visitor v = { &kept, keep_tensor, keep_words };
            family_init(&one, k, type);
            for (int64_t t = 1; t <= 3; t++) family_step(&one, t, 0.1f);
            assert_ok(opt_visit(one.o, &v));
            family_init(&two, k, type);
            for (int i = 0; i < PARAMS; i++) {
                memcpy(two.p[i].value.data, one.p[i].value.data, tr_bytes(&one.p[i].value));
                if (one.p[i].value.quant.scale) memcpy(two.p[i].value.quant.scale, one.p[i].value.quant.scale, tr_quant_bytes(&one.p[i].value));
            }
            kept.restore = true;
            v.step = 3;
            assert_ok(opt_visit(two.o, &v));
            assert_int_equal(kept.at, kept.n);
            for (int64_t t = 4; t <= 6; t++) {
                family_step(&one, t, 0.1f);
                family_step(&two, t, 0.1f);
            }
            assert_same_weights(&one, &two, "after its state was saved and read");
            while (kept.n > 0) free(kept.bytes[--kept.n]);
            family_release(&one);
            family_release(&two);
        }
}

static void threads_do_not_show(void **state)
{
    int threads = omp_get_max_threads();
    for (int k = 0; k < members(); k++) {
        struct family one, two;
        enum tr_dtype type = takes(kind_at(k), TR_BF16) ? TR_BF16 : TR_F32;
        omp_set_num_threads(1);
        family_init(&one, k, type);
        for (int64_t t = 1; t <= 3; t++) family_step(&one, t, 0.1f);
        omp_set_num_threads(2);
        family_init(&two, k, type);
        for (int64_t t = 1; t <= 3; t++) family_step(&two, t, 0.1f);
        assert_same_weights(&one, &two, "with another number of threads");
        family_release(&one);
        family_release(&two);
    }
    omp_set_num_threads(threads);
}

/* ---- rules that learn from losses */

struct line { struct tr_param p; float g[72]; };

static int line_loss(void *self, double *loss)
{
    struct line *l = self;
    *loss = 0;
    for (int k = 0; k < 72; k++) *loss += (double)((float *)l->p.value.data)[k] * (double)l->g[k];
    return TR_OK;
}

/* On a linear loss the slope along z is <g, z> whatever eps is, and the mean of <g, z> z over many draws is g. */
static void slopes_average_to_the_gradient(void **state)
{
    enum { DRAWS = 4000 };
    struct line l = { .p = { .name = "w", .role = TR_NORM, .trainable = true } };
    struct opt_entry name = entry("name", "zo-sgd");
    struct opt_setup setup = { .entry = &name, .n = 1, .path = "test", .seed = 9 };
    struct opt_evaluator e = { .self = &l, .loss = line_loss };
    struct opt *o;
    double at, off = 0, own = 0;
    assert_ok(tr_tensor_new(&l.p.value, TR_WEIGHTS, TR_F32, TR_DIMS(72)));
    test_normal(l.g, 72, 3, 1);
    assert_ok(opt_new(&o, &setup, &l.p, 1));
    for (int64_t t = 1; t <= DRAWS; t++) assert_ok(opt_step_by_losses(o, 1.0 / DRAWS, t, &e, &at));
    for (int k = 0; k < 72; k++) {
        off += pow(-(double)((float *)l.p.value.data)[k] - (double)l.g[k], 2);
        own += pow((double)l.g[k], 2);
    }
    assert_true(off < own * 72.0 / DRAWS * 3); /* the mean's variance is about |g|^2 (72 + 1) / DRAWS */
    opt_free(o);
    tr_tensor_release(&l.p.value);
}

static int bowl_loss(void *self, double *loss)
{
    struct family *f = self;
    *loss = 0;
    for (int i = 0; i < PARAMS; i++)
        for (int64_t k = 0; k < tr_count(&f->p[i].value); k++) *loss += 0.5 * pow((double)((float *)f->p[i].value.data)[k], 2);
    return TR_OK;
}

static void conservative_never_loses(void **state)
{
    struct family f;
    struct opt_evaluator e = { .self = &f, .loss = bowl_loss };
    double last, now, start;
    family_init(&f, member("zo-sgd-conservative"), TR_F32);
    assert_ok(bowl_loss(&f, &last));
    start = last;
    for (int64_t t = 1; t <= 30; t++) {
        double at;
        assert_ok(opt_step_by_losses(f.o, t % 2 ? 1e-4 : 1, t, &e, &at)); /* every other step is far too large */
        assert_ok(bowl_loss(&f, &now));
        assert_true(now <= last * (1 + 1e-5));
        last = now;
    }
    assert_true(last < start);
    family_release(&f);
}

/* A loss by its gradients cannot stand beside one by its values, nor can weights that lose small moves. */
/* Beside rules that learn from gradients those of losses stand still in backward; not beside each other's, nor a probe's. */
static void sorts_that_mix(void **state)
{
    static const struct { const char *kind, *group, *says; } pairs[] = { { "adamw", "zo-sgd", NULL }, { "zo-adam", "galore", NULL }, { "zo-sgd", "zo-adam", "one rule" },
        { "zo-sgd", "forward-gradient", "one rule" }, { "sophia-g", "zo-sgd", "probes the curvature" } };
    for (size_t k = 0; k < sizeof pairs / sizeof *pairs; k++) {
        struct family f;
        struct opt *o = NULL;
        family_init(&f, member("sgd"), TR_F32);
        struct opt_entry e[3] = { entry("name", pairs[k].kind), entry("name", pairs[k].group), entry("match", "w1, w2") };
        for (int i = 1; i < 3; i++) e[i].section = (char *)(uintptr_t)"optimizer.group.some";
        struct opt_setup setup = { .entry = e, .n = 3, .path = "test", .seed = 9 };
        int rc = opt_new(&o, &setup, f.p, PARAMS);
        if (pairs[k].says) {
            assert_int_equal(rc, TR_EINPUT);
            assert_non_null(strstr(tr_message(), pairs[k].says));
        } else {
            assert_ok(rc);
            assert_true(opt_needs(o) == OPT_GRADIENT && opt_needs_losses(o));
            for (int i = 0; i < PARAMS; i++) assert_int_equal(f.p[i].frozen, (i == 1 || i == 2) == (k == 0));
        }
        opt_free(o);
        family_release(&f);
    }
}

/* ---- moments in bf16 and in 8 bits */

static size_t state_of(const char *kind, const char *dtype)
{
    struct opt_entry e[] = { entry("name", kind), entry("state_dtype", dtype) };
    struct tr_param p = { .name = "w", .role = TR_MATRIX, .trainable = true };
    struct opt_setup setup = { .entry = e, .n = 2, .path = "test" };
    struct opt *o;
    assert_ok(tr_tensor_new(&p.value, TR_WEIGHTS, TR_F32, TR_DIMS(256, 256)));
    assert_ok(opt_new(&o, &setup, &p, 1));
    size_t bytes = opt_state_bytes(o);
    opt_free(o);
    tr_tensor_release(&p.value);
    return bytes;
}

static void types_of_moments(void **state)
{
    assert_int_equal(state_of("adamw", "f32"), 8 * 65536);
    assert_int_equal(state_of("adamw", "bf16"), 4 * 65536);
    assert_int_equal(state_of("adamw", "int8"), 2 * 65536 + 8 * 256);
    assert_int_equal(state_of("galore", "bf16"), 4 * 128 * 256 + 2 * 2 * 128 * 256); /* the basis stays */
    assert_int_equal(state_of("adamw-8bit", "int8"), state_of("adamw", "int8"));
    static const char *const bad[][3] = { { "sophia-g", "bf16", "adamw-hf" }, { "lion", "int8", "galore-8bit" }, { "adamw-8bit", "bf16", "frugal" }, { "adamw", "int4", "int8" } };
    for (int i = 0; i < 4; i++) {
        struct opt_entry e[] = { entry("name", bad[i][0]), entry("state_dtype", bad[i][1]) };
        assert_int_equal(opt_check(e, 2, "test"), TR_EINPUT);
        if (!strstr(tr_message(), bad[i][2])) fail_msg("%s", tr_message());
    }
}

static void recipes_that_are_wrong(void **state)
{
    static const char *const keys[][4] = { { "sgd", "beta1", "0.9", "sgd has none" }, { "signsgd", "beta2", "0.9", "leave it out" }, { "galore", "proj_type", "foo", "std|" },
        { "galore", "svd", "fast", "exact|random" }, { "frugal", "selection", "foo", "columns" }, { "galore", "rnak", "4", "optimizer.rank" } };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct opt_entry e[] = { entry("name", keys[i][0]), entry(keys[i][1], keys[i][2]) };
        assert_int_equal(opt_check(e, 2, "test"), TR_EINPUT);
        if (!strstr(tr_message(), keys[i][3])) fail_msg("%s", tr_message());
    }
    /* A rank above the smaller side of every matrix: only where it was asked for. */
    static const char *const kind[] = { "galore", "apollo", "natural-galore", "galore-adafactor" };
    struct tr_param p[2] = { { .name = "a", .role = TR_MATRIX, .trainable = true }, { .name = "b", .role = TR_MATRIX, .trainable = true, .index = 1 } };
    assert_ok(tr_tensor_new(&p[0].value, TR_WEIGHTS, TR_F32, TR_DIMS(8, 40)));
    assert_ok(tr_tensor_new(&p[1].value, TR_WEIGHTS, TR_F32, TR_DIMS(30, 20)));
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 3; k++) {
            struct opt_entry e[] = { entry("name", kind[i]), entry("rank", k ? "20" : "21") };
            struct opt_setup setup = { .entry = e, .n = k == 2 ? 1 : 2, .path = "test" };
            struct opt *o = NULL;
            if (k) {
                assert_ok(opt_new(&o, &setup, p, 2));
                opt_free(o);
                continue;
            }
            size_t before = tr_mem_ledger().now[TR_OPTIMIZER];
            assert_int_equal(opt_new(&o, &setup, p, 2), TR_EINPUT);
            assert_non_null(strstr(tr_message(), "optimizer.rank = 21"));
            assert_non_null(strstr(tr_message(), "at most 20"));
            assert_int_equal(tr_mem_ledger().now[TR_OPTIMIZER], before);
        }
    for (int i = 0; i < 2; i++) tr_tensor_release(&p[i].value);
}

/* Steps of a moment below bf16's precision are not lost: a constant gradient's moments are those in f32 on average. */
static void bf16_moments_are_unbiased(void **state)
{
    enum { N = 4096, STEPS = 600 };
    struct tr_tensor g, u, m, v;
    static float x[N];
    assert_ok(tr_tensor_new(&g, TR_OTHER, TR_F32, TR_DIMS(N)));
    assert_ok(tr_tensor_new(&u, TR_OTHER, TR_F32, TR_DIMS(N)));
    assert_ok(tr_tensor_new(&m, TR_OTHER, TR_BF16, TR_DIMS(N)));
    assert_ok(tr_tensor_new(&v, TR_OTHER, TR_BF16, TR_DIMS(N)));
    tr_kernels()->fill(&g, 0.3f);
    for (int t = 1; t <= STEPS; t++) tr_updates()->adam_direction(&u, &m, &v, &g, &(struct tr_adam){ 0.99, 0.999, 1, 1e-8f, { tr_key(1, TR_RNG_ROUNDING, 1, (uint64_t)t), 0 } });
    for (int k = 0; k < 2; k++) {
        double want = k ? 0.3 * 0.3 * (1 - pow(0.999, STEPS)) : 0.3 * (1 - pow(0.99, STEPS)), mean = 0, least = INFINITY, most = 0;
        tr_kernels()->copy(&u, k ? &v : &m);
        tr_tensor_read(&u, x);
        for (int i = 0; i < N; i++) mean += (double)x[i] / N, least = fmin(least, (double)x[i]), most = fmax(most, (double)x[i]);
        assert_true(fabs(mean / want - 1) < 2e-3);
        assert_true(least < most); /* each element by its own bits */
    }
    struct tr_tensor *all[] = { &g, &u, &m, &v };
    for (int i = 0; i < 4; i++) tr_tensor_release(all[i]);
}

static void books(void **state)
{
    for (int s = 0; s < 2; s++) {
        const struct tr_book *b = tr_book_8bit(s);
        for (int i = 1; i < 256; i++) assert_true(b->value[i] > b->value[i - 1]);
        assert_true(b->value[255] == 1);
    }
    assert_true(tr_book_8bit(true)->value[127] == 0);
    assert_true(fabsf(tr_book_8bit(true)->value[0] + 0.99297f) < 1e-5f);
    assert_true(tr_book_8bit(false)->value[0] == 0);
    assert_true(fabsf(tr_book_8bit(false)->value[1] - 3.25e-7f) < 1e-12f);
}

/* What is stored is the nearest value: with beta 0 the moments are g and g^2 themselves. */
static void nearest_codes(void **state)
{
    enum { N = 600 }; /* two whole blocks and a short one */
    struct tr_tensor g, m, v, mm, vm;
    float x[N], most[3];
    uint8_t code[N];
    assert_ok(tr_tensor_new(&g, TR_OTHER, TR_F32, TR_DIMS(N)));
    assert_ok(tr_tensor_new(&m, TR_OTHER, TR_U8, TR_DIMS(N)));
    assert_ok(tr_tensor_new(&v, TR_OTHER, TR_U8, TR_DIMS(N)));
    assert_ok(tr_tensor_new(&mm, TR_OTHER, TR_F32, TR_DIMS(3)));
    assert_ok(tr_tensor_new(&vm, TR_OTHER, TR_F32, TR_DIMS(3)));
    test_normal(x, N, 3, 1);
    for (int i = 0; i < N; i++) x[i] = i % 7 ? x[i] * x[i] * x[i] * 1e-3f : 0;
    tr_tensor_write(&g, x);
    tr_updates()->adam_8bit(&g, &m, &v, &mm, &vm, &(struct tr_adam){ 0, 0, 1, 1 });
    tr_tensor_read(&m, code);
    tr_tensor_read(&mm, most);
    const struct tr_book *b = tr_book_8bit(true);
    for (int i = 0; i < N; i++) {
        double off = fabs((double)b->value[code[i]] * (double)most[i / 256] - (double)x[i]);
        for (int c = 0; c < 256; c++) assert_true(off <= fabs((double)b->value[c] * (double)most[i / 256] - (double)x[i]) + 1e-6 * (double)most[i / 256]);
    }
    struct tr_tensor *all[] = { &g, &m, &v, &mm, &vm };
    for (int i = 0; i < 5; i++) tr_tensor_release(all[i]);
}

int main(int argc, char **argv)
{
    test_device(0);
    tests_folder = argc > 1 ? argv[1] : "tests";
    const struct CMUnitTest on_device[] = { cmocka_unit_test(recorded_runs) };   /* the others look into tensors themselves */
    if (tr_device()) return cmocka_run_group_tests(on_device, NULL, NULL);
    const struct CMUnitTest tests[] = { cmocka_unit_test(recorded_runs), cmocka_unit_test(recordings_that_are_wrong), cmocka_unit_test(formula_is_ledger),
        cmocka_unit_test(nothing_moves_without_a_gradient), cmocka_unit_test(steps_go_down), cmocka_unit_test(continued_is_undisturbed), cmocka_unit_test(threads_do_not_show),
        cmocka_unit_test(slopes_average_to_the_gradient), cmocka_unit_test(conservative_never_loses), cmocka_unit_test(sorts_that_mix),
        cmocka_unit_test(types_of_moments), cmocka_unit_test(recipes_that_are_wrong), cmocka_unit_test(bf16_moments_are_unbiased), cmocka_unit_test(books), cmocka_unit_test(nearest_codes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
