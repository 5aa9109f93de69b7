#include "libtrain/data/data.h"

#define OPTION(field, t, text, ...) { .name = #field, .type = t, .offset = offsetof(struct tr_data_config, field), .fallback = text, __VA_ARGS__ }

static const struct tr_option options[] = {
    OPTION(train, TR_OPT_TEXT, "", .help = "what is learnt: a file, folder or glob of .txt, .jsonl or .h5 (tokens, targets)"),
    OPTION(valid, TR_OPT_TEXT, "", .help = "what is only evaluated, in the same forms"),
    OPTION(format, TR_OPT_CHOICE, "auto", .choices = "auto|text|chat|prompt", .help = "keys of .jsonl lines: text, "
        "messages, or prompt and completion"),
    OPTION(sequence, TR_OPT_INT, "512", .min = 2, .max = 1 << 24, .help = "most tokens of one sequence"),
    OPTION(pack, TR_OPT_BOOL, "true", .help = "several short documents share a sequence, without seeing each other"),
    OPTION(mask_prompt, TR_OPT_BOOL, "true", .help = "only what the assistant says is learnt, not the prompt"),
    OPTION(shuffle, TR_OPT_BOOL, "true", .help = "another order in each epoch, from train.seed"),
    OPTION(template_name, TR_OPT_TEXT, "auto", .help = "chat template: auto, chatml, llama-2, llama-3, "
        "qwen, qwen3, mistral, mistral-v3, mistral-nemo or zephyr"),
    { 0 },
};

const struct tr_section tr_data_section = { "data", "what is trained on", options, sizeof(struct tr_data_config) };
