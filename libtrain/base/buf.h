/* Growable bytes; small host memory that is no part of the ledger (texts, token lists, paths). */
#ifndef TR_BUF_H
#define TR_BUF_H
#include <stddef.h>

struct tr_buf { char *data; size_t size, cap; }; /* {0} is empty; data is NUL-terminated whenever it is not NULL */

int tr_buf_reserve(struct tr_buf *b, size_t more);
int tr_buf_add(struct tr_buf *b, const void *bytes, size_t n);
int tr_buf_puts(struct tr_buf *b, const char *text);
int tr_buf_printf(struct tr_buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void tr_buf_release(struct tr_buf *b);

/* Heap copies that fail with a status instead of NULL. *out is the caller's, to be free()d. */
int tr_strdup(char **out, const char *text);
int tr_strndup(char **out, const char *text, size_t n);
int tr_calloc(void *out /* T ** */, size_t count, size_t size);
/* Makes room for count + 1 elements in *array (a T **), doubling. */
int tr_grow(void *array, size_t count, size_t *cap, size_t size);

#endif
