#include "libtrain/kernel/linalg.h"
#include "libtrain/base/mem.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/kernel.h"
#include "train_config.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Element c of vector i of p. */
static float *entry(const struct tr_tensor *p, bool right, int64_t i, int64_t c) { return (float *)p->data + (right ? i * p->ld + c : c * p->ld + i); }

static void settle_signs(struct tr_tensor *p, bool right, const struct tr_tensor *old)
{
    int64_t r = right ? tr_rows(p) : tr_cols(p), l = right ? tr_cols(p) : tr_rows(p);
    for (int64_t i = 0; i < r && !tr_mem_is_dry(); i++) {
        double sign = 0;
        float top = 0;
        for (int64_t c = 0; c < l; c++) {
            float x = *entry(p, right, i, c);
            if (old) sign += (double)x * (double)*entry(old, right, i, c);
            if (fabsf(x) > fabsf(top)) top = x;
        }
        if (!old) sign = (double)top;
        for (int64_t c = 0; c < l && sign < 0; c++) *entry(p, right, i, c) = -*entry(p, right, i, c);
    }
}

static void keep_vectors(struct tr_tensor *p, bool right, const struct tr_tensor *old)
{
    int64_t r = right ? tr_rows(p) : tr_cols(p), l = right ? tr_cols(p) : tr_rows(p);
    for (int64_t i = 0; i < r && !tr_mem_is_dry(); i++)
        for (int64_t c = 0; c < l; c++) *entry(p, right, i, c) = old ? *entry(old, right, i, c) : i == c;
}

/* ---- matrices of a device in the host's memory */

/* The first `out` of h are written back by host_end. Without a device they are the matrices themselves. */
struct on_host { struct tr_tensor h[3], t[3]; void *mem[3]; int n; };

static int host_begin(struct on_host *o, int n, const struct tr_tensor *const *t)
{
    *o = (struct on_host){ 0 };
    for (; o->n < n; o->n++) {
        if (!t[o->n]) continue;
        o->t[o->n] = o->h[o->n] = *t[o->n];
        if (!tr_device()) continue;
        int rc = tr_arena_alloc(&o->mem[o->n], (size_t)tr_count(t[o->n]) * tr_dtype_size(t[o->n]->dtype), TR_WORKSPACE);
        if (rc != TR_OK) {
            while (o->n-- > 0) tr_arena_free(o->mem[o->n], TR_WORKSPACE);
            return rc;
        }
        o->h[o->n] = tr_tensor_view(o->mem[o->n], t[o->n]->dtype, t[o->n]->ndim, t[o->n]->dim);
        if (!tr_mem_is_dry()) tr_tensor_read(t[o->n], o->mem[o->n]);
    }
    return TR_OK;
}

static int host_end(struct on_host *o, int out, int rc)
{
    while (o->n-- > 0) {
        if (!o->mem[o->n]) continue;
        if (rc == TR_OK && o->n < out) tr_tensor_write(&o->t[o->n], o->mem[o->n]);
        tr_arena_free(o->mem[o->n], TR_WORKSPACE);
    }
    return rc;
}

#define TENSORS(...) (int)(sizeof((const struct tr_tensor *[]){ __VA_ARGS__ }) / sizeof(struct tr_tensor *)), (const struct tr_tensor *[]){ __VA_ARGS__ }

int tr_settle_signs(struct tr_tensor *p, bool right, const struct tr_tensor *old)
{
    struct on_host o;
    TR_TRY(host_begin(&o, TENSORS(p, old)));
    settle_signs(&o.h[0], right, old ? &o.h[1] : NULL);
    return host_end(&o, 1, TR_OK);
}

int tr_keep_vectors(struct tr_tensor *p, bool right, const struct tr_tensor *old)
{
    struct on_host o;
    TR_TRY(host_begin(&o, TENSORS(p, old)));
    keep_vectors(&o.h[0], right, old ? &o.h[1] : NULL);
    return host_end(&o, 1, TR_OK);
}

#if HAVE_BLAS
#include <cblas.h>
#include <lapacke.h>

enum { PANEL = 64 };   /* rows or columns of g that are widened at a time */

