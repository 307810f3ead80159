/* Values of the template language and the run that owns them. They behave as Python's do where jinja2 would show it:
 * str and repr, truth, equality, order, Undefined. Everything lives in the arena of one run; strings of the context are
 * views into the caller's JSON.
 *
 * A failure is kept on the run (the first one counts) and every later step does nothing, so that functions return
 * values and not errors; loops look at run->failed. Used by one thread. */
#ifndef TEXT_TEMPLATE_VALUE_H
#define TEXT_TEMPLATE_VALUE_H

#include "base/arena.h"
#include "base/buf.h"

#include <jansson.h>
#include <stdint.h>
#include <time.h>

enum template_kind {
    TV_MISSING,   /* not given, not set; never seen by a template */
    TV_UNDEFINED, /* s: what was not there, for the message */
    TV_NONE,
    TV_BOOL,
    TV_INT,
    TV_BIG, /* an integer that does not fit TV_INT */
    TV_FLOAT,
    TV_STR,
    TV_LIST, /* flavour */
    TV_DICT,
    TV_ITER,      /* a generator or iterator: gives each item once, when it is asked for */
    TV_NAMESPACE, /* dict; its items can be set */
    TV_CYCLER,    /* list; list->next comes next */
    TV_FUNCTION,
    TV_MACRO,
    TV_LOOP,
};
enum template_flavour { TV_PLAIN, TV_TUPLE, TV_GROUP /* what groupby gives: a tuple with names */, TV_RANGE, TV_KEYS, TV_VALUES, TV_ITEMS };
enum { TV_UNSAFE = 1 }; /* flavour of UNDEFINED: the sandbox hides it */
enum { TV_MARKUP = 1 }; /* flavour of strings: came out of `safe` or `escape`; what is added to it by + is escaped */

struct template_run;
struct template_args;
struct template_macro;
struct template_loop;
struct template_iter;
struct template_node;
struct template_val;
typedef struct template_val template_fn(struct template_run *r, struct template_val self, const struct template_args *a);

/* A function by name with its parameters: "old new count?" (the last may be left out), "/sep" (by position only). Its args
 * hold one value for each parameter, TV_MISSING where none was given. NULL: it takes what comes. */
struct template_def {
    const char *name;
    template_fn *fn;
    const char *params;
};
enum { TEMPLATE_PARAMS_MAX = 6 };

struct template_val {
    uint8_t kind, flavour;
    union {
        bool b;
        int64_t i;
        double f;
        struct {
            const char *s;
            size_t len;
        };
        const struct template_big *big;
        struct template_list *list;
        struct template_dict *dict;
        struct template_iter *iter;
        struct {
            const struct template_def *def;
            const struct template_val *self;
        };
        const struct template_macro *macro;
        struct template_loop *loop;
    };
};
struct template_list {
    struct template_val *v;
    uint32_t n, cap;
    uint32_t next; /* of a cycler */
};
struct template_entry {
    struct template_val k, v;
};
struct template_dict { /* in order of insertion */
    struct template_entry *e;
    uint32_t n, cap;
    uint32_t *slots; /* index of an entry + 1; from 9 entries on */
    uint32_t mask;
};
struct template_kw {
    const char *name;
    struct template_val v;
};
struct template_args {
    struct template_val *pos;
    struct template_kw *kw;
    uint32_t n, n_kw;
};
/* Gives the next item; false at the end, for good, and after a failure. */
typedef bool template_next_fn(struct template_run *r, struct template_iter *it, struct template_val *out);
struct template_iter {
    template_next_fn *next;
    struct template_iter *src; /* where the items come from, if from another iterator */
    struct template_val over;  /* a container that is walked through, or what `next` wants to remember */
    size_t at;
    const struct template_def *def; /* the filter or test applied to each */
    struct template_val attr, fallback;
    struct template_args args;
    const struct template_node *node; /* of a loop's condition */
    struct template_scope *scope;
    bool started, done, want, by_attr;
};

struct template_run {
    struct arena arena;
    struct buf *out;
    struct template_dict *context;
    struct template_scope *scope;
    struct { /* the string that was made last by adding to a long one, and its room */
        char *s;
        size_t len, cap;
    } tail;
    uint64_t steps, steps_max, cpu_deadline_ns, time_ns;
    uint64_t text_bytes; /* of the context's strings */
    uint32_t depth, line;
    time_t now; /* what strftime_now shows */
    bool failed;
    enum err err;
    char text[400];
};

