#define PCRE2_CODE_UNIT_WIDTH 8
#include "libtrain/data/tokenizer_impl.h"
#include "libtrain/base/status.h"
#include <pcre2.h>
#include <string.h>

/* The expressions under which the models were trained. */
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3(digits) "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" digits \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct { const char *name, *first, *second; bool whole_words, nfc; } rules[] = {
    { "gpt-2", GPT2, NULL, false, false },
    { "smollm", "\\p{N}", GPT2, false, false },             /* every digit alone, then GPT-2's pattern on the rest */
    { "llama-bpe", LLAMA3("{1,3}"), NULL, true, false },
    { "llama3", LLAMA3("{1,3}"), NULL, true, false },
    { "llama-v3", LLAMA3("{1,3}"), NULL, true, false },
    { "qwen2", LLAMA3(""), NULL, false, true },
    { "default", GPT2, NULL, false, false },
};

int tr_split_add(struct tr_split *s, const char *pattern, bool gaps)
{
    int error;
    PCRE2_SIZE at;
    if (s->n == TR_SPLIT_MAX) return tr_fail(TR_EINPUT, "unsupported tokenizer (pre_tokenizer): more than %d splits",
        TR_SPLIT_MAX);
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
        PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, NULL);
    if (!code) {
        char why[160] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        return tr_fail(TR_EINPUT, "unsupported tokenizer (pre_tokenizer): expression '%.80s' at %zu: %s", pattern,
            (size_t)at, why);
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* where it cannot, matching is slower */
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(code, NULL);
    if (!match) {
        pcre2_code_free(code);
        return tr_fail(TR_EFAIL, "out of memory (tokenizer)");
    }
    s->rule[s->n++] = (struct tr_split_rule){ code, match, gaps };
    return TR_OK;
}

int tr_split_named(struct tr_split *s, const char *name, bool *whole_words, bool *nfc)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!strcmp(rules[i].name, name)) {
            *whole_words = rules[i].whole_words;
            *nfc = rules[i].nfc;
            TR_TRY(tr_split_add(s, rules[i].first, true));
            return rules[i].second ? tr_split_add(s, rules[i].second, true) : TR_OK;
        }
    return tr_fail(TR_EINPUT, "unsupported split '%.40s' (tokenizer.ggml.pre): known are gpt-2, smollm, llama-bpe, qwen2; "
                   "set model.tokenizer to the folder or tokenizer.json of the model", name);
}

void tr_split_release(struct tr_split *s)
{
    for (int i = 0; i < s->n; i++) {
        pcre2_match_data_free(s->rule[i].match);
        pcre2_code_free(s->rule[i].code);
    }
    s->n = 0;
}

static int split_by(const struct tr_split *s, int rule, const char *text, size_t from, size_t n, tr_word_fn *each, void *self)
{
    if (n == 0) return TR_OK;
    if (rule == s->n) return each(self, text, from, n);
    const struct tr_split_rule *r = &s->rule[rule];
    const char *part = text + from; /* a rule sees its part alone: what lies around does not decide */
    size_t done = 0;
    for (size_t at = 0; at < n; ) {
        int rc = pcre2_match(r->code, (PCRE2_SPTR)part, n, at, PCRE2_NO_UTF_CHECK, r->match, NULL);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc < 0) return tr_fail(TR_EINPUT, "cannot split text (byte %zu): the tokenizer's expression gives up (code "
            "%d)", from + at, rc);
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(r->match);
        size_t begin = span[0], end = span[1];
        if (end <= begin || begin < done) { /* an empty match splits nothing; go on behind the next character */
            for (at++; at < n && ((unsigned char)part[at] & 0xc0) == 0x80; at++) {}
            continue;
        }
        if (r->gaps) TR_TRY(split_by(s, rule + 1, text, from + done, begin - done, each, self));
        TR_TRY(split_by(s, rule + 1, text, from + begin, end - begin, each, self));
        done = at = end;
    }
    return r->gaps ? split_by(s, rule + 1, text, from + done, n - done, each, self) : TR_OK;
}

int tr_split_words(const struct tr_split *s, const char *text, size_t from, size_t n, tr_word_fn *each, void *self)
{
    return split_by(s, 0, text, from, n, each, self);
}

/* Surrogates, numbers beyond U+10FFFF and longer forms than needed are no UTF-8. */
size_t tr_utf8_check(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < n) {
        uint64_t w;
        while (i + 8 <= n && (memcpy(&w, s + i, 8), !(w & 0x8080808080808080u))) i += 8;
        if (i == n) break;
        unsigned char c = s[i];
        size_t more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : (c & 0xf0) == 0xe0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : 9;
        if (more == 9 || more > n - i - 1) return i;
        for (size_t k = 1; k <= more; k++)
            if ((s[i + k] & 0xc0) != 0x80) return i;
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] >= 0xa0) || (c == 0xf0 && s[i + 1] < 0x90) ||
            (c == 0xf4 && s[i + 1] >= 0x90)) return i;
        i += more + 1;
    }
    return n;
}

size_t tr_space_bytes(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    if (n >= 1 && (s[0] == ' ' || (s[0] >= 9 && s[0] <= 13) || (s[0] >= 0x1c && s[0] <= 0x1f))) return 1;
    if (n >= 2 && s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0)) return 2;
    if (n < 3) return 0;
    unsigned c = (unsigned)s[0] << 16 | (unsigned)s[1] << 8 | s[2];
    bool is = c == 0xe19a80 || (c >= 0xe28080 && c <= 0xe2808a) || c == 0xe280a8 || c == 0xe280a9 || c == 0xe280af ||
        c == 0xe2819f || c == 0xe38080;
    return is ? 3 : 0;
}
