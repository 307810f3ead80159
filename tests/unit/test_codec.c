/* proto/codec: round trips of random messages, caps, truncation, mutation, memory. The wire itself is checked against
 * bytes written by hand from the format's specification (protobuf.dev/programming-guides/encoding). The seed is
 * printed; CODEC_SEED sets it. */
#include "msg_random.h"

#include "base/clock.h"
#include "proto/codec.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t seed = 1;

/* --- a small writer of the wire format, for messages that the encoder refuses to make --- */

static void put_varint(struct buf *b, uint64_t v)
{
    for (; v > 0x7f; v >>= 7)
        buf_putc(b, (char)(v | 0x80));
    buf_putc(b, (char)v);
}
static void put_bytes(struct buf *b, unsigned field, const void *p, size_t len)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, len);
    if (len)
        buf_append(b, p, len);
}
static void put_number(struct buf *b, unsigned field, uint64_t v)
{
    put_varint(b, field << 3);
    put_varint(b, v);
}
static void put_packed(struct buf *b, unsigned field, size_t n, uint8_t each)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, n);
    assert_true(buf_reserve(b, n));
    memset(b->data + b->len, each, n);
    b->len += n;
}
/* body, wrapped as field `number` of Msg. */
static enum err decode_body(unsigned number, const struct buf *body, struct arena *a, struct msg *out)
{
    struct buf top;
    buf_init(&top);
    put_bytes(&top, number, body->data, body->len);
    assert_false(top.failed);
    enum err e = codec_decode(top.data, top.len, a, out);
    buf_deinit(&top);
    return e;
}

/* --- tests --- */

static void every_message_survives_a_round_trip(void **state)
{
    (void)state;
    struct arena in, out;
    struct buf wire;
    arena_init(&in, 0);
    arena_init(&out, 0);
    buf_init(&wire);
    for (unsigned round = 0; round < 60; round++) {
        for (unsigned t = 0; t < MSG_TYPE_COUNT; t++) {
            struct msg_random r = {seed + round * 1000 + t, &in, round % 3 ? 8 : 300, round % 20 ? 40 : MSG_STR_MAX};
            struct msg m, back;
            arena_reset(&in);
            arena_reset(&out);
            buf_clear(&wire);
            msg_random_fill(&r, (enum msg_type)t, &m);
            enum err e = codec_encode(&m, &wire);
            if (e == ERR_OK)
                e = codec_decode(wire.data, wire.len, &out, &back);
            if (e != ERR_OK)
                fail_msg("type %u round %u: %s %s", t, round, err_name(e), err_detail());
            const char *d = msg_random_diff(&m, &back);
            if (d)
                fail_msg("type %u round %u: %s differs", t, round, d);
        }
    }
    buf_deinit(&wire);
    arena_deinit(&in);
    arena_deinit(&out);
}

static void the_wire_is_protobuf(void **state)
{
    (void)state;
    /* Heartbeat is field 7 of Msg; "08 96 01" for 150 in field 1 is the specification's own example. 300 is "ac 02"
     * there. */
    static const uint8_t expected[] = {0x3a, 0x06, 0x08, 0x96, 0x01, 0x10, 0xac, 0x02};
    /* "12 07 testing" is the specification's example of a string in field 2; Refuse is field 3 of Msg. */
    static const uint8_t refuse[] = {0x1a, 0x09, 0x12, 0x07, 't', 'e', 's', 't', 'i', 'n', 'g'};
    struct msg m = {.type = MSG_HEARTBEAT, .heartbeat = {150, 300, 0}};
    struct buf wire;
    struct arena a;
    arena_init(&a, 0);
    buf_init(&wire);
    assert_int_equal(codec_encode(&m, &wire), ERR_OK);
    assert_int_equal(wire.len, sizeof expected);
    assert_memory_equal(wire.data, expected, sizeof expected);
    assert_int_equal(codec_decode(refuse, sizeof refuse, &a, &m), ERR_OK);
    assert_int_equal(m.type, MSG_REFUSE);
    assert_string_equal(m.refuse.text, "testing");
    buf_deinit(&wire);
    arena_deinit(&a);
}

/* One row a cap: the body's number in Msg, the path of fields to the list (0 ends), how an entry looks, how many are
 * allowed. */
