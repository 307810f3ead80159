/* See word_pattern.h. Text to a tree (recursive descent), tree to a program from its end to its beginning, each node
 * given where to go on. Equal sets are kept once. */
#include "text/word_pattern.h"

#include "base/check.h"
#include "text/unicode_props.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { NODES_MAX = 1024, DEPTH_MAX = 32, REPEAT_MAX = 1024, NO_NODE = -1 };
enum node_type { NODE_EMPTY, NODE_SET, NODE_CAT, NODE_ALT, NODE_REPEAT, NODE_LOOK_NOT, NODE_END };
struct node {
    enum node_type type;
    int a, b;     /* parts; of a repeat: a */
    int min, max; /* of a repeat; max -1: without end */
    uint8_t set;
};
struct parser {
    const char *s;
    size_t len, at;
    int depth;
    bool caseless;
    struct node nodes[NODES_MAX];
    int n_nodes;
    struct word_pattern *out;
};

/* ---- sets ---- */

static enum err set_add(struct word_set *set, uint32_t from, uint32_t to)
{
    if (set->n == set->cap) {
        size_t cap = set->cap == 0 ? 16 : set->cap * 2;
        void *r = realloc(set->ranges, cap * sizeof(*set->ranges));
        if (r == NULL)
            return err_set(ERR_NOMEM, "no memory for a pattern");
        set->ranges = r;
        set->cap = cap;
    }
    set->ranges[set->n][0] = from;
    set->ranges[set->n][1] = to;
    set->n++;
    return ERR_OK;
}

static int by_start(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return x[0] < y[0] ? -1 : x[0] > y[0];
}

/* Ascending, overlapping and adjacent ranges joined. */
static void set_normalise(struct word_set *set)
{
    size_t n = 0;
    if (set->n == 0)
        return;
    qsort(set->ranges, set->n, sizeof(*set->ranges), by_start);
    for (size_t i = 1; i < set->n; i++) {
        if (set->ranges[i][0] <= set->ranges[n][1] + 1) {
            set->ranges[n][1] = MAX(set->ranges[n][1], set->ranges[i][1]);
        } else {
            n++;
            set->ranges[n][0] = set->ranges[i][0];
            set->ranges[n][1] = set->ranges[i][1];
        }
    }
    set->n = n + 1;
}

/* set: normalised. */
static enum err set_negate(struct word_set *set)
{
    struct word_set not = {0};
    uint32_t from = 0;
    enum err e = ERR_OK;
    for (size_t i = 0; i < set->n; i++) {
        if (set->ranges[i][0] > from)
            TRY_GOTO(set_add(&not, from, set->ranges[i][0] - 1), fail);
        from = set->ranges[i][1] + 1;
    }
    if (from < UNICODE_END)
        TRY_GOTO(set_add(&not, from, UNICODE_END - 1), fail);
    free(set->ranges);
    *set = not;
    return ERR_OK;
fail:
    free(not.ranges);
    return e;
}

static enum err set_add_props(struct word_set *set, uint32_t bits)
{
    for (size_t i = 0; i < unicode_n_ranges; i++)
        if (unicode_ranges[i].bits & bits)
            TRY(set_add(set, unicode_ranges[i].from,
                        i + 1 < unicode_n_ranges ? unicode_ranges[i + 1].from - 1 : UNICODE_END - 1));
    return ERR_OK;
}

/* Takes the set over; of equal ones the first stays. */
static enum err set_keep(struct parser *p, struct word_set *set, uint8_t *out)
{
    struct word_pattern *w = p->out;
    set_normalise(set);
    for (size_t i = 0; i < w->n_sets; i++)
        if (w->sets[i].n == set->n && memcmp(w->sets[i].ranges, set->ranges, set->n * sizeof(*set->ranges)) == 0) {
            free(set->ranges);
            *out = (uint8_t)i;
            return ERR_OK;
        }
    if (w->n_sets == WORD_SETS_MAX || set->n == 0) {
        free(set->ranges);
        return err_set(ERR_UNSUPPORTED, "pattern: an empty class, or more than %d classes", WORD_SETS_MAX);
    }
    *out = (uint8_t)w->n_sets;
    w->sets[w->n_sets++] = *set;
    return ERR_OK;
}

