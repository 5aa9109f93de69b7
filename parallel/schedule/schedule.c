#include "libtrain/base/status.h"
#include "libtrain/config/option.h"
#include "parallel/schedule/schedule_impl.h"
#include <stdlib.h>
#include <string.h>

static const struct par_schedule_kind *const kinds[] = { &par_1f1b, &par_interleaved, &par_zero_bubble, &par_v_half, &par_v_min };
enum { KINDS = sizeof kinds / sizeof *kinds, MOST = 1 << 24 };

const char *const *par_schedule_names(void)
{
    static const char *names[KINDS + 1];
    for (int k = 0; k < KINDS; k++) names[k] = kinds[k]->name;
    return names;
}

static const struct par_schedule_kind *find(const char *name)
{
    for (int k = 0; k < KINDS; k++)
        if (!strcmp(kinds[k]->name, name)) return kinds[k];
    return NULL;
}

const char *par_schedule_summary(const char *name)
{
    const struct par_schedule_kind *k = find(name);
    return k ? k->summary : "";
}

/* ---- what a schedule is made of */

bool par_schedule_splits(const struct par_schedule *s) { return s->kind->split; }
int par_schedule_bound(const struct par_schedule *s, int rank) { return s->kind->bound(s, rank); }
int par_barriers(const struct par_schedule *s) { return s->vocabulary == PAR_VOCABULARY_ALG1 ? 2 : s->vocabulary == PAR_VOCABULARY_ALG2 ? 1 : 0; }

bool par_has(const struct par_schedule *s, enum par_pass_kind pass)
{
    if (pass == PAR_W) return s->kind->split;
    return pass == PAR_S || pass == PAR_T ? s->vocabulary != PAR_VOCABULARY_NONE : true;
}

int64_t par_row_size(const struct par_schedule *s)
{
    return (int64_t)s->micros * ((s->kind->split ? 3 : 2) * s->chunks + (s->vocabulary ? 2 : 0));
}

int par_stage(const struct par_schedule *s, int rank, int chunk)
{
    bool back = s->kind->map == PAR_VEE && chunk % 2;
    return chunk * s->ranks + (back ? s->ranks - 1 - rank : rank);
}

int par_stage_rank(const struct par_schedule *s, int stage, int *chunk)
{
    int c = stage / s->ranks, r = stage % s->ranks;
    if (chunk) *chunk = c;
    return s->kind->map == PAR_VEE && c % 2 ? s->ranks - 1 - r : r;
}

int64_t par_keys(const struct par_schedule *s) { return (int64_t)PAR_PASSES * s->ranks * s->chunks * s->micros; }

int64_t par_key(const struct par_schedule *s, enum par_pass_kind pass, int rank, int chunk, int micro)
{
    return (((int64_t)pass * s->ranks + rank) * s->chunks + chunk) * s->micros + micro;
}

static int all_ranks(const struct par_schedule *s, enum par_pass_kind pass, struct par_need *need)
{
    for (int r = 0; r < s->ranks; r++) need[r] = (struct par_need){ pass, r, 0 };
    return s->ranks;
}

static struct par_need at_stage(const struct par_schedule *s, enum par_pass_kind pass, int stage)
{
    struct par_need n = { .pass = pass };
    n.rank = par_stage_rank(s, stage, &n.chunk);
    return n;
}

int par_needs(const struct par_schedule *s, int rank, const struct par_pass *p, struct par_need *need)
{
    int stage = par_stage(s, rank, p->chunk), last = s->ranks * s->chunks - 1, n = 0;
    switch ((enum par_pass_kind)p->kind) {
    case PAR_F:
        if (stage > 0) need[n++] = at_stage(s, PAR_F, stage - 1);
        return n;
    case PAR_B:
        need[n++] = (struct par_need){ PAR_F, rank, p->chunk };
        if (stage < last) need[n++] = at_stage(s, PAR_B, stage + 1);
        else if (s->vocabulary) n += all_ranks(s, s->vocabulary == PAR_VOCABULARY_ALG1 ? PAR_T : PAR_S, need + n);
        return n;
    case PAR_W: need[0] = (struct par_need){ PAR_B, rank, p->chunk }; return 1;
    case PAR_S: need[0] = at_stage(s, PAR_F, last); return 1;
    case PAR_T: return all_ranks(s, PAR_S, need);
    default: return 0;
    }
}

