/* What a recipe says of optimizers: keys to kinds with their numbers; printed, and explained. */
#include "libtrain/base/status.h"
#include "optim/settings.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { F32, BF16 }; /* of state_dtype */
static const struct tr_option common_options[] = {
    { "name", TR_OPT_TEXT, offsetof(struct opt_common, name), "adamw", 0, 0, NULL, "the optimizer; train help optimizer lists them" },
    { "exclude", TR_OPT_TEXT, offsetof(struct opt_common, exclude), "", 0, 0, NULL, "patterns of parameters that get plain AdamW, separated by commas, e.g. *embed*, *norm*" },
    { "lr_scale", TR_OPT_REAL, offsetof(struct opt_common, lr_scale), "1", 0, 1e9, NULL, "multiplies train.lr, for the parameters of a group" },
    { "decay_vectors", TR_OPT_BOOL, offsetof(struct opt_common, decay_vectors), "false", 0, 0, NULL, "weight decay for norms and biases too" },
    { "state_dtype", TR_OPT_CHOICE, offsetof(struct opt_common, state_dtype), "f32", 0, 0, "f32|bf16|int8", "type of the moments, where the optimizer has them; bf16 is rounded stochastically, int8 has a scale for each block of 256" },
    OPT_END,
};

static const struct tr_option *in_table(const struct tr_option *table, const char *key)
{
    for (; table->name; table++)
        if (!strcmp(table->name, key)) return table;
    return NULL;
}

bool opt_has_key(const char *name, const char *key)
{
    bool any = in_table(common_options, key);
    for (int i = 0; opt_kinds[i]; i++)
        if (!name || opt_kinds[i] == opt_find(name)) any |= in_table(opt_kinds[i]->options, key) != NULL || (opt_kinds[i]->matrices_only && in_table(opt_find(opt_kinds[i]->rest)->options, key));
    return any;
}

/* Keys that only the kind which takes the rest has; whether there are any. */
static bool keys_of_rest(struct tr_option own[64], const struct opt_kind *k)
{
    int n = 0;
    for (const struct tr_option *o = k->matrices_only ? opt_find(k->rest)->options : k->options; o->name && n < 63; o++)
        if (!in_table(k->options, o->name)) own[n++] = *o;
    own[n] = (struct tr_option)OPT_END;
    return n > 0;
}

/* One key to the common table, the kind's, and that of what takes the rest. */
static int set_key(struct opt_setting *s, const struct opt_entry *e)
{
    if (in_table(common_options, e->key)) return tr_options_set(e->section, common_options, &s->common, e->key, e->value, e->place);
    bool for_rest = s->rest && in_table(s->rest->options, e->key);
    if (for_rest) TR_TRY(tr_options_set(e->section, s->rest->options, s->rest_config, e->key, e->value, e->place));
    if (for_rest && !in_table(s->kind->options, e->key)) return TR_OK;
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
    for (int i = 0; opt_kinds[i]; i++)
        if (in_table(opt_kinds[i]->options, e->key))
            return tr_fail(TR_EINPUT, "unknown key '%s.%.60s' (%s): %s has none, it is a key of %s and its like; leave it out (`train help optimizer.%s` lists what there is)", e->section,
                           e->key, at, s->kind->name, opt_kinds[i]->name, s->kind->name);
    for (int i = 0; opt_kinds[i]; i++) { /* a slip in the name of another optimizer's key */
        const char *others[64] = { NULL };
        n = 0;
        for (const struct tr_option *o = opt_kinds[i]->options; o->name && n < 62; o++) others[n++] = o->name;
        if ((near = tr_nearest(e->key, others)))
            return tr_fail(TR_EINPUT, "unknown key '%s.%.60s' (%s): did you mean '%s.%s'? It is a key of %s, not of %s", e->section, e->key, at, e->section, near, opt_kinds[i]->name, s->kind->name);
    }
    return tr_fail(TR_EINPUT, "unknown key '%s.%.60s' (%s): %s has no such key; `train help optimizer.%s` lists them", e->section, e->key, at, s->kind->name, s->kind->name);
}

