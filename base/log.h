/* Log lines: one per event, stable keys, to stderr; text or JSON lines. Never a prompt, never a key.
 *
 *   LOG(INFO, WORKER, "weights loaded", "rank=%u bytes=%zu ms=%u", rank, bytes, ms);
 *
 * The last part is a printf format of `key=value` pairs; a value with blanks is written key=\"%s\".
 * Thread-safe: each line is one write(2). */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_TEXT, LOG_JSON };
enum log_subsystem {
#define LOG_SUBSYSTEM(sym, name) LOG_SUB_##sym,
#include "base/log_subsystems.def"
#undef LOG_SUBSYSTEM
    LOG_SUB_COUNT
};

/* `process` ("coordinator", "worker[2]") stands in every line; copied. fd stays the caller's; default 2. */
void log_init(const char *process, enum log_level level, enum log_format format);
void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);
bool log_level_parse(const char *s, enum log_level *out); /* debug info warn error */
void log_write(enum log_level level, enum log_subsystem sub, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define LOG(level, sub, event, ...)                                              \
    (log_enabled(LOG_##level) ? log_write(LOG_##level, LOG_SUB_##sub, event, __VA_ARGS__) : (void)0)

#endif
