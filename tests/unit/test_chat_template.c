/* Chat templates without jinja2 at hand: renderings worked out by hand from the rules of Jinja and Python, errors with
 * their places, and budgets. The wide comparison is tests/oracle/templates_oracle.py. */
#include "base/check.h"
#include "base/clock.h"
#include "text/chat_template.h"

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

static void integers_have_any_size(void **state)
{
    (void)state;
    expect("{{ 9223372036854775807 + 1 }} {{ -9223372036854775807 - 2 }} {{ 2 ** 100 }}", "{}",
           "9223372036854775808 -9223372036854775809 1267650600228229401496703205376");
    expect("{{ (2 ** 100) // (2 ** 98) }} {{ (-(10 ** 30)) // 7 }} {{ (10 ** 30) % -7 }} {{ 2 ** 100 > 1e30 }}", "{}",
           "4 -142857142857142857142857142858 -6 True");
    expect("{{ 10 ** 25 == 10000000000000000000000000 }} {{ (3 ** 50)|tojson }} {{ '%x'|format(2 ** 70) }}", "{}",
           "True 717897987691852588770249 400000000000000000");
}

static void letters_are_those_of_unicode(void **state)
{
    (void)state;
    expect("{{ 'stra\u00dfe \ufb01n'.upper() }} {{ '\u039f\u0394\u039f\u03a3'.lower() }} {{ '\u01c6x'.title() }} {{ '\u00dfA'.casefold() }}", "{}",
           "STRASSE FIN \xCE\xBF\xCE\xB4\xCE\xBF\xCF\x82 \xC7\x85x ssa");
    expect("{{ '\u0663'.isdigit() }} {{ '\u00bd'.isnumeric() }} {{ '\u00bd'.isdecimal() }} {{ '\u0663\u0664'|int }}", "{}", "True True False 34");
}

/* What nobody asks a generator for is not computed; nor is an error in it raised. */
static void generators_are_lazy(void **state)
{
    (void)state;
    expect("{% set g = [1, 'x']|map('abs') %}{{ g|first }}", "{}", "1");
    expect("{% set n = namespace(go=true) %}{% for i in [1, 2, 3] if n.go %}{{ i }}{% set n.go = i < 2 %}{% endfor %}", "{}", "12");
    expect_error("{{ [1, 'x']|map('abs')|list }}", "{}", ERR_INVALID, "abs");
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
    /* a name that a scope sets is its own from the start */
    expect("{% macro m() %}[{{ x }}]{% endmacro %}{{ m() }}{% set x = 1 %}{{ m() }}", "{\"x\": 5}", "[][1]");
    expect("{% if no %}{% set x = 1 %}{% endif %}{{ x }}", "{\"x\": 5, \"no\": false}", "5");
    expect("{% for i in [1, 2] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}", "{\"x\": 5}", "51525");
    expect("{% macro m() %}{{ caller is defined }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, a=2) }}", "{}", "False(1,){'a': 2}");
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
    expect_error("{{ [].pop is defined }}{{ [].pop() }}", "{}", ERR_INVALID, "not safe");
    expect_error("{{ 'abc'.replace('a') }}", "{}", ERR_INVALID, "new");
    expect_error("{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{}", ERR_INVALID, "not more than 1");
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
        "{{ 10 ** (10 ** 10) }}",
        "{% set n = namespace(i=3) %}{% for i in range(100) %}{% set n.i = n.i * n.i %}{% endfor %}",
        "{{ ('x' * 10000).replace('', 'y' * 10000) }}",
        "{{ '%99999999s'|format('x') }}",
        "{{ '{:99999999}'.format('x') }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% macro a() %}{{ b() }}{{ b() }}{% endmacro %}{% macro b() %}{% for i in range(10) %}{{ c() }}{% endfor %}{% endmacro %}{% macro c() %}{% for i in range(1000) %}"
        "{{ 'x' * 1000 }}{% endfor %}{% endmacro %}{% for i in range(1000) %}{{ a() }}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s|replace('a', n.s) %}{% endfor %}",
        "{% set l = range(100000)|list %}{% for i in range(1000) %}{% if -1 in l %}{% endif %}{% endfor %}",
        "{% set s = 'a' * 100000 %}{% for i in range(100000) %}{% if s[99999] %}{% endif %}{% endfor %}",
        "{% set s = 'a' * 100000 %}{% for i in range(100000) %}{% if s.rfind('b') %}{% endif %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{% set t = s.find('b') + (s ~ s)|length %}{% endfor %}",
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
    for (int i = 0; i < 10000; i++)
        buf_puts(&deep, "{% if 1 %}");
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
        cmocka_unit_test(integers_have_any_size),               cmocka_unit_test(letters_are_those_of_unicode),
        cmocka_unit_test(generators_are_lazy),                  cmocka_unit_test(faults_are_named_with_their_place),
        cmocka_unit_test(no_budget_can_be_passed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
