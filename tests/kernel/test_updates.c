/* Every rule of optimizers in each table against plain C: the same bits, over awkward shapes, types and strides. With TEST_CUDA the
 * table is that of CUDA devices, its kernels run by tests/emulate. */
#include "tests/support/support.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/update.h"
#include "train_config.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct tr_updates tr_update_ref_table;
#ifdef TEST_CUDA
#include "libtrain/kernel/device.h"
static const struct tr_device_module *device;
static const char *table_error(void) { return device->error(); }
static struct { const char *name; const struct tr_updates *table; } tables[] = { { "cuda", NULL } };
#else
static const char *table_error(void) { return NULL; }
#if HAVE_X86
extern const struct tr_updates tr_update_avx2_table, tr_update_avx512_table;
static const struct { const char *name; const struct tr_updates *table; } tables[] = { { "avx2", &tr_update_avx2_table }, { "avx512", &tr_update_avx512_table } };
#else
static const struct { const char *name; const struct tr_updates *table; } tables[] = { { "ref", &tr_update_ref_table } };
#endif
#endif

static bool can_run(const char *name)
{
#ifdef TEST_CUDA
    return true;
#else
    return tr_kernels_named(name) != NULL;
#endif
}

static const struct tr_updates *fast;
static char where[160];

/* Two tensors with the same bytes: [0] for plain C, [1] for the table under test. */
struct two { struct tr_tensor t[2]; };

static size_t bytes_of(const struct tr_tensor *t) { return (size_t)(tr_rows(t) * t->ld) * tr_dtype_size(t->dtype); }

static struct two make(enum tr_dtype dtype, int64_t rows, int64_t cols, int64_t pad, float std)
{
    static uint64_t seed = 1;
    struct two x;
    int64_t ld = cols + pad;
    float *f = malloc((size_t)(rows * ld) * sizeof *f);
    test_normal(f, rows * ld, seed++, 1);
    for (int64_t i = 0; i < rows * ld; i++) f[i] = i % 11 ? f[i] * std : 0;
    for (int s = 0; s < 2; s++) {
        struct tr_tensor *t = &x.t[s];
        *t = tr_tensor_view(NULL, dtype, TR_DIMS(rows, cols));
        t->ld = ld;
        t->data = malloc(bytes_of(t));
        for (int64_t i = 0; i < rows * ld; i++) {
            if (dtype == TR_F32) ((float *)t->data)[i] = f[i];
            if (dtype == TR_BF16) ((uint16_t *)t->data)[i] = tr_f32_to_bf16(f[i]);
            if (dtype == TR_INT8) ((int8_t *)t->data)[i] = (int8_t)(i * 37 % 251 - 125);
            if (dtype == TR_U8) ((uint8_t *)t->data)[i] = (uint8_t)(i * 37);
        }
        if (dtype != TR_INT8) continue;
        t->quant.group = TR_QUANT_GROUP;
        int64_t groups = rows * tr_groups(t);
        t->quant.scale = malloc((size_t)groups * 4);
        t->quant.zero = malloc((size_t)groups);
        for (int64_t i = 0; i < groups; i++) t->quant.scale[i] = 0.01f + 0.001f * (float)(i % 5), t->quant.zero[i] = (int8_t)(i * 13 % 200 - 100);
    }
    free(f);
    return x;
}

static struct two positive(struct two x)
{
    for (int s = 0; s < 2; s++)
        for (int64_t i = 0; i < tr_rows(&x.t[s]) * x.t[s].ld; i++) {
            if (x.t[s].dtype == TR_F32) ((float *)x.t[s].data)[i] = fabsf(((float *)x.t[s].data)[i]);
            if (x.t[s].dtype == TR_BF16) ((uint16_t *)x.t[s].data)[i] &= 0x7fff;
        }
    return x;
}

