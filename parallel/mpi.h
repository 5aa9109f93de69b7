/* Ranks started by mpirun: the MPI form of libtrain/comm. A program that was not started by it has one rank and touches no
 * MPI. A rank that fails tells the others; they end with its code and its message. */
#ifndef PAR_MPI_H
#define PAR_MPI_H
#include "libtrain/comm/comm.h"

/* The ranks of this program, initialised at the first call. Errors: TR_EFAIL (started by mpirun, built without MPI). */
int par_world(struct tr_comm **out);

/* The ranks first, first + stride, ... of `world`, n of them, as ranks 0, 1, ... of their own: `world` itself when they are all of it,
 * one rank alone when n is 1. Every rank of `world` names those that it is among; collective. Whoever asks again gets the same
 * ones, which stay until the program ends; time limit and what it is for are those of `world`. Errors: TR_EFAIL. */
int par_group(struct tr_comm **out, struct tr_comm *world, int first, int stride, int n);

/* Before the program ends with `code` (and tr_message()): tells the other ranks of an error, or waits for them and learns of
 * theirs. Returns the code to end with; *say: this rank is the one that prints the message. */
int par_end(int code, bool *say);
/* After the message: a rank that has ended with an error may be the end of those still here. */
void par_close(void);

#endif
