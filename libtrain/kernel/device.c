#include "libtrain/kernel/device.h"
#include "libtrain/base/status.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct tr_device_module *module;
static const char *given_path;

const struct tr_device_module *tr_device(void) { return module; }
void tr_device_use_module(const char *path) { given_path = path; }

/* train-cuda.so in the folder of the program. */
static void default_path(char *path, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", path, size - 1);
    path[n < 0 ? 0 : n] = 0;
    char *slash = strrchr(path, '/');
    size_t at = slash ? (size_t)(slash + 1 - path) : 0;
    snprintf(path + at, size - at, "train-cuda.so");
}

const struct tr_device_module *tr_device_load(int place, const char **why)
{
    static char text[600];
    char path[500];
    *why = text;
    if (given_path) snprintf(path, sizeof path, "%s", given_path);
    else {
        if (!dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) return snprintf(text, sizeof text, "no NVIDIA driver (libcuda.so.1) is on this machine"), NULL;
        default_path(path, sizeof path);
        if (access(path, R_OK)) return snprintf(text, sizeof text, "'%s' is not there: build with -Dcuda=enabled where nvcc is", path), NULL;
    }
    void *file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!file) return snprintf(text, sizeof text, "its module cannot be opened (%s)", dlerror()), NULL;
    const struct tr_device_module *m = dlsym(file, "tr_device_module");
    if (!m || m->version != TR_DEVICE_VERSION) return snprintf(text, sizeof text, "'%s' is of another build of train", path), NULL;
    *why = m->open(place);
    return *why ? NULL : m;
}

const char *tr_device_open(int place)
{
    const char *why;
    if (module) return NULL;
    if (!(module = tr_device_load(place, &why))) return why;
    tr_mem_device(module->memory);
    return NULL;
}

int tr_device_check(void)
{
    const char *error = module && !tr_mem_is_dry() ? module->error() : NULL;
    return error ? tr_fail(TR_EFAIL, "the %s device failed: %s; no snapshot was overwritten, resume from the newest (TR_CUDA_SYNC=1 names the kernel)", module->name, error) : TR_OK;
}
