/* Tests: what follows `is`. */
#include "base/check.h"
#include "text/template_filters.h"

#define TEST_IS(name, condition)                                                                                       \
    static FILTER(name)                                                                                                \
    {                                                                                                                  \
        (void)r;                                                                                                       \
        (void)a;                                                                                                       \
        (void)v;                                                                                                       \
        return template_bool(condition);                                                                               \
    }
#define TEST_CMP(name, op, condition)                                                                                  \
    static FILTER(name)                                                                                                \
    {                                                                                                                  \
        int c = template_cmp(r, v, a->pos[0], op);                                                                     \
        return template_bool(c != 2 && (condition));                                                                   \
    }

TEST_IS(t_defined, v.kind != TV_UNDEFINED)
TEST_IS(t_undefined, v.kind == TV_UNDEFINED)
TEST_IS(t_none, v.kind == TV_NONE)
TEST_IS(t_string, v.kind == TV_STR)
TEST_IS(t_number, template_is_whole(v) || v.kind == TV_FLOAT)
TEST_IS(t_integer, v.kind == TV_INT || v.kind == TV_BIG)
TEST_IS(t_float, v.kind == TV_FLOAT)
TEST_IS(t_boolean, v.kind == TV_BOOL)
TEST_IS(t_true, v.kind == TV_BOOL && v.b)
TEST_IS(t_false, v.kind == TV_BOOL && !v.b)
TEST_IS(t_mapping, v.kind == TV_DICT)
TEST_IS(t_iterable, template_iterable(v))
TEST_IS(t_sequence, v.kind == TV_STR || template_is_sequence(v) || v.kind == TV_DICT || v.kind == TV_UNDEFINED)
TEST_IS(t_callable, v.kind == TV_FUNCTION || v.kind == TV_MACRO || v.kind == TV_LOOP || v.kind == TV_UNDEFINED)
TEST_IS(t_escaped, v.kind == TV_STR && v.flavour == TV_MARKUP)
TEST_IS(t_eq, template_eq(r, v, a->pos[0]))
TEST_IS(t_ne, !template_eq(r, v, a->pos[0]))
TEST_IS(t_in, template_contains(r, v, a->pos[0]))
TEST_CMP(t_lt, "<", c < 0)
TEST_CMP(t_le, "<=", c <= 0)
TEST_CMP(t_gt, ">", c > 0)
TEST_CMP(t_ge, ">=", c >= 0)
TEST_IS(t_lower, template_is_cased(r, template_to_str(r, v), 'l'))
TEST_IS(t_upper, template_is_cased(r, template_to_str(r, v), 'u'))

/* Identity: of values that are compared by content, equality of one type. */
static FILTER(t_sameas)
{
    struct template_val o = a->pos[0];
    bool same = v.kind == o.kind && template_eq(r, v, o);
    return template_bool(same && (v.kind == TV_LIST ? v.list == o.list : v.kind == TV_DICT ? v.dict == o.dict : v.kind == TV_UNDEFINED ? v.s == o.s : true));
}

/* v % by == rest, whatever % is for v. */
static struct template_val leaves(struct template_run *r, struct template_val v, struct template_val by, int64_t rest)
{
    struct template_val m = template_binary(r, '%', v, by);
    return template_bool(!r->failed && template_eq(r, m, template_int(rest)));
}

static FILTER(t_odd)
{
    (void)a;
    return leaves(r, v, template_int(2), 1);
}

static FILTER(t_even)
{
    (void)a;
    return leaves(r, v, template_int(2), 0);
}

static FILTER(t_divisibleby)
{
    return leaves(r, v, a->pos[0], 0);
}

static FILTER(t_filter)
{
    (void)a;
    return template_bool(template_hashable(r, v) && v.kind == TV_STR && template_filter_find(v.s, v.len) != NULL);
}

static FILTER(t_test)
{
    (void)a;
    return template_bool(template_hashable(r, v) && v.kind == TV_STR && template_test_find(v.s, v.len) != NULL);
}

const struct template_def *template_test_find(const char *name, size_t len)
{
    static const struct template_def tests[] = {
        {"boolean", t_boolean, ""},
        {"callable", t_callable, ""},
        {"defined", t_defined, ""},
        {"divisibleby", t_divisibleby, "num"},
        {"eq", t_eq, "/b"},
        {"equalto", t_eq, "/b"},
        {"==", t_eq, "/b"},
        {"escaped", t_escaped, ""},
        {"even", t_even, ""},
        {"false", t_false, ""},
        {"filter", t_filter, ""},
        {"float", t_float, ""},
        {"ge", t_ge, "/b"},
        {">=", t_ge, "/b"},
        {"gt", t_gt, "/b"},
        {"greaterthan", t_gt, "/b"},
        {">", t_gt, "/b"},
        {"in", t_in, "seq"},
        {"integer", t_integer, ""},
        {"iterable", t_iterable, ""},
        {"le", t_le, "/b"},
        {"<=", t_le, "/b"},
        {"lower", t_lower, ""},
        {"lt", t_lt, "/b"},
        {"lessthan", t_lt, "/b"},
        {"<", t_lt, "/b"},
        {"mapping", t_mapping, ""},
        {"ne", t_ne, "/b"},
        {"!=", t_ne, "/b"},
        {"none", t_none, ""},
        {"number", t_number, ""},
        {"odd", t_odd, ""},
        {"sameas", t_sameas, "other"},
        {"sequence", t_sequence, ""},
        {"string", t_string, ""},
        {"test", t_test, ""},
        {"true", t_true, ""},
        {"undefined", t_undefined, ""},
        {"upper", t_upper, ""},
    };
    return template_def_find(tests, ARRAY_LEN(tests), name, len);
}