static const float *row_of(const struct tr_tensor *g, int64_t r) { return (const float *)g->data + r * g->ld; }

/* a [S,S] = g g^T (rows) or g^T g, S the smaller side; the upper triangle of a column-major matrix. */
static void gram(double *a, double *panel, const struct tr_tensor *g, bool rows)
{
    int64_t m = tr_rows(g), n = tr_cols(g), s = rows ? m : n, over = rows ? n : m;
    memset(a, 0, (size_t)(s * s) * sizeof *a);
    for (int64_t at = 0; at < over; at += PANEL) {
        int64_t k = over - at < PANEL ? over - at : PANEL;
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j < s; j++) panel[i * s + j] = (double)(rows ? row_of(g, j)[at + i] : row_of(g, at + i)[j]);
        cblas_dsyrk(CblasColMajor, CblasUpper, CblasNoTrans, (blasint)s, (blasint)k, 1, panel, (blasint)s, 1, a, (blasint)s);
    }
}

/* z [R,S] = the eigenvectors of the R largest eigenvalues, as rows, the largest first. */
static int largest(double *z, double *a, int64_t s, int64_t r, double *work, int64_t lwork, lapack_int *iwork, int64_t liwork)
{
    double *w = work + lwork, *found = w + s;
    lapack_int n = 0, *support = iwork + liwork;
    lapack_int info = LAPACKE_dsyevr_work(LAPACK_COL_MAJOR, 'V', 'I', 'U', (lapack_int)s, a, (lapack_int)s, 0, 0, (lapack_int)(s - r + 1), (lapack_int)s, 0, &n, w,
                                          found, (lapack_int)s, support, work, (lapack_int)lwork, iwork, (lapack_int)liwork);
    if (info || n != r) return tr_fail(TR_EFAIL, "LAPACK found %d of %d singular vectors (dsyevr: %d)", (int)n, (int)r, (int)info);
    for (int64_t i = 0; i < r; i++) memcpy(z + i * s, found + (r - 1 - i) * s, (size_t)s * sizeof *z);
    return TR_OK;
}

/* v [R,L] = the other side's vectors: z g or g z, then made orthonormal from the first on, twice over since small singular
 * values leave little of a vector. What vanishes becomes the unit vector that is least covered. */
static void other_side(double *v, const double *z, const struct tr_tensor *g, bool z_is_rows, int64_t r, int64_t l)
{
    int64_t m = tr_rows(g), n = tr_cols(g);
    memset(v, 0, (size_t)(r * l) * sizeof *v);
    for (int64_t i = 0; i < r; i++)
        for (int64_t a = 0; a < m; a++) {
            const float *x = row_of(g, a);
            double sum = 0;
            if (z_is_rows) for (int64_t b = 0; b < n; b++) v[i * l + b] += z[i * m + a] * (double)x[b];
            else {
                for (int64_t b = 0; b < n; b++) sum += z[i * n + b] * (double)x[b];
                v[i * l + a] = sum;
            }
        }
    for (int64_t i = 0; i < r; i++) {
        double *u = v + i * l, first = cblas_dnrm2((blasint)l, u, 1);
        for (int pass = 0; pass < 2; pass++)
            for (int64_t k = 0; k < i; k++) cblas_daxpy((blasint)l, -cblas_ddot((blasint)l, u, 1, v + k * l, 1), v + k * l, 1, u, 1);
        double left = cblas_dnrm2((blasint)l, u, 1);
        if (!(left > 1e-10 * first)) {
            int64_t best = 0;
            double least = INFINITY;
            for (int64_t c = 0; c < l; c++) {
                double covered = 0;
                for (int64_t k = 0; k < i; k++) covered += v[k * l + c] * v[k * l + c];
                if (covered < least) least = covered, best = c;
            }
            memset(u, 0, (size_t)l * sizeof *u);
            u[best] = 1;
            for (int pass = 0; pass < 2; pass++)
                for (int64_t k = 0; k < i; k++) cblas_daxpy((blasint)l, -cblas_ddot((blasint)l, u, 1, v + k * l, 1), v + k * l, 1, u, 1);
            left = cblas_dnrm2((blasint)l, u, 1);
        }
        cblas_dscal((blasint)l, 1 / left, u, 1);
    }
}