enum entry { PACKED, EMPTY, ONE_BLOB };
static const struct cap {
    const char *what;
    unsigned msg, outer, field;
    enum entry entry;
    size_t max;
} caps[] = {
    {"hello.role", 1, 0, 3, ONE_BLOB, 4096},
    {"hello.devices", 1, 0, 8, EMPTY, 256},
    {"device.name", 1, 8, 1, ONE_BLOB, 4096},
    {"start_worker.model_path", 4, 0, 3, ONE_BLOB, 4096},
    {"start_worker.share", 4, 0, 11, PACKED, 1024},
    {"start_worker.layer_first", 4, 0, 12, PACKED, 1025},
    {"worker_exited.text", 6, 0, 4, ONE_BLOB, 4096},
    {"worker_ready.address", 9, 0, 9, ONE_BLOB, 4096},
    {"comm_peers.address (entries)", 10, 0, 2, EMPTY, 1024},
    {"comm_peers.address (bytes)", 10, 0, 2, ONE_BLOB, 4096},
    {"step.slot", 15, 0, 3, PACKED, 4096},
    {"step.gen", 15, 0, 4, PACKED, 4096},
    {"step.start", 15, 0, 5, PACKED, 4096},
    {"step.n_tokens", 15, 0, 6, PACKED, 4096},
    {"step.want", 15, 0, 7, PACKED, 4096},
    {"step.n_blocks", 15, 0, 8, PACKED, 4096},
    {"step.tokens", 15, 0, 9, PACKED, 1 << 20},
    {"step.blocks", 15, 0, 10, PACKED, 1 << 20},
    {"step.setups", 15, 0, 11, EMPTY, 4096},
    {"step.freed", 15, 0, 12, PACKED, 4096},
    {"slot_setup.history", 15, 11, 15, PACKED, 1 << 20},
    {"slot_setup.stop", 15, 11, 16, PACKED, 128},
    {"slot_setup.bias_id", 15, 11, 17, PACKED, 1024},
    {"slot_setup.allowed", 15, 11, 43, PACKED, 1 << 18},
    {"slot_setup.bad_id", 15, 11, 44, PACKED, 4096},
    {"slot_setup.bad_len", 15, 11, 45, PACKED, 4096},
    {"slot_setup.dry_id", 15, 11, 46, PACKED, 1 << 16},
    {"slot_setup.dry_len", 15, 11, 47, PACKED, 1 << 16},
    {"slot_setup.target", 15, 11, 34, PACKED, 16},
    {"step_result.slot", 16, 0, 3, PACKED, 4096},
    {"step_result.token", 16, 0, 5, PACKED, 4096},
    {"step_result.n_positions", 16, 0, 6, PACKED, 4096},
    {"step_result.n_top", 16, 0, 8, PACKED, (1 << 20) + 4096},
    {"step_result.top_id", 16, 0, 9, PACKED, 8 << 20},
    {"step_result.mu_run", 16, 0, 14, PACKED, 4096},
    {"admin_reply.text", 18, 0, 3, ONE_BLOB, 4096},
    {"admin_reply.replicas", 18, 0, 11, EMPTY, 1024},
    {"admin_reply.workers", 18, 0, 12, EMPTY, 1024},
    {"admin_reply.nodes", 18, 0, 13, EMPTY, 1024},
    {"node.devices", 18, 13, 8, EMPTY, 256},
    {"device.uuid", 1, 8, 7, ONE_BLOB, 4096},
    {"device.path", 1, 8, 19, PACKED, 256},
    {"device.nvlinks", 1, 8, 20, PACKED, 256},
    {"heartbeat.device", 7, 0, 4, PACKED, 256},
    {"heartbeat.memory_free_bytes", 7, 0, 9, PACKED, 256},
};

static enum err decode_with(const struct cap *c, size_t n, struct arena *a)
{
    struct buf body, outer;
    struct msg m;
    buf_init(&body);
    buf_init(&outer);
    if (c->entry == EMPTY)
        for (size_t i = 0; i < n; i++)
            put_bytes(&body, c->field, "", 0);
    else
        put_packed(&body, c->field, n, 1); /* as text: bytes 0x01 */
    if (c->outer)
        put_bytes(&outer, c->outer, body.data, body.len);
    enum err e = decode_body(c->msg, c->outer ? &outer : &body, a, &m);
    buf_deinit(&body);
    buf_deinit(&outer);
    return e;
}