/* ---- making one */

struct placed { int64_t slot; struct par_pass pass; };

static int earlier(const void *a, const void *b)
{
    const struct placed *x = a, *y = b;
    if (x->slot != y->slot) return x->slot < y->slot ? -1 : 1;
    if (x->pass.micro != y->pass.micro) return x->pass.micro < y->pass.micro ? -1 : 1;
    return (int)x->pass.kind - (int)y->pass.kind;
}

static int by_slots(struct par_schedule *s)
{
    struct placed *all = NULL;
    int64_t n = 0;
    TR_TRY(tr_calloc(&all, (size_t)par_row_size(s), sizeof *all));
    for (int r = 0; r < s->ranks; r++, n = 0) {
        for (int k = 0; k < PAR_PASSES; k++)
            for (int c = 0; par_has(s, k) && c < (k == PAR_S || k == PAR_T ? 1 : s->chunks); c++)
                for (int m = 0; m < s->micros; m++)
                    all[n++] = (struct placed){ s->kind->slot(s, k, r, c, m), { (uint8_t)k, (uint8_t)c, m } };
        qsort(all, (size_t)n, sizeof *all, earlier);
        for (int64_t i = 0; i < n; i++) s->pass[s->row[r] + i] = all[i].pass;
    }
    free(all);
    return TR_OK;
}

static int prepare(struct par_schedule *s, const char *name, int chunks)
{
    s->kind = find(name);
    if (!s->kind) {
        const char *near = tr_nearest(name, par_schedule_names());
        return tr_fail(TR_EINPUT, "unknown schedule '%.40s': %s%s%s", name, near ? "did you mean '" : "it must be 1f1b, interleaved, zero-bubble, v-half or v-min", near ? near : "", near ? "'?" : "");
    }
    if (s->ranks < 1 || s->micros < 1) return tr_fail(TR_EINPUT, "schedule %s: %d ranks and %d micro-batches; both must be at least 1", name, s->ranks, s->micros);
    s->chunks = s->kind->chunks ? s->kind->chunks : chunks ? chunks : 2;
    if (chunks && s->chunks != chunks) return tr_fail(TR_EINPUT, "schedule %s: %d stages on a rank; it has %d", name, chunks, s->chunks);
    if (s->chunks < 1 || s->chunks > 64) return tr_fail(TR_EINPUT, "schedule %s: %d stages on a rank; it must be 1 to 64", name, chunks);
    if ((int64_t)s->ranks * s->micros > MOST / 64 || par_row_size(s) * s->ranks > MOST)
        return tr_fail(TR_EINPUT, "schedule %s: %d ranks and %d micro-batches are more than the %d passes that a table may have; use larger micro-batches", name, s->ranks, s->micros, MOST);
    return s->kind->fits ? s->kind->fits(s) : TR_OK;
}

int par_schedule_make(struct par_schedule *out, const char *name, int ranks, int chunks, int micros, enum par_vocabulary vocabulary)
{
    struct par_schedule s = { .ranks = ranks, .micros = micros, .vocabulary = vocabulary };
    int rc;
    *out = (struct par_schedule){ 0 };
    TR_GO(prepare(&s, name, chunks));
    TR_GO(tr_calloc(&s.row, (size_t)ranks + 1, sizeof *s.row));
    TR_GO(tr_calloc(&s.pass, (size_t)(par_row_size(&s) * ranks), sizeof *s.pass));
    for (int r = 0; r < ranks; r++) s.row[r + 1] = s.row[r] + par_row_size(&s);
    TR_GO(s.kind->make ? s.kind->make(&s) : by_slots(&s));
    *out = s;
    return TR_OK;
done:
    par_schedule_release(&s);
    return rc;
}

void par_schedule_release(struct par_schedule *s)
{
    free(s->pass);
    free(s->row);
    s->pass = NULL;
    s->row = NULL;
}
