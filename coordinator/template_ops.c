/* Operators, attributes, items and slices, as Python and jinja2 have them. Integers are 64 bits; past that a template
 * fails rather than being wrong. */
#include "base/check.h"
#include "coordinator/template_ast.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static struct template_val unsupported(struct template_run *r, const char *op, struct template_val a,
                                       struct template_val b)
{
    if (a.kind == TV_UNDEFINED || b.kind == TV_UNDEFINED)
        return template_undefined_used(r, a.kind == TV_UNDEFINED ? a : b);
    return template_fail(r, ERR_INVALID, "unsupported operand type(s) for %s: '%s' and '%s'", op, template_type_name(a),
                         template_type_name(b));
}

static struct template_val overflow(struct template_run *r)
{
    return template_fail(r, ERR_INVALID, "integer overflow in the chat template");
}

static bool small_int(struct template_val v, int64_t *i)
{
    *i = v.kind == TV_BOOL ? v.b : v.i;
    return v.kind == TV_BOOL || v.kind == TV_INT;
}

static struct template_val int_pow(struct template_run *r, int64_t x, int64_t y)
{
    if (y < 0)
        return x == 0 ? template_fail(r, ERR_INVALID, "0.0 cannot be raised to a negative power")
                      : template_float(pow((double)x, (double)y));
    int64_t v = 1;
    if (x == 0 || x == 1 || x == -1)
        return template_int(y == 0 ? 1 : x == -1 ? (y & 1 ? -1 : 1) : x);
    for (; y > 0; y--)
        if (__builtin_mul_overflow(v, x, &v))
            return overflow(r);
    return template_int(v);
}

static struct template_val int_op(struct template_run *r, int op, int64_t x, int64_t y)
{
    int64_t v;
    switch (op) {
    case '+':
        return __builtin_add_overflow(x, y, &v) ? overflow(r) : template_int(v);
    case '-':
        return __builtin_sub_overflow(x, y, &v) ? overflow(r) : template_int(v);
    case '*':
        return __builtin_mul_overflow(x, y, &v) ? overflow(r) : template_int(v);
    case OP_POW:
        return int_pow(r, x, y);
    default:
        break;
    }
    if (y == 0)
        return template_fail(r, ERR_INVALID, op == '/' ? "division by zero" : "integer division or modulo by zero");
    if (op == '/')
        return template_float((double)x / (double)y);
    if (y == -1)
        return op == '%' ? template_int(0) : x == INT64_MIN ? overflow(r) : template_int(-x);
    int64_t q = x / y, m = x % y;
    if (m != 0 && (m < 0) != (y < 0)) {
        q--;
        m += y;
    }
    return template_int(op == '%' ? m : q);
}

static struct template_val float_op(struct template_run *r, int op, double x, double y)
{
    if (op == '+' || op == '-' || op == '*')
        return template_float(op == '+' ? x + y : op == '-' ? x - y : x * y);
    if (op == OP_POW) {
        double v = pow(x, y);
        return x == 0 && y < 0 ? template_fail(r, ERR_INVALID, "0.0 cannot be raised to a negative power")
                               : template_float(v);
    }
    if (y == 0)
        return template_fail(r, ERR_INVALID, op == '%' ? "float modulo" : "float division by zero");
    if (op == '/')
        return template_float(x / y);
    double m = fmod(x, y);
    if (m != 0 && (m < 0) != (y < 0))
        m += y;
    double q = floor((x - m) / y + 0.5);
    return template_float(op == '%' ? m : q);
}

static struct template_val repeat(struct template_run *r, struct template_val v, int64_t n)
{
    if (v.kind == TV_STR) {
        struct template_text t = {.r = r};
        for (int64_t i = 0; v.len > 0 && i < n && template_step(r, 1); i++)
            template_text_add(&t, v.s, v.len);
        return template_text_val(&t);
    }
    struct template_val l = template_list(r, v.flavour, 0);
    for (int64_t i = 0; v.list->n > 0 && i < n && template_step(r, 1); i++)
        for (uint32_t k = 0; k < v.list->n && !r->failed; k++)
            template_push(r, l, v.list->v[k]);
    return l;
}

