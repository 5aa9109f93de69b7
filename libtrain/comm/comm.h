/* Ranks that work on one model, and how bytes move between them.
 *
 * One interface, several forms: one rank alone (here), MPI (parallel/mpi.c). Every call but send and receive is collective: all
 * ranks make it in the same order with the same shapes. Callers hand over tensors and never see where their bytes lie; a form moves host
 * memory, through which those of a device pass where its devices have no links. Sums are taken in the order of ranks from parts that were sent whole, so their bits depend on the parts alone.
 *
 * Nothing waits for ever: a rank that does not come ends the others after `timeout` seconds with a line that names it, and
 * an error of one rank reaches the others in their next wait. In dry mode (tr_mem_dry) buffers are counted, nothing moves. */
#ifndef TR_COMM_H
#define TR_COMM_H
#include "libtrain/tensor/tensor.h"

struct tr_comm;

/* A form. Buffers are host memory; n[r] bytes for or from rank r, one after another in the order of ranks. */
struct tr_comm_kind {
    const char *name;
    int (*all_to_all)(struct tr_comm *c, const void *in, const size_t *in_n, void *out, const size_t *out_n);
    int (*all_gather)(struct tr_comm *c, const void *in, void *out, const size_t *n);   /* in: n[rank] bytes */
    int (*barrier)(struct tr_comm *c);
    /* Between two ranks; what one sends the other receives, in order. Neither returns before the message is through. */
    int (*send)(struct tr_comm *c, const void *in, size_t n, int to);
    int (*receive)(struct tr_comm *c, void *out, size_t n, int from);
};

struct tr_device_piece;
struct tr_comm {
    const struct tr_comm_kind *kind;
    /* Set where memory of devices moves between them without the host (parallel/links.c): all pieces at once, there when it returns. peer: the only
     * rank at the other end, of a message; -1: collective. */
    int (*exchange)(struct tr_comm *c, const struct tr_device_piece *piece, int n, int peer);
    void *link;                  /* its own */
    int rank, size, local, place;   /* local: ranks on this node; place: of this one among those of its machine */
    int lead;                    /* the first rank of this node, where they follow one another, else -1 */
    bool planned;                /* these ranks are not there: only forecasts are made, of the rank that is dealt most */
    double timeout;              /* seconds */
    const char *doing;           /* what for, in messages */
    uint64_t sent;               /* bytes that left this rank, since the start */
    uint64_t moved;              /* bytes that all ranks sent, by the shapes of what they exchanged; in dry mode too */
    double waited;               /* seconds in waits, since the start */
    uint64_t calls;              /* collectives entered */
};

/* The form of one rank. */
struct tr_comm *tr_comm_alone(void);

/* Rows of a tensor dealt to ranks: rank r has [first[r], first[r + 1]), first[0] = 0, first[size] = tr_rows. */

/* own (f32, this rank's rows; may be empty) = sum over ranks, in their order, of those rows of g (f32). add: own += each. */
int tr_comm_reduce_rows(struct tr_comm *c, struct tr_tensor *own, const struct tr_tensor *g, const int64_t *first, bool add);
/* Every rank gets the rows of the others (int8 with their scales). own: this rank's rows, copied to their place; NULL: they are
 * in t already. */
int tr_comm_gather_rows(struct tr_comm *c, struct tr_tensor *t, const struct tr_tensor *own, const int64_t *first);
/* x[i] = sum over ranks, in their order. */
int tr_comm_sum(struct tr_comm *c, double *x, size_t n);
/* Every rank gets the words, or the bytes, of rank `root`. */
int tr_comm_words(struct tr_comm *c, uint64_t *words, size_t n, int root);
int tr_comm_bytes(struct tr_comm *c, void *bytes, size_t n, int root);
/* all[r * n + i] = x[i] of rank r. */
int tr_comm_each(struct tr_comm *c, const double *x, size_t n, double *all);
int tr_comm_barrier(struct tr_comm *c);
/* The bytes of a dense tensor to another rank; there into one of the same type and shape. */
int tr_comm_send(struct tr_comm *c, const struct tr_tensor *t, int to);
int tr_comm_receive(struct tr_comm *c, struct tr_tensor *t, int from);

/* Rows [begin, begin + n) of any tensor; a vector is one row. */
struct tr_tensor tr_comm_rows(const struct tr_tensor *t, int64_t begin, int64_t n);

#endif
