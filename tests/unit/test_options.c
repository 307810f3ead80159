/* options.h: precedence, every kind of value, errors with their place and the nearest key, secrets, the three texts. */
#include "base/check.h"
#include "base/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/racklm-options-XXXXXX", file[64];
static struct options o;

static int setup(void **state)
{
    (void)state;
    extern char **environ;
    for (char **e = environ; *e;) { /* whatever the person who runs the tests has set */
        char name[128];
        if (strncmp(*e, "RACKLM_", 7) == 0 && sscanf(*e, "%127[^=]", name) == 1)
            unsetenv(name);
        else
            e++;
    }
    options_init(&o);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    options_deinit(&o);
    return 0;
}

static void write_file(const char *text)
{
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    chmod(file, 0600);
}

static enum err load(const char *text)
{
    write_file(text);
    options_deinit(&o);
    options_init(&o);
    return options_load_file(&o, file);
}

/* The file must fail at line:column with all the words in its error. */
static void fails_at(const char *text, const char *place, const char *word)
{
    char where[128];
    assert_int_equal(load(text), ERR_CONFIG);
    snprintf(where, sizeof where, "%s:%s: ", file, place);
    if (strncmp(err_detail(), where, strlen(where)) != 0 || !strstr(err_detail(), word))
        fail_msg("`%s` gave `%s`", text, err_detail());
}

static enum err args(unsigned scope, int *argc, ...)
{
    static char *argv[32];
    va_list ap;
    va_start(ap, argc);
    int n = 0;
    while ((argv[n] = va_arg(ap, char *)))
        n++;
    va_end(ap);
    int count = n;
    enum err e = options_load_args(&o, scope, &count, argv);
    if (argc)
        *argc = count;
    return e;
}

static void defaults_are_those_of_the_table(void **state)
{
    (void)state;
    assert_int_equal(o.tp, 1);
    assert_int_equal(o.port, 8000);
    assert_string_equal(o.host, "127.0.0.1");
    assert_null(o.api_key);
    assert_int_equal(o.body_max, 16777216);
    assert_int_equal(o.kv_type, 1);
    assert_int_equal(o.step_target_ms, 100);
    assert_int_equal(o.parent_fd, -1);
    assert_false(o.help);
    assert_false(options_given(&o, "tp"));
}

static void the_file_sets_every_type(void **state)
{
    (void)state;
    assert_int_equal(load("# racklm\n"
                          "model: /models/a.gguf\n"
                          "tp: 2\n"
                          "shares: [3, 1]\n"
                          "layers: 10,6\n"
                          "kv_memory: 1.5G\n"
                          "kv_type: q8_0\n"
                          "step_target_ms: 2s\n"
                          "queue_max: 0\n"
                          "http:\n"
                          "  host: \"::1\"\n"
                          "  port: 8080   # any\n"
                          "  api_key: 12345\n"
                          "control:\n"
                          "  heartbeat_ms: 250\n"
                          "log: {level: debug, format: 'json'}\n"
                          "state_dir: ~\n"),
                     ERR_OK);
    assert_string_equal(o.model, "/models/a.gguf");
    assert_int_equal(o.tp, 2);
    assert_string_equal(o.shares, "3,1");
    assert_string_equal(o.layers, "10,6");
    assert_int_equal(o.kv_memory, 3ull << 29);
    assert_int_equal(o.kv_type, 3);
    assert_int_equal(o.step_target_ms, 2000);
    assert_int_equal(o.queue_max, 0);
    assert_string_equal(o.host, "::1");
    assert_int_equal(o.port, 8080);
    assert_string_equal(o.api_key, "12345");
    assert_int_equal(o.heartbeat_ms, 250);
    assert_int_equal(o.log_level, 0);
    assert_int_equal(o.log_format, 1);
    assert_null(o.state_dir);
    assert_true(options_given(&o, "port"));
    assert_false(options_given(&o, "max_seqs"));
    assert_false(options_given(&o, "state_dir"));
    assert_int_equal(load(""), ERR_OK);
    assert_int_equal(load("# nothing\n"), ERR_OK);
    assert_int_equal(load("---\ntp: 2\n...\n"), ERR_OK);
    assert_int_equal(load("http:\n  # all of it commented out\ntp: 3\n"), ERR_OK);
    assert_int_equal(o.tp, 3);
}

