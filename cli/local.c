/* See local.h. Signals: SIGINT and SIGTERM are blocked from local_start on and read from a signalfd, with SIGCHLD; where local_start is quiet
 * only until the server is ready. */
#include "cli/local.h"

#include "base/check.h"
#include "base/clock.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/control.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { POLL_MS = 50, AGENT_ENDS_WINDOW_S = 600, STOP_MARGIN_MS = 5000 };

static int signal_fd = -1;

static void block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (signal_fd < 0)
        signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* A command that does not sit in local_wait ends by a signal as any program does; its children see that it is gone. */
static void unblock_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* ---- the environment of the children ---- */

static void put_env(const char *id, const char *value)
{
    char name[64] = "RACKLM_";
    size_t n = strlen(name);
    for (const char *p = id; *p && n + 1 < sizeof(name); p++)
        name[n++] = (char)(*p >= 'a' && *p <= 'z' ? *p - 32 : *p);
    name[n] = '\0';
    setenv(name, value, 1);
}

static const char *enum_name(const char *names, int idx, char *out, size_t cap)
{
    while (idx-- > 0 && names)
        names = strchr(names, '|') ? strchr(names, '|') + 1 : "";
    snprintf(out, cap, "%.*s", (int)strcspn(names, "|"), names);
    return out;
}

#define ENV_BOOL(id, min) put_env(#id, o->id ? "true" : "false")
#define ENV_INT(id, min) (snprintf(v, sizeof(v), "%lld", (long long)o->id), put_env(#id, v))
#define ENV_SIZE(id, min) (snprintf(v, sizeof(v), "%llu", (unsigned long long)o->id), put_env(#id, v))
#define ENV_FLOAT(id, min) (snprintf(v, sizeof(v), "%.17g", (double)o->id), put_env(#id, v))
#define ENV_MS(id, min) (snprintf(v, sizeof(v), "%u", (unsigned)o->id), put_env(#id, v))
#define ENV_ENUM(id, min) put_env(#id, enum_name((const char *)(uintptr_t)(min), o->id, v, sizeof(v)))
#define ENV_STR(id, min) put_env(#id, o->id ? o->id : "")

