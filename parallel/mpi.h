/* Ranks started by mpirun: the MPI form of libtrain/comm. A program that was not started by it has one rank and touches no
 * MPI. A rank that fails tells the others; they end with its code and its message. */
#ifndef PAR_MPI_H
#define PAR_MPI_H
#include "libtrain/comm/comm.h"

/* The ranks of this program, initialised at the first call. Errors: TR_EFAIL (started by mpirun, built without MPI). */
int par_world(struct tr_comm **out);

/* Before the program ends with `code` (and tr_message()): tells the other ranks of an error, or waits for them and learns of
 * theirs. Returns the code to end with; *say: this rank is the one that prints the message. */
int par_end(int code, bool *say);
/* After the message: a rank that has ended with an error may be the end of those still here. */
void par_close(void);

#endif