static void file_errors_name_line_column_and_the_nearest_key(void **state)
{
    (void)state;
    fails_at("tp: 2\nmax_seq: 3\n", "2:1", "\"max_seqs\"");
    fails_at("http:\n  prot: 3\n", "2:3", "\"http.port\"");
    fails_at("port: 3\n", "1:1", "\"http.port\"");
    fails_at("htpt:\n  port: 3\n", "1:1", "unknown key \"htpt\"");
    fails_at("control:\n  heartbeat: 3\n", "2:3", "\"control.heartbeat_ms\"");
    fails_at("tp: two\n", "1:5", "integer in 1..1024");
    fails_at("tp: 2.5\n", "1:5", "integer");
    fails_at("tp: 0\n", "1:5", "1..1024");
    fails_at("tp: 1025\n", "1:5", "1..1024");
    fails_at("tp: 99999999999999999999\n", "1:5", "1..1024");
    fails_at("tp: [1]\n", "1:5", "wrong type");
    fails_at("tp: {a: 1}\n", "1:5", "wrong type");
    fails_at("http:\n  port: 65536\n", "2:9", "0..65535");
    fails_at("http: 8000\n", "1:7", "section");
    fails_at("http: [1]\n", "1:7", "section");
    fails_at("kv_type: f64\n", "1:10", "one of f32, f16, bf16, q8_0, fp8");
    fails_at("kv_type: f\n", "1:10", "one of f32, f16, bf16, q8_0, fp8");
    fails_at("kv_memory: lots\n", "1:12", "suffix K, M, G or T");
    fails_at("step_target_ms: 0\n", "1:17", "1..60000");
    fails_at("http:\n  body_max: 5\n", "2:13", "1K");
    fails_at("tp: 2\npp: 1\ntp: 3\n", "3:1", "given twice");
    fails_at("http:\n  port: 1\nhttp:\n  port: 2\n", "4:3", "given twice");
    fails_at("tp: &a 2\npp: *a\n", "2:5", "alias");
    fails_at("tp: 2\n---\npp: 1\n", "2:1", "second document");
    fails_at("- tp\n", "1:1", "key: value");
    fails_at("just words\n", "1:1", "key: value");
    fails_at("tp: 2\n  pp: 1\n", "1:5", "integer"); /* YAML reads "2 pp" here */
    fails_at("model: a: b\n", "1:9", "mapping values");
    fails_at("tp: 2\n\tpp: 1\n", "2:1", "tab");
    fails_at("model: \"a\\0b\"\n", "1:8", "NUL");
    fails_at("tp: !!int 2\n", "1:5", "tags");
    fails_at("? [a]\n: 1\n", "1:3", "a key must be a word");
    fails_at("http:\n  a: {b: {c: {d: {e: {f: {g: {h: {i: 1}}}}}}}}\n", "2:3", "unknown key");
    fails_at("shares: [[1]]\n", "1:10", "wrong type");
    fails_at("tp: 2\nmodel: \xff\xfe\n", "2:8", "UTF-8");
    fails_at("config: other.yaml\n", "1:1", "cannot stand in the file");
    assert_int_equal(options_load_file(&o, "/nonexistent/racklm.yaml"), ERR_NOT_FOUND);
    assert_non_null(strstr(err_detail(), "/nonexistent/racklm.yaml"));
}

