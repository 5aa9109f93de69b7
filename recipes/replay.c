#include "recipes/replay.h"
#include "recipes/replay_impl.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Recorded names that are an optimizer with certain settings (a key that the file does not hold; attributes that the rule has no
 * use for); other names are the optimizer's own. */
static const struct { const char *recorded, *kind, *key, *value, *unused; } names[] = {
    { "sgd_momentum", "sgd" }, { "signsgd_momentum", "signsgd" }, { "adafactor_relative", "adafactor" }, { "adamw8bit", "adamw-8bit" },
    { "galore_adamw", "galore" }, { "galore_full", "galore" }, { "galore_adamw8bit", "galore-8bit" }, { "frugal_svd", "frugal" }, { "frugal_svd_keep", "frugal" }, { "frugal_random", "frugal" }, { "frugal_randperm", "frugal" }, { "frugal_columns", "frugal" },
    { "frugal_columns_keep", "frugal" }, { "frugal_rows", "frugal" }, { "frugal_randk", "frugal" }, { "frugal_lion_columns", "frugal-lion" }, { "apollo_mini_front", "apollo-mini" }, { "apollo_no_limiter", "apollo" }, { "apollo_svd", "apollo" },
    { "frugal_sgd_columns", "frugal-sgd", "sgd_start", "code", "beta1 beta2 eps correct_bias" },
    { "q_apollo", "q-apollo", "grid", "published" }, { "q_apollo_mini_nearest", "q-apollo", "grid", "published" },
    { "frugal_block_random", "frugal" }, { "frugal_block_descending", "frugal" }, { "mezo", "zo-sgd" }, { "zo_sgd_one_side", "zo-sgd" }, { "zo_sgd_q", "zo-sgd" }, { "zo_block_coordinate", "zo-sgd" }, { "zo_block_joint", "zo-sgd" }, { "zo_sparse", "zo-sgd" },
};

/* Attributes that say how something was computed that the file hands over, or what is always so here. */
static const struct { const char *name, *is; } known[] = { { "proj", NULL }, { "state_full", NULL }, { "proj_type", "std" }, { "block_size", "256" }, { "group_size", "128" }, { "clip_grad_norm", "0" }, { "clip_grad_value", "0" },
    { "momentum", "0" }, { "weight_decay", "0" }, { "blockwise", "none" }, { "q", "1" }, { "perturbation_mode", "two_side" } };

int replay_path(char **out, const char *name, const char *what)
{
    struct tr_buf t = { 0 };
    int rc = tr_buf_printf(&t, "param/%s%s%s", name, what ? "/" : "", what ? what : "");
    *out = t.data;
    return rc;
}

/* ---- hyper-parameters */

static bool has_option(const struct opt_kind *k, const char *name)
{
    for (const struct tr_option *o = k->options; o->name; o++)
        if (!strcmp(o->name, name)) return true;
    return k->rest && has_option(opt_find(k->rest), name);
}

static int add_entry(struct replay *r, const char *key, char *value)
{
    struct opt_entry *more = realloc(r->entry, (r->n_entries + 1) * sizeof *more);
    if (!more) {
        free(value);
        return tr_fail(TR_EFAIL, "no memory for the hyper-parameters of '%s'", r->path);
    }
    r->entry = more;
    struct opt_entry *e = &more[r->n_entries++];
    *e = (struct opt_entry){ .value = value, .place = { .file = r->path } };
    TR_TRY(tr_strdup(&e->section, "optimizer"));
    return tr_strdup(&e->key, key);
}

static int add_attr(void *self, const char *attr)
{
    struct replay *r = self;
    char *value = NULL, number[40];
    double x;
    if (!strcmp(attr, "optimizer") || !strcmp(attr, "steps") || !strcmp(attr, "lr")) return TR_OK;
    if (tr_h5_attr_real(r->in, "/", attr, &x) == TR_OK) {
        snprintf(number, sizeof number, "%.17g", x);
        TR_TRY(tr_strdup(&value, number));
    } else TR_TRY(tr_h5_attr_text(r->in, "/", attr, &value));
    if (has_option(r->kind, attr)) return add_entry(r, attr, value);
    if (r->unused && strstr(r->unused, attr)) {
        free(value);
        return TR_OK;
    }
    int rc = tr_fail(TR_EINPUT, "hyper-parameter '%.60s' (%s): %s has no such option", attr, r->path, r->kind->name);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, attr) && (!known[i].is || !strcmp(known[i].is, value))) rc = TR_OK;
    free(value);
    return rc;
}

