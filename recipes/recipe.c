#include "recipes/recipe.h"
#include "checkpoint/code.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define AT(field) offsetof(struct recipe, field)
#define END { NULL, TR_OPT_INT, 0, NULL, 0, 0, NULL, NULL }
static const double BIG = 1e15;

static const struct tr_option model_options[] = {
    { "path", TR_OPT_TEXT, AT(model.path), "", 0, 0, NULL, "a .gguf file, or a folder with config.json and *.safetensors" },
    { "preset", TR_OPT_TEXT, AT(model.preset), "", 0, 0, NULL, "a shape to train from scratch: llama-tiny, llama-60m, -130m, -350m, -1b, -7b, -13b, -70b, -405b, gpt2-124m, -355m, -774m, -1558m" },
    { "arch", TR_OPT_CHOICE, AT(model.arch), "llama", 0, 0, "llama|mistral|qwen2|qwen3|gpt2", "architecture of a from-scratch model" },
    { "hidden", TR_OPT_INT, AT(model.hidden), "0", 0, 1 << 20, NULL, "width of the residual stream" },
    { "layers", TR_OPT_INT, AT(model.layers), "0", 0, 4096, NULL, "blocks" },
    { "heads", TR_OPT_INT, AT(model.heads), "0", 0, 4096, NULL, "attention heads" },
    { "kv_heads", TR_OPT_INT, AT(model.kv_heads), "0", 0, 4096, NULL, "key/value heads; 0 = as many as heads" },
    { "head_dim", TR_OPT_INT, AT(model.head_dim), "0", 0, 512, NULL, "size of a head; 0 = hidden / heads" },
    { "intermediate", TR_OPT_INT, AT(model.intermediate), "0", 0, 1 << 22, NULL, "width inside the MLP; 0 = 8/3 hidden (gpt2: 4 hidden)" },
    { "vocab", TR_OPT_INT, AT(model.vocab), "0", 0, 1 << 24, NULL, "tokens in the vocabulary" },
    { "context", TR_OPT_INT, AT(model.context), "0", 0, 1 << 24, NULL, "longest sequence in tokens" },
    { "tied", TR_OPT_CHOICE, AT(model.tied), "auto", 0, 0, "auto|false|true", "one matrix for embedding and output head" },
    { "rope_theta", TR_OPT_REAL, AT(model.rope_theta), "0", 0, 1e12, NULL, "base of the rotary frequencies; 0 = 10000" },
    { "norm_eps", TR_OPT_REAL, AT(model.norm_eps), "0", 0, 1, NULL, "epsilon of the norms; 0 = 1e-6 (gpt2: 1e-5)" },
    { "tokenizer", TR_OPT_TEXT, AT(model.tokenizer), "", 0, 0, NULL, "tokenizer.json, folder or .gguf when not inside path; bytes = raw bytes" },
    { "dtype", TR_OPT_CHOICE, AT(model.dtype), "auto", 0, 0, "auto|f32|bf16|int8", "type of the weights; auto = bf16 for a model read from path, f32 from scratch, int8 under q-apollo" },
    { "compute", TR_OPT_CHOICE, AT(model.compute), "auto", 0, 0, "auto|f32|bf16", "type of the arithmetic; auto = bf16 for bf16 and int8 weights where the CPU has it, else f32" },
    END
};