/* What one run may take. Steps and time grow with the context: a long conversation is no bomb. */
enum {
    TEMPLATE_DEPTH_MAX = 800,   /* nested evaluations */
    TEMPLATE_NESTING_MAX = 200, /* values inside values */
    TEMPLATE_STEPS_MAX = 4000000,
    TEMPLATE_STEPS_PER_BYTE = 64,
    TEMPLATE_TIME_US = 25000,     /* of this thread's processor time, so that a busy machine fails nobody */
    TEMPLATE_TIME_NS_PER_BYTE = 200,
    TEMPLATE_OUTPUT_MAX = 32 << 20,
    TEMPLATE_MEMORY_MAX = 64 << 20,
    TEMPLATE_RANGE_MAX = 100000,
    TEMPLATE_DIGITS_MAX = 4300, /* of an integer that is printed or read, as Python limits it */
    TEMPLATE_BITS_MAX = 1 << 17,
    TEMPLATE_WIDTH_MAX = 100000, /* that a format pads to */
};

/* ---- the run ---- */
struct template_val template_fail(struct template_run *r, enum err e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Counts n steps of work; false once the run has failed or a budget is spent. */
bool template_step(struct template_run *r, uint64_t n);
void *template_alloc(struct template_run *r, size_t n, size_t size); /* zeroed; NULL only after a failure */

/* ---- construction ---- */
static inline struct template_val template_undefined(const char *what, size_t len)
{
    return (struct template_val){.kind = TV_UNDEFINED, .s = what, .len = len};
}
static inline struct template_val template_none(void)
{
    return (struct template_val){.kind = TV_NONE};
}
static inline struct template_val template_bool(bool b)
{
    return (struct template_val){.kind = TV_BOOL, .b = b};
}
static inline struct template_val template_int(int64_t i)
{
    return (struct template_val){.kind = TV_INT, .i = i};
}
static inline struct template_val template_float(double f)
{
    return (struct template_val){.kind = TV_FLOAT, .f = f};
}
static inline struct template_val template_str(const char *s, size_t len)
{
    return (struct template_val){.kind = TV_STR, .s = s, .len = len};
}
struct template_val template_cstr(const char *s);
struct template_val template_list(struct template_run *r, enum template_flavour flavour, uint32_t cap);
bool template_push(struct template_run *r, struct template_val list, struct template_val v);
struct template_val template_pair(struct template_run *r, struct template_val a, struct template_val b);
struct template_val template_dict(struct template_run *r);
bool template_put(struct template_run *r, struct template_dict *d, struct template_val k, struct template_val v); /* fails on an unhashable key */
bool template_hashable(struct template_run *r, struct template_val k);                                           /* fails when it is not */
const struct template_val *template_get(struct template_run *r, const struct template_dict *d, struct template_val k);
const struct template_val *template_get_str(const struct template_dict *d, const char *s, size_t len);
/* A function, bound to self when that is not TV_MISSING. */
struct template_val template_bound(struct template_run *r, const struct template_def *def, struct template_val self);
struct template_val template_from_json(struct template_run *r, const json_t *j, uint32_t depth);

/* ---- Python's idea of values ---- */
bool template_truth(struct template_val v);
bool template_eq(struct template_run *r, struct template_val a, struct template_val b);
/* -1, 0, 1; 2 when one of them is NaN; fails for values without an order, `op` named in the message. */
int template_cmp(struct template_run *r, struct template_val a, struct template_val b, const char *op);
bool template_contains(struct template_run *r, struct template_val item, struct template_val in);
bool template_is_str(struct template_val v, const char *s);
bool template_is_tuple(struct template_val v);
bool template_is_sequence(struct template_val v);       /* list, tuple, range */
bool template_is_whole(struct template_val v);          /* bool or int, of any size */
bool template_small(struct template_val v, int64_t *i); /* bool, int */
bool template_number(struct template_val v, double *f); /* bool, int, float */
const char *template_type_name(struct template_val v);  /* as Python names it */
/* Undefined in an operation: fails with the message that jinja2 has. */
struct template_val template_undefined_used(struct template_run *r, struct template_val v);
/* len(v); -1 when it has none. */
int64_t template_len(struct template_run *r, struct template_val v);

/* ---- iteration (template_iter.c) ---- */
/* iter(v); NULL after a failure. */
struct template_iter *template_iter(struct template_run *r, struct template_val v);
struct template_val template_iter_new(struct template_run *r, template_next_fn *next, struct template_iter *src, struct template_val over);
bool template_next(struct template_run *r, struct template_iter *it, struct template_val *out);
bool template_iterable(struct template_val v);
/* Any iterable as a list: the container's own, or what is left of an iterator. NULL after a failure. */
struct template_list *template_iterate(struct template_run *r, struct template_val v);
/* reversed(v); TV_MISSING when it cannot be walked backwards. */
struct template_val template_reversed(struct template_run *r, struct template_val v);

/* ---- integers of any size (template_int.c) ---- */
struct template_val template_int_op(struct template_run *r, int op, struct template_val a, struct template_val b); /* + - * // % ** */
int template_int_cmp(struct template_val a, struct template_val b);
double template_int_double(struct template_val v); /* nearest; infinite when too large */
struct template_val template_int_from_double(struct template_run *r, double f); /* finite; cut off behind the point */
/* Digits with an optional sign, no blanks or prefix; TV_MISSING when they are none. */
struct template_val template_int_parse(struct template_run *r, const char *s, size_t len, int base);
bool template_int_even(struct template_val v);
/* base 2, 8, 10, 16, without prefix. */
struct template_val template_int_text(struct template_run *r, struct template_val v, int base);

/* ---- text (template_text.c) ---- */
struct template_text { /* a string under construction in the arena */
    struct template_run *r;
    char *s;
    size_t len, cap;
};
void template_text_add(struct template_text *t, const char *s, size_t len);
void template_text_puts(struct template_text *t, const char *s);
void template_text_fill(struct template_text *t, const char *s, size_t len, int64_t n); /* n times */
struct template_val template_text_val(const struct template_text *t);
/* Starts t with the text a, behind which more will be written: in place when nothing was written there yet, so that a text that grows piece by piece
 * costs its length. The finished t goes to template_text_keep. */
void template_text_resume(struct template_text *t, struct template_val a);
struct template_val template_text_keep(const struct template_text *t);
void template_text_str(struct template_text *t, struct template_val v);                  /* str(v) */
void template_text_repr(struct template_text *t, struct template_val v, uint32_t depth); /* repr(v) */
struct template_val template_to_str(struct template_run *r, struct template_val v);
struct template_val template_to_repr(struct template_run *r, struct template_val v);
void template_text_escape(struct template_text *t, struct template_val s); /* HTML, as markupsafe does */
size_t template_format_float(double f, char *out, size_t cap);             /* repr of a float; cap at least 40 */
struct template_json_opts {
    struct template_val item_sep, key_sep, indent; /* indent TV_MISSING: one line */
    bool sort_keys, ascii;
};
void template_json(struct template_text *t, struct template_val v, const struct template_json_opts *o, uint32_t depth); /* template_json.c */

/* ---- characters: code points, as Python counts (template_chars.c) ---- */
size_t template_char_count(struct template_val s);
size_t template_char_offset(struct template_val s, size_t idx); /* byte offset of character idx, s.len past the end */
uint32_t template_char_at(struct template_val s, size_t offset, size_t *n); /* the character at a byte offset */
size_t template_char_before(struct template_val s, size_t offset); /* where the character before the offset starts */
enum template_class {
    TC_SPACE,
    TC_ALPHA,
    TC_DECIMAL,
    TC_DIGIT,
    TC_NUMERIC,
    TC_ALNUM,
    TC_PRINTABLE,
    TC_UPPER,
    TC_LOWER,
    TC_TITLE,
    TC_ASCII,
    TC_ID_START,
    TC_ID_CONTINUE,
};
bool template_char_is(uint32_t cp, enum template_class c);
int template_char_decimal(uint32_t cp); /* 0 to 9, or -1 */
bool template_is_space(uint32_t cp);
/* u upper, l lower, t title, c capitalize, s swapcase, f casefold */
struct template_val template_case(struct template_run *r, struct template_val s, char how);
/* islower, isupper, istitle by the first two letters: 'l', 'u', 't' */
bool template_is_cased(struct template_run *r, struct template_val s, char how);
/* chars: MISSING or NONE for white space. sides: 1 left, 2 right, 3 both. */
struct template_val template_strip(struct template_run *r, struct template_val s, struct template_val chars, int sides);
struct template_val template_replace(struct template_run *r, struct template_val s, struct template_val from, struct template_val to, int64_t max);
struct template_list *template_lines(struct template_run *r, struct template_val s, bool keep); /* str.splitlines */

/* ---- arguments ---- */
/* Calls what a template calls; binds the arguments to the parameters of a def. */
struct template_val template_call(struct template_run *r, struct template_val fn, const struct template_args *a);
struct template_val template_call_def(struct template_run *r, const struct template_def *def, struct template_val self, const struct template_args *a);
static inline bool template_given(struct template_val v)
{
    return v.kind != TV_MISSING;
}

#endif