/* ---- text to tree ---- */

static enum err unsupported(const struct parser *p, const char *what)
{
    return err_set(ERR_UNSUPPORTED, "pattern: %s at byte %zu", what, p->at);
}

static bool looking_at(const struct parser *p, const char *s)
{
    size_t n = strlen(s);
    return p->len - p->at >= n && memcmp(p->s + p->at, s, n) == 0;
}

static bool eat(struct parser *p, const char *s)
{
    bool yes = looking_at(p, s);
    p->at += yes ? strlen(s) : 0;
    return yes;
}

static enum err new_node(struct parser *p, struct node n, int *out)
{
    if (p->n_nodes == NODES_MAX)
        return unsupported(p, "too long");
    p->nodes[p->n_nodes] = n;
    *out = p->n_nodes++;
    return ERR_OK;
}

static enum err set_node(struct parser *p, struct word_set *set, int *out)
{
    uint8_t i = 0;
    TRY(set_keep(p, set, &i));
    return new_node(p, (struct node){.type = NODE_SET, .set = i}, out);
}

static enum err hex(struct parser *p, int digits, char end, uint32_t *cp)
{
    *cp = 0;
    for (int i = 0; i < digits && p->at < p->len && p->s[p->at] != end; i++, p->at++) {
        char c = p->s[p->at];
        int v = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (v < 0)
            return unsupported(p, "no hexadecimal number");
        *cp = *cp * 16 + (uint32_t)v;
    }
    if (end != 0 && !(p->at < p->len && p->s[p->at++] == end))
        return unsupported(p, "no hexadecimal number");
    return *cp < UNICODE_END ? ERR_OK : unsupported(p, "no code point");
}

static enum err literal(struct parser *p, uint32_t *cp)
{
    size_t bad;
    bool cut;
    size_t n = utf8_decode(p->s + p->at, p->len - p->at, cp, &bad, &cut);
    p->at += n;
    return n > 0 ? ERR_OK : unsupported(p, "bad UTF-8");
}

/* Behind a backslash. *is_set: what it names was added to set; else it is the code point *cp. */
static enum err escape(struct parser *p, struct word_set *set, bool in_class, uint32_t *cp, bool *is_set)
{
    if (p->at == p->len)
        return unsupported(p, "a backslash at the end");
    char c = p->s[p->at++];
    *is_set = c == 's' || c == 'S' || c == 'd' || c == 'p';
    switch (c) {
    case 's':
        return set_add_props(set, UNICODE_SPACE);
    case 'S':
        if (in_class)
            return unsupported(p, "\\S in a class");
        TRY(set_add_props(set, UNICODE_SPACE));
        set_normalise(set);
        return set_negate(set);
    case 'd':
        return set_add_props(set, unicode_bits("Nd", 2));
    case 'p': {
        size_t from = p->at, n = 1;
        if (eat(p, "{")) {
            const char *end = memchr(p->s + p->at, '}', p->len - p->at);
            from = p->at;
            n = end == NULL ? 0 : (size_t)(end - p->s) - from;
            p->at += n;
        }
        uint32_t bits = from + n < p->len + 1 && n > 0 ? unicode_bits(p->s + from, n) : 0;
        p->at++;
        return bits != 0 && p->at <= p->len ? set_add_props(set, bits) : unsupported(p, "an unknown property");
    }
    case 'r':
        *cp = '\r';
        return ERR_OK;
    case 'n':
        *cp = '\n';
        return ERR_OK;
    case 't':
        *cp = '\t';
        return ERR_OK;
    case 'x':
        return eat(p, "{") ? hex(p, 8, '}', cp) : hex(p, 2, 0, cp);
    case 'u':
        return hex(p, 4, 0, cp);
    default:
        *cp = (unsigned char)c;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (unsigned char)c >= 0x80)
            return unsupported(p, "an escape");
        return ERR_OK;
    }
}

/* A literal or a range; where case counts for nothing, with the other cases of its letters (simple folding, in which
 * U+017F is an s and U+212A a k). */
