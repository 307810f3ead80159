/* proto/link: who gets in and who does not, strangers that talk garbage, links that break and come back, addresses.
 * Peers that misbehave on purpose are raw sockets or raw ZeroMQ here. Prints latencies, asserts none. Everything lives
 * in a new temporary directory. */
#include "proto/link.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <cmocka.h>

enum { ANY = 1 << KEY_ROLE_WORKER | 1 << KEY_ROLE_ADMIN | 1 << KEY_ROLE_VIEWER, PATIENCE_MS = 10000 };

static char root[64], state_dir[96], ipc[128];
static struct keys keys;
static struct link_context *server_context, *client_context;
static struct key_file worker_key, admin_key;
static struct arena arena;

static void ok_at(enum err e, int line)
{
    if (e != ERR_OK)
        fail_msg("line %d: %s: %s", line, err_name(e), err_detail());
}
#define OK(x) ok_at((x), __LINE__)

static int setup(void **state)
{
    char path[200];
    (void)state;
    strcpy(root, "/tmp/racklm-link-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    snprintf(state_dir, sizeof state_dir, "%s/state", root);
    snprintf(ipc, sizeof ipc, "ipc://%s/control", root);
    arena_init(&arena, 0);
    OK(keys_load_or_create(state_dir, &keys));
    OK(keys_path(state_dir, "local-worker", path, sizeof path));
    OK(keys_read_file(path, &worker_key));
    OK(keys_path(state_dir, "local-admin", path, sizeof path));
    OK(keys_read_file(path, &admin_key));
    OK(link_context_create(&keys, state_dir, &server_context));
    OK(link_context_create(NULL, NULL, &client_context));
    return 0;
}

static int teardown(void **state)
{
    char command[128];
    (void)state;
    link_context_destroy(&client_context);
    link_context_destroy(&server_context);
    keys_deinit(&keys);
    arena_deinit(&arena);
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

static struct msg heartbeat(uint64_t progress)
{
    return (struct msg){.type = MSG_HEARTBEAT, .heartbeat = {.progress = progress}};
}

/* Waits by poll on the link's descriptor, as an event loop does. */
static enum err server_wait(struct link_server *s, struct link_peer *from, struct msg *m, int timeout_ms)
{
    uint64_t end = clock_ns() + (uint64_t)timeout_ms * NS_PER_MS;
    for (;;) {
        arena_reset(&arena);
        enum err e = link_server_recv(s, &arena, from, m);
        if (e != ERR_UNAVAILABLE || clock_ns() > end)
            return e;
        struct pollfd p = {.fd = link_server_fd(s), .events = POLLIN};
        poll(&p, 1, (int)((end - MIN(end, clock_ns())) / NS_PER_MS) + 1);
    }
}

/* One message there and one back; the peer as the server saw it. */
static struct link_peer greet(struct link_server *s, struct link_client *c, uint64_t number)
{
    struct link_peer from;
    struct msg m = heartbeat(number);
    OK(link_client_send(c, &m));
    OK(server_wait(s, &from, &m, PATIENCE_MS));
    assert_int_equal(m.heartbeat.progress, number);
    m = heartbeat(number + 1);
    OK(link_server_send(s, &from, &m));
    OK(link_client_wait(c, &arena, PATIENCE_MS, &m));
    assert_int_equal(m.heartbeat.progress, number + 1);
    return from;
}

static struct key_file stranger(void)
{
    struct key_file k = {.role = KEY_ROLE_ADMIN, .name = "stranger"};
    assert_int_equal(zmq_curve_keypair(k.pub, k.secret), 0);
    strcpy(k.server_pub, keys.server.pub);
    return k;
}

/* --- who gets in --- */

static void a_known_key_talks_over_ipc_and_tcp_under_its_own_name(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *a, *b;
    struct stat st;
    OK(link_server_open(server_context, ipc, ANY, &s));
    OK(link_server_bind(s, "tcp://127.0.0.1:0"));
    assert_string_equal(link_server_endpoint(s), ipc);
    const char *tcp = link_server_endpoint_at(s, 1);
    assert_memory_equal(tcp, "tcp://127.0.0.1:", 16);
    assert_int_not_equal(atoi(tcp + 16), 0);
    assert_null(link_server_endpoint_at(s, 2));
    assert_int_equal(stat(ipc + 6, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    OK(link_client_open(client_context, ipc, &worker_key, &a));
    OK(link_client_open(client_context, tcp, &admin_key, &b));
    struct link_peer pa = greet(s, a, 10), pb = greet(s, b, 20);
    assert_string_equal(pa.name, "local-worker");
    assert_int_equal(pa.role, KEY_ROLE_WORKER);
    assert_string_equal(pb.name, "local-admin");
    assert_int_equal(pb.role, KEY_ROLE_ADMIN);
    assert_true(pa.id_len != pb.id_len || memcmp(pa.id, pb.id, pa.id_len) != 0);
    link_client_close(&a);
    link_client_close(&b);
    link_server_close(&s);
    assert_int_equal(access(ipc + 6, F_OK), -1); /* nothing is left behind */
}

static void an_unknown_key_is_refused_while_a_good_client_works(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *good, *bad;
    struct key_file k = stranger();
    struct link_peer from;
    struct msg m = heartbeat(1);
    uint64_t before = link_refused(server_context);
    OK(link_server_open(server_context, "tcp://127.0.0.1:0", ANY, &s));
    OK(link_client_open(client_context, link_server_endpoint(s), &worker_key, &good));
    greet(s, good, 1);
    OK(link_client_open(client_context, link_server_endpoint(s), &k, &bad));
    OK(link_client_send(bad, &m));
    assert_int_equal(link_client_wait(bad, &arena, PATIENCE_MS, &m), ERR_AUTH);
    assert_non_null(strstr(err_detail(), "stranger"));
    assert_int_equal(link_refused(server_context), before + 1);
    assert_int_equal(link_server_recv(s, &arena, &from, &m), ERR_UNAVAILABLE); /* its message went nowhere */
    m = heartbeat(1);
    assert_int_equal(link_client_send(bad, &m), ERR_AUTH);
    assert_int_equal(link_client_recv(bad, &arena, &m), ERR_AUTH);
    greet(s, good, 3);
    link_client_close(&bad);
    link_client_close(&good);
    link_server_close(&s);
}

static void a_key_without_the_role_is_refused(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *w, *a;
    struct msg m = heartbeat(1);
    OK(link_server_open(server_context, ipc, 1 << KEY_ROLE_ADMIN, &s));
    OK(link_client_open(client_context, ipc, &worker_key, &w));
    OK(link_client_open(client_context, ipc, &admin_key, &a));
    OK(link_client_send(w, &m));
    assert_int_equal(link_client_wait(w, &arena, PATIENCE_MS, &m), ERR_AUTH);
    greet(s, a, 5);
    link_client_close(&w);
    link_client_close(&a);
    link_server_close(&s);
}

static void a_server_that_is_not_the_coordinator_hears_nothing(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *c;
    struct link_peer from;
    struct msg m = heartbeat(1);
    struct key_file k = worker_key, other = stranger();
    strcpy(k.server_pub, other.pub);
    OK(link_server_open(server_context, ipc, ANY, &s));
    OK(link_client_open(client_context, ipc, &k, &c));
    OK(link_client_send(c, &m));
    assert_int_equal(link_client_wait(c, &arena, 500, &m), ERR_TIMEOUT);
    assert_int_equal(link_server_recv(s, &arena, &from, &m), ERR_UNAVAILABLE);
    link_client_close(&c);
    link_server_close(&s);
}

static void a_peer_without_curve_hears_nothing(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_peer from;
    struct msg m;
    void *context = zmq_ctx_new(), *plain = zmq_socket(context, ZMQ_DEALER);
    int zero = 0;
    char reply[8];
    OK(link_server_open(server_context, "tcp://127.0.0.1:0", ANY, &s));
    zmq_setsockopt(plain, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_connect(plain, link_server_endpoint(s)), 0);
    zmq_send(plain, "\x3a\x00", 2, ZMQ_DONTWAIT);
    assert_int_equal(server_wait(s, &from, &m, 500), ERR_UNAVAILABLE);
    assert_int_equal(zmq_recv(plain, reply, sizeof reply, ZMQ_DONTWAIT), -1);
    zmq_close(plain);
    zmq_ctx_term(context);
    link_server_close(&s);
}

static void a_key_added_at_run_time_gets_in(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *c, *viewer;
    struct key_file late;
    char path[256];
    OK(link_server_open(server_context, ipc, ANY, &s));
    OK(link_client_open(client_context, ipc, &worker_key, &c));
    greet(s, c, 1); /* the list has been read once */
    OK(keys_add(state_dir, "late", KEY_ROLE_VIEWER, path, sizeof path));
    OK(keys_read_file(path, &late));
    OK(link_client_open(client_context, ipc, &late, &viewer));
    struct link_peer p = greet(s, viewer, 3);
    assert_string_equal(p.name, "late");
    assert_int_equal(p.role, KEY_ROLE_VIEWER);
    link_client_close(&viewer);
    link_client_close(&c);
    link_server_close(&s);
}

static void an_open_allow_list_lets_nobody_in_until_it_is_closed(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *c;
    struct msg m = heartbeat(1);
    char path[200];
    snprintf(path, sizeof path, "%s/keys/allowed", state_dir);
    OK(link_server_open(server_context, ipc, ANY, &s));
    chmod(path, 0644);
    OK(link_client_open(client_context, ipc, &worker_key, &c));
    OK(link_client_send(c, &m));
    assert_int_equal(link_client_wait(c, &arena, 500, &m), ERR_TIMEOUT); /* temporary: it keeps trying */
    assert_true(link_refused(server_context) > 0);
    chmod(path, 0600);
    struct link_peer from;
    OK(server_wait(s, &from, &m, PATIENCE_MS));
    link_client_close(&c);
    link_server_close(&s);
}

/* --- strangers that talk garbage --- */

static int tcp_connect(const char *endpoint)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1))};
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) != 0)
        fail_msg("connect: %s", strerror(errno));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void two_hundred_junk_connections_do_not_stall_a_good_one(void **state)
{
    (void)state;
    enum { N = 200 };
    static const char greeting[] = "\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01"
                                   "CURVE"; /* a good beginning (ZMTP 3.1) */
    struct link_server *s;
    struct link_client *c, *late;
    int fd[N];
    uint64_t state64 = 7, worst = 0;
    char junk[512];
    OK(link_server_open(server_context, "tcp://127.0.0.1:0", ANY, &s));
    OK(link_client_open(client_context, link_server_endpoint(s), &worker_key, &c));
    greet(s, c, 1);
    for (int round = 0; round < 15; round++) {
        for (int i = 0; i < N; i++) {
            if (round == 0)
                fd[i] = tcp_connect(link_server_endpoint(s));
            for (size_t k = 0; k < sizeof junk; k++)
                junk[k] = (char)((state64 = state64 * 6364136223846793005ull + 1442695040888963407ull) >> 56);
            if (round == 5) { /* new ones all the time */
                close(fd[i]);
                fd[i] = tcp_connect(link_server_endpoint(s));
            }
            if (i % 4 == 0 && round % 5 == 0)
                send(fd[i], greeting, sizeof greeting, MSG_NOSIGNAL);
            if (i % 4 == 1 && round % 5 == 0)
                send(fd[i], "\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL\0\0\0\0", 20, MSG_NOSIGNAL);
            if (i % 4 != 3) /* one in four says nothing */
                send(fd[i], junk, sizeof junk, MSG_NOSIGNAL);
        }
        uint64_t t = clock_ns();
        greet(s, c, (uint64_t)round * 2);
        worst = MAX(worst, clock_ns() - t);
    }
    uint64_t t = clock_ns();
    OK(link_client_open(client_context, link_server_endpoint(s), &admin_key, &late));
    greet(s, late, 1);
    print_message("among %d junk connections: worst round trip %.2f ms, a new good client in %.2f ms\n", (int)N,
                  (double)worst / 1e6, (double)(clock_ns() - t) / 1e6);
    /* A silent stranger is shown out when the handshake's time is over. */
    struct pollfd p = {.fd = fd[3], .events = POLLIN};
    while (poll(&p, 1, PATIENCE_MS) == 1 && recv(fd[3], junk, sizeof junk, 0) > 0)
        ;
    assert_int_equal(recv(fd[3], junk, sizeof junk, 0), 0);
    for (int i = 0; i < N; i++)
        close(fd[i]);
    greet(s, late, 1);
    link_client_close(&late);
    link_client_close(&c);
    link_server_close(&s);
}

