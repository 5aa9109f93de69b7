#include "checkpoint/keeper.h"
#include "libtrain/base/log.h"
#include "libtrain/base/status.h"
#include "parallel/mpi.h"
#include "recipes/replay.h"
#include "tools/command.h"
#include "train_config.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- options given */

const char *option_value(const struct arguments *a, const char *name, const char *fallback)
{
    for (int i = a->n_options; i-- > 0;) /* the last one counts */
        if (!strcmp(a->option[i]->name, name)) return a->value[i];
    return fallback;
}

bool option_given(const struct arguments *a, const char *name) { return option_value(a, name, NULL) != NULL; }

int option_int(const struct arguments *a, const char *name, int64_t fallback, int64_t *out)
{
    const char *text = option_value(a, name, NULL);
    char *end;
    *out = fallback;
    if (!text) return TR_OK;
    errno = 0;
    *out = strtoll(text, &end, 10);
    return errno || *end || end == text || *out < 0 ? tr_fail(TR_EINPUT, "bad value '%.60s' (--%s): it must be a whole number", text, name) : TR_OK;
}

int option_real(const struct arguments *a, const char *name, double fallback, double *out)
{
    const char *text = option_value(a, name, NULL);
    char *end;
    *out = fallback;
    if (!text) return TR_OK;
    *out = strtod(text, &end);
    return *end || end == text || !(*out >= 0 && *out < 1e9) ? tr_fail(TR_EINPUT, "bad value '%.60s' (--%s): it must be a number", text, name) : TR_OK;
}

static int unknown_option(const struct command *c, const char *name)
{
    const char *names[64] = { "set", "help" };
    int n = 2;
    for (const struct command_option *o = c->options; o && o->name; o++) names[n++] = o->name;
    const char *near = tr_nearest(name, names);
    if (near) return tr_fail(TR_EINPUT, "unknown option '--%.60s' (train %s): did you mean '--%s'?", name, c->name, near);
    return tr_fail(TR_EINPUT, "unknown option '--%.60s' (train %s): `train %s --help` lists them", name, c->name, c->name);
}

/* Takes argv[*i] as an option of the command, with its value when it has one. */
static int take_option(const struct command *c, struct arguments *a, int argc, char **argv, int *i)
{
    char name[64];
    const char *text = argv[*i] + 2, *eq = strchr(text, '=');
    size_t n = eq ? (size_t)(eq - text) : strlen(text);
    if (n >= sizeof name) return unknown_option(c, text);
    memcpy(name, text, n);
    name[n] = 0;
    static const struct command_option set = { "set", "section.key=value", "set any recipe key; wins over the file" };
    const struct command_option *o = c->options;
    while (o && o->name && strcmp(o->name, name)) o++;
    if (!strcmp(name, "set")) o = &set;
    else if (!o || !o->name) return unknown_option(c, name);
    const char *value = eq ? eq + 1 : "";
    bool optional = o->value && o->value[0] == '[';
    if (!o->value && eq) return tr_fail(TR_EINPUT, "option '--%s' (train %s): it takes no value", name, c->name);
    if (o->value && !eq) {
        bool next = *i + 1 < argc && (argv[*i + 1][0] != '-' || !strcmp(o->name, "prompt") || argv[*i + 1][1] == 0);
        if (next) value = argv[++*i];
        else if (!optional) return tr_fail(TR_EINPUT, "option '--%s' (train %s): its value %s is missing", name, c->name, o->value);
    }
    if (o == &set) {
        if (a->n_sets == SETS_MOST) return tr_fail(TR_EINPUT, "more than %d --set: put them into the recipe", SETS_MOST);
        a->sets[a->n_sets++] = value;
        return TR_OK;
    }
    if (a->n_options == 64) return tr_fail(TR_EINPUT, "too many options (train %s)", c->name);
    a->option[a->n_options] = o;
    a->value[a->n_options++] = value;
    return TR_OK;
}

