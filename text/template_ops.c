/* Operators, attributes, items and slices, as Python and jinja2 have them. */
#include "base/check.h"
#include "text/template_ast.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct template_val unsupported(struct template_run *r, const char *op, struct template_val a, struct template_val b)
{
    if (a.kind == TV_UNDEFINED || b.kind == TV_UNDEFINED)
        return template_undefined_used(r, a.kind == TV_UNDEFINED ? a : b);
    return template_fail(r, ERR_INVALID, "unsupported operand type(s) for %s: '%s' and '%s'", op, template_type_name(a),
                         template_type_name(b));
}

static struct template_val whole_op(struct template_run *r, int op, struct template_val a, struct template_val b)
{
    if (op != '/')
        return template_int_op(r, op, a, b);
    double x = template_int_double(a), y = template_int_double(b);
    if (y == 0)
        return template_fail(r, ERR_INVALID, "division by zero");
    if (!isfinite(x / y) || isinf(y))
        return template_fail(r, ERR_INVALID, "integer division result too large for a float");
    if (fabs(x) < 0x1p53 && fabs(y) < 0x1p53)
        return template_float(x / y);
    /* correctly rounded: a quotient of at least 65 bits, whose last one says that something was cut off */
    int ex, ey;
    frexp(x, &ex);
    frexp(y, &ey);
    int shift = 66 - (ex - ey);
    struct template_val two = template_int_op(r, OP_POW, template_int(2), template_int(abs(shift)));
    struct template_val p = shift > 0 ? template_int_op(r, '*', a, two) : a, q = shift > 0 ? b : template_int_op(r, '*', b, two);
    struct template_val quo = template_int_op(r, OP_FLOORDIV, p, q), rest = template_int_op(r, '%', p, q);
    if (r->failed)
        return a;
    quo = template_int_op(r, '+', template_int_op(r, '*', quo, template_int(2)), template_int(template_truth(rest)));
    return r->failed ? a : template_float(ldexp(template_int_double(quo), -shift - 1));
}

static struct template_val float_op(struct template_run *r, int op, double x, double y)
{
    if (op == '+' || op == '-' || op == '*')
        return template_float(op == '+' ? x + y : op == '-' ? x - y : x * y);
    if (op == OP_POW) {
        double v = pow(x, y);
        if (x == 0 && y < 0)
            return template_fail(r, ERR_INVALID, "0.0 cannot be raised to a negative power");
        if (isfinite(x) && isfinite(y) && isnan(v))
            return template_fail(r, ERR_UNSUPPORTED, "complex numbers are not supported");
        if (isfinite(x) && isfinite(y) && isinf(v))
            return template_fail(r, ERR_INVALID, "Numerical result out of range");
        return template_float(v);
    }
    if (y == 0)
        return template_fail(r, ERR_INVALID, op == '%' ? "float modulo" : "float division by zero");
    if (op == '/')
        return template_float(x / y);
    double m = fmod(x, y), q = (x - m) / y;
    if (m != 0 && (m < 0) != (y < 0)) {
        m += y;
        q -= 1;
    } else if (m == 0) {
        m = copysign(0, y);
    }
    if (op == '%')
        return template_float(m);
    if (q == 0)
        return template_float(copysign(0, x / y));
    double whole = floor(q);
    return template_float(q - whole > 0.5 ? whole + 1 : whole);
}

static struct template_val repeat(struct template_run *r, struct template_val v, struct template_val times)
{
    int64_t n;
    size_t size = v.kind == TV_STR ? v.len : v.list->n;
    if (!template_small(times, &n))
        return template_fail(r, ERR_INVALID, "cannot fit 'int' into an index-sized integer");
    n = size == 0 ? 0 : MAX(n, 0);
    if (n > (int64_t)(TEMPLATE_MEMORY_MAX / (size + 1)))
        return template_fail(r, ERR_TOO_BIG, "the chat template needs more than %d MiB of memory", TEMPLATE_MEMORY_MAX >> 20);
    if (v.kind == TV_STR) {
        struct template_text t = {.r = r};
        template_text_fill(&t, v.s, v.len, n);
        struct template_val out = template_text_val(&t);
        out.flavour = v.flavour;
        return out;
    }
    struct template_val l = template_list(r, v.flavour == TV_GROUP ? TV_TUPLE : v.flavour, 0);
    for (int64_t i = 0; i < n && template_step(r, 1); i++)
        for (uint32_t k = 0; k < v.list->n && !r->failed; k++)
            template_push(r, l, v.list->v[k]);
    return l;
}

