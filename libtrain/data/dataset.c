#include "libtrain/data/dataset_impl.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/data/tokenizer_impl.h"
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- examples */

int tr_dataset_token(struct tr_reading *r, int32_t id, bool is_target)
{
    struct tr_dataset *d = r->d;
    if (id < 0 || id >= r->vocab)
        return tr_fail(TR_EINPUT, "bad token id %d (%s:%" PRId64 "): the model's vocabulary has %" PRId64 " tokens; use "
            "the tokenizer that belongs to the model", id, r->file, r->line, r->vocab);
    TR_TRY(tr_grow(&d->ids, d->tokens, &d->ids_cap, sizeof *d->ids));
    TR_TRY(tr_grow(&d->is_target, d->tokens, &d->is_target_cap, sizeof *d->is_target));
    d->ids[d->tokens] = id;
    d->is_target[d->tokens++] = is_target;
    return TR_OK;
}

int tr_dataset_add_example(struct tr_reading *r, size_t begin, struct tr_example e)
{
    struct tr_dataset *d = r->d;
    e.begin = (int64_t)begin;
    for (int64_t k = 0; k < e.n; k++) e.counted += tr_example_target(d, &e, k) >= 0;
    if (!e.counted) {
        if (!d->counts.dropped_empty++) {
            r->dropped_line = r->line;
            TR_TRY(tr_strdup(&r->dropped_file, r->file));
        }
        return TR_OK;
    }
    TR_TRY(tr_grow(&d->example, d->examples, &d->examples_cap, sizeof *d->example));
    d->example[d->examples++] = e;
    d->counts.counted += e.counted;
    d->counts.tokens += e.n;
    if (e.n > d->counts.longest) d->counts.longest = e.n;
    return TR_OK;
}

/* Neighbours share a sequence as long as there is room. */
static int make_sequences(struct tr_dataset *d, const struct tr_data_config *c)
{
    int64_t room = 0, used = 0;
    for (size_t i = 0; i < d->examples; i++) {
        const struct tr_example *e = &d->example[i];
        if (i == 0 || !c->pack || e->alone || e->n > room) {
            TR_TRY(tr_grow(&d->first, d->sequences + 1, &d->first_cap, sizeof *d->first));
            d->first[d->sequences++] = (int64_t)i;
            room = e->alone ? 0 : c->sequence;
            used = 0;
        }
        room -= e->n;
        used += e->n;
        if (used > d->longest_sequence) d->longest_sequence = used;
    }
    if (d->sequences) d->first[d->sequences] = (int64_t)d->examples;
    return TR_OK;
}

/* ---- files */

static bool has_ending(const char *path, const char *const *endings)
{
    const char *dot = strrchr(path, '.');
    for (; dot && *endings; endings++)
        if (!strcasecmp(dot, *endings)) return true;
    return false;
}

static const char *const h5_endings[] = { ".h5", ".hdf5", NULL }, *const jsonl_endings[] = { ".jsonl", ".ndjson", ".json", NULL };
static const char *const folder_endings[] = { ".txt", ".jsonl", ".ndjson", ".h5", ".hdf5", NULL };

static int read_one(struct tr_reading *r, const char *path)
{
    bool h5 = has_ending(path, h5_endings);
    r->file = path;
    r->line = 1;
    if (r->d->tokens && h5 != (r->d->targets != NULL))
        return tr_fail(TR_EINPUT, "cannot mix data (%s): HDF5 files and texts need separate runs", path);
    if (h5) return tr_read_h5(r);
    if (!r->t) return tr_fail(TR_EINPUT, "no tokenizer (%s): text needs one; set model.tokenizer to a folder, a "
        "tokenizer.json or bytes", path);
    if (has_ending(path, jsonl_endings) || r->c->format == TR_FORMAT_CHAT || r->c->format == TR_FORMAT_PROMPT)
        return tr_read_jsonl(r);
    return tr_read_text(r);
}

static int read_many(struct tr_reading *r, const char *pattern, const char *path, bool folder)
{
    glob_t g = { 0 };
    int rc = glob(pattern, GLOB_ERR | (folder ? 0 : GLOB_TILDE), NULL, &g), status = TR_OK; /* sorted */
    int64_t files = 0;
    for (size_t i = 0; rc == 0 && status == TR_OK && i < g.gl_pathc; i++) {
        if (tr_is_dir(g.gl_pathv[i]) || (folder && !has_ending(g.gl_pathv[i], folder_endings))) continue;
        status = read_one(r, g.gl_pathv[i]);
        files++;
    }
    globfree(&g);
    if (status == TR_OK && !files) return tr_fail(TR_EINPUT, "no data (%s): there is no such %s; set data.train and "
        "data.valid to what exists", path,
                                                  folder ? ".txt, .jsonl or .h5 file in the folder" : "file");
    return status;
}

