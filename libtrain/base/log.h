/* Lines for the person at the terminal, all on stderr. */
#ifndef TR_LOG_H
#define TR_LOG_H
#include <stdbool.h>

/* "train: TEXT" and "train: warning: TEXT". Silent after tr_log_quiet(true) (other ranks). */
void tr_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void tr_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
void tr_log_quiet(bool on);

/* A line that replaces itself on a terminal; elsewhere it is shown only when `keep` (then it ends with a newline). */
void tr_progress(bool keep, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
