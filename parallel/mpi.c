#include "parallel/mpi.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "parallel/links.h"
#include "parallel/wait.h"
#include "train_config.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool launched(void)
{
    static const char *const names[] = { "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return true;
    return false;
}

#if HAVE_MPI
#include <mpi.h>

/* Notes between ranks, outside the collectives: an error, or "I wait in call n" after half the timeout. */
enum { NOTE_TAG = 7, NOTE_TEXT = 1024 };
struct note { int code, group; uint64_t calls; char text[NOTE_TEXT]; };   /* code 0: waiting */

/* All ranks, or those of one line of the grid. */
struct group {
    struct tr_comm c;            /* first: a tr_comm * is this */
    MPI_Comm comm;
    int first, stride;           /* rank r of it is rank first + r stride of all */
    int *in_n, *in_at, *out_n, *out_at;
    uint64_t *waiting;           /* calls of each rank that said it waits */
};

enum { MOST_GROUPS = 8 };
static struct {
    struct group *group[MOST_GROUPS];   /* the first: all ranks; every rank makes them in the same order */
    int groups;
    MPI_Comm notes;
    MPI_Request *request;        /* of notes on their way */
    struct note out;
    int peer;                    /* 1 + the rank that a message is for or from, 0 in collectives */
    bool on, heard, stalled;
} w;

static struct tr_comm *all(void) { return &w.group[0]->c; }
static int rank_of(const struct group *g, int r) { return g->first + r * g->stride; }

static int failed(int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    MPI_Error_string(code, text, &n);
    return tr_fail(TR_EFAIL, "%s (rank %d of %d, %s): %s; the newest snapshot is whole: resume from it", what, all()->rank, all()->size, all()->doing, text);
}

/* ---- notes */

static void finish_notes(double seconds)
{
    int done = 0;
    for (double end = tr_now() + seconds; !done && tr_now() < end; usleep(200)) MPI_Testall(all()->size, w.request, &done, MPI_STATUSES_IGNORE);
}

static void send_notes(int code, const char *text, const struct group *g)
{
    finish_notes(1);
    w.out = (struct note){ .code = code, .calls = g->c.calls };
    while (w.group[w.out.group] != g) w.out.group++;
    snprintf(w.out.text, sizeof w.out.text, "%s", text);
    for (int r = 0; r < all()->size; r++)
        if (r != all()->rank) MPI_Isend(&w.out, (int)sizeof w.out, MPI_BYTE, r, NOTE_TAG, w.notes, &w.request[r]);
}

/* Rank `source` of all waits in its call `calls` of this group, if it is in it. */
static void note_waiting(struct group *g, int source, uint64_t calls)
{
    int at = source - g->first;
    if (at >= 0 && at % g->stride == 0 && at / g->stride < g->c.size) g->waiting[at / g->stride] = calls;
}

/* Takes the notes that came. An error of another rank becomes this one's. */
static int read_notes(void)
{
    for (;;) {
        int there = 0;
        MPI_Status s;
        struct note n;
        if (MPI_Iprobe(MPI_ANY_SOURCE, NOTE_TAG, w.notes, &there, &s) != MPI_SUCCESS || !there) return TR_OK;
        if (MPI_Recv(&n, (int)sizeof n, MPI_BYTE, s.MPI_SOURCE, NOTE_TAG, w.notes, MPI_STATUS_IGNORE) != MPI_SUCCESS) return TR_OK;
        n.text[sizeof n.text - 1] = 0;
        if (n.code) {
            w.heard = true;
            return tr_fail(n.code, "%s", n.text);
        }
        if (n.group >= 0 && n.group < w.groups) note_waiting(w.group[n.group], s.MPI_SOURCE, n.calls);
    }
}

/* Who did not come: the rank at the other end of a message, or ranks that never said that they wait where this one waits. */
static int timed_out(const struct group *g, double waited)
{
    char who[200] = "";
    size_t n = 0;
    if (w.peer) n = (size_t)snprintf(who, sizeof who, "rank %d", rank_of(g, w.peer - 1));
    for (int r = 0; r < g->c.size && n < sizeof who && !w.peer; r++)
        if (r != g->c.rank && g->waiting[r] < g->c.calls) n += (size_t)snprintf(who + n, sizeof who - n, "%s%d", n ? ", " : "rank ", rank_of(g, r));
    w.stalled = true;
    return tr_fail(TR_EFAIL, "rank %d waited %.0f s for %s (%s, exchange %llu): it stalled or lost its connection; the newest snapshot is whole: resume from it, "
                   "or raise parallel.timeout", all()->rank, waited, n ? who : "every other rank", all()->doing, (unsigned long long)g->c.calls);
}

/* Waits by polling: spins, then yields, then sleeps, for ranks may outnumber cores. */
static int wait_until(struct group *g, int (*ask)(void *self, bool *done), void *self)
{
    double begin = tr_now();
    bool said = false;
    int rc = TR_OK;
    for (int64_t i = 0;; i++) {
        bool done = false;
        rc = ask(self, &done);
        if (rc != TR_OK || done) break;
        if (i < 2000) continue;
        usleep(i < 20000 ? 20 : 200);
        if (i % 16) continue;
        double t = tr_now() - begin;
        rc = read_notes();
        if (rc == TR_OK && !said && t > all()->timeout / 2) said = true, send_notes(0, "", g);
        if (rc == TR_OK && t > all()->timeout) rc = timed_out(g, t);
        if (rc != TR_OK) break;
    }
    g->c.waited += tr_now() - begin;
    return rc;
}

static int ask_request(void *request, bool *done)
{
    int there = 0, code = MPI_Test(request, &there, MPI_STATUS_IGNORE);
    *done = there;
    return code == MPI_SUCCESS ? TR_OK : failed(code, "an exchange between ranks failed");
}

static int wait_for(struct group *g, MPI_Request *q) { return wait_until(g, ask_request, q); }

int par_wait(struct tr_comm *c, int (*ask)(void *self, bool *done), void *self, int peer)
{
    if (peer < 0) c->calls++;
    w.peer = peer + 1;
    int rc = wait_until((struct group *)c, ask, self);
    w.peer = 0;
    return rc;
}

int par_rank(const struct tr_comm *c) { return all()->rank; }
const char *par_doing(void) { return all()->doing; }

/* ---- the form */

static int to_ints(const struct group *g, const size_t *n, int *count, int *at)
{
    int64_t sum = 0;
    for (int r = 0; r < g->c.size; r++) {
        count[r] = (int)n[r];
        at[r] = (int)sum;
        sum += (int64_t)n[r];
        if (sum > INT32_MAX) return tr_fail(TR_EFAIL, "an exchange of more than 2 GB between %d ranks; use fewer ranks", g->c.size);
    }
    return TR_OK;
}

static int mpi_all_to_all(struct tr_comm *c, const void *in, const size_t *in_n, void *out, const size_t *out_n)
{
    struct group *g = (struct group *)c;
    MPI_Request q;
    TR_TRY(to_ints(g, in_n, g->in_n, g->in_at));
    TR_TRY(to_ints(g, out_n, g->out_n, g->out_at));
    c->calls++;
    for (int r = 0; r < c->size; r++) c->sent += r == c->rank ? 0 : in_n[r];
    int code = MPI_Ialltoallv(in, g->in_n, g->in_at, MPI_BYTE, out, g->out_n, g->out_at, MPI_BYTE, g->comm, &q);
    return code == MPI_SUCCESS ? wait_for(g, &q) : failed(code, "an exchange between ranks failed");
}

static int mpi_all_gather(struct tr_comm *c, const void *in, void *out, const size_t *n)
{
    struct group *g = (struct group *)c;
    MPI_Request q;
    TR_TRY(to_ints(g, n, g->out_n, g->out_at));
    c->calls++;
    c->sent += n[c->rank] * (size_t)(c->size - 1);
    int code = MPI_Iallgatherv(in, g->out_n[c->rank], MPI_BYTE, out, g->out_n, g->out_at, MPI_BYTE, g->comm, &q);
    return code == MPI_SUCCESS ? wait_for(g, &q) : failed(code, "an exchange between ranks failed");
}

static int mpi_barrier(struct tr_comm *c)
{
    struct group *g = (struct group *)c;
    MPI_Request q;
    c->calls++;
    int code = MPI_Ibarrier(g->comm, &q);
    return code == MPI_SUCCESS ? wait_for(g, &q) : failed(code, "ranks could not meet");
}

enum { MESSAGE_TAG = 1 };

static int wait_message(struct tr_comm *c, MPI_Request *q, int code, int peer)
{
    if (code != MPI_SUCCESS) return failed(code, "a message between ranks failed");
    return par_wait(c, ask_request, q, peer);
}

static int mpi_send(struct tr_comm *c, const void *in, size_t n, int to)
{
    MPI_Request q;
    c->sent += n;
    return wait_message(c, &q, MPI_Isend(in, (int)n, MPI_BYTE, to, MESSAGE_TAG, ((struct group *)c)->comm, &q), to);
}

static int mpi_receive(struct tr_comm *c, void *out, size_t n, int from)
{
    MPI_Request q;
    return wait_message(c, &q, MPI_Irecv(out, (int)n, MPI_BYTE, from, MESSAGE_TAG, ((struct group *)c)->comm, &q), from);
}

static const struct tr_comm_kind mpi_kind = { "mpi", mpi_all_to_all, mpi_all_gather, mpi_barrier, mpi_send, mpi_receive };

/* A group of the ranks of `comm`, which it owns from now on. */
static int add_group(MPI_Comm comm, int first, int stride)
{
    struct group *g;
    TR_TRY(tr_calloc(&g, 1, sizeof *g));
    *g = (struct group){ .c = { .kind = &mpi_kind, .local = 1, .timeout = 120, .doing = "start" }, .comm = comm, .first = first, .stride = stride };
    w.group[w.groups++] = g;
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm, &g->c.rank);
    MPI_Comm_size(comm, &g->c.size);
    TR_TRY(tr_calloc(&g->in_n, 4 * (size_t)g->c.size, sizeof(int)));
    g->in_at = g->in_n + g->c.size;
    g->out_n = g->in_at + g->c.size;
    g->out_at = g->out_n + g->c.size;
    return tr_calloc(&g->waiting, (size_t)g->c.size, sizeof *g->waiting);
}

