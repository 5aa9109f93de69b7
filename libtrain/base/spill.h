/* Memory that waits in a file: one thread writes it behind and reads it ahead while the caller computes.
 *
 * The file has no name from the start, so nothing is left behind whatever happens to the process. It is opened for direct
 * I/O where the file system has it (else buffered), through an aligned buffer of this thread that the ledger counts. Jobs are done in
 * the order they were given. In dry mode nothing is opened or moved, bytes are counted as usual. */
#ifndef TR_SPILL_H
#define TR_SPILL_H
#include <stddef.h>
#include <stdint.h>

/* Places in the file are multiples of this; what is smaller than LEAST is not worth a trip. */
enum { TR_SPILL_ALIGN = 4096, TR_SPILL_LEAST = 1 << 16 };
uint64_t tr_spill_room(size_t bytes);   /* bytes rounded up to whole places */

struct tr_spill;
struct tr_spill_counts { uint64_t read, written, file; };   /* bytes moved; bytes that the file has come to */

/* The file lies in `folder`, which is created when it is missing. Errors: TR_EFAIL with folder and reason. */
int tr_spill_open(struct tr_spill **out, const char *folder);
/* Waits for what was given. NULL is fine. */
void tr_spill_close(struct tr_spill *s);

/* Give a job to the thread; the memory must stay until the job is done. Returns its ticket, above every earlier one. */
uint64_t tr_spill_write(struct tr_spill *s, uint64_t at, const void *from, size_t bytes);
uint64_t tr_spill_read(struct tr_spill *s, uint64_t at, void *to, size_t bytes);
/* Waits until the job and all before it are done, whatever became of them. TR_EFAIL when one of them failed (a full disk);
 * every later wait then fails too. */
int tr_spill_wait(struct tr_spill *s, uint64_t ticket);

struct tr_spill_counts tr_spill_counts(const struct tr_spill *s);

#endif
