/* f32 products by OpenBLAS. The output is cut into fixed tiles, each computed by one thread: how OpenBLAS itself would
 * cut the work depends on the number of threads, and with it the bits would. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/impl.h"
#include "libtrain/kernel/kernel.h"
#include "train_config.h"
#if HAVE_BLAS
#include <cblas.h>
#include <limits.h>

enum { TILE_M = 256, TILE_N = 512 };

static bool fits(int64_t x) { return x <= INT_MAX; }

static bool takes(const struct tr_product *p)
{
    return p->a.dtype == TR_F32 && p->b.dtype == TR_F32 && p->c_dtype == TR_F32
        && fits(p->m) && fits(p->n) && fits(p->k) && fits(p->a.ld) && fits(p->b.ld) && fits(p->c_ld);
}

static const float *at(const struct tr_operand *o, int64_t row, int64_t col)
{
    return (const float *)o->data + (o->transposed ? col * o->ld + row : row * o->ld + col);
}

static int run(const struct tr_product *p, bool dry)
{
    if (dry) return TR_OK;
    tr_blas_end(tr_blas_begin()); /* the tiles have OpenMP's threads, each call its own alone */
    int64_t tiles_m = (p->m + TILE_M - 1) / TILE_M, tiles_n = (p->n + TILE_N - 1) / TILE_N;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tiles_m * tiles_n; t++) {
        int64_t i = t % tiles_m * TILE_M, j = t / tiles_m * TILE_N;
        int64_t m = p->m - i < TILE_M ? p->m - i : TILE_M, n = p->n - j < TILE_N ? p->n - j : TILE_N;
        cblas_sgemm(CblasRowMajor, p->a.transposed ? CblasTrans : CblasNoTrans, p->b.transposed ? CblasTrans : CblasNoTrans,
                    (blasint)m, (blasint)n, (blasint)p->k, p->alpha, at(&p->a, i, 0), (blasint)p->a.ld,
                    at(&p->b, 0, j), (blasint)p->b.ld, p->beta, (float *)p->c + i * p->c_ld + j, (blasint)p->c_ld);
    }
    return TR_OK;
}

/* Packing buffers: one per thread, of which tiles of this size touch about so much (K up to 4 blocks of 384). */
static size_t held(void) { return 4 << 20; }

const struct tr_gemm_impl tr_gemm_cblas = { .name = "openblas", .takes = takes, .run = run, .held = held };
#endif
