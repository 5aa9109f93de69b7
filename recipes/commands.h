/* What the commands of the program do with a recipe. Each returns a status and has said everything else. */
#ifndef RECIPE_COMMANDS_H
#define RECIPE_COMMANDS_H
#include "recipes/recipe.h"

struct generate_options { const char *prompt, *snapshot; bool chat; int64_t max_tokens, seed; double temperature, top_p; };

/* resume: NULL = from the start, "" = the newest snapshot of the run folder, or a path. */
int recipe_run(struct recipe *r, const char *resume);
/* The same by processes that are started here and, when they die, started again from the newest snapshot. ranks: 0 = as the
 * recipe says, else parallel.data follows it; sets: the overrides that the recipe was loaded with. On SIGTERM or SIGINT the
 * ranks are asked for a complete snapshot: TR_ESTOPPED. */
int recipe_supervise(struct recipe *r, const char *resume, int64_t ranks, const char *const *sets, size_t n_sets);
/* snapshot: NULL = the model as the recipe names it, "" = the newest of the run folder, or a path. */
int recipe_eval(struct recipe *r, const char *snapshot);
int recipe_generate(struct recipe *r, const struct generate_options *o);
int recipe_dump(struct recipe *r, const char *batch, const char *out, bool logits, bool grad);
int recipe_bench(struct recipe *r);
int recipe_export(struct recipe *r, const char *snapshot, const char *format, const char *out);
/* optimizers: names with commas between them. */
int recipe_compare(const char *path, const char *const *sets, size_t n_sets, const char *optimizers);
int recipe_plan(struct recipe *r, bool json, bool search);
/* A pipeline simulated, never run; svg: "" or a file. Side by side: vocabularies, with and without vocabulary parallelism. */
int recipe_plan_schedule(struct recipe *r, const char *svg, bool json);
int recipe_plan_vocabularies(struct recipe *r);
int recipe_data(struct recipe *r, bool json);

#endif
