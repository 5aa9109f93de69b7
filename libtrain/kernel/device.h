/* A device that computes in place of the CPU: a module that is opened on demand, so that the program itself needs none of
 * its libraries. While one is in use, tr_kernels(), tr_updates(), the products and the memory of tensors are its own. */
#ifndef TR_DEVICE_H
#define TR_DEVICE_H
#include "libtrain/base/mem.h"

struct tr_product;

/* Bytes of a device's memory to (out) or from a rank; the rank itself, too, if both ends are there. */
struct tr_device_piece { void *at; size_t bytes; int peer; bool out; };

/* What moves the memory of devices between ranks. A link is a group of ranks; whatever was begun on it goes on until `state` says
 * otherwise. Texts are NULL or "CALL: why it failed". */
enum { TR_DEVICE_ID = 128 };
struct tr_device_links {
    const char *(*load)(void);                                                  /* first; NULL, or why there are no links */
    const char *(*describe)(void);                                              /* version */
    const char *(*new_id)(void *id);                                            /* TR_DEVICE_ID bytes that the ranks of one link share */
    const char *(*begin)(void **link, const void *id, int rank, int size);
    const char *(*exchange)(void *link, const struct tr_device_piece *piece, int n);   /* at once; between two ranks in order */
    int (*state)(void *link, const char **why);                                 /* 0: under way; 1: done, with all that was queued before; -1: failed */
    const char *(*finish)(void *link);                                          /* begins the good end */
    void (*release)(void *link, bool whole);                                    /* whole: after finish; else whatever is under way ends */
};

/* What a module exports as `tr_device_module`. Work is queued; error, and what reads, waits for it. */
enum { TR_DEVICE_VERSION = 2 };
struct tr_device_module {
    int version;                          /* TR_DEVICE_VERSION of its build; nothing else is looked at when it is another */
    const char *name;
    const char *(*open)(int place);       /* the place-th device, over and over when there are fewer; NULL, or why there is none to compute on */
    const char *(*describe)(void);        /* device, memory, driver, in a line */
    uint64_t (*identity)(void);           /* of the device, among all machines */
    const struct tr_device_links *links;  /* NULL: this build has none */
    const char *(*error)(void);           /* NULL while all went well, else "ENTRY: WHY" of the first that failed */
    size_t (*available)(void);            /* bytes that are free on the device */
    const char *(*share)(void *p, size_t bytes);   /* tests: host memory that kernels may use from now on, launches are awaited; NULL, or why not */
    const struct tr_device_memory *memory;
    const struct tr_kernels *kernels;
    const struct tr_updates *updates;
    size_t (*product_work)(const struct tr_product *p);                       /* bytes of work memory */
    void (*product)(const struct tr_product *p, void *work, size_t bytes);    /* kernel/gemm/impl.h */
};

/* The module in use, or NULL. */
const struct tr_device_module *tr_device(void);

/* Opens the module and changes nothing else. place: of this rank among those of its machine. NULL and why: what is missing (driver, module,
 * a library of it, device). */
const struct tr_device_module *tr_device_load(int place, const char **why);

/* From now on the device computes; only while no tensor exists. NULL, or why not. Further calls do nothing. */
const char *tr_device_open(int place);

/* TR_EFAIL with the name of the first kernel or call of the device that failed. Waits for what was given to it. */
int tr_device_check(void);

/* For tests: the module at this path instead of train-cuda.so beside the program, without a look for a driver. */
void tr_device_use_module(const char *path);

#endif
