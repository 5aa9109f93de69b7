#include <stdint.h>
const char *test_folder(void);
void test_normal(float *x, int64_t n, uint64_t seed, float std);
#include "libtrain/base/rng.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[256];

static void remove_folder(void)
{
    char cmd[300];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", folder);
    if (system(cmd)) perror(folder);
}

const char *test_folder(void)
{
    if (!folder[0]) {
        const char *tmp = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%s/train-test-XXXXXX", tmp ? tmp : "/tmp");
        if (!mkdtemp(folder)) abort();
        atexit(remove_folder);
    }
    return folder;
}

void test_normal(float *x, int64_t n, uint64_t seed, float std)
{
    struct tr_key key = tr_key(seed, TR_RNG_INIT, 0, 0);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(std * tr_normal(key, (uint64_t)i));
}
