/* The bounded queue of queue.h: a ring under a mutex. The eventfd holds 1 while the queue is not empty and is written
 * only when that changes, so a burst of pushes costs one system call. */
#include "base/queue.h"

#include "base/check.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct queue {
    pthread_mutex_t lock;
    int fd;
    size_t cap, head, len; /* items at head, head + 1, ... modulo cap */
    void *items[];
};

enum err queue_create(size_t cap, struct queue **out)
{
    ASSERT(cap > 0);
    *out = NULL;
    uint64_t bytes;
    if (!check_mul(cap, sizeof(void *), &bytes) || !check_add(bytes, sizeof(struct queue), &bytes))
        return err_set(ERR_NOMEM, "a queue of %zu items", cap);
    struct queue *q = calloc(1, (size_t)bytes);
    if (!q)
        return err_set(ERR_NOMEM, "a queue of %zu items", cap);
    q->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->fd < 0) {
        enum err e = err_set(ERR_IO, "eventfd: %s (is the limit of open files, ulimit -n, too low?)", strerror(errno));
        free(q);
        return e;
    }
    q->cap = cap;
    pthread_mutex_init(&q->lock, NULL);
    *out = q;
    return ERR_OK;
}

void queue_destroy(struct queue **qp)
{
    struct queue *q = *qp;
    if (!q)
        return;
    close(q->fd);
    pthread_mutex_destroy(&q->lock);
    free(q);
    *qp = NULL;
}

enum err queue_push(struct queue *q, void *item)
{
    ASSERT(item);
    enum err e = ERR_OK;
    pthread_mutex_lock(&q->lock);
    if (q->len == q->cap) {
        e = ERR_BUSY;
    } else {
        size_t tail = q->head + q->len;
        q->items[tail < q->cap ? tail : tail - q->cap] = item;
        if (q->len++ == 0) {
            ssize_t n = write(q->fd, &(uint64_t){1}, sizeof(uint64_t));
            ASSERT(n == sizeof(uint64_t));
        }
    }
    pthread_mutex_unlock(&q->lock);
    return e == ERR_OK ? ERR_OK : err_set(e, "the queue holds %zu items already", q->cap);
}

void *queue_pop(struct queue *q)
{
    void *item = NULL;
    pthread_mutex_lock(&q->lock);
    if (q->len > 0) {
        item = q->items[q->head];
        q->items[q->head] = NULL;
        q->head = q->head + 1 == q->cap ? 0 : q->head + 1;
        if (--q->len == 0) {
            uint64_t count;
            ssize_t n = read(q->fd, &count, sizeof count);
            ASSERT(n == sizeof count);
        }
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

int queue_fd(const struct queue *q)
{
    return q->fd;
}

size_t queue_len(struct queue *q)
{
    pthread_mutex_lock(&q->lock);
    size_t n = q->len;
    pthread_mutex_unlock(&q->lock);
    return n;
}
