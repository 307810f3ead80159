/* Properties of tokenising and detokenising, over random vocabularies, texts and ids. Merging is compared with the plain
 * definition (look at all pairs, merge the best, again) on the strings of the vocabulary; texts that are no text come
 * back byte for byte; a stream of any ids gives whole characters only, and together what the whole gives. The vocabularies
 * of the shared folder, where it is there, and small ones made here. RACKLM_FULL=1: more rounds, texts of 10 MB. */
#include "base/buf.h"
#include "base/check.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"
#include "tests/tools/sanitized.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t seed = 99;
static bool full;

static uint32_t rnd(uint32_t below)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((seed >> 33) % below);
}

/* ---- merging against its definition ---- */

enum { WORDS_MAX = 120, TEXT_MAX = 900 };
struct small {
    struct vocab v;
    struct gguf_str tokens[WORDS_MAX], merges[WORDS_MAX];
    float scores[WORDS_MAX];
    uint8_t types[WORDS_MAX];
    char texts[WORDS_MAX][40], pairs[WORDS_MAX][80];
    struct tokenizer *t;
};

static int find(const struct small *m, const char *s, size_t len)
{
    for (uint32_t i = 0; i < m->v.n_tokens; i++)
        if (m->tokens[i].len == len && memcmp(m->tokens[i].s, s, len) == 0)
            return (int)i;
    return -1;
}

static bool add(struct small *m, const char *s, size_t len, float score)
{
    uint32_t i = m->v.n_tokens;
    if (i == WORDS_MAX || len >= sizeof(m->texts[0]) || find(m, s, len) >= 0)
        return false;
    memcpy(m->texts[i], s, len);
    m->tokens[i] = (struct gguf_str){m->texts[i], len};
    m->types[i] = VOCAB_NORMAL;
    m->scores[i] = score;
    m->v.n_tokens++;
    return true;
}

/* Letters a to d and words of them; for BPE merges in random order, so that a merge may come before those that make its
 * parts; for SentencePiece scores of which some are equal. */
static void make(struct small *m, enum vocab_kind kind)
{
    memset(m, 0, sizeof(*m));
    m->v = (struct vocab){.kind = kind, .tokens = m->tokens, .merges = m->merges, .types = m->types,
                          .bos = -1, .eos = -1, .eot = -1, .eom = -1, .unk = -1, .pad = -1};
    m->v.pre = (struct gguf_str){"gpt-2", 5};
    m->v.scores = kind == VOCAB_SPM ? m->scores : NULL;
    for (int c = 'a'; c <= 'd'; c++)
        add(m, (char[]){(char)c}, 1, -100);
    uint32_t n = 5 + rnd(60), levels = 1 + rnd(40);
    for (uint32_t i = 0; i < n; i++) {
        const struct gguf_str a = m->tokens[rnd(m->v.n_tokens)], b = m->tokens[rnd(m->v.n_tokens)];
        char joined[80];
        if (a.len + b.len >= 30)
            continue;
        memcpy(joined, a.s, a.len);
        memcpy(joined + a.len, b.s, b.len);
        add(m, joined, a.len + b.len, -(float)rnd(levels));
        uint64_t k = m->v.n_merges++;
        snprintf(m->pairs[k], sizeof(m->pairs[k]), "%.*s %.*s", (int)a.len, a.s, (int)b.len, b.s);
    }
    for (uint64_t i = m->v.n_merges; i > 1; i--) { /* shuffled, or nearly in the order of training */
        uint64_t k = rnd(3) == 0 ? rnd((uint32_t)i) : i - 1;
        char t[80];
        memcpy(t, m->pairs[i - 1], sizeof(t));
        memcpy(m->pairs[i - 1], m->pairs[k], sizeof(t));
        memcpy(m->pairs[k], t, sizeof(t));
    }
    for (uint64_t i = 0; i < m->v.n_merges; i++)
        m->merges[i] = (struct gguf_str){m->pairs[i], strlen(m->pairs[i])};
    if (tokenizer_create(&m->v, &m->t) != ERR_OK)
        fail_msg("%s", err_detail());
}

/* How good it is to join two neighbours: the less the better; a large number: not at all. */
static double badness(const struct small *m, struct gguf_str a, struct gguf_str b)
{
    if (m->v.kind == VOCAB_SPM) {
        int id = find(m, a.s, a.len + b.len);
        return id < 0 ? 1e9 : -(double)m->scores[id];
    }
    for (uint64_t i = 0; i < m->v.n_merges; i++) {
        const char *sp = strchr(m->merges[i].s, ' ');
        size_t left = (size_t)(sp - m->merges[i].s);
        if (left == a.len && m->merges[i].len - left - 1 == b.len && memcmp(m->merges[i].s, a.s, a.len) == 0 &&
            memcmp(sp + 1, b.s, b.len) == 0)
            return (double)i;
    }
    return 1e9;
}

