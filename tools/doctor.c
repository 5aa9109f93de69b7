/* `train doctor`: what this machine offers. */
#include "libtrain/base/mem.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "tools/command.h"
#include "train_config.h"
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

static double meminfo(const char *key) /* bytes */
{
    FILE *f = fopen("/proc/meminfo", "r");
    char line[256];
    double kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, key, strlen(key))) sscanf(line + strlen(key), " %lf", &kb);
    if (f) fclose(f);
    return kb * 1024;
}

static void say_device(void)
{
    const char *why;
    const struct tr_device_module *m = tr_device_load(0, &why);
    printf("CUDA         %s\nNCCL         ", m ? m->describe() : why);
    if (!HAVE_NCCL && !(m && m->links)) printf("no: what ranks on devices exchange passes through MPI\n");
    else if (!m) printf("built in, opened where there is a device\n");
    else if ((why = m->links->load())) printf("built in; %s\n", why);
    else printf("%s\n", m->links->describe());
}

int cmd_doctor(const struct arguments *a)
{
    struct tr_cpu cpu = tr_cpu();
    struct statvfs fs;
    (void)a;
    printf("train        " TR_VERSION "\ncores        %d\nSIMD         %s%s%s%s\nkernels      %s\n", tr_threads(), cpu.avx2 ? "AVX2 " : "", cpu.avx512 ? "AVX-512 " : "",
           cpu.avx512_bf16 ? "AVX-512-bf16 " : "", cpu.amx_bf16 ? "AMX" : "", tr_kernels()->name);
    printf("matmul f32   %.0f GFLOP/s\n", tr_gemm_rate(TR_F32, 1024, 1536, 576));
    if (tr_gemm_has_bf16()) printf("matmul bf16  %.0f GFLOP/s\n", tr_gemm_rate(TR_BF16, 1024, 1536, 576));
    else printf("matmul bf16  not native: compute = auto means f32\n");
    printf("oneDNN       %s\nOpenBLAS     %s\nLAPACKE      %s\nHDF5         %s\nOpen MPI     %s\nISA-L        %s\n", HAVE_ONEDNN ? "built in" : "no", HAVE_BLAS ? "built in" : "no",
           HAVE_LAPACKE ? "built in" : "no", HAVE_HDF5 ? "built in" : "no", HAVE_MPI ? "found" : "no", HAVE_ISAL ? "built in" : "no");
    printf("CUDA module  %s\n", HAVE_CUDA ? "built" : "no");
    say_device();
    printf("memory       %.1f GB free of %.1f GB\n", meminfo("MemAvailable:") / 1e9, meminfo("MemTotal:") / 1e9);
    if (!statvfs("/dev/shm", &fs)) printf("/dev/shm     %.1f GB free of %.1f GB\n", (double)fs.f_bavail * (double)fs.f_frsize / 1e9, (double)fs.f_blocks * (double)fs.f_frsize / 1e9);
    return TR_OK;
}
