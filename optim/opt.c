/* The optimizer of a run: kinds to parameters, their state, who has it. */
#include "libtrain/base/rng.h"
#include "libtrain/base/status.h"
#include "optim/opt_impl.h"
#include <fnmatch.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

double opt_correction(double beta, int64_t t) { return beta > 0 ? -expm1((double)t * log(beta)) : 1; }

static struct tr_noise noise(const struct opt_step *s, uint64_t stream)
{
    return (struct tr_noise){ tr_key(s->seed, TR_RNG_ROUNDING, tr_hash(s->p->name) + stream, (uint64_t)s->t), (uint32_t)(s->row * tr_cols(&s->p->value)) };
}

struct tr_noise opt_rounding(const struct opt_step *s) { return noise(s, 0); }
struct tr_noise opt_moment_rounding(const struct opt_step *s) { return noise(s, 1); }
size_t opt_moment_size(const void *config) { return tr_dtype_size(((const struct opt_base *)config)->moments); }

static bool matches(const char *patterns, const char *name)
{
    for (const char *p = patterns; *p;) {
        size_t n = strcspn(p, ","), from = 0;
        char one[160];
        while (from < n && p[from] == ' ') from++;
        size_t size = n - from;
        while (size && p[from + size - 1] == ' ') size--;
        if (size && size < sizeof one) {
            memcpy(one, p + from, size);
            one[size] = 0;
            if (!fnmatch(one, name, 0)) return true;
        }
        p += n + (p[n] == ',');
    }
    return false;
}

static int choose(struct opt *o, struct item *it, struct tr_param *p)
{
    struct opt_setting *s = &o->all.s[o->all.n - 1];
    for (size_t i = 0; i + 1 < o->all.n; i++)
        if (matches(o->all.s[i].match, p->name)) {
            s = &o->all.s[i];
            break;
        }
    bool vector = p->role == TR_NORM || p->role == TR_BIAS, decay = !vector || s->common.decay_vectors;
    /* A group that names an embedding or head gives it a matrix rule too; vectors never. */
    bool named = s != &o->all.s[o->all.n - 1], fits = named ? p->value.ndim == 2 : p->role == TR_MATRIX;
    bool rest = (s->kind->matrices_only && !fits) || matches(s->common.exclude, p->name);
    if (rest && !s->rest) { /* excluded from a kind that takes everything: AdamW with the keys that it shares */
        s->rest = &opt_adamw;
        TR_TRY(tr_calloc(&s->rest_config, 1, s->rest->config_size));
        TR_TRY(tr_options_default(s->rest->options, s->rest_config));
        *(struct opt_base *)s->rest_config = *(struct opt_base *)s->config;
        TR_TRY(opt_without_decay(&s->rest_no_decay, s->rest, s->rest_config));
    }
    it->p = p;
    it->lr_scale = s->common.lr_scale;
    it->kind = rest ? s->rest : s->kind;
    it->config = rest ? (decay ? s->rest_config : s->rest_no_decay) : decay ? s->config : s->no_decay;
    return tr_calloc(&it->state, 1, it->kind->state_size + 1);
}

static bool has_rows(const struct opt *o, const struct item *it)
{
    return !it->first || it->first[o->comm->rank + 1] > it->first[o->comm->rank];
}

/* A rule that learns from losses and keeps nothing moves all rows on every rank: cheaper than any exchange. */
static bool shared(const struct item *it, const struct opt_setup *setup)
{
    return it->state && (setup->shares_weights || it->kind->needs == OPT_GRADIENT || it->kind->bytes(it->config, tr_rows(&it->p->value), tr_cols(&it->p->value)) > 0);
}

