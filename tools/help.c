/* `train help`: everything from the tables of commands, sections and optimizers. */
#include "libtrain/base/status.h"
#include "optim/optim.h"
#include "tools/command.h"
#include "train_config.h"
#include <stdio.h>
#include <string.h>

int command_help(const struct command *c)
{
    printf("usage: train %s\n  %s\n", c->usage, c->summary);
    bool any = false;
    for (const struct command_option *o = c->options; o && o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", o->name, o->value ? o->value : "");
        printf("%s  %-24s %s\n", any ? "" : "\noptions\n", left, o->help);
        any = true;
    }
    if (strstr(c->usage, "RECIPE")) printf("%s  %-24s %s\n", any ? "" : "\noptions\n", "--set SECTION.KEY=VALUE", "set any recipe key; wins over the file; repeatable");
    if (c->more) printf("\n%s", c->more);
    return TR_OK;
}

static int overview(void)
{
    puts("train " TR_VERSION ": fine-tunes and pretrains language models in little memory\n\ncommands");
    for (const struct command *c = commands; c->name; c++) printf("  %-10s %s\n", c->name, c->summary);
    puts("\nsections of a recipe (train help SECTION, train help SECTION.KEY)");
    for (const struct tr_section *s = recipe_sections(); s->name; s++) printf("  %-10s %s\n", s->name, s->help);
    puts("\noptimizers: train help optimizer\nexit codes: 0 done, 1 failed while running, 2 wrong usage, recipe or input file, 3 above memory.budget,\n"
         "            4 snapshot damaged, 75 stopped on request after a complete snapshot");
    return TR_OK;
}

static int print(struct tr_buf *b, int rc)
{
    if (rc == TR_OK) fputs(b->data ? b->data : "", stdout);
    tr_buf_release(b);
    return rc;
}

int cmd_help(const struct arguments *a)
{
    struct tr_buf b = { 0 };
    const char *names[64];
    int n = 0;
    if (a->n_args == 0) return overview();
    const char *what = a->args[0], *dot = strchr(what, '.');
    for (const struct command *c = commands; c->name; c++) {
        names[n++] = c->name;
        if (!strcmp(what, c->name)) return command_help(c);
    }
    if (!strcmp(what, "optimizer")) {
        puts("[optimizer]  how a gradient becomes an update; name is one of");
        return print(&b, opt_help(&b, NULL));
    }
    if (!strncmp(what, "optimizer.", 10) && opt_find(what + 10)) return print(&b, opt_help(&b, what + 10));
    for (const struct tr_section *s = recipe_sections(); s->name; s++) {
        size_t size = strlen(s->name);
        names[n++] = s->name;
        if (strncmp(what, s->name, size) || (what[size] && what[size] != '.')) continue;
        if (!what[size]) {
            printf("[%s]  %s\n", s->name, s->help);
            return print(&b, tr_options_help(&b, s->options));
        }
        for (const struct tr_option *o = s->options; o->name; o++)
            if (!strcmp(o->name, what + size + 1)) {
                struct tr_option one[2] = { *o, { NULL, TR_OPT_INT, 0, NULL, 0, 0, NULL, NULL } };
                return print(&b, tr_options_help(&b, one));
            }
        return tr_fail(TR_EINPUT, "unknown key '%.80s': `train help %s` lists the keys of this section", what, s->name);
    }
    if (dot && !strncmp(what, "optimizer.", 10)) return opt_help(&b, what + 10); /* its error names the nearest */
    names[n] = NULL;
    const char *near = tr_nearest(what, names);
    if (near) return tr_fail(TR_EINPUT, "no help on '%.80s': did you mean 'train help %s'?", what, near);
    return tr_fail(TR_EINPUT, "no help on '%.80s': `train help` lists commands and sections", what);
}
