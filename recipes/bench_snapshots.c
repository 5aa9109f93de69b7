#include "recipes/bench_snapshots.h"
#include "libtrain/base/file.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int bench_snapshots_open(struct bench_snapshots *b, struct recipe *r)
{
    struct tr_buf name = { 0 };
    if (r->checkpoint.memory_every == 0) return TR_OK;
    TR_TRY(tr_buf_printf(&name, "%s/.bench-%ld", r->run.dir, (long)getpid()));
    b->folder = name.data;
    TR_TRY(tr_mkdirs(b->folder));
    free(r->run.dir);
    r->run.dir = NULL;
    return tr_strdup(&r->run.dir, b->folder);
}

int bench_snapshots_start(struct bench_snapshots *b, struct job *j, int64_t steps)
{
    int64_t version = -1;
    if (!b->folder) return TR_OK;
    TR_TRY(tr_calloc(&b->with, (size_t)steps, sizeof *b->with));
    TR_TRY(tr_calloc(&b->without, (size_t)steps, sizeof *b->without));
    TR_TRY(tr_calloc(&b->block, (size_t)steps, sizeof *b->block));
    TR_TRY(tr_calloc(&b->copy, (size_t)steps, sizeof *b->copy));
    TR_TRY(ckpt_capture_attach(j->capture, NULL, &version));
    return ckpt_capture_start(j->capture, 0, false);
}

void bench_snapshots_step(struct bench_snapshots *b, struct job *j, double seconds)
{
    if (!b->folder) return;
    if (b->begun) {
        b->block[b->n_with] = ckpt_capture_blocked(j->capture);
        b->copy[b->n_with] = ckpt_capture_stats(j->capture).copy_s;
        b->with[b->n_with++] += seconds; /* what begin took is there already */
    } else b->without[b->n_without++] = seconds;
    b->begun = false;
}

int bench_snapshots_begin(struct bench_snapshots *b, struct job *j)
{
    if (!b->folder || (int64_t)j->step % j->r->checkpoint.memory_every) return TR_OK;
    double t = tr_now();
    TR_TRY(ckpt_capture_begin(j->capture, (int64_t)j->step, false));
    b->with[b->n_with] = tr_now() - t;
    b->begun = true;
    return TR_OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *x, int64_t n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

int bench_snapshots_report(struct bench_snapshots *b, struct job *j, json_t *o)
{
    if (!b->folder) return TR_OK;
    ckpt_capture_settle(j->capture);
    double t = tr_now();
    TR_TRY(ckpt_capture_begin(j->capture, (int64_t)j->step, true));
    TR_TRY(ckpt_capture_finish(j->capture, (int64_t)j->step));
    t = tr_now() - t;
    json_t *c = json_object();
    json_object_set_new(c, "bytes", json_integer((json_int_t)ckpt_capture_stats(j->capture).bytes));
    json_object_set_new(c, "versions", json_integer(b->n_with));
    json_object_set_new(c, "to_disk_s", json_real(t));
    if (b->n_with) {
        json_object_set_new(c, "copy_s", json_real(bench_median(b->copy, b->n_with)));
        json_object_set_new(c, "block_s", json_real(bench_median(b->block, b->n_with)));
        json_object_set_new(c, "block_s_most", json_real(b->block[b->n_with - 1])); /* sorted now */
    }
    if (b->n_with && b->n_without) {
        double with = bench_median(b->with, b->n_with), without = bench_median(b->without, b->n_without);
        json_object_set_new(c, "step_with_s", json_real(with));
        json_object_set_new(c, "step_without_s", json_real(without));
        json_object_set_new(c, "block_share", json_real(b->block[b->n_with / 2] / without));
        json_object_set_new(c, "loss_each_10", json_real((with - without) / (10 * without + with - without)));
    }
    json_object_set_new(o, "checkpoint", c);
    return TR_OK;
}

/* The files that a keeper leaves. */
static void empty_folder(const char *folder)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char *path;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || tr_path_join(&path, folder, e->d_name) != TR_OK) continue;
        unlink(path);
        free(path);
    }
    if (d) closedir(d);
    rmdir(folder);
}

void bench_snapshots_close(struct bench_snapshots *b)
{
    char *snapshots;
    if (b->folder && tr_path_join(&snapshots, b->folder, "snapshots") == TR_OK) {
        empty_folder(snapshots);
        empty_folder(b->folder);
        *strrchr(b->folder, '/') = 0;
        rmdir(b->folder); /* when nothing else is in it */
        free(snapshots);
    }
    free(b->folder);
    free(b->with);
    free(b->without);
    free(b->block);
    free(b->copy);
}