static void the_file_lists_models_with_options_of_their_own(void **state)
{
    (void)state;
    assert_int_equal(load("tp: 2\n"
                          "ctx: 4096\n"
                          "models:\n"
                          "- model: /models/a.gguf\n"
                          "  served_model_name: [a, chat]\n"
                          "  tp: 1\n"
                          "  devices: cpu:0\n"
                          "- {model: /models/b.gguf, kv_type: q8_0}\n"
                          "http:\n"
                          "  port: 8080\n"),
                     ERR_OK);
    struct options a, b;
    assert_int_equal(options_n_models(&o), 2);
    assert_int_equal(options_model(&o, 0, &a), ERR_OK);
    assert_int_equal(options_model(&o, 1, &b), ERR_OK);
    assert_string_equal(a.model, "/models/a.gguf");
    assert_string_equal(a.served_model_name, "a,chat");
    assert_string_equal(a.devices, "cpu:0");
    assert_true(a.tp == 1 && a.ctx == 4096 && a.kv_type == 1 && a.port == 8080);
    assert_string_equal(b.model, "/models/b.gguf");
    assert_null(b.served_model_name);
    assert_null(b.devices);
    assert_true(b.tp == 2 && b.ctx == 4096 && b.kv_type == 3 && b.port == 8080);
    options_deinit(&a);
    options_deinit(&b);
    assert_int_equal(load("models: []\nmodel: x\n"), ERR_OK);
    assert_int_equal(options_n_models(&o), 1);
    assert_int_equal(load("models:\n"), ERR_OK);

    fails_at("models:\n- model: a\n  tpp: 2\n", "3:3", "\"tp\"");
    fails_at("models:\n- model: a\n- model: b\n  tp: none\n", "4:7", "integer in 1..1024");
    fails_at("models:\n- model: a\n- tp: 2\n", "3:3", "no `model: FILE`");
    fails_at("models:\n- model: a\n  model: b\n", "3:3", "given twice");
    fails_at("models:\n- model: a\n  port: 8000\n", "3:3", "unknown key");
    fails_at("models:\n- model: a\n  host_x: 1\n", "3:3", "unknown key");
    fails_at("models:\n- model: a\n  state_dir: /x\n", "3:3", "of the whole server");
    fails_at("models:\n- model: a\n  http: {port: 1}\n", "3:3", "of the whole server");
    fails_at("models:\n- a.gguf\n", "2:3", "- model: FILE");
    fails_at("models: a.gguf\n", "1:9", "- model: FILE");
    fails_at("models: {a: b}\n", "1:9", "- model: FILE");
    fails_at("model: a\nmodels:\n- model: b\n", "2:1", "exclude each other");
    fails_at("models:\n- model: b\nmodel: a\n", "3:1", "exclude each other");
    fails_at("models:\n- model: b\nmodels:\n- model: a\n", "3:1", "given twice");
    fails_at("modles:\n- model: b\n", "1:1", "\"models\"");
}

static void flags_win_over_what_a_model_has_of_its_own(void **state)
{
    (void)state;
    struct options a;
    write_file("max_seqs: 2\nmodels:\n- {model: /a, tp: 2, ctx: 512}\n- {model: /b, served_model_name: b}\n");
    setenv("RACKLM_CONFIG", file, 1);
    assert_int_equal(args(OPTION_COORDINATOR, NULL, "--ctx", "1024", NULL), ERR_OK);
    assert_int_equal(options_model(&o, 0, &a), ERR_OK);
    assert_true(a.tp == 2 && a.ctx == 1024 && a.max_seqs == 2);
    options_deinit(&a);
    assert_true(options_overrides(&o, "ctx"));
    assert_false(options_overrides(&o, "max_seqs"));
    options_deinit(&o);
    options_init(&o);
    assert_int_equal(args(OPTION_COORDINATOR, NULL, "--model", "/c", NULL), ERR_OK); /* instead of those in the file */
    assert_int_equal(options_n_models(&o), 1);
    assert_int_equal(options_model(&o, 0, &a), ERR_OK);
    assert_string_equal(a.model, "/c");
    options_deinit(&a);
    options_deinit(&o);
    options_init(&o);
    assert_int_equal(args(OPTION_COORDINATOR, NULL, "--served-model-name", "x", NULL), ERR_OK);
    assert_int_equal(options_model(&o, 0, &a), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "served_model_name is given once for 2 models"));
    unsetenv("RACKLM_CONFIG");
}