static int read_settings(struct replay *r)
{
    char *recorded = NULL, *copy = NULL;
    double steps;
    int rc;
    TR_GO(tr_h5_attr_text(r->in, "/", "optimizer", &recorded));
    const char *name = recorded, *key = NULL, *value = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i].recorded, recorded)) name = names[i].kind, key = names[i].key, value = names[i].value, r->unused = names[i].unused;
    r->kind = opt_find(name);
    if (!r->kind) TR_GO(tr_fail(TR_EINPUT, "unknown optimizer '%.60s' (%s): `train help optimizer` lists them", recorded, r->path));
    TR_GO(tr_strdup(&copy, r->kind->name));
    TR_GO(add_entry(r, "name", copy));
    TR_GO(tr_strdup(&copy, r->kind->needs == OPT_GRADIENT ? "true" : "false")); /* recordings with gradients decay every parameter */
    TR_GO(add_entry(r, "decay_vectors", copy));
    if (key) {
        TR_GO(tr_strdup(&copy, value));
        TR_GO(add_entry(r, key, copy));
    }
    TR_GO(tr_h5_attr_real(r->in, "/", "lr", &r->lr));
    TR_GO(tr_h5_attr_real(r->in, "/", "steps", &steps));
    if (!(steps >= 1 && steps <= 1e6)) TR_GO(tr_fail(TR_EINPUT, "'steps' is %g (%s): 1 to a million are possible", steps, r->path));
    r->steps = (int64_t)steps;
    r->draws = 1;
    if (r->kind->needs != OPT_GRADIENT && tr_h5_has_attr(r->in, "/", "q")) {
        TR_GO(tr_h5_attr_real(r->in, "/", "q", &steps));
        if (!(steps >= 1 && steps <= 64)) TR_GO(tr_fail(TR_EINPUT, "'q' is %g (%s): 1 to 64 are possible", steps, r->path));
        r->draws = (int64_t)steps;
    }
    TR_GO(tr_h5_attrs(r->in, "/", add_attr, r));
done:
    free(recorded);
    return rc;
}

/* ---- what was drawn */

static int get_given(void *self, const char *what, int64_t k, struct tr_tensor *out)
{
    struct recorded *c = ((void **)self)[0];
    struct replay *r = ((void **)self)[1];
    struct tr_buf path = { 0 };
    enum tr_dtype type;
    int ndim;
    int64_t dim[4];
    float *host = NULL;
    if (c->n_given == 4) return tr_fail(TR_EFAIL, "an update asks for more than four draws; this is a defect of the program");
    struct tr_tensor *t = &c->given[c->n_given];
    bool by_step = !strcmp(what, "uniform");   /* a dataset [steps, shape] instead of one for each draw */
    int rc = by_step ? tr_buf_printf(&path, "param/%s/%s", c->p->name, what) : tr_buf_printf(&path, "param/%s/%s/%" PRId64, c->p->name, what, k);
    if (rc == TR_OK && !tr_h5_has(r->in, path.data)) rc = tr_fail(TR_EINPUT, "'/%s' (%s): it is missing", path.data, r->path);
    if (rc == TR_OK) rc = tr_h5_info(r->in, path.data, &type, &ndim, dim);
    if (by_step) ndim = c->p->value.ndim, memcpy(dim, c->p->value.dim, sizeof dim);
    if (rc == TR_OK) rc = tr_tensor_arena(t, TR_WORKSPACE, TR_F32, ndim, dim, 0);
    if (rc == TR_OK) {
        c->n_given++;
        rc = tr_calloc(&host, (size_t)tr_count(t), sizeof *host);
    }
    if (rc == TR_OK) rc = by_step ? replay_row(r, c->p, what, k, host) : tr_h5_read(r->in, path.data, TR_F32, host);
    if (rc == TR_OK) {
        tr_tensor_write(t, host);
        *out = *t;
        out->owner = 0;
    }
    free(host);
    tr_buf_release(&path);
    return rc;
}

/* ---- the walk */

int replay_row(const struct replay *r, const struct tr_param *p, const char *what, int64_t t, float *host)
{
    char *path = NULL;
    enum tr_dtype type;
    int ndim, rc;
    int64_t dim[4];
    TR_GO(replay_path(&path, p->name, what));
    TR_GO(tr_h5_info(r->in, path, &type, &ndim, dim));
    bool fits = ndim == p->value.ndim + 1 && dim[0] > t;
    for (int i = 1; i < ndim && fits; i++) fits = dim[i] == p->value.dim[i - 1];
    if (!fits) TR_GO(tr_fail(TR_EINPUT, "'/%s' (%s): it must be [steps, the parameter's shape] and go up to %" PRId64, path, r->path, t));
    rc = tr_h5_read_rows(r->in, path, TR_F32, t, 1, host);
done:
    free(path);
    return rc;
}

/* What a probe recorded: the gradient against drawn labels, or u H u. */
static int probe(struct replay *r, struct opt *o, struct recorded *c, int64_t t, enum opt_probe kind, float *host, struct tr_tensor *grad)
{
    int64_t n = tr_count(&c->p->value), every = opt_probe_every(o, kind);
    float *hu = NULL;
    int rc;
    if (!opt_probe_due(o, kind, t + 1)) return TR_OK;
    if (kind == OPT_PROBE_LABELS) TR_TRY(replay_row(r, c->p, "hess_grad", t / every, host));
    else {
        TR_TRY(tr_calloc(&hu, (size_t)n, sizeof *hu));
        TR_GO(replay_row(r, c->p, "hutch_u", t / every, host));
        TR_GO(replay_row(r, c->p, "hutch_hu", t / every, hu));
        for (int64_t i = 0; i < n; i++) host[i] *= hu[i];
    }
    tr_tensor_write(grad, host);
    rc = opt_curvature(o, c->p, grad, t + 1, false);
done:
    free(hu);
    return rc;
}