static enum err add_letters(struct parser *p, struct word_set *set, uint32_t from, uint32_t to)
{
    TRY(set_add(set, from, to));
    if (!p->caseless)
        return ERR_OK;
    if (to >= 0x80)
        return unsupported(p, "letters beyond ASCII in (?i:)");
    for (uint32_t c = from; c <= to; c++) {
        uint32_t lower = c | 32;
        if (lower < 'a' || lower > 'z' || c < 'A')
            continue;
        TRY(set_add(set, c ^ 32, c ^ 32));
        if (lower == 's' || lower == 'k')
            TRY(set_add(set, lower == 's' ? 0x17F : 0x212A, lower == 's' ? 0x17F : 0x212A));
    }
    return ERR_OK;
}

static enum err class_body(struct parser *p, struct word_set *set)
{
    bool negated = eat(p, "^"), first = true;
    for (;; first = false) {
        if (p->at == p->len || looking_at(p, "[") || looking_at(p, "&&"))
            return unsupported(p, "a class with [ or && in it, or without an end");
        if (!first && eat(p, "]"))
            break;
        uint32_t from, to;
        bool is_set = false;
        if (eat(p, "\\"))
            TRY(escape(p, set, true, &from, &is_set));
        else
            TRY(literal(p, &from));
        if (is_set)
            continue;
        to = from;
        if (looking_at(p, "-") && p->at + 1 < p->len && p->s[p->at + 1] != ']') {
            p->at++;
            if (eat(p, "\\"))
                TRY(escape(p, set, true, &to, &is_set));
            else
                TRY(literal(p, &to));
            if (is_set || to < from)
                return unsupported(p, "a range");
        }
        TRY(add_letters(p, set, from, to));
    }
    set_normalise(set);
    return negated ? set_negate(set) : ERR_OK;
}

static enum err parse_alt(struct parser *p, int *out);

static enum err parse_group(struct parser *p, int *out)
{
    bool caseless = p->caseless;
    if (eat(p, "?i:"))
        p->caseless = true;
    else if (!eat(p, "?:") && looking_at(p, "?"))
        return unsupported(p, "a group");
    if (++p->depth > DEPTH_MAX)
        return unsupported(p, "too deep");
    TRY(parse_alt(p, out));
    p->depth--;
    p->caseless = caseless;
    return eat(p, ")") ? ERR_OK : unsupported(p, "a group without an end");
}

static enum err parse_atom(struct parser *p, int *out)
{
    struct word_set set = {0};
    enum err e = ERR_OK;
    uint32_t cp = 0;
    bool is_set = false;
    if (eat(p, "("))
        return parse_group(p, out);
    if (eat(p, "$"))
        return p->at == p->len ? new_node(p, (struct node){.type = NODE_END}, out) : unsupported(p, "$ before the end");
    if (eat(p, "[")) {
        TRY_GOTO(class_body(p, &set), fail);
        return set_node(p, &set, out);
    }
    if (eat(p, "\\")) {
        TRY_GOTO(escape(p, &set, false, &cp, &is_set), fail);
        if (is_set)
            return set_node(p, &set, out);
    } else if (strchr(".^*+?{", p->s[p->at]) != NULL) {
        return unsupported(p, "a sign");
    } else {
        TRY(literal(p, &cp));
    }
    TRY_GOTO(add_letters(p, &set, cp, cp), fail);
    return set_node(p, &set, out);
fail:
    free(set.ranges);
    return e;
}

static bool number(struct parser *p, int *out)
{
    size_t from = p->at;
    for (*out = 0; p->at < p->len && p->s[p->at] >= '0' && p->s[p->at] <= '9' && *out <= REPEAT_MAX; p->at++)
        *out = *out * 10 + (p->s[p->at] - '0');
    return p->at > from && *out <= REPEAT_MAX;
}

