/* The admin link: one question, one answer. */
#ifndef CLI_CONTROL_H
#define CLI_CONTROL_H

#include "base/buf.h"
#include "base/options.h"
#include "proto/link.h"

struct control;
/* endpoint NULL: the coordinator that runs on this machine (runtime_dir/current). key_file NULL: state_dir/keys/local-admin.key. */
enum err control_open(const char *endpoint, const char *state_dir, const char *key_file, struct control **out);
enum err control_open_options(const struct options *o, struct control **out);
void control_close(struct control **c);
/* *out lies in the arena. ERR_TIMEOUT; ERR_AUTH when the key is not accepted; what the coordinator answers otherwise. */
enum err control_ask(struct control *c, enum admin_verb verb, uint32_t timeout_ms, struct arena *arena, struct msg_admin_reply *out);
/* A whole command without arguments: asks the coordinator that the options name, over a link of its own, and prints the answer as -o says. An exit code. */
typedef void control_json_fn(struct buf *b, const struct msg_admin_reply *r);
typedef void control_text_fn(const struct msg_admin_reply *r);
int control_show(const char *command, enum admin_verb verb, control_json_fn *json, control_text_fn *text, struct options *o, int argc, char **argv);

#endif