/* Every option that was given by flag or variable goes on, a child takes those of its scope; the file it reads itself. */
static void export_options(const struct options *o)
{
    char v[64];
#define OPT(id, key, type, def, min, max, unit, live, scope, help) \
    if (options_overrides(o, #id))                                  \
        ENV_##type(id, min);
#include "base/options.def"
#undef OPT
}

/* ---- children ---- */

static void program_path(const char *name, char *out, size_t cap)
{
    ssize_t n = readlink("/proc/self/exe", out, cap - 1);
    out[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(out, '/');
    size_t dir = slash ? (size_t)(slash - out) + 1 : 0;
    snprintf(out + dir, cap - dir, "%s", name);
}

static enum err spawn(struct local *l, const char *program, const char *const *args, int n_args, int read_fd, pid_t *out)
{
    char path[PATH_MAX], fd_text[16];
    program_path(program, path, sizeof(path));
    pid_t parent = getpid();
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        return err_set(ERR_IO, "cannot start %s: %s", program, strerror(errno));
    if (pid > 0) {
        *out = pid;
        return ERR_OK;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(CLI_FAILED);
    unblock_signals();
    setpgid(0, 0); /* Ctrl-C reaches this process only, which then drains */
    int fd = dup(read_fd); /* loses close-on-exec */
    if (l->log_path[0]) {
        int log = open(l->log_path, O_WRONLY | O_APPEND | O_CREAT, 0600);
        if (log >= 0) {
            dup2(log, 2);
            dup2(log, 1);
        }
    }
    snprintf(fd_text, sizeof(fd_text), "%d", fd);
    export_options(l->opts);
    put_env("parent_fd", fd_text);
    put_env("state_dir", l->state_dir);
    put_env("runtime_dir", l->runtime_dir);
    const char *argv[OPTIONS_MODELS_MAX + 2] = {path};
    for (int i = 0; i < n_args && i < OPTIONS_MODELS_MAX; i++)
        argv[i + 1] = args[i];
    execv(path, (char *const *)argv);
    fprintf(stderr, "racklm: cannot run %s: %s\n", path, strerror(errno));
    _exit(127);
}

static int read_end = -1;

static enum err spawn_agent(struct local *l)
{
    char key[512];
    snprintf(key, sizeof(key), "%s/keys/local-worker.key", l->state_dir);
    const char *args[] = {"--join", l->endpoint, "--key-file", key};
    return spawn(l, "racklm-worker", args, ARRAY_LEN(args), read_end, &l->agent);
}

static enum err set_option(struct options *o, unsigned scope, const char *flag, const char *value)
{
    char *args[] = {"racklm", (char *)(uintptr_t)flag, (char *)(uintptr_t)value, NULL};
    int argc = 3;
    return options_load_flags(o, scope, &argc, args);
}

/* ---- devices ---- */

/* How many a list names; "any:3" stands for three. */
static uint32_t list_len(const char *list)
{
    uint32_t n = 0;
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        n += strncmp(p, "any:", 4) == 0 ? (uint32_t)MIN(strtoul(p + 4, NULL, 10), MSG_DEVICES_MAX) : 1;
    return n;
}

static bool list_has(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        if (strncmp(p, name, len) == 0 && (p[len] == ',' || !p[len]))
            return true;
    return false;
}

/* What the models need: the devices that entries of `models` name, and one for each worker of the others; text: "a needs 2, b needs 1". */
static enum err count_devices(const struct options *o, struct buf *named, uint32_t *n_any, struct buf *text)
{
    *n_any = 0;
    for (uint32_t i = 0; i < options_n_models(o); i++) {
        struct options m;
        enum err e = ERR_OK;
        TRY(options_model(o, i, &m));
        uint32_t n = (uint32_t)(m.tp * m.pp * m.replicas);
        const char *name = m.served_model_name ? m.served_model_name : m.model;
        buf_printf(text, "%s%.100s needs %u", i ? ", " : "", name, n);
        if (!m.devices)
            *n_any += n;
        else if (list_len(m.devices) < n)
            e = err_set(ERR_CONFIG, "%.200s needs %u devices, its `devices` names %u", name, n, list_len(m.devices));
        else
            buf_printf(named, "%s%s", named->len ? "," : "", m.devices);
        options_deinit(&m);
        TRY(e);
    }
    return ERR_OK;
}

/* "a" or "a,b", always ended by a NUL. */
static void add_name(struct buf *list, const char *name)
{
    if (list->len)
        list->len--;
    buf_printf(list, "%s%s", list->len ? "," : "", name);
    buf_putc(list, '\0');
}

/* Those named, each once, and n_any others: the agent, which knows what there is, offers GPUs of one type or CPUs. */
static enum err offer_devices(struct options *o, const char *named, uint32_t n_any)
{
    struct buf b;
    char name[64];
    buf_init(&b);
    for (const char *p = named; *p; p += strcspn(p, ","), p += *p == ',') {
        snprintf(name, sizeof(name), "%.*s", (int)MIN(strcspn(p, ","), sizeof(name) - 1), p);
        if (!b.len || !list_has(b.data, name))
            add_name(&b, name);
    }
    if (n_any) {
        snprintf(name, sizeof(name), "any:%u", n_any);
        add_name(&b, name);
    }
    enum err e = b.failed ? err_set(ERR_NOMEM, "the list of devices") : set_option(o, OPTION_SERVE, "--devices", b.data);
    buf_deinit(&b);
    return e;
}

/* As many devices as the splits need, unless they were named; then they must suffice, for no other machine can join. */
static enum err default_devices(struct options *o)
{
    struct buf named, text;
    uint32_t n_any;
    buf_init(&named);
    buf_init(&text);
    enum err e = count_devices(o, &named, &n_any, &text);
    buf_putc(&named, '\0');
    buf_putc(&text, '\0');
    if (e == ERR_OK && (named.failed || text.failed))
        e = err_set(ERR_NOMEM, "the list of devices");
    if (e == ERR_OK && o->devices && list_len(o->devices) < n_any)
        e = err_set(ERR_CONFIG, "--devices names %u, which is too few: %.300s", list_len(o->devices), text.data);
    if (e == ERR_OK && !o->devices)
        e = offer_devices(o, named.data, n_any);
    buf_deinit(&named);
    buf_deinit(&text);
    return e;
}

enum err local_client_key(struct options *opts)
{
    if ((opts->api_key && opts->api_key[0]) || !opts->api_key_file || !opts->api_key_file[0])
        return ERR_OK;
    struct buf key;
    buf_init(&key);
    enum err e = client_read_key(opts->api_key_file, &key);
    if (e == ERR_OK)
        e = set_option(opts, OPTION_SERVE, "--api-key", key.data);
    buf_deinit(&key);
    return e;
}

static void kill_child(pid_t *pid, int sig)
{
    if (*pid > 0)
        kill(*pid, sig);
}

static bool reap(pid_t *pid, int *status)
{
    if (*pid <= 0)
        return true;
    int st;
    if (waitpid(*pid, &st, WNOHANG) == *pid) {
        *pid = 0;
        if (status)
            *status = st;
        return true;
    }
    return false;
}

static bool interrupted(void)
{
    struct signalfd_siginfo si;
    bool yes = false;
    while (signal_fd >= 0 && read(signal_fd, &si, sizeof(si)) == sizeof(si))
        yes |= si.ssi_signo != SIGCHLD;
    return yes;
}

static void wait_child(pid_t *pid, uint64_t timeout_ms)
{
    uint64_t end = clock_ns() + timeout_ms * NS_PER_MS;
    while (!reap(pid, NULL)) {
        if (interrupted()) /* asked again: the coordinator then drains no longer */
            kill_child(pid, SIGTERM);
        if (clock_ns() > end) {
            kill_child(pid, SIGKILL);
            end = UINT64_MAX;
        }
        poll(NULL, 0, 5);
    }
}

void local_stop(struct local *l)
{
    kill_child(&l->coordinator, SIGTERM);
    wait_child(&l->coordinator, l->opts->drain_timeout_ms + STOP_MARGIN_MS);
    kill_child(&l->agent, SIGTERM);
    wait_child(&l->agent, STOP_MARGIN_MS);
    if (l->pipe_fd >= 0)
        close(l->pipe_fd);
    if (read_end >= 0)
        close(read_end);
    l->pipe_fd = read_end = -1;
}

/* What a program that ended had to say: the last line of the log that begins with its name. Log lines begin with a date. */
static void last_words(const char *path, const char *program, char *out, size_t cap)
{
    struct buf b;
    size_t name_len = strlen(program);
    buf_init(&b);
    out[0] = '\0';
    if (path[0] && buf_read_file(&b, path, 64 << 20) == ERR_OK)
        for (size_t at = 0, end; at < b.len; at = end + 1) {
            const char *nl = memchr(b.data + at, '\n', b.len - at);
            end = nl ? (size_t)(nl - b.data) : b.len;
            if (end - at > name_len + 2 && memcmp(b.data + at, program, name_len) == 0 && b.data[at + name_len] == ':')
                snprintf(out, cap, "%.*s", (int)(end - at - name_len - 2), b.data + at + name_len + 2);
        }
    buf_deinit(&b);
}

/* A child ended before the server was ready. With a log file its reason is in there; otherwise it stands on standard error already, unless the child
 * had no time to speak. */
static enum err start_failed(struct local *l, const char *program, int status)
{
    char words[400];
    last_words(l->log_path, program, words, sizeof(words));
    l->told = !l->log_path[0] && WIFEXITED(status) && WEXITSTATUS(status) != 0;
    if (words[0])
        return err_set(ERR_UNAVAILABLE, "%s", words);
    return err_set(ERR_UNAVAILABLE, "%s ended while starting (%s %d)%s%s", program, WIFSIGNALED(status) ? "signal" : "exit code",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), l->log_path[0] ? "; its log is " : "", l->log_path);
}

static void note_models(struct local *l, const struct msg_admin_reply *r)
{
    for (uint32_t i = 0; i < r->n_deployments && i < ARRAY_LEN(l->served); i++) {
        const struct msg_deployment_info *d = &r->deployments[i];
        struct local_model *m = &l->served[l->n_served++];
        snprintf(m->names, sizeof(m->names), "%s", d->names);
        snprintf(m->path, sizeof(m->path), "%s", d->path);
        m->tp = d->tp;
        m->pp = d->pp;
        m->ctx = d->ctx;
    }
    if (r->n_nodes)
        snprintf(l->gpu_note, sizeof(l->gpu_note), "%s", r->nodes[0].gpu_note);
}

static enum err wait_ready(struct local *l)
{
    struct control *c = NULL;
    struct arena arena;
    arena_init(&arena, 0);
    enum err e = ERR_OK;
    bool ready = false;
    while (!ready && e == ERR_OK) {
        int status = 0;
        if (reap(&l->coordinator, &status)) {
            e = start_failed(l, "racklm-coordinator", status);
            break;
        }
        if (reap(&l->agent, &status)) {
            e = start_failed(l, "racklm-worker", status);
            break;
        }
        if (interrupted()) {
            e = err_set(ERR_ABORTED, "interrupted");
            break;
        }
        struct msg_admin_reply r;
        arena_reset(&arena);
        if (!c)
            control_open(l->endpoint, l->state_dir, NULL, &c);
        if (c && control_ask(c, ADMIN_STATUS, 200, &arena, &r) == ERR_OK) {
            uint32_t percent = 0, n_ready = 0;
            const char *state = "starting";
            for (uint32_t i = 0; i < r.n_replicas; i++) {
                percent += r.replicas[i].load_percent;
                n_ready += strcmp(r.replicas[i].state, "ready") == 0;
                state = r.replicas[i].state;
            }
            cli_progress(state, r.n_replicas ? percent / 100.0 / r.n_replicas : -1);
            ready = r.n_replicas > 0 && n_ready == r.n_replicas;
            if (ready) {
                snprintf(l->url, sizeof(l->url), "%s", r.http_url);
                note_models(l, &r);
            } else if (r.err) {
                e = err_set(ERR_UNAVAILABLE, "%s", r.text);
            }
        }
        if (!ready)
            poll(NULL, 0, POLL_MS);
    }
    cli_progress_end();
    control_close(&c);
    arena_deinit(&arena);
    return e;
}

/* Missing files are told before anything starts. */
static enum err check_files(const struct options *o)
{
    for (uint32_t i = 0; i < options_n_models(o); i++) {
        const char *file = o->n_models ? o->models[i].model : o->model;
        if (access(file, R_OK) != 0)
            return err_set(errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s: %s", file, strerror(errno));
    }
    return ERR_OK;
}

enum err local_start(struct options *opts, char *const *models, int n_models, bool quiet, struct local *l)
{
    memset(l, 0, sizeof(*l));
    l->opts = opts;
    l->pipe_fd = -1;
    l->models = models;
    l->n_models = n_models;
    if (n_models)
        TRY(options_add_models(opts, n_models, models));
    TRY(check_files(opts));
    TRY(default_devices(opts));
    if (quiet) {
        TRY(set_option(opts, OPTION_SERVE, "--port", "0"));
        TRY(set_option(opts, OPTION_SERVE, "--host", "127.0.0.1"));
        TRY(local_client_key(opts));
    }
    TRY(keys_state_dir(opts->state_dir, l->state_dir, sizeof(l->state_dir)));
    TRY(keys_runtime_dir(opts->runtime_dir, l->runtime_dir, sizeof(l->runtime_dir)));
    struct keys keys = {0};
    TRY(keys_load_or_create(l->state_dir, &keys)); /* before two children want to make them */
    keys_deinit(&keys);
    if (opts->log_file) {
        snprintf(l->log_path, sizeof(l->log_path), "%s", opts->log_file);
    } else if (quiet || cli_is_terminal()) {
        snprintf(l->log_path, sizeof(l->log_path), "%s/logs", l->state_dir);
        mkdir(l->log_path, 0700);
        snprintf(l->log_path, sizeof(l->log_path), "%s/logs/%s-%d.log", l->state_dir, quiet ? "run" : "serve", (int)getpid());
        unlink(l->log_path);
    }
    block_signals();
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0)
        return err_set(ERR_IO, "cannot make a pipe: %s", strerror(errno));
    read_end = fds[0];
    l->pipe_fd = fds[1];
    enum err e = spawn(l, "racklm-coordinator", (const char *const *)l->models, l->n_models, read_end, &l->coordinator);
    if (e == ERR_OK) {
        snprintf(l->endpoint, sizeof(l->endpoint), "ipc://%s/%d/control.sock", l->runtime_dir, (int)l->coordinator);
        e = spawn_agent(l);
    }
    if (e == ERR_OK)
        e = wait_ready(l);
    if (e != ERR_OK) {
        char detail[512];
        snprintf(detail, sizeof(detail), "%s", err_detail());
        local_stop(l);
        err_set(e, "%s", detail);
    } else if (quiet) {
        unlink(l->log_path); /* nothing to read later; the children keep it open */
        unblock_signals();
    }
    return e;
}

/* Notes an end of the agent; true when the last ones came so close together that starting it again does not help. */
static bool ends_too_often(struct local *l)
{
    uint64_t now = clock_ns(), *oldest = &l->agent_ends_ns[l->agent_restarts % ARRAY_LEN(l->agent_ends_ns)];
    bool often = l->agent_restarts >= ARRAY_LEN(l->agent_ends_ns) && now - *oldest < AGENT_ENDS_WINDOW_S * NS_PER_S;
    *oldest = now;
    l->agent_restarts++;
    return often;
}

int local_wait(struct local *l)
{
    struct pollfd p = {.fd = signal_fd, .events = POLLIN};
    for (;; poll(&p, 1, -1)) { /* first look, then wait: a child may have ended while wait_ready took its signal */
        if (interrupted()) {
            local_stop(l);
            return CLI_OK;
        }
        int status = 0;
        if (reap(&l->coordinator, &status)) {
            char words[400];
            last_words(l->log_path, "racklm-coordinator", words, sizeof(words));
            fprintf(stderr, "racklm serve: the coordinator ended (%s %d)%s%s\n", WIFSIGNALED(status) ? "signal" : "exit code",
                    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), words[0] ? ": " : "", words);
            local_stop(l);
            return CLI_FAILED;
        }
        if (reap(&l->agent, &status)) {
            if (ends_too_often(l) || spawn_agent(l) != ERR_OK) {
                fprintf(stderr, "racklm serve: the node agent ended %u times; giving up\n", l->agent_restarts);
                local_stop(l);
                return CLI_FAILED;
            }
            fprintf(stderr, "racklm serve: the node agent ended; started again\n");
        }
    }
}