/* Asks which rows each rank has. */
static int deal(struct opt *o, const struct opt_setup *setup)
{
    struct opt_share *share;
    if (!setup->comm) return TR_OK;
    o->comm = setup->comm;
    o->sharers = setup->sharers;
    o->share_at = setup->share_at;
    TR_TRY(tr_calloc(&share, (size_t)o->n, sizeof *share));
    for (int64_t i = 0; i < o->n; i++) {
        struct item *it = &o->item[i];
        if (!shared(it, setup)) continue;
        int64_t rows = tr_rows(&it->p->value);
        share[i] = (struct opt_share){ .bytes = it->kind->bytes(it->config, rows, tr_cols(&it->p->value)), .rows = rows, .by_rows = it->kind->by_rows };
    }
    int rc = setup->deal(setup->self, share, o->n);
    for (int64_t i = 0; i < o->n && rc == TR_OK; i++) {
        struct item *it = &o->item[i];
        if (!shared(it, setup)) continue;
        it->first = share[i].first;
        it->own = *it->p;
        int64_t begin = it->first[o->comm->rank];
        int64_t n = it->first[o->comm->rank + 1] - begin;
        it->own.value = setup->shares_weights || it->p->elsewhere ? it->p->shard : it->p->spread ? tr_comm_rows(&it->p->shard, begin - it->p->shard_begin, n) : tr_comm_rows(&it->p->value, begin, n);
        it->own.value.owner = 0;
    }
    free(share);
    return rc;
}

static bool low_shape(const struct opt *o, const struct item *it, int64_t step, int64_t dim[2])
{
    int64_t low[2];
    if (!o->projects || !it->state || !it->kind->low || (step - 1) % it->kind->low->every(it->config) == 0 ||
        !it->kind->low->shape(it->config, tr_rows(&it->p->value), tr_cols(&it->p->value), low)) return false;
    memcpy(dim, low, sizeof low);
    return true;
}

int opt_item_make(struct opt *o, struct item *it)
{
    if (!it->state || !it->kind->init || it->p->elsewhere) return TR_OK;
    int64_t dim[2];
    if (!has_rows(o, it)) return low_shape(o, it, 2, dim) ? it->kind->low->init(it->config, it->state, it->p) : TR_OK; /* no refresh comes so soon */
    return it->kind->init(it->config, it->state, it->first ? &it->own : it->p);
}

static int move_out(struct opt *o, struct item *it);

/* The largest smaller side of the matrices that take a setting's kind. */
static int64_t smaller_side(const struct opt *o, const struct opt_setting *s)
{
    int64_t most = 0;
    for (int64_t i = 0; i < o->n; i++) {
        const struct item *it = &o->item[i];
        if (!it->state || (it->config != s->config && it->config != s->no_decay)) continue;
        int64_t m = tr_rows(&it->p->value), n = tr_cols(&it->p->value), side = m < n ? m : n;
        if (side > most) most = side;
    }
    return most;
}

int opt_new(struct opt **out, const struct opt_setup *setup, struct tr_param *params, int64_t n)
{
    struct opt *o;
    TR_TRY(tr_calloc(&o, 1, sizeof *o));
    int rc;
    o->seed = setup->seed;
    o->tokens = setup->tokens;
    o->lr = setup->lr;
    o->projects = setup->projects;
    o->leaves = setup->leaves;
    o->self = setup->self;
    TR_GO(opt_settings_build(&o->all, setup->entry, setup->n, setup->path));
    TR_GO(tr_calloc(&o->item, (size_t)n, sizeof *o->item));
    for (int64_t i = 0; i < n; i++) {
        o->n = i + 1;
        if (params[i].trainable) TR_GO(choose(o, &o->item[i], &params[i]));
    }
    TR_GO(opt_check_needs(o, setup->path));
    if (setup->comm && opt_state_moves(o))
        TR_GO(tr_fail(TR_EINPUT, "optimizer.selection = blockwise (%s): its state moves between matrices, which ranks cannot share; set parallel.zero = 0 or optimizer.selection = columns", setup->path));
    for (size_t k = 0; k < o->all.n; k++) TR_GO(opt_rank_check(&o->all.s[k], smaller_side(o, &o->all.s[k]), setup->entry, setup->n));
    TR_GO(deal(o, setup));
    if (setup->file) TR_GO(opt_offload_new(&o->offload, setup->file, n));
    for (int64_t i = 0; i < n; i++) {
        if (!o->item[i].state) continue;
        o->item[i].away = o->item[i].kind->turn != NULL;
        if (o->item[i].away) continue; /* in memory alone, with its turn */
        TR_GO(opt_item_make(o, &o->item[i]));
        TR_GO(move_out(o, &o->item[i]));
    }
    TR_GO(opt_blocks(o));
    TR_GO(opt_begin(o, 1));
    *out = o;
    return TR_OK;
done:
    opt_free(o);
    return rc;
}