static int parse(const struct command *c, struct arguments *a, int argc, char **argv, bool *help)
{
    bool options = true;
    for (int i = 0; i < argc; i++) {
        if (options && !strcmp(argv[i], "--")) options = false;
        else if (options && (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))) *help = true;
        else if (options && !strncmp(argv[i], "--", 2)) TR_TRY(take_option(c, a, argc, argv, &i));
        else if (options && argv[i][0] == '-' && argv[i][1]) return tr_fail(TR_EINPUT, "unknown option '%.60s' (train %s): `train %s --help` lists them", argv[i], c->name, c->name);
        else if (a->n_args < c->max_args && a->n_args < ARGS_MOST) a->args[a->n_args++] = argv[i];
        else return tr_fail(TR_EINPUT, "unexpected argument '%.80s' (train %s): usage: train %s", argv[i], c->name, c->usage);
    }
    if (!*help && a->n_args < c->min_args) return tr_fail(TR_EINPUT, "an argument is missing (train %s): usage: train %s", c->name, c->usage);
    return TR_OK;
}

/* ---- commands that begin with a recipe */

typedef int (*with_recipe)(struct recipe *r, const struct arguments *a);

static int load_and(const struct arguments *a, with_recipe f)
{
    struct recipe r;
    int rc = recipe_load(&r, a->args[0], a->sets, a->n_sets);
    if (rc == TR_OK) rc = f(&r, a);
    recipe_release(&r);
    return rc;
}

static int do_run(struct recipe *r, const struct arguments *a)
{
    int64_t ranks;
    const char *resume = option_value(a, "resume", NULL);
    TR_TRY(option_int(a, "ranks", 0, &ranks));
    if (option_given(a, "supervise")) return recipe_supervise(r, resume, ranks, a->sets, a->n_sets);
    if (option_given(a, "ranks")) return tr_fail(TR_EINPUT, "--ranks without --supervise (train run): add --supervise, or start with `mpirun -n %s`", option_value(a, "ranks", "N"));
    return recipe_run(r, resume);
}

static int do_plan(struct recipe *r, const struct arguments *a)
{
    if (option_given(a, "vocabularies")) return recipe_plan_vocabularies(r);
    if (option_given(a, "search") && r->parallel.pipeline > 1)
        return tr_fail(TR_EINPUT, "--search with parallel.pipeline = %d (%s): a pipeline is simulated as it stands; leave --search out", (int)r->parallel.pipeline, r->path);
    if (option_given(a, "schedule") || r->parallel.pipeline > 1) return recipe_plan_schedule(r, option_value(a, "schedule", ""), option_given(a, "json"));
    return recipe_plan(r, option_given(a, "json"), option_given(a, "search"));
}

static int do_eval(struct recipe *r, const struct arguments *a) { return recipe_eval(r, option_value(a, "snapshot", NULL)); }
static int do_bench(struct recipe *r, const struct arguments *a) { return recipe_bench(r); }
static int do_data(struct recipe *r, const struct arguments *a) { return recipe_data(r, option_given(a, "json")); }

static int do_generate(struct recipe *r, const struct arguments *a)
{
    struct generate_options o = { .prompt = option_value(a, "prompt", NULL), .snapshot = option_value(a, "snapshot", NULL), .chat = option_given(a, "chat") };
    if (!o.prompt) return tr_fail(TR_EINPUT, "no prompt (train generate): give --prompt TEXT");
    TR_TRY(option_int(a, "max-tokens", 128, &o.max_tokens));
    TR_TRY(option_int(a, "seed", 1, &o.seed));
    TR_TRY(option_real(a, "temperature", 0, &o.temperature));
    TR_TRY(option_real(a, "top-p", 1, &o.top_p));
    return recipe_generate(r, &o);
}

static int do_dump(struct recipe *r, const struct arguments *a)
{
    const char *batch = option_value(a, "batch", NULL), *out = option_value(a, "out", NULL);
    if (!batch || !out) return tr_fail(TR_EINPUT, "no batch or output (train dump): give --batch BATCH.h5 and --out OUT.h5");
    return recipe_dump(r, batch, out, !option_given(a, "no-logits"), !option_given(a, "no-grad"));
}

static int do_export(struct recipe *r, const struct arguments *a)
{
    const char *format = option_value(a, "format", "safetensors"), *out = option_value(a, "out", NULL);
    if (!out) return tr_fail(TR_EINPUT, "no output (train export): give --out PATH");
    if (strcmp(format, "safetensors") && strcmp(format, "gguf")) return tr_fail(TR_EINPUT, "unknown format '%.40s' (--format): it must be safetensors or gguf", format);
    return recipe_export(r, option_value(a, "snapshot", NULL), format, out);
}

