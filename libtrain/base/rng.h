/* Counter-based random numbers (Philox4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
 * A number is a function of what it is for, never of how many were drawn before: the same bits on any rank, with any
 * number of threads, and after a resume. */
#ifndef TR_RNG_H
#define TR_RNG_H
#include <stdint.h>

/* What numbers are for; part of the key. Append only: the order is part of what a snapshot means. */
enum tr_purpose { TR_RNG_INIT = 1, TR_RNG_SHUFFLE, TR_RNG_SAMPLE, TR_RNG_PROJECTION, TR_RNG_ROUNDING, TR_RNG_DIRECTION,
                  TR_RNG_MASK, TR_RNG_LABELS, TR_RNG_SELECTION, TR_RNG_PROBE, TR_RNG_DROPOUT };

struct tr_key { uint32_t k[2]; };

/* The key of a stream: run seed, purpose, what it belongs to (0 or tr_hash of a parameter's name), and when (a step or
 * refresh index). */
struct tr_key tr_key(uint64_t seed, enum tr_purpose purpose, uint64_t subject, uint64_t step);

/* Four random words at `counter` of the stream. */
void tr_philox(uint32_t out[4], struct tr_key key, uint64_t counter);

/* One number at `index` of the stream: uniform in [0,1) with 32 bits; standard normal (Box-Muller in double). */
double tr_uniform(struct tr_key key, uint64_t index);
double tr_normal(struct tr_key key, uint64_t index);
/* out[i] = (float)(std * tr_normal(key, first + i)), i < n; many times faster than one by one. */
void tr_normals(float *out, struct tr_key key, uint64_t first, int64_t n, double std);

/* A number in [0, n), n > 0. */
uint64_t tr_below(struct tr_key key, uint64_t index, uint64_t n);

/* 64-bit hash of a string (FNV-1a with a final mix); names of parameters as subjects. */
uint64_t tr_hash(const char *text);

/* order[0..n) = a permutation of 0..n-1 (Fisher-Yates on the stream). */
void tr_permutation(int64_t *order, int64_t n, struct tr_key key);

#endif