/* How a state is visited: shown to a visitor; given back; shown as this rank has it; or, where ranks share it, noted (this
 * rank's), shown as the whole, and taken back (what a restore wrote). */
enum mode { LIST, RELEASE, OWN, NOTE, WHOLE, TAKE };
enum { FIELDS = 16, WORDS = 8 };
struct fields { struct tr_tensor *tensor[FIELDS]; uint64_t words[FIELDS][WORDS]; int n; };
struct opt_lister { struct tr_visitor *v; enum mode mode; struct opt *o; struct item *it; struct fields *own; const struct tr_owned *owned; };
struct name { char text[192]; };

static struct name name_of(const struct opt_lister *l, const char *field)
{
    struct name n;
    snprintf(n.text, sizeof n.text, "optimizer/%s/%s", l->it->p->name, field);
    return n;
}

static int show_tensor(struct opt_lister *l, const char *field, struct tr_tensor *t)
{
    return t->ndim ? l->v->tensor(l->v->self, name_of(l, field).text, t) : TR_OK;
}

/* The first rank that has rows. */
static int root_of(const struct opt *o, const struct item *it)
{
    int root = 0;
    while (root + 1 < o->comm->size && it->first[root + 1] == 0) root++;
    return root;
}

/* A rank's rows of a tensor of the state: the parameter's rows where the rule works by them, else the whole on one rank. */
/* Where state is a stage's, and not dealt, all that share its batches have the same: which of them this is. */
static int holder_of(const struct opt *o, const struct tr_owned *v) { return o->comm && o->comm->size < v->size ? o->sharers->rank : 0; }

static int own_tensor(struct opt_lister *l, const char *field, const struct tr_tensor *t)
{
    const struct item *it = l->it;
    const struct tr_owned *v = l->owned;
    if (!t->ndim || !has_rows(l->o, it)) return TR_OK; /* or what projecting needs alone */
    struct name name = name_of(l, field);
    if (!it->first) return tr_owned_share(v, it - l->o->item, name.text, t);
    const struct tr_comm *c = l->o->comm;
    const int64_t *first = it->first + c->rank;
    bool cut = it->kind->by_rows && t->ndim > 1;
    int64_t begin = cut ? first[0] : 0, whole = cut ? it->first[c->size] : t->dim[0];
    return tr_owned_part(v, it - l->o->item, name.text, t, begin, whole, holder_of(l->o, v), v->size / c->size);
}

static int own_words(struct opt_lister *l, const char *field, const uint64_t *words, int64_t count)
{
    const struct tr_owned *v = l->owned;
    bool mine = l->it->first ? l->o->comm->rank == root_of(l->o, l->it) && holder_of(l->o, v) == 0 : v->rank == 0;
    return v->words(v->self, l->it - l->o->item, name_of(l, field).text, words, mine ? count : 0);
}

/* Gathers a tensor of the state, shows it, and takes back this rank's rows. */
static int whole_tensor(struct opt_lister *l, const char *field, struct tr_tensor *t, struct tr_tensor *own)
{
    int size = l->o->comm->size, rank = l->o->comm->rank, root = root_of(l->o, l->it);
    int64_t *first;
    if (!t->ndim) return TR_OK;
    TR_TRY(tr_calloc(&first, (size_t)size + 1, sizeof *first));
    /* Whole on one rank: the state's rows need not be the parameter's. */
    for (int r = 0; r <= size; r++) first[r] = l->it->kind->by_rows ? l->it->first[r] : r > root ? tr_rows(t) : 0;
    struct tr_tensor mine = tr_comm_rows(t, first[rank], first[rank + 1] - first[rank]);
    bool any = first[rank + 1] > first[rank];
    int rc;
    if (any) TR_GO(tr_tensor_copy(&mine, own));
    TR_GO(tr_comm_gather_rows(l->o->comm, t, NULL, first));
    TR_GO(show_tensor(l, field, t));
    if (any) rc = tr_tensor_copy(own, &mine);
    else if (own->ndim) rc = tr_tensor_copy(own, t); /* what projecting needs, of a state that is elsewhere */
done:
    free(first);
    return rc;
}

