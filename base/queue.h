/* A bounded queue of pointers between threads, with an eventfd to poll: the only thing that coordinator
 * threads share. Any number of producers, one consumer. What a pointer means and who frees it: ownership
 * passes with the push. A mutex guards it: the rates here (tokens, requests) are far below contention. */
#ifndef BASE_QUEUE_H
#define BASE_QUEUE_H

#include "base/err.h"

#include <stddef.h>

struct queue;

enum err queue_create(size_t cap, struct queue **out);
void queue_destroy(struct queue **q); /* must be empty, or the items leak: drain first */
/* ERR_BUSY when full: ownership stays with the caller. */
enum err queue_push(struct queue *q, void *item);
/* The oldest item or NULL; does not wait. The eventfd stays readable while items are left. */
void *queue_pop(struct queue *q);
/* Readable (POLLIN) while the queue is not empty. Never read it oneself. */
int queue_fd(const struct queue *q);
size_t queue_len(struct queue *q);

#endif
