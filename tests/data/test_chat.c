#include "tests/support/support.h"
#include "libtrain/data/chat.h"
#include <stdio.h>
#include <string.h>

static char file[512];

/* Texts rendered by the templates themselves (jinja2), for every kind. */
static void templates(void **state)
{
    json_t *all = json_load_file(file, 0, NULL), *cases = json_object_get(all, "cases");
    assert_non_null(all);
    assert_true(json_array_size(cases) > 40);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        json_t *c = json_array_get(cases, i), *m = json_object_get(c, "messages");
        const char *name = json_string_value(json_object_get(c, "name"));
        const struct tr_chat *chat;
        struct tr_buf text = { 0 };
        struct tr_spans said = { 0 };
        assert_ok(tr_chat_find(&chat, json_string_value(json_object_get(json_object_get(all, "templates"), name)), "auto"));
        assert_string_equal(chat->name, name);
        assert_ok(tr_chat_render(chat, m, json_is_true(json_object_get(c, "prompt")), &text, &said));
        assert_string_equal(text.data, json_string_value(json_object_get(c, "text")));
        size_t answers = 0;
        for (size_t k = 0; k < json_array_size(m); k++)
            answers += !strcmp(json_string_value(json_object_get(json_array_get(m, k), "role")), "assistant");
        assert_int_equal(said.n, answers);
        for (size_t k = 0; k < said.n; k++) { /* each ends with the end-of-turn token */
            assert_true(said.at[k].begin < said.at[k].end && said.at[k].end <= text.size);
            assert_memory_equal(text.data + said.at[k].end - strlen(chat->end), chat->end, strlen(chat->end));
        }
        tr_buf_release(&text);
        tr_spans_release(&said);
    }
    json_decref(all);
}

static void names(void **state)
{
    const struct tr_chat *chat;
    assert_ok(tr_chat_find(&chat, NULL, "llama_3"));
    assert_string_equal(chat->name, "llama-3");
    assert_ok(tr_chat_find(&chat, "<|im_start|>system\nYou are a helpful assistant<|im_end|>", "qwen"));
    assert_string_equal(chat->name, "qwen1.5");
    assert_ok(tr_chat_find(&chat, NULL, "qwen"));
    assert_string_equal(chat->name, "qwen2.5");
    const char *unknown[] = { "{{ messages }}", NULL, "<|im_start|>system\nYou are somebody else.<|im_end|>" };
    for (int i = 0; i < 3; i++) {
        assert_int_equal(tr_chat_find(&chat, unknown[i], "auto"), TR_EINPUT);
        assert_non_null(strstr(tr_message(), "data.template_name"));
        assert_non_null(strstr(tr_message(), "zephyr"));
    }
    assert_int_equal(tr_chat_find(&chat, NULL, "alpaca"), TR_EINPUT);
}

/* Near relatives, whose text a known kind would render wrongly: no kind is better. */
static void relatives(void **state)
{
    static const char *const unknown[] = {
        "<|im_start|>user<|im_sep|>{{ message['content'] }}<|im_end|>",                         /* another separator */
        "{{ bos_token }}<|im_start|>{{ message['content'] }}<|im_end|>",                        /* begins with bos */
        "<|im_start|>{{ message['content'] | trim }}<|im_end|>",                                /* trims */
        "<|im_start|>{{ '<think></think>' + message['content'] }}<|im_end|>",
        "<|im_start|>last_query_index '\\n</think>\\n' + content",
        "{% set system_message = 'You are MiMo.' %}<|im_start|>You are provided with tools<|im_end|>",
        "<s>{{ bos_token }}<|start_header_id|>{{ message['content'] | trim }} unsafe content",
        "{{ bos_token }}<|start_header_id|>{{ message['content'] | trim }} these functions",
        "{{ bos_token }}<|start_header_id|>\"Cutting Knowledge Date: December 2023\\n\" {{ strftime_now('%d') | trim }}",
        "{{ bos_token }}[INST] <<SYS>>{% if true == true %}You are somebody{% endif %}{{ content.strip() }}",
        "{%- if idx > 1 -%}{{ '[INST] <<SYS>>' + message['content'] + ' [/INST]' + eos_token }}",
        "{{ bos_token }}{{ '[SYSTEM_PROMPT] ' }}{{ '[INST] ' + message['content'] + '[/INST]' }}{{ ' ' + message['content'] + eos_token }}",
        "{{ '[INST] ' + message['content'].strip() }}{{ '[RESP] ' + message['content'] + eos_token }}",
        "{{ '<|user|>' + message['content'] + '<|end|>' }}<|assistant|>{{ eos_token }}",
    };
    const struct tr_chat *chat;
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        if (tr_chat_find(&chat, unknown[i], "auto") != TR_EINPUT) fail_msg("taken for %s: %s", chat->name, unknown[i]);
}

static void bad_messages(void **state)
{
    static const char *const bad[] = { "{}", "[]", "[1]", "[{}]", "[{\"role\":\"user\"}]",
        "[{\"role\":1,\"content\":\"a\"}]", "[{\"role\":\"user\",\"content\":[]}]",
                                       "[{\"role\":\"tool\",\"content\":\"a\"}]" };
    static const char *const turns[] = { "[{\"role\":\"assistant\",\"content\":\"a\"}]",
        "[{\"role\":\"system\",\"content\":\"a\"}]",
                                         "[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b\"}]" };
    const struct tr_chat *chat;
    struct tr_buf text = { 0 };
    for (int i = 0; i < 11; i++) {
        json_t *m = json_loads(i < 8 ? bad[i] : turns[i - 8], 0, NULL);
        assert_ok(tr_chat_find(&chat, NULL, i < 8 ? "chatml" : "llama-2"));
        assert_int_equal(tr_chat_render(chat, m, false, &text, NULL), TR_EINPUT);
        json_decref(m);
    }
    tr_buf_release(&text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(templates), cmocka_unit_test(names),
        cmocka_unit_test(relatives), cmocka_unit_test(bad_messages) };
    snprintf(file, sizeof file, "%s/data/chat.json", argc > 1 ? argv[1] : "tests");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