int opt_list_tensor(struct opt_lister *l, const char *field, struct tr_tensor *t)
{
    if (l->mode == LIST) return show_tensor(l, field, t);
    if (l->mode == RELEASE) return tr_tensor_release(t), TR_OK;
    if (l->mode == OWN) return own_tensor(l, field, t);
    if (l->own->n == FIELDS) return tr_fail(TR_EFAIL, "the state of an optimizer has more than %d fields", FIELDS);
    int k = l->own->n++;
    if (l->mode == NOTE) l->own->tensor[k] = t;
    return l->mode == WHOLE ? whole_tensor(l, field, t, l->own->tensor[k]) : TR_OK;
}

int opt_list_words(struct opt_lister *l, const char *field, uint64_t *words, int64_t count)
{
    if (l->mode == RELEASE) return TR_OK;
    if (l->mode == LIST) return l->v->words(l->v->self, name_of(l, field).text, words, count);
    if (l->mode == OWN) return own_words(l, field, words, count);
    if (l->own->n == FIELDS || count > WORDS) return tr_fail(TR_EFAIL, "the state of an optimizer has too many fields or words");
    uint64_t *own = l->own->words[l->own->n++];
    if (l->mode == NOTE) memcpy(own, words, (size_t)count * 8);
    if (l->mode == TAKE) memcpy(words, own, (size_t)count * 8);
    if (l->mode != WHOLE) return TR_OK;
    memcpy(words, own, (size_t)count * 8);
    TR_TRY(tr_comm_words(l->o->comm, words, (size_t)count, root_of(l->o, l->it)));
    TR_TRY(l->v->words(l->v->self, name_of(l, field).text, words, count));
    memcpy(own, words, (size_t)count * 8);
    return TR_OK;
}

/* A state that ranks share is listed as the whole that one rank would have: so snapshots do not know the layout. */
static int list_shared(struct opt *o, struct item *it, struct tr_visitor *v)
{
    struct fields own = { .n = 0 };
    struct opt_lister l = { v, NOTE, o, it, &own, NULL };
    void *whole;
    TR_TRY(tr_calloc(&whole, 1, it->kind->state_size + 1));
    int rc;
    TR_GO(it->kind->visit(it->state, &l));
    if (it->kind->init) TR_GO(it->kind->init(it->config, whole, it->p));
    own.n = 0;
    l.mode = WHOLE;
    TR_GO(it->kind->visit(whole, &l));
    own.n = 0;
    l.mode = TAKE;
    rc = it->kind->visit(it->state, &l);
done:
    l.mode = RELEASE;
    it->kind->visit(whole, &l);
    free(whole);
    return rc;
}

static int list_one(struct opt *o, struct item *it, struct tr_visitor *v)
{
    struct opt_lister l = { v, LIST, o, it, NULL, NULL };
    return it->first ? list_shared(o, it, v) : it->kind->visit(it->state, &l);
}

/* The state's tensors of one parameter go to the file where there is one. */
static int move_out(struct opt *o, struct item *it)
{
    struct fields own = { .n = 0 };
    struct opt_lister l = { NULL, NOTE, o, it, &own, NULL };
    struct tr_tensor *t[FIELDS];
    int n = 0;
    if (!o->offload || !it->state || !it->kind->visit) return TR_OK;
    TR_TRY(it->kind->visit(it->state, &l));
    for (int k = 0; k < own.n; k++)
        if (own.tensor[k] && own.tensor[k]->data) t[n++] = own.tensor[k];
    return opt_offload_add(o->offload, it - o->item, t, n);
}

static int bring(struct opt *o, const struct item *it, enum opt_walk walk) { return o->offload ? opt_offload_bring(o->offload, it - o->item, walk) : TR_OK; }
static int away(struct opt *o, const struct item *it, bool changed) { return o->offload ? opt_offload_away(o->offload, it - o->item, changed) : TR_OK; }
int opt_settle(struct opt *o) { return o->offload ? opt_offload_settle(o->offload) : TR_OK; }

