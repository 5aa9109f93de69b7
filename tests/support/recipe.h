/* Recipes of tests: a base text, a training text beside it, and settings on top. */
#ifndef TEST_RECIPE_H
#define TEST_RECIPE_H
#include "recipes/job.h"

#define SETS(...) (const char *const[]){ __VA_ARGS__, NULL }

/* test_folder()/NAME.ini with `base` in it and "section.key=value" settings (NULL at the end, or NULL for none); the run folder
 * is test_folder()/NAME. The training text is test_folder()/text.txt, written at the first call. As recipe_load. */
int test_recipe(struct recipe *r, const char *base, const char *name, const char *const *more);

/* Opens a job for training up to what a forecast needs; then, after one or not, all that a step needs. They must not fail. */
void test_job_open(struct job *j, const struct recipe *r);
void test_job_build(struct job *j);

#endif
