/* racklm-worker: the node agent, or (--child FD, only started by the agent) one worker. Flags in, exit code out. */
#include "base/log.h"
#include "base/options.h"
#include "worker/agent.h"
#include "worker/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* UCX reads its variables when it is loaded, before main: so they are set once and the program begins again. MEM_EVENTS: no hooks in malloc and
 * mmap, which our transports do not need and which fight sanitizers; the others keep it from threads, signal handlers and talk of its own. */
static void quiet_ucx(char **argv)
{
    static const char *const vars[][2] = {{"UCX_MEM_EVENTS", "n"},   {"UCX_VFS_ENABLE", "n"}, {"UCX_HANDLE_ERRORS", "none"},
                                          {"UCX_LOG_LEVEL", "error"}, {"UCX_WARN_UNUSED_ENV_VARS", "n"}};
    if (getenv("UCX_MEM_EVENTS"))
        return;
    for (unsigned i = 0; i < sizeof(vars) / sizeof(vars[0]); i++)
        setenv(vars[i][0], vars[i][1], 0);
    execv("/proc/self/exe", argv);
}

static void usage(void)
{
    struct buf b;
    buf_init(&b);
    buf_puts(&b, "Usage: racklm-worker [--join ENDPOINT] [--key-file FILE] [options]\n\n"
                 "Offers this host's devices to a racklm coordinator and runs the workers that it asks for.\n\nOptions:\n");
    options_help(&b, OPTION_WORKER);
    fwrite(b.data, 1, b.len, stdout);
    buf_deinit(&b);
}

int main(int argc, char **argv)
{
    static const enum log_level levels[] = {LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR};
    struct options o;
    int spec_fd = -1, code = WORKER_EXIT_USAGE;

    quiet_ucx(argv);
    if (argc > 2 && strcmp(argv[1], "--child") == 0) {
        spec_fd = atoi(argv[2]);
        argv[2] = argv[0];
        argv += 2;
        argc -= 2;
    }
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts("racklm-worker " RACKLM_VERSION);
        return 0;
    }
    log_init(spec_fd < 0 ? "agent" : "worker", LOG_INFO, LOG_TEXT);
    options_init(&o);
    enum err e = options_load_args(&o, OPTION_WORKER, &argc, argv);
    if (e != ERR_OK) {
        fprintf(stderr, "racklm-worker: %s\n", err_detail());
    } else if (o.help) {
        usage();
        code = WORKER_EXIT_OK;
    } else if (argc > 1) {
        fprintf(stderr, "racklm-worker: '%s': no such argument; see racklm-worker --help\n", argv[1]);
    } else {
        log_init(spec_fd < 0 ? "agent" : "worker", levels[o.log_level], o.log_format == 1 ? LOG_JSON : LOG_TEXT);
        code = spec_fd < 0 ? agent_main(&o) : worker_main(&o, spec_fd);
    }
    options_deinit(&o);
    return code;
}
