/* bf16 products by AMX tiles.
 *
 * Every element is an f32 sum over k in order, by steps of tiles.h. Bits do not depend on threads, row strides or how rows and
 * columns are cut. Forward and dX sum each piece of K from zero and add the pieces; dW continues what c holds, so that
 * sums over tokens may be cut at multiples of 32.
 *
 * All threads pack some panels of b together, then each takes rows of a and walks along the panels. Rows of a are read in
 * place where they can be; of a transposed a (dW) they are turned into an own buffer. Nothing is so slow here as a byte that
 * is not in the second cache: it holds the panels and 32 rows of a, and the next rows are asked for meanwhile. */
#include "libtrain/base/mem.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/x86/gemm_pack.h"
#include <omp.h>

enum { ROWS = UNIT_ROWS,
       STRETCH = 4,                 /* blocks of rows at most that a thread takes at once */
       PIECE = 320,                 /* elements of K at most that are summed at once: 32 rows of a and a panel fit the first cache */
       PANEL_WORDS = 256 << 10,     /* of packed b: half of the second cache */
       BLOCK = 4096,                /* elements of K that are packed at once for few panels, rather than sums that wait */
       PANELS = 24,                 /* packed at once at least of a longer K: a is read, or turned, once for them all */
       STREAM = 16 << 20,           /* bytes of f32 results from which they go past the caches, which would read them first */
       SHARED_ROWS = 2048 };        /* whose sums wait where c cannot hold them and K has several blocks */

struct shape {
    const struct tr_product *p;
    int64_t piece, block, pieces, panels, group;    /* elements of K; pieces of all of K; panels of all columns, and at once */
    int64_t stretch;                                /* rows that a thread takes at once */
    bool in_place, sums_in_c, stream;               /* rows of a where they are; c takes running sums; c goes past the caches */
    bool wait;                                      /* sums of many rows wait from block to block of K */
    size_t b, a, acc;                               /* bytes: packed panels; rows of a thread; sums of a thread, or where they wait of all */
};

/* The size of parts of at most `most` that are as equal as can be. */
static int64_t even(int64_t n, int64_t most)
{
    int64_t parts = (n + most - 1) / most;
    return (n + parts - 1) / parts;
}

static struct shape shape_of(const struct tr_product *p, int64_t threads)
{
    struct shape s = { .p = p, .panels = (p->n + COLS - 1) / COLS };
    s.piece = up(even(p->k, PIECE), 2 * WORDS);
    s.pieces = (p->k + s.piece - 1) / s.piece;
    s.group = PANEL_WORDS / (words_of(p->k, 2) * COLS);
    if (s.group < PANELS && (p->a.transposed || p->k > BLOCK)) s.group = PANELS;
    s.group = even(s.panels, s.group);
    s.block = PANEL_WORDS * 2 / (s.group * COLS) / s.piece;
    s.block = least(s.block > 1 ? s.block : 1, s.pieces) * s.piece;
    s.in_place = !p->a.transposed && p->k % (2 * WORDS) == 0 && p->a.ld % 2 == 0 && (uintptr_t)p->a.data % 4 == 0;
    s.sums_in_c = p->c_dtype == TR_F32 && p->alpha == 1 && (p->beta == 0 || p->beta == 1);
    if (s.sums_in_c && p->beta == 0 && !p->a.transposed && p->m * p->n * 4 >= STREAM) {
        s.sums_in_c = false;
        s.stream = p->c_ld % LANES == 0 && (uintptr_t)p->c % 64 == 0;
    }
    s.b = (size_t)(s.block / 2 * s.group * COLS) * 4;
    s.stretch = ROWS * STRETCH;
    for (; s.stretch > ROWS; s.stretch -= ROWS) {    /* as many for each thread */
        int64_t tasks = (p->m + s.stretch - 1) / s.stretch;
        if (tasks >= 8 * threads || (tasks >= 2 * threads && tasks % threads == 0)) break;
    }
    s.a = (size_t)((p->a.transposed ? s.stretch : ROWS) * s.block / 2) * 4;
    s.wait = !s.sums_in_c && s.block < p->k;
    int64_t rows = s.wait ? up(least(p->m, SHARED_ROWS), ROWS) : p->a.transposed ? s.stretch : ROWS;
    if (!s.sums_in_c && s.pieces > 1) s.acc = (size_t)(rows * s.group * COLS) * 4;
    return s;
}

