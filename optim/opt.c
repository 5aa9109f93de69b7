/* The optimizer of a run: keys to kinds, kinds to parameters. */
#include "libtrain/base/rng.h"
#include "libtrain/base/status.h"
#include "optim/kinds.h"
#include <fnmatch.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

double opt_correction(double beta, int64_t t) { return beta > 0 ? -expm1((double)t * log(beta)) : 1; }

/* ---- keys that every kind has */

struct common { char *name, *exclude; bool decay_vectors; int state_dtype; };

static const struct tr_option common_options[] = {
    { "name", TR_OPT_TEXT, offsetof(struct common, name), "adamw", 0, 0, NULL, "the optimizer; train help optimizer lists them" },
    { "exclude", TR_OPT_TEXT, offsetof(struct common, exclude), "", 0, 0, NULL, "patterns of parameters that get plain AdamW, separated by commas, e.g. *embed*, *norm*" },
    { "decay_vectors", TR_OPT_BOOL, offsetof(struct common, decay_vectors), "false", 0, 0, NULL, "weight decay for norms and biases too" },
    { "state_dtype", TR_OPT_CHOICE, offsetof(struct common, state_dtype), "f32", 0, 0, "f32", "type of the moments" },
    OPT_END,
};

/* A configuration in use: of the whole run, of its `rest`, or of a group. */
struct setting {
    char *match;                  /* patterns; NULL for the base */
    struct common common;
    const struct opt_kind *kind;
    void *config, *no_decay;      /* the same without weight decay, for vectors */
    const struct opt_kind *rest;
    void *rest_config, *rest_no_decay;
};

static const struct tr_option *in_table(const struct tr_option *table, const char *key)
{
    for (; table->name; table++)
        if (!strcmp(table->name, key)) return table;
    return NULL;
}

/* One key to the common table or the kind's; other kinds' keys (for `rest`) may be passed over. */
static int set_key(struct setting *s, const struct opt_entry *e)
{
    if (in_table(common_options, e->key)) return tr_options_set(e->section, common_options, &s->common, e->key, e->value, e->place);
    if (s->rest && in_table(s->rest->options, e->key)) TR_TRY(tr_options_set(e->section, s->rest->options, s->rest_config, e->key, e->value, e->place));
    if (in_table(s->kind->options, e->key)) return tr_options_set(e->section, s->kind->options, s->config, e->key, e->value, e->place);
    const char *names[64] = { NULL };
    int n = 0;
    for (const struct tr_option *o = common_options; o->name; o++) names[n++] = o->name;
    for (const struct tr_option *o = s->kind->options; o->name && n < 62; o++) names[n++] = o->name;
    const char *near = tr_nearest(e->key, names);
    char at[300];
    if (e->place.line > 0) snprintf(at, sizeof at, "%s:%d", e->place.file, e->place.line);
    else snprintf(at, sizeof at, "--set");
    if (near) return tr_fail(TR_EINPUT, "unknown key '%s.%.60s' (%s): did you mean '%s.%s'?", e->section, e->key, at, e->section, near);
    for (int i = 0; opt_kinds[i]; i++) { /* a slip in the name of another optimizer's key */
        const char *others[64] = { NULL };
        n = 0;
        for (const struct tr_option *o = opt_kinds[i]->options; o->name && n < 62; o++) others[n++] = o->name;
        if ((near = tr_nearest(e->key, others)))
            return tr_fail(TR_EINPUT, "unknown key '%s.%.60s' (%s): did you mean '%s.%s'? It is a key of %s, not of %s", e->section, e->key, at, e->section, near, opt_kinds[i]->name, s->kind->name);
    }
    return tr_fail(TR_EINPUT, "unknown key '%s.%.60s' (%s): %s has no such key; `train help optimizer.%s` lists them", e->section, e->key, at, s->kind->name, s->kind->name);
}

static void setting_release(struct setting *s)
{
    tr_options_release(common_options, &s->common);
    if (s->config) tr_options_release(s->kind->options, s->config);
    if (s->rest_config) tr_options_release(s->rest->options, s->rest_config);
    free(s->match);
    free(s->config);
    free(s->no_decay);
    free(s->rest_config);
    free(s->rest_no_decay);
    *s = (struct setting){ 0 };
}

