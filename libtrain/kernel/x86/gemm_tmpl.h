/* Packed matrix products; compiled once for AVX2 (f32) and once for AVX-512 (f32, and bf16 in pairs).
 *
 * Every element is an f32 sum over k in order (with bf16 over pairs of k). Bits do not depend on threads, tiles, row strides
 * or how rows and columns are cut. Forward and dX sum each block of K from zero and add the blocks: a single sum over a
 * vocabulary of 49,152 loses two more digits. dW continues what c holds, so that sums over tokens may be cut anywhere (at
 * even tokens with bf16). Two orders of loops:
 *   by columns   a thread packs some panels of b and walks down the rows of a, which are read in place: forward and dX.
 *                b is the weight: types are widened, and int8 is scaled, while it is packed, once per call
 *   by rows      when a is transposed (dW): all threads pack b, then each packs some rows of a and walks along b
 * K is cut in blocks that fit the second cache; c holds the sum in between, or `acc` where c is not f32. */
#include "libtrain/base/mem.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/x86/gemm_pack.h"
#include <math.h>
#include <omp.h>

enum { KWORDS = 1024,             /* of a block of K */
       KWORDS_BY_ROWS = 320,      /* where rows of b are short pieces of stored rows: wider pieces count for more */
       GROUP_WORDS = 64 << 10,    /* of packed b that a thread holds, by columns */
       CHUNK_ROWS = 512,          /* of acc, by columns */
       SHARED_WORDS = 768 << 10,  /* of packed b, by rows */
       ROWS_WORDS = 64 << 10 };   /* of packed a that a thread holds, by rows */

struct shape {
    const struct tr_product *p;
    int pack;                        /* elements of a word: 2 bf16 or 1 f32 */
    int64_t block, blocks;           /* elements of a block of K, and how many */
    int64_t panels;
    bool in_place;                   /* a's rows can be read where they are */
    bool sums_in_c;                  /* c is f32 and takes the running sum */
};

/* ---- packing b */

static int64_t panel_width(const struct shape *s, int64_t panel) { return least(COLS, up(s->p->n - panel * COLS, LANES)); }

/* Panels of b one after another; only the last of all may be narrow. */
static void pack_panels(tr_word *to, const struct shape *s, int64_t panel, int64_t panels, int64_t k0, int64_t n)
{
    int64_t whole = least(panels, s->p->n / COLS - panel), words = (n + s->pack - 1) / s->pack;
    if (!s->p->b.transposed && whole > 0) pack_by_rows(to, COLS, words, &s->p->b, k0, n, panel * COLS, whole * COLS, s->pack);
    for (int64_t g = s->p->b.transposed || whole < 0 ? 0 : whole; g < panels; g++) {
        int64_t c = (panel + g) * COLS, cols = least(COLS, s->p->n - c), width = panel_width(s, panel + g);
        if (s->p->b.transposed) pack_by_columns(to + g * words * COLS, width, &s->p->b, k0, n, c, cols, s->pack);
        else pack_by_rows(to + g * words * COLS, width, words, &s->p->b, k0, n, c, cols, s->pack);
    }
}

/* ---- one block of c */

/* Up to BLOCK_ROWS rows of a panel of c from row i over block kb of K. acc: where sums wait that c cannot hold, row stride
 * COLS. */
static void one_block(const struct shape *s, const tr_word *a, int64_t a_row, int64_t a_step, const tr_word *b, int64_t i,
                      int64_t panel, int64_t kb, int64_t words, float *acc)
{
    const struct tr_product *p = s->p;
    int64_t j = panel * COLS, rows = least(BLOCK_ROWS, p->m - i), cols = least(COLS, p->n - j), width = panel_width(s, panel);
    float tile[BLOCK_ROWS * COLS], *c = (float *)p->c + i * p->c_ld + j;
    bool load = kb > 0 || (s->sums_in_c && p->beta != 0), last = kb == s->blocks - 1;
    int old = !load ? REPLACE : p->a.transposed ? CONTINUE : ADD;
    if (s->sums_in_c && rows == form_rows(rows) && cols == width) {
        form(s->pack - 1, rows, width / LANES)(c, p->c_ld, old, a, a_row, a_step, b, width, words);
        return;
    }
    float *t = s->sums_in_c || s->blocks == 1 ? tile : acc;
    if (s->sums_in_c && load) {
        memset(tile, 0, sizeof tile);
        move(tile, COLS, c, p->c_ld, rows, cols);
    }
    form(s->pack - 1, rows, width / LANES)(t, COLS, old, a, a_row, a_step, b, width, words);
    if (s->sums_in_c) move(c, p->c_ld, tile, COLS, rows, cols);
    else if (last) finish(p, s->pack, t, COLS, i, j, rows, cols);
}

