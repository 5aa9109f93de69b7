/* `train eval`: mean loss and perplexity over data.valid. */
#include "libtrain/base/status.h"
#include "recipes/commands.h"
#include "recipes/job.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

int recipe_eval(struct recipe *r, const char *snapshot)
{
    struct job j = { 0 };
    double loss;
    int64_t counted;
    int rc;
    if (!r->data.valid[0]) return tr_fail(TR_EINPUT, "nothing to evaluate (%s): set data.valid to a file, folder or glob", r->path);
    TR_GO(job_open(&j, r));
    TR_GO(job_tokenizer(&j, false));
    TR_GO(job_data(&j, false));
    TR_GO(job_net(&j, !snapshot));
    if (snapshot) TR_GO(job_parameters(&j, snapshot));
    TR_GO(job_feed(&j, tr_loader_max_tokens(j.valid_loader, j.micro_batch)));
    TR_GO(job_evaluate(&j, &loss, &counted));
    if (j.comm->rank == 0) printf("loss %.6f  perplexity %.4f  over %" PRId64 " counted tokens of %s\n", loss, exp(loss), counted, r->data.valid);
done:
    job_release(&j);
    return rc;
}
