#include "worker/spec.h"

#include "proto/codec.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SPEC_MAGIC = 0x72616b32, SPEC_MSG_MAX = 1 << 20 };

/* At offset 0; then the text, then the message. */
struct head {
    uint32_t magic, n_threads, own_core, msg_len, kind, ordinal;
    uint64_t memory_bytes;
    char text[SPEC_TEXT_MAX];
};

static enum err write_all(int fd, const void *p, size_t len)
{
    for (const char *at = p; len > 0;) {
        ssize_t n = write(fd, at, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(ERR_IO, "memfd: %s", strerror(errno));
        at += n;
        len -= (size_t)n;
    }
    return ERR_OK;
}

enum err spec_write(const struct spec *s, int *fd)
{
    struct msg m = {.type = MSG_START_WORKER, .start_worker = s->start};
    struct buf b;
    enum err e;
    *fd = -1;
    buf_init(&b);
    TRY_GOTO(codec_encode(&m, &b), fail);
    if (b.len > SPEC_MSG_MAX) {
        e = err_set(ERR_TOO_BIG, "a START_WORKER of %zu bytes", b.len);
        goto fail;
    }
    struct head h = {SPEC_MAGIC, s->n_threads, s->own_core, (uint32_t)b.len, s->kind, s->ordinal, s->memory_bytes, ""};
    *fd = memfd_create("racklm-spec", MFD_CLOEXEC);
    if (*fd < 0) {
        e = err_set(ERR_IO, "memfd: %s", strerror(errno));
        goto fail;
    }
    TRY_GOTO(write_all(*fd, &h, sizeof(h)), fail);
    TRY_GOTO(write_all(*fd, b.data, b.len), fail);
    buf_deinit(&b);
    return ERR_OK;
fail:
    buf_deinit(&b);
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return e;
}

enum err spec_read(int fd, struct arena *arena, struct spec *out)
{
    struct head h;
    struct msg m;
    if (pread(fd, &h, sizeof(h), 0) != (ssize_t)sizeof(h) || h.magic != SPEC_MAGIC || h.msg_len > SPEC_MSG_MAX || h.kind > DEVICE_EMULATED)
        return err_set(ERR_PROTOCOL, "--child: descriptor %d holds no worker's description (only the agent starts workers)", fd);
    void *bytes = arena_alloc(arena, h.msg_len);
    if (!bytes)
        return err_set(ERR_NOMEM, "%u bytes", h.msg_len);
    if (pread(fd, bytes, h.msg_len, sizeof(h)) != (ssize_t)h.msg_len)
        return err_set(ERR_PROTOCOL, "--child: the worker's description is cut short");
    TRY(codec_decode(bytes, h.msg_len, arena, &m));
    if (m.type != MSG_START_WORKER)
        return err_set(ERR_PROTOCOL, "--child: the worker's description is another message");
    *out = (struct spec){m.start_worker, h.memory_bytes, h.n_threads, h.own_core != 0, (enum device_kind)h.kind, h.ordinal};
    return ERR_OK;
}

void spec_leave_text(int fd, const char *text)
{
    char line[SPEC_TEXT_MAX] = "";
    size_t len = strcspn(text, "\n");
    memcpy(line, text, len < sizeof(line) - 1 ? len : sizeof(line) - 1);
    ssize_t put = pwrite(fd, line, sizeof(line), offsetof(struct head, text)); /* best effort */
    (void)put;
}

void spec_text(int fd, char *buf, size_t cap)
{
    char line[SPEC_TEXT_MAX];
    buf[0] = 0;
    if (pread(fd, line, sizeof(line), offsetof(struct head, text)) != (ssize_t)sizeof(line))
        return;
    line[sizeof(line) - 1] = 0;
    size_t len = strlen(line);
    len = len < cap - 1 ? len : cap - 1;
    memcpy(buf, line, len);
    buf[len] = 0;
}