static const struct tr_option train_options[] = {
    { "steps", TR_OPT_INT, AT(train.steps), "0", 0, BIG, NULL, "optimizer steps; 0 = by epochs" },
    { "epochs", TR_OPT_REAL, AT(train.epochs), "0", 0, 1e9, NULL, "passes over the data; 0 = by steps (1 when both are 0)" },
    { "batch", TR_OPT_INT, AT(train.batch), "8", 1, 1 << 24, NULL, "sequences per optimizer step over all ranks" },
    { "micro_batch", TR_OPT_INT, AT(train.micro_batch), "0", 0, 1 << 24, NULL, "sequences at a time; divides batch; 0 = all that a rank has of the batch" },
    { "seed", TR_OPT_INT, AT(train.seed), "1", 0, BIG, NULL, "of initial weights, shuffling and every draw" },
    { "lr", TR_OPT_REAL, AT(train.lr), "1e-4", 0, 1e6, NULL, "learning rate after warm-up" },
    { "schedule", TR_OPT_CHOICE, AT(train.schedule), "cosine", 0, 0, "constant|linear|cosine|wsd", "how it falls to min_lr; wsd = constant, then linear over the last fifth" },
    { "warmup", TR_OPT_INT, AT(train.warmup), "0", 0, BIG, NULL, "steps of linear warm-up" },
    { "min_lr", TR_OPT_REAL, AT(train.min_lr), "0", 0, 1e6, NULL, "learning rate at the last step" },
    { "clip", TR_OPT_REAL, AT(train.clip), "0", 0, 1e9, NULL, "largest global norm of the gradient; 0 = off" },
    { "log_every", TR_OPT_INT, AT(train.log_every), "10", 1, BIG, NULL, "steps between two lines where stderr is no terminal" },
    { "eval_every", TR_OPT_INT, AT(train.eval_every), "0", 0, BIG, NULL, "steps between evaluations on data.valid; 0 = at the end" },
    { "stop_at", TR_OPT_INT, AT(train.stop_at), "0", 0, BIG, NULL, "stop after this step with a complete snapshot, schedules unchanged; 0 = never" },
    END
};

static const struct tr_option memory_options[] = {
    { "budget", TR_OPT_SIZE, AT(memory.budget), "0", 0, 0, NULL, "refuse to start when the plan is above it, e.g. 12G; 0 = no limit" },
    { "recompute", TR_OPT_CHOICE, AT(memory.recompute), "selective", 0, 0, "none|selective|block|auto", "activations computed again in backward: norms and products, or whole blocks; auto = the least that fits the budget" },
    { "fused_update", TR_OPT_CHOICE, AT(memory.fused_update), "auto", 0, 0, "auto|true|false", "update each parameter inside backward and drop its gradient; auto = where clipping and micro-batches allow it" },
    { "offload", TR_OPT_CHOICE, AT(memory.offload), "none", 0, 0, "none|host|disk", "where optimizer state and saved activations wait while they are not in use; host needs a device with memory of its own" },
    { "offload_dir", TR_OPT_TEXT, AT(memory.offload_dir), "", 0, 0, NULL, "folder of the offload files; default the run folder" },
    END
};

static const struct tr_option parallel_options[] = {
    { "data", TR_OPT_INT, AT(parallel.data), "1", 1, 1 << 20, NULL, "ranks that share the batch" },
    { "pipeline", TR_OPT_INT, AT(parallel.pipeline), "1", 1, 4096, NULL, "ranks that share the layers" },
    { "zero", TR_OPT_INT, AT(parallel.zero), "0", 0, 3, NULL, "ZeRO stage: 1 shards optimizer state, 2 gradients too, 3 weights too" },
    { "timeout", TR_OPT_REAL, AT(parallel.timeout), "120", 1, 1e6, NULL, "seconds that a rank waits for another before the run ends" },
    { "schedule", TR_OPT_CHOICE, AT(parallel.schedule), "1f1b", 0, 0, "1f1b|interleaved|zero-bubble|v-half|v-min", "order of the pipeline's passes" },
    { "vocabulary", TR_OPT_CHOICE, AT(parallel.vocabulary), "none", 0, 0, "none|alg1|alg2", "vocabulary parallelism over the pipeline" },
    { "layers", TR_OPT_TEXT, AT(parallel.layers), "", 0, 0, NULL, "layers of each stage of the pipeline, as 4,4,3; empty = by their work" },
    { "backend", TR_OPT_CHOICE, AT(parallel.backend), "auto", 0, 0, "auto|mpi|nccl", "what moves bytes between ranks; auto: NCCL between devices where each rank has it and a device of its own, else MPI" },
    END
};

static const struct tr_option device_options[] = {
    { "flops", TR_OPT_REAL, AT(device.flops), "0", 0, 1e18, NULL, "matmul FLOP/s that a device reaches; 0 = this machine's, measured" },
    { "link", TR_OPT_REAL, AT(device.link), "10e9", 1, 1e15, NULL, "bytes/s between two devices" },
    { "latency", TR_OPT_REAL, AT(device.latency), "10e-6", 0, 10, NULL, "seconds that a message takes whatever its size" },
    END
};

