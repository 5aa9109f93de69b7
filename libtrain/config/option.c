#include "libtrain/config/option.h"
#include "libtrain/base/status.h"
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static char *where(char *out, size_t n, struct tr_place p)
{
    if (p.line > 0) snprintf(out, n, "%s:%d", p.file, p.line);
    else snprintf(out, n, "%s", p.file ? p.file : "--set");
    return out;
}

/* ---- nearest name */

static int distance(const char *a, const char *b) /* edit distance of two short words; neighbours swapped count one */
{
    enum { MOST = 40 };
    int n = (int)strlen(a), m = (int)strlen(b), d[MOST + 1][MOST + 1];
    if (n > MOST || m > MOST) return MOST;
    for (int i = 0; i <= n; i++) d[i][0] = i;
    for (int k = 0; k <= m; k++) d[0][k] = k;
    for (int i = 1; i <= n; i++)
        for (int k = 1; k <= m; k++) {
            int change = d[i - 1][k - 1] + (a[i - 1] != b[k - 1]), best = d[i - 1][k] < d[i][k - 1] ? d[i - 1][k] + 1 : d[i][k - 1] + 1;
            if (change < best) best = change;
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] && d[i - 2][k - 2] + 1 < best) best = d[i - 2][k - 2] + 1;
            d[i][k] = best;
        }
    return d[n][m];
}

const char *tr_nearest(const char *word, const char *const *names)
{
    const char *best = NULL;
    int least = (int)strlen(word) / 3 + 1; /* one slip in three letters, and one more */
    for (; *names; names++) {
        int d = distance(word, *names);
        if (d <= least && (!best || d < least)) best = *names, least = d;
    }
    return best;
}

/* ---- values */

static bool same_choice(const char *a, size_t n, const char *b)
{
    if (strlen(b) != n) return false;
    for (size_t i = 0; i < n; i++) {
        char x = (char)tolower((unsigned char)a[i]), y = (char)tolower((unsigned char)b[i]);
        if ((x == '_' ? '-' : x) != (y == '_' ? '-' : y)) return false;
    }
    return true;
}

static int choice_index(const char *choices, const char *value)
{
    for (int i = 0; *choices; i++) {
        size_t n = strcspn(choices, "|");
        if (same_choice(choices, n, value)) return i;
        choices += n + (choices[n] == '|');
    }
    return -1;
}

static const char *choice_name(const char *choices, int index, int *length)
{
    for (; index > 0 && *choices; index--) {
        choices += strcspn(choices, "|");
        choices += *choices == '|';
    }
    *length = (int)strcspn(choices, "|");
    return choices;
}

static bool parse_bool(const char *s, bool *out)
{
    static const char *const yes[] = { "true", "yes", "on", "1" }, *const no[] = { "false", "no", "off", "0" };
    for (int i = 0; i < 4; i++) {
        if (!strcasecmp(s, yes[i])) return *out = true, true;
        if (!strcasecmp(s, no[i])) return *out = false, true;
    }
    return false;
}

static bool parse_size(const char *s, int64_t *out)
{
    static const struct { const char *unit; double factor; } units[] = { { "", 1 }, { "B", 1 }, { "K", 1e3 }, { "KB", 1e3 }, { "KiB", 1024 },
        { "M", 1e6 }, { "MB", 1e6 }, { "MiB", 1048576.0 }, { "G", 1e9 }, { "GB", 1e9 }, { "GiB", 1073741824.0 }, { "T", 1e12 }, { "TB", 1e12 }, { "TiB", 1099511627776.0 } };
    char *end;
    double v = strtod(s, &end);
    if (end == s || !(v >= 0)) return false;
    while (*end == ' ') end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (!strcasecmp(end, units[i].unit)) {
            if (v * units[i].factor > 9e18) return false;
            *out = (int64_t)(v * units[i].factor);
            return true;
        }
    return false;
}

/* NULL when `value` was stored, else what is allowed. */
static const char *store(const struct tr_option *o, void *base, const char *value, char *allowed, size_t size)
{
    void *field = (char *)base + o->offset;
    char *end;
    errno = 0;
    switch (o->type) {
    case TR_OPT_INT: {
        int64_t v = strtoll(value, &end, 10);
        bool ok = end != value && !*end && !errno && (o->min == o->max || ((double)v >= o->min && (double)v <= o->max));
        if (ok) return *(int64_t *)field = v, NULL;
        if (o->min == o->max) snprintf(allowed, size, "it must be a whole number");
        else if (o->max >= 1e15) snprintf(allowed, size, "it must be a whole number of at least %.0f", o->min);
        else snprintf(allowed, size, "it must be a whole number from %.0f to %.0f", o->min, o->max);
        return allowed;
    }
    case TR_OPT_REAL: {
        double v = strtod(value, &end);
        bool ok = end != value && !*end && isfinite(v) && (o->min == o->max || (v >= o->min && v <= o->max));
        if (ok) return *(double *)field = v, NULL;
        if (o->min == o->max) snprintf(allowed, size, "it must be a number");
        else if (o->max >= 1e15) snprintf(allowed, size, "it must be a number of at least %g", o->min);
        else snprintf(allowed, size, "it must be a number from %g to %g", o->min, o->max);
        return allowed;
    }
    case TR_OPT_BOOL:
        return parse_bool(value, field) ? NULL : "it must be true or false";
    case TR_OPT_SIZE:
        return parse_size(value, field) ? NULL : "it must be a size such as 12G, 800M or 8GiB";
    case TR_OPT_CHOICE: {
        int i = choice_index(o->choices, value);
        if (i >= 0) return *(int *)field = i, NULL;
        snprintf(allowed, size, "it must be one of %s", o->choices);
        return allowed;
    }
    case TR_OPT_TEXT: {
        char *copy = strdup(value);
        if (!copy) return "there is no memory for it";
        free(*(char **)field);
        *(char **)field = copy;
        return NULL;
    }
    }
    return "its type is unknown";
}