static int read_path(struct tr_reading *r, const char *path)
{
    struct tr_buf pattern = { 0 };
    if (!path || !*path) return tr_fail(TR_EINPUT, "no data (data.train): it is empty; set it to a file, folder or glob");
    if (tr_exists(path) && !tr_is_dir(path)) return read_one(r, path);
    if (!tr_is_dir(path)) return read_many(r, path, path, false);
    int rc = TR_OK;
    for (const char *p = path; rc == TR_OK && *p; p++) rc = tr_buf_printf(&pattern, strchr("*?[\\", *p) ? "\\%c" : "%c", *p);
    if (rc == TR_OK) rc = tr_buf_puts(&pattern, "/*");
    if (rc == TR_OK) rc = read_many(r, pattern.data, path, true);
    tr_buf_release(&pattern);
    return rc;
}

/* ---- the whole */

static void say_what_was_left_out(const struct tr_reading *r, const char *path)
{
    const struct tr_data_counts *n = &r->d->counts;
    if (n->dropped_empty) tr_warn("%" PRId64 " example%s of %s without a counted token skipped, the first at "
        "%s:%" PRId64, n->dropped_empty, n->dropped_empty == 1 ? "" : "s", path,
                                  r->dropped_file, r->dropped_line);
    if (n->truncated) tr_warn("%" PRId64 " example%s of %s longer than data.sequence = %" PRId64 " cut", n->truncated,
        n->truncated == 1 ? "" : "s", path, r->c->sequence);
}

static void *fit(void *p, size_t n, size_t size)
{
    void *q = n ? realloc(p, n * size) : NULL;
    return q ? q : p;
}

static void finish(struct tr_dataset *d)
{
    d->ids = fit(d->ids, d->tokens, sizeof *d->ids);
    d->is_target = fit(d->is_target, d->tokens, 1);
    d->example = fit(d->example, d->examples, sizeof *d->example);
    d->first = fit(d->first, d->sequences + 1, sizeof *d->first);
    d->ledger = (int64_t)(d->tokens * (d->targets ? 9 : 5) + d->examples * sizeof *d->example + (d->sequences + 1) * 8);
    tr_mem_count(TR_OTHER, d->ledger); /* not tr_mem_alloc: a dry run reads its data too */
    d->counts.examples = (int64_t)d->examples;
    d->counts.sequences = (int64_t)d->sequences;
    d->hash = tr_hash_bytes((const char *)d->ids, d->tokens * sizeof *d->ids);
    d->hash = d->hash * 31 + tr_hash_bytes((const char *)d->is_target, d->tokens);
    if (d->targets) d->hash = d->hash * 31 + tr_hash_bytes((const char *)d->targets, d->tokens * sizeof *d->targets);
    d->hash = d->hash * 31 + tr_hash_bytes((const char *)d->first, (d->sequences + 1) * sizeof *d->first);
}

int tr_dataset_open(struct tr_dataset **out, const struct tr_data_config *c, const char *path,
    const struct tr_tokenizer *t, int64_t vocab)
{
    struct tr_dataset *d;
    TR_TRY(tr_calloc(&d, 1, sizeof *d));
    struct tr_reading r = { .d = d, .c = c, .t = t, .vocab = vocab, .begin = tr_now() };
    int rc = read_path(&r, path);
    if (rc == TR_OK) rc = make_sequences(d, c);
    if (rc == TR_OK && !d->examples) {
        if (d->counts.dropped_empty) rc = tr_fail(TR_EINPUT, "no data (%s): none of its %" PRId64 " examples has a "
            "counted token; see data.mask_prompt and data.sequence", path, d->counts.dropped_empty);
        else rc = tr_fail(TR_EINPUT, "no data (%s): it holds no example", path);
    }
    if (rc == TR_OK) {
        say_what_was_left_out(&r, path);
        finish(d);
        *out = d;
    } else tr_dataset_free(d);
    free(r.dropped_file);
    return rc;
}

void tr_dataset_free(struct tr_dataset *d)
{
    if (!d) return;
    tr_mem_count(TR_OTHER, -d->ledger);
    free(d->ids);
    free(d->is_target);
    free(d->targets);
    free(d->example);
    free(d->first);
    free(d);
}

struct tr_data_counts tr_dataset_counts(const struct tr_dataset *d) { return d->counts; }

int tr_dataset_example(const struct tr_dataset *d, int64_t i, const int32_t **ids, const uint8_t **counted, int64_t *n)
{
    if (i < 0 || i >= (int64_t)d->examples) return tr_fail(TR_EFAIL, "no example %" PRId64 " (data): there are %zu", i,
        d->examples);
    const struct tr_example *e = &d->example[i];
    *ids = d->ids + e->begin;
    *counted = d->is_target + e->begin;
    *n = e->n;
    return TR_OK;
}
