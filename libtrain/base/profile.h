/* Where the time of a step goes: one clock that always belongs to exactly one part. Always on (a switch costs about
 * 30 ns); main thread only. */
#ifndef TR_PROFILE_H
#define TR_PROFILE_H

enum tr_part { TR_PART_OTHER, TR_PART_DATA, TR_PART_EMBED, TR_PART_NORM, TR_PART_ATTENTION, TR_PART_MLP, TR_PART_LOSS,
               TR_PART_BACKWARD_EMBED, TR_PART_BACKWARD_NORM, TR_PART_BACKWARD_ATTENTION, TR_PART_BACKWARD_MLP, TR_PART_BACKWARD_LOSS,
               TR_PART_OPTIMIZER, TR_PART_COMMUNICATION, TR_PARTS };

const char *tr_part_name(enum tr_part p);    /* "other", "data", ..., "backward_attention", ... */

/* Seconds since some fixed moment, monotonic. */
double tr_now(void);
/* The clock belongs to `p` from now on; returns whose it was. */
enum tr_part tr_part_enter(enum tr_part p);
enum tr_part tr_part_current(void);
/* The backward of a forward part. */
enum tr_part tr_part_backward(enum tr_part p);
/* Seconds of each part since the last reset. */
void tr_part_reset(void);
double tr_part_seconds(enum tr_part p);

#endif