static void put(struct tr_tensor *p, const double *v, bool right, int64_t r, int64_t l, const struct tr_tensor *old)
{
    for (int64_t i = 0; i < r; i++)
        for (int64_t c = 0; c < l; c++) *entry(p, right, i, c) = (float)v[i * l + c];
    settle_signs(p, right, old);
}

static int singular_vectors(struct tr_tensor *p, const struct tr_tensor *g, bool right, const struct tr_tensor *old)
{
    int64_t m = tr_rows(g), n = tr_cols(g), r = right ? tr_rows(p) : tr_cols(p), l = right ? n : m;
    bool rows = m < n || (m == n && !right);  /* the Gram matrix is of the rows; a square one's is of the side that is asked for */
    int64_t s = rows ? m : n, lwork = 70 * s, liwork = 10 * s;
    void *mem[6] = { 0 };
    size_t size[6] = { (size_t)(s * s) * 8, (size_t)(PANEL * s) * 8, (size_t)(lwork + s + r * s) * 8, (size_t)(liwork + 2 * r) * sizeof(lapack_int), (size_t)(r * s) * 8, (size_t)(r * l) * 8 };
    int rc = TR_OK;
    for (int i = 0; i < 6 && rc == TR_OK; i++) rc = tr_arena_alloc(&mem[i], size[i], TR_WORKSPACE);
    if (rc == TR_OK && !tr_mem_is_dry()) {
        double *a = mem[0], *z = mem[4], trace = 0;
        int threads = tr_blas_begin();
        gram(a, mem[1], g, rows);
        for (int64_t i = 0; i < s; i++) trace += a[i * s + i];
        if (!isfinite(trace) || trace <= 0) keep_vectors(p, right, old);
        else {
            rc = largest(z, a, s, r, mem[2], lwork, mem[3], liwork);
            if (rc == TR_OK && rows == right) other_side(mem[5], z, g, rows, r, l);
            if (rc == TR_OK) put(p, rows == right ? mem[5] : z, right, r, l, old);
        }
        tr_blas_end(threads);
    }
    for (int i = 6; i-- > 0;) tr_arena_free(mem[i], TR_WORKSPACE);
    return rc;
}

/* ---- small dense problems in double */

/* Buffers in the arena: what can fail comes before what is computed. */
struct scratch { void *mem[4]; int n; };

static int scratch_get(struct scratch *s, size_t bytes)
{
    TR_TRY(tr_arena_alloc(&s->mem[s->n], bytes, TR_WORKSPACE));
    s->n++;
    return TR_OK;
}

static void scratch_release(struct scratch *s)
{
    while (s->n > 0) tr_arena_free(s->mem[--s->n], TR_WORKSPACE);
}

/* Column-major doubles of a row-major matrix; false when one is not finite. */
static bool widen(double *to, const struct tr_tensor *x)
{
    int64_t m = tr_rows(x), n = tr_cols(x);
    bool finite = true;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            to[j * m + i] = (double)row_of(x, i)[j];
            finite &= isfinite(to[j * m + i]) != 0;
        }
    return finite;
}

static void narrow(struct tr_tensor *x, const double *from)
{
    int64_t m = tr_rows(x), n = tr_cols(x);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) ((float *)x->data + i * x->ld)[j] = (float)from[j * m + i];
}

static int bad_matrix(const char *what, lapack_int info)
{
    return info ? tr_fail(TR_EFAIL, "%s failed (LAPACK: %d)", what, (int)info) : tr_fail(TR_EFAIL, "%s met a number that is not finite; lower train.lr", what);
}

/* q (column-major [m,n]) becomes orthonormal; work: n + lwork doubles. */
static lapack_int orthonormal(double *q, int64_t m, int64_t n, double *work, int64_t lwork)
{
    lapack_int info = LAPACKE_dgeqrf_work(LAPACK_COL_MAJOR, (lapack_int)m, (lapack_int)n, q, (lapack_int)m, work, work + n, (lapack_int)lwork);
    return info ? info : LAPACKE_dorgqr_work(LAPACK_COL_MAJOR, (lapack_int)m, (lapack_int)n, (lapack_int)n, q, (lapack_int)m, work, work + n, (lapack_int)lwork);
}

