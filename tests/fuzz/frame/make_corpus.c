/* Writes the seed corpus of the frame target: small valid messages of every type. frame_corpus DIRECTORY; the files are
 * committed, run it again when racklm.proto changes (ninja frame_corpus in a build with RACKLM_FUZZ). */
#include "proto/codec.h"
#include "tests/unit/msg_random.h"

#include <stdio.h>

static const char *const names[MSG_TYPE_COUNT] = {
#define MSG(sym, field) #field,
#include "proto/msgs.def"
#undef MSG
};

static int write_one(const char *dir, unsigned type, unsigned n)
{
    struct arena arena;
    struct buf wire;
    struct msg m;
    char path[4096];
    arena_init(&arena, 0);
    buf_init(&wire);
    struct msg_random r = {.state = 100 * type + n, .arena = &arena, .list_max = 2 + 2 * n, .str_max = 8};
    msg_random_fill(&r, (enum msg_type)type, &m);
    snprintf(path, sizeof path, "%s/%s-%u", dir, names[type], n);
    FILE *f = codec_encode(&m, &wire) == ERR_OK ? fopen(path, "wb") : NULL;
    int ok = f && fwrite(wire.data, 1, wire.len, f) == wire.len;
    if (f && fclose(f) != 0)
        ok = 0;
    buf_deinit(&wire);
    arena_deinit(&arena);
    if (!ok)
        fprintf(stderr, "cannot write %s\n", path);
    return ok;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: frame_corpus DIRECTORY\n");
        return 2;
    }
    for (unsigned t = 0; t < MSG_TYPE_COUNT; t++)
        for (unsigned n = 0; n < 3; n++)
            if (!write_one(argv[1], t, n))
                return 1;
    return 0;
}
