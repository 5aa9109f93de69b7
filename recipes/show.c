/* `train data`: what will be trained on. */
#include "libtrain/base/status.h"
#include "recipes/commands.h"
#include "recipes/job.h"
#include "libtrain/data/show.h"
#include <stdio.h>
#include <unistd.h>

int recipe_data(struct recipe *r, bool json)
{
    struct job j = { 0 };
    int rc;
    if (!r->data.train[0]) return tr_fail(TR_EINPUT, "no data (%s): set data.train to a file, folder or glob", r->path);
    TR_GO(job_open_files(&j, r));
    TR_GO(job_tokenizer(&j, false));
    TR_GO(tr_dataset_open(&j.train, &r->data, r->data.train, j.tokenizer, j.shape.vocab));
    rc = tr_data_show(stdout, j.train, j.tokenizer, json, isatty(STDOUT_FILENO));
done:
    job_release(&j);
    return rc;
}