static int read_weight(const struct tr_param *p, float *host)
{
    struct tr_tensor by_group, wide;
    if (p->value.dtype != TR_INT8) return tr_tensor_read(&p->value, host), TR_OK;
    by_group = tr_flat_view(&p->value);
    TR_TRY(tr_tensor_arena(&wide, TR_WORKSPACE, TR_F32, 2, by_group.dim, 0));
    tr_kernels()->copy(&wide, &by_group);
    tr_tensor_read(&wide, host);
    tr_tensor_release(&wide);
    return TR_OK;
}

int replay_write(struct replay *r, const struct tr_param *p, int64_t t, float *host)
{
    char *to = NULL;
    int rc;
    TR_GO(replay_path(&to, p->name, "weight"));
    if (t == 0) {
        int64_t all[3] = { r->steps, p->value.dim[0], p->value.dim[1] };
        TR_GO(tr_h5_make(r->out, to, TR_F32, p->value.ndim + 1, all, false));
    }
    TR_GO(read_weight(p, host));
    rc = tr_h5_write_rows(r->out, to, TR_F32, t, 1, host);
done:
    free(to);
    return rc;
}

static int one_update(struct replay *r, struct opt *o, struct recorded *c, int64_t t)
{
    struct tr_tensor grad = { 0 };
    struct tr_param *p = c->p;
    float *host = NULL;
    void *self[2] = { c, r };
    struct opt_given given = { self, get_given };
    int rc;
    TR_GO(tr_calloc(&host, (size_t)tr_count(&p->value), sizeof *host));
    TR_GO(tr_tensor_arena(&grad, TR_GRADIENTS, TR_F32, p->value.ndim, p->value.dim, 0));
    TR_GO(probe(r, o, c, t, OPT_PROBE_HESSIAN, host, &grad));
    TR_GO(replay_row(r, p, "grad", t, host));
    tr_tensor_write(&grad, host);
    TR_GO(opt_update(o, p, &grad, r->lr, t + 1, &given));
    TR_GO(replay_write(r, p, t, host));
    TR_GO(probe(r, o, c, t, OPT_PROBE_LABELS, host, &grad));
done:
    while (c->n_given > 0) tr_tensor_release(&c->given[--c->n_given]);
    tr_tensor_release(&grad);
    free(host);
    return rc;
}

static int count_one(void *self, const char *name, bool is_group) { return ++*(int64_t *)self, TR_OK; }

int recipe_replay(const char *in, const char *out)
{
    struct replay r = { .path = in };
    struct opt *o = NULL;
    struct tr_buf tmp = { 0 };
    int rc;
    TR_GO(tr_h5_open(&r.in, in));
    TR_GO(read_settings(&r));
    TR_GO(tr_h5_list(r.in, "param", count_one, &r.room));
    TR_GO(tr_calloc(&r.param, (size_t)r.room + 1, sizeof *r.param));
    TR_GO(tr_calloc(&r.rec, (size_t)r.room + 1, sizeof *r.rec));
    TR_GO(tr_h5_list(r.in, "param", replay_param, &r));
    if (r.kind->needs != OPT_GRADIENT) TR_GO(replay_blocks(&r));
    struct opt_setup setup = { .entry = r.entry, .n = r.n_entries, .path = in, .seed = 1, .lr = r.lr };
    TR_GO(opt_new(&o, &setup, r.param, r.n));
    TR_GO(tr_buf_printf(&tmp, "%s.tmp", out));
    TR_GO(tr_h5_create(&r.out, tmp.data));
    if (r.kind->needs != OPT_GRADIENT) TR_GO(replay_losses(&r, o));
    for (int64_t t = 0; t < r.steps && r.kind->needs == OPT_GRADIENT; t++)
        for (int64_t i = 0; i < r.n; i++) TR_GO(one_update(&r, o, &r.rec[i], t));
    rc = tr_h5_close(r.out);
    r.out = NULL;
    if (rc == TR_OK && rename(tmp.data, out)) rc = tr_fail(TR_EFAIL, "cannot write '%s'", out);
done:
    if (r.out) tr_h5_close(r.out);
    if (rc != TR_OK && tmp.data) unlink(tmp.data);
    tr_buf_release(&tmp);
    opt_free(o);
    for (int64_t i = 0; i < r.n; i++) tr_tensor_release(&r.param[i].value);
    for (size_t i = 0; i < r.n_entries; i++) {
        free(r.entry[i].section);
        free(r.entry[i].key);
        free(r.entry[i].value);
    }
    free(r.entry);
    free(r.param);
    free(r.rec);
    tr_h5_close(r.in);
    return rc;
}
