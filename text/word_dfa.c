/* See word_dfa.h. A state is an ordered list of places in the program, the preferred first; places behind one that
 * matched are dropped, which is what makes the first alternative win. A match shows when the next character (or the end)
 * is known, so that a lookahead of one character costs nothing. Code points are sorted into classes that no set of the
 * pattern tells apart; a step is then one look into a table of (state, class).
 *
 * "set+$" would be read again from every place of a run that does not stand at the end: such a pattern is matched
 * backwards from the end instead. */
#include "text/word_dfa.h"

#include "base/check.h"
#include "text/unicode_props.h"
#include "text/utf8.h"
#include "text/word_pattern.h"

#include <stdlib.h>
#include <string.h>

enum { CLASSES_MAX = 255, STATES_MAX = 8192, BLOCK = 256, N_BLOCKS = UNICODE_END / BLOCK, DEAD = 0, MATCHED = 1, FAR = 256 };

struct word_dfa {
    uint16_t *table; /* [state][n_classes + 1]: next state * 2 + "matched before this character"; the last is the end */
    uint32_t stride;
    uint16_t start;
    uint8_t ascii[128];
    uint16_t stage1[N_BLOCKS];
    uint8_t (*stage2)[BLOCK];
    bool suffix; /* matches only a run at the end: of the classes in suffix_classes */
    bool suffix_classes[CLASSES_MAX + 1];
};

/* ---- classes ---- */

/* Boundaries of all sets, ascending, with 0. */
static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

struct classes {
    uint64_t sets[CLASSES_MAX + 1]; /* which sets a class is in */
    size_t n;
    uint8_t *of; /* [UNICODE_END] */
};

static enum err class_of(struct classes *c, uint64_t sets, uint8_t *out)
{
    size_t i = 0;
    while (i < c->n && c->sets[i] != sets)
        i++;
    if (i == CLASSES_MAX)
        return err_set(ERR_UNSUPPORTED, "pattern: more than %d classes of characters", CLASSES_MAX);
    c->sets[i] = sets;
    c->n = MAX(c->n, i + 1);
    *out = (uint8_t)i;
    return ERR_OK;
}

static enum err make_classes(const struct word_pattern *w, struct classes *c)
{
    size_t n = 1, at[WORD_SETS_MAX] = {0};
    for (size_t i = 0; i < w->n_sets; i++)
        n += 2 * w->sets[i].n;
    uint32_t *cuts = malloc((n + 1) * sizeof(*cuts));
    c->of = malloc(UNICODE_END);
    enum err e = ERR_OK;
    if (cuts == NULL || c->of == NULL) {
        e = err_set(ERR_NOMEM, "no memory for a pattern");
        goto done;
    }
    n = 0;
    cuts[n++] = 0;
    for (size_t i = 0; i < w->n_sets; i++)
        for (size_t k = 0; k < w->sets[i].n; k++) {
            cuts[n++] = w->sets[i].ranges[k][0];
            cuts[n++] = w->sets[i].ranges[k][1] + 1;
        }
    qsort(cuts, n, sizeof(*cuts), by_value);
    cuts[n] = UNICODE_END;
    for (size_t i = 0; i < n; i++) {
        if (cuts[i] == cuts[i + 1] || cuts[i] == UNICODE_END)
            continue;
        uint64_t sets = 0;
        uint8_t class = 0;
        for (size_t s = 0; s < w->n_sets; s++) {
            const struct word_set *set = &w->sets[s];
            while (at[s] < set->n && set->ranges[at[s]][1] < cuts[i])
                at[s]++;
            if (at[s] < set->n && set->ranges[at[s]][0] <= cuts[i])
                sets |= 1ull << s;
        }
        TRY_GOTO(class_of(c, sets, &class), done);
        memset(c->of + cuts[i], class, cuts[i + 1] - cuts[i]);
    }
done:
    free(cuts);
    return e;
}

/* The class of every code point as two stages; equal blocks are kept once. */
static enum err pack_classes(struct word_dfa *d, const struct classes *c)
{
    size_t n = 0, cap = 64;
    d->stage2 = malloc(cap * sizeof(*d->stage2));
    for (size_t b = 0; b < N_BLOCKS && d->stage2 != NULL; b++) {
        const uint8_t *block = c->of + b * BLOCK;
        size_t k = b > 0 && memcmp(block - BLOCK, block, BLOCK) == 0 ? d->stage1[b - 1] : 0;
        while (k < n && memcmp(d->stage2[k], block, BLOCK) != 0)
            k++;
        if (k == cap) {
            uint8_t(*more)[BLOCK] = realloc(d->stage2, (cap *= 2) * sizeof(*more));
            if (more == NULL)
                return err_set(ERR_NOMEM, "no memory for a pattern");
            d->stage2 = more;
        }
        if (k == n)
            memcpy(d->stage2[n++], block, BLOCK);
        d->stage1[b] = (uint16_t)k;
    }
    memcpy(d->ascii, c->of, sizeof(d->ascii));
    return d->stage2 != NULL ? ERR_OK : err_set(ERR_NOMEM, "no memory for a pattern");
}

