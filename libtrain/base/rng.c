#include "libtrain/base/rng.h"
#include "libtrain/base/normal.h"
#include <math.h>

static uint64_t mix64(uint64_t x) /* the finaliser of splitmix64: every input bit reaches every output bit */
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

struct tr_key tr_key(uint64_t seed, enum tr_purpose purpose, uint64_t subject, uint64_t step)
{
    uint64_t h = mix64(seed + 0x9e3779b97f4a7c15u);
    h = mix64(h ^ (uint64_t)purpose * 0xd6e8feb86659fd93u);
    h = mix64(h ^ mix64(subject + 0x632be59bd9b4e019u));
    h = mix64(h ^ mix64(step + 0x2545f4914f6cdd1du));
    return (struct tr_key){ { (uint32_t)h, (uint32_t)(h >> 32) } };
}

void tr_philox(uint32_t out[4], struct tr_key key, uint64_t counter) { tr_philox_inline(out, key, counter); }

double tr_uniform(struct tr_key key, uint64_t index)
{
    uint32_t w[4];
    tr_philox(w, key, index / 4);
    return w[index % 4] * 0x1p-32;
}

double tr_normal(struct tr_key key, uint64_t index)
{
    double even, odd;
    tr_normal_pair(key, index / 2, &even, &odd);
    return index % 2 ? odd : even;
}

void tr_normals(float *out, struct tr_key key, uint64_t first, int64_t n, double std) { tr_normals_into(out, key, first, n, std); }

uint64_t tr_below(struct tr_key key, uint64_t index, uint64_t n)
{
    uint32_t w[4];
    tr_philox(w, key, index);
    uint64_t x = ((uint64_t)w[0] << 32) | w[1];
    return (uint64_t)(((unsigned __int128)x * n) >> 64);
}

uint64_t tr_hash(const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return mix64(h);
}

void tr_permutation(int64_t *order, int64_t n, struct tr_key key)
{
    for (int64_t i = 0; i < n; i++) order[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)tr_below(key, (uint64_t)i, (uint64_t)i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
}
