/* NCCL's sends and receives over MPI. Nothing is done when a call returns: the start of a communicator, and each group, take several looks at
 * ncclCommGetAsyncError and cudaStreamQuery. Sends do not buffer. Refused: calls before the start is over or while a group is under
 * way, two ranks on one device, a communicator that blocks, peers that are not there. EMULATE_NCCL_FAIL=N: the N-th group is told
 * as failed by the other side. */
#define OMPI_SKIP_MPICXX 1   /* its own C++ functions */
#include <mpi.h>
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define EXPORT __attribute__((visibility("default")))

namespace {

struct unique { int root, serial; };                   /* world's rank of rank 0 */
struct member { int rank, world, device; };
struct operation { void *at; size_t bytes; int peer; bool out; };
enum { STARTING, LISTED, READY, RUNNING, FAILED };

}

struct ncclComm {
    int rank, size, state, tag;
    unique id;
    member self;
    std::vector<member> members, said;                 /* said: to the root, as they come */
    std::vector<operation> group;
    std::vector<MPI_Request> requests;
    int looks;                                         /* until what was begun may be over */
    ncclResult_t error;
};

namespace {

std::vector<ncclComm *> comms;
ncclComm *grouped;
int depth, groups;

bool all_done(ncclComm *c)
{
    int done = 0;
    MPI_Testall((int)c->requests.size(), c->requests.data(), &done, MPI_STATUSES_IGNORE);
    if (done) c->requests.clear();
    return done;
}

ncclResult_t fail(ncclComm *c, ncclResult_t e) { return c->state = FAILED, c->error = e; }

/* Members tell the root who they are, and it tells all. */
void start(ncclComm *c)
{
    int bytes = (int)((size_t)c->size * sizeof(member));
    if (c->state == STARTING) {
        if (c->rank == 0) {
            for (member &m : c->said)
                if (m.rank >= 0 && m.rank < c->size) c->members[(size_t)m.rank] = m;
            for (int r = 1; r < c->size; r++) {
                c->requests.emplace_back();
                MPI_Issend(c->members.data(), bytes, MPI_BYTE, c->members[(size_t)r].world, c->tag, MPI_COMM_WORLD, &c->requests.back());
            }
        } else {
            c->requests.emplace_back();
            MPI_Irecv(c->members.data(), bytes, MPI_BYTE, c->id.root, c->tag, MPI_COMM_WORLD, &c->requests.back());
        }
        c->state = LISTED;
        return;
    }
    c->state = READY;
    for (member &m : c->members)
        for (member &o : c->members)
            if (m.rank != o.rank && m.device == o.device) fail(c, ncclInvalidUsage);
}

/* One look at what is under way. */
void look(ncclComm *c)
{
    if (c->state == READY || c->state == FAILED || !all_done(c) || c->looks-- > 0) return;
    if (c->state != RUNNING) return start(c);
    tr_emulate_leave();
    c->state = READY;
}

int busy()
{
    int any = 0;
    for (ncclComm *c : comms) {
        look(c);
        any |= c->state == RUNNING;
    }
    return any;
}

ncclResult_t queue(void *at, size_t count, int peer, ncclComm_t c, bool out)
{
    if (!c || peer < 0 || peer >= c->size) return ncclInvalidArgument;
    if (c->state != READY || !depth || (grouped && grouped != c)) return ncclInvalidUsage;   /* the module groups all that it sends */
    grouped = c;
    c->group.push_back({ at, count, peer, out });
    return ncclSuccess;
}

void drop(ncclComm *c)
{
    if (c->state == RUNNING) tr_emulate_leave();
    for (MPI_Request &r : c->requests)
        if (r != MPI_REQUEST_NULL) MPI_Cancel(&r), MPI_Request_free(&r);
    for (size_t i = 0; i < comms.size(); i++)
        if (comms[i] == c) comms.erase(comms.begin() + (long)i--);
    delete c;
}

}

