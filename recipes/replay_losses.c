#include "recipes/replay_impl.h"
#include "libtrain/base/status.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct term { float *curvature, *target, *theta, *row; struct tr_tensor *z; };
struct objective { struct replay *r; struct term *term; int64_t step; };

/* The recorded block is the layer; in files with blocks a parameter without one stays still. */
int replay_blocks(struct replay *r)
{
    char *how = NULL, *path = NULL, *block = NULL, **seen = NULL;
    int rc, n = 0;
    TR_GO(tr_calloc(&seen, (size_t)r->n, sizeof *seen));
    if (tr_h5_has_attr(r->in, "/", "blockwise")) TR_GO(tr_h5_attr_text(r->in, "/", "blockwise", &how));
    for (int64_t i = 0; i < r->n && how && strcmp(how, "none"); i++) {
        TR_GO(replay_path(&path, r->param[i].name, NULL));
        TR_GO(tr_h5_attr_text(r->in, path, "block", &block));
        int k = 0;
        while (k < n && strcmp(seen[k], block)) k++;
        r->param[i].layer = k;
        r->param[i].trainable = strcmp(block, "none") != 0;
        if (k == n) {
            seen[n++] = block;
            block = NULL;
        }
        free(block);
        free(path);
        block = path = NULL;
    }
    rc = TR_OK;
done:
    while (n > 0) free(seen[--n]);
    free(seen);
    free(block);
    free(path);
    free(how);
    return rc;
}

static int read_whole(const struct replay *r, const struct tr_param *p, const char *what, float **out)
{
    char *path = NULL;
    enum tr_dtype type;
    int ndim, rc;
    int64_t dim[4], n = 1;
    TR_GO(replay_path(&path, p->name, what));
    TR_GO(tr_h5_info(r->in, path, &type, &ndim, dim));
    for (int i = 0; i < ndim; i++) n *= dim[i];
    if (n != tr_count(&p->value)) TR_GO(tr_fail(TR_EINPUT, "'/%s' (%s): it must have the parameter's shape", path, r->path));
    TR_GO(tr_calloc(out, (size_t)n, sizeof **out));
    rc = tr_h5_read(r->in, path, TR_F32, *out);
done:
    free(path);
    return rc;
}

static int term_init(const struct replay *r, const struct tr_param *p, struct term *t)
{
    size_t n = (size_t)tr_count(&p->value);
    TR_TRY(read_whole(r, p, "curvature", &t->curvature));
    TR_TRY(read_whole(r, p, "target", &t->target));
    TR_TRY(tr_calloc(&t->theta, n, sizeof *t->theta));
    TR_TRY(tr_calloc(&t->row, n * (size_t)r->draws, sizeof *t->row));
    TR_TRY(tr_calloc(&t->z, (size_t)r->draws, sizeof *t->z));
    for (int64_t i = 0; i < r->draws; i++) TR_TRY(tr_tensor_new(&t->z[i], TR_OTHER, TR_F32, p->value.ndim, p->value.dim));
    return TR_OK;
}

static void term_release(const struct replay *r, struct term *t)
{
    for (int64_t i = 0; i < r->draws && t->z; i++) tr_tensor_release(&t->z[i]);
    free(t->z);
    free(t->row);
    free(t->theta);
    free(t->target);
    free(t->curvature);
}

/* The directions of a step: row t of z, whose rows hold all draws. */
static int take_directions(struct objective *j, int64_t step)
{
    j->step = step;
    for (int64_t i = 0; i < j->r->n; i++) {
        const struct tr_param *p = &j->r->param[i];
        char *path = NULL;
        int64_t n = tr_count(&p->value);
        int rc = replay_path(&path, p->name, "z");
        if (rc == TR_OK) rc = tr_h5_read_rows(j->r->in, path, TR_F32, step, 1, j->term[i].row);
        free(path);
        TR_TRY(rc);
        for (int64_t k = 0; k < j->r->draws; k++) tr_tensor_write(&j->term[i].z[k], j->term[i].row + k * n);
    }
    return TR_OK;
}

static int loss(void *self, double *out)
{
    struct objective *j = self;
    *out = 0;
    for (int64_t i = 0; i < j->r->n; i++) {
        struct term *t = &j->term[i];
        tr_tensor_read(&j->r->param[i].value, t->theta);
        for (int64_t k = 0; k < tr_count(&j->r->param[i].value); k++) {
            double d = (double)t->theta[k] - (double)t->target[k];
            *out += 0.5 * (double)t->curvature[k] * d * d;
        }
    }
    return TR_OK;
}

static int slope(void *self, double *out)
{
    struct objective *j = self;
    *out = 0;
    for (int64_t i = 0; i < j->r->n; i++) {
        struct term *t = &j->term[i];
        tr_tensor_read(&j->r->param[i].value, t->theta);
        for (int64_t k = 0; k < tr_count(&j->r->param[i].value); k++)
            *out += (double)t->curvature[k] * ((double)t->theta[k] - (double)t->target[k]) * (double)t->row[k];
    }
    return TR_OK;
}

static int given(void *self, const struct tr_param *p, int64_t draw, const struct tr_tensor **z)
{
    struct objective *j = self;
    *z = &j->term[p->index].z[draw % j->r->draws];
    return TR_OK;
}

int replay_losses(struct replay *r, struct opt *o)
{
    struct objective j = { .r = r };
    struct opt_evaluator e = { &j, loss, slope, given };
    double at;
    int rc;
    TR_GO(tr_calloc(&j.term, (size_t)r->n, sizeof *j.term));
    for (int64_t i = 0; i < r->n; i++) TR_GO(term_init(r, &r->param[i], &j.term[i]));
    for (int64_t t = 0; t < r->steps; t++) {
        TR_GO(take_directions(&j, t));
        TR_GO(opt_step_by_losses(o, r->lr, t + 1, &e, &at));
        for (int64_t i = 0; i < r->n; i++) TR_GO(replay_write(r, &r->param[i], t, j.term[i].theta));
    }
    rc = TR_OK;
done:
    for (int64_t i = 0; i < r->n && j.term; i++) term_release(r, &j.term[i]);
    free(j.term);
    return rc;
}
