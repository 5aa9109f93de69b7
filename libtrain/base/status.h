/* Status codes and messages. Functions that can fail return int: TR_OK or one of the codes below, whose meaning a
 * caller can act on; the text for the user is kept per thread. Only `main` ends the process. */
#ifndef TR_STATUS_H
#define TR_STATUS_H

enum tr_status {
    TR_OK = 0,
    TR_EFAIL = 1,     /* failed while running (I/O, memory, numbers): exit 1 */
    TR_EINPUT = 2,    /* wrong usage, recipe or input file: exit 2 */
    TR_EBUDGET = 3,   /* would not fit the memory budget: exit 3 */
    TR_EDAMAGED = 4,  /* snapshot or checksum damaged and nothing older is whole: exit 4 */
    TR_ESTOPPED = 75, /* stopped on request after a complete snapshot: exit 75 */
};

/* Sets this thread's message and returns `code`. The text has the form "WHAT (WHERE): WHY; WHAT TO DO" without a final
 * newline or the leading "train: error: ", e.g. "unknown key 'optimizer.rnak' (a.ini:14): did you mean 'optimizer.rank'?". */
int tr_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The message of the last tr_fail on this thread; never NULL. Valid until the next tr_fail. */
const char *tr_message(void);

/* Returns early with the status of `call` when that is not TR_OK. */
#define TR_TRY(call) do { int tr_rc_ = (call); if (tr_rc_ != TR_OK) return tr_rc_; } while (0)

/* Inside a function with `int rc` and a label `done:` that releases what was taken. */
#define TR_GO(call) do { if ((rc = (call)) != TR_OK) goto done; } while (0)

#endif