extern "C" {

EXPORT ncclResult_t ncclGetVersion(int *version) { return *version = 22809, ncclSuccess; }

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int serial;
    unique u = { 0, serial++ };
    MPI_Comm_rank(MPI_COMM_WORLD, &u.root);
    memset(id, 0, sizeof *id);
    memcpy(id, &u, sizeof u);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    if (!config || config->blocking || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    ncclComm *c = new ncclComm();
    memcpy(&c->id, &id, sizeof c->id);
    c->rank = rank, c->size = ranks, c->tag = 1000 + 64 * c->id.serial + c->id.root, c->looks = 3;
    c->self = { rank, 0, tr_emulate_device() };
    MPI_Comm_rank(MPI_COMM_WORLD, &c->self.world);
    c->members.resize((size_t)ranks);
    c->said.resize((size_t)ranks);
    c->said[0] = c->self;
    for (int r = 1; r < ranks && rank == 0; r++) {
        c->requests.emplace_back();
        MPI_Irecv(&c->said[(size_t)r], (int)sizeof(member), MPI_BYTE, MPI_ANY_SOURCE, c->tag, MPI_COMM_WORLD, &c->requests.back());
    }
    if (rank) {
        c->requests.emplace_back();
        MPI_Issend(&c->self, (int)sizeof c->self, MPI_BYTE, c->id.root, c->tag, MPI_COMM_WORLD, &c->requests.back());
    }
    comms.push_back(*comm = c);
    tr_emulate_busy = busy;
    return ncclInProgress;
}

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error)
{
    look(c);
    *error = c->state == FAILED ? c->error : c->state == STARTING || c->state == LISTED || c->looks > 0 ? ncclInProgress : ncclSuccess;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGroupStart(void) { return depth++ ? ncclInvalidUsage : ncclSuccess; }
EXPORT ncclResult_t ncclSend(const void *from, size_t n, ncclDataType_t, int peer, ncclComm_t c, cudaStream_t) { return queue(const_cast<void *>(from), n, peer, c, true); }
EXPORT ncclResult_t ncclRecv(void *to, size_t n, ncclDataType_t, int peer, ncclComm_t c, cudaStream_t) { return queue(to, n, peer, c, false); }

EXPORT ncclResult_t ncclGroupEnd(void)
{
    const char *failing = getenv("EMULATE_NCCL_FAIL");
    ncclComm *c = grouped;
    depth--;
    grouped = nullptr;
    if (!c) return ncclSuccess;
    if (failing && atoi(failing) == ++groups) return fail(c, ncclRemoteError), ncclInProgress;
    tr_emulate_enter();
    for (operation &o : c->group) {
        int peer = c->members[(size_t)o.peer].world;
        c->requests.emplace_back();
        if (o.out) MPI_Issend(o.at, (int)o.bytes, MPI_BYTE, peer, c->tag, MPI_COMM_WORLD, &c->requests.back());
        else MPI_Irecv(o.at, (int)o.bytes, MPI_BYTE, peer, c->tag, MPI_COMM_WORLD, &c->requests.back());
    }
    c->group.clear();
    c->state = RUNNING, c->looks = 3;
    return ncclInProgress;
}

EXPORT ncclResult_t ncclCommFinalize(ncclComm_t c) { return c->state == READY ? ncclInProgress : ncclInvalidUsage; }
EXPORT ncclResult_t ncclCommDestroy(ncclComm_t c) { return drop(c), ncclSuccess; }
EXPORT ncclResult_t ncclCommAbort(ncclComm_t c) { return drop(c), ncclSuccess; }

EXPORT const char *ncclGetErrorString(ncclResult_t e)
{
    return e == ncclRemoteError ? "remote process exited or there was a network error" : e == ncclInvalidUsage ? "invalid usage" : e == ncclInvalidArgument ? "invalid argument" : "no error";
}

EXPORT const char *ncclGetLastError(ncclComm_t) { return ""; }

}
