/* Who may include whom, read from the tree itself:
 *     tools -> recipes -> { optim, parallel, checkpoint } -> libtrain
 *     inside libtrain: model -> autograd -> kernel -> tensor -> config -> base;  data -> tensor, comm -> kernel
 * Nothing points back, the three siblings never include each other, and *_impl.h stays in its folder. */
#include "tests/support/support.h"
#include "libtrain/base/buf.h"
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum room { BASE, CONFIG, TENSOR, KERNEL, AUTOGRAD, MODEL, DATA, COMM, OPTIM, PARALLEL, CHECKPOINT, RECIPES, TOOLS, ROOMS };

static const char *const folder[ROOMS] = { "libtrain/base/", "libtrain/config/", "libtrain/tensor/", "libtrain/kernel/",
    "libtrain/autograd/", "libtrain/model/", "libtrain/data/", "libtrain/comm/", "optim/", "parallel/", "checkpoint/", "recipes/", "tools/" };

#define BIT(r) (1u << (r))
#define UPTO(r) (BIT((r) + 1) - 1)   /* the room and those listed before it */
#define LIBTRAIN UPTO(COMM)
#define SIBLINGS (BIT(OPTIM) | BIT(PARALLEL) | BIT(CHECKPOINT))

static const unsigned may[ROOMS] = {
    [BASE] = UPTO(BASE), [CONFIG] = UPTO(CONFIG), [TENSOR] = UPTO(TENSOR), [KERNEL] = UPTO(KERNEL), [AUTOGRAD] = UPTO(AUTOGRAD),
    [MODEL] = UPTO(MODEL), [DATA] = UPTO(TENSOR) | BIT(DATA), [COMM] = UPTO(KERNEL) | BIT(COMM), [OPTIM] = LIBTRAIN | BIT(OPTIM),
    [PARALLEL] = LIBTRAIN | BIT(PARALLEL), [CHECKPOINT] = LIBTRAIN | BIT(CHECKPOINT), [RECIPES] = LIBTRAIN | SIBLINGS | BIT(RECIPES),
    [TOOLS] = LIBTRAIN | SIBLINGS | BIT(RECIPES) | BIT(TOOLS),
};

static int room_of(const char *path)
{
    for (int r = 0; r < ROOMS; r++)
        if (!strncmp(path, folder[r], strlen(folder[r]))) return r;
    return -1;
}

/* Why `file` may not include `what` (both from the root), NULL when it may. */
static const char *wrong(const char *file, const char *what)
{
    if (!strcmp(what, "train_config.h")) return NULL;
    int from = room_of(file), to = room_of(what);
    if (to < 0) return "is not written from the root, or belongs to no room";
    if (!(may[from] >> to & 1)) return "goes against the arrows";
    const char *name = strrchr(what, '/'), *end = strstr(name, "_impl.h");
    size_t home = (size_t)(name - what) + 1;
    if (from != to && (end || !strcmp(name, "/impl.h")) && strncmp(file, what, home)) return "takes what is private to its folder";
    return NULL;
}

static int files, includes;

/* What stands between the quotes when the line is an #include of ours. */
static bool included(const char *line, char *what, size_t size)
{
    int begin = 0, end = 0;
    sscanf(line, " # include \"%n%*[^\"]%n", &begin, &end);
    if (!begin || end <= begin || (size_t)(end - begin) >= size) return false;
    memcpy(what, line + begin, (size_t)(end - begin));
    what[end - begin] = 0;
    return true;
}

static void read_source(const char *root, const char *file)
{
    char path[4096], line[4096], what[512];
    snprintf(path, sizeof path, "%s/%s", root, file);
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("%s cannot be read", path);
    files++;
    for (int n = 1; fgets(line, sizeof line, f); n++) {
        if (!included(line, what, sizeof what)) continue;
        includes++;
        const char *why = wrong(file, what);
        if (why) fail_msg("%s:%d: #include \"%s\" %s", file, n, what, why);
    }
    fclose(f);
}