static bool plain_list(struct template_val v)
{
    return v.kind == TV_LIST && (v.flavour == TV_PLAIN || v.flavour == TV_TUPLE);
}

static struct template_val join(struct template_run *r, struct template_val a, struct template_val b)
{
    if (a.kind == TV_STR) {
        struct template_text t = {.r = r};
        bool markup = a.flavour == TV_MARKUP || b.flavour == TV_MARKUP;
        if (markup && a.flavour != TV_MARKUP)
            template_text_escape(&t, a);
        else
            template_text_add(&t, a.s, a.len);
        if (markup && b.flavour != TV_MARKUP)
            template_text_escape(&t, b);
        else
            template_text_add(&t, b.s, b.len);
        struct template_val v = template_text_val(&t);
        v.flavour = markup ? TV_MARKUP : TV_PLAIN;
        return v;
    }
    struct template_val l = template_list(r, a.flavour, 0);
    for (uint32_t i = 0; i < a.list->n + b.list->n && !r->failed; i++)
        template_push(r, l, i < a.list->n ? a.list->v[i] : b.list->v[i - a.list->n]);
    return l;
}

struct template_val template_binary(struct template_run *r, int op, struct template_val a, struct template_val b)
{
    int64_t x, y;
    double f, g;
    if (op == '%' && a.kind == TV_STR)
        return template_percent(r, a, b);
    if (small_int(a, &x) && small_int(b, &y))
        return int_op(r, op, x, y);
    if (template_number(a, &f) && template_number(b, &g))
        return float_op(r, op, f, g);
    if (op == '*' && (a.kind == TV_STR || plain_list(a)) && small_int(b, &y))
        return repeat(r, a, y);
    if (op == '*' && (b.kind == TV_STR || plain_list(b)) && small_int(a, &x))
        return repeat(r, b, x);
    if (op == '+' &&
        ((a.kind == TV_STR && b.kind == TV_STR) || (plain_list(a) && plain_list(b) && a.flavour == b.flavour)))
        return join(r, a, b);
    char name[3] = {(char)op, 0, 0};
    if (op == '+' && a.kind == TV_STR && b.kind != TV_UNDEFINED)
        return template_fail(r, ERR_INVALID, "can only concatenate str (not \"%s\") to str", template_type_name(b));
    return unsupported(r, op == OP_FLOORDIV ? "//" : op == OP_POW ? "**" : name, a, b);
}

/* ---- attributes and items ---- */

static struct template_val forbidden_call(struct template_run *r, struct template_val self,
                                          const struct template_args *a)
{
    (void)self;
    (void)a;
    return template_fail(r, ERR_INVALID, "a template may not change its values: the method is not safe to call");
}

/* A method bound to its value; UNDEFINED kind without one. */
static struct template_val method(struct template_run *r, struct template_val v, const char *name, size_t len)
{
    bool forbidden = false;
    template_fn *fn = template_method_find(v, name, len, &forbidden);
    if (forbidden)
        return template_function(forbidden_call);
    if (fn == NULL)
        return template_undefined(name, len);
    struct template_val *self = template_alloc(r, 1, sizeof(*self));
    if (self == NULL)
        return template_undefined(NULL, 0);
    *self = v;
    return (struct template_val){.kind = TV_FUNCTION, .fn = fn, .self = self};
}

struct template_val template_attr(struct template_run *r, struct template_val v, const char *name, size_t len)
{
    if (v.kind == TV_UNDEFINED)
        return template_undefined_used(r, v);
    if (v.kind == TV_LOOP)
        return template_loop_attr(r, v.loop, name, len);
    if (v.kind != TV_NAMESPACE) {
        struct template_val m = method(r, v, name, len);
        if (m.kind != TV_UNDEFINED || v.kind != TV_DICT)
            return m;
    }
    const struct template_val *item =
        v.kind == TV_DICT || v.kind == TV_NAMESPACE ? template_get_str(v.dict, name, len) : NULL;
    return item != NULL ? *item : template_undefined(name, len);
}

