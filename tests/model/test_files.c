/* Model files: every GGUF element type against values worked out here, damaged files of each format, and a model that goes
 * out to GGUF and safetensors and comes back the same. */
#include "tests/support/support.h"
#include "libtrain/base/file.h"
#include "libtrain/base/rng.h"
#include "libtrain/model/net.h"
#include "libtrain/model/weights_impl.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *folder;

/* ---- blocks. Halves: 0x3c00 = 1, 0x4000 = 2, 0x3800 = 0.5 */

static void put_half(unsigned char *b, uint16_t h) { b[0] = (unsigned char)h, b[1] = (unsigned char)(h >> 8); }

static void simple_blocks(void **state)
{
    unsigned char b[64];
    float y[32];
    memset(b, 0, sizeof b);
    put_half(b, 0x4000); /* d = 2 */
    for (int i = 0; i < 16; i++) b[2 + i] = (unsigned char)(i | (15 - i) << 4);
    tr_dequantise(ST_Q4_0, b, 1, y);
    for (int i = 0; i < 16; i++) assert_true(y[i] == 2 * (float)(i - 8) && y[i + 16] == 2 * (float)(7 - i));
    memmove(b + 4, b + 2, 16);
    put_half(b + 2, 0x3c00); /* m = 1 */
    tr_dequantise(ST_Q4_1, b, 1, y);
    for (int i = 0; i < 16; i++) assert_true(y[i] == 2 * (float)i + 1 && y[i + 16] == 2 * (float)(15 - i) + 1);
    for (int i = 15; i >= 0; i--) b[8 + i] = b[4 + i];
    b[4] = 0xff, b[5] = 0xff, b[6] = 0, b[7] = 0; /* fifth bit set in the first half */
    tr_dequantise(ST_Q5_1, b, 1, y);
    for (int i = 0; i < 16; i++) assert_true(y[i] == 2 * (float)(i + 16) + 1 && y[i + 16] == 2 * (float)(15 - i) + 1);
    memmove(b + 2, b + 4, 20);
    tr_dequantise(ST_Q5_0, b, 1, y);
    for (int i = 0; i < 16; i++) assert_true(y[i] == 2 * (float)i && y[i + 16] == 2 * (float)(-1 - i));
    for (int i = 0; i < 32; i++) b[2 + i] = (unsigned char)(int8_t)(i - 16);
    tr_dequantise(ST_Q8_0, b, 1, y);
    for (int i = 0; i < 32; i++) assert_true(y[i] == 2 * (float)(i - 16));
}

/* The K types by their definition, element by element, over random blocks. */
static void k_blocks(void **state)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        unsigned char b[210];
        float y[256];
        for (size_t i = 0; i < sizeof b; i++) b[i] = (unsigned char)tr_below(tr_key(seed, TR_RNG_PROBE, 1, 0), i, 256);
        put_half(b, 0x3800);
        put_half(b + 2, 0x3c00);
        for (int five = 0; five < 2; five++) {
            tr_dequantise(five ? ST_Q5_K : ST_Q4_K, b, 1, y);
            for (int e = 0; e < 256; e++) {
                int j = e / 32, sc, mn, q = b[(five ? 48 : 16) + e / 64 * 32 + e % 32];
                const unsigned char *s = b + 4;
                q = e / 32 % 2 ? q >> 4 : q & 15;
                if (five && (b[16 + e % 32] >> j & 1)) q += 16;
                if (j < 4) sc = s[j] & 63, mn = s[j + 4] & 63;
                else sc = (s[j + 4] & 15) + (s[j - 4] >> 6) * 16, mn = (s[j + 4] >> 4) + (s[j] >> 6) * 16;
                assert_true(y[e] == 0.5f * (float)sc * (float)q - (float)mn);
            }
        }
        put_half(b + 208, 0x4000);
        tr_dequantise(ST_Q6_K, b, 1, y);
        for (int e = 0; e < 256; e++) {
            int half = e / 128, k = e % 128 / 32, i = e % 32, low = b[64 * half + i + 32 * (k % 2)];
            int q = (k < 2 ? low & 15 : low >> 4) + (b[128 + 32 * half + i] >> (2 * k) & 3) * 16 - 32;
            assert_true(y[e] == 2 * (float)(int8_t)b[192 + e / 16] * (float)q);
        }
    }
}