/* ---- by columns */

struct by_columns { int64_t group, rows, groups, chunks; size_t b, a, acc; /* bytes of a thread */ };

static struct by_columns plan_columns(const struct shape *s, int threads)
{
    struct by_columns y = { .rows = s->p->m };
    int64_t panel_words = up(s->block / s->pack + 1, 8) * COLS;
    y.group = least(s->panels, GROUP_WORDS / panel_words > 1 ? GROUP_WORDS / panel_words : 1);
    while (y.group > 1 && (s->panels + y.group - 1) / y.group < 4 * threads) y.group--;
    y.groups = (s->panels + y.group - 1) / y.group;
    while (y.rows > 64 && y.groups * ((s->p->m + y.rows - 1) / y.rows) < 2 * threads) y.rows = up(y.rows / 2, BLOCK_ROWS);
    if (s->blocks > 1 && !s->sums_in_c) {
        y.rows = least(y.rows, CHUNK_ROWS);
        y.acc = (size_t)(up(y.rows, BLOCK_ROWS) * y.group * COLS) * 4;
    }
    y.chunks = (s->p->m + y.rows - 1) / y.rows;
    y.b = (size_t)(panel_words * y.group) * 4;
    y.a = (size_t)(BLOCK_ROWS * up(s->block / s->pack + 1, 16)) * 4;
    return y;
}

static void columns_task(const struct shape *s, const struct by_columns *y, int64_t task, char *own)
{
    const struct tr_product *p = s->p;
    int64_t panel0 = task % y->groups * y->group, panels = least(y->group, s->panels - panel0);
    int64_t begin = task / y->groups * y->rows, end = least(p->m, begin + y->rows), a_words = up(s->block / s->pack + 1, 16);
    tr_word *b = (tr_word *)own, *a_copy = (tr_word *)(own + y->b);
    float *acc = (float *)(own + y->b + y->a);
    for (int64_t kb = 0; kb < s->blocks; kb++) {
        int64_t k0 = kb * s->block, n = least(s->block, p->k - k0), words = (n + s->pack - 1) / s->pack, stride = words * COLS;
        pack_panels(b, s, panel0, panels, k0, n);
        for (int64_t i = begin; i < end; i += BLOCK_ROWS) {
            const tr_word *a = (const tr_word *)(const void *)stored(&p->a, i, k0);
            int64_t a_row = p->a.ld / s->pack;
            int64_t rows = form_rows(least(BLOCK_ROWS, p->m - i));
            if (!s->in_place || i + rows > p->m) {
                for (int64_t r = 0; r < rows; r++) {
                    a_copy[r * a_words + words - 1] = 0;    /* the second half of an odd last pair */
                    if (i + r < p->m) fetch(a_copy + r * a_words, &p->a, i + r, k0, n, s->pack);
                    else memset(a_copy + r * a_words, 0, (size_t)words * 4);
                }
                a = a_copy, a_row = a_words;
            }
            float *sums = acc + (i - begin) * y->group * COLS;
            for (int64_t g = 0; g < panels; g++)
                one_block(s, a, a_row, 1, b + g * stride, i, panel0 + g, kb, words, sums + g * BLOCK_ROWS * COLS);
        }
    }
}

static int run_columns(const struct shape *s, bool dry)
{
    int threads = omp_get_max_threads();
    struct by_columns y = plan_columns(s, threads);
    size_t each = (y.b + y.a + y.acc + 4095) / 4096 * 4096;
    void *work;
    TR_TRY(tr_arena_alloc(&work, each * (size_t)threads, TR_WORKSPACE));
    if (!dry) {
#pragma omp parallel for schedule(dynamic)
        for (int64_t task = 0; task < y.groups * y.chunks; task++)
            columns_task(s, &y, task, (char *)work + each * (size_t)omp_get_thread_num());
    }
    tr_arena_free(work, TR_WORKSPACE);
    return TR_OK;
}

