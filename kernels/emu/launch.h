// One launch in emulation, as the tests describe it. Plain C, shared with tests/kernels.
#pragma once
#include <cstdint>

extern "C" {
// A buffer of device memory. Accesses outside every buffer fail the launch.
struct HlrcEmuBuffer {
    const char* name;
    void* base;
    uint64_t bytes;
    uint64_t writable;
    // Results.
    uint64_t loaded;          // bytes that threads loaded, repeats included
    uint64_t stored;          // bytes that threads stored
    uint64_t loaded_unique;   // bytes that were loaded at least once
    uint64_t stored_unique;
    uint64_t sectors_by_block; // 32-byte sectors, counted once for each block that loads them
};

struct HlrcEmuLaunch {
    uint32_t grid[3];
    uint32_t block[3];
    uint64_t dynamic_shared; // bytes
    uint64_t shared_limit;   // bytes of static and dynamic shared memory together
    uint32_t schedule;       // 0 forward, 1 reverse, 2 random
    uint32_t resident;       // blocks that run at a time; later ones start when earlier ones end
    uint64_t seed;
    HlrcEmuBuffer* buffers;
    uint64_t buffer_count;
    // Results.
    uint64_t static_shared;  // bytes
    uint64_t barriers;       // __syncthreads completed, all blocks
    uint64_t switches;       // of fibers
    char error[1024];
};

// The kernel's translation unit in memory.
struct HlrcEmuImage {
    char *shared_start, *shared_stop, *start, *end;
};

// 0: done; 1: `error` says what went wrong.
int hlrc_emu_launch(HlrcEmuLaunch* launch, const HlrcEmuImage* image, void (*body)(void* const*), void* const* arguments);
}
