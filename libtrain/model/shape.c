#include "libtrain/base/status.h"
#include "libtrain/model/model.h"
#include <inttypes.h>

const char *tr_arch_name(enum tr_arch a)
{
    static const char *const name[TR_ARCHS] = { "llama", "mistral", "qwen2", "qwen3", "gpt2" };
    return name[a];
}

static int range(const char *where, const char *what, int64_t v, int64_t least, int64_t most)
{
    if (v >= least && v <= most) return TR_OK;
    return tr_fail(TR_EINPUT, "%s = %" PRId64 " (%s): it must be from %" PRId64 " to %" PRId64, what, v, where, least, most);
}

int tr_shape_check(const struct tr_shape *s, const char *where)
{
    TR_TRY(range(where, "hidden", s->hidden, 1, 1 << 20));
    TR_TRY(range(where, "layers", s->layers, 1, 4096));
    TR_TRY(range(where, "heads", s->heads, 1, 4096));
    TR_TRY(range(where, "kv_heads", s->kv_heads, 1, s->heads));
    TR_TRY(range(where, "head_dim", s->head_dim, 2, 512));
    TR_TRY(range(where, "intermediate", s->intermediate, 1, 1 << 22));
    TR_TRY(range(where, "vocab", s->vocab, 1, 1 << 24));
    TR_TRY(range(where, "context", s->context, 1, 1 << 24));
    TR_TRY(range(where, "sliding window", s->window, 0, 1 << 24));
    if (s->heads % s->kv_heads)
        return tr_fail(TR_EINPUT, "heads = %" PRId64 " (%s): kv_heads = %" PRId64 " does not divide it", s->heads, where, s->kv_heads);
    if (s->head_dim % 2) return tr_fail(TR_EINPUT, "head_dim = %" PRId64 " (%s): rotary positions need an even size", s->head_dim, where);
    if (s->arch == TR_GPT2 && s->heads * s->head_dim != s->hidden)
        return tr_fail(TR_EINPUT, "heads = %" PRId64 " (%s): they must divide hidden = %" PRId64, s->heads, where, s->hidden);
    if (!(s->norm_eps > 0 && s->norm_eps < 1)) return tr_fail(TR_EINPUT, "norm epsilon = %g (%s): it must lie between 0 and 1", s->norm_eps, where);
    if (s->arch != TR_GPT2 && !(s->rope_theta > 1)) return tr_fail(TR_EINPUT, "rope theta = %g (%s): it must be above 1", s->rope_theta, where);
    if (s->rope_llama3.on && !(s->rope_llama3.factor >= 1 && s->rope_llama3.high_freq > s->rope_llama3.low_freq && s->rope_llama3.low_freq > 0 && s->rope_llama3.old_context > 0))
        return tr_fail(TR_EINPUT, "llama3 rope scaling (%s): its factors do not make sense", where);
    return TR_OK;
}

static int64_t block_matrices(const struct tr_shape *s)
{
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, mlp = s->arch == TR_GPT2 ? 2 : 3;
    return s->hidden * (q + 2 * kv) + q * s->hidden + mlp * s->hidden * s->intermediate;
}

int64_t tr_shape_matmul_params(const struct tr_shape *s) { return s->layers * block_matrices(s) + s->vocab * s->hidden; }

int64_t tr_shape_params(const struct tr_shape *s)
{
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, C = s->hidden, gpt2 = s->arch == TR_GPT2;
    int64_t vectors = 2 * C * (1 + gpt2);
    if (s->qkv_bias) vectors += q + 2 * kv;
    if (s->qk_norm) vectors += 2 * s->head_dim;
    if (s->out_bias) vectors += C;
    if (s->mlp_bias) vectors += C + s->intermediate * (gpt2 ? 1 : 2);
    return s->layers * (block_matrices(s) + vectors) + s->vocab * C * (s->tied ? 1 : 2) + C * (1 + gpt2) + (gpt2 ? s->context * C : 0);
}