static int find_kind(struct setting *s, const char *name, const struct opt_entry *e, const char *path)
{
    s->kind = opt_find(name);
    if (s->kind) return TR_OK;
    const char *names[128] = { NULL };
    for (int i = 0; opt_kinds[i] && i < 126; i++) names[i] = opt_kinds[i]->name;
    const char *near = tr_nearest(name, names);
    char at[300];
    if (e && e->place.line > 0) snprintf(at, sizeof at, "%s:%d", e->place.file, e->place.line);
    else snprintf(at, sizeof at, "%s", e ? "--set" : path);
    return tr_fail(TR_EINPUT, "unknown optimizer '%.60s' (%s): %s%s%s", name, at, near ? "did you mean '" : "`train help optimizer` lists them", near ? near : "", near ? "'?" : "");
}

/* A copy whose decay is 0. Texts stay the original's. */
static int without_decay(void **out, const struct opt_kind *k, const void *config)
{
    TR_TRY(tr_calloc(out, 1, k->config_size));
    memcpy(*out, config, k->config_size);
    ((struct opt_base *)*out)->weight_decay = 0;
    return TR_OK;
}

static bool is_group(const char *section) { return !strncmp(section, "optimizer.group.", 16); }

/* The setting of one section: base keys first (those that its kind knows), then the group's own. */
static int setting_build(struct setting *s, const struct opt_entry *e, size_t n, const char *group, const char *path)
{
    const char *name = "adamw";
    const struct opt_entry *from = NULL;
    bool own_kind = false;
    for (size_t i = 0; i < n; i++) {
        bool base = !is_group(e[i].section), mine = group && !strcmp(e[i].section, group);
        if ((base && !own_kind) || mine) {
            if (!strcmp(e[i].key, "name")) name = e[i].value, from = &e[i], own_kind |= mine;
            if (mine && !strcmp(e[i].key, "match")) TR_TRY(tr_strdup(&s->match, e[i].value));
        }
    }
    TR_TRY(find_kind(s, name, from, path));
    TR_TRY(tr_options_default(common_options, &s->common));
    TR_TRY(tr_calloc(&s->config, 1, s->kind->config_size));
    TR_TRY(tr_options_default(s->kind->options, s->config));
    if (s->kind->matrices_only) {
        s->rest = opt_find(s->kind->rest);
        TR_TRY(tr_calloc(&s->rest_config, 1, s->rest->config_size));
        TR_TRY(tr_options_default(s->rest->options, s->rest_config));
    }
    if (group && !s->match) return tr_fail(TR_EINPUT, "section [%s] (%s): it has no key 'match'; give the patterns of its parameters", group, path);
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < n; i++) {
            bool base = !is_group(e[i].section), mine = group && !strcmp(e[i].section, group);
            if (pass == 0 ? !base : !mine) continue;
            if (mine && !strcmp(e[i].key, "match")) continue;
            if (group && pass == 0 && !in_table(common_options, e[i].key) && !in_table(s->kind->options, e[i].key)) continue; /* the group has another kind */
            TR_TRY(set_key(s, &e[i]));
        }
    if (s->kind->check) TR_TRY(s->kind->check(s->config));
    TR_TRY(without_decay(&s->no_decay, s->kind, s->config));
    return s->rest ? without_decay(&s->rest_no_decay, s->rest, s->rest_config) : TR_OK;
}

struct settings { struct setting *s; size_t n; };   /* groups in order, the base last */

static void settings_release(struct settings *all)
{
    for (size_t i = 0; i < all->n; i++) setting_release(&all->s[i]);
    free(all->s);
    *all = (struct settings){ 0 };
}

static int settings_build(struct settings *all, const struct opt_entry *e, size_t n, const char *path)
{
    *all = (struct settings){ 0 };
    TR_TRY(tr_calloc(&all->s, n + 1, sizeof *all->s));
    for (size_t i = 0; i < n; i++) {
        bool seen = !is_group(e[i].section);
        for (size_t k = 0; k < i && !seen; k++) seen = !strcmp(e[k].section, e[i].section);
        if (!seen) TR_TRY(setting_build(&all->s[all->n++], e, n, e[i].section, path));
    }
    return setting_build(&all->s[all->n++], e, n, NULL, path);
}

int opt_check(const struct opt_entry *e, size_t n, const char *path)
{
    struct settings all;
    int rc = settings_build(&all, e, n, path);
    settings_release(&all);
    return rc;
}