static void every_cap_is_kept(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++) {
        struct arena a;
        arena_init(&a, 0);
        enum err at = decode_with(&caps[i], caps[i].max, &a);
        if (at == ERR_TOO_BIG || at == ERR_NOMEM) /* other rules may refuse this lonely field, the cap must not */
            fail_msg("%s: %zu refused: %s", caps[i].what, caps[i].max, err_detail());
        arena_deinit(&a);
        arena_init(&a, 0);
        enum err over = decode_with(&caps[i], caps[i].max + 1, &a);
        if (over != ERR_TOO_BIG)
            fail_msg("%s: %zu gave %s", caps[i].what, caps[i].max + 1, err_name(over));
        if (a.total != 0)
            fail_msg("%s: %zu bytes allocated before the cap was seen", caps[i].what, a.total);
        arena_deinit(&a);
    }
}

static void the_encoder_keeps_the_caps_too(void **state)
{
    (void)state;
    static char text[MSG_STR_MAX + 2];
    static uint32_t many[MSG_RUNS_MAX + 1];
    struct buf wire;
    buf_init(&wire);
    memset(text, 'x', sizeof text - 1);
    struct msg m = {.type = MSG_REFUSE, .refuse = {.text = text}};
    assert_int_equal(codec_encode(&m, &wire), ERR_TOO_BIG);
    text[MSG_STR_MAX] = '\0';
    assert_int_equal(codec_encode(&m, &wire), ERR_OK);
    m = (struct msg){.type = MSG_STEP, .step = {.n_freed = MSG_RUNS_MAX + 1, .freed = many}};
    assert_int_equal(codec_encode(&m, &wire), ERR_TOO_BIG);
    m.step.n_freed--;
    assert_int_equal(codec_encode(&m, &wire), ERR_OK);
    m.type = MSG_TYPE_COUNT;
    assert_int_equal(codec_encode(&m, &wire), ERR_PROTOCOL);
    buf_deinit(&wire);
}

static void empty_inner_messages_cannot_blow_memory_up(void **state)
{
    (void)state;
    struct buf body, node;
    struct arena a;
    struct msg m;
    arena_init(&a, 0);
    buf_init(&body);
    buf_init(&node);
    for (size_t i = 0; i < 1 << 20; i++) /* 2 MiB of empty set-ups: refused by their count */
        put_bytes(&body, 11, "", 0);
    assert_int_equal(decode_body(15, &body, &a, &m), ERR_TOO_BIG);
    assert_int_equal(a.total, 0);
    buf_clear(&body);
    for (size_t i = 0; i < 256; i++) /* within every cap, 262,144 devices in half a MiB: refused by the budget */
        put_bytes(&node, 8, "", 0);
    for (size_t i = 0; i < 1024; i++)
        put_bytes(&body, 13, node.data, node.len);
    assert_int_equal(decode_body(18, &body, &a, &m), ERR_TOO_BIG);
    assert_true(a.total < 32u << 20);
    arena_deinit(&a);
    arena_init(&a, 1 << 16); /* the caller's own limit */
    buf_clear(&body);
    put_packed(&body, 12, 4096, 1);
    for (size_t i = 0; i < 4096; i++)
        put_bytes(&body, 11, "", 0);
    assert_int_equal(decode_body(15, &body, &a, &m), ERR_NOMEM);
    buf_deinit(&body);
    buf_deinit(&node);
    arena_deinit(&a);
}

/* A valid step of two runs; each test breaks one thing. */
static struct msg small_step(void)
{
    static uint32_t slot[2] = {0, 1}, gen[2] = {1, 1}, start[2] = {0, 5}, n_tokens[2] = {2, 1}, want[2] = {0, 1},
                    n_blocks[2] = {1, 0};
    static uint32_t tokens[3] = {4, 5, STEP_TOKEN_SAMPLED}, blocks[1] = {9};
    return (struct msg){.type = MSG_STEP,
                        .step = {.n_runs = 2,
                                 .slot = slot,
                                 .gen = gen,
                                 .start = start,
                                 .n_tokens = n_tokens,
                                 .want = want,
                                 .n_blocks = n_blocks,
                                 .n_all_tokens = 3,
                                 .tokens = tokens,
                                 .n_all_blocks = 1,
                                 .blocks = blocks}};
}