/* ---- by rows */

static void rows_task(const struct shape *s, const tr_word *b, tr_word *a, int64_t begin, int64_t end, int64_t panel0,
                      int64_t panels, int64_t kb)
{
    const struct tr_product *p = s->p;
    int64_t k0 = kb * s->block, n = least(s->block, p->k - k0), words = (n + s->pack - 1) / s->pack;
    pack_by_rows(a, BLOCK_ROWS, words, &p->a, k0, n, begin, end - begin, s->pack);
    for (int64_t g = 0; g < panels; g++)
        for (int64_t i = begin; i < end; i += BLOCK_ROWS)
            one_block(s, a + (i - begin) * words, 1, BLOCK_ROWS, b + g * words * COLS, i, panel0 + g, kb, words, NULL);
}

static int run_rows(const struct shape *s, bool dry)
{
    const struct tr_product *p = s->p;
    int64_t most = up(least(s->block, p->k), s->pack) / s->pack, threads = omp_get_max_threads();
    int64_t panels = least(s->panels, SHARED_WORDS / (most * COLS) > 1 ? SHARED_WORDS / (most * COLS) : 1);
    int64_t rows = least(p->m, up(ROWS_WORDS / most + 1, BLOCK_ROWS));
    while (rows > 2 * BLOCK_ROWS && (p->m + rows - 1) / rows < 4 * threads) rows = up(rows / 2, BLOCK_ROWS);
    int64_t tasks = (p->m + rows - 1) / rows;
    size_t shared = (size_t)(panels * most * COLS) * 4, each = ((size_t)(up(rows, BLOCK_ROWS) * most) * 4 + 4095) / 4096 * 4096;
    void *work;
    TR_TRY(tr_arena_alloc(&work, shared + each * (size_t)threads, TR_WORKSPACE));
    if (!dry) {
#pragma omp parallel
        for (int64_t panel0 = 0; panel0 < s->panels; panel0 += panels) {
            int64_t some = least(panels, s->panels - panel0);
            tr_word *b = work, *own = (tr_word *)((char *)work + shared + each * (size_t)omp_get_thread_num());
            for (int64_t kb = 0; kb < s->blocks; kb++) {
                int64_t n = least(s->block, p->k - kb * s->block), words = (n + s->pack - 1) / s->pack;
#pragma omp for schedule(static)
                for (int64_t g = 0; g < some; g++) pack_panels(b + g * words * COLS, s, panel0 + g, 1, kb * s->block, n);
#pragma omp for schedule(dynamic)
                for (int64_t t = 0; t < tasks; t++) rows_task(s, b, own, t * rows, least(p->m, (t + 1) * rows), panel0, some, kb);
            }
        }
    }
    tr_arena_free(work, TR_WORKSPACE);
    return TR_OK;
}

static int run_packed(const struct tr_product *p, bool dry, bool pairs)
{
    struct shape s = { .p = p, .pack = pairs ? 2 : 1, .panels = (p->n + COLS - 1) / COLS };
    s.sums_in_c = p->c_dtype == TR_F32 && p->alpha == 1 && (p->beta == 0 || p->beta == 1);
    int64_t most = (int64_t)(p->a.transposed || p->b.transposed ? KWORDS : KWORDS_BY_ROWS) * s.pack;
    if (p->a.transposed && !s.sums_in_c) most = p->k;
    s.blocks = (p->k + most - 1) / most;
    s.block = least(p->k, up((p->k + s.blocks - 1) / s.blocks, 16));
    s.blocks = (p->k + s.block - 1) / s.block;
    s.in_place = is_native(&p->a, s.pack) && p->k % s.pack == 0 && p->a.ld % s.pack == 0 && (uintptr_t)p->a.data % 4 == 0;
    return p->a.transposed ? run_rows(&s, dry) : run_columns(&s, dry);
}
