/* `train export`: a snapshot as a model that transformers or llama.cpp load. */
#include "libtrain/base/status.h"
#include "recipes/commands.h"
#include "recipes/job.h"
#include <stdio.h>
#include <string.h>

static int rows_of(void *self, int64_t i, int64_t begin, int64_t n, float *out)
{
    return tr_param_read(&((struct job *)self)->net->param[i], begin, n, out);
}

int recipe_export(struct recipe *r, const char *snapshot, const char *format, const char *out)
{
    struct job j = { 0 };
    int rc;
    TR_GO(job_open_files(&j, r));
    TR_GO(job_net(&j, !snapshot));
    if (snapshot) TR_GO(job_parameters(&j, snapshot));
    struct tr_export e = { .shape = &j.shape, .origin = j.weights, .n = j.net->n_params, .params = j.net->param, .read = rows_of,
                           .self = &j, .dtype = j.net->dtype == TR_F32 ? TR_F32 : TR_BF16 };
    TR_GO((strcmp(format, "gguf") ? tr_export_safetensors : tr_export_gguf)(&e, out));
    printf("written to %s\n", out);
done:
    job_release(&j);
    return rc;
}
