#include "checkpoint/image.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int damaged(const struct ckpt_image *img, const char *what)
{
    return tr_fail(TR_EDAMAGED, "the snapshot of step %" PRId64 " in memory is damaged: %.220s", img->version, what);
}

size_t ckpt_entry_row(const struct ckpt_entry *e)
{
    size_t row = e->words ? sizeof(uint64_t) : tr_dtype_size((enum tr_dtype)e->dtype);
    for (int i = 1; i < e->ndim; i++) row *= (size_t)e->dim[i];
    return row;
}

/* Whether an entry can be what it says, within the payload. */
static bool is_sound(const struct ckpt_entry *e, uint64_t payload)
{
    uint64_t bytes = e->words ? sizeof(uint64_t) : e->dtype < TR_DTYPES ? tr_dtype_size((enum tr_dtype)e->dtype) : 0;
    if (!bytes || e->ndim < 1 || e->ndim > 4 || !memchr(e->name, 0, CKPT_NAME) || !e->name[0]) return false;
    for (int i = 0; i < e->ndim; i++) {
        if (e->dim[i] < 1) return false;
        if (i > 0 && __builtin_mul_overflow(bytes, (uint64_t)e->dim[i], &bytes)) return false;
    }
    if (e->rows < 1 || e->begin < 0 || e->begin > e->dim[0] - e->rows || __builtin_mul_overflow(bytes, (uint64_t)e->rows, &bytes)) return false;
    return bytes == e->bytes && e->at <= payload && e->bytes <= payload - e->at;
}

static int add_rank(struct ckpt_image *img, uint32_t rank, size_t *cap)
{
    int k = ckpt_shared_find(img->s, rank, img->version);
    if (k < 0) return damaged(img, "a rank has lost its part");
    struct ckpt_slot *slot = ckpt_shared_slot(img->s, rank, k);
    const struct ckpt_size *size = &img->s->place[rank].size;
    uint64_t n = slot->n;
    const struct ckpt_entry *e = ckpt_slot_entries(slot);
    if (n > size->entries || tr_crc32c(0, e, n * sizeof *e) != slot->crc) return damaged(img, "the checksum of a list does not hold");
    for (uint64_t i = 0; i < n; i++) {
        TR_TRY(tr_grow(&img->part, img->n, cap, sizeof *img->part));
        struct ckpt_part_of *p = &img->part[img->n++];
        p->e = e[i]; /* a copy: what was checked cannot change any more */
        if (!is_sound(&p->e, size->payload)) return damaged(img, "an entry lies outside of it");
        p->data = ckpt_slot_payload(img->s, rank, slot) + p->e.at;
        p->rank = (int)rank;
    }
    return TR_OK;
}

int ckpt_image_part(struct ckpt_image *img, const struct ckpt_shared *s, uint32_t rank, int64_t version)
{
    size_t cap = 0;
    *img = (struct ckpt_image){ .s = s, .version = version };
    return add_rank(img, rank, &cap);
}

/* The list of rank r of all to everybody. */
static int share_list(struct ckpt_image *img, int r, const struct ckpt_image *mine, size_t *cap)
{
    const size_t most = (size_t)1 << 24;
    bool own = r == img->comm->rank;
    uint64_t n = mine->n;
    struct ckpt_entry *list = NULL;
    int rc;
    TR_GO(tr_comm_words(img->comm, &n, 1, r));
    if (n > most) TR_GO(damaged(img, "a list is too long"));
    TR_GO(tr_calloc(&list, n + 1, sizeof *list));
    for (size_t i = 0; own && i < n; i++) list[i] = mine->part[i].e;
    TR_GO(tr_comm_bytes(img->comm, list, n * sizeof *list, r));
    for (size_t i = 0; i < n; i++) {
        TR_GO(tr_grow(&img->part, img->n, cap, sizeof *img->part));
        img->part[img->n++] = (struct ckpt_part_of){ list[i], own ? mine->part[i].data : NULL, r };
        if (!is_sound(&list[i], UINT64_MAX)) TR_GO(damaged(img, "an entry lies outside of it"));
    }
done:
    free(list);
    return rc;
}