/* The node of this rank: its machine, or (TR_NODES = n, to try what several nodes do) one of n equal parts of all ranks. A machine
 * whose ranks do not follow one another has no place in an order of nodes. */
static int find_node(MPI_Comm world)
{
    struct tr_comm *c = all();
    const char *parts = getenv("TR_NODES");
    int n = parts ? atoi(parts) : 0;
    MPI_Comm here;
    if (MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here) != MPI_SUCCESS) return tr_fail(TR_EFAIL, "MPI could not tell which ranks share a machine");
    MPI_Comm_size(here, &c->local);
    MPI_Comm_rank(here, &c->place);
    c->lead = c->rank;
    MPI_Bcast(&c->lead, 1, MPI_INT, 0, here);
    if (c->lead + c->place != c->rank) c->lead = -1;
    MPI_Comm_free(&here);
    if (n < 1 || c->size % n) return TR_OK;
    c->local = c->size / n;
    c->lead = c->rank / c->local * c->local;
    return TR_OK;
}

static int start(void)
{
    int level;
    MPI_Comm world;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS || level < MPI_THREAD_FUNNELED)
        return tr_fail(TR_EFAIL, "MPI could not start; `mpirun -n 2 hostname` tells whether it works here at all");
    w.on = true;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    if (MPI_Comm_dup(MPI_COMM_WORLD, &world) != MPI_SUCCESS || MPI_Comm_dup(MPI_COMM_WORLD, &w.notes) != MPI_SUCCESS)
        return tr_fail(TR_EFAIL, "MPI could not make its communicators");
    MPI_Comm_set_errhandler(w.notes, MPI_ERRORS_RETURN);
    TR_TRY(add_group(world, 0, 1));
    TR_TRY(find_node(world));
    TR_TRY(tr_calloc(&w.request, (size_t)all()->size, sizeof(MPI_Request)));
    for (int r = 0; r < all()->size; r++) w.request[r] = MPI_REQUEST_NULL;
    return TR_OK;
}

