/* Values of the template language and the run that owns them. They behave as Python's do where jinja2 would show it:
 * str and repr, truth, equality, order, Undefined. Everything lives in the arena of one run; strings of the context are
 * views into the caller's JSON.
 *
 * A failure is kept on the run (the first one counts) and every later step does nothing, so that functions return
 * values and not errors; loops look at run->failed. Used by one thread. */
#ifndef COORDINATOR_TEMPLATE_VALUE_H
#define COORDINATOR_TEMPLATE_VALUE_H

#include "base/arena.h"
#include "base/buf.h"

#include <jansson.h>
#include <stdint.h>
#include <time.h>

enum template_kind {
    TV_UNDEFINED, /* s: what was not there, for the message */
    TV_NONE,
    TV_BOOL,
    TV_INT,
    TV_FLOAT,
    TV_STR,
    TV_LIST, /* flavour */
    TV_DICT,
    TV_NAMESPACE, /* dict; its items can be set */
    TV_FUNCTION,
    TV_MACRO,
    TV_LOOP,
};
enum template_flavour { TV_PLAIN, TV_TUPLE, TV_RANGE, TV_KEYS, TV_VALUES, TV_ITEMS, TV_GENERATOR };
enum { TV_MARKUP = 1 }; /* flavour of strings: came out of `safe` or `escape`; what is added to it by + is escaped */

struct template_run;
struct template_args;
struct template_macro;
struct template_loop;
struct template_val;
typedef struct template_val template_fn(struct template_run *r, struct template_val self,
                                        const struct template_args *a);

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
        struct template_list *list;
        struct template_dict *dict;
        struct {
            template_fn *fn;
            const struct template_val *self;
        };
        const struct template_macro *macro;
        struct template_loop *loop;
    };
};
struct template_list {
    struct template_val *v;
    uint32_t n, cap;
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

struct template_run {
    struct arena arena;
    struct buf *out;
    struct template_dict *context;
    struct template_scope *scope;
    uint64_t steps, cpu_deadline_ns;
    uint32_t depth, line;
    time_t now; /* what strftime_now shows */
    bool failed;
    enum err err;
    char text[400];
};

enum {
    TEMPLATE_DEPTH_MAX = 400,   /* nested evaluations */
    TEMPLATE_NESTING_MAX = 200, /* values inside values */
    TEMPLATE_STEPS_MAX = 20000000,
    TEMPLATE_OUTPUT_MAX = 32 << 20,
    TEMPLATE_MEMORY_MAX = 128 << 20,
    TEMPLATE_TIME_MS = 50, /* of this thread's processor time, so that a busy machine fails nobody */
    TEMPLATE_RANGE_MAX = 100000,
};

/* ---- the run ---- */
struct template_val template_fail(struct template_run *r, enum err e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
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
bool template_put(struct template_run *r, struct template_dict *d, struct template_val k,
                  struct template_val v); /* fails on an unhashable key */
const struct template_val *template_get(struct template_run *r, const struct template_dict *d, struct template_val k);
const struct template_val *template_get_str(const struct template_dict *d, const char *s, size_t len);
struct template_val template_function(template_fn *fn);
struct template_val template_from_json(struct template_run *r, const json_t *j, uint32_t depth);

/* ---- Python's idea of values ---- */
bool template_truth(struct template_val v);
bool template_eq(struct template_run *r, struct template_val a, struct template_val b);
/* -1, 0, 1; 2 when one of them is NaN; fails for values without an order, `op` named in the message. */
int template_cmp(struct template_run *r, struct template_val a, struct template_val b, const char *op);
bool template_contains(struct template_run *r, struct template_val item, struct template_val in);
/* Any iterable as a list (a copy of a string's characters, a dict's keys ...); a generator is empty afterwards. NULL
 * after a failure. */
struct template_list *template_iterate(struct template_run *r, struct template_val v);
bool template_is_str(struct template_val v, const char *s);
bool template_number(struct template_val v, double *f); /* bool, int, float */
const char *template_type_name(struct template_val v);  /* as Python names it */
/* Undefined in an operation: fails with the message that jinja2 has. */
struct template_val template_undefined_used(struct template_run *r, struct template_val v);

/* ---- text (template_text.c) ---- */
struct template_text { /* a string under construction in the arena */
    struct template_run *r;
    char *s;
    size_t len, cap;
};
void template_text_add(struct template_text *t, const char *s, size_t len);
void template_text_puts(struct template_text *t, const char *s);
struct template_val template_text_val(const struct template_text *t);
void template_text_str(struct template_text *t, struct template_val v);                  /* str(v) */
void template_text_repr(struct template_text *t, struct template_val v, uint32_t depth); /* repr(v) */
struct template_val template_to_str(struct template_run *r, struct template_val v);
void template_text_escape(struct template_text *t, struct template_val s); /* HTML, as markupsafe does */
size_t template_format_float(double f, char *out, size_t cap);             /* repr of a float; cap at least 40 */
struct template_json_opts {
    struct template_val item_sep, key_sep;
    int64_t indent; /* -1: one line */
    bool sort_keys, ascii;
    const char *indent_str; /* NULL: blanks */
};
void template_text_json(struct template_text *t, struct template_val v, const struct template_json_opts *o,
                        uint32_t depth);
/* Characters: code points, as Python counts. */
size_t template_char_count(struct template_val s);
size_t template_char_offset(struct template_val s, size_t idx); /* byte offset of character idx, s.len past the end */
bool template_is_space(uint32_t cp);
uint32_t template_upper_char(uint32_t cp);
uint32_t template_lower_char(uint32_t cp);
bool template_is_alpha(uint32_t cp);
uint32_t template_char_at(struct template_val s, size_t offset, size_t *n); /* the character at a byte offset */
struct template_val template_case(struct template_run *r, struct template_val s,
                                  char how); /* u upper, l lower, t title, c capitalize, s swapcase */
/* chars: UNDEFINED or NONE for white space. sides: 1 left, 2 right, 3 both. */
struct template_val template_strip(struct template_run *r, struct template_val s, struct template_val chars, int sides);
struct template_val template_replace(struct template_run *r, struct template_val s, struct template_val from,
                                     struct template_val to, int64_t max);

/* ---- arguments ---- */
/* Argument `idx` or the keyword `name`; UNDEFINED (without name) when not given. name NULL: positional only. */
struct template_val template_arg(const struct template_args *a, uint32_t idx, const char *name);
bool template_given(struct template_val v); /* neither missing nor Undefined */

#endif