struct template_val template_item(struct template_run *r, struct template_val v, struct template_val key)
{
    int64_t i;
    if (v.kind == TV_UNDEFINED)
        return template_undefined_used(r, v);
    if (v.kind == TV_DICT && !(key.kind == TV_DICT || key.kind == TV_LIST)) {
        const struct template_val *item = template_get(r, v.dict, key);
        if (item != NULL)
            return *item;
    }
    if (small_int(key, &i) && (v.kind == TV_STR || (v.kind == TV_LIST && v.flavour <= TV_RANGE))) {
        int64_t n = v.kind == TV_STR ? (int64_t)template_char_count(v) : (int64_t)v.list->n;
        if (!template_step(r, v.kind == TV_STR ? v.len / 64 : 0))
            return v;
        if (i < 0)
            i += n;
        if (i < 0 || i >= n)
            return template_undefined("an index past the end", 21);
        if (v.kind == TV_LIST)
            return v.list->v[i];
        size_t at = template_char_offset(v, (size_t)i), k;
        template_char_at(v, at, &k);
        return template_str(v.s + at, k);
    }
    if (key.kind == TV_STR)
        return template_attr(r, v, key.s, key.len);
    return template_undefined("the item", 8);
}

/* Python's slice.indices. */
static bool slice_bound(struct template_run *r, struct template_val v, int64_t n, int64_t step, int64_t none,
                        int64_t *out)
{
    if (v.kind == TV_NONE) {
        *out = none;
        return true;
    }
    if (!small_int(v, out)) {
        template_fail(r, ERR_INVALID, "slice indices must be integers or None");
        return false;
    }
    if (*out < 0) {
        *out = MAX(*out + n, step < 0 ? -1 : 0);
    } else {
        *out = MIN(*out, step < 0 ? n - 1 : n);
    }
    return true;
}

struct template_val template_slice(struct template_run *r, struct template_val v, struct template_val from,
                                   struct template_val to, struct template_val step_val)
{
    int64_t step = 1, a, b;
    if (v.kind == TV_UNDEFINED)
        return template_undefined_used(r, v);
    if (v.kind != TV_STR && (v.kind != TV_LIST || v.flavour > TV_RANGE))
        return template_undefined("the slice", 9);
    int64_t n = v.kind == TV_STR ? (int64_t)template_char_count(v) : (int64_t)v.list->n;
    if (step_val.kind != TV_NONE && !small_int(step_val, &step))
        return template_fail(r, ERR_INVALID, "slice indices must be integers or None");
    if (step == 0)
        return template_fail(r, ERR_INVALID, "slice step cannot be zero");
    step = MAX(MIN(step, n + 1), -n - 1);
    if (!slice_bound(r, from, n, step, step < 0 ? n - 1 : 0, &a) || !slice_bound(r, to, n, step, step < 0 ? -1 : n, &b))
        return v;
    if (v.kind == TV_STR && step == 1) {
        size_t x = template_char_offset(v, (size_t)a), y = b <= a ? x : template_char_offset(v, (size_t)b);
        return template_step(r, v.len / 64) ? template_str(v.s + x, y - x) : v;
    }
    struct template_list *l = template_iterate(r, v);
    struct template_val out = template_list(r, v.kind == TV_LIST ? v.flavour : TV_PLAIN, 0);
    struct template_text t = {.r = r};
    for (int64_t i = a; l != NULL && (step > 0 ? i < b : i > b) && template_step(r, 1); i += step) {
        if (v.kind == TV_STR)
            template_text_add(&t, l->v[i].s, l->v[i].len);
        else
            template_push(r, out, l->v[i]);
    }
    return v.kind == TV_STR ? template_text_val(&t) : out;
}

/* ---- "..." % values ---- */

static void percent_number(struct template_run *r, struct template_text *t, const char *spec, size_t len, char conv,
                           struct template_val v)
{
    char fmt[32], out[512];
    double f;
    if (!template_number(v, &f)) {
        template_fail(r, ERR_INVALID, "%%%c format: a number is required, not %s", conv, template_type_name(v));
        return;
    }
    bool whole = strchr("dixXo", conv) != NULL;
    int64_t i = v.kind == TV_FLOAT ? (fabs(v.f) < 9e18 ? (int64_t)v.f : 0) : v.kind == TV_BOOL ? v.b : v.i;
    snprintf(fmt, sizeof(fmt), "%%%.*s%s%c", (int)len, spec, whole ? "ll" : "", conv);
    int n = whole ? snprintf(out, sizeof(out), fmt, (long long)i) : snprintf(out, sizeof(out), fmt, f);
    template_text_add(t, out, n < 0 ? 0 : MIN((size_t)n, sizeof(out) - 1));
}