/* ---- states ---- */

struct state {
    uint16_t *places;
    size_t n;
    uint64_t hash;
};
struct maker {
    const struct word_pattern *w;
    const struct classes *c;
    struct state *states;
    size_t n_states;
    uint32_t slots[2 * STATES_MAX]; /* state + 1, by hash */
    uint32_t stamp, seen[WORD_PROGRAM_MAX], here[WORD_PROGRAM_MAX];
    uint16_t next[WORD_PROGRAM_MAX];
    size_t n_next;
};

/* Adds what can be reached without reading to `next`, in order. */
static void reach(struct maker *m, uint16_t at)
{
    for (;;) {
        if (m->seen[at] == m->stamp)
            return;
        m->seen[at] = m->stamp;
        const struct word_inst *i = &m->w->prog[at];
        if (i->op != WORD_SPLIT)
            break;
        reach(m, i->a);
        at = i->b;
    }
    m->next[m->n_next++] = at;
}

/* One place reads a character of `class` (n classes: the end). True: it matched before that character. */
static bool advance(struct maker *m, uint16_t at, size_t class)
{
    if (m->here[at] == m->stamp)
        return false;
    m->here[at] = m->stamp;
    const struct word_inst *i = &m->w->prog[at];
    bool end = class == m->c->n, in = !end && (m->c->sets[class] >> i->set & 1);
    switch (i->op) {
    case WORD_SPLIT:
        return advance(m, i->a, class) || advance(m, i->b, class);
    case WORD_SET:
        if (in)
            reach(m, i->a);
        return false;
    case WORD_LOOK_NOT:
        return !in && advance(m, i->a, class);
    case WORD_END:
        return end && advance(m, i->a, class);
    default:
        return true;
    }
}

/* The state of the places in `next`, made if there is none yet. */
static enum err find_state(struct maker *m, uint16_t *out)
{
    uint64_t h = m->n_next;
    for (size_t i = 0; i < m->n_next; i++)
        h = (h ^ m->next[i]) * 0x9E3779B97F4A7C15ull;
    h ^= h >> 31;
    size_t slot = h % ARRAY_LEN(m->slots);
    for (; m->slots[slot] != 0; slot = (slot + 1) % ARRAY_LEN(m->slots)) {
        const struct state *s = &m->states[m->slots[slot] - 1];
        if (s->hash == h && s->n == m->n_next && memcmp(s->places, m->next, s->n * sizeof(*s->places)) == 0) {
            *out = (uint16_t)(m->slots[slot] - 1);
            return ERR_OK;
        }
    }
    if (m->n_states == STATES_MAX)
        return err_set(ERR_UNSUPPORTED, "pattern: more than %d states", STATES_MAX);
    uint16_t *places = malloc((m->n_next + 1) * sizeof(*places));
    if (places == NULL)
        return err_set(ERR_NOMEM, "no memory for a pattern");
    memcpy(places, m->next, m->n_next * sizeof(*places));
    m->states[m->n_states] = (struct state){places, m->n_next, h};
    *out = (uint16_t)m->n_states;
    m->slots[slot] = (uint32_t)++m->n_states;
    return ERR_OK;
}

static enum err make_states(struct word_dfa *d, struct maker *m)
{
    size_t cap = 0;
    m->n_next = 0; /* the state without places is DEAD */
    TRY(find_state(m, &d->start));
    m->stamp++;
    reach(m, m->w->entry);
    TRY(find_state(m, &d->start));
    for (size_t s = 0; s < m->n_states; s++) {
        if (s == cap) {
            cap = cap == 0 ? 64 : cap * 2;
            uint16_t *table = realloc(d->table, cap * d->stride * sizeof(*table));
            if (table == NULL)
                return err_set(ERR_NOMEM, "no memory for a pattern");
            d->table = table;
        }
        for (size_t class = 0; class < d->stride; class++) {
            bool matched = false;
            uint16_t next;
            m->stamp++;
            m->n_next = 0;
            for (size_t i = 0; i < m->states[s].n && !matched; i++)
                matched = advance(m, m->states[s].places[i], class);
            if (matched && s == d->start)
                return err_set(ERR_UNSUPPORTED, "pattern: it matches where there is nothing");
            TRY(find_state(m, &next));
            d->table[s * d->stride + class] = (uint16_t)(next * 2 | (matched ? MATCHED : 0));
        }
    }
    return ERR_OK;
}

