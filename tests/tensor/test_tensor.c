/* Shapes, views, ownership, and dimensions that do not fit. */
#include "tests/support/support.h"
#include "libtrain/tensor/param.h"
#include "libtrain/tensor/tensor.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void counting(void **state)
{
    float x[1];
    struct tr_tensor t = tr_tensor_view(x, TR_F32, TR_DIMS(3, 4, 5));
    assert_int_equal(tr_cols(&t), 5);
    assert_int_equal(tr_rows(&t), 12);
    assert_int_equal(tr_count(&t), 60);
    assert_int_equal(tr_bytes(&t), 240);
    t.ld = 8;
    assert_int_equal(tr_bytes(&t), (11 * 8 + 5) * 4); /* the last row has no gap */
    t = tr_tensor_view(x, TR_BF16, TR_DIMS(7));
    assert_int_equal(tr_rows(&t), 1);
    assert_int_equal(tr_bytes(&t), 14);
    t = tr_tensor_view(x, TR_F32, TR_DIMS(0, 7));
    assert_int_equal(tr_count(&t), 0);
    assert_int_equal(tr_bytes(&t), 0);
    t = (struct tr_tensor){ 0 };
    assert_int_equal(tr_count(&t), 0);
    assert_int_equal(tr_bytes(&t), 0);
    static const size_t bytes[TR_DTYPES] = { [TR_F32] = 4, [TR_BF16] = 2, [TR_F16] = 2, [TR_I32] = 4, [TR_U8] = 1, [TR_INT8] = 1, [TR_F64] = 8 };
    for (int d = 0; d < TR_DTYPES; d++) assert_int_equal(tr_dtype_size((enum tr_dtype)d), bytes[d]);
    for (int r = 0; r < TR_ROLES; r++) assert_true(strlen(tr_role_name((enum tr_role)r)) >= 4);
}

static void ownership(void **state)
{
    struct tr_tensor w, a, empty = { 0 };
    size_t before = tr_mem_ledger().total;
    assert_ok(tr_tensor_new(&w, TR_WEIGHTS, TR_BF16, TR_DIMS(10, 33)));
    assert_int_equal(tr_mem_ledger().now[TR_WEIGHTS], 660);
    assert_int_equal(w.ld, 33);
    for (int i = 0; i < 330; i++) assert_int_equal(((uint16_t *)w.data)[i], 0);
    assert_ok(tr_tensor_arena(&a, TR_ACTIVATIONS, TR_F32, TR_DIMS(10, 33), 31));
    assert_int_equal(a.ld, 64);
    assert_int_equal(tr_mem_ledger().now[TR_ACTIVATIONS], 10 * 64 * 4);
    memset(a.data, 1, 10 * 64 * 4);
    struct tr_tensor view = tr_rows_view(&w, 2, 3);
    tr_tensor_release(&view); /* a view gives nothing back */
    assert_int_equal(tr_mem_ledger().now[TR_WEIGHTS], 660);
    tr_tensor_release(&w);
    tr_tensor_release(&w);
    tr_tensor_release(&a);
    tr_tensor_release(&empty);
    assert_null(w.data);
    assert_int_equal(tr_mem_ledger().total, before);
}

static void int8_has_scales_and_zeros(void **state)
{
    struct tr_tensor w;
    assert_ok(tr_tensor_new(&w, TR_WEIGHTS, TR_INT8, TR_DIMS(6, 300)));
    assert_int_equal(w.quant.group, TR_QUANT_GROUP);
    assert_int_equal(tr_groups(&w), 3);
    assert_int_equal(tr_mem_ledger().now[TR_WEIGHTS], 1800 + 6 * 3 * 5);
    struct tr_tensor s[TR_QUANT_PARTS], part = tr_rows_view(&w, 2, 4);
    assert_int_equal(tr_quant_views(&w, s), TR_QUANT_PARTS);
    for (int i = 0; i < TR_QUANT_PARTS; i++) {
        assert_int_equal(tr_rows(&s[i]), 6);
        assert_int_equal(tr_cols(&s[i]), 3);
    }
    assert_ptr_equal(s[1].data, w.quant.scale + 18);
    assert_ptr_equal(part.quant.zero, w.quant.zero + 6);
    assert_ptr_equal(part.quant.scale, w.quant.scale + 6);
    assert_ptr_equal(part.data, (int8_t *)w.data + 600);
    tr_tensor_release(&w);
    assert_int_equal(tr_mem_ledger().now[TR_WEIGHTS], 0);
}

