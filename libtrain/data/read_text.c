/* A text file: one stream of tokens, cut into windows. */
#include "libtrain/data/dataset_impl.h"
#include "libtrain/base/file.h"
#include "libtrain/base/log.h"
#include "libtrain/base/status.h"
#include "libtrain/data/tokenizer_impl.h"
#include <inttypes.h>
#include <string.h>

static int64_t line_of(const char *text, size_t at)
{
    int64_t line = 1;
    for (size_t i = 0; i < at; i++) line += text[i] == '\n';
    return line;
}

static int cut_windows(struct tr_reading *r, size_t begin, size_t end)
{
    for (size_t at = begin; at < end; ) {
        size_t n = end - at < (size_t)r->c->sequence ? end - at : (size_t)r->c->sequence;
        if (n == 1 && at > begin) return TR_OK; /* a last token alone predicts nothing; the window before predicts it */
        TR_TRY(tr_dataset_add_example(r, at, (struct tr_example){ .n = (int32_t)n, .continues = at + n < end, .alone = true }));
        at += n;
    }
    return TR_OK;
}

int tr_read_text(struct tr_reading *r)
{
    struct tr_map m = { 0 };
    struct tr_tokens ids = { 0 };
    size_t begin = r->d->tokens, bad;
    int rc;
    TR_TRY(tr_map_open(&m, r->file));
    const char *text = (const char *)m.data;
    if (!m.size) TR_GO(tr_fail(TR_EINPUT, "no data (%s): the file is empty", r->file));
    if (m.size > 32 << 20) tr_info("reading %s (%zu MB)", r->file, m.size / 1000000);
    if (r->t->model != TR_MODEL_BYTES && (bad = tr_utf8_check(text, m.size)) < m.size)
        TR_GO(tr_fail(TR_EINPUT, "text is not UTF-8 (%s:%" PRId64 "): byte %zu of the file; convert it first, for "
            "example with iconv", r->file, line_of(text, bad), bad));
    if ((rc = tr_encode(r->t, &ids, text, m.size, true)) != TR_OK)
        TR_GO(tr_fail(rc, "cannot read text (%s): %s", r->file, tr_message()));
    if (tr_tokenizer_adds_bos(r->t)) TR_GO(tr_dataset_token(r, tr_tokenizer_bos(r->t), false));
    for (size_t i = 0; i < ids.n; i++) {
        rc = tr_dataset_token(r, ids.id[i], r->d->tokens > begin);
        if (rc != TR_OK) goto done;
    }
    rc = cut_windows(r, begin, r->d->tokens);
done:
    tr_tokens_release(&ids);
    tr_map_close(&m);
    return rc;
}
