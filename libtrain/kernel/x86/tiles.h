/* Small products by AMX tiles: a block of 32 x 32 f32 is four tiles of c, two of a and two of b. A tile has 16 rows of 64
 * bytes; one step takes 16 words (32 elements of K). An element is the sum over steps in order of (sum of the even products
 * of the step) + (sum of the odd ones), each in the order of k; values below the normal range count as zero. For block.h. */
#ifndef TR_X86_TILES_H
#define TR_X86_TILES_H
/* Before the first product of a thread, and after its last: tiles are a thread's state, which the kernel saves while in use. */
static inline void tiles_begin(void)
{
    static const struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {
        .palette = 1, .bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 16, 16 } };
    _tile_loadconfig(&config);
}
static inline void tiles_end(void) { _tile_release(); }

/* c[32, 32] by the rule of block.h: a has 32 rows of `words` words, b `words` rows of 32; words is a multiple of 16. */
static __attribute__((noinline)) void tiles_block(float *c, int64_t ldc, int old, const tr_word *a, int64_t a_row,
                                                  const tr_word *b, int64_t ldb, int64_t words)
{
    const int64_t c_bytes = ldc * 4, a_bytes = a_row * 4, b_bytes = ldb * 4;
    __asm__ volatile("" ::: "memory");    /* the compiler does not know that tile loads read what was stored before */
    if (old == CONTINUE) {
        _tile_loadd(0, c, c_bytes);
        _tile_loadd(1, c + 16, c_bytes);
        _tile_loadd(2, c + 16 * ldc, c_bytes);
        _tile_loadd(3, c + 16 * ldc + 16, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t s = 0; s < words; s += 16) {
        _tile_loadd(4, a + s, a_bytes);
        _tile_loadd(6, b + s * ldb, b_bytes);
        _tile_loadd(7, b + s * ldb + 16, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + 16 * a_row + s, a_bytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    float sum[32 * 32] __attribute__((aligned(64)));
    float *to = old == ADD ? sum : c;
    const int64_t to_bytes = old == ADD ? 128 : c_bytes;
    _tile_stored(0, to, to_bytes);
    _tile_stored(1, to + 16, to_bytes);
    _tile_stored(2, to + to_bytes * 4, to_bytes);
    _tile_stored(3, to + to_bytes * 4 + 16, to_bytes);
    for (int64_t r = 0; old == ADD && r < 32; r++)
        for (int64_t v = 0; v < 32; v += LANES) v_store(c + r * ldc + v, v_add(v_load(c + r * ldc + v), v_load(sum + r * 32 + v)));
}

#endif