enum { QR_BLOCK = 64 };

static int orthonormal_matrix(struct tr_tensor *q)
{
    struct scratch s = { 0 };
    int64_t m = tr_rows(q), n = tr_cols(q);
    int rc;
    TR_GO(scratch_get(&s, (size_t)(m * n) * 8));
    TR_GO(scratch_get(&s, (size_t)(n + QR_BLOCK * n) * 8));
    if (tr_mem_is_dry()) goto done;
    int threads = tr_blas_begin();
    bool finite = widen(s.mem[0], q);
    lapack_int info = finite ? orthonormal(s.mem[0], m, n, s.mem[1], QR_BLOCK * n) : 0;
    tr_blas_end(threads);
    if (!finite || info) TR_GO(bad_matrix("a QR decomposition", info));
    narrow(q, s.mem[0]);
done:
    scratch_release(&s);
    return rc;
}

static int eigenvectors(struct tr_tensor *q, const struct tr_tensor *a)
{
    struct scratch s = { 0 };
    int64_t n = tr_rows(a), lwork = 1 + 6 * n + 2 * n * n, liwork = 3 + 5 * n;
    int rc;
    TR_GO(scratch_get(&s, (size_t)(n * n + n) * 8));
    TR_GO(scratch_get(&s, (size_t)lwork * 8));
    TR_GO(scratch_get(&s, (size_t)liwork * sizeof(lapack_int)));
    if (tr_mem_is_dry()) goto done;
    double *z = s.mem[0];
    int threads = tr_blas_begin();
    bool finite = widen(z, a);
    lapack_int info = finite ? LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'V', 'U', (lapack_int)n, z, (lapack_int)n, z + n * n, s.mem[1], (lapack_int)lwork, s.mem[2], (lapack_int)liwork) : 0;
    tr_blas_end(threads);
    if (!finite || info) TR_GO(bad_matrix("an eigenvalue decomposition", info));
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) ((float *)q->data + i * q->ld)[j] = (float)z[(n - 1 - j) * n + i];
done:
    scratch_release(&s);
    return rc;
}

struct ranked { double value; int32_t index; };

static int by_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    return x->value != y->value ? (x->value < y->value) - (x->value > y->value) : (x->index > y->index) - (x->index < y->index);
}

static int power_step(struct tr_tensor *q, struct tr_tensor *order, const struct tr_tensor *a)
{
    struct scratch s = { 0 };
    int64_t n = tr_rows(a), nn = n * n;
    int rc;
    TR_GO(scratch_get(&s, (size_t)(3 * nn) * 8));
    TR_GO(scratch_get(&s, (size_t)(n + QR_BLOCK * n) * 8));
    TR_GO(scratch_get(&s, (size_t)n * sizeof(struct ranked)));
    if (tr_mem_is_dry()) goto done;
    double *z = s.mem[0], *g = z + nn, *y = g + nn;
    struct ranked *rank = s.mem[2];
    int threads = tr_blas_begin();
    bool finite = widen(z, q) & widen(g, a);
    lapack_int info = 0;
    if (finite) {
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, (blasint)n, (blasint)n, (blasint)n, 1, g, (blasint)n, z, (blasint)n, 0, y, (blasint)n);
        for (int64_t j = 0; j < n; j++) rank[j] = (struct ranked){ cblas_ddot((blasint)n, z + j * n, 1, y + j * n, 1), (int32_t)j };
        qsort(rank, (size_t)n, sizeof *rank, by_rank);
        for (int64_t j = 0; j < n; j++) memcpy(z + j * n, y + rank[j].index * n, (size_t)n * sizeof *z);
        info = orthonormal(z, n, n, s.mem[1], QR_BLOCK * n);
    }
    tr_blas_end(threads);
    if (!finite || info) TR_GO(bad_matrix("a power step", info));
    narrow(q, z);
    for (int64_t j = 0; j < n; j++) ((int32_t *)order->data)[j] = rank[j].index;