static void percent_text(struct template_text *t, const char *spec, size_t len, struct template_val s)
{
    bool left = false, has_prec = false;
    size_t width = 0, prec = 0;
    for (size_t i = 0; i < len; i++) {
        if (spec[i] == '-')
            left = true;
        else if (spec[i] == '.')
            has_prec = true;
        else if (spec[i] >= '0' && spec[i] <= '9')
            *(has_prec ? &prec : &width) = *(has_prec ? &prec : &width) * 10 + (size_t)(spec[i] - '0');
    }
    if (has_prec)
        s.len = template_char_offset(s, prec);
    size_t n = template_char_count(s), pad = width > n ? width - n : 0;
    if (left)
        template_text_add(t, s.s, s.len);
    for (; pad > 0 && !t->r->failed; pad--)
        template_text_puts(t, " ");
    if (!left)
        template_text_add(t, s.s, s.len);
}

struct template_val template_percent(struct template_run *r, struct template_val fmt, struct template_val arg)
{
    struct template_text t = {.r = r};
    bool tuple = arg.kind == TV_LIST && arg.flavour == TV_TUPLE;
    uint32_t next = 0, n = tuple ? arg.list->n : 1;
    for (size_t i = 0; i < fmt.len && template_step(r, 1); i++) {
        if (fmt.s[i] != '%') {
            template_text_add(&t, fmt.s + i, 1);
            continue;
        }
        struct template_val v;
        bool keyed = false;
        i++;
        if (i < fmt.len && fmt.s[i] == '(') {
            const char *end = memchr(fmt.s + i, ')', fmt.len - i);
            if (end == NULL || arg.kind != TV_DICT)
                return template_fail(r, ERR_INVALID, "format requires a mapping");
            const struct template_val *item =
                template_get_str(arg.dict, fmt.s + i + 1, (size_t)(end - (fmt.s + i + 1)));
            if (item == NULL)
                return template_fail(r, ERR_INVALID, "a key of the format is missing");
            v = *item;
            keyed = true;
            next = n;
            i = (size_t)(end - fmt.s) + 1;
        }
        size_t spec = i;
        while (i < fmt.len && i - spec < 12 && strchr("-+ #0123456789.", fmt.s[i]) != NULL && fmt.s[i] != 0)
            i++;
        size_t len = i - spec;
        if (i >= fmt.len)
            return template_fail(r, ERR_INVALID, "incomplete format");
        if (fmt.s[i] == '%') {
            template_text_puts(&t, "%");
            continue;
        }
        if (!keyed) {
            if (next >= n)
                return template_fail(r, ERR_INVALID, "not enough arguments for format string");
            v = tuple ? arg.list->v[next] : arg;
            next++;
        }
        size_t width = 0, widest = 0;
        for (size_t k = spec; k < spec + len; k++) {
            width = fmt.s[k] >= '0' && fmt.s[k] <= '9' ? width * 10 + (size_t)(fmt.s[k] - '0') : 0;
            widest = MAX(widest, width);
        }
        if (widest > 400)
            return template_fail(r, ERR_TOO_BIG, "a format's width is over 400");
        if (fmt.s[i] == 's' || fmt.s[i] == 'r') {
            struct template_text s = {.r = r};
            if (fmt.s[i] == 's')
                template_text_str(&s, v);
            else
                template_text_repr(&s, v, 0);
            percent_text(&t, fmt.s + spec, len, template_text_val(&s));
        } else if (fmt.s[i] != 0 && strchr("dixXoeEfFgG", fmt.s[i]) != NULL) {
            percent_number(r, &t, fmt.s + spec, len, fmt.s[i], v);
        } else {
            return template_fail(r, ERR_INVALID, "unsupported format character");
        }
    }
    if (next < n && !(arg.kind == TV_DICT))
        return template_fail(r, ERR_INVALID, "not all arguments converted during string formatting");
    return template_text_val(&t);
}