static void expect_refused(const struct msg *m, enum err want, const char *field)
{
    struct buf wire;
    buf_init(&wire);
    enum err e = codec_encode(m, &wire);
    if (e != want || !strstr(err_detail(), field))
        fail_msg("%s: %s \"%s\"", field, err_name(e), err_detail());
    buf_deinit(&wire);
}

/* Fields of a message from number `from` on, each time one stands there. */
static unsigned count_fields(const uint8_t *p, size_t len, unsigned from)
{
    unsigned n = 0;
    for (size_t at = 0; at < len;) {
        uint64_t v[2];
        for (int k = 0; k < 2; k++) {
            unsigned shift = 0;
            for (v[k] = 0; p[at] & 0x80; shift += 7)
                v[k] |= (uint64_t)(p[at++] & 0x7f) << shift;
            v[k] |= (uint64_t)p[at++] << shift;
        }
        at += (v[0] & 7) == 2 ? v[1] : 0; /* no fixed-width field here */
        n += (v[0] >> 3) >= from;
    }
    return n;
}

/* A decoder without the fields of GPUs (numbers from 7 on in Device, 9 in Hello, 4 in Heartbeat) skips 16 unknown ones of a message and no more. */
static void gpus_can_be_told_to_a_peer_that_does_not_know_them(void **state)
{
    (void)state;
    uint32_t all[256];
    uint64_t wide[256];
    for (uint32_t i = 0; i < 256; i++)
        wide[i] = all[i] = 300 + i;
    struct msg_device d = {"cuda:0", "cuda", "G", 1, 1, 1, "u", "b", 90, 1, 1, 1, 1, 1, 1, true, "w", 1, all, all, 256};
    struct msg hello = {.type = MSG_HELLO, .hello = {.role = "agent", .devices = &d, .n_devices = 1, .gpu_driver = "5", .cuda_version = 1, .gpu_note = "n"}};
    struct msg beat = {.type = MSG_HEARTBEAT, .heartbeat = {1, 1, 1, all, all, all, all, all, wide, all, 256, "w"}};
    struct buf b;
    buf_init(&b);
    assert_int_equal(codec_encode(&hello, &b), ERR_OK);
    /* The one body, in it role (5 + 2 bytes), then Device with its length in two bytes. */
    const uint8_t *body = (const uint8_t *)b.data + 3, *device = body + 7 + 3;
    size_t body_len = b.len - 3, device_len = (device[-2] & 0x7f) | (size_t)device[-1] << 7;
    assert_int_equal(device[-3], 8 << 3 | 2);
    assert_int_equal(count_fields(body, body_len, 1), 5);
    assert_in_range(count_fields(body, body_len, 9), 3, 16);
    assert_int_equal(count_fields(device, device_len, 1), 20);
    assert_in_range(count_fields(device, device_len, 7), 14, 16);
    buf_clear(&b);
    assert_int_equal(codec_encode(&beat, &b), ERR_OK);
    assert_int_equal(count_fields((const uint8_t *)b.data + 3, b.len - 3, 1), 11);
    assert_in_range(count_fields((const uint8_t *)b.data + 3, b.len - 3, 4), 8, 16);
    buf_deinit(&b);
}