static void setting_release(struct opt_setting *s)
{
    tr_options_release(common_options, &s->common);
    if (s->config) tr_options_release(s->kind->options, s->config);
    if (s->rest_config) tr_options_release(s->rest->options, s->rest_config);
    free(s->match);
    free(s->config);
    free(s->no_decay);
    free(s->rest_config);
    free(s->rest_no_decay);
    *s = (struct opt_setting){ 0 };
}

static int find_kind(struct opt_setting *s, const char *name, const struct opt_entry *e, const char *path)
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

/* Names of kinds that take moments in bf16, or in 8 bits. */
static int names_of(struct tr_buf *out, bool in_8bit)
{
    for (int i = 0; opt_kinds[i]; i++)
        if (in_8bit ? opt_kinds[i]->in_8bit != NULL : opt_kinds[i]->bf16_moments) TR_TRY(tr_buf_printf(out, "%s%s", out->size ? ", " : "", opt_kinds[i]->name));
    return TR_OK;
}

static int no_such_moments(const struct opt_setting *s, const struct opt_entry *e, bool in_8bit)
{
    struct tr_buf names = { 0 };
    char at[300];
    if (e->place.line > 0) snprintf(at, sizeof at, "%s:%d", e->place.file, e->place.line);
    else snprintf(at, sizeof at, "--set");
    int rc = names_of(&names, in_8bit);
    if (rc == TR_OK)
        rc = tr_fail(TR_EINPUT, "optimizer.state_dtype = %s (%s): %s has no such moments; leave the key out, or choose one of %s", e->value, at, s->kind->name, names.data);
    tr_buf_release(&names);
    return rc;
}

/* The kind with its moments in 8 bits, where that is asked for. */
static int find_moments(struct opt_setting *s, const struct opt_entry *e)
{
    bool bf16 = e && !strcmp(e->value, "bf16"), in_8bit = e && !strcmp(e->value, "int8");
    if (in_8bit && s->kind->in_8bit) s->kind = opt_find(s->kind->in_8bit);
    else if (in_8bit || (bf16 && !s->kind->bf16_moments)) return no_such_moments(s, e, in_8bit);
    return TR_OK;
}

static void set_moments(const struct opt_setting *s, const struct opt_kind *k, void *config)
{
    ((struct opt_base *)config)->moments = k->bf16_moments && s->common.state_dtype == BF16 ? TR_BF16 : TR_F32;
}

int opt_without_decay(void **out, const struct opt_kind *k, const void *config)
{
    TR_TRY(tr_calloc(out, 1, k->config_size));
    memcpy(*out, config, k->config_size);
    ((struct opt_base *)*out)->weight_decay = 0;
    return TR_OK;
}

static bool is_group(const char *section) { return !strncmp(section, "optimizer.group.", 16); }

/* The setting of one section: base keys first (those that its kind knows), then the group's own. */
static int setting_build(struct opt_setting *s, const struct opt_entry *e, size_t n, const char *group, const char *path)
{
    const char *name = "adamw";
    const struct opt_entry *from = NULL, *moments = NULL;
    bool own_kind = false;
    for (size_t i = 0; i < n; i++) {
        bool base = !is_group(e[i].section), mine = group && !strcmp(e[i].section, group);
        if ((base && !own_kind) || mine) {
            if (!strcmp(e[i].key, "name")) name = e[i].value, from = &e[i], own_kind |= mine;
            if (!strcmp(e[i].key, "state_dtype")) moments = &e[i];
            if (mine && !strcmp(e[i].key, "match")) TR_TRY(tr_strdup(&s->match, e[i].value));
        }
    }
    TR_TRY(find_kind(s, name, from, path));
    TR_TRY(find_moments(s, moments));
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
    if (s->rest && s->kind->rest_undecayed) ((struct opt_base *)s->rest_config)->weight_decay = 0;
    if (s->kind->check) TR_TRY(s->kind->check(s->config));
    set_moments(s, s->kind, s->config);
    if (s->rest) set_moments(s, s->rest, s->rest_config);
    TR_TRY(opt_without_decay(&s->no_decay, s->kind, s->config));
    return s->rest ? opt_without_decay(&s->rest_no_decay, s->rest, s->rest_config) : TR_OK;
}

