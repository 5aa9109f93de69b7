#include "parallel/partition.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include <stdlib.h>

struct heavy { size_t bytes; int64_t index; };

static int heaviest_first(const void *a, const void *b)
{
    const struct heavy *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x->index < y->index ? -1 : 1;
}

static void give(int64_t *first, int64_t rows, int owner, int size)
{
    for (int r = 0; r <= size; r++) first[r] = r > owner ? rows : 0;
}

int par_deal(int64_t *first, const struct par_item *item, int64_t n, int size)
{
    struct heavy *whole = NULL;
    size_t *load = NULL, n_whole = 0;
    int rc;
    TR_GO(tr_calloc(&whole, (size_t)n + 1, sizeof *whole));
    TR_GO(tr_calloc(&load, (size_t)size, sizeof *load));
    for (int64_t i = 0; i < n; i++) {
        int64_t *f = first + i * (size + 1);
        if (!item[i].by_rows || item[i].rows < size) {
            whole[n_whole++] = (struct heavy){ item[i].bytes, i };
            continue;
        }
        for (int r = 0; r <= size; r++) f[r] = item[i].rows / size * r + item[i].rows % size * r / size;
        for (int r = 0; r < size; r++) load[r] += (size_t)((double)item[i].bytes * (double)(f[r + 1] - f[r]) / (double)item[i].rows);
    }
    qsort(whole, n_whole, sizeof *whole, heaviest_first);
    for (size_t k = 0; k < n_whole; k++) {
        int least = 0;
        for (int r = 1; r < size; r++)
            if (load[r] < load[least]) least = r;
        give(first + whole[k].index * (size + 1), item[whole[k].index].rows, least, size);
        load[least] += whole[k].bytes;
    }
    rc = TR_OK;
done:
    free(load);
    free(whole);
    return rc;
}

void par_loads(size_t *load, const int64_t *first, const struct par_item *item, int64_t n, int size)
{
    for (int r = 0; r < size; r++) load[r] = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t *f = first + i * (size + 1);
        for (int r = 0; r < size && item[i].rows; r++) load[r] += (size_t)((double)item[i].bytes * (double)(f[r + 1] - f[r]) / (double)item[i].rows);
    }
}
