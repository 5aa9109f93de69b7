/* Links between devices by NCCL, opened on demand: a machine without the library starts, too. TR_NCCL names another file than
 * libnccl.so.2. Communicators never block: every call may still be under way when it returns, and `state` asks. */
#include "libtrain/kernel/cuda/table.h"
#include "libtrain/kernel/device.h"
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(ncclUniqueId) == TR_DEVICE_ID, "the size of an id");
enum { OLDEST = 21400 };   /* the first whose communicators need not block */

#define CALLS(X) X(GetVersion) X(GetUniqueId) X(CommInitRankConfig) X(CommGetAsyncError) X(CommFinalize) X(CommDestroy) X(CommAbort) \
    X(GroupStart) X(GroupEnd) X(Send) X(Recv) X(GetErrorString) X(GetLastError)
#define POINTER(f) __typeof__(&nccl##f) f;
static struct { CALLS(POINTER) } nccl;
static char text[400];
static const char *last_call = "";

static const char *load(void)
{
    static bool loaded;
    const char *name = getenv("TR_NCCL");
    int version = 0;
    if (loaded) return NULL;
    void *file = dlopen(name ? name : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!file) return snprintf(text, sizeof text, "NCCL cannot be opened (%.300s)", dlerror()), text;
#define FIND(f) if (!(nccl.f = (__typeof__(nccl.f))dlsym(file, "nccl" #f))) return "this NCCL has no nccl" #f ": version 2.14 is the oldest";
    CALLS(FIND)
    if (nccl.GetVersion(&version) != ncclSuccess || version < OLDEST) return snprintf(text, sizeof text, "NCCL's version is %d: 2.14 is the oldest", version), text;
    loaded = true;
    return NULL;
}

static const char *describe(void)
{
    int v = 0;
    nccl.GetVersion(&v);
    snprintf(text, sizeof text, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
    return text;
}

static const char *failed(const char *call, ncclResult_t e, ncclComm_t c)
{
    const char *more = nccl.GetLastError(c);
    snprintf(text, sizeof text, "%s: %d %s%s%.200s", call, (int)e, nccl.GetErrorString(e), more && *more ? ": " : "", more ? more : "");
    return text;
}

static bool bad(ncclResult_t e) { return e != ncclSuccess && e != ncclInProgress; }

#define CALL(f, c, ...) do { last_call = "nccl" #f; ncclResult_t e_ = nccl.f(__VA_ARGS__); if (bad(e_)) return failed("nccl" #f, e_, c); } while (0)

static const char *new_id(void *id)
{
    CALL(GetUniqueId, NULL, id);
    return NULL;
}

static const char *begin(void **link, const void *id, int rank, int size)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId copy;
    memcpy(&copy, id, sizeof copy);
    config.blocking = 0;
    CALL(CommInitRankConfig, NULL, (ncclComm_t *)link, size, copy, rank, &config);
    return NULL;
}

static const char *exchange(void *link, const struct tr_device_piece *piece, int n)
{
    cudaStream_t stream = tr_cuda_queue();
    CALL(GroupStart, link);
    for (int i = 0; i < n; i++) {
        if (piece[i].out) CALL(Send, link, piece[i].at, piece[i].bytes, ncclInt8, piece[i].peer, link, stream);
        else CALL(Recv, link, piece[i].at, piece[i].bytes, ncclInt8, piece[i].peer, link, stream);
    }
    CALL(GroupEnd, link);
    return NULL;
}

static int state(void *link, const char **why)
{
    ncclResult_t e = ncclSuccess;
    ncclResult_t asked = nccl.CommGetAsyncError(link, &e);
    if (bad(asked)) e = asked;
    if (bad(e)) return *why = failed(last_call, e, link), -1;
    if (e == ncclInProgress) return 0;
    cudaError_t c = cudaStreamQuery(tr_cuda_queue());
    if (c == cudaSuccess) return 1;
    if (c == cudaErrorNotReady) return 0;
    snprintf(text, sizeof text, "%s: %d %s", last_call, (int)c, cudaGetErrorString(c));
    return *why = text, -1;
}

static const char *finish(void *link)
{
    CALL(CommFinalize, link, link);
    return NULL;
}

static void release(void *link, bool whole)
{
    if (whole) nccl.CommDestroy(link);
    else nccl.CommAbort(link);
}

const struct tr_device_links tr_cuda_links = { load, describe, new_id, begin, exchange, state, finish, release };
