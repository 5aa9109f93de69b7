#include "libtrain/data/chat.h"
#include "libtrain/base/status.h"
#include "libtrain/data/tokenizer_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHATML .style = TR_CHAT_HEADERS, .begin = "", .before = "<|im_start|>", .after = "\n", .say = "", \
    .end = "<|im_end|>", .gap = "\n", .tokens = "<|im_start|><|im_end|><|endoftext|>" \
    "<|vision_start|><|vision_end|><|image_pad|><|video_pad|>"
#define LLAMA3 .family = "llama-3", .style = TR_CHAT_HEADERS, .begin = "<|begin_of_text|>", .before = "<|start_header_id|>", \
    .after = "<|end_header_id|>\n\n", .say = "", .end = "<|eot_id|>", .gap = "", .trim = true, \
    .tokens = "<|begin_of_text|><|end_of_text|><|start_header_id|><|end_header_id|><|eot_id|><|eom_id|><|python_tag|>"
#define MISTRAL .family = "mistral", .style = TR_CHAT_INSTRUCTIONS, .begin = "<s>", .end = "</s>", \
    .sys_open = "", .sys_close = "\n\n", .tokens = ""
#define CUTTING "Cutting Knowledge Date: December 2023\nToday Date: "

/* The first that fits a template's text wins; a text that none fits is unknown, which is better than rendered wrongly.
 * Two things are decided here. Templates that write today's date get the date they fall back to, so that the same data
 * is the same on another day. Mistral's newer ones repeat the system's words in the last user message, some of them only
 * where no answer follows; here they stand there always, as in the prompts that the model will see. */
