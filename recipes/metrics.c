#include "recipes/metrics.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROW = 1024 };   /* bytes of a line that is written twice, spaces included: more than any row */

struct metrics { FILE *f; char *path; off_t at; size_t room; /* a row that will be written once more: where, and the bytes kept for it */ };

/* The line with spaces up to `room` bytes, then a newline. */
static int print_row(FILE *f, const struct metrics_row *r, size_t room)
{
    json_t *o = json_object(), *m = json_object();
    json_object_set_new(o, "step", json_integer(r->step));
    json_object_set_new(o, "loss", json_real(r->loss));
    json_object_set_new(o, "lr", json_real(r->lr));
    json_object_set_new(o, "grad_norm", json_real(r->grad_norm));
    json_object_set_new(o, "tokens", json_integer(r->tokens));
    json_object_set_new(o, "tokens_per_s", json_real(r->tokens_per_s));
    json_object_set_new(o, "step_s", json_real(r->step_s));
    json_object_set_new(o, "checkpoint_block_s", json_real(r->checkpoint_block_s));
    for (int c = 0; c < TR_CATEGORIES; c++) json_object_set_new(m, tr_category_name((enum tr_category)c), json_integer((json_int_t)r->memory.now[c]));
    json_object_set_new(m, "peak", json_integer((json_int_t)r->memory.peak));
    json_object_set_new(m, "peak_rss", json_integer((json_int_t)r->peak_rss));
    json_object_set_new(o, "memory", m);
    if (r->ranks > 1) {
        json_object_set_new(o, "ranks", json_integer(r->ranks));
        json_object_set_new(o, "sent", json_integer(r->sent));
        json_object_set_new(o, "wait_s", json_real(r->wait_s));
        json_object_set_new(o, "memory_ranks", json_pack("{s:[I,I],s:[I,I]}", "peak", (json_int_t)r->peaks[0], (json_int_t)r->peaks[1],
                                                         "peak_rss", (json_int_t)r->rsss[0], (json_int_t)r->rsss[1]));
    }
    if (!isnan(r->valid_loss)) json_object_set_new(o, "valid_loss", json_real(r->valid_loss));
    char *text = json_dumps(o, JSON_COMPACT);
    int bad = !text || fprintf(f, "%-*s\n", (int)room, text) < 0;
    free(text);
    json_decref(o);
    return bad;
}

static double real(const json_t *o, const char *key, double fallback)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : fallback;
}

/* One line to a row; false when it is none (a line cut by a crash). */
static bool parse_row(struct metrics_row *r, const char *line, size_t n)
{
    json_t *o = json_loadb(line, n, 0, NULL);
    const json_t *m = json_object_get(o, "memory");
    bool ok = json_is_integer(json_object_get(o, "step")) && json_is_object(m);
    if (ok) {
        *r = (struct metrics_row){ .step = (int64_t)real(o, "step", 0), .tokens = (int64_t)real(o, "tokens", 0), .loss = real(o, "loss", NAN), .lr = real(o, "lr", 0),
            .grad_norm = real(o, "grad_norm", 0), .tokens_per_s = real(o, "tokens_per_s", 0), .step_s = real(o, "step_s", 0),
            .checkpoint_block_s = real(o, "checkpoint_block_s", 0), .valid_loss = real(o, "valid_loss", NAN), .peak_rss = (size_t)real(m, "peak_rss", 0) };
        r->ranks = (int)real(o, "ranks", 1);
        r->sent = (int64_t)real(o, "sent", 0);
        r->wait_s = real(o, "wait_s", 0);
        r->memory.peak = (size_t)real(m, "peak", 0);
        for (int c = 0; c < TR_CATEGORIES; c++) r->memory.now[c] = (size_t)real(m, tr_category_name((enum tr_category)c), 0);
    }
    json_decref(o);
    return ok;
}

