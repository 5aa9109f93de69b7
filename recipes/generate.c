/* `train generate`: text from the model, token by token, with a cache of keys and values. */
#include "libtrain/base/rng.h"
#include "libtrain/base/status.h"
#include "libtrain/data/chat.h"
#include "recipes/commands.h"
#include "recipes/job.h"
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t interrupted;
static void on_signal(int sig) { (void)sig; interrupted = 1; }

struct choice { float logit; int32_t id; };

static int by_logit(const void *a, const void *b)
{
    float x = ((const struct choice *)a)->logit, y = ((const struct choice *)b)->logit;
    return x < y ? 1 : x > y ? -1 : ((const struct choice *)a)->id - ((const struct choice *)b)->id;
}

/* Greedy at temperature 0; else from the smallest set of tokens whose probability reaches top_p. */
static int32_t pick(const float *logits, int64_t V, const struct generate_options *o, struct choice *sorted, int64_t index)
{
    int32_t best = 0;
    for (int64_t i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = (int32_t)i;
    if (o->temperature <= 0) return best;
    double sum = 0, reach = 0;
    for (int64_t i = 0; i < V; i++) sum += exp((double)(logits[i] - logits[best]) / o->temperature);
    for (int64_t i = 0; i < V; i++) sorted[i] = (struct choice){ logits[i], (int32_t)i };
    qsort(sorted, (size_t)V, sizeof *sorted, by_logit);
    int64_t n = 0;
    while (n < V && reach < o->top_p * sum) reach += exp((double)(sorted[n++].logit - logits[best]) / o->temperature);
    double at = tr_uniform(tr_key((uint64_t)o->seed, TR_RNG_SAMPLE, 0, 0), (uint64_t)index) * reach;
    for (int64_t i = 0; i < n; i++)
        if ((at -= exp((double)(sorted[i].logit - logits[best]) / o->temperature)) < 0) return sorted[i].id;
    return sorted[n ? n - 1 : 0].id;
}

static int prompt_tokens(struct job *j, const struct generate_options *o, struct tr_tokens *tokens)
{
    if (!o->chat) {
        if (tr_tokenizer_adds_bos(j->tokenizer) && tr_tokenizer_bos(j->tokenizer) >= 0) TR_TRY(tr_encode_id(tokens, tr_tokenizer_bos(j->tokenizer), 0));
        return tr_encode(j->tokenizer, tokens, o->prompt, strlen(o->prompt), false);
    }
    const struct tr_chat *chat;
    struct tr_buf text = { 0 };
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content", o->prompt);
    int rc = messages ? tr_chat_find(&chat, tr_tokenizer_template(j->tokenizer), j->r->data.template_name)
                      : tr_fail(TR_EINPUT, "the prompt (--prompt) is not valid UTF-8");
    if (rc == TR_OK) rc = tr_chat_render(chat, messages, true, &text, NULL);
    if (rc == TR_OK) rc = tr_encode(j->tokenizer, tokens, text.data, text.size, true);
    json_decref(messages);
    tr_buf_release(&text);
    return rc;
}

/* Runs the tokens through the network, leaving the logits of the last. */
static int feed(struct job *j, struct tr_cache *cache, const int32_t *ids, int64_t n, float *logits)
{
    int32_t *zero, *pos;
    struct tr_value *h;
    int64_t seq[2] = { 0, n };
    int rc;
    TR_TRY(tr_calloc(&zero, (size_t)n, sizeof *zero));
    rc = tr_calloc(&pos, (size_t)n, sizeof *pos);
    for (int64_t i = 0; rc == TR_OK && i < n; i++) pos[i] = (int32_t)(cache->n + i);
    if (rc == TR_OK) rc = tr_feed_set(&j->feed, j->net, n, ids, NULL, zero, pos, seq, 1);
    if (rc == TR_OK) {
        tr_tape_begin(j->tape, false, TR_KEEP);
        rc = tr_net_hidden(j->net, j->tape, &j->feed, cache, &h);
        if (rc == TR_OK) rc = tr_net_logits(j->net, h, n - 1, 1, logits);
        tr_tape_clear(j->tape);
    }
    free(zero);
    free(pos);
    return rc;
}

/* Writes what is complete UTF-8 and keeps the rest for the next token. */
static void show(struct tr_buf *text, bool last)
{
    size_t n = text->size, tail = 0;
    while (tail < 3 && tail < n && ((unsigned char)text->data[n - 1 - tail] & 0xc0) == 0x80) tail++;
    if (!last && n > tail) {
        unsigned char lead = (unsigned char)text->data[n - 1 - tail];
        size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
        n = need > tail + 1 ? n - 1 - tail : n;
    }
    fwrite(text->data, 1, n, stdout);
    fflush(stdout);
    memmove(text->data, text->data + n, text->size - n);
    text->size -= n;
}

static int run(struct job *j, const struct generate_options *o)
{
    struct tr_tokens tokens = { 0 };
    struct tr_cache cache = { 0 };
    struct tr_buf text = { 0 };
    float *logits = NULL;
    struct choice *sorted = NULL;
    int64_t V = j->shape.vocab;
    int rc;
    TR_GO(prompt_tokens(j, o, &tokens));
    if (tokens.n == 0) TR_GO(tr_fail(TR_EINPUT, "the prompt is empty (--prompt): give at least one token"));
    TR_GO(tr_calloc(&logits, (size_t)V, sizeof *logits));
    TR_GO(tr_calloc(&sorted, (size_t)V, sizeof *sorted));
    TR_GO(job_feed(j, (int64_t)tokens.n));
    TR_GO(tr_cache_new(&cache, j->net, (int64_t)tokens.n + o->max_tokens));
    TR_GO(feed(j, &cache, tokens.id, (int64_t)tokens.n, logits));
    for (int64_t i = 0; i < o->max_tokens && !interrupted; i++) {
        int32_t id = pick(logits, V < tr_tokenizer_size(j->tokenizer) ? V : tr_tokenizer_size(j->tokenizer), o, sorted, i);
        if (tr_tokenizer_ends(j->tokenizer, id)) break;
        TR_GO(tr_decode(j->tokenizer, &text, id, !o->chat));
        show(&text, false);
        if (i + 1 < o->max_tokens) TR_GO(feed(j, &cache, &id, 1, logits));
    }
    if (text.size) show(&text, true);
    putchar('\n');
done:
    tr_cache_release(&cache);
    tr_tokens_release(&tokens);
    tr_buf_release(&text);
    free(sorted);
    free(logits);
    return rc;
}

int recipe_generate(struct recipe *r, const struct generate_options *o)
{
    struct job j = { 0 };
    int rc;
    int64_t need = (int64_t)strlen(o->prompt) + o->max_tokens + 256; /* a token is a byte at least */
    TR_GO(job_open(&j, r));
    TR_GO(job_tokenizer(&j, true));
    if (r->data.sequence < need && j.shape.arch != TR_GPT2) r->data.sequence = need;
    TR_GO(job_net(&j, !o->snapshot));
    if (o->snapshot) TR_GO(job_parameters(&j, o->snapshot));
    signal(SIGINT, on_signal);
    TR_GO(run(&j, o));
done:
    job_release(&j);
    return rc;
}
