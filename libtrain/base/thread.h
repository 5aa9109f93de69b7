/* Helper threads: those that copy and write while the main thread computes. */
#ifndef TR_THREAD_H
#define TR_THREAD_H
#include <pthread.h>

/* A thread with a small stack that no signal reaches: signals are the main thread's. Errors: TR_EFAIL, naming the key that asked
 * for it. */
int tr_thread_start(pthread_t *out, void *(*work)(void *self), void *self, const char *key);

#endif