static void arguments_name_models(void **state)
{
    (void)state;
    static char *const several[] = {"/m/a.gguf", "b,alias=/m/b=1.gguf", "/m/x=1.gguf"}, *const one[] = {"/m/a.gguf"}, *const none[] = {"a="};
    struct options m;
    assert_int_equal(load("models: [{model: /file.gguf}]\ntp: 2\n"), ERR_OK);
    assert_int_equal(options_add_models(&o, 3, several), ERR_OK);
    assert_int_equal(options_n_models(&o), 3);
    assert_int_equal(options_model(&o, 0, &m), ERR_OK);
    assert_string_equal(m.model, "/m/a.gguf");
    assert_null(m.served_model_name);
    assert_int_equal(m.tp, 2);
    options_deinit(&m);
    assert_int_equal(options_model(&o, 1, &m), ERR_OK);
    assert_string_equal(m.model, "/m/b=1.gguf");
    assert_string_equal(m.served_model_name, "b,alias");
    options_deinit(&m);
    assert_int_equal(options_model(&o, 2, &m), ERR_OK);
    assert_string_equal(m.model, "/m/x=1.gguf"); /* the '=' is in the path */
    options_deinit(&m);
    assert_int_equal(options_add_models(&o, 1, one), ERR_OK); /* a single one takes the name given beside it */
    assert_int_equal(args(OPTION_COORDINATOR, NULL, "--served-model-name", "n,alias", NULL), ERR_OK);
    assert_int_equal(options_model(&o, 0, &m), ERR_OK);
    assert_string_equal(m.model, "/m/a.gguf");
    assert_string_equal(m.served_model_name, "n,alias");
    options_deinit(&m);
    assert_int_equal(options_add_models(&o, 1, none), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "the file is missing"));
}

static void flags_win_over_variables_over_the_file_over_defaults(void **state)
{
    (void)state;
    write_file("tp: 2\npp: 2\nmax_seqs: 2\n");
    setenv("RACKLM_CONFIG", file, 1);
    setenv("RACKLM_PP", "3", 1);
    setenv("RACKLM_MAX_SEQS", "3", 1);
    assert_int_equal(args(OPTION_COORDINATOR, NULL, "--max-seqs", "4", NULL), ERR_OK);
    assert_int_equal(o.replicas, 1);
    assert_int_equal(o.tp, 2);
    assert_int_equal(o.pp, 3);
    assert_int_equal(o.max_seqs, 4);
    unsetenv("RACKLM_CONFIG");
    assert_int_equal(args(OPTION_COORDINATOR, NULL, "--config", "/nonexistent", NULL), ERR_NOT_FOUND);
}

static void variables_of_other_programs_and_empty_ones_do_not_matter(void **state)
{
    (void)state;
    setenv("RACKLM_TP", "junk", 1); /* the coordinator's; a client must not fail for it */
    setenv("RACKLM_OUTPUT", "json", 1);
    setenv("RACKLM_JOIN", "", 1);
    assert_int_equal(options_load_env(&o, OPTION_CLIENT), ERR_OK);
    assert_int_equal(o.output, 1);
    assert_null(o.join);
    assert_int_equal(options_load_env(&o, OPTION_COORDINATOR), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "RACKLM_TP"));
    unsetenv("RACKLM_TP");
    setenv("RACKLM_PORT", "tcp://10.0.0.1:8000", 1); /* set by Kubernetes beside a service named racklm */
    assert_int_equal(options_load_env(&o, OPTION_COORDINATOR), ERR_OK);
    assert_int_equal(o.port, 8000);
}

static void flags_come_out_of_argv_in_all_their_forms(void **state)
{
    (void)state;
    int argc;
    static char *argv[] = {"m.gguf", "-tp",    "2", "--pp=3", "--kv-memory", "512M", "prompt", "-",
                           "-5",     "--name", "x", "--",     "--tp",        "-h",   NULL};
    argc = 14;
    assert_int_equal(options_load_args(&o, OPTION_SERVE, &argc, argv), ERR_OK);
    assert_int_equal(argc, 6);
    static const char *const left[] = {"m.gguf", "prompt", "-", "-5", "--tp", "-h"};
    for (int i = 0; i < 6; i++)
        assert_string_equal(argv[i], left[i]);
    assert_int_equal(o.tp, 2);
    assert_int_equal(o.pp, 3);
    assert_int_equal(o.kv_memory, 512 << 20);
    assert_string_equal(o.served_model_name, "x");
    assert_false(o.help);
    assert_int_equal(args(OPTION_CLIENT, NULL, "-o", "json", NULL), ERR_OK);
    assert_int_equal(o.output, 1);
    assert_int_equal(args(OPTION_WORKER, NULL, "--parent-fd", "-1", NULL), ERR_OK);
}

