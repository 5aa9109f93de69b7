#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int full(size_t bytes) { return tr_fail(TR_EFAIL, "no memory: %zu bytes were refused", bytes); }

int tr_buf_reserve(struct tr_buf *b, size_t more)
{
    if (more > SIZE_MAX / 4 - b->size) return full(more);
    size_t need = b->size + more + 1;
    if (need <= b->cap) return TR_OK;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < need) cap *= 2;
    char *data = realloc(b->data, cap);
    if (!data) return full(cap);
    b->data = data;
    b->cap = cap;
    b->data[b->size] = 0;
    return TR_OK;
}

int tr_buf_add(struct tr_buf *b, const void *bytes, size_t n)
{
    TR_TRY(tr_buf_reserve(b, n));
    if (n) memcpy(b->data + b->size, bytes, n);
    b->size += n;
    b->data[b->size] = 0;
    return TR_OK;
}

int tr_buf_puts(struct tr_buf *b, const char *text) { return tr_buf_add(b, text, strlen(text)); }

int tr_buf_printf(struct tr_buf *b, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args), rc = n < 0 ? tr_fail(TR_EFAIL, "text could not be formatted") : tr_buf_reserve(b, (size_t)n);
    if (rc == TR_OK) {
        vsnprintf(b->data + b->size, (size_t)n + 1, format, again);
        b->size += (size_t)n;
    }
    va_end(again);
    va_end(args);
    return rc;
}

void tr_buf_release(struct tr_buf *b)
{
    free(b->data);
    *b = (struct tr_buf){ 0 };
}

int tr_strndup(char **out, const char *text, size_t n)
{
    *out = malloc(n + 1);
    if (!*out) return full(n);
    memcpy(*out, text, n);
    (*out)[n] = 0;
    return TR_OK;
}

int tr_strdup(char **out, const char *text) { return tr_strndup(out, text, strlen(text)); }

int tr_calloc(void *out, size_t count, size_t size)
{
    size_t bytes;
    void *p = __builtin_mul_overflow(count, size, &bytes) ? NULL : calloc(count ? count : 1, size);
    memcpy(out, &p, sizeof p);
    return p ? TR_OK : full(bytes);
}

int tr_grow(void *array, size_t count, size_t *cap, size_t size)
{
    if (count < *cap) return TR_OK;
    size_t more = *cap ? 2 * *cap : 16;
    void *old, *p;
    memcpy(&old, array, sizeof old);
    if (more > SIZE_MAX / size || !(p = realloc(old, more * size))) return full(more);
    memcpy(array, &p, sizeof p);
    *cap = more;
    return TR_OK;
}