int opt_visit_owned(struct opt *o, int64_t i, const struct tr_owned *v)
{
    struct item *it = &o->item[i];
    struct opt_lister l = { NULL, OWN, o, it, NULL, v };
    return it->state && it->kind->visit && !it->away ? it->kind->visit(it->state, &l) : TR_OK;
}

bool opt_state_moves(const struct opt *o)
{
    for (int64_t i = 0; i < o->n; i++) {
        const struct item *it = &o->item[i];
        if (it->state && it->kind->state_moves && it->kind->state_moves(it->config)) return true;
    }
    return false;
}

bool opt_takes_turns(const struct opt *o)
{
    for (int64_t i = 0; i < o->n; i++)
        if (o->item[i].state && o->item[i].kind->turn) return true;
    return false;
}

/* Place among the parameters of the same rule and settings. */
static void place_of(const struct opt *o, const struct item *it, struct opt_step *s)
{
    for (int64_t i = 0; i < o->n; i++) {
        if (!o->item[i].state || o->item[i].kind != it->kind || o->item[i].config != it->config) continue;
        if (&o->item[i] == it) s->member = s->members;
        s->members++;
    }
}

/* The states that are there after so many steps. */
static int begin_restore(struct opt *o, int64_t step)
{
    TR_TRY(opt_begin(o, step));
    for (int64_t i = 0; i < o->n; i++) {
        struct item *it = &o->item[i];
        struct opt_step s = { .p = it->p, .t = step, .seed = o->seed };
        if (!it->state || !it->kind->restoring) continue;
        place_of(o, it, &s);
        TR_TRY(it->kind->restoring(it->config, it->state, &s));
    }
    return TR_OK;
}

int opt_visit(struct opt *o, struct tr_visitor *v)
{
    if (v->step > 0) TR_TRY(begin_restore(o, v->step));
    for (int64_t i = 0; i < o->n; i++) {
        struct item *it = &o->item[i];
        if (!it->state || !it->kind->visit || it->away) continue;
        TR_TRY(bring(o, it, OPT_LIST));
        TR_TRY(list_one(o, it, v));
        TR_TRY(away(o, it, !v->only_reads));
    }
    return opt_settle(o);
}

void opt_item_release(struct opt *o, struct item *it)
{
    struct opt_lister l = { NULL, RELEASE, o, it, NULL, NULL };
    if (it->kind->visit) it->kind->visit(it->state, &l);
}

void opt_free(struct opt *o)
{
    if (!o) return;
    opt_offload_free(o->offload);
    for (int64_t i = 0; o->item && i < o->n; i++)
        if (o->item[i].state) opt_item_release(o, &o->item[i]);
    for (int64_t i = 0; i < o->n; i++) free(o->item[i].state);
    free(o->item);
    opt_settings_release(&o->all);
    free(o);
}

int opt_item_update(struct opt *o, struct item *it, const struct opt_step *s)
{
    TR_TRY(bring(o, it, OPT_STEP));
    TR_TRY(it->kind->update(it->config, it->state, s));
    return away(o, it, true);
}

static struct opt_step step_of(const struct opt *o, struct item *it, struct tr_tensor *grad, double lr, int64_t t)
{
    return (struct opt_step){ .p = it->first ? &it->own : it->p, .grad = grad, .lr = lr * it->lr_scale, .schedule = o->lr > 0 ? lr / o->lr : 1, .t = t, .row = it->first ? it->first[o->comm->rank] : 0, .seed = o->seed,
                              .tokens = o->tokens };
}

int opt_update(struct opt *o, struct tr_param *p, struct tr_tensor *grad, double lr, int64_t step, const struct opt_given *given)
{
    struct item *it = &o->item[p->index];
    struct opt_step s = step_of(o, it, grad, lr, step);
    s.given = given;
    if (!it->state || it->p->frozen) return TR_OK;
    place_of(o, it, &s);
    return opt_item_update(o, it, &s);
}

/* ---- projections in place of gradients */

bool opt_low_shape(const struct opt *o, const struct tr_param *p, int64_t step, int64_t dim[2]) { return low_shape(o, &o->item[p->index], step, dim); }