static void help_wins_over_any_error(void **state)
{
    (void)state;
    assert_int_equal(args(OPTION_SERVE, NULL, "--tp", "zero", "--nonsense", "-h", NULL), ERR_OK);
    assert_true(o.help);
    options_deinit(&o);
    options_init(&o);
    assert_int_equal(args(OPTION_SERVE, NULL, "--name", "-h", NULL), ERR_OK); /* a value, not a flag */
    assert_false(o.help);
    assert_int_equal(args(OPTION_SERVE, NULL, "--no-help", NULL), ERR_OK);
    assert_false(o.help);
}

static void flag_errors_name_the_flag_and_the_nearest_one(void **state)
{
    (void)state;
    assert_int_equal(args(OPTION_SERVE, NULL, "--max-seq", "3", NULL), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "--max-seq:"));
    assert_non_null(strstr(err_detail(), "--max-seqs"));
    assert_int_equal(args(OPTION_SERVE, NULL, "--listen", "tcp://x", NULL), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "not an option of this command"));
    assert_int_equal(args(OPTION_SERVE, NULL, "--port", "70000", NULL), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "--port: "));
    assert_non_null(strstr(err_detail(), "0..65535"));
    assert_int_equal(args(OPTION_SERVE, NULL, "--port", NULL), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "needs a value"));
    assert_int_equal(args(OPTION_SERVE, NULL, "--port", "--tp", NULL), ERR_CONFIG);
    assert_non_null(strstr(err_detail(), "--port: needs a value"));
    assert_int_equal(args(OPTION_SERVE, NULL, "-x", NULL), ERR_CONFIG);
    assert_int_equal(args(OPTION_SERVE, NULL, "--no-tp", NULL), ERR_CONFIG);
    assert_int_equal(args(OPTION_SERVE, NULL, "--no-help=1", NULL), ERR_CONFIG);
}

static void secrets_are_never_repeated(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "http:\n  api_key: {s3cret: 1}\n",
        "http:\n  api_key: [s3cret]\n",
        "http: s3cret\n",
        "http:\n  api_key: \"s3cret\\0\"\n",
        "http:\n  api_key: s3cret\n  x: 1\n",
        "http:\n  api_key: !k s3cret\n",
        "http.api_key: s3cret\n",
        "api_kye: s3cret\n",
        "http:\n  api_key: \"s3cret\n",
        "http:\n  api_key: s3cret\n   y\n  z\n",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        if (load(bad[i]) != ERR_OK && strstr(err_detail(), "s3cret"))
            fail_msg("`%s` gave `%s`", bad[i], err_detail());
    }
    assert_int_equal(args(OPTION_SERVE, NULL, "--api-kee=s3cret", NULL), ERR_CONFIG);
    assert_null(strstr(err_detail(), "s3cret"));
    assert_int_equal(args(OPTION_WORKER, NULL, "--api-key=s3cret", NULL), ERR_CONFIG);
    assert_null(strstr(err_detail(), "s3cret"));
}

/* Runs the load with standard error in a file and gives what was logged. */
static const char *warnings_of(mode_t mode, const char *text)
{
    static char log[2048];
    char path[] = "/tmp/racklm-log-XXXXXX";
    write_file(text);
    chmod(file, mode);
    int fd = mkstemp(path), old = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    enum err e = options_load_file(&o, file);
    dup2(old, STDERR_FILENO);
    close(old);
    ssize_t n = pread(fd, log, sizeof log - 1, 0);
    close(fd);
    unlink(path);
    assert_int_equal(e, ERR_OK);
    log[n > 0 ? n : 0] = 0;
    return log;
}