#define RECIPE_COMMAND(name) static int cmd_##name(const struct arguments *a) { return load_and(a, do_##name); }
RECIPE_COMMAND(run)
RECIPE_COMMAND(plan)
RECIPE_COMMAND(eval)
RECIPE_COMMAND(generate)
RECIPE_COMMAND(export)
RECIPE_COMMAND(data)
RECIPE_COMMAND(dump)
RECIPE_COMMAND(bench)

static int cmd_compare(const struct arguments *a)
{
    const char *names = option_value(a, "optimizers", NULL);
    if (!names) return tr_fail(TR_EINPUT, "no optimizers (train compare): give --optimizers NAME,NAME,...; `train help optimizer` lists them");
    return recipe_compare(a->args[0], a->sets, a->n_sets, names);
}

#define OPTIONS(...) (const struct command_option[]){ __VA_ARGS__, { NULL, NULL, NULL } }
static const struct command_option none[] = { { NULL, NULL, NULL } };

static int cmd_keep(const struct arguments *a) { return ckpt_keeper_run(a->args[0]); }

static int cmd_replay(const struct arguments *a)
{
    const char *out = option_value(a, "out", NULL);
    if (!out) return tr_fail(TR_EINPUT, "no output (train replay): give --out OUT.h5");
    return recipe_replay(a->args[0], out);
}

static const char compare_help[] =
    "Each optimizer is a run of its own in RUN.DIR/NAME, with the same start, data and seed. Keys of [optimizer] go to every\n"
    "optimizer that has them. A section for one of them holds whole keys:\n\n"
    "  [compare.galore]                 [compare.galore-small]           a second one of a kind\n"
    "  train.lr       = 1e-2            optimizer.name = galore\n"
    "  optimizer.rank = 64              optimizer.rank = 8\n\n"
    "RUN.DIR/compare.html shows all of them; the numbers are in compare.csv, curves.csv and memory.csv, the pictures are .svg.\n"
    "Members that are complete are not run again: the same command continues after a stop (exit code 75) or a failure, and a\n"
    "member whose recipe has changed starts anew. Where one fails the others still run, and the exit code is 1.\n";

