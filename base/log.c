/* Log lines (log.h): `2026-11-21T00:00:00.000Z INFO worker[0] engine: step ready key=value`, or the same as one JSON
 * object with the pairs as its members.
 *
 * The conversions of the format are walked one by one, so that the text of each %s is escaped (quotes, backslashes,
 * control characters, bytes that are no UTF-8) before it joins the line: no value can forge a pair or a line. The pairs
 * are escaped as JSON strings are, hence the JSON form splits them at blanks and copies. No allocation; a line has at
 * most LINE_MAX_BYTES, one write(2), which a pipe takes whole. The level is an atomic; the rest is set once. */
#include "base/log.h"

#include "base/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 4096, PAIRS_MAX_BYTES = 3072, SPEC_MAX = 24 };

static const char *const level_names[] = {"DEBUG", "INFO", "WARN", "ERROR"};
static const char *const level_words[] = {"debug", "info", "warn", "error"};
static const char *const subsystem_names[LOG_SUB_COUNT] = {
#define LOG_SUBSYSTEM(sym, name) name,
#include "base/log_subsystems.def"
#undef LOG_SUBSYSTEM
};

static char process_name[64] = "racklm";
static atomic_int level_now = LOG_INFO;
static enum log_format format_now = LOG_TEXT;

/* A piece of text of bounded length. What does not fit as a whole is left out, and everything after it. */
struct text {
    size_t len, cap;
    bool full;
    char *data;
};

static void put(struct text *t, const char *s, size_t len)
{
    if (t->full || len > t->cap - t->len) {
        t->full = true;
        return;
    }
    memcpy(t->data + t->len, s, len);
    t->len += len;
}

static void put_str(struct text *t, const char *s)
{
    put(t, s, strlen(s));
}

/* The length of the well-formed UTF-8 sequence at s; 0 when there is none. Ends at the NUL by itself. */
static size_t utf8_len(const unsigned char *s)
{
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 0;
    size_t n = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    unsigned char lo = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char hi = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < lo || s[1] > hi)
        return 0;
    for (size_t i = 2; i < n; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    return n;
}

/* At most max bytes of s, escaped as in a JSON string. A sequence cut by max shows as U+FFFD. */
static void put_escaped(struct text *t, const char *str, size_t max)
{
    const unsigned char *s = (const unsigned char *)str, *end = s + strnlen(str, max);
    while (s < end) {
        char esc[8];
        size_t n = utf8_len(s);
        if (n == 0 || n > (size_t)(end - s)) {
            put_str(t, "\xEF\xBF\xBD");
            n = 1;
        } else if (*s == '"' || *s == '\\') {
            put(t, (char[]){'\\', (char)*s}, 2);
        } else if (*s == '\n') {
            put_str(t, "\\n");
        } else if (*s < 0x20 || *s == 0x7F) {
            snprintf(esc, sizeof esc, "\\u%04x", *s);
            put_str(t, esc);
        } else {
            put(t, (const char *)s, n);
        }
        s += n;
    }
}

static bool needs_quotes(const char *s, size_t max)
{
    size_t len = strnlen(s, max);
    if (len == 0)
        return true;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] <= ' ' || strchr("\"\\=", s[i]))
            return true;
    return false;
}

/* One conversion of the format. */
struct conv {
    char spec[SPEC_MAX]; /* "%-8.3lu", without '*' */
    char length;         /* 0, 'H' (hh), 'h', 'l', 'q' (ll), 'z', 't', 'j' */
    char type;
    size_t precision; /* of %s; SIZE_MAX when none */
};

/* Parses the conversion at *fmt (after '%'), taking the ints of '*' from ap. */
static bool parse_conv(const char **fmt, va_list *ap, struct conv *c)
{
    const char *f = *fmt;
    size_t n = 0;
    bool dot = false;
    *c = (struct conv){.precision = SIZE_MAX};
    c->spec[n++] = '%';
    for (; *f && strchr("-+ #0123456789.*", *f); f++) {
        if (n > SPEC_MAX - 16)
            return false;
        if (*f == '.') {
            dot = true;
            c->precision = 0;
        }
        if (*f == '*') {
            int v = va_arg(*ap, int);
            n += (size_t)snprintf(c->spec + n, SPEC_MAX - n, "%d", v);
            if (dot)
                c->precision = v < 0 ? SIZE_MAX : (size_t)v;
            continue;
        }
        if (dot && *f >= '0' && *f <= '9')
            c->precision = c->precision * 10 + (size_t)(*f - '0');
        c->spec[n++] = *f;
    }
    for (; *f && strchr("hlztj", *f); f++) {
        if (n > SPEC_MAX - 4)
            return false;
        c->length = c->length == 'l' ? 'q' : c->length == 'h' ? 'H' : *f;
        c->spec[n++] = *f;
    }
    c->type = *f;
    if (!*f)
        return false;
    c->spec[n++] = *f;
    c->spec[n] = 0;
    *fmt = f + 1;
    return true;
}