int opt_print(const struct opt_entry *e, size_t n, struct tr_buf *out)
{
    struct settings all;
    int rc = settings_build(&all, e, n, "recipe");
    if (rc == TR_OK) {
        struct setting *base = &all.s[all.n - 1];
        rc = tr_buf_puts(out, "[optimizer]\n");
        if (rc == TR_OK) rc = tr_options_print(out, common_options, &base->common);
        if (rc == TR_OK) rc = tr_options_print(out, base->kind->options, base->config);
    }
    for (size_t i = 0; i < n && rc == TR_OK; i++) { /* groups as they were written */
        if (!is_group(e[i].section)) continue;
        if (i == 0 || strcmp(e[i].section, e[i - 1].section)) rc = tr_buf_printf(out, "\n[%s]\n", e[i].section);
        if (rc == TR_OK) rc = tr_buf_printf(out, "%s = \"%s\"\n", e[i].key, e[i].value);
    }
    settings_release(&all);
    return rc;
}

/* ---- the optimizer of a run */

/* first: rows of each rank, NULL where all is here; then `own` is this rank's rows and p the whole. */
struct item { const struct opt_kind *kind; const void *config; void *state; struct tr_param *p; const int64_t *first; struct tr_param own; };
struct opt { struct settings all; struct item *item; int64_t n; uint64_t seed; double tokens; struct tr_comm *comm; };

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
    struct setting *s = &o->all.s[o->all.n - 1];
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
        ((struct opt_base *)s->rest_config)->weight_decay = ((struct opt_base *)s->config)->weight_decay;
        TR_TRY(without_decay(&s->rest_no_decay, s->rest, s->rest_config));
    }
    it->p = p;
    it->kind = rest ? s->rest : s->kind;
    it->config = rest ? (decay ? s->rest_config : s->rest_no_decay) : decay ? s->config : s->no_decay;
    return tr_calloc(&it->state, 1, it->kind->state_size + 1);
}

static bool has_rows(const struct opt *o, const struct item *it)
{
    return !it->first || it->first[o->comm->rank + 1] > it->first[o->comm->rank];
}

/* Asks which rows each rank has. */
static int deal(struct opt *o, const struct opt_setup *setup)
{
    struct opt_share *share;
    if (!setup->comm) return TR_OK;
    o->comm = setup->comm;
    TR_TRY(tr_calloc(&share, (size_t)o->n, sizeof *share));
    for (int64_t i = 0; i < o->n; i++) {
        struct item *it = &o->item[i];
        if (!it->state) continue;
        int64_t rows = tr_rows(&it->p->value);
        share[i] = (struct opt_share){ .bytes = it->kind->bytes(it->config, rows, tr_cols(&it->p->value)), .rows = rows, .by_rows = it->kind->by_rows };
    }
    int rc = setup->deal(setup->self, share, o->n);
    for (int64_t i = 0; i < o->n && rc == TR_OK; i++) {
        struct item *it = &o->item[i];
        if (!it->state) continue;
        it->first = share[i].first;
        it->own = *it->p;
        int64_t begin = it->first[o->comm->rank];
        it->own.value = tr_comm_rows(&it->p->value, begin, it->first[o->comm->rank + 1] - begin);
    }
    free(share);
    return rc;
}

static int make_state(struct opt *o, struct item *it)
{
    return it->state && it->kind->init && has_rows(o, it) ? it->kind->init(it->config, it->state, it->first ? &it->own : it->p) : TR_OK;
}

int opt_new(struct opt **out, const struct opt_setup *setup, struct tr_param *params, int64_t n)
{
    struct opt *o;
    TR_TRY(tr_calloc(&o, 1, sizeof *o));
    int rc;
    o->seed = setup->seed;
    o->tokens = setup->tokens;
    TR_GO(settings_build(&o->all, setup->entry, setup->n, setup->path));
    TR_GO(tr_calloc(&o->item, (size_t)n, sizeof *o->item));
    for (int64_t i = 0; i < n; i++) {
        o->n = i + 1;
        if (params[i].trainable) TR_GO(choose(o, &o->item[i], &params[i]));
    }
    TR_GO(deal(o, setup));
    for (int64_t i = 0; i < n; i++) TR_GO(make_state(o, &o->item[i]));
    *out = o;
    return TR_OK;
done:
    opt_free(o);
    return rc;
}

/* How a state is visited: shown to a visitor; given back; or, where ranks share it, noted (this rank's), shown as the whole,
 * and taken back (what a restore wrote). */