static void a_key_in_a_file_that_others_can_read_is_a_warning(void **state)
{
    (void)state;
    const char *log = warnings_of(0644, "http:\n  api_key: s3cret\n");
    assert_non_null(strstr(log, " WARN "));
    assert_non_null(strstr(log, file));
    assert_null(strstr(log, "s3cret"));
    assert_string_equal(warnings_of(0600, "http:\n  api_key: s3cret\n"), "");
    assert_string_equal(warnings_of(0644, "tp: 2\n"), "");
}

static void sizes_are_binary(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"1", 1},
        {"1k", 1024},
        {"1K", 1024},
        {"1KiB", 1024},
        {"2M", 2 << 20},
        {"1.5G", 3ull << 29},
        {"1T", 1ull << 40},
        {"4 G", 4ull << 30},
        {"18446744073709551615", UINT64_MAX},
        {"7B", 7},
        {"0.5k", 512},
        {"9007199254740993", 9007199254740993},
    };
    static const char *const bad[] = {
        "",          "-1",  "+1",  "1X",  "1.5", "0x10", "inf", "nan", "1e3", "18446744073709551616",
        "16777216T", "1KK", "1.G", ".5G", " 1",  "G",    "1K "};
    uint64_t v;
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        assert_true(options_parse_size(good[i].text, &v));
        assert_true(v == good[i].bytes);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (options_parse_size(bad[i], &v))
            fail_msg("`%s` was taken as %llu", bad[i], (unsigned long long)v);
}

static void help_lists_the_options_of_the_scope(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    options_help(&b, OPTION_SERVE);
    assert_non_null(strstr(b.data, "--max-seqs N"));
    assert_non_null(strstr(b.data, "-h, --help"));
    assert_non_null(strstr(b.data, "(default 8000)") ? b.data : strstr(b.data, "--port N"));
    assert_null(strstr(b.data, "--listen"));
    assert_null(strstr(b.data, "--parent-fd"));
    for (char *s = b.data, *end; *s; s = end + 1) {
        end = strchr(s, '\n');
        assert_non_null(end);
        assert_true(end - s <= 100);
    }
    buf_clear(&b);
    options_help(&b, OPTION_CLIENT);
    assert_non_null(strstr(b.data, "-o, --output table|json"));
    assert_null(strstr(b.data, "--max-seqs"));
    buf_clear(&b);
    options_markdown(&b);
    assert_non_null(strstr(b.data, "| `http.port` | `--port` | `RACKLM_PORT` | 8000 |"));
    for (char *s = b.data, *end; *s; s = end + 1) { /* seven cells a row */
        int bars = 0;
        for (end = s; *end != '\n'; end++)
            bars += *end == '|' && (end == s || end[-1] != '\\');
        assert_int_equal(bars, 8);
    }
    buf_clear(&b);
    options_man(&b, OPTION_CLIENT);
    assert_non_null(strstr(b.data, ".TP\n\\fB\\-o\\fR, \\fB\\-\\-output\\fR"));
    assert_false(b.failed);
    buf_deinit(&b);
}

int main(void)
{
#define FRESH(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        FRESH(defaults_are_those_of_the_table),
        FRESH(the_file_sets_every_type),
        FRESH(file_errors_name_line_column_and_the_nearest_key),
        FRESH(the_file_lists_models_with_options_of_their_own),
        FRESH(flags_win_over_what_a_model_has_of_its_own),
        FRESH(arguments_name_models),
        FRESH(flags_win_over_variables_over_the_file_over_defaults),
        FRESH(variables_of_other_programs_and_empty_ones_do_not_matter),
        FRESH(flags_come_out_of_argv_in_all_their_forms),
        FRESH(help_wins_over_any_error),
        FRESH(flag_errors_name_the_flag_and_the_nearest_one),
        FRESH(secrets_are_never_repeated),
        FRESH(a_key_in_a_file_that_others_can_read_is_a_warning),
        FRESH(sizes_are_binary),
        FRESH(help_lists_the_options_of_the_scope),
    };
    if (!mkdtemp(dir))
        return 1;
    snprintf(file, sizeof file, "%s/racklm.yaml", dir);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file);
    rmdir(dir);
    return rc;
}
