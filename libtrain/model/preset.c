/* Shapes by name: LLaMA as in the GaLore and APOLLO papers, 70B (of Llama 2), 405B (of Llama 3.1) and GPT-2 as published. */
#include "libtrain/model/preset.h"
#include "libtrain/base/status.h"
#include <string.h>

/* kv_heads 0: as many as heads. */
static const struct { const char *name; enum tr_arch arch; int64_t hidden, layers, heads, intermediate, vocab, context, kv_heads; } table[] = {
    { "llama-tiny", TR_LLAMA, 128, 4, 4, 352, 257, 256 },
    { "llama-60m", TR_LLAMA, 512, 8, 8, 1376, 32000, 1024 },
    { "llama-130m", TR_LLAMA, 768, 12, 12, 2048, 32000, 1024 },
    { "llama-350m", TR_LLAMA, 1024, 24, 16, 2736, 32000, 1024 },
    { "llama-1b", TR_LLAMA, 2048, 24, 32, 5461, 32000, 1024 },
    { "llama-7b", TR_LLAMA, 4096, 32, 32, 11008, 32000, 2048 },
    { "llama-13b", TR_LLAMA, 5120, 40, 40, 13824, 32000, 2048 },
    { "llama-70b", TR_LLAMA, 8192, 80, 64, 28672, 32000, 4096, 8 },
    { "llama-405b", TR_LLAMA, 16384, 126, 128, 53248, 128256, 131072, 8 },
    { "gpt2-124m", TR_GPT2, 768, 12, 12, 3072, 50257, 1024 },
    { "gpt2-355m", TR_GPT2, 1024, 24, 16, 4096, 50257, 1024 },
    { "gpt2-774m", TR_GPT2, 1280, 36, 20, 5120, 50257, 1024 },
    { "gpt2-1558m", TR_GPT2, 1600, 48, 25, 6400, 50257, 1024 },
};

struct tr_shape tr_shape_default(enum tr_arch arch)
{
    struct tr_shape s = { .arch = arch, .norm_eps = arch == TR_GPT2 ? 1e-5 : 1e-6, .rope_theta = 10000, .rope_linear = 1, .init_std = 0.02 };
    s.tied = s.qkv_bias = s.out_bias = s.mlp_bias = arch == TR_GPT2;
    s.qkv_bias |= arch == TR_QWEN2;
    s.qk_norm = arch == TR_QWEN3;
    return s;
}

int tr_shape_preset(struct tr_shape *s, const char *name)
{
    const char *names[sizeof table / sizeof *table + 1] = { NULL };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        names[i] = table[i].name;
        if (strcmp(names[i], name)) continue;
        *s = tr_shape_default(table[i].arch);
        s->hidden = table[i].hidden;
        s->layers = table[i].layers;
        s->heads = table[i].heads;
        s->kv_heads = table[i].kv_heads ? table[i].kv_heads : table[i].heads;
        s->head_dim = s->hidden / s->heads;
        s->intermediate = table[i].intermediate;
        s->vocab = table[i].vocab;
        s->context = table[i].context;
        if (s->context > 8192) { /* Llama 3.1 */
            s->rope_theta = 500000;
            s->norm_eps = 1e-5;
            s->rope_llama3.on = true;
            s->rope_llama3.factor = 8;
            s->rope_llama3.low_freq = 1;
            s->rope_llama3.high_freq = 4;
            s->rope_llama3.old_context = 8192;
        }
        return TR_OK;
    }
    const char *near = tr_nearest(name, names);
    return tr_fail(TR_EINPUT, "unknown preset '%s': %s%s%s", name, near ? "did you mean '" : "the presets are llama-tiny, llama-60m, llama-130m, "
                   "llama-350m, llama-1b, llama-7b, llama-13b, llama-70b, llama-405b, gpt2-124m, gpt2-355m, gpt2-774m, gpt2-1558m", near ? near : "", near ? "'?" : "");
}