int opt_rank_check(const struct opt_setting *s, int64_t most, const struct opt_entry *e, size_t n)
{
    const struct tr_option *o = in_table(s->kind->options, "rank");
    if (!o || most <= 0) return TR_OK;
    int64_t rank = *(const int64_t *)((const char *)s->config + o->offset);
    for (size_t i = 0; i < n && rank > most; i++)
        if (!strcmp(e[i].key, "rank") && strtoll(e[i].value, NULL, 10) == rank) { /* a default is not a mistake: it counts as the smaller side */
            char at[300];
            if (e[i].place.line > 0) snprintf(at, sizeof at, "%s:%d", e[i].place.file, e[i].place.line);
            else snprintf(at, sizeof at, "--set");
            return tr_fail(TR_EINPUT, "%s.rank = %s (%s): the matrices of %s have at most %" PRId64 " rows or columns on their smaller side; set a rank well below that", e[i].section, e[i].value, at,
                           s->kind->name, most);
        }
    return TR_OK;
}

void opt_settings_release(struct opt_settings *all)
{
    for (size_t i = 0; i < all->n; i++) setting_release(&all->s[i]);
    free(all->s);
    *all = (struct opt_settings){ 0 };
}

int opt_settings_build(struct opt_settings *all, const struct opt_entry *e, size_t n, const char *path)
{
    *all = (struct opt_settings){ 0 };
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
    struct opt_settings all;
    int rc = opt_settings_build(&all, e, n, path);
    opt_settings_release(&all);
    return rc;
}

int opt_print(const struct opt_entry *e, size_t n, struct tr_buf *out)
{
    struct opt_settings all;
    int rc = opt_settings_build(&all, e, n, "recipe");
    if (rc == TR_OK) {
        struct opt_setting *base = &all.s[all.n - 1];
        rc = tr_buf_puts(out, "[optimizer]\n");
        if (rc == TR_OK) rc = tr_options_print(out, common_options, &base->common);
        if (rc == TR_OK) rc = tr_options_print(out, base->kind->options, base->config);
        struct tr_option own[64];
        if (rc == TR_OK && base->rest && keys_of_rest(own, base->kind)) rc = tr_options_print(out, own, base->rest_config);
    }
    for (size_t i = 0; i < n && rc == TR_OK; i++) { /* groups as they were written */
        if (!is_group(e[i].section)) continue;
        if (i == 0 || strcmp(e[i].section, e[i - 1].section)) rc = tr_buf_printf(out, "\n[%s]\n", e[i].section);
        if (rc == TR_OK) rc = tr_buf_printf(out, "%s = \"%s\"\n", e[i].key, e[i].value);
    }
    opt_settings_release(&all);
    return rc;
}

/* ---- help */

static int help_one(struct tr_buf *out, const struct opt_kind *k)
{
    TR_TRY(tr_buf_printf(out, "optimizer.name = %s\n  %s.\n\nRule\n  %s\n\nKeys\n", k->name, k->summary, k->rule));
    TR_TRY(tr_options_help(out, k->options));
    struct tr_option own[64];
    if (keys_of_rest(own, k)) {
        TR_TRY(tr_buf_printf(out, "\nKeys of %s, which takes the rest\n", k->rest));
        TR_TRY(tr_options_help(out, own));
    }
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
    if (rc != TR_OK || !k->low) return rc;
    return tr_buf_printf(out, "\nSums of gradients\n %s With several micro-batches a step and train.clip = 0 gradients are projected first and\n  added up, and sent between ranks, as projections; whole only every update_gap steps, when the\n  subspace is new. grad_norm is then that of the projections.\n", k->low->where);
}

int opt_help(struct tr_buf *out, const char *name)
{
    if (name) {
        struct opt_setting s = { 0 };
        TR_TRY(find_kind(&s, name, NULL, "help"));
        return help_one(out, s.kind);
    }
    for (int i = 0; opt_kinds[i]; i++) TR_TRY(tr_buf_printf(out, "  %-18s %s\n", opt_kinds[i]->name, opt_kinds[i]->summary));
    return tr_buf_puts(out, "\n`train help optimizer.NAME` tells rule, keys, defaults, bytes and source.\n");
}