static void counts_that_disagree_are_refused(void **state)
{
    (void)state;
    uint32_t zero[2] = {1, 0}, wild[2] = {0, 32}, share[2] = {1, 1}, layers[3] = {0, 4, 2};
    struct slot_setup setup = {.n_output = 1};
    struct msg m = small_step();
    m.step.n_all_tokens = 2;
    expect_refused(&m, ERR_PROTOCOL, "step.tokens");
    m = small_step();
    m.step.n_all_blocks = 0;
    expect_refused(&m, ERR_PROTOCOL, "step.blocks");
    m = small_step();
    m.step.n_tokens = zero;
    m.step.n_all_tokens = 1;
    expect_refused(&m, ERR_PROTOCOL, "step.n_tokens");
    m = small_step();
    m.step.want = wild;
    expect_refused(&m, ERR_PROTOCOL, "step.want");
    m = small_step();
    m.step.n_setups = 1;
    m.step.setups = &setup;
    expect_refused(&m, ERR_PROTOCOL, "n_output");
    setup = (struct slot_setup){.n_logprobs = MSG_LOGPROBS_MAX + 1};
    expect_refused(&m, ERR_TOO_BIG, "n_logprobs");
    setup = (struct slot_setup){.temperature = NAN};
    expect_refused(&m, ERR_PROTOCOL, "temperature");
    setup = (struct slot_setup){.top_p = INFINITY};
    expect_refused(&m, ERR_PROTOCOL, "top_p");
    setup = (struct slot_setup){.mirostat_mu = NAN};
    expect_refused(&m, ERR_PROTOCOL, "mirostat_mu");
    setup = (struct slot_setup){.bad_id = share, .n_bad_ids = 2, .bad_len = share, .n_bad = 1};
    expect_refused(&m, ERR_PROTOCOL, "bad_len");
    setup = (struct slot_setup){.dry_id = share, .n_dry_ids = 1, .dry_len = zero, .n_dry = 2};
    expect_refused(&m, ERR_PROTOCOL, "dry_len");
    m = (struct msg){
        .type = MSG_START_WORKER,
        .start_worker = {.tp = 2, .pp = 2, .share = share, .n_share = 1, .layer_first = layers, .n_layer_first = 3}};
    expect_refused(&m, ERR_PROTOCOL, "share");
    m.start_worker.n_share = 2;
    expect_refused(&m, ERR_PROTOCOL, "layer_first");
    layers[2] = 4;
    m.start_worker.tp_rank = 2;
    expect_refused(&m, ERR_PROTOCOL, "tp_rank");
    m.start_worker = (struct msg_start_worker){0};
    expect_refused(&m, ERR_PROTOCOL, "tp");
    m = (struct msg){.type = MSG_HELLO, .hello = {.version_min = 2, .version_max = 1}};
    expect_refused(&m, ERR_PROTOCOL, "version_min");
    uint32_t slot[1] = {0}, positions[1] = {2}, top[1] = {0};
    float logprob[1] = {0};
    m = (struct msg){.type = MSG_STEP_RESULT,
                     .step_result = {.n_runs = 1,
                                     .slot = slot,
                                     .gen = slot,
                                     .token = slot,
                                     .n_positions = positions,
                                     .n_all_positions = 1,
                                     .logprob = logprob,
                                     .n_top = top}};
    expect_refused(&m, ERR_PROTOCOL, "logprob");
    positions[0] = 1;
    top[0] = 1;
    expect_refused(&m, ERR_PROTOCOL, "top_id");
    top[0] = MSG_LOGPROBS_MAX + 1;
    expect_refused(&m, ERR_TOO_BIG, "n_top");
    top[0] = 0;
    float pooled[3] = {0, 1, NAN};
    m.step_result.pooled = pooled;
    m.step_result.n_all_pooled = 3;
    expect_refused(&m, ERR_PROTOCOL, "pooled");
    m.step_result.pooled_dim = 2;
    expect_refused(&m, ERR_PROTOCOL, "pooled");
    m.step_result.pooled_dim = 3;
    expect_refused(&m, ERR_PROTOCOL, "not finite");
    m.step_result.n_all_pooled = MSG_POOLED_MAX + 3;
    expect_refused(&m, ERR_TOO_BIG, "pooled");
}

static void arrays_that_are_not_parallel_are_refused(void **state)
{
    (void)state;
    struct arena a;
    struct msg m;
    arena_init(&a, 0);
    for (unsigned shorter = 3; shorter <= 8; shorter++) {
        struct buf body;
        buf_init(&body);
        for (unsigned f = 3; f <= 8; f++)
            put_packed(&body, f, f == shorter ? 1 : 2, 1);
        put_packed(&body, 9, shorter == 6 ? 1 : 2, 1);
        put_packed(&body, 10, shorter == 8 ? 1 : 2, 1);
        enum err e = decode_body(15, &body, &a, &m);
        if (e != ERR_PROTOCOL || !strstr(err_detail(), "step."))
            fail_msg("field %u: %s \"%s\"", shorter, err_name(e), err_detail());
        buf_deinit(&body);
    }
    arena_deinit(&a);
}