int64_t opt_low_every(const struct opt *o)
{
    int64_t every = 0, dim[2];
    for (int64_t i = 0; i < o->n; i++) {
        const struct item *it = &o->item[i];
        if (!low_shape(o, it, 2, dim)) continue;
        int64_t gap = it->kind->low->every(it->config);
        if (!every || gap < every) every = gap;
    }
    return every;
}

int opt_project(struct opt *o, struct tr_param *p, struct tr_tensor *low, const struct tr_tensor *grad)
{
    struct item *it = &o->item[p->index];
    TR_TRY(bring(o, it, OPT_ALONE));
    TR_TRY(it->kind->low->project(it->config, it->state, low, grad));
    return away(o, it, false);
}

int opt_update_low(struct opt *o, struct tr_param *p, struct tr_tensor *low, double lr, int64_t step)
{
    struct item *it = &o->item[p->index];
    struct opt_step s = step_of(o, it, low, lr, step);
    s.low = true;
    place_of(o, it, &s);
    return opt_item_update(o, it, &s);
}

int opt_share_low(struct opt *o, struct tr_param *p, int64_t step)
{
    struct item *it = &o->item[p->index];
    struct fields own = { .n = 0 };
    struct opt_lister l = { NULL, NOTE, o, it, &own, NULL };
    int64_t *first, dim[2];
    if (!it->first || low_shape(o, it, step, dim) || !low_shape(o, it, step + 1, dim)) return TR_OK;
    int size = o->sharers->size, root = root_of(o, it) - o->share_at, rc;
    TR_TRY(tr_calloc(&first, (size_t)size + 1, sizeof *first));
    TR_GO(bring(o, it, OPT_ALONE));
    TR_GO(it->kind->low->visit(it->state, &l));
    for (int k = 0; k < own.n; k++) {
        if (!own.tensor[k]->ndim) continue;
        for (int r = 0; r <= size; r++) first[r] = r > root ? tr_rows(own.tensor[k]) : 0;
        TR_GO(tr_comm_gather_rows(o->sharers, own.tensor[k], NULL, first));
    }
    rc = away(o, it, o->sharers->rank != root);
done:
    free(first);
    return rc;
}

int64_t opt_probe_every(const struct opt *o, enum opt_probe probe)
{
    for (int64_t i = 0; i < o->n; i++)
        if (o->item[i].state && o->item[i].kind->probe == probe) return o->item[i].kind->probe_every(o->item[i].config);
    return 0;
}

bool opt_probe_due(const struct opt *o, enum opt_probe probe, int64_t step)
{
    int64_t every = opt_probe_every(o, probe);
    return every && (probe == OPT_PROBE_HESSIAN ? step - 1 : step) % every == 0;
}

double opt_probe_eps(const struct opt *o)
{
    for (int64_t i = 0; i < o->n; i++)
        if (o->item[i].state && o->item[i].kind->probe_eps) return o->item[i].kind->probe_eps(o->item[i].config);
    return 0;
}

int opt_curvature(struct opt *o, struct tr_param *p, struct tr_tensor *grad, int64_t step, bool more)
{
    struct item *it = &o->item[p->index];
    struct opt_step s = step_of(o, it, grad, 0, step);
    s.more = more;
    if (!it->state || !it->kind->curvature) return TR_OK;
    TR_TRY(bring(o, it, OPT_STEP));
    TR_TRY(it->kind->curvature(it->config, it->state, &s));
    return away(o, it, true);
}

size_t opt_state_bytes(const struct opt *o)
{
    size_t bytes = 0;
    for (int64_t i = 0; i < o->n; i++)
        if (o->item[i].state && !o->item[i].away && (!o->item[i].kind->holds || o->item[i].kind->holds(o->item[i].state))) bytes += o->item[i].kind->bytes(o->item[i].config, o->item[i].p->value.ndim == 1 ? 1 : tr_rows(&o->item[i].p->value), tr_cols(&o->item[i].p->value));
    return bytes;
}

const char *opt_kind_of(const struct opt *o, const struct tr_param *p) { return o->item[p->index].state ? o->item[p->index].kind->name : "none"; }
