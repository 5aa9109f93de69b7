/* The program's commands: a table of name, function, arguments, options and summary, from which parser and help come. */
#ifndef TOOLS_COMMAND_H
#define TOOLS_COMMAND_H
#include "recipes/commands.h"

enum { ARGS_MOST = 4, SETS_MOST = 256 };

/* An option --name; value: what it takes, NULL for a flag. */
struct command_option { const char *name, *value, *help; };

/* What was given. */
struct arguments {
    const char *args[ARGS_MOST];
    int n_args;
    const struct command_option *option[64];
    const char *value[64];
    int n_options;
    const char *sets[SETS_MOST];
    size_t n_sets;
};

struct command {
    const char *name, *usage, *summary;
    int (*run)(const struct arguments *a);
    int min_args, max_args;
    const struct command_option *options;   /* NULL-terminated */
    const char *more;                       /* paragraphs of help; may be NULL */
};

extern const struct command commands[];

/* Value of an option, `fallback` when it was not given; a flag gives "". */
const char *option_value(const struct arguments *a, const char *name, const char *fallback);
bool option_given(const struct arguments *a, const char *name);
int option_int(const struct arguments *a, const char *name, int64_t fallback, int64_t *out);
int option_real(const struct arguments *a, const char *name, double fallback, double *out);

int cmd_help(const struct arguments *a);
int cmd_inspect(const struct arguments *a);
int cmd_tokenize(const struct arguments *a);
int cmd_doctor(const struct arguments *a);
int command_help(const struct command *c);

#endif