static const struct tr_chat chats[] = {
    { .name = "llama-3.1", LLAMA3, .preface = CUTTING "26 Jul 2024\n\n",
      .marks = { "<|start_header_id|>", "\"Cutting Knowledge Date: December 2023\\n", "\"26 Jul 2024\"" } },
    { .name = "llama-3.1-july", LLAMA3, .preface = CUTTING "26 July 2024\n\n",
      .marks = { "<|start_header_id|>", "\"Cutting Knowledge Date: December 2023\\n", "\"26 July 2024\"" } },
    { .name = "llama-3", LLAMA3, .marks = { "<|start_header_id|>" }, .lacks = { "Cutting Knowledge", "function", "unsafe" } },
    { .name = "smollm2", .family = "chatml", CHATML,
      .system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
      .marks = { "<|im_start|>", "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>" } },
    { .name = "qwen2.5", .family = "qwen", CHATML,
      .system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
      .marks = { "<|im_start|>", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant." } },
    { .name = "qwen3", .family = "qwen", CHATML, .thinks = true,
      .marks = { "<|im_start|>", "last_query_index", "\\n</think>\\n\\n' + content.lstrip('\\n')" } },
    { .name = "qwen2", .family = "qwen", CHATML, .system = "You are a helpful assistant.",
      .marks = { "<|im_start|>", "You are a helpful assistant.<|im_end|>" } },
    { .name = "qwen1.5", .family = "qwen", CHATML, .system = "You are a helpful assistant",
      .marks = { "<|im_start|>", "You are a helpful assistant<|im_end|>" } },
    { .name = "chatml", .family = "chatml", CHATML, .marks = { "<|im_start|>", "<|im_end|>" }, .lacks = { "think" } },
    { .name = "zephyr", .family = "zephyr", .style = TR_CHAT_HEADERS, .begin = "", .before = "<|", .after = "|>\n",
        .say = "", .end = "</s>", .gap = "\n",
      .marks = { "<|user|>", "<|assistant|>", "eos_token" }, .tokens = "<|system|><|user|><|assistant|>" },
    { .name = "llama-2", .family = "llama-2", .style = TR_CHAT_INSTRUCTIONS, .begin = "", .before = "<s>[INST] ",
        .after = " [/INST]", .say = " ", .end = " </s>", .gap = "",
      .sys_open = "<<SYS>>\n", .sys_close = "\n<</SYS>>\n\n", .trim = true, .marks = { "[INST]", "<<SYS>>" },
      .lacks = { "true == true" /* a system prompt of its own */ }, .tokens = "" },
    { .name = "mistral-0.1", MISTRAL, .before = "[INST] ", .after = " [/INST]", .say = "", .gap = " ",
      .marks = { "'[INST] '", "' [/INST]'", "message['content'] + eos_token + ' '" } },
    { .name = "mistral-v1", MISTRAL, .before = " [INST] ", .after = " [/INST]", .say = " ", .gap = "",
      .marks = { "' [INST] '", "' [/INST]'", "' ' + message['content'] + eos_token" } },
    { .name = "mistral-spaced", MISTRAL, .before = "[INST] ", .after = " [/INST]", .say = " ", .gap = "",
      .marks = { "'[INST] '", "' [/INST]'", "' ' + message['content'] + eos_token" } },
    { .name = "mistral", MISTRAL, .before = "[INST] ", .after = " [/INST]", .say = "", .gap = "",
      .marks = { "'[INST] '", "' [/INST]'", "message['content'] + eos_token" } },
    { .name = "mistral-v3", MISTRAL, .before = "[INST] ", .after = "[/INST]", .say = " ", .gap = "", .trim_answer = true,
      .system_last = true, .marks = { "\"[INST] \"", "\"[/INST]\"", "\" \" + message[\"content\"]|trim + eos_token" } },
    { .name = "mistral-nemo", MISTRAL, .before = "[INST]", .after = "[/INST]", .say = "", .gap = "", .system_last = true,
      .marks = { "\"[INST]\"", "\"[/INST]\"", "{{- message[\"content\"] + eos_token" } },
    { 0 },
};
#define CHOICES "auto, chatml, llama-2, llama-3, qwen, qwen3, mistral, mistral-v3, mistral-nemo, zephyr"

/* What a name stands for where the template does not tell its variant. */
static const char *const plain[][2] = { { "chatml", "chatml" }, { "llama-2", "llama-2" }, { "llama-3", "llama-3" },
                                        { "qwen", "qwen2.5" }, { "mistral", "mistral" }, { "zephyr", "zephyr" } };

void tr_spans_release(struct tr_spans *s)
{
    free(s->at);
    *s = (struct tr_spans){ 0 };
}

/* ---- which one */

static bool holds(const char *text, const char *part) { return strstr(text, part) != NULL; }

/* Names a <|token|> that this kind does not know: then it writes something else. */
static bool foreign_token(const char *text, const char *tokens)
{
    for (const char *p = text; (p = strstr(p, "<|")); p += 2) {
        char token[48];
        size_t n = strspn(p + 2, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
        if (strncmp(p + 2 + n, "|>", 2) || n == 0) continue;
        if (n + 4 >= sizeof token) return true;
        snprintf(token, sizeof token, "%.*s", (int)n + 4, p);
        if (!holds(tokens, token)) return true;
    }
    return false;
}

/* Tells the model who it is, where nobody else does. (Lists of tools begin with "You are provided".) */
static bool has_persona(const char *text)
{
    for (const char *p = text; (p = strstr(p, "ou are ")); p += 7)
        if (strncmp(p + 7, "provided ", 9)) return true;
    return false;
}

static bool fits(const struct tr_chat *c, const char *text)
{
    bool headers = c->style == TR_CHAT_HEADERS, cuts = holds(text, "trim") || holds(text, ".strip()");
    for (int i = 0; i < 3 && c->marks[i]; i++)
        if (!holds(text, c->marks[i])) return false;
    for (int i = 0; i < 3 && c->lacks[i]; i++)
        if (holds(text, c->lacks[i])) return false;
    if (foreign_token(text, c->tokens)) return false;
    if (headers && !c->system && !c->preface && has_persona(text)) return false;
    if (cuts != (c->trim || c->trim_answer)) return false;
    if (*c->begin || !headers) return holds(text, "bos_token") || (*c->begin && holds(text, c->begin));
    return !holds(text, "bos_token");
}

static const struct tr_chat *recognise(const char *text)
{
    for (const struct tr_chat *c = chats; text && c->name; c++)
        if (fits(c, text)) return c;
    return NULL;
}

int tr_chat_find(const struct tr_chat **out, const char *template_text, const char *name)
{
    const struct tr_chat *own = recognise(template_text);
    const char *want = NULL;
    char wanted[24] = "auto";
    if (name && *name) snprintf(wanted, sizeof wanted, "%s", name);
    for (char *p = wanted; *p; p++)
        if (*p == '_') *p = '-';
    if (!strcmp(wanted, "auto")) {
        if (own) return *out = own, TR_OK;
        if (template_text) return tr_fail(TR_EINPUT, "unknown chat template (model): its text is none of the known kinds; "
            "set data.template_name to one of " CHOICES);
        return tr_fail(TR_EINPUT, "no chat template (model): the model brings none; set data.template_name to one of " CHOICES);
    }
    if (own && !strcmp(own->family, wanted)) return *out = own, TR_OK;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!strcmp(plain[i][0], wanted)) want = plain[i][1];
    for (const struct tr_chat *c = chats; c->name; c++)
        if (!strcmp(c->name, want ? want : wanted)) return *out = c, TR_OK;
    return tr_fail(TR_EINPUT, "unknown chat template '%.40s' (data.template_name): it must be one of " CHOICES, name);
}

/* ---- pieces of text */

struct text { const char *s; size_t n; };

static struct text strip(struct text t)
{
    for (size_t k; (k = tr_space_bytes(t.s, t.n)) > 0; t.s += k, t.n -= k) {}
    for (size_t k = 1; k <= 3 && k <= t.n; k++)
        if (tr_space_bytes(t.s + t.n - k, k) == k) t.n -= k, k = 0;
    return t;
}

static struct text strip_newlines(struct text t, bool front, bool back)
{
    for (; front && t.n && *t.s == '\n'; t.s++, t.n--) {}
    while (back && t.n && t.s[t.n - 1] == '\n') t.n--;
    return t;
}

static int put(struct tr_buf *b, struct text t) { return t.n ? tr_buf_add(b, t.s, t.n) : TR_OK; }

static const char *role(const json_t *m) { return json_string_value(json_object_get(m, "role")); }

static bool is(const json_t *m, const char *name) { return !strcmp(role(m), name); }

static struct text content(const struct tr_chat *c, const json_t *m)
{
    const json_t *v = json_object_get(m, "content");
    struct text t = { json_string_value(v), json_string_length(v) };
    return c->trim || (c->trim_answer && is(m, "assistant")) ? strip(t) : t;
}

static int count_span(struct tr_spans *s, size_t begin, size_t end)
{
    if (!s) return TR_OK;
    TR_TRY(tr_grow(&s->at, s->n, &s->cap, sizeof *s->at));
    s->at[s->n++] = (struct tr_span){ begin, end };
    return TR_OK;
}

static int check(const struct tr_chat *c, const json_t *messages)
{
    size_t n = json_array_size(messages), first = 0;
    if (!n) return tr_fail(TR_EINPUT, "\"messages\" must be a list of at least one message");
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(messages, i);
        if (!json_is_object(m) || !role(m) || !json_is_string(json_object_get(m, "content")))
            return tr_fail(TR_EINPUT, "message %zu needs \"role\" and \"content\", both texts", i + 1);
        if (!is(m, "system") && !is(m, "user") && !is(m, "assistant"))
            return tr_fail(TR_EINPUT, "message %zu has role \"%.40s\"; it must be system, user or assistant", i + 1, role(m));
    }
    if (c->style != TR_CHAT_INSTRUCTIONS) return TR_OK;
    first = is(json_array_get(messages, 0), "system");
    if (first == n) return tr_fail(TR_EINPUT, "a system message alone is no conversation for the template %s", c->name);
    for (size_t i = first; i < n; i++)
        if (!is(json_array_get(messages, i), (i - first) % 2 ? "assistant" : "user"))
            return tr_fail(TR_EINPUT, "message %zu: after the system, user and assistant must take turns in the "
                "template %s", i + 1, c->name);
    return TR_OK;
}

/* ---- the two styles */

/* Qwen 3: thoughts of earlier turns are dropped, the last answers carry theirs, the very last one even none. */
static int say_thinking(const json_t *messages, size_t i, struct text t, struct tr_buf *text, size_t *said)
{
    size_t last_query = json_array_size(messages);
    for (size_t k = json_array_size(messages); k > 0 && last_query == json_array_size(messages); k--)
        if (is(json_array_get(messages, k - 1), "user")) last_query = k - 1;
    if (last_query == json_array_size(messages)) last_query--;
    const char *close = NULL, *open = NULL, *first = t.n ? strstr(t.s, "</think>") : NULL;
    struct text thought = { "", 0 };
    for (const char *p = first; p; p = strstr(p + 1, "</think>")) close = p;
    if (close) {
        thought = strip_newlines((struct text){ t.s, (size_t)(first - t.s) }, false, true);
        for (const char *p = t.s; (p = strstr(p, "<think>")) && p + 7 <= t.s + thought.n; p++) open = p;
        if (open) thought = (struct text){ open + 7, (size_t)(t.s + thought.n - open) - 7 };
        thought = strip_newlines(thought, true, true);
        t.n -= (size_t)(close + 8 - t.s);
        t.s = close + 8;
        t = strip_newlines(t, true, false);
    }
    if (i <= last_query || (i + 1 < json_array_size(messages) && !thought.n)) return put(text, t);
    TR_TRY(tr_buf_puts(text, "<think>\n"));
    TR_TRY(put(text, thought));
    TR_TRY(tr_buf_puts(text, "\n</think>\n\n"));
    if (!thought.n) *said = text->size; /* an empty thought is given with the prompt */
    return put(text, strip_newlines(t, true, false));
}

static int header(const struct tr_chat *c, const char *name, struct tr_buf *text)
{
    TR_TRY(tr_buf_puts(text, c->before));
    TR_TRY(tr_buf_puts(text, name));
    return tr_buf_puts(text, c->after);
}

static int close_turn(const struct tr_chat *c, struct tr_buf *text, struct tr_spans *counted, size_t said)
{
    TR_TRY(tr_buf_puts(text, c->end));
    TR_TRY(count_span(counted, said, text->size));
    return tr_buf_puts(text, c->gap);
}

static int render_headers(const struct tr_chat *c, const json_t *messages, bool prompt, struct tr_buf *text,
    struct tr_spans *counted)
{
    bool starts = is(json_array_get(messages, 0), "system");
    if (!starts && (c->system || c->preface)) {
        TR_TRY(header(c, "system", text));
        TR_TRY(tr_buf_puts(text, c->preface ? c->preface : c->system));
        TR_TRY(close_turn(c, text, NULL, 0));
    }
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *m = json_array_get(messages, i);
        bool assistant = is(m, "assistant");
        TR_TRY(header(c, role(m), text));
        size_t said = text->size;
        if (i == 0 && starts && c->preface) TR_TRY(tr_buf_puts(text, c->preface));
        if (assistant && c->thinks) TR_TRY(say_thinking(messages, i, content(c, m), text, &said));
        else TR_TRY(put(text, content(c, m)));
        TR_TRY(close_turn(c, text, assistant ? counted : NULL, said));
    }
    return prompt ? header(c, "assistant", text) : TR_OK;
}