int metrics_read(struct metrics_row **rows, size_t *n, const char *folder)
{
    char *path;
    struct tr_buf text = { 0 };
    size_t cap = 0;
    *rows = NULL;
    *n = 0;
    TR_TRY(tr_path_join(&path, folder, "metrics.jsonl"));
    int rc = tr_read_file(&text, path);
    for (size_t at = 0; rc == TR_OK && at < text.size;) {
        const char *end = memchr(text.data + at, '\n', text.size - at);
        size_t size = end ? (size_t)(end - text.data) - at : text.size - at;
        struct metrics_row r;
        if (end && parse_row(&r, text.data + at, size)) {
            while (*n && (*rows)[*n - 1].step >= r.step) --*n; /* a resumed run wrote this step again */
            rc = tr_grow(rows, *n, &cap, sizeof **rows);
            if (rc == TR_OK) (*rows)[(*n)++] = r;
        }
        at += size + 1;
    }
    tr_buf_release(&text);
    free(path);
    return rc;
}

/* Rewrites the file with the lines up to `after`, atomically. */
static int truncate_after(const char *folder, const char *path, int64_t after)
{
    struct metrics_row *rows = NULL;
    size_t n = 0;
    struct tr_tmpfile t = { 0 };
    int rc = TR_OK;
    if (after > 0 && tr_exists(path)) TR_GO(metrics_read(&rows, &n, folder));
    TR_GO(tr_tmpfile_open(&t, path));
    for (size_t i = 0; i < n; i++)
        if (rows[i].step <= after) print_row(t.f, &rows[i], 0);
    rc = tr_tmpfile_commit(&t);
done:
    tr_tmpfile_release(&t);
    free(rows);
    return rc;
}

int metrics_open(struct metrics **out, const char *folder, int64_t after)
{
    struct metrics *m;
    TR_TRY(tr_calloc(&m, 1, sizeof *m));
    int rc;
    TR_GO(tr_path_join(&m->path, folder, "metrics.jsonl"));
    TR_GO(truncate_after(folder, m->path, after));
    m->f = fopen(m->path, "r+");
    if (!m->f || fseeko(m->f, 0, SEEK_END)) TR_GO(tr_fail(TR_EFAIL, "cannot write '%s': %s", m->path, strerror(errno)));
    *out = m;
    return TR_OK;
done:
    metrics_close(m);
    return rc;
}

int metrics_write(struct metrics *m, const struct metrics_row *row, bool again)
{
    size_t room = m->room;
    if (room && fseeko(m->f, m->at, SEEK_SET)) return tr_fail(TR_EFAIL, "cannot write '%s': %s; the newest snapshot is whole", m->path, strerror(errno));
    m->at = ftello(m->f);
    if (again) room = ROW;
    m->room = again ? ROW : 0;
    if (print_row(m->f, row, room) || fflush(m->f)) return tr_fail(TR_EFAIL, "cannot write '%s': %s; the newest snapshot is whole", m->path, strerror(errno));
    return TR_OK;
}

void metrics_close(struct metrics *m)
{
    if (!m) return;
    if (m->f) fclose(m->f);
    free(m->path);
    free(m);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int metrics_sum_up(struct metrics_sum *out, const struct metrics_row *rows, size_t n)
{
    struct metrics_sum s = { NAN, NAN, NAN, NAN, NAN, NAN, 0, 0, 0, 0 };
    *out = s;
    if (n == 0) return TR_OK;
    double *speed, sum = 0;
    size_t tail = (n + 9) / 10, counted = 0;
    TR_TRY(tr_calloc(&speed, n, sizeof *speed));
    for (size_t i = 0; i < n; i++) {
        const struct metrics_row *r = &rows[i];
        speed[i] = r->tokens_per_s;
        s.seconds += r->step_s;
        s.peak = r->memory.peak > s.peak ? r->memory.peak : s.peak;
        s.peak_rss = r->peak_rss > s.peak_rss ? r->peak_rss : s.peak_rss;
        if (isfinite(r->valid_loss)) s.valid = r->valid_loss, s.best_valid = fmin(s.best_valid, r->valid_loss); /* fmin passes over NAN */
        if (i >= n - tail && isfinite(r->loss)) sum += r->loss, counted++;
    }
    qsort(speed, n, sizeof *speed, by_value);
    s.tokens_per_s = speed[n / 2];
    free(speed);
    s.first = rows[0].loss;
    s.last = rows[n - 1].loss;
    s.mean_last = counted ? sum / (double)counted : NAN;
    s.state = rows[n - 1].memory.now[TR_OPTIMIZER];
    *out = s;
    return TR_OK;
}
