#include "parallel/links.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "parallel/wait.h"
#include <stdio.h>
#include <stdlib.h>

enum { MOST_LINKS = 8 };
static struct tr_comm *linked[MOST_LINKS];
static int links;

static const struct tr_device_links *link_calls(void) { return tr_device()->links; }

/* What failed once is not waited for: whatever is under way on any link ends. */
static int failed(const struct tr_comm *c, const char *why)
{
    par_links_close(false);
    return tr_fail(TR_EFAIL, "%s (rank %d, %s); the newest snapshot is whole: resume from it", why, par_rank(c), par_doing());
}

static int ask(void *self, bool *done)
{
    struct tr_comm *c = self;
    const char *why = NULL;
    int state = link_calls()->state(c->link, &why);
    *done = state == 1;
    return state < 0 ? failed(c, why) : TR_OK;
}

/* Until what was begun on the link is done; what ends the wait ends the link. */
static int settle(struct tr_comm *c, int peer)
{
    int rc = par_wait(c, ask, c, peer);
    if (rc != TR_OK) par_links_close(false);
    return rc;
}

static int exchange(struct tr_comm *c, const struct tr_device_piece *piece, int n, int peer)
{
    if (!c->link) return tr_fail(TR_EFAIL, "an exchange between devices after their links were closed (rank %d)", par_rank(c));
    for (int i = 0; i < n; i++) c->sent += piece[i].out && piece[i].peer != c->rank ? piece[i].bytes : 0;
    const char *why = n ? link_calls()->exchange(c->link, piece, n) : NULL;
    return why ? failed(c, why) : settle(c, peer);
}

static int begin(struct tr_comm *c)
{
    uint64_t id[TR_DEVICE_ID / sizeof(uint64_t)] = { 0 };
    const char *why = c->rank == 0 ? link_calls()->new_id(id) : NULL;
    if (why) return failed(c, why);
    TR_TRY(tr_comm_words(c, id, TR_DEVICE_ID / sizeof *id, 0));
    linked[links++] = c;
    if ((why = link_calls()->begin(&c->link, id, c->rank, c->size))) return failed(c, why);
    c->exchange = exchange;
    return settle(c, -1);
}

/* The first rank that has none, or that shares its device with another. */
static int agree(struct tr_comm *world, const char **why)
{
    static char text[500];
    const char *mine = link_calls() ? link_calls()->load() : "this build has no NCCL";
    uint64_t id = tr_device()->identity();
    double has[3] = { mine == NULL, (double)(id >> 32), (double)(id & 0xffffffffu) }, *all = NULL;
    int rc = tr_calloc(&all, (size_t)world->size, sizeof has);
    if (rc == TR_OK) rc = tr_comm_each(world, has, 3, all);
    *why = NULL;
    for (int r = 0; r < world->size && rc == TR_OK && !*why; r++) {
        if (all[3 * r] == 0) *why = r == world->rank ? mine : (snprintf(text, sizeof text, "rank %d has no NCCL", r), text);
        for (int q = 0; q < r && !*why; q++)
            if (all[3 * q + 1] == all[3 * r + 1] && all[3 * q + 2] == all[3 * r + 2]) snprintf(text, sizeof text, "ranks %d and %d compute on the same device", q, r), *why = text;
    }
    free(all);
    return rc;
}

int par_links_open(struct tr_comm *world, struct tr_comm *const *group, int n, const char **why)
{
    TR_TRY(agree(world, why));
    for (int i = 0; i < n && !*why; i++)
        if (group[i]->size > 1 && !group[i]->link) TR_TRY(begin(group[i]));
    return TR_OK;
}

void par_links_plan(struct tr_comm *planned)
{
    if (tr_device() && link_calls() && !link_calls()->load()) planned->exchange = exchange;
}

int par_links_close(bool whole)
{
    int rc = TR_OK, n = links;
    links = 0;   /* a failure on the way comes here again */
    for (int i = 0; i < n; i++) {
        struct tr_comm *c = linked[i];
        const char *why = whole && c->link ? link_calls()->finish(c->link) : NULL;
        if (why && rc == TR_OK) rc = tr_fail(TR_EFAIL, "%s (rank %d, end of the run)", why, par_rank(c));
        if (whole && rc == TR_OK) rc = par_wait(c, ask, c, -1);
        if (c->link) link_calls()->release(c->link, whole && rc == TR_OK);
        c->link = NULL;
    }
    return rc;
}