enum mode { LIST, RELEASE, NOTE, WHOLE, TAKE };
enum { FIELDS = 16, WORDS = 8 };
struct fields { struct tr_tensor *tensor[FIELDS]; uint64_t words[FIELDS][WORDS]; int n; };
struct opt_lister { struct tr_visitor *v; enum mode mode; struct opt *o; struct item *it; struct fields *own; };

static int show_tensor(struct opt_lister *l, const char *field, struct tr_tensor *t)
{
    char name[192];
    if (!t->ndim) return TR_OK;
    snprintf(name, sizeof name, "optimizer/%s/%s", l->it->p->name, field);
    return l->v->tensor(l->v->self, name, t);
}

/* The first rank that has rows. */
static int root_of(const struct opt_lister *l)
{
    int root = 0;
    while (root + 1 < l->o->comm->size && l->it->first[root + 1] == 0) root++;
    return root;
}

/* Any element type, through host memory a few rows at a time. */
static int copy_rows(struct tr_tensor *to, const struct tr_tensor *from)
{
    int64_t rows = tr_rows(from), each = (1 << 20) / ((int64_t)tr_dtype_size(from->dtype) * (tr_cols(from) + 1)) + 1;
    size_t size = (size_t)(each * tr_cols(from)) * tr_dtype_size(from->dtype);
    void *host;
    TR_TRY(tr_mem_alloc(&host, size, TR_COMMUNICATION));
    for (int64_t at = 0; at < rows; at += each) {
        int64_t n = rows - at < each ? rows - at : each;
        struct tr_tensor a = tr_comm_rows(from, at, n), b = tr_comm_rows(to, at, n);
        tr_tensor_read(&a, host);
        tr_tensor_write(&b, host);
    }
    tr_mem_free(host, size, TR_COMMUNICATION);
    return TR_OK;
}

/* Gathers a tensor of the state, shows it, and takes back this rank's rows. */
static int whole_tensor(struct opt_lister *l, const char *field, struct tr_tensor *t, struct tr_tensor *own)
{
    int size = l->o->comm->size, rank = l->o->comm->rank, root = root_of(l);
    int64_t *first;
    if (!t->ndim) return TR_OK;
    TR_TRY(tr_calloc(&first, (size_t)size + 1, sizeof *first));
    /* Whole on one rank: the state's rows need not be the parameter's. */
    for (int r = 0; r <= size; r++) first[r] = l->it->kind->by_rows ? l->it->first[r] : r > root ? tr_rows(t) : 0;
    struct tr_tensor mine = tr_comm_rows(t, first[rank], first[rank + 1] - first[rank]);
    bool any = first[rank + 1] > first[rank];
    int rc;
    if (any) TR_GO(copy_rows(&mine, own));
    TR_GO(tr_comm_gather_rows(l->o->comm, t, first));
    TR_GO(show_tensor(l, field, t));
    if (any) rc = copy_rows(own, &mine);
done:
    free(first);
    return rc;
}

int opt_list_tensor(struct opt_lister *l, const char *field, struct tr_tensor *t)
{
    if (l->mode == LIST) return show_tensor(l, field, t);
    if (l->mode == RELEASE) return tr_tensor_release(t), TR_OK;
    if (l->own->n == FIELDS) return tr_fail(TR_EFAIL, "the state of an optimizer has more than %d fields", FIELDS);
    int k = l->own->n++;
    if (l->mode == NOTE) l->own->tensor[k] = t;
    return l->mode == WHOLE ? whole_tensor(l, field, t, l->own->tensor[k]) : TR_OK;
}

int opt_list_words(struct opt_lister *l, const char *field, uint64_t *words, int64_t count)
{
    char name[192];
    if (l->mode == RELEASE) return TR_OK;
    snprintf(name, sizeof name, "optimizer/%s/%s", l->it->p->name, field);
    if (l->mode == LIST) return l->v->words(l->v->self, name, words, count);
    if (l->own->n == FIELDS || count > WORDS) return tr_fail(TR_EFAIL, "the state of an optimizer has too many fields or words");
    uint64_t *own = l->own->words[l->own->n++];
    if (l->mode == NOTE) memcpy(own, words, (size_t)count * 8);
    if (l->mode == TAKE) memcpy(words, own, (size_t)count * 8);
    if (l->mode != WHOLE) return TR_OK;
    memcpy(words, own, (size_t)count * 8);
    TR_TRY(tr_comm_words(l->o->comm, words, (size_t)count, root_of(l)));
    TR_TRY(l->v->words(l->v->self, name, words, count));
    memcpy(own, words, (size_t)count * 8);
    return TR_OK;
}

