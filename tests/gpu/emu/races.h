/* The race checker of the emulator: with -DRACKLM_EMU_RACES=ON kernels are compiled so that each of their loads and stores comes by here (the calls that
 * -fsanitize=thread puts in; its own library is not linked), and two accesses to a byte, at least one of them a store, by two threads of one launch that nothing
 * orders are a fault, whatever order they had this time. So are accesses to bytes that a cp.async is still writing, and to bytes outside the shared memory of the
 * block or the allocation, to the byte.
 *
 * What orders (PTX ISA 9.0, memory consistency model, and the CUDA guide's words on it): __syncthreads those of a block; __syncwarp those of a warp, shuffles, votes
 * and matrix instructions not; between blocks a fence before an atomic that another thread's atomic reads, with a fence behind it (or release and acquire),
 * cumulatively: the fence covers what a barrier before it ordered.
 *
 * Not seen: accesses of other launches (streams run interleaved for those, runtime_stream.cc); of the readers of a byte since its last store only one of each block,
 * and the last block's, so a store may be forgiven that another block's read was not ordered with. Nothing is reported that the rules above allow.
 *
 * Without RACKLM_EMU_RACES every function here is empty. */
#ifndef TESTS_GPU_EMU_RACES_H
#define TESTS_GPU_EMU_RACES_H

#include "tests/gpu/emu/kernel.h"

#include <memory>

namespace emu {

/* Of one launch: which blocks are its, and what its atomics have published. */
struct race_launch;

#ifdef RACKLM_EMU_RACES

bool on_a_stack(uintptr_t at); /* engine.cc: of an emulated thread */

std::shared_ptr<race_launch> races_launch(uint64_t n_blocks);
/* Whether this OS thread runs kernels: the calls of others are none of a kernel's. */
void races_on_this_thread(bool on);
/* room: where the shared memory of whatever block may be, for what is out of bounds there. */
void races_block_starts(block_view *b, race_launch *launch, uint32_t index, const void *room, size_t room_bytes);
void races_barrier(const block_view *b);                 /* all threads have come */
void races_syncwarp(const block_view *b, uint32_t warp); /* the whole warp has */
/* By the running thread: */
void races_read(const void *p, uint32_t bytes);
void races_copy_begins(void *dst, uint32_t bytes);
void races_copy_lands(void *dst, uint32_t bytes, const void *src, uint32_t src_bytes);

#else

inline std::shared_ptr<race_launch> races_launch(uint64_t)
{
    return nullptr;
}
inline void races_on_this_thread(bool)
{
}
inline void races_block_starts(block_view *, race_launch *, uint32_t, const void *, size_t)
{
}
inline void races_barrier(const block_view *)
{
}
inline void races_syncwarp(const block_view *, uint32_t)
{
}
inline void races_read(const void *, uint32_t)
{
}
inline void races_copy_begins(void *, uint32_t)
{
}
inline void races_copy_lands(void *, uint32_t, const void *, uint32_t)
{
}

#endif

} // namespace emu

#endif