/* Rows [i, i + ROWS) of a for elements [k0, k0 + n) of K: where they are, or copied with zeros around. */
static const tr_word *rows_of_a(const struct shape *s, tr_word *copy, int64_t *row, int64_t i, int64_t k0, int64_t n)
{
    const struct tr_operand *a = &s->p->a;
    int64_t words = words_of(n, 2), rows = least(ROWS, s->p->m - i);
    *row = a->ld / 2;
    if (s->in_place && rows == ROWS) return (const tr_word *)(const void *)stored(a, i, k0);
    *row = words;
    for (int64_t r = 0; r < ROWS; r++) {
        int64_t have = r < rows ? n : 0;
        memset(copy + r * words + have / 2, 0, (size_t)(words - have / 2) * 4);
        if (have) fetch(copy + r * words, a, i + r, k0, n, 2);
    }
    return copy;
}

/* Columns [i, end) of a transposed a as rows: blocks of ROWS x words, one after another. All of a stored row are read together. */
static void turn_rows(const struct shape *s, tr_word *copy, int64_t i, int64_t end, int64_t k0, int64_t n)
{
    const struct tr_operand *a = &s->p->a;
    int64_t words = words_of(n, 2);
    for (int64_t w = 0; w < words; w += WORDS)
        for (int64_t j = i; j < end; j += ROWS) {
            tr_word woven[WORDS * ROWS] __attribute__((aligned(64)));
            const uint16_t *from = (const uint16_t *)a->data + (k0 + w * 2) * a->ld + j;
            bool whole = j + ROWS <= end && n - w * 2 >= WORDS * 2;
            for (int64_t k = 0; whole && k < WORDS; k++, from += 2 * a->ld) {
                _mm_prefetch(from + 2 * WORDS * a->ld, _MM_HINT_T0);    /* of the next unit of words */
                _mm_prefetch(from + (2 * WORDS + 1) * a->ld, _MM_HINT_T0);
                for (int64_t v = 0; v < ROWS; v += LANES) store_lanes(woven + k * ROWS + v, weave_lanes(from, from + a->ld, v, 2));
            }
            if (!whole) pack_by_rows(woven, ROWS, WORDS, a, k0 + w * 2, least(n - w * 2, WORDS * 2), j, least(ROWS, end - j), 2);
            transpose((float *)copy + (j - i) * words + w, words, (const float *)woven, ROWS, WORDS, ROWS);
        }
}

/* One piece of K for ROWS rows and one panel; acc holds ROWS x COLS sums that c cannot. */
static void one_block(const struct shape *s, const tr_word *a, int64_t a_row, const tr_word *b, int64_t i, int64_t panel,
                      int64_t piece, int64_t words, float *acc)
{
    const struct tr_product *p = s->p;
    int64_t j = panel * COLS, rows = least(ROWS, p->m - i), cols = least(COLS, p->n - j);
    float tile[ROWS * COLS] __attribute__((aligned(64))), *c = (float *)p->c + i * p->c_ld + j;
    bool load = piece > 0 || (s->sums_in_c && p->beta != 0);
    int old = !load ? REPLACE : p->a.transposed ? CONTINUE : ADD;
    if (s->sums_in_c && rows == ROWS && cols == COLS) {
        tiles_block(c, p->c_ld, old, a, a_row, b, COLS, words);
        return;
    }
    float *t = s->sums_in_c || s->pieces == 1 ? tile : acc;
    if (s->sums_in_c && load) {
        memset(tile, 0, sizeof tile);
        move(tile, COLS, c, p->c_ld, rows, cols);
    }
    tiles_block(t, COLS, old, a, a_row, b, COLS, words);
    if (s->sums_in_c) move(c, p->c_ld, tile, COLS, rows, cols);
    else if (piece == s->pieces - 1 && s->stream && cols == COLS)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t v = 0; v < COLS; v += LANES) _mm512_stream_ps(c + r * p->c_ld + v, v_load(t + r * COLS + v));
    else if (piece == s->pieces - 1) finish(p, 2, t, COLS, i, j, rows, cols);
}

/* Asks for a part of the rows of a that come next. */
static void ask(const struct shape *s, int64_t i, int64_t k0, int64_t n, int64_t part, int64_t parts)
{
    for (int64_t r = i + part * ROWS / parts; r < i + (part + 1) * ROWS / parts && r < s->p->m; r++)
        for (int64_t k = 0; k < n; k += 32) _mm_prefetch(stored(&s->p->a, r, k0 + k), _MM_HINT_T1);
}

/* Packed panels of all threads, turned or copied rows of a thread, and sums that wait for more of K: those of row0 on at acc. */
struct work { tr_word *b, *copy; float *acc; };

static float *sums_at(const struct shape *s, const struct work *w, int64_t row0, int64_t i, int64_t g)
{
    return w->acc + (i - row0) * s->group * COLS + g * ROWS * COLS;
}