static enum err parse_quantifier(struct parser *p, int *atom)
{
    int min = 0, max = -1;
    if (eat(p, "?")) {
        max = 1;
    } else if (eat(p, "+")) {
        min = 1;
    } else if (eat(p, "{")) {
        if (!number(p, &min))
            return unsupported(p, "a quantifier");
        max = min;
        if (eat(p, ",")) {
            max = -1;
            if (!looking_at(p, "}") && !number(p, &max))
                return unsupported(p, "a quantifier");
        }
        if (!eat(p, "}") || (max >= 0 && max < min))
            return unsupported(p, "a quantifier");
    } else if (!eat(p, "*")) {
        return ERR_OK;
    }
    if (p->at < p->len && strchr("?+*{", p->s[p->at]) != NULL)
        return unsupported(p, "a lazy or possessive quantifier");
    return new_node(p, (struct node){.type = NODE_REPEAT, .a = *atom, .min = min, .max = max}, atom);
}

/* The set `of` without those of `without`, as a node. */
static enum err difference(struct parser *p, uint8_t of, uint8_t without, int *out)
{
    struct word_set set = {0};
    const struct word_set *a = &p->out->sets[of], *b = &p->out->sets[without];
    enum err e = ERR_OK;
    for (size_t i = 0, k = 0; i < a->n; i++) {
        uint32_t from = a->ranges[i][0], to = a->ranges[i][1];
        while (k < b->n && b->ranges[k][1] < from)
            k++;
        for (size_t m = k; m < b->n && b->ranges[m][0] <= to && from <= to; m++) {
            if (b->ranges[m][0] > from)
                TRY_GOTO(set_add(&set, from, b->ranges[m][0] - 1), fail);
            from = MAX(from, b->ranges[m][1] + 1);
        }
        if (from <= to)
            TRY_GOTO(set_add(&set, from, to), fail);
    }
    return set_node(p, &set, out);
fail:
    free(set.ranges);
    return e;
}

static enum err parse_cat(struct parser *p, int *out)
{
    int all = NO_NODE, not = NO_NODE;
    while (p->at < p->len && !looking_at(p, "|") && !looking_at(p, ")")) {
        int atom;
        if (eat(p, "(?!")) {
            if (not != NO_NODE)
                return unsupported(p, "two lookaheads");
            TRY(parse_alt(p, &not));
            if (!eat(p, ")") || p->nodes[not].type != NODE_SET)
                return unsupported(p, "a lookahead");
            continue;
        }
        TRY(parse_atom(p, &atom));
        if (not != NO_NODE) {
            if (p->nodes[atom].type != NODE_SET)
                return unsupported(p, "a lookahead before something else than a class");
            TRY(difference(p, p->nodes[atom].set, p->nodes[not].set, &atom));
            if (p->at < p->len && strchr("?+*{", p->s[p->at]) != NULL)
                return unsupported(p, "a lookahead before a quantifier");
            not = NO_NODE;
        }
        TRY(parse_quantifier(p, &atom));
        if (all != NO_NODE)
            TRY(new_node(p, (struct node){.type = NODE_CAT, .a = all, .b = atom}, &atom));
        all = atom;
    }
    if (not != NO_NODE) {
        int look = 0;
        if (p->depth > 0)
            return unsupported(p, "a lookahead at the end of a group");
        TRY(new_node(p, (struct node){.type = NODE_LOOK_NOT, .set = p->nodes[not].set}, &look));
        if (all != NO_NODE)
            TRY(new_node(p, (struct node){.type = NODE_CAT, .a = all, .b = look}, &look));
        all = look;
    }
    *out = all;
    return all != NO_NODE ? ERR_OK : new_node(p, (struct node){.type = NODE_EMPTY}, out);
}

static enum err parse_alt(struct parser *p, int *out)
{
    TRY(parse_cat(p, out));
    while (eat(p, "|")) {
        int other;
        TRY(parse_cat(p, &other));
        TRY(new_node(p, (struct node){.type = NODE_ALT, .a = *out, .b = other}, out));
    }
    return ERR_OK;
}

/* ---- tree to program ---- */