static int render_instructions(const struct tr_chat *c, const json_t *messages, struct tr_buf *text, struct tr_spans *counted)
{
    const json_t *system = json_array_get(messages, 0);
    size_t n = json_array_size(messages), first = is(system, "system"), under = first;   /* under: who carries its words */
    for (size_t i = first; c->system_last && i < n; i += 2) under = i;                    /* the last user message */
    for (size_t i = first; i < n; i++) {
        const json_t *m = json_array_get(messages, i);
        size_t said = text->size;
        if (is(m, "user")) {
            TR_TRY(tr_buf_puts(text, c->before));
            size_t open = text->size;
            struct text t = content(c, m);
            if (i == under && first) { /* the system's words and the user's are trimmed as one */
                struct text s = { json_string_value(json_object_get(system, "content")),
                    json_string_length(json_object_get(system, "content")) };
                const json_t *own = json_object_get(m, "content");
                TR_TRY(tr_buf_puts(text, c->sys_open));
                TR_TRY(put(text, s));
                TR_TRY(tr_buf_puts(text, c->sys_close));
                t = (struct text){ json_string_value(own), json_string_length(own) };
            }
            TR_TRY(put(text, t));
            if (c->trim && text->size > open) text->size = open + strip((struct text){ text->data + open, text->size - open }).n;
            TR_TRY(tr_buf_puts(text, c->after));
        } else {
            TR_TRY(tr_buf_puts(text, c->say));
            TR_TRY(put(text, content(c, m)));
            TR_TRY(close_turn(c, text, counted, said));
        }
    }
    return TR_OK;
}

int tr_chat_render(const struct tr_chat *chat, const json_t *messages, bool generation_prompt, struct tr_buf *text,
    struct tr_spans *counted)
{
    TR_TRY(check(chat, messages));
    TR_TRY(tr_buf_puts(text, chat->begin));
    return chat->style == TR_CHAT_INSTRUCTIONS ? render_instructions(chat, messages, text, counted)
                                               : render_headers(chat, messages, generation_prompt, text, counted);
}
