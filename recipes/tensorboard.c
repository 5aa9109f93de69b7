/* An event file is a list of records: length (8 bytes), its checksum, bytes, their checksum, all little-endian. The bytes
 * are a protobuf message Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5;
 * SessionLog session_log = 7; }, Summary { repeated Value value = 1; }, Value { string tag = 1; float simple_value = 2; },
 * SessionLog { Status status = 1; }, START = 1. */
#include "recipes/tensorboard.h"
#include "libtrain/base/crc.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct tensorboard { FILE *f; char *path; };

/* ---- protobuf */

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static int put_varint(struct tr_buf *b, uint64_t v)
{
    unsigned char bytes[10];
    size_t n = 0;
    for (; v >= 128; v >>= 7) bytes[n++] = (unsigned char)(v | 128);
    bytes[n++] = (unsigned char)v;
    return tr_buf_add(b, bytes, n);
}

static int put_word(struct tr_buf *b, uint64_t v, int n)
{
    unsigned char bytes[8];
    for (int i = 0; i < n; i++) bytes[i] = (unsigned char)(v >> 8 * i);
    return tr_buf_add(b, bytes, (size_t)n);
}

static int put_key(struct tr_buf *b, int field, int type) { return put_varint(b, (uint64_t)(field << 3 | type)); }

static int put_bytes(struct tr_buf *b, int field, const void *bytes, size_t n)
{
    TR_TRY(put_key(b, field, BYTES));
    TR_TRY(put_varint(b, n));
    return tr_buf_add(b, bytes, n);
}

static int put_event(struct tr_buf *b, int64_t step)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double wall = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    uint64_t bits;
    memcpy(&bits, &wall, sizeof bits);
    TR_TRY(put_key(b, 1, FIXED64));
    TR_TRY(put_word(b, bits, 8));
    TR_TRY(put_key(b, 2, VARINT));
    return put_varint(b, (uint64_t)step);
}

static int put_scalar(struct tr_buf *summary, const char *tag, double value)
{
    struct tr_buf v = { 0 };
    float f = (float)value;
    uint32_t bits;
    int rc;
    memcpy(&bits, &f, sizeof bits);
    TR_GO(put_bytes(&v, 1, tag, strlen(tag)));
    TR_GO(put_key(&v, 2, FIXED32));
    TR_GO(put_word(&v, bits, 4));
    rc = put_bytes(summary, 1, v.data, v.size);
done:
    tr_buf_release(&v);
    return rc;
}

/* ---- records */

static uint32_t masked(const void *bytes, size_t n)
{
    uint32_t c = tr_crc32c(0, bytes, n);
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

static int put_record(struct tensorboard *t, const struct tr_buf *event)
{
    struct tr_buf b = { 0 };
    int rc;
    TR_GO(put_word(&b, event->size, 8));
    TR_GO(put_word(&b, masked(b.data, 8), 4));
    TR_GO(tr_buf_add(&b, event->data, event->size));
    TR_GO(put_word(&b, masked(event->data, event->size), 4));
    if (fwrite(b.data, 1, b.size, t->f) != b.size || fflush(t->f))
        rc = tr_fail(TR_EFAIL, "cannot write '%s': %s; the newest snapshot is whole", t->path, strerror(errno));
done:
    tr_buf_release(&b);
    return rc;
}

/* ---- files */

static const char prefix[] = "events.out.tfevents.";

static void remove_events(const char *folder)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char *path;
        if (strncmp(e->d_name, prefix, sizeof prefix - 1) || tr_path_join(&path, folder, e->d_name) != TR_OK) continue;
        unlink(path);
        free(path);
    }
    if (d) closedir(d);
}

/* TensorBoard reads the files of a folder in the order of their names: time first, then a number for one second's files. */
static int open_new(struct tensorboard *t, const char *folder)
{
    char host[128] = "host";
    gethostname(host, sizeof host - 1);
    for (int i = 0; i < 1000; i++) {
        struct tr_buf b = { 0 };
        free(t->path);
        t->path = NULL;
        TR_TRY(tr_buf_printf(&b, "%s/%s%010" PRId64 ".%03d.%s", folder, prefix, (int64_t)time(NULL), i, host));
        t->path = b.data;
        t->f = fopen(t->path, "wbx");
        if (t->f) return TR_OK;
        if (errno != EEXIST) break;
    }
    return tr_fail(TR_EFAIL, "cannot write '%s': %s", t->path, strerror(errno));
}

static int put_start(struct tensorboard *t, int64_t after)
{
    static const char version[] = "brain.Event:2", start[] = { 1 << 3 | VARINT, 1 };
    struct tr_buf b = { 0 };
    int rc;
    TR_GO(put_event(&b, 0));
    TR_GO(put_bytes(&b, 3, version, sizeof version - 1));
    TR_GO(put_record(t, &b));
    if (after == 0) goto done;
    b.size = 0;
    TR_GO(put_event(&b, after + 1));
    TR_GO(put_bytes(&b, 7, start, sizeof start));
    rc = put_record(t, &b);
done:
    tr_buf_release(&b);
    return rc;
}

int tensorboard_open(struct tensorboard **out, const char *folder, int64_t after)
{
    struct tensorboard *t = NULL;
    char *dir = NULL;
    int rc;
    TR_GO(tr_path_join(&dir, folder, "tensorboard"));
    TR_GO(tr_mkdirs(dir));
    TR_GO(tr_calloc(&t, 1, sizeof *t));
    if (after == 0) remove_events(dir);
    TR_GO(open_new(t, dir));
    TR_GO(put_start(t, after));
    *out = t;
    t = NULL;
done:
    tensorboard_close(t);
    free(dir);
    return rc;
}

int tensorboard_write(struct tensorboard *t, const struct metrics_row *r)
{
    struct tr_buf event = { 0 }, summary = { 0 };
    char tag[64];
    int rc;
    if (!t) return TR_OK;
    TR_GO(put_event(&event, r->step));
    TR_GO(put_scalar(&summary, "loss/train", r->loss));
    if (!isnan(r->valid_loss)) TR_GO(put_scalar(&summary, "loss/valid", r->valid_loss));
    TR_GO(put_scalar(&summary, "step/lr", r->lr));
    TR_GO(put_scalar(&summary, "step/grad_norm", r->grad_norm));
    TR_GO(put_scalar(&summary, "step/tokens_per_s", r->tokens_per_s));
    TR_GO(put_scalar(&summary, "step/seconds", r->step_s));
    TR_GO(put_scalar(&summary, "step/checkpoint_block_s", r->checkpoint_block_s));
    for (int c = 0; c < TR_CATEGORIES; c++) {
        snprintf(tag, sizeof tag, "memory_MB/%s", tr_category_name((enum tr_category)c));
        TR_GO(put_scalar(&summary, tag, (double)r->memory.now[c] / 1e6));
    }
    TR_GO(put_scalar(&summary, "memory_MB/peak", (double)r->memory.peak / 1e6));
    TR_GO(put_scalar(&summary, "memory_MB/peak_rss", (double)r->peak_rss / 1e6));
    TR_GO(put_bytes(&event, 5, summary.data, summary.size));
    rc = put_record(t, &event);
done:
    tr_buf_release(&event);
    tr_buf_release(&summary);
    return rc;
}

void tensorboard_close(struct tensorboard *t)
{
    if (!t) return;
    if (t->f) fclose(t->f);
    free(t->path);
    free(t);
}
