/* A Reed-Solomon code over GF(2^8) by ISA-L: k pieces of data and m of parity, of which any k give back the others.
 *
 * The generator is a Cauchy matrix below the identity: each of its square parts has an inverse for every k + m <= 255, which
 * does not hold of the Vandermonde matrices that are often used. Positions 0 .. k - 1 are data, k .. k + m - 1 parity.
 * Source: J. Bloemer et al., "An XOR-based erasure-resilient coding scheme", 1995. */
#ifndef CKPT_CODE_H
#define CKPT_CODE_H
#include <stddef.h>

enum { CKPT_CODE_MOST = 32 /* k + m */ };

struct ckpt_code {
    int k, m;
    unsigned char matrix[CKPT_CODE_MOST * CKPT_CODE_MOST];          /* k + m rows of k */
    unsigned char table[CKPT_CODE_MOST][32 * CKPT_CODE_MOST];       /* ISA-L's, of each row of parity */
};

/* "k+m", both at least 1 and at most CKPT_CODE_MOST together. Errors: TR_EINPUT with what is wrong, as the rest of a line. */
int ckpt_code_parse(const char *text, int *k, int *m);
/* Errors: TR_EFAIL in a build without ISA-L. */
int ckpt_code_init(struct ckpt_code *c, int k, int m);
/* Row j of parity of n bytes of each of the k pieces of data. */
void ckpt_code_parity(const struct ckpt_code *c, int j, size_t n, unsigned char *const *data, unsigned char *out);
/* The piece of data at position `want` from k pieces, piece[i] at position have[i]; these differ. */
int ckpt_code_rebuild(const struct ckpt_code *c, const int *have, int want, size_t n, unsigned char *const *piece, unsigned char *out);

#endif
