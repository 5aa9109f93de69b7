/* Typed option tables: parsing, defaults, help and error texts all come from one table per section. */
#ifndef TR_OPTION_H
#define TR_OPTION_H
#include "libtrain/base/buf.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tr_option_type {
    TR_OPT_INT,     /* int64_t */
    TR_OPT_REAL,    /* double */
    TR_OPT_BOOL,    /* bool: true/false, yes/no, on/off, 1/0 */
    TR_OPT_TEXT,    /* char *, owned by the struct, never NULL ("" when unset) */
    TR_OPT_CHOICE,  /* int: index into `choices`; hyphens and underscores are the same */
    TR_OPT_SIZE,    /* int64_t bytes: "12G" = 12e9, "8GiB" = 8*2^30, "0" */
};

struct tr_option {
    const char *name;              /* key inside its section; NULL ends a table */
    enum tr_option_type type;
    size_t offset;                 /* of the field in the section's struct */
    const char *fallback;          /* default, as text */
    double min, max;               /* INT, REAL: inclusive; min == max means unlimited */
    const char *choices;           /* "constant|linear|cosine|wsd" */
    const char *help;              /* one sentence, units included */
};

/* A section: "model", "optimizer", ... */
struct tr_section { const char *name; const char *help; const struct tr_option *options; size_t size; };

/* Where a value was written, for messages: file:line, or "--set". */
struct tr_place { const char *file; int line; };

/* Fills `base` with the defaults of the table. */
int tr_options_default(const struct tr_option *table, void *base);
/* Sets one key from text. Errors (TR_EINPUT) name section.key, the place and what is allowed; an unknown key gets the
 * nearest known name as a suggestion. */
int tr_options_set(const char *section, const struct tr_option *table, void *base, const char *key, const char *value, struct tr_place place);
/* Frees the texts. */
void tr_options_release(const struct tr_option *table, void *base);
/* Appends "key = value" lines for every option (a resolved recipe), or a help text. */
int tr_options_print(struct tr_buf *out, const struct tr_option *table, const void *base);
int tr_options_help(struct tr_buf *out, const struct tr_option *table);
/* The known name nearest to `word` by edit distance, or NULL when none is near. names: NULL-terminated. */
const char *tr_nearest(const char *word, const char *const *names);

#endif
