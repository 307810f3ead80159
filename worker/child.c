#include "worker/child.h"

#include "base/check.h"
#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SPEC_FD = 3, LIFE_FD = 4, FIRST_CLOSED = 5, ARGS_MAX = 32 };

/* The flags of a child: the agent's own, resolved; and its environment, made before the fork. */
struct args {
    const char *argv[ARGS_MAX];
    unsigned n;
    char spec_fd[16], life_fd[16], visible[160];
    const char **envp; /* the strings are those of environ and of this structure */
};

static const char *const backends[] = {"auto", "cpu", "ref", "ref_f32", "cuda"}, *const comms[] = {"auto", "ucx", "nccl"},
                  *const levels[] = {"debug", "info", "warn", "error"}, *const formats[] = {"text", "json"};

static void put(struct args *a, const char *flag, const char *value)
{
    if (!value)
        return;
    ASSERT(a->n + 3 < ARGS_MAX);
    a->argv[a->n++] = flag;
    a->argv[a->n++] = value;
}

static void fill_args(const struct options *o, struct args *a)
{
    snprintf(a->spec_fd, sizeof(a->spec_fd), "%d", (int)SPEC_FD);
    snprintf(a->life_fd, sizeof(a->life_fd), "%d", (int)LIFE_FD);
    a->n = 0;
    a->argv[a->n++] = "racklm-worker";
    put(a, "--child", a->spec_fd);
    put(a, "--parent-fd", a->life_fd);
    put(a, "--key-file", o->key_file);
    put(a, "--backend", backends[o->backend]);
    put(a, "--comm", comms[o->comm]);
    put(a, "--comm-device", o->comm_device);
    put(a, "--log-level", levels[o->log_level]);
    put(a, "--log-format", formats[o->log_format]);
    a->argv[a->n] = NULL;
}

/* Ours, with CUDA told which GPU the worker has. Emulated GPUs are all there for everyone: the ordinal tells them apart. */
static enum err fill_env(const struct gpu_info *gpus, const struct inventory_device *d, struct args *a)
{
    static const char order[] = "CUDA_DEVICE_ORDER=", visible[] = "CUDA_VISIBLE_DEVICES=";
    size_t n = 0, out = 0;
    while (environ[n])
        n++;
    a->envp = calloc(n + 3, sizeof(*a->envp));
    if (!a->envp)
        return err_set(ERR_NOMEM, "an environment of %zu variables", n);
    bool narrow = d->kind == DEVICE_CUDA;
    for (size_t i = 0; i < n; i++)
        if (!narrow || (strncmp(environ[i], order, sizeof(order) - 1) != 0 && strncmp(environ[i], visible, sizeof(visible) - 1) != 0))
            a->envp[out++] = environ[i];
    if (narrow) {
        snprintf(a->visible, sizeof(a->visible), "%s%s", visible, gpus->gpus[d->gpu].uuid);
        a->envp[out++] = "CUDA_DEVICE_ORDER=PCI_BUS_ID";
        a->envp[out++] = a->visible;
    }
    return ERR_OK;
}

/* Between fork and exec, in a process that may have threads of ZeroMQ's behind it: only system calls. */
static _Noreturn void become_child(const struct args *a, pid_t parent, int spec_fd, int life_fd, const cpu_set_t *cpus)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(4);
    /* First out of the way of 0..4, then into place. */
    int spec = fcntl(spec_fd, F_DUPFD, FIRST_CLOSED + 2), life = fcntl(life_fd, F_DUPFD, FIRST_CLOSED + 2);
    int null = open("/dev/null", O_RDWR);
    if (spec < 0 || life < 0 || null < 0 || dup2(null, 0) < 0 || dup2(spec, SPEC_FD) < 0 || dup2(life, LIFE_FD) < 0)
        _exit(1);
    syscall(SYS_close_range, FIRST_CLOSED, ~0u, 0);
    sched_setaffinity(0, sizeof(*cpus), cpus); /* refused or not: it runs all the same */
    execve("/proc/self/exe", (char *const *)(uintptr_t)a->argv, (char *const *)(uintptr_t)a->envp);
    _exit(1);
}

enum err child_start(const struct options *o, const struct inventory *v, const struct inventory_device *d, const struct gpu_info *gpus,
                     const struct msg_start_worker *start, int life_fd, struct child *out)
{
    struct spec spec = {*start, d->memory_bytes, d->n_threads, d->own_core, d->kind, d->kind == DEVICE_EMULATED ? d->gpu : 0};
    struct args args;
    cpu_set_t cpus;
    *out = (struct child){.worker_id = start->worker_id, .pidfd = -1, .spec_fd = -1, .gpu = d->kind == DEVICE_CPU ? CHILD_NO_GPU : d->gpu, .started_ns = clock_ns()};
    TRY(fill_env(gpus, d, &args));
    enum err e = spec_write(&spec, &out->spec_fd);
    if (e != ERR_OK) {
        free(args.envp);
        return e;
    }
    fill_args(o, &args);
    CPU_ZERO(&cpus);
    for (uint32_t i = 0; i < d->n_cpus; i++)
        CPU_SET(v->cpus[d->first_cpu + i], &cpus);
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become_child(&args, parent, out->spec_fd, life_fd, &cpus);
    free(args.envp);
    if (pid > 0)
        out->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pid > 0 && out->pidfd >= 0) {
        fcntl(out->pidfd, F_SETFD, FD_CLOEXEC);
        out->pid = pid;
        return ERR_OK;
    }
    e = err_set(ERR_IO, "cannot start a worker: %s: %s", pid < 0 ? "fork" : "pidfd_open", strerror(errno));
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    close(out->spec_fd);
    return e;
}

void child_stop(struct child *c, uint64_t now_ns)
{
    if (c->kill_at_ns)
        return;
    c->kill_at_ns = now_ns + CHILD_KILL_MS * NS_PER_MS;
    kill(c->pid, SIGTERM);
    kill(c->pid, SIGCONT); /* one that was stopped hears it too */
}

void child_kill(struct child *c)
{
    kill(c->pid, SIGKILL);
}

void child_tick(struct child *c, uint64_t now_ns)
{
    if (c->kill_at_ns && now_ns >= c->kill_at_ns)
        child_kill(c);
}

bool child_reap(struct child *c, struct child_exit *out)
{
    int status;
    pid_t got = waitpid(c->pid, &status, WNOHANG);
    if (got == 0 || (got < 0 && errno == EINTR))
        return false;
    char left[SPEC_TEXT_MAX];
    spec_text(c->spec_fd, left, sizeof(left));
    if (got > 0 && WIFSIGNALED(status)) {
        out->status = -WTERMSIG(status);
        const char *name = sigabbrev_np(WTERMSIG(status));
        snprintf(out->text, sizeof(out->text), "killed by signal %d (SIG%s)%s%.400s", WTERMSIG(status), name ? name : "?",
                 left[0] ? ": " : "", left);
    } else {
        out->status = got > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        if (left[0])
            memcpy(out->text, left, sizeof(out->text));
        else
            snprintf(out->text, sizeof(out->text), out->status == 0 ? "stopped" : "exited with status %d", (int)out->status);
    }
    close(c->pidfd);
    close(c->spec_fd);
    c->pidfd = c->spec_fd = -1;
    return true;
}
