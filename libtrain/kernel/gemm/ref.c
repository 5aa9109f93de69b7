/* The product in plain C: the specification, and the last of the list. Each element is one sum over k in order, in
 * double. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/impl.h"

static inline float get(const struct tr_operand *o, int64_t row, int64_t col)
{
    int64_t r = o->transposed ? col : row, c = o->transposed ? row : col, i = r * o->ld + c;
    if (o->dtype == TR_INT8) return o->scale[r * o->groups + c / o->group] * (float)(((const int8_t *)o->data)[i] - o->zero[r * o->groups + c / o->group]);
    return o->dtype == TR_F32 ? ((const float *)o->data)[i] : tr_bf16_to_f32(((const uint16_t *)o->data)[i]);
}

static bool takes(const struct tr_product *p) { return true; }

static int run(const struct tr_product *p, bool dry)
{
    if (dry) return TR_OK;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            double exact = 0;
            for (int64_t k = 0; k < p->k; k++) exact += (double)get(&p->a, i, k) * (double)get(&p->b, k, j);
            float sum = (float)(exact * p->alpha);
            int64_t at = i * p->c_ld + j;
            if (p->c_dtype == TR_F32) {
                float *c = (float *)p->c + at;
                *c = p->beta != 0 ? sum + p->beta * *c : sum;
            } else {
                uint16_t *c = (uint16_t *)p->c + at;
                *c = tr_f32_to_bf16(p->beta != 0 ? sum + p->beta * tr_bf16_to_f32(*c) : sum);
            }
        }
    }
    return TR_OK;
}

const struct tr_gemm_impl tr_gemm_ref = { .name = "ref", .takes = takes, .run = run };
