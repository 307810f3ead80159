/* Chat templates without jinja2 at hand: renderings worked out by hand from the rules of Jinja and Python, errors with
 * their places, and budgets. The wide comparison is tests/oracle/templates_oracle.py. */
#include "base/check.h"
#include "base/clock.h"
#include "coordinator/chat_template.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static enum err render(const char *source, const char *context, struct buf *out)
{
    struct chat_template *t;
    enum err e = chat_template_create(source, strlen(source), &t);
    if (e != ERR_OK)
        return e;
    json_t *ctx = json_loads(context, 0, NULL);
    assert_non_null(ctx);
    e = chat_template_render(t, ctx, out);
    json_decref(ctx);
    chat_template_destroy(&t);
    return e;
}

static void expect(const char *source, const char *context, const char *want)
{
    struct buf out;
    buf_init(&out);
    if (render(source, context, &out) != ERR_OK)
        fail_msg("%s: %s", source, err_detail());
    assert_string_equal(out.data == NULL ? "" : out.data, want);
    buf_deinit(&out);
}

static void expect_error(const char *source, const char *context, enum err want, const char *text)
{
    struct buf out;
    buf_init(&out);
    buf_puts(&out, "kept");
    err_clear();
    enum err e = render(source, context, &out);
    if (e != want || strstr(err_detail(), text) == NULL)
        fail_msg("%s: error %d \"%s\"", source, e, err_detail());
    assert_string_equal(out.data, "kept"); /* nothing half-written stays */
    buf_deinit(&out);
}

static void the_demo_and_chatml_formats_come_out(void **state)
{
    (void)state;
    struct buf src;
    buf_init(&src);
    assert_int_equal(buf_read_file(&src, "tests/data/templates/demo.jinja", 1 << 16), ERR_OK);
    expect(src.data,
           "{\"bos_token\": \"<|begin_of_text|>\", \"add_generation_prompt\": true, \"messages\": [{\"role\": "
           "\"user\", \"content\": \" Hi \"}]}",
           "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_"
           "header_id|>\n\n");
    buf_clear(&src);
    assert_int_equal(buf_read_file(&src, "tests/data/templates/chatml.jinja", 1 << 16), ERR_OK);
    expect(src.data,
           "{\"add_generation_prompt\": false, \"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": "
           "\"user\", \"content\": \"\"}]}",
           "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n<|im_end|>\n");
    buf_deinit(&src);
}

static void white_space_is_trimmed_around_blocks(void **state)
{
    (void)state;
    expect("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "{}", "a\nb\nc");
    expect("a  {%- if true -%}  b  {%- endif +%}\nc", "{}", "ab\nc");
    expect("  {%+ if true %}x{% endif %}\n\n\n", "{}", "  x\n");
    expect("x {# note #}\ny {{- 1 -}} \n z", "{}", "x y1z");
    expect("{% raw %}{{ x }}{% endraw %}", "{}", "{{ x }}");
    expect("a\r\nb\r", "{}", "a\nb");
}

static void values_print_as_python_prints_them(void **state)
{
    (void)state;
    expect("{{ [1, 2.0, 1e16, 1e-5, 'a\\'b', none, true, {'k': (1,)}] }}", "{}",
           "[1, 2.0, 1e+16, 1e-05, \"a'b\", None, True, {'k': (1,)}]");
    expect("{{ x | tojson }}", "{\"x\": {\"b\": [1, 2.5, null, \"\\u00e9\\n\\u0001\"], \"a\": {}}}",
           "{\"b\": [1, 2.5, null, \"\xC3\xA9\\n\\u0001\"], \"a\": {}}");
    expect("{{ -7 // 2 }} {{ -7 % 3 }} {{ 'é€x'[::-1] }} {{ nope }}|{{ 'a' ~ 1 }}", "{}", "-4 2 x€é |a1");
}

static void scopes_are_those_of_jinja(void **state)
{
    (void)state;
    expect("{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }},{% endfor %}{{ x }}", "{}", "2,3,1");
    expect("{% set n = namespace(x=1) %}{% for i in [1, 2] %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}", "{}", "4");
    expect("{% macro m(a, b=2) %}{{ a + b }}{% endmacro %}{{ m(1) }}{{ m(1, b=5) }}", "{}", "36");
    expect("{% for a in [] %}x{% else %}none{% endfor %}{% for a in [1, 2, 3] if a != 2 %}{{ loop.index }}{{ a }}{% "
           "endfor %}",
           "{}", "none1123");
}

static void faults_are_named_with_their_place(void **state)
{
    (void)state;
    expect_error("a\n{{ 1 + }}", "{}", ERR_INVALID, "line 2, column 8");
    expect_error("{% if x %}", "{}", ERR_INVALID, "not closed");
    expect_error("{{ x | frob }}", "{}", ERR_INVALID, "frob");
    expect_error("{% frob %}", "{}", ERR_INVALID, "frob");
    expect_error("\n\n{{ raise_exception('no ' ~ 'way') }}", "{}", ERR_INVALID, "line 3: no way");
    expect_error("text {{ a.b.c }}", "{\"a\": {}}", ERR_INVALID, "'b' is undefined");
    expect_error("{{ 'a' + 1 }}", "{}", ERR_INVALID, "str");
    expect_error("{{ x.append(1) }}", "{\"x\": []}", ERR_INVALID, "not safe");
    expect_error("{{ 9223372036854775807 + 1 }}", "{}", ERR_INVALID, "overflow");
    expect_error("{% break %}", "{}", ERR_INVALID, "loop");
}

static void no_budget_can_be_passed(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(l=[1]) %}{% for i in range(64) %}{% set n.l = n.l + n.l %}{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
        "{{ [0] * 1000000000000 }}",
        "{{ range(1000000000000) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set n = namespace(x=[]) %}{% for i in range(1000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=[]) %}{% for i in range(1000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x | tojson }}",
        "{{ 'x' | indent(100000000000) }}",
        "{{ 'x'.ljust(100000000000) }}",
    };
    for (size_t i = 0; i < ARRAY_LEN(sources); i++)
        expect_error(sources[i], "{}", ERR_TOO_BIG, "");
    struct buf deep;
    buf_init(&deep);
    buf_puts(&deep, "{{ ");
    for (int i = 0; i < 100000; i++)
        buf_puts(&deep, "(");
    expect_error(deep.data, "{}", ERR_INVALID, "deep");
    buf_clear(&deep);
    buf_puts(&deep, "{{ 1");
    for (int i = 0; i < 100000; i++)
        buf_puts(&deep, " + 1");
    buf_puts(&deep, " }}");
    expect_error(deep.data, "{}", ERR_TOO_BIG, "deep");
    buf_deinit(&deep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_demo_and_chatml_formats_come_out), cmocka_unit_test(white_space_is_trimmed_around_blocks),
        cmocka_unit_test(values_print_as_python_prints_them),   cmocka_unit_test(scopes_are_those_of_jinja),
        cmocka_unit_test(faults_are_named_with_their_place),    cmocka_unit_test(no_budget_can_be_passed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
