/* INI text to a list of entries with their places. No limit on line length. "; comment" and "# comment" at the start of
 * a line or after white space; values may be quoted; `key = value`; `[section]` or `[section.sub.name]`. */
#ifndef TR_INI_H
#define TR_INI_H
#include "libtrain/config/option.h"

struct tr_ini_entry { char *section, *key, *value; int line; };
struct tr_ini { char *path; struct tr_ini_entry *entry; size_t n, cap; };

/* Parses the file. Errors: TR_EINPUT with path:line for anything that is no section, entry, comment or blank; for
 * invalid UTF-8; for a key set twice in one section. */
int tr_ini_read(struct tr_ini *ini, const char *path);
int tr_ini_parse(struct tr_ini *ini, const char *name, const char *text, size_t size);
void tr_ini_release(struct tr_ini *ini);

#endif
