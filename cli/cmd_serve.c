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

/* A line for each model that is served. */
static void print_models(const struct local *l, const struct options *o)
{
    for (uint32_t i = 0; i < l->n_served; i++) {
        const struct local_model *m = &l->served[i];
        uint32_t full = model_context(m->path);
        if (l->n_served > 1)
            printf("  %s (tp %u, pp %u, context %u)\n", m->names, m->tp, m->pp, m->ctx);
        if (o->ctx == 0 && m->ctx < full)
            printf("The context is lowered from the model's %u to %u, which is what fits: --kv-memory, --kv-type or fewer --max-seqs make room.\n", full,
                   m->ctx);
    }
}

int cmd_serve(struct options *o, int argc, char **argv)
{
    if (!cli_flags("serve", NULL, 0, o, OPTION_SERVE, &argc, argv))
        return CLI_USAGE;
    if (argc == 1 && !o->model && !o->n_models)
        return cli_usage("serve", "which model? name a GGUF file");
    if (argc - 1 > OPTIONS_MODELS_MAX)
        return cli_usage("serve", "at most %d models", OPTIONS_MODELS_MAX);
    struct local l;
    enum err e = local_start(o, argv + 1, argc - 1, false, &l);
    if (e != ERR_OK)
        return e == ERR_ABORTED ? CLI_OK : l.told ? CLI_FAILED : cli_fail_err("serve", e);
    if (l.n_served == 1)
        printf("racklm " RACKLM_VERSION " serves %s at %s (tp %u, pp %u, context %u)\n", argc > 1 ? argv[1] : l.served[0].path, l.url, l.served[0].tp,
               l.served[0].pp, l.served[0].ctx);
    else
        printf("racklm " RACKLM_VERSION " serves %u models at %s\n", l.n_served, l.url);
    print_models(&l, o);
    if (l.gpu_note[0])
        printf("GPUs of this host are not used: %s\n", l.gpu_note);
    if (l.log_path[0])
        printf("log: %s\n", l.log_path);
    fflush(stdout);
    return local_wait(&l);
}
