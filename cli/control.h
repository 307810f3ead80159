/* The admin link: one question, one answer. */
#ifndef CLI_CONTROL_H
#define CLI_CONTROL_H

#include "base/options.h"
#include "proto/link.h"

struct control;
/* endpoint NULL: the coordinator that runs on this machine (runtime_dir/current). key_file NULL: state_dir/keys/local-admin.key. */
enum err control_open(const char *endpoint, const char *state_dir, const char *key_file, struct control **out);
enum err control_open_options(const struct options *o, struct control **out);
void control_close(struct control **c);
/* *out lies in the arena. ERR_TIMEOUT; ERR_AUTH when the key is not accepted; what the coordinator answers otherwise. */
enum err control_ask(struct control *c, enum admin_verb verb, uint32_t timeout_ms, struct arena *arena, struct msg_admin_reply *out);
/* The same of the coordinator that the options name, with a link of its own. */
enum err control_ask_once(const struct options *o, enum admin_verb verb, struct arena *arena, struct msg_admin_reply *out);

#endif
