/* Layers that take turns: states come and go at the beginning of a step. */
#include "libtrain/base/status.h"
#include "optim/opt_impl.h"
#include <string.h>

int opt_blocks(struct opt *o)
{
    int layer = -1;
    for (int64_t i = 0; i < o->n; i++) o->item[i].block = -1;
    for (;; o->blocks++) { /* the next layer that has a matrix */
        int next = -1;
        for (int64_t i = 0; i < o->n; i++) {
            const struct tr_param *p = o->item[i].p;
            if (p && p->role == TR_MATRIX && p->layer > layer && (next < 0 || p->layer < next)) next = p->layer;
        }
        if (next < 0) return TR_OK;
        for (int64_t i = 0; i < o->n; i++)
            if (o->item[i].p && o->item[i].p->layer == next) o->item[i].block = o->blocks;
        layer = next;
    }
}

static int whose(const struct opt *o, struct item *it, int64_t step, bool *trains, bool *anew)
{
    struct opt_turn t = { o->seed, step, it->block, o->blocks };
    TR_TRY(it->kind->turn(it->config, &t, trains));
    *anew = it->kind->anew(it->config, &t);
    return TR_OK;
}

int opt_begin(struct opt *o, int64_t step)
{
    bool trains, anew;
    for (int64_t i = 0; i < o->n; i++) { /* first all that leave: never are two turns' states there at once */
        struct item *it = &o->item[i];
        if (!it->state || !it->kind->turn) continue;
        TR_TRY(whose(o, it, step, &trains, &anew));
        it->p->frozen = !trains;
        if (it->away || (trains && !anew)) continue;
        if (o->leaves) o->leaves(o->self, i);
        opt_item_release(o, it);
        memset(it->state, 0, it->kind->state_size);
        it->away = true;
    }
    for (int64_t i = 0; i < o->n; i++) {
        struct item *it = &o->item[i];
        if (!it->state || !it->kind->turn || it->p->frozen || !it->away) continue;
        TR_TRY(opt_item_make(o, it));
        it->away = false;
    }
    return TR_OK;
}
