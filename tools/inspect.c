/* `train inspect`: tensors and metadata of a model file or a snapshot. */
#include "checkpoint/checkpoint.h"
#include "libtrain/base/file.h"
#include "libtrain/base/status.h"
#include "libtrain/model/weights.h"
#include "tools/command.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_value(const char *key, const json_t *v)
{
    if (json_is_array(v)) {
        printf("  %-44s array of %zu", key, json_array_size(v));
        for (size_t i = 0; i < json_array_size(v) && i < 3; i++) {
            char *text = json_dumps(json_array_get(v, i), JSON_ENCODE_ANY | JSON_COMPACT);
            printf("%s%.40s", i ? ", " : ": ", text ? text : "");
            free(text);
        }
        puts(json_array_size(v) > 3 ? ", ..." : "");
        return;
    }
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    printf("  %-44s %.100s%s\n", key, text ? text : "", text && strlen(text) > 100 ? "..." : "");
    free(text);
}

static int inspect_model(const char *path)
{
    struct tr_weights *w;
    const char *key;
    json_t *v;
    TR_TRY(tr_weights_open(&w, path));
    const struct tr_shape *s = tr_weights_shape(w);
    printf("%s: %s, %.1f M parameters, %" PRId64 " layers, hidden %" PRId64 ", vocabulary %" PRId64 ", context %" PRId64 "\n\nmetadata\n", path, tr_arch_name(s->arch),
           (double)tr_shape_params(s) / 1e6, s->layers, s->hidden, s->vocab, s->context);
    json_object_foreach((json_t *)(uintptr_t)tr_weights_metadata(w), key, v) print_value(key, v);
    printf("\ntensors (%" PRId64 ")\n", tr_weights_count(w));
    for (int64_t i = 0; i < tr_weights_count(w); i++) {
        const struct tr_weight_entry *e = tr_weights_at(w, i);
        struct tr_tensor t = tr_tensor_view(NULL, TR_F32, e->ndim, e->dim);
        printf("  %-52s %-5s %s\n", e->name, e->stored, tr_shape_text(&t));
    }
    tr_weights_free(w);
    return TR_OK;
}

int cmd_inspect(const struct arguments *a)
{
    size_t n = strlen(a->args[0]);
    if (n > 3 && !strcmp(a->args[0] + n - 3, ".h5")) return ckpt_inspect(stdout, a->args[0], option_given(a, "verify"));
    if (option_given(a, "verify")) return tr_fail(TR_EINPUT, "--verify (train inspect): only snapshots (.h5) have checksums");
    return inspect_model(a->args[0]);
}
