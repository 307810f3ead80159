/* What templates want of messages: small templates in the ways that published ones write, with what each can take worked out by hand. */
#include "base/check.h"
#include "text/chat_caps.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const struct {
    const char *what, *source;
    bool parts, object_arguments, developer;
    const char *open; /* of the thinking part; NULL: none, "" : channels */
} cases[] = {
    {"content as text", "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}", false, false, false, NULL},
    {"content as parts only", "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}", true, false, false,
     NULL},
    {"content in both ways",
     "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}", false,
     false, false, NULL},
    {"arguments written as JSON", "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}", false,
     true, false, NULL},
    {"arguments looked through",
     "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}{% endfor %}{% endfor %}",
     false, true, false, NULL},
    {"arguments as they come", "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}{% endfor %}", false, false, false,
     NULL},
    {"arguments in both ways",
     "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}{{ a if a is string else a | tojson }}{% endfor %}{% endfor %}",
     false, false, false, NULL},
    {"a template that refuses everything", "{{ raise_exception('no') }}", false, false, false, NULL},
    {"developer", "{% for m in messages %}{% if m.role == 'developer' %}!{% endif %}{{ m.content }}{% endfor %}", false, false, true, NULL},
    {"thinking", "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}", false, false, false, "<think>"},
    {"channels", "{% for m in messages %}{{ '<|channel|>final<|message|>' + m.content }}{% endfor %}", false, false, false, ""},
};

static void test_each_template_gets_what_it_can_take(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct chat_template *t;
        struct chat_caps caps;
        size_t len = strlen(cases[i].source);
        assert_int_equal(chat_template_create(cases[i].source, len, &t), ERR_OK);
        chat_caps_find(t, cases[i].source, len, "<s>", "</s>", &caps);
        const char *open = caps.reasoning ? caps.reasoning->open ? caps.reasoning->open : "" : NULL;
        if (caps.parts != cases[i].parts || caps.object_arguments != cases[i].object_arguments || caps.developer != cases[i].developer ||
            (open == NULL) != (cases[i].open == NULL) || (open && strcmp(open, cases[i].open) != 0))
            fail_msg("%s: parts %d, object arguments %d, developer %d, thinking %s", cases[i].what, caps.parts, caps.object_arguments, caps.developer, open ? open : "none");
        chat_template_destroy(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_template_gets_what_it_can_take)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
