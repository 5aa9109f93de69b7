#include "tests/support/recipe.h"
#include "tests/support/support.h"
#include <stdio.h>
#include <unistd.h>

int test_recipe(struct recipe *r, const char *base, const char *name, const char *const *more)
{
    char path[600], dir[600], train[600];
    const char *sets[32] = { dir, train };
    size_t n = 2;
    snprintf(train, sizeof train, "data.train=%s/text.txt", test_folder());
    if (access(strchr(train, '=') + 1, R_OK)) {
        FILE *f = fopen(strchr(train, '=') + 1, "w");
        assert_non_null(f);
        for (int i = 0; i < 400; i++) fprintf(f, "line %d of a text that repeats %d times\n", i % 17, i % 5);
        fclose(f);
    }
    snprintf(path, sizeof path, "%s/%s.ini", test_folder(), name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(base, f);
    fclose(f);
    snprintf(dir, sizeof dir, "run.dir=%s/%s", test_folder(), name);
    for (; more && *more && n < sizeof sets / sizeof *sets; more++) sets[n++] = *more;
    return recipe_load(r, path, sets, n);
}

void test_job_open(struct job *j, const struct recipe *r)
{
    assert_ok(job_open(j, r));
    assert_ok(job_tokenizer(j, true));
    assert_ok(job_data(j, true));
}

void test_job_build(struct job *j)
{
    assert_ok(job_net(j, true));
    assert_ok(job_training(j));
}