const struct command commands[] = {
    { "run", "run RECIPE.ini [--resume [PATH]] [--supervise [--ranks N]]", "train from a recipe", cmd_run, 1, 1,
      OPTIONS({ "resume", "[PATH]", "continue from the newest snapshot of the run folder, or from PATH" },
              { "supervise", NULL, "start the ranks here and start them again from the newest snapshot when they die" },
              { "ranks", "N", "how many, with --supervise [as the recipe says]" }) },
    { "plan", "plan RECIPE.ini [--json]", "tell the memory and speed of a run without starting it", cmd_plan, 1, 1,
      OPTIONS({ "json", NULL, "one JSON object as the last line" }, { "search", NULL, "propose the fastest settings that fit memory.budget" },
              { "schedule", "[FILE.svg]", "simulate the pipeline of the recipe on the devices of [device]: memory and time of each rank, a picture" },
              { "vocabularies", NULL, "simulate it for vocabularies of 32k to 256k, with and without vocabulary parallelism" }) },
    { "compare", "compare RECIPE.ini --optimizers NAME,NAME,...", "the same recipe through several optimizers: curves, memory and speed side by side", cmd_compare, 1, 1,
      OPTIONS({ "optimizers", "NAME,NAME,...", "optimizers, or sections [compare.NAME] of the recipe" }), compare_help },
    { "eval", "eval RECIPE.ini [--snapshot PATH]", "mean loss and perplexity over data.valid", cmd_eval, 1, 1,
      OPTIONS({ "snapshot", "[PATH]", "weights of this snapshot (no PATH: the newest of the run folder) instead of the model's own" }) },
    { "generate", "generate RECIPE.ini --prompt TEXT", "text from the model", cmd_generate, 1, 1,
      OPTIONS({ "prompt", "TEXT", "what to continue" }, { "chat", NULL, "apply the chat template" }, { "snapshot", "[PATH]", "weights of this snapshot (no PATH: the newest)" },
              { "max-tokens", "N", "tokens at most [128]" }, { "temperature", "X", "0 = always the likeliest [0]" }, { "top-p", "X", "from the likeliest tokens that reach this probability [1]" }, { "seed", "N", "of the draws [1]" }) },
    { "export", "export RECIPE.ini --format safetensors|gguf --out PATH", "write a model that transformers or llama.cpp load", cmd_export, 1, 1,
      OPTIONS({ "snapshot", "[PATH]", "weights of this snapshot (no PATH: the newest)" }, { "format", "NAME", "safetensors or gguf [safetensors]" }, { "out", "PATH", "folder (safetensors) or file (gguf)" }) },
    { "inspect", "inspect FILE", "list tensors and metadata of a GGUF, safetensors or snapshot file", cmd_inspect, 1, 1, OPTIONS({ "verify", NULL, "check all checksums of a snapshot" }) },
    { "tokenize", "tokenize MODEL [--jsonl | --decode] < TEXT", "text to token ids, or back", cmd_tokenize, 1, 1,
      OPTIONS({ "jsonl", NULL, "lines of {\"text\": ...}, a line of ids for each" }, { "decode", NULL, "ids to text" }) },
    { "data", "data RECIPE.ini [--json]", "show what will be trained on", cmd_data, 1, 1, OPTIONS({ "json", NULL, "each example as {\"ids\": [...], \"counted\": [...]}" }) },
    { "dump", "dump RECIPE.ini --batch BATCH.h5 --out OUT.h5", "loss, logits and gradients of one batch", cmd_dump, 1, 1,
      OPTIONS({ "batch", "FILE", "tokens and targets, int32 [B,T]" }, { "out", "FILE", "HDF5 file to write" }, { "no-logits", NULL, "leave the logits out" }, { "no-grad", NULL, "leave the gradients out" }) },
    { "replay", "replay IN.h5 --out OUT.h5", "recorded gradients through an optimizer: its weights after each step", cmd_replay, 1, 1,
      OPTIONS({ "out", "FILE", "HDF5 file to write: /param/NAME/weight [steps, shape]" }) },
    { "bench", "bench RECIPE.ini", "tokens/s, share of the matmul rate, memory, time by part", cmd_bench, 1, 1, none },
    { "keep", "keep FOLDER", "the process that holds a run's snapshots in memory; train run starts it where checkpoint.memory_every asks for it", cmd_keep, 1, 1, none },
    { "doctor", "doctor", "what this machine offers", cmd_doctor, 0, 0, none },
    { "help", "help [COMMAND | SECTION | SECTION.KEY | optimizer.NAME]", "explain a command, a section of recipes, a key or an optimizer", cmd_help, 0, 1, none },
    { NULL, NULL, NULL, NULL, 0, 0, NULL },
};

static int dispatch(int argc, char **argv)
{
    struct arguments a = { 0 };
    bool help = false;
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) return cmd_help(&a);
    if (!strcmp(argv[1], "--version")) return puts("train " TR_VERSION), TR_OK;
    const char *names[32];
    int n = 0;
    for (const struct command *c = commands; c->name; c++) {
        names[n++] = c->name;
        if (strcmp(argv[1], c->name)) continue;
        TR_TRY(parse(c, &a, argc - 2, argv + 2, &help));
        return help ? command_help(c) : c->run(&a);
    }
    names[n] = NULL;
    const char *near = tr_nearest(argv[1], names);
    if (near) return tr_fail(TR_EINPUT, "unknown command '%.60s': did you mean 'train %s'?", argv[1], near);
    return tr_fail(TR_EINPUT, "unknown command '%.60s': `train help` lists the commands", argv[1]);
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN); /* a file above the limit is a failed write with its message, not a death */
    struct tr_comm *ranks;
    bool say;
    int rc = par_world(&ranks);
    tr_log_quiet(ranks->rank > 0);
    if (rc == TR_OK) rc = dispatch(argc, argv);
    fflush(stdout);
    rc = par_end(rc, &say);
    if (!say || !tr_message()[0]) {} /* said already */
    else if (rc == TR_ESTOPPED) fprintf(stderr, "train: %s\n", tr_message());
    else if (rc != TR_OK) fprintf(stderr, "train: error: %s\n", tr_message());
    fflush(stderr);
    par_close();
    return rc;
}
