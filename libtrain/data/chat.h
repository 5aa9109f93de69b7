/* Conversations to text, as the chat templates of the models that are known here write them. */
#ifndef TR_CHAT_H
#define TR_CHAT_H
#include "libtrain/base/buf.h"
#include <jansson.h>
#include <stdbool.h>

enum tr_chat_style { TR_CHAT_HEADERS /* each message under its role */, TR_CHAT_INSTRUCTIONS /* [INST] user [/INST] assistant */ };

struct tr_chat {
    const char *name, *family;     /* family: what data.template_name calls it */
    enum tr_chat_style style;
    const char *begin;             /* before the first message */
    const char *before, *after;    /* around a role; or before and after what the user says */
    const char *say;               /* between the prompt and what the assistant says; counts as said */
    const char *end, *gap;         /* the end-of-turn token, and what follows it uncounted */
    const char *system;            /* said by the system when no message does, or NULL */
    const char *preface;           /* what the system's words begin with, even when it says nothing, or NULL */
    const char *sys_open, *sys_close;   /* instructions: around the system's words inside the first user message */
    bool trim, trim_answer;        /* white space around contents, or around answers alone, is cut */
    bool thinks;                   /* the last answer has a place for thoughts */
    bool system_last;              /* instructions: the system's words stand in the last user message */
    const char *marks[3];          /* texts that a template of this kind holds, up to NULL */
    const char *lacks[3];          /* and texts that it does not */
    const char *tokens;            /* the only <|tokens|> that it may name */
};

/* Byte ranges [begin, end). */
struct tr_spans { struct tr_span { size_t begin, end; } *at; size_t n, cap; };
void tr_spans_release(struct tr_spans *s);

/* The kind of a model's own template text (NULL when it has none), or by name ("auto": by the text). Errors: TR_EINPUT
 * naming data.template_name and its choices for a text that is not known, or none. */
int tr_chat_find(const struct tr_chat **out, const char *template_text, const char *name);

/* Appends the conversation to `text`: a list of {"role", "content"}. generation_prompt: with the beginning of an answer.
 * counted: what the assistant says and its end-of-turn token are added. Errors: TR_EINPUT for messages of another form
 * (no place in the text: the caller knows it). */
int tr_chat_render(const struct tr_chat *chat, const json_t *messages, bool generation_prompt, struct tr_buf *text, struct tr_spans *counted);

#endif