static size_t plain(const struct small *m, const char *s, size_t len, uint32_t *ids)
{
    static struct gguf_str sym[TEXT_MAX];
    size_t n = len;
    for (size_t i = 0; i < len; i++)
        sym[i] = (struct gguf_str){s + i, 1};
    for (;;) {
        double best = 1e8;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            double x = badness(m, sym[i], sym[i + 1]);
            if (x < best) {
                best = x;
                at = i;
            }
        }
        if (best == 1e8)
            break;
        sym[at].len += sym[at + 1].len;
        n--;
        memmove(sym + at + 1, sym + at + 2, (n - at - 1) * sizeof(*sym));
    }
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)find(m, sym[i].s, sym[i].len);
    return n;
}

static void merging_is_what_its_definition_says(void **state)
{
    (void)state;
    static struct small m;
    static char text[TEXT_MAX];
    static uint32_t want[TEXT_MAX];
    for (int round = 0; round < (full ? 3000 : 150); round++) {
        make(&m, rnd(2) ? VOCAB_SPM : VOCAB_BPE);
        for (int k = 0; k < 6; k++) {
            size_t len = k < 3 ? 65 + rnd(full && k == 0 ? 800 : 300) : 1 + rnd(90);
            uint32_t letters = 1 + rnd(4);
            for (size_t i = 0; i < len; i++)
                text[i] = i > 0 && rnd(3) == 0 ? text[i - 1] : (char)('a' + rnd(letters));
            struct tokens got = {0};
            assert_int_equal(tokenizer_encode(m.t, text, len, 0, &got), ERR_OK);
            size_t n = plain(&m, text, len, want);
            for (size_t i = 0; i < n || i < got.n; i++)
                if (i >= n || i >= got.n || got.ids[i] != want[i])
                    fail_msg("round %d, %s: token %zu of \"%.*s\" is %d, by definition %d", round,
                             m.v.kind == VOCAB_SPM ? "scores" : "ranks", i, (int)len, text,
                             i < got.n ? (int)got.ids[i] : -1, i < n ? (int)want[i] : -1);
            tokens_deinit(&got);
        }
        tokenizer_destroy(&m.t);
    }
}

/* ---- real vocabularies ---- */

struct real {
    char path[1200];
    struct vocab *v;
    struct tokenizer *t;
    bool bytes[256]; /* there is a token of this byte */
};
enum { REAL_MAX = 64 };
static struct real reals[REAL_MAX];
static unsigned n_reals;

static int open_shared(void **state)
{
    (void)state;
    const char *env = getenv("RACKLM_TEST_SHARED"), *f = getenv("RACKLM_FULL");
    char dir[400];
    full = f != NULL && f[0] == '1';
    snprintf(dir, sizeof(dir), "%s/data/tokenizers", env != NULL ? env : "../shared");
    DIR *d = opendir(dir);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL && n_reals < REAL_MAX;) {
        size_t n = strlen(e->d_name);
        struct real *r = &reals[n_reals];
        if (n < 5 || (strcmp(e->d_name + n - 5, ".gguf") != 0 && strcmp(e->d_name + n - 5, ".json") != 0))
            continue;
        snprintf(r->path, sizeof(r->path), "%s/%s", dir, e->d_name);
        if (vocab_open(r->path, &r->v) != ERR_OK || tokenizer_create(r->v, &r->t) != ERR_OK) {
            print_error("%s: %s\n", r->path, err_detail());
            return 1;
        }
        for (unsigned b = 0; b < 256; b++) {
            struct tokens ids = {0};
            assert_int_equal(tokenizer_encode(r->t, (char[]){(char)b}, 1, 0, &ids), ERR_OK);
            r->bytes[b] = ids.n > 0;
            tokens_deinit(&ids);
        }
        n_reals++;
    }
    if (d != NULL)
        closedir(d);
    print_message("%u vocabularies of the shared folder\n", n_reals);
    return 0;
}

static int close_shared(void **state)
{
    (void)state;
    for (unsigned i = 0; i < n_reals; i++) {
        tokenizer_destroy(&reals[i].t);
        vocab_destroy(&reals[i].v);
    }
    return 0;
}

/* s with U+FFFD for what is no UTF-8. */
static void replace_bad(const char *s, size_t len, struct buf *out)
{
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        size_t bad;
        bool cut;
        size_t n = utf8_decode(s + i, len - i, &cp, &bad, &cut);
        if (n == 0 && cut)
            bad = len - i;
        if (n > 0)
            buf_append(out, s + i, n);
        else
            buf_puts(out, "\xEF\xBF\xBD");
        i += n > 0 ? n : bad;
    }
}

static void stream_equals_whole(const struct real *r, const uint32_t *ids, size_t n, bool special)
{
    struct buf bytes, want, got;
    struct detokenizer d;
    buf_init(&bytes);
    buf_init(&want);
    buf_init(&got);
    detokenizer_init(&d, r->t, NULL, 0, special);
    detokenizer_continue(&d);
    for (size_t i = 0; i < n; i++) {
        size_t before = got.len;
        tokenizer_piece(r->t, ids[i], special, &bytes);
        detokenizer_push(&d, ids[i], &got);
        if (got.len > before && utf8_valid_prefix(got.data + before, got.len - before) != got.len - before)
            fail_msg("%s: id %u gave half a character", r->path, ids[i]);
    }
    detokenizer_finish(&d, &got);
    replace_bad(bytes.data, bytes.len, &want);
    if (got.len != want.len || (got.len > 0 && memcmp(got.data, want.data, got.len) != 0))
        fail_msg("%s: %zu bytes by the stream, %zu of the whole", r->path, got.len, want.len);
    detokenizer_deinit(&d);
    buf_deinit(&bytes);
    buf_deinit(&want);
    buf_deinit(&got);
}

