#include "tests/support/support.h"
#include "libtrain/base/rng.h"
#include "libtrain/kernel/device.h"
#include <errno.h>
#include <malloc.h>
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

static const char *device_name(void)
{
    const char *asked = getenv("TR_TEST_DEVICE"), *given = getenv("TR_TEST_DEFAULT_DEVICE");
    return asked ? asked : given ? given : "cpu";
}

/* 77: skipped, for meson. */
static void no_device(const char *why)
{
    const char *required = getenv("TR_REQUIRE_DEVICE");
    bool must = required && strcmp(required, "0");
    printf("%s: no %s device (%s)\n", must ? "failed" : "skipped", device_name(), why);
    exit(must ? 1 : 77);
}

static void choose_module(void)
{
    const char *variable = !strcmp(device_name(), "cuda") ? "TR_TEST_CUDA" : !strcmp(device_name(), "emulated") ? "TR_TEST_EMULATED" : NULL;
    if (!variable) no_device("TR_TEST_DEVICE must be cpu, emulated or cuda");
    if (!getenv(variable)) no_device("this build has no module for it");
    tr_device_use_module(getenv(variable));
}

/* What went wrong there and was not asked for. */
static void last_check(void)
{
    if (tr_device_check() == TR_OK) return;
    printf("failed: %s\n", tr_message());
    fflush(stdout);
    _exit(1);
}

void test_device(int place)
{
    if (!strcmp(device_name(), "cpu")) return;
    choose_module();
    const char *why = tr_device_open(place);
    if (why) no_device(why);
    atexit(last_check);
}

/* This program's own memory: what the map of addresses calls by its file (data), heap and stack. */
static const char *share_memory(const struct tr_device_module *m)
{
    static char line[600];   /* not on the stack, nor from the heap */
    enum { HEAP = 256 << 20, STACK = 4 << 20 };
    mallopt(M_MMAP_MAX, 0);   /* all of the heap in one range, which is never given back */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    void *heap = malloc(HEAP);
    if (!heap) return "no memory";
    free(memset(heap, 0, HEAP));
    volatile char stack[STACK];
    for (int i = 0; i < STACK; i += 4096) stack[i] = stack[0];
    FILE *f = fopen("/proc/self/maps", "r");
    const char *why = f ? NULL : "/proc/self/maps cannot be read", *program = program_invocation_short_name;
    uintptr_t from, to, data_end = 0;   /* behind the program's data lies what is zero at first, without a name */
    char access[8];
    while (!why && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx %7s", &from, &to, access) != 3 || access[1] != 'w') continue;
        if (strstr(line, program)) data_end = to;
        if (strstr(line, "[heap]") || strstr(line, "[stack]") || strstr(line, program) || from == data_end) why = m->share((void *)from, to - from);
    }
    if (f) fclose(f);
    return why;
}

const struct tr_device_module *test_module(void)
{
    const char *why;
    choose_module();
    const struct tr_device_module *m = tr_device_load(0, &why);
    if (!m || (why = share_memory(m))) no_device(why);
    return m;
}

bool test_sanitized(void) { return getenv("TEST_SANITIZED") != NULL; }
