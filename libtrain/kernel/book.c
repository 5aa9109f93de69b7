/* The values of state in 8 bits; also part of the modules for devices. */
#include "libtrain/kernel/update.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b) { return (*(const float *)a > *(const float *)b) - (*(const float *)a < *(const float *)b); }

/* For i = 0..6: the middles of an even cut of [0.1, 1] into 2^i parts (with signs, and their negatives) or 2^(i+1) parts,
 * times 10^(i-6); and 0 and 1. */
static struct tr_book make_book(bool with_sign)
{
    struct tr_book b;
    int n = 0;
    for (int i = 0; i < 7; i++) {
        int parts = with_sign ? 1 << i : 2 << i;
        for (int k = 0; k < parts; k++) {
            b.value[n++] = (float)((0.1 + 0.9 * (k + 0.5) / parts) * pow(10, i - 6));
            if (with_sign) b.value[n] = -b.value[n - 1], n++;
        }
    }
    b.value[n++] = 0;
    b.value[n++] = 1;
    qsort(b.value, 256, sizeof *b.value, by_value);
    for (int i = 0; i < 255; i++) b.middle[i] = (b.value[i] + b.value[i + 1]) / 2;
    return b;
}

static struct tr_book book[2];

static void make_books(void)
{
    book[0] = make_book(false);
    book[1] = make_book(true);
}

const struct tr_book *tr_book_8bit(bool with_sign)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_books);
    return &book[with_sign];
}