/* Both have the same bytes; frees them. */
static void same(struct two *x, const char *entry, const char *part)
{
    struct tr_tensor *a = &x->t[0], *b = &x->t[1];
    size_t size = tr_dtype_size(a->dtype);
    for (int64_t i = 0; i < tr_rows(a) * a->ld; i++)
        if (memcmp((char *)a->data + (size_t)i * size, (char *)b->data + (size_t)i * size, size))
            fail_msg("%s %s: %s differs from plain C at row %ld, column %ld", where, entry, part, (long)(i / a->ld), (long)(i % a->ld));
    if (a->dtype == TR_INT8) {
        size_t groups = (size_t)(tr_rows(a) * tr_groups(a));
        if (memcmp(a->quant.scale, b->quant.scale, groups * 4) || memcmp(a->quant.zero, b->quant.zero, groups)) fail_msg("%s %s: scales or zeros of %s differ", where, entry, part);
        for (int s = 0; s < 2; s++) free(x->t[s].quant.scale), free(x->t[s].quant.zero);
    }
    free(a->data);
    free(b->data);
}

#define BOTH(call) for (int s = 0; s < 2; s++) { const struct tr_updates *u = s ? fast : &tr_update_ref_table; call; }
#define RULE(entry, ...) BOTH(u->entry(__VA_ARGS__))
#define CHECK(entry, x) same(&x, entry, #x)

static const struct tr_key key = { { 123, 456 } };

/* Steps of a weight. rounding: 0 to nearest, 1 by the key, 2 (int8) by given draws on the published grid. */
static void weights(int64_t R, int64_t C, int64_t pad, enum tr_dtype wt, enum tr_dtype mt, int rounding)
{
    struct tr_noise noise = { rounding == 1 ? key : (struct tr_key){ { 0, 0 } }, 77 };
    struct two draws = positive(make(TR_F32, R, C, 0, 0.2f)), w, m, v, g = make(TR_F32, R, C, pad + 1, 1), f = make(TR_F32, 1, R > C ? R : C, 0, 1);
    for (int s = 0; s < 2; s++)
        for (int64_t i = 0; i < R * C; i++) ((float *)draws.t[s].data)[i] = fminf(((float *)draws.t[s].data)[i], 0.999f);
    struct tr_apply by[2];
    for (int s = 0; s < 2; s++) by[s] = (struct tr_apply){ 0.99f, 1e-2f, 0.98f, noise, rounding == 2 ? &draws.t[s] : NULL, rounding == 2 };
    struct tr_adam h = { 0.9, 0.999, 1.1f, 1e-6f, noise };
    struct tr_sign h_sign = { 0.9f, 0.1f, 0.95f, 0.05f, noise };

    w = make(wt, R, C, pad, 1);
    RULE(apply, &w.t[s], &g.t[s], &by[s]);
    CHECK("apply", w);
    for (int axis = 0; axis < 2; axis++) {
        w = make(wt, R, C, pad, 1);
        RULE(apply_scaled, &w.t[s], &g.t[s], &f.t[s], axis, &by[s]);
        CHECK("apply_scaled", w);
    }
    w = make(wt, R, C, pad, 1), m = make(mt, R, C, 0, 1), v = positive(make(mt, R, C, pad, 1));
    RULE(adam, &w.t[s], &m.t[s], &v.t[s], &g.t[s], &h, &by[s]);
    CHECK("adam", w);
    CHECK("adam", m);
    CHECK("adam", v);
    for (int how = 0; how < 4; how++) {
        w = make(wt, R, C, pad, 1), m = make(mt, R, C, 0, 1);
        RULE(sgd, &w.t[s], how ? &m.t[s] : NULL, &g.t[s], 0.01f, 0.9f, 0.8f, how == 2, how == 3, &by[s]);
        CHECK("sgd", w);
        CHECK("sgd", m);
    }
    for (int how = 0; how < 2; how++) {
        w = make(wt, R, C, pad, 1), m = make(mt, R, C, 0, 1);
        RULE(sign, &w.t[s], how ? &m.t[s] : NULL, &g.t[s], &h_sign, &by[s]);
        CHECK("sign", w);
        CHECK("sign", m);
    }
    CHECK("weights", g);
    CHECK("weights", f);
    CHECK("weights", draws);
}

static void flat_weights(void)
{
    struct two w = make(TR_INT8, 6, 2 * TR_QUANT_GROUP, 0, 1), g = make(TR_F32, 6, 2 * TR_QUANT_GROUP, 0, 1);
    struct tr_apply a = { 1, 1e-2f, 1, { key, 0 }, NULL, true };
    for (int s = 0; s < 2; s++) w.t[s].ndim = g.t[s].ndim = 2, w.t[s].quant.flat = true;
    RULE(apply, &w.t[s], &g.t[s], &a);
    CHECK("apply to flat groups", w);
    CHECK("apply to flat groups", g);
}

