/* bench_tokenize [-n MIB] [-r ROUNDS] [--pre NAME|all] MODEL.gguf|tokenizer.json...: MiB a second of tokenising, for kinds of
 * text from the ordinary to the worst. Processor time of one thread, the best of the rounds. --pre puts another
 * pre-tokeniser into a byte-level vocabulary (all: each that there is, then only the slowest kinds of text matter). */
#include "base/check.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint32_t rnd(uint32_t below)
{
    static uint64_t seed = 88172645463325252ull;
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((seed >> 33) % below);
}

static const char *const english[] = {
    "the", "of", "and", "a", "to", "in", "is", "that", "it", "was", "for", "on", "with", "as", "be", "at", "by", "this", "had", "not", "are",
    "but", "from", "or", "have", "an", "they", "which", "one", "you", "were", "her", "all", "she", "there", "would", "their", "we", "him",
    "been", "has", "when", "who", "will", "more", "no", "if", "out", "so", "said", "what", "up", "its", "about", "into", "than", "them",
    "can", "only", "other", "new", "some", "could", "time", "these", "two", "may", "then", "do", "first", "any", "my", "now", "such",
    "like", "our", "over", "man", "me", "even", "most", "made", "after", "also", "did", "many", "before", "must", "through", "back",
    "years", "where", "much", "your", "way", "well", "down", "should", "because", "each", "just", "those", "people", "too", "little",
    "state", "good", "very", "make", "world", "still", "see", "own", "work", "long", "here", "get", "both", "between", "life", "being",
    "under", "never", "day", "same", "another", "know", "while", "last", "might", "us", "great", "old", "year", "off", "come", "since",
    "against", "go", "came", "right", "used", "take", "three", "wasn't", "I'll", "machine", "weather", "harbour", "mountain", "throughput",
    "latency", "coordinate", "distribution", "philosophical", "Internationalisation", "Wednesday", "Elizabeth", "1984", "42", "3.5",
};
static const char *const code[] = {
    "    if (x == NULL)\n", "        return err_set(ERR_NOMEM, \"no memory for %zu bytes\", n);\n", "for (size_t i = 0; i < n; i++) {\n", "}\n\n", "#include <stdio.h>\n",
    "static inline uint32_t hash(const char *s)\n{\n", "\tself.weights[idx] += alpha * grad  # update\n", "def __init__(self, name: str = \"a\") -> None:\n", "    /* why */\n",
    "<div class=\"row\" id=\"r12\">&nbsp;</div>\n", "const y = xs.map((v) => v ** 2).filter(Boolean);\n", "0xDEADBEEF, 1e-9, 3.14159f,\n", "SELECT * FROM t WHERE id = 7;\n",
};

/* Each writes at most 64 bytes; returns how many. */
static size_t some_english(char *s)
{
    uint32_t n = (uint32_t)ARRAY_LEN(english), k = rnd(n), m = rnd(n); /* the first words more often */
    const char *end = rnd(12) == 0 ? ". " : rnd(15) == 0 ? ", " : rnd(60) == 0 ? ".\n\n" : " ";
    return (size_t)sprintf(s, "%s%s", english[k < m ? k : m], end);
}
static size_t some_code(char *s)
{
    const char *line = code[rnd(ARRAY_LEN(code))];
    return (size_t)sprintf(s, "%.60s", line);
}
static size_t some_chinese(char *s)
{
    static const uint32_t marks[] = {0xFF0C, 0x3002, 0x3001, 0xFF01, 0x0A};
    uint32_t c = 0x4E00 + rnd(rnd(3) == 0 ? 0x5200 : 2500);
    return utf8_encode(rnd(12) == 0 ? marks[rnd(5)] : c, s);
}
static size_t some_emoji(char *s)
{
    size_t n = utf8_encode(0x1F300 + rnd(0x300), s);
    if (rnd(4) == 0)
        n += utf8_encode(0x200D, s + n);
    if (rnd(8) == 0)
        s[n++] = ' ';
    return n;
}
static size_t some_hindi(char *s)
{
    return utf8_encode(rnd(7) == 0 ? 0x20 : 0x900 + rnd(0x60), s);
}
static size_t some_bytes(char *s)
{
    s[0] = (char)rnd(256);
    return 1;
}
static size_t some_letters(char *s)
{
    s[0] = (char)('a' + rnd(26));
    return 1;
}
static size_t some_cases(char *s)
{
    s[0] = (char)((rnd(2) ? 'a' : 'A') + rnd(26));
    return 1;
}
static size_t some_signs(char *s)
{
    s[0] = "!\"#$%&'()*+,-./:;<=>?@[]^_{|}~"[rnd(31)];
    return 1;
}
static size_t some_digits(char *s)
{
    s[0] = (char)('0' + rnd(10));
    return 1;
}
static size_t some_spaces(char *s)
{
    s[0] = " \t\n\r "[rnd(5)];
    return 1;
}
static size_t ab(char *s)
{
    memcpy(s, "ab", 2);
    return 2;
}
#define REPEATED(name, text)                                                                                           \
    static size_t name(char *s)                                                                                        \
    {                                                                                                                  \
        memcpy(s, text, sizeof(text) - 1);                                                                             \
        return sizeof(text) - 1;                                                                                       \
    }