static void walk(const char *root, const char *inside)
{
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", root, inside);
    DIR *d = opendir(path);
    if (!d) fail_msg("folder %s is missing", path);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        char file[2048];
        snprintf(file, sizeof file, "%s%s", inside, e->d_name);
        snprintf(path, sizeof path, "%s/%s", root, file);
        size_t n = strlen(file);
        if (stat(path, &st)) continue;
        if (S_ISDIR(st.st_mode)) {
            strcat(file, "/");
            walk(root, file);
        } else if (n > 2 && (!strcmp(file + n - 2, ".c") || !strcmp(file + n - 2, ".h"))) read_source(root, file);
    }
    closedir(d);
}

static const char *root;

static void the_tree_keeps_them(void **state)
{
    for (int r = 0; r < ROOMS; r++) walk(root, folder[r]);
    assert_true(files > 80 && includes > 300); /* the walk did find the tree */
}

static void every_folder_is_a_room(void **state)
{
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/libtrain", root);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char name[300];
        snprintf(name, sizeof name, "libtrain/%s/", e->d_name);
        snprintf(path, sizeof path, "%s/%s", root, name);
        if (e->d_name[0] != '.' && !stat(path, &st) && S_ISDIR(st.st_mode) && room_of(name) < 0) fail_msg("%s has no arrows: add it to this test", name);
    }
    closedir(d);
}

static void the_check_can_fail(void **state)
{
    char what[64];
    assert_true(included("#include \"libtrain/base/mem.h\"\n", what, sizeof what));
    assert_string_equal(what, "libtrain/base/mem.h");
    assert_true(included("  #  include\t\"a.h\" /* why */", what, sizeof what));
    assert_false(included("#include <stdio.h>", what, sizeof what));
    assert_false(included("/* \"libtrain/base/mem.h\" */", what, sizeof what));
    static const char *const bad[][2] = {
        { "libtrain/base/h5.h", "libtrain/tensor/tensor.h" }, { "libtrain/config/ini.c", "libtrain/tensor/tensor.h" },
        { "libtrain/tensor/tensor.c", "libtrain/kernel/kernel.h" }, { "libtrain/kernel/dispatch.c", "libtrain/autograd/tape.h" },
        { "libtrain/autograd/tape.c", "libtrain/model/model.h" }, { "libtrain/model/net.c", "optim/optim.h" },
        { "libtrain/model/net.c", "libtrain/data/data.h" }, { "libtrain/data/vocab.c", "libtrain/kernel/kernel.h" },
        { "optim/adamw.c", "checkpoint/checkpoint.h" }, { "checkpoint/save.c", "optim/optim.h" }, { "parallel/zero.c", "optim/optim.h" },
        { "optim/adamw.c", "recipes/recipe.h" }, { "recipes/run.c", "tools/command.h" }, { "recipes/run.c", "recipe.h" },
        { "recipes/run.c", "libtrain/data/dataset_impl.h" }, { "libtrain/autograd/tape.c", "libtrain/kernel/gemm/impl.h" },
        { "recipes/run.c", "tests/support/support.h" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!wrong(bad[i][0], bad[i][1])) fail_msg("%s may include %s", bad[i][0], bad[i][1]);
    static const char *const good[][2] = {
        { "tools/main.c", "recipes/recipe.h" }, { "recipes/run.c", "checkpoint/checkpoint.h" }, { "optim/adamw.c", "libtrain/kernel/update.h" },
        { "libtrain/data/vocab.c", "libtrain/data/tokenizer_impl.h" }, { "libtrain/comm/comm.c", "libtrain/tensor/tensor.h" },
        { "libtrain/kernel/gemm/ref.c", "train_config.h" },
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (wrong(good[i][0], good[i][1])) fail_msg("%s may not include %s", good[i][0], good[i][1]);
}

int main(int argc, char **argv)
{
    static char up[4096];
    if (argc < 2) return 2;
    snprintf(up, sizeof up, "%s/..", argv[1]);
    root = up;
    const struct CMUnitTest tests[] = { cmocka_unit_test(the_check_can_fail), cmocka_unit_test(every_folder_is_a_room), cmocka_unit_test(the_tree_keeps_them) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
