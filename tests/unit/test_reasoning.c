/* The thinking part of answers: what belongs where was written by hand after each family's published format; every answer is given whole, byte by byte and
 * cut in two at every place. */
#include "base/check.h"
#include "text/reasoning.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const struct {
    const char *what, *source, *prompt, *answer, *thought, *content;
} cases[] = {
    {"tags in the answer", "a </think> b", "<|im_start|>assistant\n", "<think>\nI see.\n</think>\n\nHello", "I see.", "Hello"},
    {"opened by the template", "</think>", "x<think>\n", "I see.\n</think>\n\nHello", "I see.", "Hello"},
    {"shut by the template", "</think>", "<think>\n\n</think>\n\n", "Hello <think>no</think>", "", "Hello <think>no</think>"},
    {"no thinking at all", "</think>", "assistant\n", "Hello, use <think> here", "", "Hello, use <think> here"},
    {"never shut", "</think>", "assistant\n", "<think>I wonder </thin", "I wonder </thin", ""},
    {"almost a mark", "</think>", "x<think>", "a </thinker> b</think>c", "a </thinker> b", "c"},
    {"empty thinking", "</think>", "x", "<think>\n\n</think>\n\nHi", "", "Hi"},
    {"white space in front", "</think>", "x", "\n <think>a</think> b", "a", "b"},
    {"white space only", "</think>", "x", "\n ", "", "\n "},
    {"white space within", "</think>", "x<think>", "a\n\n b\n</think>\nc\n", "a\n\n b", "c\n"},
    {"seed", "<seed:think>", "x", "<seed:think>a<seed:x></seed:think>b", "a<seed:x>", "b"},
    {"mistral", "[THINK]", "x", "[THINK]a[0][/THINK]b[0]", "a[0]", "b[0]"},
    {"cohere", "<|START_THINKING|>", "x", "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "a", "b"},
    {"granite", "<think></think><response></response>", "x", "<think>a</think><response>b</response>", "a", "b"},
    {"gemma", "<|channel>", "x", "<|channel>thought\na<channel|>b", "a", "b"},
    {"apriel", "[BEGIN FINAL RESPONSE]", "Here are my reasoning steps:\n", "a\n[BEGIN FINAL RESPONSE]\nb[END FINAL RESPONSE]", "a", "b"},
    {"channels", "<|channel|>", "<|start|>assistant", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "a", "b"},
    {"channels: the answer alone", "<|channel|>", "<|start|>assistant", "<|channel|>final<|message|>b < c", "", "b < c"},
    {"channels: plain text", "<|channel|>", "<|start|>assistant", "Hello < all", "", "Hello < all"},
    {"a model that does not think", "{{ messages }}", "x", "<think>a</think>", "", "<think>a</think>"},
};

static void check(size_t i, const size_t *cuts, size_t n_cuts)
{
    struct reasoning r;
    struct buf thought, content;
    buf_init(&thought);
    buf_init(&content);
    reasoning_init(&r, reasoning_find(cases[i].source, strlen(cases[i].source)), cases[i].prompt, strlen(cases[i].prompt));
    size_t from = 0;
    for (size_t k = 0; k < n_cuts; from = cuts[k++])
        reasoning_push(&r, cases[i].answer + from, cuts[k] - from, &thought, &content);
    reasoning_finish(&r, &thought, &content);
    if (strcmp(thought.data ? thought.data : "", cases[i].thought) != 0 || strcmp(content.data ? content.data : "", cases[i].content) != 0)
        fail_msg("%s: thought \"%s\", content \"%s\"", cases[i].what, thought.data ? thought.data : "", content.data ? content.data : "");
    reasoning_deinit(&r);
    buf_deinit(&thought);
    buf_deinit(&content);
}

static void test_the_parts_are_the_same_however_the_text_comes(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        size_t n = strlen(cases[i].answer), every[256];
        check(i, &n, 1);
        ASSERT(n <= ARRAY_LEN(every));
        for (size_t k = 0; k < n; k++)
            every[k] = k + 1;
        check(i, every, n);
        for (size_t k = 1; k < n; k++) {
            size_t two[] = {k, n};
            check(i, two, 2);
        }
    }
}

static void test_nothing_is_held_back_that_can_be_no_mark(void **state)
{
    (void)state;
    struct reasoning r;
    struct buf thought, content;
    buf_init(&thought);
    buf_init(&content);
    reasoning_init(&r, reasoning_find("</think>", 8), "<think>\n", 8);
    reasoning_push(&r, "one two<", 8, &thought, &content);
    assert_string_equal(thought.data, "one two");
    reasoning_push(&r, "3", 1, &thought, &content);
    assert_string_equal(thought.data, "one two<3");
    reasoning_push(&r, "</think>four", 12, &thought, &content);
    assert_string_equal(content.data, "four");
    assert_int_equal(r.state, REASONING_CONTENT);
    reasoning_deinit(&r);
    buf_deinit(&thought);
    buf_deinit(&content);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_parts_are_the_same_however_the_text_comes),
        cmocka_unit_test(test_nothing_is_held_back_that_can_be_no_mark),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
