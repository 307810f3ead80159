/* The racklm command: a table of commands, their help, and the man page made from the same tables. */
#include "base/check.h"
#include "cli/cli.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define SERVE OPTION_SERVE
#define CLIENT OPTION_CLIENT

const struct cli_command cli_commands[] = {
    {"serve", "[NAME=]MODEL.gguf ...", "serve models on this machine: coordinator, node agent and workers", NULL, SERVE, cmd_serve},
    {"run", "MODEL.gguf [PROMPT]", "answer one prompt, or chat; reads standard input when it is no terminal",
     "  --url URL             ask a server that runs, instead of one of its own (then no MODEL)\n"
     "  --raw                 do not apply the chat template\n"
     "  --system TEXT         a system message\n"
     "  --max-tokens N        longest answer (default: what the context leaves)\n"
     "  --temperature X, --top-p X, --top-k N, --min-p X, --seed N\n"
     "  --stats               print speed at the end\n", SERVE, cmd_run},
    {"perplexity", "MODEL.gguf TEXT", "perplexity of a text file",
     "  --window N            tokens of a window, each run alone after BOS (default 511, or the context less one)\n"
     "  -o json               print JSON\n", SERVE, cmd_perplexity},
    {"status", "", "the coordinator, its replicas and their state", NULL, CLIENT, cmd_status},
    {"nodes", "", "the nodes: their devices, the state of GPUs, and how they reach each other", NULL, CLIENT, cmd_nodes},
    {"workers", "", "the workers: where they run, what they hold", NULL, CLIENT, cmd_workers},
    {"show", "MODEL.gguf", "what a model file is, and bytes per shard",
     "  --tp N, --pp N        split as a deployment would be\n"
     "  --shares A,B, --layers A,B, --ctx N\n"
     "  --template            print the chat template\n", CLIENT, cmd_show},
    {"tokenize", "MODEL.gguf|tokenizer.json", "token ids of the text on standard input, one line a token: id and piece",
     "  --ids                 only the ids, on one line\n"
     "  --no-special          neither add BOS and EOS nor recognise special tokens written in the text\n", 0, cmd_tokenize},
    {"detokenize", "MODEL.gguf|tokenizer.json", "the text of the token ids on standard input",
     "  --no-special          leave special tokens out\n", 0, cmd_detokenize},
    {"template", "FILE|MODEL.gguf --context FILE", "the text that a chat template makes of the variables in a JSON file",
     "  FILE                  a .jinja file or a tokenizer_config.json\n"
     "  --context FILE        a JSON object: messages, tools, add_generation_prompt, bos_token ...; - for standard input\n"
     "  --now SECONDS         the time that strftime_now shows, since 1970 (default: now)\n", 0, cmd_template},
    {"bench model", "MODEL.gguf", "prompt and generation speed, against the machine's memory ceiling",
     "  -p N[,N...]           prompt lengths (default 512; 0: none)\n"
     "  -n N[,N...]           generated tokens (default 64)\n"
     "  -c N[,N...]           so many sequences together (default 1)\n"
     "  -d N[,N...]           after a context of so many tokens (default 0)\n"
     "  -r N                  repetitions; the median is shown (default 3)\n"
     "  -o json               print JSON\n", SERVE, cmd_bench_model},
    {"bench serve", "--url URL", "load a server that speaks the OpenAI dialect; time to first token and between tokens",
     "  --url URL             base URL, e.g. http://127.0.0.1:8000\n"
     "  --model NAME          default: the server's first\n"
     "  --concurrency N       requests that run together (default 8)\n"
     "  --rate X              arrivals a second instead (Poisson)\n"
     "  --requests N          how many in all (default 32)\n"
     "  --prompt-tokens N     words of each prompt, about a token each (default 128)\n"
     "  --max-tokens N        longest answer (default 128); --ignore-eos asks for exactly that many\n"
     "  --api-key-file F      sends its first line as the key\n"
     "  --seed N              of prompts and arrivals (default 1)\n"
     "  -o json               print JSON\n", 0, cmd_bench_serve},
    {"key", "NAME [--role worker|admin|viewer]", "make a key for another host or person; prints where it is", NULL, CLIENT, cmd_key},
    {"version", "", "print the version", NULL, 0, cmd_version},
    {"man", "", "print the manual page (troff)", NULL, 0, cmd_man},
};
const unsigned cli_n_commands = ARRAY_LEN(cli_commands);