/* ---- out and back */

struct pair { struct tr_net *a; };

static int rows_of(void *self, int64_t i, int64_t begin, int64_t n, float *out) { return tr_param_read(&((struct pair *)self)->a->param[i], begin, n, out); }

static void same_net(struct tr_net *a, const char *path)
{
    struct tr_weights *w;
    struct tr_net *b;
    assert_ok(tr_weights_open(&w, path));
    assert_ok(tr_net_new(&b, tr_weights_shape(w), TR_F32, TR_F32, 0));
    assert_ok(tr_net_load(b, w));
    assert_int_equal(a->n_params, b->n_params);
    assert_int_equal(a->shape.context, b->shape.context);
    assert_true(fabs(a->shape.rope_theta - b->shape.rope_theta) < 1 && fabs(a->shape.norm_eps - b->shape.norm_eps) < 1e-9);
    assert_int_equal(a->shape.rope_llama3.on, b->shape.rope_llama3.on);
    if (a->shape.rope_llama3.on) assert_true(fabs(a->shape.rope_llama3.factor - b->shape.rope_llama3.factor) < 1e-3);
    for (int64_t i = 0; i < a->n_params; i++) {
        int64_t n = tr_count(&a->param[i].value);
        float *x = malloc((size_t)n * 4), *y = malloc((size_t)n * 4);
        struct tr_param *p = tr_net_find(b, a->param[i].name);
        assert_non_null(p);
        tr_tensor_read(&a->param[i].value, x);
        tr_tensor_read(&p->value, y);
        if (memcmp(x, y, (size_t)n * 4)) fail_msg("%s differs after a round trip through %s", a->param[i].name, path);
        free(x);
        free(y);
    }
    tr_net_free(b);
    tr_weights_free(w);
}

static void round_trips(void **state)
{
    static const char *const families[] = { "llama-tied", "llama-untied", "llama3-rope", "mistral", "qwen2", "qwen3", "gpt2" };
    for (int f = 0; f < 7; f++) {
        char path[512], gguf[512], hf[512];
        struct tr_weights *w;
        struct pair p;
        snprintf(path, sizeof path, "%s/model/reference/%s", folder, families[f]);
        snprintf(gguf, sizeof gguf, "%s/%s.gguf", test_folder(), families[f]);
        snprintf(hf, sizeof hf, "%s/%s", test_folder(), families[f]);
        assert_ok(tr_weights_open(&w, path));
        assert_ok(tr_net_new(&p.a, tr_weights_shape(w), TR_F32, TR_F32, 0));
        assert_ok(tr_net_load(p.a, w));
        struct tr_export e = { .shape = tr_weights_shape(w), .origin = NULL, .n = p.a->n_params, .params = p.a->param, .read = rows_of, .self = &p, .dtype = TR_F32 };
        assert_ok(tr_export_safetensors(&e, hf)); /* configuration made from the shape */
        same_net(p.a, hf);
        e.origin = w;
        assert_ok(tr_export_safetensors(&e, hf)); /* configuration copied */
        same_net(p.a, hf);
        if (p.a->shape.arch != TR_MISTRAL) assert_ok(tr_export_gguf(&e, gguf));
        if (p.a->shape.arch != TR_MISTRAL && !p.a->shape.rope_llama3.on) same_net(p.a, gguf);
        tr_net_free(p.a);
        tr_weights_free(w);
    }
}

/* ---- damage */

