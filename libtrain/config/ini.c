#include "libtrain/config/ini.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static int bad(const struct tr_ini *ini, int line, const char *what, const char *remedy)
{
    return tr_fail(TR_EINPUT, "%s (%s:%d): %s", what, ini->path, line, remedy);
}

/* A comment begins with ; or # at the start or after white space, outside quotes. Returns the length without it and
 * without trailing white space. */
static size_t content(const char *s, size_t n)
{
    bool quoted = false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '"') quoted = !quoted;
        else if (!quoted && (s[i] == ';' || s[i] == '#') && (i == 0 || isspace((unsigned char)s[i - 1]))) {
            n = i;
            break;
        }
    }
    while (n && isspace((unsigned char)s[n - 1])) n--;
    return n;
}

static bool is_name(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)s[i]) && !strchr("_-.", s[i])) return false;
    return n > 0;
}

static int add(struct tr_ini *ini, const char *section, const char *key, size_t key_n, const char *value, size_t value_n, int line)
{
    for (size_t i = 0; i < ini->n; i++)
        if (!strcmp(ini->entry[i].section, section) && strlen(ini->entry[i].key) == key_n && !strncmp(ini->entry[i].key, key, key_n))
            return tr_fail(TR_EINPUT, "key '%s.%.*s' (%s:%d): it was set in line %d already; remove one of them", section, (int)key_n, key, ini->path, line, ini->entry[i].line);
    TR_TRY(tr_grow(&ini->entry, ini->n, &ini->cap, sizeof *ini->entry));
    struct tr_ini_entry *e = &ini->entry[ini->n];
    *e = (struct tr_ini_entry){ .line = line };
    ini->n++;
    TR_TRY(tr_strdup(&e->section, section));
    TR_TRY(tr_strndup(&e->key, key, key_n));
    return tr_strndup(&e->value, value, value_n);
}

static int parse_line(struct tr_ini *ini, char **section, const char *s, size_t n, int line)
{
    while (n && isspace((unsigned char)*s)) s++, n--;
    n = content(s, n);
    if (n == 0) return TR_OK;
    if (*s == '[') {
        if (s[n - 1] != ']' || n < 3) return bad(ini, line, "section heading", "it must be [name]");
        free(*section);
        *section = NULL;
        size_t from = 1, to = n - 1;
        while (from < to && s[from] == ' ') from++;
        while (to > from && s[to - 1] == ' ') to--;
        if (!is_name(s + from, to - from)) return bad(ini, line, "section heading", "a name has letters, digits, '_', '-' and '.'");
        return tr_strndup(section, s + from, to - from);
    }
    const char *eq = memchr(s, '=', n);
    if (!eq) return bad(ini, line, "this line", "it is neither [section], key = value, nor a comment (; or #)");
    size_t key_n = (size_t)(eq - s), value_n = n - key_n - 1;
    while (key_n && isspace((unsigned char)s[key_n - 1])) key_n--;
    if (!is_name(s, key_n)) return bad(ini, line, "key", "a name has letters, digits, '_', '-' and '.'");
    if (!*section) return bad(ini, line, "key before any section", "put a line such as [model] above it");
    const char *value = eq + 1;
    while (value_n && isspace((unsigned char)*value)) value++, value_n--;
    if (value_n && *value == '"') {
        if (value_n < 2 || value[value_n - 1] != '"') return bad(ini, line, "quoted value", "its closing quote is missing");
        value++;
        value_n -= 2;
    }
    return add(ini, *section, s, key_n, value, value_n, line);
}

int tr_ini_parse(struct tr_ini *ini, const char *name, const char *text, size_t size)
{
    *ini = (struct tr_ini){ 0 };
    char *section = NULL;
    int rc, line = 1;
    TR_GO(tr_strdup(&ini->path, name));
    for (size_t at = 0; at < size;) { /* the whole must be UTF-8 without NUL, checked before anything is used */
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(size - at), &c);
        if (n <= 0 || c == 0) TR_GO(bad(ini, line, "invalid UTF-8", "save the file as UTF-8 text"));
        line += c == '\n';
        at += (size_t)n;
    }
    size_t at = size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3) ? 3 : 0;
    for (line = 1; at < size; line++) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t n = end ? (size_t)(end - text) - at : size - at;
        TR_GO(parse_line(ini, &section, text + at, n, line));
        at += n + 1;
    }
    rc = TR_OK;
done:
    free(section);
    if (rc != TR_OK) tr_ini_release(ini);
    return rc;
}

int tr_ini_read(struct tr_ini *ini, const char *path)
{
    struct tr_buf text = { 0 };
    *ini = (struct tr_ini){ 0 };
    int rc = tr_read_file(&text, path);
    if (rc == TR_OK) rc = tr_ini_parse(ini, path, text.data ? text.data : "", text.size);
    tr_buf_release(&text);
    return rc;
}

void tr_ini_release(struct tr_ini *ini)
{
    for (size_t i = 0; i < ini->n; i++) {
        free(ini->entry[i].section);
        free(ini->entry[i].key);
        free(ini->entry[i].value);
    }
    free(ini->entry);
    free(ini->path);
    *ini = (struct tr_ini){ 0 };
}