static void bytes_that_are_no_message_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
        const char *what;
    } bad[] = {
        {"", 0, "nothing"},
        {"\x00\x00", 2, "field 0"},
        {"\x9a\x01\x00", 3, "field 19, of no message"},
        {"\x38\x01", 2, "a number where a message belongs"},
        {"\x3a\x01", 2, "a length past the end"},
        {"\x3a\xff\xff\xff\xff\x7f", 6, "a length of 32 GiB"},
        {"\x3a\x00\x3a\x00", 4, "two messages"},
        {"\x3a\x00\x00", 3, "a byte after the message"},
        {"\x3a\x04\x08\x01\x08\x01", 6, "a singular field twice"},
        {"\x3a\x02\x0a\x00", 4, "a string where a number belongs"},
        {"\x3a\x02\x0b\x0c", 4, "a group"},
        {"\x3a\x02\x08\x80", 4, "a number that does not end"},
        {"\x3a\x0c\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 14, "a number of eleven bytes"},
        {"\x1a\x04\x12\x02"
         "a\0",
         6, "a NUL in a string"},
        {"\x7a\x03\x1a\x01\x80", 5, "packed numbers that end early"},
    };
    struct arena a;
    struct msg m;
    arena_init(&a, 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        enum err e = codec_decode(bad[i].bytes, bad[i].len, &a, &m);
        if (e != ERR_PROTOCOL || !err_detail()[0])
            fail_msg("%s: %s", bad[i].what, err_name(e));
    }
    /* An empty heartbeat and one with a field of a later version are messages. */
    assert_int_equal(codec_decode("\x3a\x00", 2, &a, &m), ERR_OK);
    assert_int_equal(codec_decode("\x3a\x05\x78\x01\x08\x96\x01", 7, &a, &m), ERR_OK);
    assert_int_equal(m.heartbeat.progress, 150);
    arena_deinit(&a);
}

static void an_error_of_a_later_version_becomes_internal(void **state)
{
    (void)state;
    struct buf body;
    struct arena a;
    struct msg m;
    arena_init(&a, 0);
    buf_init(&body);
    put_number(&body, 1, 60000);
    assert_int_equal(decode_body(3, &body, &a, &m), ERR_OK);
    assert_int_equal(m.refuse.err, ERR_INTERNAL);
    buf_deinit(&body);
    arena_deinit(&a);
}

static void truncation_at_every_byte_is_survived(void **state)
{
    (void)state;
    struct arena in, out;
    struct buf wire, cut;
    arena_init(&in, 0);
    arena_init(&out, 0);
    buf_init(&wire);
    buf_init(&cut);
    for (unsigned t = 0; t < MSG_TYPE_COUNT; t++) {
        struct msg_random r = {seed + t, &in, 6, 20};
        struct msg m;
        buf_clear(&wire);
        arena_reset(&in);
        msg_random_fill(&r, (enum msg_type)t, &m);
        assert_int_equal(codec_encode(&m, &wire), ERR_OK);
        for (size_t len = 0; len < wire.len; len++) {
            /* An exact copy on the heap, so that a read past the end is seen by AddressSanitizer. */
            char *exact = malloc(len ? len : 1);
            memcpy(exact, wire.data, len);
            arena_reset(&out);
            assert_int_equal(codec_decode(exact, len, &out, &m), ERR_PROTOCOL);
            free(exact);
        }
        size_t head = 1 + (t + 1 > 15); /* the body alone, cut, in an honest frame */
        while (wire.data[head++] & 0x80)
            ;
        for (size_t len = 0; len < wire.len - head; len++) {
            buf_clear(&cut);
            put_bytes(&cut, t + 1, wire.data + head, len);
            char *exact = malloc(cut.len);
            memcpy(exact, cut.data, cut.len);
            arena_reset(&out);
            codec_decode(exact, cut.len, &out, &m);
            free(exact);
        }
    }
    buf_deinit(&wire);
    buf_deinit(&cut);
    arena_deinit(&in);
    arena_deinit(&out);
}

static void random_mutation_is_survived(void **state)
{
    (void)state;
    struct arena in, out;
    struct buf wire, again;
    unsigned n_ok = 0;
    arena_init(&in, 0);
    arena_init(&out, 0);
    buf_init(&wire);
    buf_init(&again);
    for (unsigned i = 0; i < 20000; i++) {
        struct msg_random r = {seed + i, &in, 8, 20};
        struct msg m, back;
        arena_reset(&in);
        arena_reset(&out);
        buf_clear(&wire);
        msg_random_fill(&r, (enum msg_type)(i % MSG_TYPE_COUNT), &m);
        assert_int_equal(codec_encode(&m, &wire), ERR_OK);
        for (unsigned k = 1 + msg_random_below(&r, 3); k; k--)
            wire.data[msg_random_below(&r, (uint32_t)wire.len)] ^= (char)(1 << msg_random_below(&r, 8));
        if (codec_decode(wire.data, wire.len, &out, &m) != ERR_OK)
            continue;
        n_ok++;
        buf_clear(&again); /* what was accepted can be sent on, and arrives the same */
        assert_int_equal(codec_encode(&m, &again), ERR_OK);
        assert_int_equal(codec_decode(again.data, again.len, &in, &back), ERR_OK);
        assert_null(msg_random_diff(&m, &back));
    }
    assert_true(n_ok > 100);
    buf_deinit(&wire);
    buf_deinit(&again);
    arena_deinit(&in);
    arena_deinit(&out);
}

