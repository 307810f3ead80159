/* racklm key: a key file for another host's agent, an admin or a viewer. Runs on the coordinator's machine, as its user. */
#include "cli/cli.h"
#include "proto/keys.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

int cmd_key(struct options *o, int argc, char **argv)
{
    const char *role_name = "worker";
    const struct cli_flag flags[] = {{"--role", NULL, &role_name, NULL}};
    if (!cli_flags("key", flags, 1, o, OPTION_CLIENT, &argc, argv))
        return CLI_USAGE;
    if (argc != 2)
        return cli_usage("key", "name the peer the key is for, e.g. `racklm key host2`");
    enum key_role role = KEY_ROLE_WORKER;
    while (role <= KEY_ROLE_VIEWER && strcmp(role_name, key_role_name(role)) != 0)
        role++;
    if (role > KEY_ROLE_VIEWER)
        return cli_usage("key", "--role is worker, admin or viewer, not \"%s\"", role_name);
    char state[256], path[PATH_MAX];
    struct keys keys = {0};
    enum err e = keys_state_dir(o->state_dir, state, sizeof(state));
    if (e == ERR_OK)
        e = keys_load_or_create(state, &keys);
    keys_deinit(&keys);
    if (e == ERR_OK)
        e = keys_add(state, argv[1], role, path, sizeof(path));
    if (e != ERR_OK)
        return cli_fail_err("key", e);
    printf("%s\n", path);
    fprintf(stderr, "Copy this file to the other host (mode 0600) and give it with --key-file. A running coordinator accepts it at once.\n");
    return CLI_OK;
}
