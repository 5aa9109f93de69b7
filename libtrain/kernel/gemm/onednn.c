/* Products by oneDNN: f32 everywhere, bf16 where the CPU computes it natively. The first choice where there is no AVX2.
 * Primitives are kept by shape, with memory
 * objects that get their pointers before each call; work memory comes from the step arena, so that a dry run counts it. */
#include "libtrain/base/mem.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/gemm/impl.h"
#include "train_config.h"
#if HAVE_ONEDNN
#include <dnnl.h>
#include <omp.h>

/* Everything a primitive is made for; compared bytewise, so built from a zeroed struct. */
struct key { int64_t m, n, k, lda, ldb, ldc; int32_t a, b, c, ta, tb, sum, threads, unused; };

struct entry {
    struct key key;
    uint64_t used;              /* for the least recently used to leave */
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[4];    /* a, b, c, scratch */
    size_t scratch;             /* bytes */
};

/* A model needs about 40; token counts that vary from step to step (packing, ignored targets) push old ones out. */
enum { ENTRIES = 192 };
static struct entry entries[ENTRIES];
static uint64_t clock_;
static dnnl_engine_t engine;
static dnnl_stream_t stream;

static int check(dnnl_status_t s, const char *what, const struct key *k)
{
    if (s == dnnl_success) return TR_OK;
    return tr_fail(TR_EFAIL, "oneDNN (%s): status %d for a product of %lld x %lld x %lld; set DNNL_VERBOSE=1 to see why",
                   what, (int)s, (long long)k->m, (long long)k->n, (long long)k->k);
}

static dnnl_data_type_t type(int32_t t) { return t == TR_F32 ? dnnl_f32 : dnnl_bf16; }

static int describe(dnnl_memory_desc_t *d, const struct key *k, int64_t rows, int64_t cols, int32_t dtype, int64_t ld,
                    bool transposed)
{
    const dnnl_dims_t dims = { rows, cols };
    const dnnl_dims_t strides = { transposed ? 1 : ld, transposed ? ld : 1 };
    return check(dnnl_memory_desc_init_by_strides(d, 2, dims, type(dtype), strides), "memory", k);
}

static void drop(struct entry *e)
{
    if (e->primitive) dnnl_primitive_destroy(e->primitive);
    for (int i = 0; i < 4; i++) if (e->memory[i]) dnnl_memory_destroy(e->memory[i]);
    *e = (struct entry){ 0 };
}

static int create(struct entry *e, const struct key *k)
{
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t desc;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_desc_t pd = NULL;
    int rc;
    e->key = *k;
    TR_GO(describe(&a, k, k->m, k->k, k->a, k->lda, k->ta));
    TR_GO(describe(&b, k, k->k, k->n, k->b, k->ldb, k->tb));
    TR_GO(describe(&c, k, k->m, k->n, k->c, k->ldc, false));
    TR_GO(check(dnnl_primitive_attr_create(&attr), "attributes", k));
    TR_GO(check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "attributes", k));
    if (k->sum) {
        TR_GO(check(dnnl_post_ops_create(&ops), "post-ops", k));
        TR_GO(check(dnnl_post_ops_append_sum(ops, 1.0f), "post-ops", k));
        TR_GO(check(dnnl_primitive_attr_set_post_ops(attr, ops), "post-ops", k));
    }
    TR_GO(check(dnnl_matmul_desc_init(&desc, &a, &b, NULL, &c), "descriptor", k));
    TR_GO(check(dnnl_primitive_desc_create(&pd, &desc, attr, engine, NULL), "descriptor", k));
    TR_GO(check(dnnl_primitive_create(&e->primitive, pd), "primitive", k));
    const dnnl_memory_desc_t *s = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    const dnnl_memory_desc_t *all[4] = { &a, &b, &c, s };
    e->scratch = dnnl_memory_desc_get_size(s);
    for (int i = 0; i < 4; i++) TR_GO(check(dnnl_memory_create(&e->memory[i], all[i], engine, DNNL_MEMORY_NONE), "memory", k));
done:
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (rc != TR_OK) drop(e);
    return rc;
}

static int find(struct entry **out, const struct key *k)
{
    struct entry *oldest = entries;
    for (struct entry *e = entries; e < entries + ENTRIES; e++) {
        if (e->primitive && !memcmp(&e->key, k, sizeof *k)) {
            e->used = ++clock_;
            *out = e;
            return TR_OK;
        }
        if (e->used < oldest->used) oldest = e;
    }
    if (!engine) {
        dnnl_set_primitive_cache_capacity(0);    /* this list is the cache */
        TR_TRY(check(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine", k));
        TR_TRY(check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream", k));
    }
    drop(oldest);
    TR_TRY(create(oldest, k));
    oldest->used = ++clock_;
    *out = oldest;
    return TR_OK;
}

static bool takes(const struct tr_product *p)
{
    bool f32 = p->a.dtype == TR_F32 && p->b.dtype == TR_F32 && p->c_dtype == TR_F32;
    bool bf16 = p->a.dtype == TR_BF16 && p->b.dtype == TR_BF16 && tr_gemm_has_bf16();
    return (f32 || bf16) && p->alpha == 1 && (p->beta == 0 || p->beta == 1);
}

static int run(const struct tr_product *p, bool dry)
{
    struct key k;
    memset(&k, 0, sizeof k);
    k.m = p->m, k.n = p->n, k.k = p->k, k.lda = p->a.ld, k.ldb = p->b.ld, k.ldc = p->c_ld;
    k.a = (int32_t)p->a.dtype, k.b = (int32_t)p->b.dtype, k.c = (int32_t)p->c_dtype;
    k.ta = p->a.transposed, k.tb = p->b.transposed, k.sum = p->beta != 0, k.threads = omp_get_max_threads();
    struct entry *e;
    TR_TRY(find(&e, &k));
    void *scratch = NULL;
    if (e->scratch) TR_TRY(tr_arena_alloc(&scratch, e->scratch, TR_WORKSPACE));
    int rc = TR_OK;
    if (!dry) {
        void *data[4] = { (void *)(uintptr_t)p->a.data, (void *)(uintptr_t)p->b.data, p->c, scratch };
        static const int args[4] = { DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD };
        dnnl_exec_arg_t exec[4];
        for (int i = 0; i < 4 && rc == TR_OK; i++) {
            rc = check(dnnl_memory_set_data_handle(e->memory[i], data[i]), "pointer", &k);
            exec[i] = (dnnl_exec_arg_t){ args[i], e->memory[i] };
        }
        if (rc == TR_OK) rc = check(dnnl_primitive_execute(e->primitive, stream, scratch ? 4 : 3, exec), "execute", &k);
        if (rc == TR_OK) rc = check(dnnl_stream_wait(stream), "wait", &k);
    }
    tr_arena_free(scratch, TR_WORKSPACE);
    return rc;
}

/* gemm:jit, taken for row strides, packs into the heap in each call: measured 1.5-3 MB per thread. */
static size_t held(void) { return (size_t)omp_get_max_threads() * (3 << 20); }

const struct tr_gemm_impl tr_gemm_onednn = { .name = "onednn", .takes = takes, .run = run, .held = held };
#endif