/* What changes a gradient or a moment in place. */
static void in_place(int64_t R, int64_t C, int64_t pad, enum tr_dtype mt)
{
    struct two g, m, v, row = make(TR_F32, 1, R, 0, 1), col = make(TR_F32, 1, C, 0, 1);
    struct tr_noise noise = { key, 5 };
    struct tr_adam h = { 0.9, 0.99, 0.9f, 1e-6f, noise };
    struct tr_sign h_sign = { 0.9f, 0.1f, 0.95f, 0.05f, noise };
#define FRESH g = make(TR_F32, R, C, pad, 1), m = make(mt, R, C, 0, 1), v = positive(make(mt, R, C, 0, 1))
#define DONE(entry) CHECK(entry, g); CHECK(entry, m); CHECK(entry, v)
    FRESH;
    RULE(adam_direction, &g.t[s], &m.t[s], &v.t[s], &g.t[s], &h);
    DONE("adam_direction");
    FRESH;
    RULE(clamp, &g.t[s], 0.4f);
    DONE("clamp");
    FRESH;
    RULE(momentum, &g.t[s], &m.t[s], 0.9f, 0.2f, 0.5f, 0.7f);
    DONE("momentum");
    FRESH;
    RULE(scale_outer, &g.t[s], &row.t[s], &col.t[s]);
    DONE("scale_outer");
    FRESH;
    RULE(root_direction, &g.t[s], &v.t[s], 0.9f, 1e-6f);
    DONE("root_direction");
    FRESH;
    RULE(sign_scale, &g.t[s], 0.3f);
    DONE("sign_scale");
    FRESH;
    RULE(lion_direction, &g.t[s], &m.t[s], &h_sign);
    DONE("lion_direction");
    FRESH;
    RULE(cut_step, &g.t[s], &v.t[s], 1.5f, 1e-6f);
    DONE("cut_step");
    FRESH;
    RULE(cut_ratio, &g.t[s], &v.t[s], 1e-3f, 1.2f);
    DONE("cut_ratio");
    FRESH;
    RULE(mean_squares, &v.t[s], &g.t[s], 0.9f, 0.1f);
    DONE("mean_squares");
    CHECK("in place", row);
    CHECK("in place", col);
}

static void directions(int64_t R, int64_t C, int64_t pad)
{
    struct two given = make(TR_F32, 1, R * C + 9, 0, 1);
    for (int how = 0; how < 4; how++)   /* normal, from an odd place, with zeros, given */
        for (int dt = TR_F32; dt <= TR_BF16; dt++) {
            struct tr_direction z[2];
            for (int s = 0; s < 2; s++)
                z[s] = (struct tr_direction){ key, { { 9, 8 } }, how == 2 ? 0.3 : 0, how == 1 ? 7 : how == 3 ? 9 : 1000, how == 3 ? &given.t[s] : NULL };
            struct two w = make((enum tr_dtype)dt, R, C, pad, 1), g = make(TR_F32, R, C, pad, 1);
            RULE(move, &w.t[s], 0.9f, 0.1f, &z[s]);
            CHECK("move", w);
            RULE(weigh, &g.t[s], 0.5f, &z[s]);
            CHECK("weigh", g);
        }
    CHECK("directions", given);
}

static void codes(int64_t R, int64_t C, int64_t pad)
{
    int64_t blocks = (R * C + TR_BLOCK_8BIT - 1) / TR_BLOCK_8BIT;
    struct two g = make(TR_F32, R, C, pad, 1), m = make(TR_U8, 1, R * C, 0, 1), v = make(TR_U8, 1, R * C, 0, 1);
    struct two m_most = positive(make(TR_F32, 1, blocks, 0, 1)), v_most = positive(make(TR_F32, 1, blocks, 0, 1));
    struct tr_adam h = { 0.9, 0.99, 0.9f, 1e-6f, { { { 0, 0 } }, 0 } };
    for (int step = 0; step < 2; step++) RULE(adam_8bit, &g.t[s], &m.t[s], &v.t[s], &m_most.t[s], &v_most.t[s], &h);
    CHECK("adam_8bit", g);
    CHECK("adam_8bit", m);
    CHECK("adam_8bit", v);
    CHECK("adam_8bit", m_most);
    CHECK("adam_8bit", v_most);
}