/* A raw DEALER with a good key. */
static void *raw_peer(void *context, const char *endpoint, const struct key_file *k, const char *id)
{
    int zero = 0;
    void *sock = zmq_socket(context, ZMQ_DEALER);
    zmq_setsockopt(sock, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(sock, ZMQ_CURVE_SERVERKEY, k->server_pub, 40);
    zmq_setsockopt(sock, ZMQ_CURVE_PUBLICKEY, k->pub, 40);
    zmq_setsockopt(sock, ZMQ_CURVE_SECRETKEY, k->secret, 40);
    if (id)
        zmq_setsockopt(sock, ZMQ_ROUTING_ID, id, strlen(id));
    assert_int_equal(zmq_connect(sock, endpoint), 0);
    return sock;
}

static void messages_of_the_wrong_shape_are_dropped_one_by_one(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_peer from;
    struct msg m;
    void *context = zmq_ctx_new();
    OK(link_server_open(server_context, ipc, ANY, &s));
    void *raw = raw_peer(context, ipc, &worker_key, NULL);
    for (int i = 0; i < 5; i++) /* many frames, the first one good */
        zmq_send(raw, "\x3a\x00", 2, ZMQ_SNDMORE);
    zmq_send(raw, "", 0, 0);
    assert_int_equal(server_wait(s, &from, &m, PATIENCE_MS), ERR_PROTOCOL);
    assert_string_equal(from.name, "local-worker");
    zmq_send(raw, "garbage", 7, 0);
    assert_int_equal(server_wait(s, &from, &m, PATIENCE_MS), ERR_PROTOCOL);
    zmq_send(raw, "", 0, 0);
    assert_int_equal(server_wait(s, &from, &m, PATIENCE_MS), ERR_PROTOCOL);
    zmq_send(raw, "\x3a\x02\x08\x07", 4, 0);
    OK(server_wait(s, &from, &m, PATIENCE_MS));
    assert_int_equal(m.heartbeat.progress, 7);
    zmq_close(raw);
    zmq_ctx_term(context);
    link_server_close(&s);
}

static void nobody_takes_over_the_routing_id_of_another(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_peer victim, other;
    struct msg m;
    char reply[64];
    void *context = zmq_ctx_new();
    OK(link_server_open(server_context, ipc, ANY, &s));
    void *first = raw_peer(context, ipc, &worker_key, "me");
    zmq_send(first, "\x3a\x00", 2, 0);
    OK(server_wait(s, &victim, &m, PATIENCE_MS));
    void *thief = raw_peer(context, ipc, &admin_key, "me");
    zmq_send(thief, "\x3a\x00", 2, 0);
    if (server_wait(s, &other, &m, 500) == ERR_OK) /* were it let in, then under its own name */
        assert_string_equal(other.name, "local-admin");
    m = heartbeat(9);
    OK(link_server_send(s, &victim, &m));
    zmq_pollitem_t p[2] = {{.socket = first, .events = ZMQ_POLLIN}, {.socket = thief, .events = ZMQ_POLLIN}};
    assert_int_equal(zmq_poll(p, 2, PATIENCE_MS), 1);
    assert_int_equal(zmq_recv(first, reply, sizeof reply, ZMQ_DONTWAIT), 4);
    assert_int_equal(zmq_recv(thief, reply, sizeof reply, ZMQ_DONTWAIT), -1);
    zmq_close(first);
    zmq_close(thief);
    zmq_ctx_term(context);
    link_server_close(&s);
}

/* --- links that break, queues that fill --- */

static void a_peer_that_left_is_lost_and_one_that_returns_is_new(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *c;
    struct msg m = heartbeat(1);
    enum err e = ERR_OK;
    OK(link_server_open(server_context, ipc, ANY, &s));
    OK(link_client_open(client_context, ipc, &worker_key, &c));
    struct link_peer old = greet(s, c, 1);
    link_client_close(&c);
    for (uint64_t end = clock_ns() + 5 * NS_PER_S; e != ERR_PEER_LOST && clock_ns() < end; usleep(1000))
        e = link_server_send(s, &old, &m);
    assert_int_equal(e, ERR_PEER_LOST);
    OK(link_client_open(client_context, ipc, &worker_key, &c));
    struct link_peer new = greet(s, c, 3);
    assert_memory_not_equal(old.id, new.id, old.id_len);
    assert_int_equal(link_server_send(s, &old, &m), ERR_PEER_LOST);
    link_client_close(&c);
    link_server_close(&s);
}

static void a_client_survives_its_server(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *c;
    struct msg m = heartbeat(1);
    OK(link_client_open(client_context, ipc, &worker_key, &c)); /* before there is a server */
    assert_int_equal(link_client_wait(c, &arena, 50, &m), ERR_TIMEOUT);
    for (int life = 0; life < 3; life++) {
        OK(link_server_open(server_context, ipc, ANY, &s));
        uint64_t t = clock_ns();
        greet(s, c, (uint64_t)life);
        print_message("connected again after %.0f ms\n", (double)(clock_ns() - t) / 1e6);
        link_server_close(&s);
        usleep(100 * 1000); /* ZeroMQ's thread notices */
    }
    link_client_close(&c);
}

static void a_full_queue_is_busy_and_loses_nothing(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *c;
    struct link_peer from;
    struct msg m;
    uint64_t n = 0;
    enum err e;
    OK(link_client_open(client_context, ipc, &worker_key, &c)); /* nobody there: the queue fills */
    do {
        m = heartbeat(n);
        e = link_client_send(c, &m);
        n += e == ERR_OK;
    } while (e == ERR_OK && n < 100000);
    assert_int_equal(e, ERR_BUSY);
    assert_true(n >= 100);
    OK(link_server_open(server_context, ipc, ANY, &s));
    for (uint64_t i = 0; i < n; i++) {
        OK(server_wait(s, &from, &m, PATIENCE_MS));
        assert_int_equal(m.heartbeat.progress, i);
    }
    /* The other way: a client that never reads. */
    n = 0;
    m = heartbeat(0);
    do
        e = link_server_send(s, &from, &m);
    while (e == ERR_OK && ++n < 1000000);
    assert_int_equal(e, ERR_BUSY);
    link_client_close(&c);
    link_server_close(&s);
}

static void the_last_word_before_closing_arrives(void **state)
{
    (void)state;
    struct link_server *s;
    struct link_client *c;
    struct link_peer from;
    struct msg m;
    OK(link_server_open(server_context, ipc, ANY, &s));
    OK(link_client_open(client_context, ipc, &worker_key, &c));
    greet(s, c, 1);
    m = heartbeat(77);
    OK(link_client_send(c, &m));
    link_client_close(&c);
    OK(server_wait(s, &from, &m, PATIENCE_MS));
    assert_int_equal(m.heartbeat.progress, 77);
    link_server_close(&s);
}

/* --- addresses --- */

static void addresses_in_use_and_addresses_that_are_none(void **state)
{
    (void)state;
    struct link_server *s, *t = NULL;
    struct link_client *c;
    char text[400];
    OK(link_server_open(server_context, ipc, ANY, &s));
    OK(link_server_bind(s, "tcp://127.0.0.1:*"));
    assert_int_equal(link_server_open(server_context, ipc, ANY, &t), ERR_ADDR_IN_USE);
    assert_int_equal(link_server_open(server_context, link_server_endpoint_at(s, 1), ANY, &t), ERR_ADDR_IN_USE);
    OK(link_client_open(client_context, ipc, &worker_key, &c));
    greet(s, c, 1); /* the attempts did no harm to the living */
    link_client_close(&c);
    static const char *const bad[] = {"",
                                      "tcp://",
                                      "tcp://127.0.0.1",
                                      "tcp://127.0.0.1:99999",
                                      "tcp://no.such.interface:1",
                                      "udp://127.0.0.1:1",
                                      "inproc://x",
                                      "ipc://relative",
                                      "ipc://*",
                                      "ipc://@abstract"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        enum err e = link_server_open(server_context, bad[i], ANY, &t);
        if (e != ERR_INVALID || !err_detail()[0])
            fail_msg("'%s': %s", bad[i], err_name(e));
        assert_null(t);
    }
    snprintf(text, sizeof text, "ipc://%s/%0*d", root, 107 - (int)strlen(root), 0);
    assert_int_equal(strlen(text), 6 + 108);
    assert_int_equal(link_server_open(server_context, text, ANY, &t), ERR_INVALID);
    assert_non_null(strstr(err_detail(), "107"));
    assert_int_equal(link_client_open(client_context, text, &worker_key, &c), ERR_INVALID);
    text[6 + 107] = '\0';
    OK(link_server_open(server_context, text, ANY, &t)); /* the longest that fits */
    link_server_close(&t);
    snprintf(text, sizeof text, "ipc://%s/none/control", root);
    assert_int_equal(link_server_open(server_context, text, ANY, &t), ERR_NOT_FOUND);
    snprintf(text, sizeof text, "ipc://%s/file", root);
    close(open(text + 6, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(link_server_open(server_context, text, ANY, &t), ERR_ADDR_IN_USE);
    assert_int_equal(access(text + 6, F_OK), 0); /* and it is still there */
    assert_int_equal(link_client_open(client_context, "nonsense", &worker_key, &c), ERR_INVALID);
    assert_int_equal(link_client_open(client_context, "tcp://127.0.0.1:0", &worker_key, &c), ERR_INVALID);
    assert_int_equal(link_client_open(client_context, "tcp://127.0.0.1:70000", &worker_key, &c), ERR_INVALID);
    assert_int_equal(link_client_open(client_context, ipc, &keys.server, &c), ERR_INVALID);
    link_server_close(&s);
}

/* A process that dies by SIGKILL leaves its socket behind: while it lives the path is taken, afterwards it is free. */
static void the_socket_of_a_dead_process_is_replaced(void **state)
{
    (void)state;
    struct link_context *context;
    struct link_server *s;
    int up[2];
    char byte = 0;
    strcpy(root, "/tmp/racklm-link-XXXXXX");
    assert_non_null(mkdtemp(root));
    snprintf(state_dir, sizeof state_dir, "%s/state", root);
    snprintf(ipc, sizeof ipc, "ipc://%s/control", root);
    OK(keys_load_or_create(state_dir, &keys));
    assert_int_equal(pipe(up), 0);
    pid_t pid = fork(); /* before this process has a context: ZeroMQ does not survive fork */
    if (pid == 0) {
        byte = link_context_create(&keys, state_dir, &context) == ERR_OK &&
               link_server_open(context, ipc, ANY, &s) == ERR_OK;
        if (write(up[1], &byte, 1) != 1)
            _exit(1);
        pause();
        _exit(0);
    }
    assert_int_equal(read(up[0], &byte, 1), 1);
    assert_int_equal(byte, 1);
    OK(link_context_create(&keys, state_dir, &context));
    assert_int_equal(link_server_open(context, ipc, ANY, &s), ERR_ADDR_IN_USE);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(access(ipc + 6, F_OK), 0);
    OK(link_server_open(context, ipc, ANY, &s));
    link_server_close(&s);
    /* A stale socket without our lock (another program's, or from before a crash of the file system). */
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    memcpy(a.sun_path, ipc + 6, MIN(sizeof a.sun_path, strlen(ipc + 6) + 1));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(link_server_open(context, ipc, ANY, &s), ERR_ADDR_IN_USE);
    close(fd);
    OK(link_server_open(context, ipc, ANY, &s));
    link_server_close(&s);
    link_context_destroy(&context);
    keys_deinit(&keys);
    close(up[0]);
    close(up[1]);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    assert_int_equal(system(command), 0);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void latency_is_printed(void **state)
{
    (void)state;
    enum { N = 500 };
    static uint64_t ns[N];
    struct link_server *s;
    struct link_client *c[2];
    OK(link_server_open(server_context, ipc, ANY, &s));
    OK(link_server_bind(s, "tcp://127.0.0.1:0"));
    for (unsigned i = 0; i < 2; i++) {
        uint64_t t = clock_ns();
        OK(link_client_open(client_context, link_server_endpoint_at(s, i), &worker_key, &c[i]));
        greet(s, c[i], 0);
        uint64_t connected = clock_ns() - t;
        for (unsigned k = 0; k < N; k++) {
            t = clock_ns();
            greet(s, c[i], k);
            ns[k] = clock_ns() - t;
        }
        qsort(ns, N, sizeof *ns, by_value);
        print_message("%s: connect %.2f ms, round trip p50 %.0f us, p99 %.0f us\n", i ? "tcp" : "ipc",
                      (double)connected / 1e6, (double)ns[N / 2] / 1e3, (double)ns[N * 99 / 100] / 1e3);
        link_client_close(&c[i]);
    }
    link_server_close(&s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    log_init("test", LOG_ERROR, LOG_TEXT);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_socket_of_a_dead_process_is_replaced), /* first: it forks */
        TEST(a_known_key_talks_over_ipc_and_tcp_under_its_own_name),
        TEST(an_unknown_key_is_refused_while_a_good_client_works),
        TEST(a_key_without_the_role_is_refused),
        TEST(a_server_that_is_not_the_coordinator_hears_nothing),
        TEST(a_peer_without_curve_hears_nothing),
        TEST(a_key_added_at_run_time_gets_in),
        TEST(an_open_allow_list_lets_nobody_in_until_it_is_closed),
        TEST(two_hundred_junk_connections_do_not_stall_a_good_one),
        TEST(messages_of_the_wrong_shape_are_dropped_one_by_one),
        TEST(nobody_takes_over_the_routing_id_of_another),
        TEST(a_peer_that_left_is_lost_and_one_that_returns_is_new),
        TEST(a_client_survives_its_server),
        TEST(a_full_queue_is_busy_and_loses_nothing),
        TEST(the_last_word_before_closing_arrives),
        TEST(addresses_in_use_and_addresses_that_are_none),
        TEST(latency_is_printed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