static void views(void **state)
{
    float x[6 * 10];
    for (int i = 0; i < 60; i++) x[i] = (float)i;
    struct tr_tensor t = tr_tensor_view(x, TR_F32, TR_DIMS(2, 3, 10)), r = tr_rows_view(&t, 2, 3), c = tr_cols_view(&r, 4, 5), b = tr_rows_view(&c, 1, 2);
    assert_int_equal(r.ndim, 2);
    assert_int_equal(tr_rows(&r), 3);
    assert_true(*(float *)r.data == 20);
    assert_int_equal(c.ld, 10);
    assert_int_equal(tr_cols(&c), 5);
    assert_true(*(float *)c.data == 24);
    assert_true(*(float *)b.data == 34);
    float host[10], want[10] = { 34, 35, 36, 37, 38, 44, 45, 46, 47, 48 };
    tr_tensor_read(&b, host); /* dense on the host's side */
    assert_memory_equal(host, want, sizeof want);
    for (int i = 0; i < 10; i++) host[i] = -1;
    tr_tensor_write(&b, host);
    for (int i = 0; i < 60; i++) {
        int row = i / 10, col = i % 10, hit = row >= 3 && row < 5 && col >= 4 && col < 9;
        if (x[i] != (hit ? -1 : (float)i)) fail_msg("element %d is %g", i, (double)x[i]);
    }
    struct tr_tensor m = tr_reshape(&t, TR_DIMS(4, 15));
    assert_int_equal(m.ld, 15);
    assert_true(((float *)m.data)[3 * m.ld + 14] == 59);
    assert_false(tr_same_shape(&m, &t));
    m = tr_reshape(&m, TR_DIMS(2, 3, 10));
    assert_true(tr_same_shape(&m, &t));
    assert_string_equal(tr_shape_text(&t), "[2, 3, 10]");
    const char *one = tr_shape_text(&r), *two = tr_shape_text(&c); /* several in one message */
    assert_string_equal(one, "[3, 10]");
    assert_string_equal(two, "[3, 5]");
    int64_t most[4] = { INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX };
    m = (struct tr_tensor){ .ndim = 4 };
    memcpy(m.dim, most, sizeof most);
    assert_int_equal(strlen(tr_shape_text(&m)), 4 * 19 + 3 * 2 + 2);
}

static void overflow(void **state)
{
    static const struct { int ndim; int64_t dim[4], pad; } bad[] = {
        { 1, { INT64_MAX } }, { 1, { -1 } }, { 2, { INT64_MAX / 2, 3 } }, { 2, { (int64_t)1 << 32, (int64_t)1 << 32 } }, { 2, { 4, -4 } },
        { 3, { (int64_t)1 << 31, (int64_t)1 << 31, 2 } }, { 4, { 1 << 16, 1 << 16, 1 << 16, 1 << 16 } }, { 2, { 0, INT64_MAX } },
        { 2, { (int64_t)1 << 57, 1 }, 31 }, { 1, { 8 }, INT64_MAX }, { 0, { 1 } }, { 5, { 1, 1, 1, 1 } }, { -1, { 1 } },
    };
    size_t before = tr_mem_ledger().total;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tr_tensor t;
        int64_t dim[5] = { bad[i].dim[0], bad[i].dim[1], bad[i].dim[2], bad[i].dim[3], 1 };
        for (int d = 0; d < TR_DTYPES && !bad[i].pad; d++) {
            assert_int_equal(tr_tensor_new(&t, TR_WEIGHTS, (enum tr_dtype)d, bad[i].ndim, dim), TR_EINPUT);
            tr_tensor_release(&t);
        }
        if (tr_tensor_arena(&t, TR_WEIGHTS, TR_U8, bad[i].ndim, dim, bad[i].pad) != TR_EINPUT) fail_msg("case %zu is taken", i);
        tr_tensor_release(&t);
    }
    struct tr_tensor t;
    assert_int_equal(tr_tensor_new(&t, TR_WEIGHTS, TR_F32, TR_DIMS((int64_t)1 << 50)), TR_EFAIL); /* fits a count, but no machine */
    tr_tensor_release(&t);
    assert_int_equal(tr_mem_ledger().total, before);
    assert_ok(tr_tensor_new(&t, TR_WEIGHTS, TR_F32, TR_DIMS(0, 5)));
    assert_null(t.data);
    tr_tensor_release(&t);
}

/* Rounding to bf16: exact values stay, halves go to even, what is not a number stays one. */
static void bf16(void **state)
{
    for (uint32_t u = 0; u < 65536; u++) {
        float f = tr_bf16_to_f32((uint16_t)u);
        uint16_t back = tr_f32_to_bf16(f);
        if (isnan(f)) assert_true(isnan(tr_bf16_to_f32(back)));
        else assert_int_equal(back, u);
    }
    static const struct { uint32_t f; uint16_t want; } cases[] = {
        { 0x3f808000, 0x3f80 }, { 0x3f818000, 0x3f82 }, { 0x3f808001, 0x3f81 }, { 0x3f807fff, 0x3f80 }, { 0x7f7fffff, 0x7f80 },
        { 0xff7fffff, 0xff80 }, { 0x7f7f7fff, 0x7f7f }, { 0x00008000, 0x0000 }, { 0x00008001, 0x0001 }, { 0x80018000, 0x8002 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float f;
        memcpy(&f, &cases[i].f, 4);
        assert_int_equal(tr_f32_to_bf16(f), cases[i].want);
    }
    uint32_t nan = 0x7f800001; /* its upper half alone would be infinity */
    float f;
    memcpy(&f, &nan, 4);
    assert_true(isnan(tr_bf16_to_f32(tr_f32_to_bf16(f))));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(counting), cmocka_unit_test(ownership), cmocka_unit_test(int8_has_scales_and_zeros), cmocka_unit_test(views),
        cmocka_unit_test(overflow), cmocka_unit_test(bf16) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