static bool repeatable(struct template_val v)
{
    return v.kind == TV_STR || (template_is_sequence(v) && v.flavour != TV_RANGE);
}

static struct template_val join(struct template_run *r, struct template_val a, struct template_val b)
{
    if (a.kind == TV_STR) {
        struct template_text t = {.r = r};
        bool markup = a.flavour == TV_MARKUP || b.flavour == TV_MARKUP;
        if (markup && a.flavour != TV_MARKUP)
            template_text_escape(&t, a);
        else
            template_text_resume(&t, a);
        if (markup && b.flavour != TV_MARKUP)
            template_text_escape(&t, b);
        else
            template_text_add(&t, b.s, b.len);
        struct template_val v = template_text_keep(&t);
        v.flavour = markup ? TV_MARKUP : TV_PLAIN;
        return v;
    }
    struct template_val l = template_list(r, a.flavour == TV_GROUP ? TV_TUPLE : a.flavour, 0);
    for (uint32_t i = 0; i < a.list->n + b.list->n && !r->failed; i++)
        template_push(r, l, i < a.list->n ? a.list->v[i] : b.list->v[i - a.list->n]);
    return l;
}

struct template_val template_binary(struct template_run *r, int op, struct template_val a, struct template_val b)
{
    double f, g;
    if (op == '%' && a.kind == TV_STR)
        return template_percent(r, a, b);
    if (template_is_whole(a) && template_is_whole(b))
        return whole_op(r, op, a, b);
    if (template_number(a, &f) && template_number(b, &g))
        return (a.kind == TV_BIG && isinf(f)) || (b.kind == TV_BIG && isinf(g))
                   ? template_fail(r, ERR_INVALID, "int too large to convert to float")
                   : float_op(r, op, f, g);
    if (op == '*' && repeatable(a) && template_is_whole(b))
        return repeat(r, a, b);
    if (op == '*' && repeatable(b) && template_is_whole(a))
        return repeat(r, b, a);
    if (op == '+' && ((a.kind == TV_STR && b.kind == TV_STR) || (template_is_tuple(a) && template_is_tuple(b)) ||
                      (repeatable(a) && repeatable(b) && a.kind == TV_LIST && b.kind == TV_LIST && a.flavour == TV_PLAIN && b.flavour == TV_PLAIN)))
        return join(r, a, b);
    char name[3] = {(char)op, 0, 0};
    if (op == '+' && a.kind == TV_STR && b.kind != TV_UNDEFINED)
        return template_fail(r, ERR_INVALID, "can only concatenate str (not \"%s\") to str", template_type_name(b));
    return unsupported(r, op == OP_FLOORDIV ? "//" : op == OP_POW ? "**" : name, a, b);
}

/* ---- attributes and items ---- */

/* UNDEFINED kind without such an attribute. */
static struct template_val attribute(struct template_run *r, struct template_val v, const char *name, size_t len)
{
    bool unsafe = len > 0 && name[0] == '_';
    if (v.kind == TV_LOOP && !unsafe)
        return template_loop_attr(r, v.loop, name, len);
    if (v.kind == TV_MACRO && !unsafe)
        return template_macro_attr(r, v.macro, name, len);
    if (v.kind == TV_NAMESPACE) {
        const struct template_val *item = unsafe ? NULL : template_get_str(v.dict, name, len);
        return item != NULL ? *item : template_undefined(name, len);
    }
    struct template_val a = template_value_attr(r, v, name, len);
    return a;
}

struct template_val template_attr(struct template_run *r, struct template_val v, const char *name, size_t len)
{
    if (v.kind == TV_UNDEFINED)
        return len > 1 && memcmp(name, "__", 2) == 0 && memcmp(name + len - 2, "__", 2) == 0 ? template_undefined(name, len)
                                                                                             : template_undefined_used(r, v);
    struct template_val a = attribute(r, v, name, len);
    if (a.kind != TV_UNDEFINED || v.kind != TV_DICT || a.flavour == TV_UNSAFE)
        return a;
    const struct template_val *item = template_get_str(v.dict, name, len);
    return item != NULL ? *item : template_undefined(name, len);
}