static const struct tr_option checkpoint_options[] = {
    { "every", TR_OPT_INT, AT(checkpoint.every), "100", 0, BIG, NULL, "steps between snapshots on disk, the last step included; 0 = none" },
    { "memory_every", TR_OPT_INT, AT(checkpoint.memory_every), "0", 0, BIG, NULL, "steps between snapshots in memory, twice the state: copied while training goes on, resumed from when processes die; 0 = none" },
    { "keep", TR_OPT_INT, AT(checkpoint.keep), "2", 0, BIG, NULL, "newest snapshots that stay; 0 = all" },
    { "redundancy", TR_OPT_TEXT, AT(checkpoint.redundancy), "", 0, 0, NULL, "erasure code of snapshots in memory over nodes, data + parity: with 3+1 one of every 4 nodes may be lost" },
    { "compress", TR_OPT_INT, AT(checkpoint.compress), "0", 0, 9, NULL, "deflate level of snapshots; 0 = off" },
    END
};

static const struct tr_option run_options[] = {
    { "dir", TR_OPT_TEXT, AT(run.dir), "", 0, 0, NULL, "run folder; default runs/<recipe name>" },
    { "name", TR_OPT_TEXT, AT(run.name), "", 0, 0, NULL, "title of the report; default the recipe's name" },
    { "device", TR_OPT_CHOICE, AT(run.device), "auto", 0, 0, "cpu|cuda|auto", "where to compute" },
    { "threads", TR_OPT_INT, AT(run.threads), "0", 0, 4096, NULL, "threads of a process; 0 = all cores" },
    { "tensorboard", TR_OPT_BOOL, AT(run.tensorboard), "false", 0, 0, NULL, "also write event files for TensorBoard" },
    END
};

static const struct tr_option no_options[] = { END };

static struct tr_section sections[] = {
    { "model", "what is trained: a model read from path, or a shape from scratch", model_options, 0 },
    { "data", "what it is trained on", NULL, AT(data) },
    { "train", "how long, in which steps, at which rate", train_options, 0 },
    { "optimizer", "how a gradient becomes an update; keys of each: train help optimizer.NAME", no_options, 0 },
    { "memory", "what memory may be used and how it is saved", memory_options, 0 },
    { "parallel", "the grid of ranks", parallel_options, 0 },
    { "device", "what train plan --schedule simulates ranks of", device_options, 0 },
    { "checkpoint", "snapshots", checkpoint_options, 0 },
    { "run", "where the run happens and what it leaves", run_options, 0 },
    { NULL, NULL, NULL, 0 },
};

const struct tr_section *recipe_sections(void)
{
    sections[1].options = tr_data_section.options; /* not a constant of this file */
    return sections;
}

static void *base_of(struct recipe *r, const struct tr_section *s) { return (char *)r + (s->options == tr_data_section.options ? AT(data) : 0); }

/* ---- reading */

struct entries { struct opt_entry **entry; size_t *n, *cap; };

static struct entries optimizer_entries(struct recipe *r) { return (struct entries){ &r->optimizer, &r->n_optimizer, &r->cap_optimizer }; }
static struct entries compare_entries(struct recipe *r) { return (struct entries){ &r->compare, &r->n_compare, &r->cap_compare }; }

static void entry_release(struct opt_entry *e)
{
    free(e->section);
    free(e->key);
    free(e->value);
}

/* A later value of the same key takes the place of an earlier one: --set wins over the file. */
static int add_entry(struct entries to, const char *section, const char *key, const char *value, struct tr_place place)
{
    for (size_t i = 0; i < *to.n; i++) {
        struct opt_entry *e = &(*to.entry)[i];
        if (strcmp(e->section, section) || strcmp(e->key, key)) continue;
        free(e->value);
        e->place = place;
        return tr_strdup(&e->value, value);
    }
    TR_TRY(tr_grow(to.entry, *to.n, to.cap, sizeof **to.entry));
    struct opt_entry *e = &(*to.entry)[*to.n];
    *e = (struct opt_entry){ .place = place };
    ++*to.n;
    TR_TRY(tr_strdup(&e->section, section));
    TR_TRY(tr_strdup(&e->key, key));
    return tr_strdup(&e->value, value);
}

