/* `train dump`: loss, logits and gradients of one given batch, for comparison with other frameworks. */
#include "libtrain/base/file.h"
#include "libtrain/base/h5.h"
#include "libtrain/base/status.h"
#include "recipes/commands.h"
#include "recipes/job.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct batch { int64_t B, T, n, counted; int32_t *ids, *targets, *start, *pos; int64_t *seq; };

static void batch_release(struct batch *b)
{
    free(b->ids);
    free(b->targets);
    free(b->start);
    free(b->pos);
    free(b->seq);
}

static int batch_read(struct batch *b, const char *path)
{
    struct tr_h5 *f;
    enum tr_dtype type;
    int ndim, rc;
    int64_t dim[4], tdim[4];
    TR_TRY(tr_h5_open(&f, path));
    TR_GO(tr_h5_info(f, "tokens", &type, &ndim, dim));
    if (ndim != 2 || dim[0] < 1 || dim[1] < 1 || dim[0] > (1 << 24) || dim[1] > (1 << 24) || dim[0] * dim[1] > (1 << 28)) {
        rc = tr_fail(TR_EINPUT, "dataset 'tokens' (%s): it must be [sequences, tokens]", path);
        goto done;
    }
    *b = (struct batch){ .B = dim[0], .T = dim[1], .n = dim[0] * dim[1] };
    size_t n = (size_t)b->n;
    TR_GO(tr_calloc(&b->ids, n, 4));
    TR_GO(tr_calloc(&b->targets, n, 4));
    TR_GO(tr_calloc(&b->start, n, 4));
    TR_GO(tr_calloc(&b->pos, n, 4));
    TR_GO(tr_calloc(&b->seq, (size_t)b->B + 1, 8));
    TR_GO(tr_h5_read(f, "tokens", TR_I32, b->ids));
    for (int64_t i = 0; i < b->n; i++) {
        b->start[i] = (int32_t)(i / b->T * b->T);
        b->pos[i] = (int32_t)(i % b->T);
        b->targets[i] = i % b->T == b->T - 1 ? -100 : b->ids[i + 1];
    }
    for (int64_t s = 0; s <= b->B; s++) b->seq[s] = s * b->T;
    if (tr_h5_has(f, "targets")) {
        TR_GO(tr_h5_info(f, "targets", &type, &ndim, tdim));
        if (ndim != 2 || tdim[0] != b->B || tdim[1] != b->T) {
            rc = tr_fail(TR_EINPUT, "dataset 'targets' (%s): its shape differs from that of 'tokens'", path);
            goto done;
        }
        TR_GO(tr_h5_read(f, "targets", TR_I32, b->targets));
    }
    for (int64_t i = 0; i < b->n; i++) b->counted += b->targets[i] != -100;
    if (!b->counted) rc = tr_fail(TR_EINPUT, "dataset 'targets' (%s): no token counts (all are -100)", path);
done:
    tr_h5_close(f);
    return rc;
}

struct out { struct tr_h5 *f; bool grad; float *rows; };

/* Writes one gradient under its file name and shape. */
static int write_grad(void *self, struct tr_param *p, struct tr_tensor *grad)
{
    struct out *o = self;
    char name[160];
    int64_t rows = tr_rows(grad), cols = tr_cols(grad);
    float *dense = NULL, *turned = NULL;
    double squares = tr_kernels()->sum_squares(grad), norm = sqrt(squares);
    int rc;
    snprintf(name, sizeof name, "grad_norm/%s", p->name);
    TR_TRY(tr_h5_write_scalar(o->f, name, norm));
    if (!o->grad) return TR_OK;
    TR_GO(tr_calloc(&dense, (size_t)(rows * cols), sizeof *dense));
    tr_tensor_read(grad, dense);
    snprintf(name, sizeof name, "grad/%s", p->name);
    if (p->file_transposed) {
        TR_GO(tr_calloc(&turned, (size_t)(rows * cols), sizeof *turned));
        for (int64_t i = 0; i < rows; i++)
            for (int64_t k = 0; k < cols; k++) turned[k * rows + i] = dense[i * cols + k];
        rc = tr_h5_write(o->f, name, TR_F32, 2, (int64_t[]){ cols, rows }, turned, false);
    } else rc = tr_h5_write(o->f, name, TR_F32, p->value.ndim, p->value.dim, dense, false);
done:
    free(dense);
    free(turned);
    return rc;
}

static int write_logits(struct job *j, struct tr_h5 *f, const struct batch *b)
{
    struct tr_value *h;
    float *logits;
    int64_t V = j->shape.vocab;
    tr_tape_begin(j->tape, false, TR_KEEP);
    TR_TRY(tr_net_hidden(j->net, j->tape, &j->feed, NULL, &h));
    TR_TRY(tr_calloc(&logits, (size_t)(b->n * V), sizeof *logits));
    int rc = TR_OK;
    for (int64_t at = 0; at < b->n && rc == TR_OK; at += 512)
        rc = tr_net_logits(j->net, h, at, b->n - at < 512 ? b->n - at : 512, logits + at * V);
    if (rc == TR_OK) rc = tr_h5_write(f, "logits", TR_F32, 3, (int64_t[]){ b->B, b->T, V }, logits, false);
    free(logits);
    tr_tape_clear(j->tape);
    return rc;
}

int recipe_dump(struct recipe *r, const char *batch, const char *out, bool logits, bool grad)
{
    struct job j = { 0 };
    struct batch b = { 0 };
    struct tr_h5 *f = NULL;
    char *tmp = NULL;
    double loss;
    int rc;
    TR_GO(batch_read(&b, batch));
    if (r->data.sequence < b.T) r->data.sequence = b.T;
    TR_GO(job_open(&j, r));
    TR_GO(job_net(&j, true));
    TR_GO(job_feed(&j, b.n));
    TR_GO(tr_feed_set(&j.feed, j.net, b.n, b.ids, b.targets, b.start, b.pos, b.seq, b.B));
    struct tr_buf name = { 0 };
    TR_GO(tr_buf_printf(&name, "%s.tmp", out));
    tmp = name.data;
    TR_GO(tr_h5_create(&f, tmp));
    struct out o = { f, grad, NULL };
    struct tr_sink sink = { &o, write_grad };
    if (logits) TR_GO(write_logits(&j, f, &b));
    tr_tape_begin(j.tape, grad, j.r->memory.recompute == RECIPE_RECOMPUTE_BLOCK ? TR_BLOCK : j.r->memory.recompute == RECIPE_RECOMPUTE_NONE ? TR_KEEP : TR_SELECTIVE);
    TR_GO(tr_net_loss(j.net, j.tape, &j.feed, (float)(1.0 / (double)b.counted), 512, &loss));
    loss /= (double)b.counted;
    TR_GO(tr_h5_write_scalar(f, "loss", loss));
    if (grad) TR_GO(tr_backward(j.tape, &sink, false));
    rc = tr_h5_close(f);
    f = NULL;
    if (rc == TR_OK && rename(tmp, out)) rc = tr_fail(TR_EFAIL, "cannot write '%s'", out);
    if (rc == TR_OK) printf("loss %.6f over %" PRId64 " counted tokens; written to %s\n", loss, b.counted, out);
done:
    if (f) tr_h5_close(f);
    if (tmp) unlink(tmp);
    free(tmp);
    batch_release(&b);
    job_release(&j);
    return rc;
}