static void write_bytes(const char *path, const char *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

static void try_open(const char *path)
{
    struct tr_weights *w;
    int rc = tr_weights_open(&w, path);
    assert_true(rc == TR_OK || rc == TR_EINPUT);
    if (rc != TR_OK) {
        assert_true(strlen(tr_message()) > 10 && !strchr(tr_message(), '\n'));
        return;
    }
    for (int64_t i = 0; i < tr_weights_count(w); i++) { /* what opens can be read */
        const struct tr_weight_entry *e = tr_weights_at(w, i);
        int64_t rows = 1;
        for (int k = 0; k < e->ndim - 1; k++) rows *= e->dim[k];
        float *x = malloc((size_t)e->dim[e->ndim - 1] * 4);
        if (x) assert_ok(tr_weights_read(w, e, rows - 1, 1, x));
        free(x);
    }
    tr_weights_free(w);
}

/* The file cut short at many places, then with bytes of its first `head` changed. */
static void damage(const char *good, const char *bad, const char *open_as, size_t head, int tries)
{
    struct tr_buf b = { 0 };
    assert_ok(tr_read_file(&b, good));
    if (head > b.size) head = b.size;
    for (int i = 0; i < 60; i++) {
        write_bytes(bad, b.data, i < 40 ? head * (size_t)i / 40 : b.size * (size_t)(i - 40) / 20);
        try_open(open_as);
    }
    for (int i = 0; i < tries; i++) {
        char *copy = malloc(b.size);
        struct tr_key key = tr_key((uint64_t)i, TR_RNG_PROBE, 7, 0);
        memcpy(copy, b.data, b.size);
        for (uint64_t k = 0; k < 1 + (uint64_t)i % 3; k++) copy[tr_below(key, 2 * k, head)] = (char)tr_below(key, 2 * k + 1, 256);
        write_bytes(bad, copy, b.size);
        try_open(open_as);
        free(copy);
    }
    tr_buf_release(&b);
}

static void damaged_gguf(void **state)
{
    char good[512], bad[512];
    snprintf(good, sizeof good, "%s/llama-tied.gguf", test_folder());
    snprintf(bad, sizeof bad, "%s/bad.gguf", test_folder());
    damage(good, bad, bad, 2200, 300);
}

static void damaged_safetensors(void **state)
{
    char good[512], bad[512], dir[512], config[600];
    struct tr_buf b = { 0 };
    snprintf(dir, sizeof dir, "%s/bad", test_folder());
    assert_ok(tr_mkdirs(dir));
    snprintf(good, sizeof good, "%s/model/reference/qwen3/config.json", folder);
    snprintf(config, sizeof config, "%s/config.json", dir);
    assert_ok(tr_read_file(&b, good));
    write_bytes(config, b.data, b.size);
    tr_buf_release(&b);
    snprintf(good, sizeof good, "%s/model/reference/qwen3/model.safetensors", folder);
    snprintf(bad, sizeof bad, "%s/bad/model.safetensors", test_folder());
    damage(good, bad, dir, 2600, 300);
    assert_ok(tr_read_file(&b, good));
    write_bytes(bad, b.data, b.size);
    tr_buf_release(&b);
    snprintf(good, sizeof good, "%s/model/reference/qwen3/config.json", folder);
    damage(good, config, dir, 1 << 16, 300);
}

static int open_rc(const char *path)
{
    struct tr_weights *w;
    int rc = tr_weights_open(&w, path);
    if (rc == TR_OK) tr_weights_free(w);
    return rc;
}

static void hostile_headers(void **state)
{
    char path[512];
    snprintf(path, sizeof path, "%s/h.gguf", test_folder());
    struct { uint32_t magic, version; uint64_t tensors, keys; unsigned char rest[64]; } h = { 0x46554747, 3, UINT64_MAX, 1, { 0 } };
    write_bytes(path, (char *)&h, sizeof h);
    assert_int_equal(open_rc(path), TR_EINPUT);
    h.tensors = 1, h.keys = UINT64_MAX;
    write_bytes(path, (char *)&h, sizeof h);
    assert_int_equal(open_rc(path), TR_EINPUT);
    h.keys = 1; /* a key whose length is beyond the file */
    memset(h.rest, 0xff, 8);
    write_bytes(path, (char *)&h, sizeof h);
    assert_int_equal(open_rc(path), TR_EINPUT);
    h.version = 9;
    write_bytes(path, (char *)&h, sizeof h);
    assert_int_equal(open_rc(path), TR_EINPUT);
    write_bytes(path, "", 0);
    assert_int_equal(open_rc(path), TR_EINPUT);
    assert_int_equal(open_rc("/nonexistent.gguf"), TR_EINPUT);
}

int main(int argc, char **argv)
{
    folder = argc > 1 ? argv[1] : "tests";
    const struct CMUnitTest tests[] = { cmocka_unit_test(simple_blocks), cmocka_unit_test(k_blocks), cmocka_unit_test(round_trips), cmocka_unit_test(damaged_gguf),
                                        cmocka_unit_test(damaged_safetensors), cmocka_unit_test(hostile_headers) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
