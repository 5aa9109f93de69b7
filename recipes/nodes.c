#include "recipes/job.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include "parallel/mpi.h"
#include <inttypes.h>
#include <stdlib.h>

/* Ranks of a node follow one another, and every node has as many. */
static int check_even(const struct recipe *r, struct tr_comm *comm)
{
    double mine[2] = { comm->local, comm->lead }, *all;
    TR_TRY(tr_calloc(&all, (size_t)comm->size, sizeof mine));
    int rc = tr_comm_each(comm, mine, 2, all);
    for (int i = 0; i < comm->size && rc == TR_OK; i++)
        if (all[2 * i] != all[0] || all[2 * i + 1] != (double)i - i % (int)all[0])
            rc = tr_fail(TR_EINPUT, "checkpoint.redundancy = %s (%s): rank %d is on a node of %.0f ranks, rank 0 on one of %.0f, or they do not follow one another; "
                         "start as many on every node, one node after another (mpirun --map-by ppr:%.0f:node)", r->checkpoint.redundancy, r->path, i, all[2 * i], all[0], all[0]);
    free(all);
    return rc;
}

int job_nodes(struct ckpt_nodes *n, const struct recipe *r, struct tr_comm *comm)
{
    int k, m, per = comm->planned ? 1 : comm->local;
    *n = (struct ckpt_nodes){ .sets.nodes = 1, .per = comm->size, .comm = comm };
    if (!r->checkpoint.redundancy[0]) return TR_OK;
    TR_TRY(ckpt_code_parse(r->checkpoint.redundancy, &k, &m));
    if (!comm->planned && !tr_mem_is_dry()) TR_TRY(check_even(r, comm));
    int size = k + m, nodes = comm->size / per;
    if (nodes % size)
        return tr_fail(TR_EINPUT, "checkpoint.redundancy = %s (%s): it needs sets of %d + %d = %d nodes, but %d ranks, %d a node, are on %d node%s, which %d does not divide; "
                       "start on a multiple of %d nodes, or set it to two numbers whose sum divides their number, or remove it", r->checkpoint.redundancy, r->path, k, m, size,
                       comm->size, per, nodes, nodes > 1 ? "s" : "", size, size);
    n->per = per;
    n->sets = (struct ckpt_sets){ (uint32_t)(comm->rank / per), (uint32_t)nodes, (uint32_t)k, (uint32_t)m };
    TR_TRY(ckpt_code_init(&n->ring.code, k, m));
    n->ring.group = comm;
    return comm->planned ? TR_OK : par_group(&n->ring.group, comm, comm->rank / per / size * size * per + comm->rank % per, per, size);
}
