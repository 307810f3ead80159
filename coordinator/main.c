/* racklm-coordinator: the thin main. */
#include "base/log.h"
#include "coordinator/coordinator.h"

#include <stdio.h>
#include <string.h>

static const char usage[] = "usage: racklm-coordinator --model FILE.gguf [options]\n"
                            "       racklm-coordinator [options] [NAME=]FILE.gguf [NAME=]FILE.gguf ...\n"
                            "       racklm-coordinator --config racklm.yaml\n\n"
                            "Serves one or several models over HTTP with workers that join it (racklm-worker). `racklm serve` starts "
                            "all of it on one machine.\n\n";

static int help(void)
{
    struct buf b;
    buf_init(&b);
    buf_puts(&b, usage);
    options_help(&b, OPTION_COORDINATOR);
    fputs(b.data ? b.data : usage, stdout);
    buf_deinit(&b);
    return 0;
}

static int fail(void)
{
    fprintf(stderr, "racklm-coordinator: %s\n", err_detail());
    return 1;
}

int main(int argc, char **argv)
{
    struct options opts;
    options_init(&opts);
    coordinator_block_signals();
    if (options_load_args(&opts, OPTION_COORDINATOR, &argc, argv) != ERR_OK)
        return fail();
    int rc = 0;
    if (opts.help) {
        rc = help();
    } else if (argc > 1 && options_add_models(&opts, argc - 1, argv + 1) != ERR_OK) {
        rc = fail();
    } else {
        log_init("coordinator", (enum log_level)opts.log_level, (enum log_format)opts.log_format);
        if (coordinator_run(&opts) != ERR_OK)
            rc = fail();
    }
    options_deinit(&opts);
    return rc;
}