static void selections(int64_t R, int64_t C, int64_t pad)
{
    for (int axis = 0; axis < 3; axis++) {
        int64_t most = axis == 0 ? R : axis == 1 ? C : R * C, K = (most + 1) / 2;
        int32_t *index = malloc((size_t)K * sizeof *index);
        for (int64_t i = 0; i < K; i++) index[i] = (int32_t)(most - 1 - 2 * i);
        for (int64_t i = 0; i < K; i++) index[i] = index[i] < 0 ? 0 : index[i];
        struct tr_tensor which = tr_tensor_view(index, TR_I32, TR_DIMS(K));
        struct two g = make(TR_F32, R, C, pad, 1), low = make(TR_F32, axis == 0 ? K : axis == 1 ? R : 1, axis == 0 ? C : K, axis ? 0 : 2, 1);
        RULE(pick, &low.t[s], &g.t[s], &which, axis);
        RULE(place, &g.t[s], &low.t[s], &which, axis, 0.5f);
        CHECK("pick", low);
        CHECK("place", g);
        free(index);
    }
}

/* Sums of squares go in each table's own order. */
static void norms(int64_t R, int64_t C, int64_t pad, enum tr_dtype dt)
{
    for (int axis = 0; axis < 2; axis++) {
        struct two x = make(dt, R, C, pad, 1), n = make(TR_F32, 1, axis ? C : R, 0, 1);
        RULE(norms, &n.t[s], &x.t[s], axis);
        for (int64_t i = 0; i < tr_cols(&n.t[0]); i++) {
            float a = ((float *)n.t[0].data)[i], b = ((float *)n.t[1].data)[i];
            if (!(fabsf(a - b) <= 1.2e-7f * a)) fail_msg("%s norms axis %d: number %ld is %g, plain C has %g", where, axis, (long)i, (double)b, (double)a);
            ((float *)n.t[1].data)[i] = a;
        }
        CHECK("norms", n);
        CHECK("norms", x);
    }
}

static void tables_agree(void **state)
{
    const struct { int64_t rows, cols, pad; } shapes[] = { { 1, 1, 0 }, { 3, 7, 2 }, { 40, 64, 0 }, { 5, 129, 3 }, { 2, 600, 8 }, { 1, 2100, 0 } };
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
        if (!can_run(tables[t].name)) {
            print_message("SKIPPED %s: this CPU has no such instructions\n", tables[t].name);
            continue;
        }
        fast = tables[t].table;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            int64_t R = shapes[i].rows, C = shapes[i].cols, pad = shapes[i].pad;
            for (int mt = TR_F32; mt <= TR_BF16; mt++) {
                snprintf(where, sizeof where, "%s [%ld, %ld] ld +%ld, moments %s:", tables[t].name, (long)R, (long)C, (long)pad, tr_dtype_name((enum tr_dtype)mt));
                for (int rounding = 0; rounding < 2; rounding++)
                    for (int wt = TR_F32; wt <= TR_BF16; wt++) weights(R, C, pad, (enum tr_dtype)wt, (enum tr_dtype)mt, rounding);
                for (int rounding = 0; rounding < 3; rounding++) weights(R, C, pad, TR_INT8, (enum tr_dtype)mt, rounding);
                in_place(R, C, pad, (enum tr_dtype)mt);
                norms(R, C, pad, (enum tr_dtype)mt);
            }
            norms(R, C, 0, TR_INT8);
            directions(R, C, pad);
            codes(R, C, pad);
            selections(R, C, pad);
        }
        flat_weights();
        snprintf(where, sizeof where, "%s [700, 20]:", tables[t].name);
        norms(700, 20, 0, TR_F32);   /* parts of rows */
        codes(9, 700, 1);            /* more blocks of codes than one for each block of threads */
        if (table_error()) fail_msg("%s", table_error());
    }
}

int main(void)
{
#ifdef TEST_CUDA
    device = test_module();
    tables[0].table = device->updates;
#endif
    const struct CMUnitTest tests[] = { cmocka_unit_test(tables_agree) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