int tr_options_default(const struct tr_option *table, void *base)
{
    char allowed[200];
    for (const struct tr_option *o = table; o->name; o++) {
        if (o->type == TR_OPT_TEXT) *(char **)((char *)base + o->offset) = NULL;
        const char *bad = store(o, base, o->fallback, allowed, sizeof allowed);
        if (bad) return tr_fail(TR_EFAIL, "default of '%s': %s", o->name, bad);
    }
    return TR_OK;
}

void tr_options_release(const struct tr_option *table, void *base)
{
    for (const struct tr_option *o = table; o->name; o++)
        if (o->type == TR_OPT_TEXT) {
            free(*(char **)((char *)base + o->offset));
            *(char **)((char *)base + o->offset) = NULL;
        }
}

int tr_options_set(const char *section, const struct tr_option *table, void *base, const char *key, const char *value, struct tr_place place)
{
    char allowed[400], at[512];
    const char *names[128];
    size_t n = 0;
    for (const struct tr_option *o = table; o->name; o++) {
        if (n < 127) names[n++] = o->name;
        if (!same_choice(key, strlen(key), o->name)) continue;
        const char *bad = store(o, base, value, allowed, sizeof allowed);
        if (!bad) return TR_OK;
        return tr_fail(TR_EINPUT, "bad value '%.80s' for '%s.%s' (%s): %s", value, section, o->name, where(at, sizeof at, place), bad);
    }
    names[n] = NULL;
    const char *near = tr_nearest(key, names);
    if (near) return tr_fail(TR_EINPUT, "unknown key '%s.%.80s' (%s): did you mean '%s.%s'?", section, key, where(at, sizeof at, place), section, near);
    return tr_fail(TR_EINPUT, "unknown key '%s.%.80s' (%s): `train help %s` lists the keys of this section", section, key, where(at, sizeof at, place), section);
}

static int print_value(struct tr_buf *out, const struct tr_option *o, const void *base)
{
    const void *field = (const char *)base + o->offset;
    int n;
    const char *name;
    switch (o->type) {
    case TR_OPT_INT: case TR_OPT_SIZE: return tr_buf_printf(out, "%" PRId64, *(const int64_t *)field);
    case TR_OPT_REAL: {
        char text[40];
        snprintf(text, sizeof text, "%.15g", *(const double *)field);
        if (strtod(text, NULL) != *(const double *)field) snprintf(text, sizeof text, "%.17g", *(const double *)field);
        return tr_buf_puts(out, text);
    }
    case TR_OPT_BOOL: return tr_buf_puts(out, *(const bool *)field ? "true" : "false");
    case TR_OPT_CHOICE: name = choice_name(o->choices, *(const int *)field, &n); return tr_buf_add(out, name, (size_t)n);
    case TR_OPT_TEXT: {
        const char *s = *(char *const *)field;
        bool quote = s[0] && (strpbrk(s, ";#\"") || isspace((unsigned char)s[0]) || isspace((unsigned char)s[strlen(s) - 1]));
        return tr_buf_printf(out, quote ? "\"%s\"" : "%s", s);
    }
    }
    return TR_OK;
}

int tr_options_print(struct tr_buf *out, const struct tr_option *table, const void *base)
{
    for (const struct tr_option *o = table; o->name; o++) {
        TR_TRY(tr_buf_printf(out, "%s = ", o->name));
        TR_TRY(print_value(out, o, base));
        TR_TRY(tr_buf_puts(out, "\n"));
    }
    return TR_OK;
}

int tr_options_help(struct tr_buf *out, const struct tr_option *table)
{
    for (const struct tr_option *o = table; o->name; o++) {
        TR_TRY(tr_buf_printf(out, "  %-18s %s", o->name, o->help));
        if (o->choices) TR_TRY(tr_buf_printf(out, " (%s)", o->choices));
        if (o->fallback[0]) TR_TRY(tr_buf_printf(out, " [%s]", o->fallback));
        TR_TRY(tr_buf_puts(out, "\n"));
    }
    return TR_OK;
}