static enum err make(struct word_dfa *d, const struct word_pattern *w)
{
    struct classes c = {0};
    enum err e;
    struct maker *m = calloc(1, sizeof(*m));
    struct state *states = calloc(STATES_MAX, sizeof(*states));
    if (m == NULL || states == NULL) {
        e = err_set(ERR_NOMEM, "no memory for a pattern");
        goto done;
    }
    m->w = w;
    m->c = &c;
    m->states = states;
    TRY_GOTO(make_classes(w, &c), done);
    TRY_GOTO(pack_classes(d, &c), done);
    d->stride = (uint32_t)c.n + 1;
    d->suffix = w->suffix_set >= 0;
    for (size_t i = 0; i < c.n && d->suffix; i++)
        d->suffix_classes[i] = c.sets[i] >> w->suffix_set & 1;
    TRY_GOTO(make_states(d, m), done);
done:
    for (size_t i = 0; m != NULL && i < m->n_states; i++)
        free(states[i].places);
    free(states);
    free(m);
    free(c.of);
    return e;
}

enum err word_dfa_create(const char *pattern, size_t len, struct word_dfa **out)
{
    struct word_pattern w;
    *out = NULL;
    TRY(word_pattern_parse(pattern, len, &w));
    enum err e = ERR_NOMEM;
    struct word_dfa *d = calloc(1, sizeof(*d));
    if (d == NULL)
        err_set(ERR_NOMEM, "no memory for a pattern");
    else
        e = make(d, &w);
    word_pattern_deinit(&w);
    if (e != ERR_OK)
        word_dfa_destroy(&d);
    *out = d;
    return e;
}

void word_dfa_destroy(struct word_dfa **dp)
{
    struct word_dfa *d = *dp;
    if (d == NULL)
        return;
    free(d->table);
    free(d->stage2);
    free(d);
    *dp = NULL;
}

/* ---- matching ---- */

/* The class of the character at s and its length. */
static inline size_t read_class(const struct word_dfa *d, const unsigned char *s, uint32_t *class)
{
    uint32_t c = s[0];
    if (c < 0x80) {
        *class = d->ascii[c];
        return 1;
    }
    size_t n = 2;
    uint32_t cp;
    if (c < 0xE0) {
        cp = (c & 0x1F) << 6 | (s[1] & 0x3F);
    } else if (c < 0xF0) {
        cp = (c & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
        n = 3;
    } else {
        cp = (c & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 | (uint32_t)(s[2] & 0x3F) << 6 | (s[3] & 0x3F);
        n = 4;
    }
    *class = d->stage2[d->stage1[cp / BLOCK]][cp % BLOCK];
    return n;
}

/* Where the attempt ended is *end: len, or the character that led to DEAD. */
static inline size_t run(const struct word_dfa *d, const unsigned char *s, size_t len, size_t *end)
{
    const uint16_t *table = d->table;
    uint32_t state = d->start, class;
    size_t matched = 0, i = 0;
    while (i < len) {
        size_t n = read_class(d, s + i, &class);
        uint32_t step = table[state * d->stride + class];
        if (step & MATCHED)
            matched = i;
        state = step / 2;
        if (state == DEAD) {
            *end = i;
            return matched;
        }
        i += n;
    }
    *end = len;
    return table[(state + 1) * d->stride - 1] & MATCHED ? len : matched;
}

size_t word_dfa_match(const struct word_dfa *d, const char *text, size_t len)
{
    size_t end;
    return run(d, (const unsigned char *)text, len, &end);
}

/* The same with an eye on the memo, which it also fills: with the places at which the last state before the end had
 * been reached already. */
static size_t run_memo(const struct word_dfa *d, const unsigned char *s, size_t len, size_t at, struct word_dfa_memo *m)
{
    uint32_t state = d->start, class;
    size_t matched = 0, since = at, i = at;
    while (i < len) {
        if (state == m->state && i >= m->from && i < m->to)
            return matched;
        size_t n = read_class(d, s + i, &class);
        uint32_t step = d->table[state * d->stride + class];
        if (step & MATCHED) {
            matched = i - at;
            since = i + n;
        }
        if (step / 2 == (uint32_t)DEAD)
            break;
        i += n;
        if (step / 2 != state)
            since = i;
        state = step / 2;
    }
    if (i == len && (d->table[(state + 1) * d->stride - 1] & MATCHED))
        return len - at;
    *m = (struct word_dfa_memo){state, since, i};
    return matched;
}

size_t word_dfa_match_at(const struct word_dfa *d, const char *text, size_t len, size_t at, struct word_dfa_memo *memo)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t end;
    if (at < memo->to)
        return run_memo(d, s, len, at, memo);
    size_t matched = run(d, s + at, len - at, &end);
    if (end - matched > FAR)
        run_memo(d, s, len, at, memo);
    return matched;
}

size_t word_dfa_skip(const struct word_dfa *d, const char *text, size_t len)
{
    const unsigned char *s = (const unsigned char *)text;
    const uint16_t *from_start = d->table + d->start * d->stride;
    size_t i = 0, run = len;
    uint32_t class;
    if (!d->suffix) {
        for (size_t n; i < len; i += n) {
            n = read_class(d, s + i, &class);
            if (from_start[class] / 2 != DEAD)
                return i;
        }
        return len;
    }
    for (size_t n; i < len; i += n) {
        n = read_class(d, s + i, &class);
        if (!d->suffix_classes[class])
            run = len;
        else if (run == len)
            run = i;
    }
    return run;
}