static void help(FILE *out)
{
    fputs("racklm: language models on racks of your own\n\n", out);
    for (unsigned i = 0; i < cli_n_commands; i++) {
        char left[64];
        snprintf(left, sizeof(left), "%s %s", cli_commands[i].name, cli_commands[i].args);
        fprintf(out, "  racklm %-42s %s\n", left, cli_commands[i].summary);
    }
    fputs("\n`racklm COMMAND --help` tells the options of a command.\n", out);
}

static void command_help(const struct cli_command *c)
{
    printf("racklm %s %s\n%s\n\n%s", c->name, c->args, c->summary, c->details ? c->details : "");
    if (c->scope) {
        struct buf b;
        buf_init(&b);
        options_help(&b, c->scope);
        printf("%s%s", c->details ? "\n" : "", b.data ? b.data : "");
        buf_deinit(&b);
    }
}

int cmd_version(struct options *o, int argc, char **argv)
{
    (void)o;
    if (argc > 1)
        return cli_usage("version", "\"%s\" is not expected", argv[1]);
    puts("racklm " RACKLM_VERSION);
    return CLI_OK;
}

int cmd_man(struct options *o, int argc, char **argv)
{
    (void)o;
    if (argc > 1)
        return cli_usage("man", "\"%s\" is not expected", argv[1]);
    puts(".TH RACKLM 1 \"\" \"racklm " RACKLM_VERSION "\" \"User Commands\"\n.SH NAME\nracklm \\- serve large language models on racks of your own");
    puts(".SH SYNOPSIS\n.B racklm\n.I COMMAND\n[\\fIARGUMENT\\fR ...] [\\fIOPTION\\fR ...]\n.SH COMMANDS");
    for (unsigned i = 0; i < cli_n_commands; i++) {
        const struct cli_command *c = &cli_commands[i];
        printf(".TP\n.B %s \\fI%s\\fR\n%s\n", c->name, c->args, c->summary);
        if (c->details)
            printf(".nf\n%s.fi\n", c->details);
    }
    struct buf b;
    buf_init(&b);
    buf_puts(&b, ".SH OPTIONS\nEach is also a key of racklm.yaml and a variable RACKLM_NAME.\n");
    options_man(&b, OPTION_SERVE | OPTION_CLIENT | OPTION_COORDINATOR | OPTION_WORKER);
    fwrite(b.data, 1, b.len, stdout);
    buf_deinit(&b);
    puts(".SH EXIT STATUS\n0: done. 1: failed; one line on standard error says why. 2: wrong usage.");
    return CLI_OK;
}

static const struct cli_command *find(int argc, char **argv, int *used)
{
    const struct cli_command *best = NULL;
    for (unsigned i = 0; i < cli_n_commands; i++) {
        char words[64];
        snprintf(words, sizeof(words), "%s", cli_commands[i].name);
        char *second = strchr(words, ' ');
        if (second)
            *second++ = '\0';
        if (argc > 1 && strcmp(argv[1], words) == 0 && (!second || (argc > 2 && strcmp(argv[2], second) == 0))) {
            best = &cli_commands[i];
            *used = second ? 2 : 1;
        }
    }
    return best;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        help(argc < 2 ? stderr : stdout);
        return argc < 2 ? CLI_USAGE : CLI_OK;
    }
    if (strcmp(argv[1], "--version") == 0)
        return cmd_version(NULL, 0, NULL);
    int used = 0;
    const struct cli_command *c = find(argc, argv, &used);
    if (!c) {
        fprintf(stderr, "racklm: unknown command \"%s\"; see `racklm --help`\n", argv[1]);
        return CLI_USAGE;
    }
    argc -= used;
    argv += used;
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            command_help(c);
            return CLI_OK;
        }
    struct options o;
    options_init(&o);
    int rc = c->fn(&o, argc, argv);
    options_deinit(&o);
    return rc;
}