int par_world(struct tr_comm **out)
{
    *out = tr_comm_alone();
    if (!launched()) return TR_OK;
    if (!w.on) TR_TRY(start());
    *out = all();
    return TR_OK;
}

int par_group(struct tr_comm **out, struct tr_comm *world, int first, int stride, int n)
{
    MPI_Comm comm;
    *out = n == 1 ? tr_comm_alone() : world;
    if (n == 1 || n == world->size) return TR_OK;
    for (int k = 1; k < w.groups; k++) {
        const struct group *g = w.group[k];
        if (g->first != first || g->stride != stride || g->c.size != n) continue;
        *out = &w.group[k]->c;
        return TR_OK;
    }
    if (w.groups == MOST_GROUPS || MPI_Comm_split(w.group[0]->comm, first, 0, &comm) != MPI_SUCCESS) return tr_fail(TR_EFAIL, "MPI could not make the communicators of the grid");
    TR_TRY(add_group(comm, first, stride));
    *out = &w.group[w.groups - 1]->c;
    return TR_OK;
}

int par_end(int code, bool *say)
{
    *say = true;
    if (!w.on) return code;
    all()->doing = "end of the run";
    /* Every rank comes here or is told why another does not. */
    if (code == TR_OK || code == TR_ESTOPPED) {
        int met = mpi_barrier(all());
        if (met == TR_OK) met = par_links_close(true);
        if (met != TR_OK) code = met;
    }
    if (w.stalled) { /* a rank that does not answer cannot be waited for: this one speaks and ends all */
        fprintf(stderr, "train: error: %s\n", tr_message());
        fflush(NULL);
        MPI_Abort(MPI_COMM_WORLD, code);
    }
    if (code != TR_OK && code != TR_ESTOPPED && !w.heard) send_notes(code, tr_message(), w.group[0]);
    /* What was said at the same time is taken too, so that no message is left when MPI ends. */
    if (code != TR_OK && code != TR_ESTOPPED) {
        char text[NOTE_TEXT];
        snprintf(text, sizeof text, "%s", tr_message());
        int mine = code;
        for (double end = tr_now() + 0.3; tr_now() < end; usleep(1000)) read_notes();
        finish_notes(2);
        code = tr_fail(mine, "%s", text);
    }
    par_links_close(false);
    *say = all()->rank == 0;
    return code;
}

void par_close(void)
{
    if (w.on) MPI_Finalize();
    w.on = false;
}

#else

int par_world(struct tr_comm **out)
{
    *out = tr_comm_alone();
    return launched() ? tr_fail(TR_EFAIL, "several ranks were started (mpirun), but this program was built without MPI: install Open MPI and build again") : TR_OK;
}

int par_group(struct tr_comm **out, struct tr_comm *world, int first, int stride, int n)
{
    *out = world;
    return TR_OK;
}

int par_end(int code, bool *say)
{
    *say = true;
    return code;
}

void par_close(void) {}

/* One rank waits for nobody. */
int par_wait(struct tr_comm *c, int (*ask)(void *self, bool *done), void *self, int peer) { return TR_OK; }
int par_rank(const struct tr_comm *c) { return 0; }
const char *par_doing(void) { return ""; }

#endif
