/* One frame of a peer through the decoder that ships. What it accepts must be encodable, and must come back the same:
 * the second decoding equals the first field by field, the second encoding byte for byte. */
#include "base/check.h"
#include "proto/codec.h"
#include "tests/unit/msg_random.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena first, second;
    struct buf wire, again;
    struct msg m, back;

    arena_init(&first, (size_t)64 << 20);
    if (codec_decode(data, size, &first, &m) != ERR_OK) {
        ASSERT(err_detail()[0]); /* every refusal says why */
        arena_deinit(&first);
        return 0;
    }
    arena_init(&second, 0);
    buf_init(&wire);
    buf_init(&again);
    ASSERT(codec_encode(&m, &wire) == ERR_OK);
    ASSERT(codec_decode(wire.data, wire.len, &second, &back) == ERR_OK);
    ASSERT(msg_random_diff(&m, &back) == NULL);
    ASSERT(codec_encode(&back, &again) == ERR_OK);
    ASSERT(wire.len == again.len && memcmp(wire.data, again.data, wire.len) == 0);
    buf_deinit(&wire);
    buf_deinit(&again);
    arena_deinit(&first);
    arena_deinit(&second);
    return 0;
}