done:
    scratch_release(&s);
    return rc;
}

static int damped_column(struct tr_tensor *x, const struct tr_tensor *a, double by, double damping, int64_t k)
{
    struct scratch s = { 0 };
    int64_t n = tr_rows(a);
    int rc;
    TR_GO(scratch_get(&s, (size_t)(n * n + n) * 8));
    if (tr_mem_is_dry()) goto done;
    double *z = s.mem[0], *e = z + n * n;
    bool finite = widen(z, a);
    for (int64_t i = 0; i < n * n; i++) z[i] = by * z[i] + (i % (n + 1) ? 0 : damping);
    for (int64_t i = 0; i < n; i++) e[i] = i == k;
    int threads = tr_blas_begin();
    lapack_int info = finite ? LAPACKE_dposv_work(LAPACK_COL_MAJOR, 'U', (lapack_int)n, 1, z, (lapack_int)n, e, (lapack_int)n) : 0;
    tr_blas_end(threads);
    if (!finite || info) TR_GO(bad_matrix("a solution with damping", info));
    for (int64_t i = 0; i < n; i++) ((float *)x->data)[i] = (float)e[i];
done:
    scratch_release(&s);
    return rc;
}
#else
static int no_lapack(void) { return tr_fail(TR_EFAIL, "matrix decompositions need LAPACK: build with -Dblas=enabled, or choose a random projection or another optimizer"); }
static int singular_vectors(struct tr_tensor *p, const struct tr_tensor *g, bool right, const struct tr_tensor *old) { return no_lapack(); }
static int eigenvectors(struct tr_tensor *q, const struct tr_tensor *a) { return no_lapack(); }
static int orthonormal_matrix(struct tr_tensor *q) { return no_lapack(); }
static int power_step(struct tr_tensor *q, struct tr_tensor *order, const struct tr_tensor *a) { return no_lapack(); }
static int damped_column(struct tr_tensor *x, const struct tr_tensor *a, double by, double damping, int64_t k) { return no_lapack(); }
#endif

int tr_singular_vectors(struct tr_tensor *p, const struct tr_tensor *g, bool right, const struct tr_tensor *old)
{
    struct on_host o;
    TR_TRY(host_begin(&o, TENSORS(p, g, old)));
    return host_end(&o, 1, singular_vectors(&o.h[0], &o.h[1], right, old ? &o.h[2] : NULL));
}

int tr_eigenvectors(struct tr_tensor *q, const struct tr_tensor *a)
{
    struct on_host o;
    TR_TRY(host_begin(&o, TENSORS(q, a)));
    return host_end(&o, 1, eigenvectors(&o.h[0], &o.h[1]));
}

int tr_orthonormal(struct tr_tensor *q)
{
    struct on_host o;
    TR_TRY(host_begin(&o, TENSORS(q)));
    return host_end(&o, 1, orthonormal_matrix(&o.h[0]));
}

int tr_power_step(struct tr_tensor *q, struct tr_tensor *order, const struct tr_tensor *a)
{
    struct on_host o;
    TR_TRY(host_begin(&o, TENSORS(q, order, a)));
    return host_end(&o, 2, power_step(&o.h[0], &o.h[1], &o.h[2]));
}

int tr_damped_column(struct tr_tensor *x, const struct tr_tensor *a, double by, double damping, int64_t k)
{
    struct on_host o;
    TR_TRY(host_begin(&o, TENSORS(x, a)));
    return host_end(&o, 1, damped_column(&o.h[0], &o.h[1], by, damping, k));
}

int tr_add_diagonal(struct tr_tensor *a, float x)
{
    struct on_host o;
    TR_TRY(host_begin(&o, TENSORS(a)));
    struct tr_tensor *h = &o.h[0];
    for (int64_t i = 0; i < tr_rows(h) && i < tr_cols(h) && !tr_mem_is_dry(); i++) ((float *)h->data)[i * h->ld + i] += x;
    return host_end(&o, 1, TR_OK);
}