static int by_place(const void *a, const void *b)
{
    const struct ckpt_entry *x = &((const struct ckpt_part_of *)a)->e, *y = &((const struct ckpt_part_of *)b)->e;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

size_t ckpt_image_run(const struct ckpt_image *img, size_t at)
{
    size_t n = 1;
    while (at + n < img->n && !strcmp(img->part[at + n].e.name, img->part[at].e.name)) n++;
    return n;
}

/* Parts of one tensor: of the same whole, each row once. */
static bool covers(const struct ckpt_part_of *p, size_t n)
{
    int64_t next = 0;
    for (size_t i = 0; i < n; i++) {
        const struct ckpt_entry *e = &p[i].e;
        if (e->begin != next || e->dtype != p->e.dtype || e->ndim != p->e.ndim || e->words != p->e.words || e->group != p->e.group) return false;
        if (memcmp(e->dim, p->e.dim, (size_t)e->ndim * sizeof *e->dim)) return false;
        next += e->rows;
    }
    return next == p->e.dim[0];
}

static int put_together(struct ckpt_image *img)
{
    if (!img->n) return damaged(img, "it is empty");
    qsort(img->part, img->n, sizeof *img->part, by_place);
    for (size_t i = 0, n; i < img->n; i += n) {
        n = ckpt_image_run(img, i);
        if (!covers(&img->part[i], n)) return damaged(img, img->part[i].e.name);
    }
    return TR_OK;
}

int ckpt_image_open(struct ckpt_image *img, const struct ckpt_shared *s, int64_t version)
{
    size_t cap = 0;
    *img = (struct ckpt_image){ .s = s, .version = version };
    for (uint32_t r = 0; r < s->head->ranks; r++) TR_TRY(add_rank(img, r, &cap));
    return put_together(img);
}

int ckpt_image_gather(struct ckpt_image *img, const struct ckpt_shared *s, int64_t version, const struct ckpt_nodes *n)
{
    struct ckpt_image mine;
    size_t cap = 0;
    *img = (struct ckpt_image){ .s = s, .version = version, .comm = n->comm };
    int rc = ckpt_image_part(&mine, s, (uint32_t)(n->comm->rank % n->per), version);
    for (int r = 0; r < n->comm->size && rc == TR_OK; r++) rc = share_list(img, r, &mine, &cap);
    ckpt_image_release(&mine);
    return rc == TR_OK ? put_together(img) : rc;
}

int ckpt_image_read(const struct ckpt_image *img, const struct ckpt_part_of *p, size_t at, size_t n, void *to)
{
    if (p->data) {
        memcpy(to, p->data + at, n);
        ckpt_image_forget(p->data + at, n);
    }
    return img->comm ? tr_comm_bytes(img->comm, to, n, p->rank) : TR_OK;
}

void ckpt_image_forget(const void *data, size_t bytes)
{
    uintptr_t begin = ((uintptr_t)data + 4095) & ~(uintptr_t)4095, end = ((uintptr_t)data + bytes) & ~(uintptr_t)4095;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

int ckpt_image_verify(const struct ckpt_image *img)
{
    enum { EACH = 1 << 20 };
    for (size_t i = 0; i < img->n; i++) {
        const struct ckpt_part_of *p = &img->part[i];
        uint32_t crc = 0;
        if (!p->data) continue;
        for (size_t at = 0; at < p->e.bytes; at += EACH) {
            size_t n = p->e.bytes - at < EACH ? p->e.bytes - at : EACH;
            crc = tr_crc32c(crc, p->data + at, n);
            ckpt_image_forget(p->data + at, n);
        }
        if (crc != p->e.crc) return damaged(img, p->e.name);
    }
    return TR_OK;
}

void ckpt_image_release(struct ckpt_image *img)
{
    free(img->part);
    *img = (struct ckpt_image){ 0 };
}

const struct ckpt_part_of *ckpt_image_find(const struct ckpt_image *img, const char *name, size_t *parts)
{
    for (size_t i = 0; i < img->n; i += *parts) { /* a few thousand at most, at a resume alone */
        *parts = ckpt_image_run(img, i);
        if (!strcmp(img->part[i].e.name, name)) return &img->part[i];
    }
    return NULL;
}