REPEATED(one_a, "a")
REPEATED(one_space, " ")
REPEATED(one_newline, "\n")
REPEATED(one_quote, "'")
REPEATED(one_less, "<")
REPEATED(one_digit, "1")
REPEATED(one_e_acute, "\xC3\xA9")
REPEATED(one_han, "\xE4\xB8\x80")
REPEATED(one_bad, "\xFF")

static const struct kind {
    const char *name;
    size_t (*some)(char *s);
} kinds[] = {
    {"English", some_english}, {"code", some_code}, {"Chinese", some_chinese}, {"Hindi", some_hindi}, {"emoji", some_emoji}, {"random bytes", some_bytes},
    {"random letters", some_letters}, {"random cases", some_cases}, {"random signs", some_signs}, {"random digits", some_digits}, {"random white space", some_spaces},
    {"ab ab ab", ab}, {"one letter", one_a}, {"one space", one_space}, {"one newline", one_newline}, {"one quote", one_quote}, {"one <", one_less}, {"one digit", one_digit},
    {"one e acute", one_e_acute}, {"one Han", one_han}, {"one bad byte", one_bad},
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double measure(const struct tokenizer *t, const char *text, size_t len, int rounds, size_t *n_ids)
{
    double best = 1e9;
    for (int r = 0; r < rounds; r++) {
        struct tokens ids = {0};
        double start = seconds();
        if (tokenizer_encode(t, text, len, TOKENIZER_PARSE, &ids) != ERR_OK) {
            fprintf(stderr, "tokenize: %s\n", err_detail());
            exit(1);
        }
        double s = seconds() - start;
        best = MIN(best, s);
        *n_ids = ids.n;
        tokens_deinit(&ids);
    }
    return best;
}

/* All kinds as lines; only the slowest when brief. */
static void bench(const char *label, const struct tokenizer *t, char *const *texts, size_t len, int rounds, bool brief)
{
    double mib = (double)len / (1 << 20), worst = 0;
    size_t worst_kind = 0, n;
    if (!brief)
        printf("%s\n", label);
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
        double s = measure(t, texts[k], len, rounds, &n);
        if (s > worst) {
            worst = s;
            worst_kind = k;
        }
        if (!brief)
            printf("  %-20s %8.1f MiB/s %7.1f ms a MiB %9zu ids\n", kinds[k].name, mib / s, s / mib * 1e3, n);
    }
    if (brief)
        printf("%-26s slowest %-20s %8.1f MiB/s %7.1f ms a MiB\n", label, kinds[worst_kind].name, mib / worst, worst / mib * 1e3);
    fflush(stdout);
}

static int bench_model(const char *path, const char *pre, char *const *texts, size_t len, int rounds)
{
    struct vocab *v = NULL;
    struct tokenizer *t = NULL;
    bool all = pre != NULL && strcmp(pre, "all") == 0;
    int rc = 0;
    if (vocab_open(path, &v) != ERR_OK)
        goto fail;
    for (size_t i = 0; i == 0 || (all && pretokenizer_name(i) != NULL); i++) {
        char label[512];
        const char *name = all ? pretokenizer_name(i) : pre;
        if (name != NULL)
            v->pre = (struct gguf_str){name, strlen(name)};
        snprintf(label, sizeof(label), "%s", name != NULL ? name : path);
        if (tokenizer_create(v, &t) != ERR_OK)
            goto fail;
        bench(label, t, texts, len, rounds, all);
        tokenizer_destroy(&t);
    }
    vocab_destroy(&v);
    return rc;
fail:
    fprintf(stderr, "tokenize: %s: %s\n", path, err_detail());
    vocab_destroy(&v);
    return 1;
}

int main(int argc, char **argv)
{
    double mib = 1;
    int rounds = 3, i = 1, rc = 0;
    const char *pre = NULL;
    for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        if (strcmp(argv[i], "-n") == 0)
            mib = atof(argv[i + 1]);
        else if (strcmp(argv[i], "-r") == 0)
            rounds = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--pre") == 0)
            pre = argv[i + 1];
        else
            break;
    }
    if (i >= argc || argv[i][0] == '-' || mib <= 0 || mib > 512 || rounds < 1) {
        fprintf(stderr, "usage: bench_tokenize [-n MIB] [-r ROUNDS] [--pre NAME|all] MODEL.gguf|tokenizer.json...\n");
        return 2;
    }
    size_t len = (size_t)(mib * (1 << 20));
    char *texts[ARRAY_LEN(kinds)];
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
        texts[k] = malloc(len + 64);
        ASSERT(texts[k] != NULL);
        for (size_t n = 0; n < len;)
            n += kinds[k].some(texts[k] + n);
    }
    for (; i < argc; i++)
        rc |= bench_model(argv[i], pre, texts, len, rounds);
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++)
        free(texts[k]);
    return rc;
}
