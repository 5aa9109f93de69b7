/* The module train-cuda.so: device, stream and memory, and the one symbol that the program looks up. All work is on one
 * stream, which does not wait for the default one. */
#include "libtrain/kernel/cuda/matmul.h"
#include "libtrain/kernel/cuda/table.h"
#include "libtrain/kernel/device.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

static cudaStream_t stream;
static int device;
static char text[600];

static const char *failed(const char *call, cudaError_t e)
{
    snprintf(text, sizeof text, "%s: %d %s", call, (int)e, cudaGetErrorString(e));
    return text;
}

#define CALL(f, ...) do { cudaError_t e_ = f(__VA_ARGS__); if (e_ != cudaSuccess) return failed(#f, e_); } while (0)

static int attribute(enum cudaDeviceAttr a)
{
    int x = 0;
    return cudaDeviceGetAttribute(&x, a, device) == cudaSuccess ? x : 0;
}

/* Of those that CUDA_VISIBLE_DEVICES leaves; a launcher that shows each rank its own leaves one. */
static const char *module_open(int place)
{
    int driver = 0, runtime = 0, devices = 0;   /* left as they are when a call fails */
    CALL(cudaDriverGetVersion, &driver);
    CALL(cudaRuntimeGetVersion, &runtime);
    if (!driver) return "no NVIDIA driver is loaded";
    cudaError_t e = cudaGetDeviceCount(&devices);
    if (e != cudaSuccess || !devices) {
        snprintf(text, sizeof text, "no CUDA device (%d %s; the driver is for CUDA %d.%d, this build for %d.%d)", (int)e, cudaGetErrorString(e), driver / 1000, driver % 1000 / 10,
                 runtime / 1000, runtime % 1000 / 10);
        return text;
    }
    device = place % devices;
    CALL(cudaSetDevice, device);
    int major = attribute(cudaDevAttrComputeCapabilityMajor), minor = attribute(cudaDevAttrComputeCapabilityMinor);
    if (major < 8) return snprintf(text, sizeof text, "the device is of sm_%d%d: sm_80 is the oldest", major, minor), text;
    CALL(cudaStreamCreateWithFlags, &stream, cudaStreamNonBlocking);
    int status = tr_cuda_matmul_open(stream);
    if (status) return snprintf(text, sizeof text, "cublasLtCreate: %d", status), text;
    bool careful = getenv("TR_CUDA_SYNC") != NULL;
    tr_cuda_use(stream, careful, careful);
    return NULL;
}

static const char *module_describe(void)
{
    int driver = 0, runtime = 0;
    size_t available = 0, all = 0;
    struct cudaDeviceProp p;
    CALL(cudaDriverGetVersion, &driver);
    CALL(cudaRuntimeGetVersion, &runtime);
    CALL(cudaMemGetInfo, &available, &all);
    CALL(cudaGetDeviceProperties, &p, device);
    snprintf(text, sizeof text, "%.200s, sm_%d%d, %.1f GB free of %.1f GB; driver for CUDA %d.%d, runtime %d.%d", p.name, p.major, p.minor,
             (double)available / 1e9, (double)all / 1e9, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return text;
}

static uint64_t module_identity(void)
{
    struct cudaDeviceProp p;
    uint64_t hash = 14695981039346656037u;   /* FNV-1a */
    if (cudaGetDeviceProperties(&p, device) != cudaSuccess) return 0;
    for (size_t i = 0; i < sizeof p.uuid.bytes; i++) hash = (hash ^ (unsigned char)p.uuid.bytes[i]) * 1099511628211u;
    return hash;
}

/* Kernels that went wrong while they ran show here. */
static const char *module_error(void)
{
    tr_cuda_check((int)cudaStreamSynchronize(stream), "a kernel");
    return tr_cuda_error();
}

static size_t module_available(void)
{
    size_t available = 0, all = 0;
    return cudaMemGetInfo(&available, &all) == cudaSuccess ? available : 0;
}

static const char *module_share(void *p, size_t bytes)
{
    tr_cuda_use(stream, true, false);
    if (!attribute(cudaDevAttrPageableMemoryAccess)) CALL(cudaHostRegister, p, bytes, cudaHostRegisterDefault);
    return NULL;
}

static int memory_alloc(void **out, size_t bytes)
{
    *out = NULL;
    if (cudaMalloc(out, bytes) != cudaSuccess) return (void)cudaGetLastError(), 1;   /* forgotten: the caller says it */
    if (cudaMemsetAsync(*out, 0, bytes, stream) == cudaSuccess) return 0;
    cudaFree(*out);
    *out = NULL;
    return 1;
}

static void memory_free(void *p) { cudaFree(p); }   /* waits for what still uses it */

static const struct tr_device_memory memory = { memory_alloc, memory_free };

__attribute__((visibility("default"))) extern const struct tr_device_module tr_device_module;
const struct tr_device_module tr_device_module = {
    .version = TR_DEVICE_VERSION, .name = "cuda", .open = module_open, .describe = module_describe, .error = module_error,
#if TR_NCCL
    .links = &tr_cuda_links,
#endif
    .identity = module_identity, .available = module_available, .share = module_share, .memory = &memory, .kernels = &tr_cuda_table, .updates = &tr_cuda_updates,
    .product_work = tr_cuda_product_work, .product = tr_cuda_product,
};
