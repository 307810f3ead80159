/* racklm serve: a whole cluster on this machine, in the foreground. */
#include "cli/cli.h"
#include "cli/local.h"
#include "model/hparams.h"

#include <stdio.h>

/* The context that the model has by itself; 0: it cannot be told. */
static uint32_t model_context(const char *path)
{
    struct gguf *g = NULL;
    struct hparams hp = {0};
    uint32_t ctx = gguf_open(path, &g) == ERR_OK && hparams_load(g, &hp) == ERR_OK ? hp.ctx_train : 0;
    gguf_close(&g);
    return ctx;
}

int cmd_serve(struct options *o, int argc, char **argv)
{
    if (!cli_flags("serve", NULL, 0, o, OPTION_SERVE, &argc, argv))
        return CLI_USAGE;
    const char *model = argc > 1 ? argv[1] : o->model;
    if (!model || argc > 2)
        return cli_usage("serve", model ? "one model at a time" : "which model? name a GGUF file");
    struct local l;
    enum err e = local_start(o, model, false, &l);
    if (e != ERR_OK)
        return e == ERR_ABORTED ? CLI_OK : l.told ? CLI_FAILED : cli_fail_err("serve", e);
    printf("racklm " RACKLM_VERSION " serves %s at %s (tp %u, pp %u, context %u)\n", model, l.url, l.tp, l.pp, l.ctx);
    uint32_t full = model_context(model);
    if (o->ctx == 0 && l.ctx < full)
        printf("The context is lowered from the model's %u to %u, which is what fits: --kv-memory, --kv-type or fewer --max-seqs make room.\n", full, l.ctx);
    if (l.log_path[0])
        printf("log: %s\n", l.log_path);
    fflush(stdout);
    return local_wait(&l);
}