/* Rows [i, end) over the packed panels and elements of K from k0. */
static void rows_task(const struct shape *s, const struct work *w, int64_t i, int64_t end, int64_t row0, int64_t panel0, int64_t panels,
                      int64_t k0)
{
    int64_t n = least(s->block, s->p->k - k0), words = words_of(n, 2), stride = words * COLS, a_row;
    if (s->p->a.transposed) {
        turn_rows(s, w->copy, i, end, k0, n);
        for (int64_t g = 0; g < panels; g++)
            for (int64_t k = 0; k < n; k += s->piece)
                for (int64_t j = i; j < end; j += ROWS)
                    one_block(s, w->copy + (j - i) * words + k / 2, words, w->b + g * stride + k / 2 * COLS, j, panel0 + g,
                              (k0 + k) / s->piece, words_of(least(s->piece, n - k), 2), sums_at(s, w, s->wait ? row0 : i, j, g));
        return;
    }
    for (; i < end; i += ROWS) {
        const tr_word *a = rows_of_a(s, w->copy, &a_row, i, k0, n);
        for (int64_t k = 0; k < n; k += s->piece) {
            int64_t some = least(s->piece, n - k);
            for (int64_t g = 0; g < panels; g++) {
                if (i + ROWS < end) ask(s, i + ROWS, k0 + k, some, g, panels);
                one_block(s, a + k / 2, a_row, w->b + g * stride + k / 2 * COLS, i, panel0 + g, (k0 + k) / s->piece, words_of(some, 2),
                          sums_at(s, w, s->wait ? row0 : i, i, g));
            }
        }
    }
    if (s->stream) _mm_sfence();
}

/* A part of `parts` of the packing of panels, one after another: some of K where stored rows are k, else some panels. */
static void pack_part(tr_word *to, const struct shape *s, int64_t panel0, int64_t panels, int64_t k0, int64_t n, int64_t part,
                      int64_t parts)
{
    const struct tr_operand *b = &s->p->b;
    int64_t words = words_of(n, 2), unit = 2 * WORDS, units = (n + unit - 1) / unit;
    if (!b->transposed) {
        int64_t from = part * units / parts * unit, end = least(n, (part + 1) * units / parts * unit), c = panel0 * COLS;
        if (from < end) pack_by_rows(to + from / 2 * COLS, COLS, words, b, k0 + from, end - from, c, least(panels * COLS, s->p->n - c), 2);
        return;
    }
    for (int64_t g = part * panels / parts; g < (part + 1) * panels / parts; g++)
        pack_by_columns(to + g * words * COLS, COLS, b, k0, n, (panel0 + g) * COLS, least(COLS, s->p->n - (panel0 + g) * COLS), 2);
}

/* Panels [panel0, ...), rows [row0, row0 + rows), elements of K from k0; called by all threads. */
static void part_of_c(const struct shape *s, const struct work *w, int64_t panel0, int64_t row0, int64_t rows, int64_t k0)
{
    int64_t panels = least(s->group, s->panels - panel0), n = least(s->block, s->p->k - k0), parts = 4 * omp_get_num_threads();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < parts; i++) pack_part(w->b, s, panel0, panels, k0, n, i, parts);
    if (s->block < s->p->k) {    /* the sums of a row stay in one core's cache */
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i += s->stretch)
            rows_task(s, w, row0 + i, row0 + least(rows, i + s->stretch), row0, panel0, panels, k0);
    } else {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < rows; i += s->stretch)
            rows_task(s, w, row0 + i, row0 + least(rows, i + s->stretch), row0, panel0, panels, k0);
    }
}

int tr_amx_product(const struct tr_product *p, bool dry)
{
    int64_t threads = omp_get_max_threads();
    struct shape s = shape_of(p, threads);
    int64_t chunk = s.wait ? SHARED_ROWS : p->m;
    size_t each = (s.a + (s.wait ? 0 : s.acc) + 4095) / 4096 * 4096, shared = (s.b + (s.wait ? s.acc : 0) + 4095) / 4096 * 4096;
    char *work;
    TR_TRY(tr_arena_alloc((void **)&work, shared + each * (size_t)threads, TR_WORKSPACE));
    if (!dry) {
#pragma omp parallel
        {
            char *own = work + shared + each * (size_t)omp_get_thread_num();
            const struct work w = { .b = (tr_word *)work, .copy = (tr_word *)own, .acc = (float *)(s.wait ? work + s.b : own + s.a) };
            product_begin();
            for (int64_t panel0 = 0; panel0 < s.panels; panel0 += s.group)
                for (int64_t row0 = 0; row0 < p->m; row0 += chunk)
                    for (int64_t k0 = 0; k0 < p->k; k0 += s.block) part_of_c(&s, &w, panel0, row0, least(chunk, p->m - row0), k0);
            product_end();
        }
    }
    tr_arena_free(work, TR_WORKSPACE);
    return TR_OK;
}
