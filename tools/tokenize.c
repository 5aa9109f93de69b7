/* `train tokenize`: text to token ids on one line, or back. */
#include "libtrain/base/status.h"
#include "libtrain/data/tokenizer.h"
#include "libtrain/model/weights.h"
#include "tools/command.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int read_all(struct tr_buf *b)
{
    for (size_t n = 1; n;) {
        TR_TRY(tr_buf_reserve(b, 1 << 16));
        n = fread(b->data + b->size, 1, 1 << 16, stdin);
        b->size += n;
        b->data[b->size] = 0;
    }
    return TR_OK;
}

static int print_ids(const struct tr_tokenizer *t, const char *text, size_t n)
{
    struct tr_tokens out = { 0 };
    int rc = tr_encode(t, &out, text, n, true);
    for (size_t i = 0; rc == TR_OK && i < out.n; i++) printf("%s%d", i ? " " : "", out.id[i]);
    if (rc == TR_OK) putchar('\n');
    tr_tokens_release(&out);
    return rc;
}

static int lines(const struct tr_tokenizer *t, const struct tr_buf *b)
{
    int64_t line = 1;
    for (size_t at = 0; at < b->size; line++) {
        const char *end = memchr(b->data + at, '\n', b->size - at);
        size_t n = end ? (size_t)(end - b->data) - at : b->size - at;
        json_error_t error;
        json_t *o = json_loadb(b->data + at, n, JSON_ALLOW_NUL, &error);
        const json_t *text = json_object_get(o, "text");
        int rc = json_is_string(text) ? print_ids(t, json_string_value(text), json_string_length(text))
                                      : tr_fail(TR_EINPUT, "line %" PRId64 " (standard input): it must be an object with \"text\"", line);
        json_decref(o);
        TR_TRY(rc);
        at += n + 1;
    }
    return TR_OK;
}

static int decode(const struct tr_tokenizer *t, const struct tr_buf *b)
{
    struct tr_buf text = { 0 };
    int rc = TR_OK;
    for (char *p = b->data ? b->data : (char *)"", *end; rc == TR_OK; p = end) {
        while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r' || *p == ',') p++;
        if (!*p) break;
        errno = 0;
        long id = strtol(p, &end, 10);
        if (end == p || errno || id < 0 || id > INT32_MAX) rc = tr_fail(TR_EINPUT, "'%.20s' (standard input): it is no token id", p);
        else rc = tr_decode(t, &text, (int32_t)id, true);
    }
    if (rc == TR_OK) fwrite(text.data ? text.data : "", 1, text.size, stdout);
    tr_buf_release(&text);
    return rc;
}

int cmd_tokenize(const struct arguments *a)
{
    struct tr_weights *w = NULL;
    struct tr_tokenizer *t = NULL;
    struct tr_buf b = { 0 };
    size_t n = strlen(a->args[0]);
    bool gguf = n > 5 && !strcmp(a->args[0] + n - 5, ".gguf");
    int rc;
    if (gguf) TR_GO(tr_weights_open(&w, a->args[0]));
    TR_GO(tr_tokenizer_open(&t, gguf ? tr_weights_metadata(w) : NULL, gguf ? "" : a->args[0]));
    TR_GO(read_all(&b));
    rc = option_given(a, "decode") ? decode(t, &b) : option_given(a, "jsonl") ? lines(t, &b) : print_ids(t, b.data ? b.data : "", b.size);
done:
    tr_buf_release(&b);
    tr_tokenizer_free(t);
    tr_weights_free(w);
    return rc;
}
