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

struct item { const struct opt_kind *kind; const void *config; void *state; struct tr_param *p; };
struct opt { struct settings all; struct item *item; int64_t n; uint64_t seed; };

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
    TR_TRY(tr_calloc(&it->state, 1, it->kind->state_size + 1));
    return it->kind->init ? it->kind->init(it->config, it->state, p) : TR_OK;
}

int opt_new(struct opt **out, const struct opt_setup *setup, struct tr_param *params, int64_t n)
{
    struct opt *o;
    TR_TRY(tr_calloc(&o, 1, sizeof *o));
    int rc;
    o->seed = setup->seed;
    TR_GO(settings_build(&o->all, setup->entry, setup->n, setup->path));
    TR_GO(tr_calloc(&o->item, (size_t)n, sizeof *o->item));
    for (int64_t i = 0; i < n; i++) {
        o->n = i + 1;
        if (params[i].trainable) TR_GO(choose(o, &o->item[i], &params[i]));
    }
    *out = o;
    return TR_OK;
done:
    opt_free(o);
    return rc;
}

struct opt_lister { struct tr_visitor *v; const char *param; bool release; };

int opt_list_tensor(struct opt_lister *l, const char *field, struct tr_tensor *t)
{
    if (l->release) {
        tr_tensor_release(t);
        return TR_OK;
    }
    if (!t->ndim) return TR_OK;
    char name[192];
    snprintf(name, sizeof name, "optimizer/%s/%s", l->param, field);
    return l->v->tensor(l->v->self, name, t);
}

int opt_list_words(struct opt_lister *l, const char *field, uint64_t *words, int64_t count)
{
    if (l->release) return TR_OK;
    char name[192];
    snprintf(name, sizeof name, "optimizer/%s/%s", l->param, field);
    return l->v->words(l->v->self, name, words, count);
}

static int list_all(struct opt *o, struct tr_visitor *v, bool release)
{
    for (int64_t i = 0; i < o->n; i++) {
        struct item *it = &o->item[i];
        struct opt_lister l = { v, it->p ? it->p->name : "", release };
        if (it->state && it->kind->visit) TR_TRY(it->kind->visit(it->state, &l));
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
    struct opt_step s = { .p = p, .grad = grad, .lr = lr, .t = step, .seed = o->seed, .given = given };
    return it->state ? it->kind->update(it->config, it->state, &s) : TR_OK;
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
