#include "checkpoint/code.h"
#include "libtrain/base/status.h"
#include "train_config.h"
#include <stdlib.h>
#include <string.h>

int ckpt_code_parse(const char *text, int *k, int *m)
{
    char *plus, *end;
    long data = strtol(text, &plus, 10), parity = *plus == '+' ? strtol(plus + 1, &end, 10) : 0;
    size_t digits = strspn(text, "0123456789");
    if (!digits || text[digits] != '+' || !strspn(text + digits + 1, "0123456789") || *end)
        return tr_fail(TR_EINPUT, "it is nodes of data + nodes that may be lost, such as 3+1");
    if (data < 1 || parity < 1 || data > CKPT_CODE_MOST || parity > CKPT_CODE_MOST || data + parity > CKPT_CODE_MOST)
        return tr_fail(TR_EINPUT, "both are at least 1 and together at most %d", CKPT_CODE_MOST);
    *k = (int)data;
    *m = (int)parity;
    return TR_OK;
}

#if HAVE_ISAL
#include <isa-l.h>

int ckpt_code_init(struct ckpt_code *c, int k, int m)
{
    *c = (struct ckpt_code){ .k = k, .m = m };
    gf_gen_cauchy1_matrix(c->matrix, k + m, k);
    for (int j = 0; j < m; j++) ec_init_tables(k, 1, c->matrix + (k + j) * k, c->table[j]);
    return TR_OK;
}

void ckpt_code_parity(const struct ckpt_code *c, int j, size_t n, unsigned char *const *data, unsigned char *out)
{
    ec_encode_data((int)n, c->k, 1, (unsigned char *)(uintptr_t)c->table[j], (unsigned char **)(uintptr_t)data, &out);
}

int ckpt_code_rebuild(const struct ckpt_code *c, const int *have, int want, size_t n, unsigned char *const *piece, unsigned char *out)
{
    unsigned char rows[CKPT_CODE_MOST * CKPT_CODE_MOST], inverse[CKPT_CODE_MOST * CKPT_CODE_MOST], table[32 * CKPT_CODE_MOST];
    for (int i = 0; i < c->k; i++) memcpy(rows + i * c->k, c->matrix + have[i] * c->k, (size_t)c->k);
    if (gf_invert_matrix(rows, inverse, c->k)) return tr_fail(TR_EFAIL, "the erasure code has no inverse; this is a defect of the program");
    ec_init_tables(c->k, 1, inverse + want * c->k, table);
    ec_encode_data((int)n, c->k, 1, table, (unsigned char **)(uintptr_t)piece, &out);
    return TR_OK;
}

#else

int ckpt_code_init(struct ckpt_code *c, int k, int m)
{
    return tr_fail(TR_EFAIL, "checkpoint.redundancy needs ISA-L, which this program was built without: install libisal-dev and build again");
}

void ckpt_code_parity(const struct ckpt_code *c, int j, size_t n, unsigned char *const *data, unsigned char *out) {}
int ckpt_code_rebuild(const struct ckpt_code *c, const int *have, int want, size_t n, unsigned char *const *piece, unsigned char *out) { return TR_EFAIL; }

#endif
