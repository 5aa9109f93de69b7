#include "libtrain/data/show.h"
#include "libtrain/base/status.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum { SHOWN_EXAMPLES = 3, SHOWN_TOKENS = 400 };

static void show_json(FILE *out, const int32_t *ids, const uint8_t *counted, int64_t n)
{
    fputs("{\"ids\": [", out);
    for (int64_t i = 0; i < n; i++) fprintf(out, "%s%d", i ? ", " : "", ids[i]);
    fputs("], \"counted\": [", out);
    for (int64_t i = 0; i < n; i++) fprintf(out, "%s%d", i ? ", " : "", counted[i]);
    fputs("]}\n", out);
}

static void put_text(FILE *out, const struct tr_buf *text) /* nothing that could steer a terminal */
{
    for (size_t i = 0; i < text->size; i++) {
        unsigned char c = (unsigned char)text->data[i];
        fputc((c < 32 && c != '\n' && c != '\t') || c == 127 ? '?' : c, out);
    }
}

static int show_example(FILE *out, const struct tr_tokenizer *t, bool colour, const int32_t *ids,
    const uint8_t *counted, int64_t n)
{
    struct tr_buf text = { 0 };
    int rc = TR_OK;
    int64_t shown = n < SHOWN_TOKENS ? n : SHOWN_TOKENS;
    for (int64_t i = 0; rc == TR_OK && i < shown; i++) {
        if (counted[i] && (i == 0 || !counted[i - 1])) fputs(colour ? "\033[32m" : "[", out);
        text.size = 0;
        rc = tr_decode(t, &text, ids[i], true);
        put_text(out, &text);
        if (counted[i] && (i + 1 == shown || !counted[i + 1])) fputs(colour ? "\033[0m" : "]", out);
    }
    if (shown < n) fprintf(out, " ... (%" PRId64 " more tokens)", n - shown);
    fputc('\n', out);
    tr_buf_release(&text);
    return rc;
}

static void show_counts(FILE *out, const struct tr_data_counts *c)
{
    fprintf(out, "%" PRId64 " examples in %" PRId64 " sequences\n", c->examples, c->sequences);
    fprintf(out, "%" PRId64 " tokens, %" PRId64 " of them counted (%.1f %%)\n", c->tokens, c->counted, c->tokens
        ? 100.0 * (double)c->counted / (double)c->tokens : 0.0);
    fprintf(out, "longest example: %" PRId64 " tokens\n", c->longest);
    fprintf(out, "dropped: %" PRId64 " (no counted token)\n", c->dropped_empty);
    fprintf(out, "cut: %" PRId64 " (longer than data.sequence)\n", c->truncated);
}

int tr_data_show(FILE *out, const struct tr_dataset *d, const struct tr_tokenizer *t, bool json, bool colour)
{
    struct tr_data_counts c = tr_dataset_counts(d);
    if (!json) show_counts(out, &c);
    for (int64_t i = 0; i < c.examples && (json || i < SHOWN_EXAMPLES); i++) {
        const int32_t *ids;
        const uint8_t *counted;
        int64_t n;
        TR_TRY(tr_dataset_example(d, i, &ids, &counted, &n));
        if (json) {
            show_json(out, ids, counted, n);
            continue;
        }
        fprintf(out, "\n-- example %" PRId64 ": %" PRId64 " tokens, counted ones %s\n", i + 1, n, colour ? "green"
            : "in brackets");
        TR_TRY(show_example(out, t, colour, ids, counted, n));
    }
    return fflush(out) || ferror(out) ? tr_fail(TR_EFAIL, "cannot write the examples (standard output): %s",
        strerror(errno)) : TR_OK;
}
