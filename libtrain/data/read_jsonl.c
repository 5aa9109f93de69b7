/* Lines of JSON: conversations ("messages"), pairs ("prompt", "completion") or plain documents ("text"). */
#include "libtrain/data/dataset_impl.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <string.h>

static int refuse(const struct tr_reading *r, const char *why)
{
    return tr_fail(TR_EINPUT, "bad example (%s:%" PRId64 "): %s", r->file, r->line, why);
}

/* Tokens of one text with the ranges that are learnt; eos: the document ends with that token. */
static int add_document(struct tr_reading *r, const struct tr_buf *text, const struct tr_spans *counted, bool bos, bool eos)
{
    struct tr_dataset *d = r->d;
    struct tr_tokens ids = { 0 };
    size_t begin = d->tokens, span = 0;
    bool all = !r->c->mask_prompt;
    int rc = tr_encode(r->t, &ids, text->size ? text->data : "", text->size, true);
    if (rc != TR_OK) rc = tr_fail(rc, "bad example (%s:%" PRId64 "): %s", r->file, r->line, tr_message());
    if (rc == TR_OK && bos) rc = tr_dataset_token(r, tr_tokenizer_bos(r->t), false);
    for (size_t i = 0; rc == TR_OK && i < ids.n; i++) {
        size_t from = (size_t)ids.from[i];
        while (span < counted->n && counted->at[span].end <= from) span++;
        rc = tr_dataset_token(r, ids.id[i], d->tokens > begin && (all || (span < counted->n && from >= counted->at[span].begin)));
    }
    if (rc == TR_OK && eos && ids.n) rc = tr_dataset_token(r, tr_tokenizer_eos(r->t), true);
    tr_tokens_release(&ids);
    TR_TRY(rc);

    size_t examples = d->examples, n = d->tokens - begin;
    if (n > (size_t)r->c->sequence) {
        n = (size_t)r->c->sequence;
        d->counts.truncated++;
    }
    TR_TRY(tr_dataset_add_example(r, begin, (struct tr_example){ .n = (int32_t)n }));
    d->tokens = begin + (d->examples > examples ? n : 0);
    return TR_OK;
}

static int add_chat(struct tr_reading *r, const json_t *messages)
{
    struct tr_buf text = { 0 };
    struct tr_spans counted = { 0 };
    if (!r->chat) TR_TRY(tr_chat_find(&r->chat, tr_tokenizer_template(r->t), r->c->template_name));
    int rc = tr_chat_render(r->chat, messages, false, &text, &counted);
    if (rc != TR_OK) rc = refuse(r, tr_message());
    else rc = add_document(r, &text, &counted, false, false); /* the template writes its own first and last tokens */
    tr_buf_release(&text);
    tr_spans_release(&counted);
    return rc;
}

/* The completion is what follows the first `known` bytes. */
static int add_text(struct tr_reading *r, const json_t *prompt, const json_t *completion)
{
    struct tr_buf text = { 0 };
    struct tr_span span = { prompt ? json_string_length(prompt) : 0, SIZE_MAX };
    int rc = prompt ? tr_buf_add(&text, json_string_value(prompt), json_string_length(prompt)) : TR_OK;
    if (rc == TR_OK) rc = tr_buf_add(&text, json_string_value(completion), json_string_length(completion));
    if (rc == TR_OK) rc = add_document(r, &text, &(struct tr_spans){ &span, 1, 1 }, tr_tokenizer_adds_bos(r->t),
        tr_tokenizer_eos(r->t) >= 0);
    tr_buf_release(&text);
    return rc;
}

static int add_line(struct tr_reading *r, const json_t *row)
{
    int format = r->c->format;
    const json_t *messages = json_object_get(row, "messages"), *prompt = json_object_get(row, "prompt"),
        *completion = json_object_get(row, "completion");
    const json_t *text = json_object_get(row, "text");
    if (!json_is_object(row)) return refuse(r, "a line must be one JSON object");
    if (format == TR_FORMAT_AUTO) format = messages ? TR_FORMAT_CHAT : prompt || completion ? TR_FORMAT_PROMPT : TR_FORMAT_TEXT;
    if (format == TR_FORMAT_CHAT) return messages ? add_chat(r, messages) : refuse(r, "\"messages\" is missing; see data.format");
    if (format == TR_FORMAT_PROMPT) {
        if (json_is_string(prompt) && json_is_string(completion)) return add_text(r, prompt, completion);
        return refuse(r, "\"prompt\" and \"completion\" must both be texts; see data.format");
    }
    return json_is_string(text) ? add_text(r, NULL, text) : refuse(r, "it needs \"messages\", \"prompt\" and "
        "\"completion\", or \"text\"; see data.format");
}

static bool blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strchr(" \t\r\n", s[i])) return false;
    return true;
}

int tr_read_jsonl(struct tr_reading *r)
{
    struct tr_map m = { 0 };
    double shown = r->begin + 2;
    bool showed = false;
    int rc = tr_map_open(&m, r->file);
    r->line = 0;
    for (size_t at = 0, end; rc == TR_OK && at < m.size; at = end + 1) {
        const char *s = (const char *)m.data + at, *newline = memchr(s, '\n', m.size - at);
        json_error_t e;
        end = newline ? (size_t)(newline - (const char *)m.data) : m.size;
        r->line++;
        if (blank(s, end - at)) continue;
        json_t *row = json_loadb(s, end - at, JSON_ALLOW_NUL, &e);
        if (!row) rc = tr_fail(TR_EINPUT, "bad JSON (%s:%" PRId64 "): %s", r->file, r->line, e.text);
        else rc = add_line(r, row);
        json_decref(row);
        if (tr_now() > shown) {
            tr_progress(false, "reading %s: %d %%", r->file, (int)(100.0 * (double)end / (double)m.size));
            shown = tr_now() + 0.5;
            showed = true;
        }
    }
    if (showed && rc == TR_OK) tr_progress(true, "reading %s: %zu examples", r->file, r->d->examples);
    tr_map_close(&m);
    return rc;
}
