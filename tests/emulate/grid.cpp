/* Runs grids on the CPU. Each thread of a block is a fiber; a barrier or a warp operation gives the turn to the next one.
 * Orders change from launch to launch (backward, shuffled, whole warps far ahead), so that code which relies on one goes
 * wrong. Shared memory is as large as asked and starts as 0xff: NaN in every float. A block in which no thread can go on
 * ends the test with the list of what each waits for. One OS thread. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define START_SWITCH(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define FINISH_SWITCH(save, bottom, size) __sanitizer_finish_switch_fiber(save, bottom, size)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define START_SWITCH(save, bottom, size) ((void)(save), (void)(bottom), (void)(size))
#define FINISH_SWITCH(save, bottom, size) ((void)(save), (void)(bottom), (void)(size))
#define UNPOISON(p, n) ((void)0)
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum { MOST = 1024, STACK = 256 << 10, PAGE = 4096 };
enum state { READY, AT_BARRIER, IN_WARP, DONE };

#ifdef __x86_64__
extern "C" void tr_emulate_switch(void **save, void *to);
asm(".text\n.globl tr_emulate_switch\n.type tr_emulate_switch, @function\ntr_emulate_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n.size tr_emulate_switch, .-tr_emulate_switch\n");
typedef void *context;
#else
typedef ucontext_t context;
#endif

struct fiber { char *stack; context at; state is; void *fake; unsigned turn; } fibers[MOST];
struct warp { unsigned live, waiting; char word[2][32][24]; } warps[MOST / 32];

context scheduler;
void *scheduler_fake;
const void *scheduler_stack;
size_t scheduler_size;
unsigned running, live, at_barrier;
const std::function<void()> *body;
void *shared;
size_t most_shared = 48 << 10;   /* of the next launch: more must be asked for */
uint64_t seed = 0x9e3779b97f4a7c15u;

unsigned random_below(unsigned n)   /* xorshift: one sequence for the whole program */
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (unsigned)(seed >> 33) % n;
}

void swap(context *from, context *to)
{
#ifdef __x86_64__
    tr_emulate_switch(from, *to);
#else
    swapcontext(from, to);
#endif
}

void to_scheduler(bool ends)
{
    fiber &f = fibers[running];
    START_SWITCH(ends ? nullptr : &f.fake, scheduler_stack, scheduler_size);
    swap(&f.at, &scheduler);
    FINISH_SWITCH(f.fake, &scheduler_stack, &scheduler_size);
}

void entry()
{
    FINISH_SWITCH(nullptr, &scheduler_stack, &scheduler_size);
    (*body)();
    fibers[running].is = DONE;
    to_scheduler(true);
    abort();
}

void start(unsigned t)
{
    fiber &f = fibers[t];
    if (!f.stack) {
        f.stack = static_cast<char *>(mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (f.stack == MAP_FAILED || mprotect(f.stack, PAGE, PROT_NONE)) abort();
        f.stack += PAGE;
    }
    UNPOISON(f.stack, STACK);
    f.is = READY, f.turn = 0;
    size_t room = STACK - t * 576 % (STACK / 4);   /* tops of stacks in different cache lines: all alike would share a few */
#ifdef __x86_64__
    void **top = reinterpret_cast<void **>(f.stack + room) - 2;   /* after `ret` the stack is as after a call */
    top[0] = reinterpret_cast<void *>(entry), top[1] = nullptr;
    for (int k = 1; k <= 6; k++) top[-k] = nullptr;
    f.at = top - 6;
#else
    getcontext(&f.at);
    f.at.uc_stack.ss_sp = f.stack, f.at.uc_stack.ss_size = room, f.at.uc_link = nullptr;
    makecontext(&f.at, entry, 0);
#endif
}

void release(unsigned first, unsigned n, state from)
{
    for (unsigned t = first; t < first + n; t++)
        if (fibers[t].is == from) fibers[t].is = READY;
}

void run(unsigned t)
{
    fiber &f = fibers[t];
    warp &w = warps[t / 32];
    running = t, threadIdx = dim3(t);
    START_SWITCH(&scheduler_fake, f.stack, STACK);
    swap(&scheduler, &f.at);
    FINISH_SWITCH(scheduler_fake, nullptr, nullptr);
    if (f.is == AT_BARRIER) at_barrier++;
    if (f.is == IN_WARP) w.waiting++;
    if (f.is == DONE) live--, w.live--;
    if (live && at_barrier == live) at_barrier = 0, release(0, blockDim.x, AT_BARRIER);
    if (w.live && w.waiting == w.live) w.waiting = 0, release(t / 32 * 32, 32, IN_WARP);
}

/* 0 backward, 1 shuffled, 2 warps in random order, each as far as it can go. */
void choose_order(unsigned *order, unsigned n, unsigned how)
{
    for (unsigned t = 0; t < n; t++) order[t] = how == 2 ? t : n - 1 - t;
    if (how == 1)
        for (unsigned t = n; t > 1; t--) {
            unsigned k = random_below(t), keep = order[k];
            order[k] = order[t - 1], order[t - 1] = keep;
        }
    if (how == 2)
        for (unsigned w = n / 32; w > 1; w--) {
            unsigned k = random_below(w);
            for (unsigned l = 0; l < 32; l++) {
                unsigned keep = order[k * 32 + l];
                order[k * 32 + l] = order[(w - 1) * 32 + l], order[(w - 1) * 32 + l] = keep;
            }
        }
}

void stuck()
{
    static const char *const text[] = { "can run", "waits at a barrier", "waits in a warp operation", "has ended" };
    fprintf(stderr, "emulation: block %u, %u: no thread can go on\n", blockIdx.x, blockIdx.y);
    for (unsigned t = 0; t < blockDim.x; t++)
        if (!t || fibers[t].is != fibers[t - 1].is) fprintf(stderr, "  from thread %u: %s\n", t, text[fibers[t].is]);
    abort();
}

void run_block(unsigned how)
{
    unsigned order[MOST], n = blockDim.x;
    live = n, at_barrier = 0;
    for (unsigned w = 0; w < n / 32; w++) warps[w].live = 32, warps[w].waiting = 0;
    for (unsigned t = 0; t < n; t++) start(t);
    choose_order(order, n, how);
    while (live) {
        bool any = false;
        for (unsigned k = 0; k < n; k += how == 2 ? 32 : 1) {
            bool again;
            do {   /* how == 2: the warp goes on until all its threads wait for others */
                again = false;
                for (unsigned l = k; l < k + (how == 2 ? 32 : 1); l++)
                    if (fibers[order[l]].is == READY) run(order[l]), any = again = true;
            } while (again && how == 2);
        }
        if (live && !any) stuck();
    }
}

}