struct template_val template_item(struct template_run *r, struct template_val v, struct template_val key)
{
    int64_t i;
    if (v.kind == TV_UNDEFINED)
        return template_undefined_used(r, v);
    if (v.kind == TV_DICT && (key.kind != TV_LIST || template_is_tuple(key)) && key.kind != TV_DICT) {
        const struct template_val *item = template_get(r, v.dict, key);
        if (item != NULL)
            return *item;
    }
    if (template_small(key, &i) && (v.kind == TV_STR || template_is_sequence(v))) {
        int64_t n = template_len(r, v);
        if (r->failed)
            return v;
        if (i < 0)
            i += n;
        if (i < 0 || i >= n)
            return template_undefined("an index past the end", 21);
        if (v.kind == TV_LIST)
            return v.list->v[i];
        size_t at = template_char_offset(v, (size_t)i), k;
        template_char_at(v, at, &k);
        struct template_val c = template_str(v.s + at, k);
        c.flavour = v.flavour;
        return c;
    }
    if (key.kind == TV_STR)
        return attribute(r, v, key.s, key.len);
    return template_undefined("the item", 8);
}

/* Python's slice.indices. */
static bool slice_bound(struct template_run *r, struct template_val v, int64_t n, int64_t step, int64_t none, int64_t *out)
{
    *out = none;
    if (v.kind == TV_NONE)
        return true;
    if (v.kind == TV_BIG)
        v = template_int(template_int_cmp(v, template_int(0)) < 0 ? -n - 1 : n + 1);
    if (!template_small(v, out)) {
        template_fail(r, ERR_INVALID, "slice indices must be integers or None");
        return false;
    }
    if (*out < 0)
        *out = MAX(*out + n, step < 0 ? -1 : 0);
    else
        *out = MIN(*out, step < 0 ? n - 1 : n);
    return true;
}

struct template_val template_slice(struct template_run *r, struct template_val v, struct template_val from, struct template_val to,
                                   struct template_val step_val)
{
    int64_t step = 1, a, b;
    if (v.kind == TV_UNDEFINED)
        return template_undefined_used(r, v);
    if (v.kind != TV_STR && !template_is_sequence(v))
        return template_fail(r, ERR_INVALID, "'%s' object is not subscriptable by a slice", template_type_name(v));
    int64_t n = template_len(r, v);
    if (step_val.kind == TV_BIG)
        step_val = template_int(template_int_cmp(step_val, template_int(0)) < 0 ? -n - 1 : n + 1);
    if (step_val.kind != TV_NONE && !template_small(step_val, &step))
        return template_fail(r, ERR_INVALID, "slice indices must be integers or None");
    if (step == 0)
        return template_fail(r, ERR_INVALID, "slice step cannot be zero");
    int64_t whole_step = step;
    step = MAX(MIN(step, n + 1), -n - 1);
    if (!slice_bound(r, from, n, step, step < 0 ? n - 1 : 0, &a) || !slice_bound(r, to, n, step, step < 0 ? -1 : n, &b))
        return v;
    if (v.kind == TV_STR && step == 1) {
        size_t x = template_char_offset(v, (size_t)a), y = b <= a ? x : template_char_offset(v, (size_t)b);
        struct template_val out = template_str(v.s + x, y - x);
        out.flavour = v.flavour;
        return out;
    }
    struct template_list *l = template_iterate(r, v);
    struct template_val out = template_list(r, v.kind != TV_LIST ? TV_PLAIN : v.flavour == TV_GROUP ? TV_TUPLE : v.flavour, 0);
    struct template_text t = {.r = r};
    for (int64_t i = a; l != NULL && (step > 0 ? i < b : i > b) && template_step(r, 1); i += step) {
        if (v.kind == TV_STR)
            template_text_add(&t, l->v[i].s, l->v[i].len);
        else
            template_push(r, out, l->v[i]);
    }
    if (v.kind == TV_STR) {
        out = template_text_val(&t);
        out.flavour = v.flavour;
    } else if (v.flavour == TV_RANGE && !r->failed) { /* a range again, with bounds of its own */
        int64_t first = v.list->v[v.list->n].i, by = v.list->v[v.list->n + 2].i;
        template_range_bounds(r, out, first + a * by, first + b * by, by * whole_step);
    }
    return out;
}