static void put_integer(struct text *t, const struct conv *c, va_list *ap)
{
    char out[128];
    int n;
    switch (c->length) {
    case 'l':
        n = snprintf(out, sizeof out, c->spec, va_arg(*ap, long));
        break;
    case 'q':
        n = snprintf(out, sizeof out, c->spec, va_arg(*ap, long long));
        break;
    case 'z':
        n = snprintf(out, sizeof out, c->spec, va_arg(*ap, size_t));
        break;
    case 't':
        n = snprintf(out, sizeof out, c->spec, va_arg(*ap, ptrdiff_t));
        break;
    case 'j':
        n = snprintf(out, sizeof out, c->spec, va_arg(*ap, intmax_t));
        break;
    default:
        n = snprintf(out, sizeof out, c->spec, va_arg(*ap, int));
    }
    if (n > 0)
        put(t, out, MIN((size_t)n, sizeof out - 1));
}

static void put_conv(struct text *t, const struct conv *c, bool quoted, bool whole_value, va_list *ap)
{
    char out[400]; /* "%f" of DBL_MAX has 317 characters */
    int n = 0;
    if (strchr("diuxXo", c->type)) {
        put_integer(t, c, ap);
    } else if (strchr("feEgGaF", c->type)) {
        n = snprintf(out, sizeof out, c->spec, va_arg(*ap, double));
    } else if (c->type == 'p') {
        n = snprintf(out, sizeof out, "%p", va_arg(*ap, void *));
    } else if (c->type == 'c') {
        char ch[2] = {(char)va_arg(*ap, int), 0};
        put_escaped(t, ch, 1);
    } else if (c->type == 's') {
        const char *s = va_arg(*ap, const char *);
        s = s ? s : "(null)";
        bool add = !quoted && whole_value && needs_quotes(s, c->precision);
        put(t, "\"", add ? 1 : 0);
        put_escaped(t, s, c->precision);
        put(t, "\"", add ? 1 : 0);
    } else {
        ASSERT(!"a conversion that the log does not know");
    }
    if (n > 0)
        put(t, out, MIN((size_t)n, sizeof out - 1));
}

/* The pairs as text. %% stands for itself; `quoted` follows the quotes of the format itself. */
static void format_pairs(struct text *t, const char *fmt, va_list *ap)
{
    bool quoted = false;
    while (*fmt) {
        if (*fmt != '%') {
            quoted ^= *fmt == '"';
            put(t, fmt++, 1);
            continue;
        }
        bool after_equals = t->len > 0 && t->data[t->len - 1] == '=';
        fmt++;
        if (*fmt == '%') {
            put(t, fmt++, 1);
            continue;
        }
        struct conv c;
        bool ok = parse_conv(&fmt, ap, &c);
        ASSERT(ok);
        put_conv(t, &c, quoted, after_equals && (*fmt == ' ' || *fmt == 0), ap);
    }
}

/* A number as JSON writes it (RFC 8259, section 6), or true or false. */
static bool is_json_literal(const char *s, size_t len)
{
    if ((len == 4 && memcmp(s, "true", 4) == 0) || (len == 5 && memcmp(s, "false", 5) == 0))
        return true;
    size_t i = 0, from;
    i += i < len && s[i] == '-';
    if (i < len && s[i] == '0')
        i++;
    else {
        for (from = i; i < len && s[i] >= '0' && s[i] <= '9';)
            i++;
        if (i == from)
            return false;
    }
    if (i < len && s[i] == '.') {
        for (from = ++i; i < len && s[i] >= '0' && s[i] <= '9';)
            i++;
        if (i == from)
            return false;
    }
    if (i < len && (s[i] == 'e' || s[i] == 'E')) {
        i++;
        i += i < len && (s[i] == '+' || s[i] == '-');
        for (from = i; i < len && s[i] >= '0' && s[i] <= '9';)
            i++;
        if (i == from)
            return false;
    }
    return i == len;
}