static void a_stream_of_any_ids_gives_whole_characters_and_the_text_of_the_whole(void **state)
{
    (void)state;
    for (unsigned i = 0; i < n_reals; i++)
        for (int round = 0; round < (full ? 3000 : 60); round++) {
            uint32_t ids[400];
            size_t n = 1 + rnd(ARRAY_LEN(ids));
            for (size_t k = 0; k < n; k++) /* often from the beginning, where most vocabularies have their bytes */
                ids[k] = rnd(rnd(2) ? MIN(reals[i].v->n_tokens, 512u) : reals[i].v->n_tokens);
            stream_equals_whole(&reals[i], ids, n, rnd(2));
        }
}

/* The ids of a text are the text, but for bytes for which there is no token; SentencePiece puts a space before. */
static void comes_back(const struct real *r, const char *text, size_t text_len)
{
    struct tokens ids = {0};
    struct buf b, kept;
    buf_init(&b);
    buf_init(&kept);
    for (size_t i = 0; i < text_len; i++)
        if (r->v->kind == VOCAB_SPM && text_len - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0) {
            buf_putc(&kept, ' '); /* U+2581 stands for a space */
            i += 2;
        } else if (r->bytes[(unsigned char)text[i]]) {
            buf_putc(&kept, text[i]);
        }
    const char *s = kept.data == NULL ? "" : kept.data;
    size_t len = kept.len;
    if (tokenizer_encode(r->t, text, text_len, 0, &ids) != ERR_OK)
        fail_msg("%s: %s", r->path, err_detail());
    for (size_t i = 0; i < ids.n; i++)
        tokenizer_piece(r->t, ids.ids[i], true, &b);
    size_t skip = r->v->add_space_prefix && b.len == len + 1 && b.data[0] == ' ' ? 1 : 0;
    if (b.len - skip != len || (len > 0 && memcmp(b.data + skip, s, len) != 0))
        fail_msg("%s: a text of %zu bytes comes back as %zu others (first: %.40s)", r->path, len, b.len, s);
    buf_deinit(&b);
    buf_deinit(&kept);
    tokens_deinit(&ids);
}

static size_t any_text(char *s, size_t len)
{
    size_t n = 0;
    uint32_t kind = rnd(4);
    while (n + 8 < len) {
        uint32_t c = rnd(kind == 0 ? 32 : kind == 1 ? 256 : 0x3000);
        if (kind == 1 || rnd(6) == 0)
            s[n++] = (char)rnd(256);
        else
            n += utf8_encode(c, s + n);
    }
    return n;
}

static void bytes_that_are_no_text_come_back(void **state)
{
    (void)state;
    static const char *const odd[] = {"\xC3", "\xE4\xB8", "\xF0\x9F\x99", "\xED\xA0\x80", "\xC0\x80", "\xF5\x80\x80\x80", "a\xFF z", "\x80\x80"};
    static char text[4096];
    for (unsigned i = 0; i < n_reals; i++) {
        struct real *r = &reals[i];
        if (r->v->json != NULL || r->v->kind == VOCAB_UNIGRAM)
            continue; /* these are for text; others normalise it */
        for (size_t k = 0; k < ARRAY_LEN(odd); k++)
            comes_back(r, odd[k], strlen(odd[k]));
        comes_back(r, "a\0b\0\0", 5);
        for (int round = 0; round < (full ? 2000 : 60); round++)
            comes_back(r, text, any_text(text, 16 + rnd(1000)));
    }
}

static void large_texts_come_back(void **state)
{
    (void)state;
    size_t len = full && !SANITIZED_THREAD ? 10 << 20 : 1 << 19; /* one thread: ThreadSanitizer would only take its time */
    char *text = malloc(len);
    assert_non_null(text);
    for (unsigned i = 0; i < n_reals; i++) {
        if (reals[i].v->json != NULL || reals[i].v->kind == VOCAB_UNIGRAM)
            continue;
        memset(text, "a \n'\xFF"[i % 5], len);
        comes_back(&reals[i], text, len);
        if (full || i % 4 == 0)
            comes_back(&reals[i], text, any_text(text, len));
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging_is_what_its_definition_says),
        cmocka_unit_test(a_stream_of_any_ids_gives_whole_characters_and_the_text_of_the_whole),
        cmocka_unit_test(bytes_that_are_no_text_come_back),
        cmocka_unit_test(large_texts_come_back),
    };
    int failed = cmocka_run_group_tests(tests, open_shared, close_shared);
    return failed == 0 && n_reals == 0 ? 77 : failed;
}