static const char *place_text(char *out, size_t size, struct tr_place place)
{
    if (place.line > 0) snprintf(out, size, "%s:%d", place.file, place.line);
    else snprintf(out, size, "--set");
    return out;
}

static bool is_compare(const char *section) { return !strncmp(section, "compare.", 8); }

/* A key of [compare.NAME]; it is checked when the member is put together. */
static int add_compare(struct recipe *r, const char *section, const char *key, const char *value, struct tr_place place)
{
    char at[300];
    const char *name = section + 8;
    if (!name[0] || name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")])
        return tr_fail(TR_EINPUT, "section [%.80s] (%s): the name after 'compare.' has letters, digits, '_' and '-'", section, place_text(at, sizeof at, place));
    if (!strchr(key, '.')) return tr_fail(TR_EINPUT, "key '%.60s' of [%.80s] (%s): it must be a whole key, such as train.lr or optimizer.rank", key, section, place_text(at, sizeof at, place));
    if (!strncmp(key, "data.", 5) || !strncmp(key, "run.", 4) || !strcmp(key, "train.seed") || is_compare(key))
        return tr_fail(TR_EINPUT, "key '%.60s' of [%.80s] (%s): members of a comparison share data, seed and run; set it in its own section", key, section, place_text(at, sizeof at, place));
    return add_entry(compare_entries(r), section, key, value, place);
}

static int set(struct recipe *r, const char *section, const char *key, const char *value, struct tr_place place)
{
    if (!strcmp(section, "optimizer") || !strncmp(section, "optimizer.group.", 16)) return add_entry(optimizer_entries(r), section, key, value, place);
    if (is_compare(section)) return add_compare(r, section, key, value, place);
    const char *names[16];
    size_t n = 0;
    for (const struct tr_section *s = recipe_sections(); s->name; s++) {
        names[n++] = s->name;
        if (!strcmp(s->name, section)) return tr_options_set(section, s->options, base_of(r, s), key, value, place);
    }
    names[n] = NULL;
    const char *near = tr_nearest(section, names);
    char at[300];
    return tr_fail(TR_EINPUT, "unknown section '%.80s' (%s): %s%s%s", section, place_text(at, sizeof at, place), near ? "did you mean '" : "the sections are model, data, train, optimizer, optimizer.group.NAME, compare.NAME, memory, parallel, device, checkpoint and run",
                   near ? near : "", near ? "'?" : "");
}

/* "section.key" up to `end` in two: at the last dot, since names of sections have dots; of compare.NAME.KEY at the second. */
static int split_key(const char *text, const char *end, char **section, char **key)
{
    const char *dot = NULL;
    int dots = 0;
    for (const char *c = text; c < end; c++)
        if (*c == '.' && (!is_compare(text) || ++dots <= 2)) dot = c;
    *section = *key = NULL;
    if (!dot || dot == text || end == dot + 1) return tr_fail(TR_EINPUT, "bad key '%.*s': it must be section.key", end - text < 80 ? (int)(end - text) : 80, text);
    TR_TRY(tr_strndup(section, text, (size_t)(dot - text)));
    return tr_strndup(key, dot + 1, (size_t)(end - dot - 1));
}

static int set_whole(struct recipe *r, const char *text, const char *end, const char *value, struct tr_place place)
{
    char *section, *key;
    int rc = split_key(text, end, &section, &key);
    if (rc == TR_OK) rc = set(r, section, key, value, place);
    free(section);
    free(key);
    return rc;
}

int recipe_set(struct recipe *r, const char *text)
{
    const char *eq = strchr(text, '='), *dot = strchr(text, '.');
    if (!eq || !dot || dot == text || dot > eq || eq[-1] == '.') return tr_fail(TR_EINPUT, "bad override '%.80s' (--set): it must be section.key=value", text);
    return set_whole(r, text, eq, eq + 1, (struct tr_place){ "--set", 0 });
}

/* Another optimizer knows other keys. */
static void forget_keys(struct recipe *r)
{
    size_t kept = 0;
    for (size_t i = 0; i < r->n_optimizer; i++) {
        struct opt_entry *e = &r->optimizer[i];
        if (strcmp(e->section, "optimizer") || !strcmp(e->key, "weight_decay")) {
            r->optimizer[kept++] = *e;
            continue;
        }
        entry_release(e);
    }
    r->n_optimizer = kept;
}

int recipe_set_optimizer(struct recipe *r, const char *name)
{
    forget_keys(r);
    return add_entry(optimizer_entries(r), "optimizer", "name", name, (struct tr_place){ "--set", 0 });
}

/* ---- checks of combinations */

static int fill_names(struct recipe *r)
{
    const char *slash = strrchr(r->path, '/'), *name = slash ? slash + 1 : r->path, *dot = strrchr(name, '.');
    int n = dot ? (int)(dot - name) : (int)strlen(name);
    struct tr_buf b = { 0 };
    if (!r->run.name[0]) {
        free(r->run.name);
        r->run.name = NULL;
        TR_TRY(tr_strndup(&r->run.name, name, (size_t)n));
    }
    if (r->run.dir[0]) return TR_OK;
    TR_TRY(tr_buf_printf(&b, "runs/%.*s", n, name));
    free(r->run.dir);
    r->run.dir = b.data;
    return TR_OK;
}

/* What this build cannot do is refused wherever the recipe is read; remove a line here with what builds it. */
static int refuse_unbuilt(const struct recipe *r)
{
    const char *p = r->path;
    if (r->parallel.pipeline == 1 && (r->parallel.schedule || r->parallel.vocabulary || r->parallel.layers[0]))
        return tr_fail(TR_EINPUT, "parallel.%s (%s): it has a meaning with parallel.pipeline above 1 only; remove it", r->parallel.schedule ? "schedule" : r->parallel.vocabulary ? "vocabulary" : "layers", p);
    return TR_OK;
}

static int check_redundancy(const struct recipe *r)
{
    int k, m;
    if (!r->checkpoint.redundancy[0]) return TR_OK;
    if (ckpt_code_parse(r->checkpoint.redundancy, &k, &m) != TR_OK) {
        char why[120];
        snprintf(why, sizeof why, "%.119s", tr_message());
        return tr_fail(TR_EINPUT, "checkpoint.redundancy = %.40s (%s): %s", r->checkpoint.redundancy, r->path, why);
    }
    if (r->checkpoint.memory_every == 0)
        return tr_fail(TR_EINPUT, "checkpoint.redundancy = %s (%s): it protects snapshots in memory, and there are none; set checkpoint.memory_every, or remove it", r->checkpoint.redundancy, r->path);
    return TR_OK;
}

static int check(struct recipe *r)
{
    const char *p = r->path;
    bool shape = r->model.preset[0] || r->model.hidden;
    if (r->model.path[0] && r->model.preset[0]) return tr_fail(TR_EINPUT, "model.path and model.preset are both set (%s): remove one of them", p);
    if (!r->model.path[0] && !shape) return tr_fail(TR_EINPUT, "no model (%s): set model.path to a file or folder, or model.preset to a shape", p);
    if (r->model.path[0] && r->model.hidden) return tr_fail(TR_EINPUT, "model.path and model.hidden are both set (%s): a model that is read has its own shape; remove one of them", p);
    if (r->train.steps > 0 && r->train.epochs > 0) return tr_fail(TR_EINPUT, "train.steps and train.epochs are both set (%s): remove one of them", p);
    if (r->train.steps == 0 && r->train.epochs == 0) r->train.epochs = 1;
    if (r->train.micro_batch == 0) r->train.micro_batch = r->train.batch % r->parallel.data ? r->train.batch : r->train.batch / r->parallel.data;
    if (r->train.batch % r->train.micro_batch)
        return tr_fail(TR_EINPUT, "train.batch = %" PRId64 " (%s): train.micro_batch = %" PRId64 " does not divide it", r->train.batch, p, r->train.micro_batch);
    if (r->train.min_lr > r->train.lr) return tr_fail(TR_EINPUT, "train.min_lr = %g (%s): it is above train.lr = %g", r->train.min_lr, p, r->train.lr);
    const struct opt_kind *kind = opt_find(recipe_optimizer(r));
    if (r->model.dtype == RECIPE_DTYPE_AUTO) r->model.dtype = kind && kind->for_int8 ? RECIPE_INT8 : r->model.path[0] ? RECIPE_BF16 : RECIPE_F32;
    TR_TRY(refuse_unbuilt(r));
    if (r->memory.offload == RECIPE_OFFLOAD_HOST)
        return tr_fail(TR_EINPUT, "memory.offload = host (%s): on a CPU everything is in the host's memory already, nothing would be saved; set memory.offload = disk or none", p);
    if (r->memory.offload_dir[0] && r->memory.offload != RECIPE_OFFLOAD_DISK)
        return tr_fail(TR_EINPUT, "memory.offload_dir (%s): it has a meaning with memory.offload = disk only; remove it or set that", p);
    if (r->checkpoint.memory_every > 0 && r->memory.offload == RECIPE_OFFLOAD_DISK)
        return tr_fail(TR_EINPUT, "checkpoint.memory_every = %" PRId64 " with memory.offload = disk (%s): snapshots in memory would hold what waits on disk; set checkpoint.memory_every = 0 or memory.offload = none", r->checkpoint.memory_every, p);
    TR_TRY(check_redundancy(r));
    if (r->memory.recompute == RECIPE_RECOMPUTE_AUTO && r->memory.budget == 0) r->memory.recompute = RECIPE_RECOMPUTE_SELECTIVE;
    TR_TRY(fill_names(r));
    return opt_check(r->optimizer, r->n_optimizer, p);
}

/* What file and command line say, unchecked. */
static int read(struct recipe *r, const char *path, const char *const *sets, size_t n_sets)
{
    struct tr_ini ini = { 0 };
    int rc;
    *r = (struct recipe){ 0 };
    for (const struct tr_section *s = recipe_sections(); s->name; s++) TR_GO(tr_options_default(s->options, base_of(r, s)));
    TR_GO(tr_strdup(&r->path, path));
    TR_GO(tr_ini_read(&ini, path));
    for (size_t i = 0; i < ini.n; i++) TR_GO(set(r, ini.entry[i].section, ini.entry[i].key, ini.entry[i].value, (struct tr_place){ r->path, ini.entry[i].line }));
    for (size_t i = 0; i < n_sets; i++) TR_GO(recipe_set(r, sets[i]));
    rc = TR_OK;
done:
    tr_ini_release(&ini);
    return rc;
}

/* ---- members of a comparison */

static bool same_name(const char *a, const char *b)
{
    for (; *a && (*a == *b || (*a == '_' && *b == '-') || (*a == '-' && *b == '_')); a++, b++) {}
    return *a == *b;
}

static bool given(const char *key, const char *const *sets, size_t n_sets)
{
    size_t n = strlen(key);
    for (size_t i = 0; i < n_sets; i++)
        if (!strncmp(sets[i], key, n) && sets[i][n] == '=') return true;
    return false;
}

const char *recipe_optimizer(const struct recipe *r)
{
    const char *name = "adamw";
    for (size_t i = 0; i < r->n_optimizer; i++)
        if (!strcmp(r->optimizer[i].section, "optimizer") && !strcmp(r->optimizer[i].key, "name")) name = r->optimizer[i].value;
    return name;
}

/* Keys that only other optimizers have; one that none has stays and is refused. */
static void drop_foreign(struct recipe *r)
{
    const char *name = recipe_optimizer(r);
    size_t kept = 0;
    for (size_t i = 0; i < r->n_optimizer; i++) {
        struct opt_entry *e = &r->optimizer[i];
        if (!strcmp(e->section, "optimizer") && opt_find(name) && !opt_has_key(name, e->key) && opt_has_key(NULL, e->key)) entry_release(e);
        else r->optimizer[kept++] = *e;
    }
    r->n_optimizer = kept;
}

/* The k-th key of the member's own section, NULL after the last. */
static const struct opt_entry *own_key(const struct recipe *r, const char *member, size_t *k)
{
    while (*k < r->n_compare && !same_name(r->compare[*k].section + 8, member)) ++*k;
    return *k < r->n_compare ? &r->compare[(*k)++] : NULL;
}

static int unknown_member(const struct recipe *r, const char *member)
{
    const char *names[256] = { NULL };
    char at[300];
    size_t n = 0, k = 0;
    const struct opt_entry *own = own_key(r, member, &k);
    if (own) return tr_fail(TR_EINPUT, "section [%.80s] (%s): its name is no optimizer's; add optimizer.name = ...", own->section, place_text(at, sizeof at, own->place));
    for (; opt_kinds[n] && n < 128; n++) names[n] = opt_kinds[n]->name;
    for (k = 0; k < r->n_compare && n < 255; k++) names[n++] = r->compare[k].section + 8;
    const char *near = tr_nearest(member, names);
    return tr_fail(TR_EINPUT, "unknown optimizer '%.60s' (--optimizers): %s%s%s", member, near ? "did you mean '" : "it is neither in `train help optimizer` nor a section [compare.NAME]",
                   near ? near : "", near ? "'?" : "");
}

static int become_member(struct recipe *r, const char *const *sets, size_t n_sets, const char *member)
{
    const struct opt_entry *e, *name = NULL;
    for (size_t k = 0; (e = own_key(r, member, &k));)
        if (!strcmp(e->key, "optimizer.name")) name = e;
    if (!name && !opt_find(member)) return unknown_member(r, member);
    TR_TRY(set(r, "optimizer", "name", name ? name->value : member, name ? name->place : (struct tr_place){ r->path, 0 }));
    drop_foreign(r); /* before its own keys, which must fit it */
    for (size_t k = 0; (e = own_key(r, member, &k));)
        if (e != name && !(e->place.line > 0 && given(e->key, sets, n_sets))) TR_TRY(set_whole(r, e->key, e->key + strlen(e->key), e->value, e->place));
    struct tr_buf dir = { 0 }, title = { 0 };
    TR_TRY(tr_buf_printf(&dir, "%s/%s", r->run.dir, member));
    free(r->run.dir);
    r->run.dir = dir.data;
    TR_TRY(tr_buf_printf(&title, "%s: %s", r->run.name, member));
    free(r->run.name);
    r->run.name = title.data;
    return TR_OK;
}

int recipe_load_member(struct recipe *r, const char *path, const char *const *sets, size_t n_sets, const char *member)
{
    TR_TRY(read(r, path, sets, n_sets));
    TR_TRY(fill_names(r));
    TR_TRY(become_member(r, sets, n_sets, member));
    return check(r);
}

int recipe_load(struct recipe *r, const char *path, const char *const *sets, size_t n_sets)
{
    TR_TRY(read(r, path, sets, n_sets));
    TR_TRY(check(r));
    for (size_t i = 0; i < r->n_compare; i++) { /* what a comparison would meet is said by every command */
        struct recipe m;
        if (i > 0 && !strcmp(r->compare[i].section, r->compare[i - 1].section)) continue;
        int rc = recipe_load_member(&m, path, sets, n_sets, r->compare[i].section + 8);
        recipe_release(&m);
        TR_TRY(rc);
    }
    return TR_OK;
}

void recipe_release(struct recipe *r)
{
    for (const struct tr_section *s = recipe_sections(); s->name; s++) tr_options_release(s->options, base_of(r, s));
    for (size_t i = 0; i < r->n_optimizer; i++) entry_release(&r->optimizer[i]);
    for (size_t i = 0; i < r->n_compare; i++) entry_release(&r->compare[i]);
    free(r->optimizer);
    free(r->compare);
    free(r->path);
    *r = (struct recipe){ 0 };
}

int recipe_print(const struct recipe *r, struct tr_buf *out)
{
    for (const struct tr_section *s = recipe_sections(); s->name; s++) {
        if (!strcmp(s->name, "optimizer")) continue;
        TR_TRY(tr_buf_printf(out, "[%s]\n", s->name));
        TR_TRY(tr_options_print(out, s->options, base_of((struct recipe *)(uintptr_t)r, s)));
        TR_TRY(tr_buf_puts(out, "\n"));
    }
    return opt_print(r->optimizer, r->n_optimizer, out);
}

int recipe_write_config(const struct recipe *r)
{
    struct tr_buf text = { 0 };
    int rc = recipe_print(r, &text);
    if (rc == TR_OK) rc = tr_write_file(r->run.dir, "config.ini", &text);
    tr_buf_release(&text);
    return rc;
}