static bool is_reserved(const char *key, size_t len)
{
    static const char *const names[] = {"ts", "level", "process", "subsystem", "event"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strlen(names[i]) == len && memcmp(names[i], key, len) == 0)
            return true;
    return false;
}

/* One pair at s; returns its end. A pair that does not fit is left out as a whole. */
static const char *put_json_pair(struct text *t, const char *s, const char *end)
{
    const char *key = s;
    while (s < end && *s != '=' && *s != ' ')
        s++;
    size_t key_len = (size_t)(s - key);
    const char *val = s, *val_end = s;
    if (s < end && *s == '=') {
        val = ++s;
        for (bool quoted = false; s < end && (quoted || *s != ' '); s++) {
            if (*s == '\\' && s + 1 < end)
                s++;
            else if (*s == '"')
                quoted = !quoted;
        }
        val_end = s;
    }
    size_t mark = t->len;
    put_str(t, ",\"");
    put(t, key, key_len);
    put_str(t, is_reserved(key, key_len) ? "_\":" : "\":");
    size_t len = (size_t)(val_end - val);
    if (is_json_literal(val, len)) {
        put(t, val, len);
    } else {
        put_str(t, "\"");
        for (const char *v = val; v < val_end; v++) { /* quotes that are no part of the value go */
            if (*v == '\\' && v + 1 < val_end) {
                put(t, v++, 2);
            } else if (*v != '"') {
                put(t, v, 1);
            }
        }
        put_str(t, "\"");
    }
    if (t->full)
        t->len = mark;
    return s;
}

static void stamp(char out[32])
{
    struct timespec ts;
    struct tm tm;
    char date[24];
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out, 32, "%s.%03dZ", date, (int)(ts.tv_nsec / 1000000));
}

static void compose_text(struct text *t, const char *ts, enum log_level level, const char *sub, const char *event,
                         const struct text *pairs)
{
    const char *parts[] = {ts, " ", level_names[level], " ", process_name, " ", sub, ": "};
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        put_str(t, parts[i]);
    put_escaped(t, event, SIZE_MAX);
    put_str(t, pairs->len ? " " : "");
    put(t, pairs->data, pairs->len);
}

static void compose_json(struct text *t, const char *ts, enum log_level level, const char *sub, const char *event,
                         const struct text *pairs)
{
    const char *parts[] = {"{\"ts\":\"", ts, "\",\"level\":\"", level_words[level], "\",\"process\":\""};
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        put_str(t, parts[i]);
    put_escaped(t, process_name, SIZE_MAX);
    put_str(t, "\",\"subsystem\":\"");
    put_str(t, sub);
    put_str(t, "\",\"event\":\"");
    put_escaped(t, event, 512);
    put_str(t, "\"");
    const char *s = pairs->data, *end = s + pairs->len;
    while (s < end) {
        if (*s == ' ')
            s++;
        else
            s = put_json_pair(t, s, end);
    }
    t->full = false; /* pairs may be missing, never the brace: its room was kept back */
    t->cap++;
    put_str(t, "}");
}

void log_init(const char *process, enum log_level level, enum log_format format)
{
    snprintf(process_name, sizeof process_name, "%s", process);
    log_set_level(level);
    format_now = format;
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&level_now, (int)level, memory_order_relaxed);
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&level_now, memory_order_relaxed);
}

bool log_level_parse(const char *s, enum log_level *out)
{
    for (size_t i = 0; i < ARRAY_LEN(level_words); i++)
        if (strcmp(s, level_words[i]) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    return false;
}

void log_write(enum log_level level, enum log_subsystem sub, const char *event, const char *fmt, ...)
{
    int saved = errno; /* a log line must not disturb its caller */
    char pairs_data[PAIRS_MAX_BYTES], line_data[LINE_MAX_BYTES], ts[32];
    struct text pairs = {.cap = sizeof pairs_data, .data = pairs_data};
    struct text line = {.cap = sizeof line_data - 2, .data = line_data}; /* the newline, and the brace of JSON */
    va_list ap;
    va_start(ap, fmt);
    format_pairs(&pairs, fmt, &ap);
    va_end(ap);
    stamp(ts);
    if (format_now == LOG_JSON)
        compose_json(&line, ts, level, subsystem_names[sub], event, &pairs);
    else
        compose_text(&line, ts, level, subsystem_names[sub], event, &pairs);
    line.data[line.len++] = '\n';
    while (write(STDERR_FILENO, line.data, line.len) < 0 && errno == EINTR)
        ;
    errno = saved;
}