static enum err emit(struct word_pattern *w, struct word_inst inst, uint16_t *at)
{
    if (w->n_prog == w->cap) {
        size_t cap = w->cap == 0 ? 64 : w->cap * 2;
        struct word_inst *prog = cap > WORD_PROGRAM_MAX ? NULL : realloc(w->prog, cap * sizeof(*prog));
        if (prog == NULL)
            return err_set(cap > WORD_PROGRAM_MAX ? ERR_UNSUPPORTED : ERR_NOMEM, "pattern: too long");
        w->prog = prog;
        w->cap = cap;
    }
    w->prog[w->n_prog] = inst;
    *at = (uint16_t)w->n_prog++;
    return ERR_OK;
}

static enum err generate(struct parser *p, int n, uint16_t next, uint16_t *entry);

static enum err generate_repeat(struct parser *p, const struct node *n, uint16_t next, uint16_t *entry)
{
    struct word_pattern *w = p->out;
    uint16_t at = next;
    if (n->max < 0) {
        uint16_t loop, body;
        TRY(emit(w, (struct word_inst){.op = WORD_SPLIT, .b = next}, &loop));
        TRY(generate(p, n->a, loop, &body));
        w->prog[loop].a = body;
        at = loop;
    } else {
        for (int i = n->min; i < n->max; i++) {
            uint16_t body;
            TRY(generate(p, n->a, at, &body));
            TRY(emit(w, (struct word_inst){.op = WORD_SPLIT, .a = body, .b = next}, &at));
        }
    }
    for (int i = 0; i < n->min; i++)
        TRY(generate(p, n->a, at, &at));
    *entry = at;
    return ERR_OK;
}

static enum err generate(struct parser *p, int i, uint16_t next, uint16_t *entry)
{
    const struct node *n = &p->nodes[i];
    uint16_t a, b;
    switch (n->type) {
    case NODE_SET:
        return emit(p->out, (struct word_inst){.op = WORD_SET, .set = n->set, .a = next}, entry);
    case NODE_LOOK_NOT:
        return emit(p->out, (struct word_inst){.op = WORD_LOOK_NOT, .set = n->set, .a = next}, entry);
    case NODE_END:
        return emit(p->out, (struct word_inst){.op = WORD_END, .a = next}, entry);
    case NODE_CAT:
        TRY(generate(p, n->b, next, &b));
        return generate(p, n->a, b, entry);
    case NODE_ALT:
        TRY(generate(p, n->a, next, &a));
        TRY(generate(p, n->b, next, &b));
        return emit(p->out, (struct word_inst){.op = WORD_SPLIT, .a = a, .b = b}, entry);
    case NODE_REPEAT:
        return generate_repeat(p, n, next, entry);
    case NODE_EMPTY:
        break;
    }
    *entry = next;
    return ERR_OK;
}

/* "set+$" */
static int suffix_set(const struct parser *p, int root)
{
    const struct node *n = &p->nodes[root];
    if (n->type != NODE_CAT || p->nodes[n->b].type != NODE_END || p->nodes[n->a].type != NODE_REPEAT)
        return -1;
    n = &p->nodes[n->a];
    return n->min == 1 && n->max < 0 && p->nodes[n->a].type == NODE_SET ? p->nodes[n->a].set : -1;
}

enum err word_pattern_parse(const char *text, size_t len, struct word_pattern *out)
{
    memset(out, 0, sizeof(*out));
    struct parser *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return err_set(ERR_NOMEM, "no memory for a pattern");
    p->s = text;
    p->len = len;
    p->out = out;
    enum err e = ERR_OK;
    int root;
    uint16_t match;
    TRY_GOTO(parse_alt(p, &root), done);
    if (p->at < len) {
        e = unsupported(p, "a parenthesis");
        goto done;
    }
    TRY_GOTO(emit(out, (struct word_inst){.op = WORD_MATCH}, &match), done);
    TRY_GOTO(generate(p, root, match, &out->entry), done);
    out->suffix_set = suffix_set(p, root);
done:
    free(p);
    if (e != ERR_OK)
        word_pattern_deinit(out);
    return e;
}

void word_pattern_deinit(struct word_pattern *p)
{
    for (size_t i = 0; i < p->n_sets; i++)
        free(p->sets[i].ranges);
    free(p->prog);
    memset(p, 0, sizeof(*p));
}