/* A state that ranks share is listed as the whole that one rank would have: so snapshots do not know the layout. */
static int list_shared(struct opt *o, struct item *it, struct tr_visitor *v)
{
    struct fields own = { .n = 0 };
    struct opt_lister l = { v, NOTE, o, it, &own };
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

static int list_all(struct opt *o, struct tr_visitor *v, bool release)
{
    for (int64_t i = 0; i < o->n; i++) {
        struct item *it = &o->item[i];
        struct opt_lister l = { v, release ? RELEASE : LIST, o, it, NULL };
        if (!it->state || !it->kind->visit) continue;
        TR_TRY(it->first && !release ? list_shared(o, it, v) : it->kind->visit(it->state, &l));
    }
    return TR_OK;
}

int opt_visit(struct opt *o, struct tr_visitor *v) { return list_all(o, v, false); }

void opt_free(struct opt *o)
{
    if (!o) return;
    if (o->item) list_all(o, NULL, true);
    for (int64_t i = 0; i < o->n; i++) free(o->item[i].state);
    free(o->item);
    settings_release(&o->all);
    free(o);
}

int opt_update(struct opt *o, struct tr_param *p, struct tr_tensor *grad, double lr, int64_t step, const struct opt_given *given)
{
    struct item *it = &o->item[p->index];
    struct opt_step s = { .p = it->first ? &it->own : p, .grad = grad, .lr = lr, .t = step, .seed = o->seed, .tokens = o->tokens, .given = given };
    return it->state ? it->kind->update(it->config, it->state, &s) : TR_OK;
}

int64_t opt_probe_every(const struct opt *o)
{
    for (int64_t i = 0; i < o->n; i++)
        if (o->item[i].state && o->item[i].kind->probe_every) return o->item[i].kind->probe_every(o->item[i].config);
    return 0;
}

int opt_curvature(struct opt *o, struct tr_param *p, struct tr_tensor *grad, int64_t step)
{
    struct item *it = &o->item[p->index];
    struct opt_step s = { .p = p, .grad = grad, .t = step, .seed = o->seed, .tokens = o->tokens };
    return it->state && it->kind->curvature ? it->kind->curvature(it->config, it->state, &s) : TR_OK;
}

size_t opt_state_bytes(const struct opt *o)
{
    size_t bytes = 0;
    for (int64_t i = 0; i < o->n; i++)
        if (o->item[i].state) bytes += o->item[i].kind->bytes(o->item[i].config, o->item[i].p->value.ndim == 1 ? 1 : tr_rows(&o->item[i].p->value), tr_cols(&o->item[i].p->value));
    return bytes;
}

const char *opt_kind_of(const struct opt *o, const struct tr_param *p) { return o->item[p->index].state ? o->item[p->index].kind->name : "none"; }

/* ---- help */

static int help_one(struct tr_buf *out, const struct opt_kind *k)
{
    TR_TRY(tr_buf_printf(out, "optimizer.name = %s\n  %s.\n\nRule\n  %s\n\nKeys\n", k->name, k->summary, k->rule));
    TR_TRY(tr_options_help(out, k->options));
    TR_TRY(tr_buf_puts(out, "\nKeys of every optimizer\n"));
    TR_TRY(tr_options_help(out, common_options));
    void *config;
    TR_TRY(tr_calloc(&config, 1, k->config_size));
    int rc = tr_options_default(k->options, config);
    if (rc == TR_OK)
        rc = tr_buf_printf(out, "\nState of a 4096 x 11008 matrix: %zu bytes (weights in f32: %d)\n%s%s%s\nSource\n  %s\n", k->bytes(config, 4096, 11008), 4 * 4096 * 11008,
                           k->matrices_only ? "Embeddings, output head, norms and biases take " : "", k->matrices_only ? k->rest : "", k->matrices_only ? ".\n" : "", k->source);
    tr_options_release(k->options, config);
    free(config);
    return rc;
}

int opt_help(struct tr_buf *out, const char *name)
{
    if (name) {
        struct setting s = { 0 };
        TR_TRY(find_kind(&s, name, NULL, "help"));
        return help_one(out, s.kind);
    }
    for (int i = 0; opt_kinds[i]; i++) TR_TRY(tr_buf_printf(out, "  %-18s %s\n", opt_kinds[i]->name, opt_kinds[i]->summary));
    return tr_buf_puts(out, "\n`train help optimizer.NAME` tells rule, keys, defaults, bytes and source.\n");
}