static void a_steady_decode_is_small_and_allocates_nothing(void **state)
{
    (void)state;
    enum { N = 32 };
    uint32_t slot[N], gen[N], start[N], n_tokens[N], want[N], n_blocks[N], tokens[N], blocks[2] = {700, 701};
    struct arena a;
    struct buf wire;
    struct msg back;
    for (uint32_t i = 0; i < N; i++) {
        slot[i] = i;
        gen[i] = 1000 + i;
        start[i] = 3000 + 17 * i;
        n_tokens[i] = 1;
        want[i] = RUN_WANT_SAMPLE;
        n_blocks[i] = i % 16 == 0;
        tokens[i] = STEP_TOKEN_SAMPLED;
    }
    struct msg m = {.type = MSG_STEP,
                    .step = {.epoch = 3,
                             .step_id = 100000,
                             .n_runs = N,
                             .slot = slot,
                             .gen = gen,
                             .start = start,
                             .n_tokens = n_tokens,
                             .want = want,
                             .n_blocks = n_blocks,
                             .n_all_tokens = N,
                             .n_all_blocks = 2,
                             .tokens = tokens,
                             .blocks = blocks}};
    arena_init(&a, 0);
    buf_init(&wire);
    size_t total = 0, cap = 0;
    uint64_t t0 = 0, encode_ns = 0, decode_ns = 0;
    for (unsigned i = 0; i < 10000; i++) {
        arena_reset(&a);
        buf_clear(&wire);
        t0 = clock_ns();
        assert_int_equal(codec_encode(&m, &wire), ERR_OK);
        encode_ns += clock_ns() - t0;
        t0 = clock_ns();
        assert_int_equal(codec_decode(wire.data, wire.len, &a, &back), ERR_OK);
        decode_ns += clock_ns() - t0;
        if (i == 0) {
            total = a.total;
            cap = wire.cap;
        }
        assert_int_equal(a.total, total);
        assert_int_equal(wire.cap, cap);
    }
    print_message("step of %d decodes: %zu bytes (%.1f a sequence), encode %.2f us, decode %.2f us\n", N, wire.len,
                  (double)wire.len / N, (double)encode_ns / 1e7, (double)decode_ns / 1e7);
    assert_true(wire.len <= 16 * N);
    for (uint32_t i = 0; i < N; i++) { /* token ids of a large vocabulary, sent by the coordinator, fit too */
        tokens[i] = 120000 + i;
        n_blocks[i] = 0;
    }
    m.step.n_all_blocks = 0;
    buf_clear(&wire);
    assert_int_equal(codec_encode(&m, &wire), ERR_OK);
    assert_true(wire.len <= 16 * N);
    buf_deinit(&wire);
    arena_deinit(&a);
}

int main(void)
{
    const char *s = getenv("CODEC_SEED");
    seed = s ? strtoull(s, NULL, 0) : 20261121;
    print_message("CODEC_SEED=%llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_survives_a_round_trip),
        cmocka_unit_test(the_wire_is_protobuf),
        cmocka_unit_test(every_cap_is_kept),
        cmocka_unit_test(the_encoder_keeps_the_caps_too),
        cmocka_unit_test(empty_inner_messages_cannot_blow_memory_up),
        cmocka_unit_test(gpus_can_be_told_to_a_peer_that_does_not_know_them),
        cmocka_unit_test(counts_that_disagree_are_refused),
        cmocka_unit_test(arrays_that_are_not_parallel_are_refused),
        cmocka_unit_test(bytes_that_are_no_message_are_refused),
        cmocka_unit_test(an_error_of_a_later_version_becomes_internal),
        cmocka_unit_test(truncation_at_every_byte_is_survived),
        cmocka_unit_test(random_mutation_is_survived),
        cmocka_unit_test(a_steady_decode_is_small_and_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