void *tr_emulate_shared() { return shared; }

void __syncthreads()
{
    fibers[running].is = AT_BARRIER;
    to_scheduler(false);
}

/* Two sets of words in turn: a lane that is ahead by one operation does not overwrite what others still read. */
static char (*put_word(unsigned mask, const void *in, size_t bytes))[24]
{
    fiber &f = fibers[running];
    warp &w = warps[running / 32];
    if (mask != 0xffffffffu || w.live != 32) {
        fprintf(stderr, "emulation: a warp operation without all 32 lanes (mask %08x, %u live)\n", mask, w.live);
        abort();
    }
    unsigned set = f.turn++ % 2;
    memcpy(w.word[set][running % 32], in, bytes);
    f.is = IN_WARP;
    to_scheduler(false);
    return w.word[set];
}

void tr_emulate_exchange(unsigned mask, const void *in, void *out, size_t bytes, unsigned from) { memcpy(out, put_word(mask, in, bytes)[from % 32], bytes); }

void tr_emulate_gather(const void *in, void *out, size_t bytes)
{
    char (*word)[24] = put_word(0xffffffffu, in, bytes);
    for (size_t l = 0; l < 32; l++) memcpy(static_cast<char *>(out) + l * bytes, word[l], bytes);
}

cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int bytes)
{
    if (bytes < 0 || bytes > 227 << 10) return cudaErrorInvalidValue;
    most_shared = (size_t)bytes;
    return cudaSuccess;
}

cudaError_t tr_emulate_grid(const cudaLaunchConfig_t *c, const std::function<void()> &thread)
{
    static unsigned launches;
    const char *failing = getenv("EMULATE_FAIL");   /* this launch and what follows fail */
    if (failing && (unsigned)atoi(failing) == launches) return cudaErrorInvalidConfiguration;
    unsigned how = launches++ % 3, n = c->blockDim.x;
    if (!n || n > MOST || n % 32 || c->blockDim.y != 1 || c->blockDim.z != 1 || c->gridDim.z != 1 || !c->gridDim.x ||
        c->gridDim.x > 0x7fffffffu || !c->gridDim.y || c->gridDim.y > 65535 || c->dynamicSmemBytes > most_shared || cudaStreamSynchronize(c->stream) != cudaSuccess)
        return cudaErrorInvalidConfiguration;
    most_shared = 48 << 10;
    body = &thread, gridDim = c->gridDim, blockDim = c->blockDim;
    tr_emulate_enter();
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
            shared = malloc(c->dynamicSmemBytes);   /* the sanitizer guards its ends */
            if (!shared && c->dynamicSmemBytes) abort();
            if (shared) memset(shared, 0xff, c->dynamicSmemBytes);
            run_block(how);
            free(shared);
        }
    tr_emulate_leave();
    return cudaSuccess;
}
