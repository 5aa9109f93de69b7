#include "libtrain/base/thread.h"
#include "libtrain/base/status.h"
#include <signal.h>
#include <string.h>

int tr_thread_start(pthread_t *out, void *(*work)(void *self), void *self, const char *key)
{
    sigset_t all, before;
    pthread_attr_t a;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 256 << 10);
    int error = pthread_create(out, &a, work, self);
    pthread_attr_destroy(&a);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error ? tr_fail(TR_EFAIL, "cannot start a thread for %s: %s", key, strerror(error)) : TR_OK;
}
