// What the emulation knows of a launch in progress.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "collective.h"
#include "launch.h"

namespace emu {

enum class State : uint8_t { Ready, Barrier, Collective, Done };

struct Copy { // an asynchronous copy that no wait has made visible
    unsigned char* to;
    const unsigned char* from;
    int bytes, valid, group;
};

struct Thread {
    void* stack_pointer;
    unsigned char* stack;
    State state;
    bool spinning; // its last act was to load what it had loaded before
    unsigned linear, index[3];
    const void* polled; // what it loaded last with acquire, and the value
    unsigned polled_value;
    // The collective it waits in.
    int kind, words, param, results;
    unsigned mask, in[12], out[8];
    const char* file;
    int line;
    std::vector<Copy> copies;
    int committed, waited; // groups of copies
};

struct Access { // who touched a word of memory, and when
    uint32_t epoch, warp_epoch;
    uint16_t thread;
    uint8_t bytes; // mask
};
struct SharedWord { Access write, read[2]; };
struct GlobalWord {
    Access write;
    uint32_t block;
    uint64_t time;
};

struct Block {
    unsigned linear, index[3];
    unsigned threads, done, waiting;
    uint32_t epoch;
    std::vector<uint32_t> warp_epoch;
    std::vector<Thread> thread;
    std::vector<unsigned char> static_shared;
    unsigned char* dynamic_shared;
    std::vector<unsigned char> dynamic_storage;
    std::vector<SharedWord> shared_words; // static, then dynamic
    std::vector<std::vector<uint8_t>> sectors; // per buffer, those loaded
    uint64_t acquired; // time of its latest acquire
    const char* barrier_file;
    int barrier_line;
};

struct Shadow { // of a buffer
    std::vector<uint8_t> loaded, stored; // a bit per byte
    std::vector<GlobalWord> words;       // made at the first store
};

struct Machine {
    HlrcEmuLaunch* launch;
    HlrcEmuImage image;
    void (*body)(void* const*);
    void* const* arguments;
    std::vector<std::unique_ptr<Block>> resident;
    std::vector<std::unique_ptr<Block>> spare;
    std::vector<Shadow> shadows;
    std::vector<uint64_t> released; // time of the latest release, per block of the grid
    Block* block;     // whose static shared memory is in place
    Thread* thread;   // that runs; null in the scheduler
    void* host_stack; // the scheduler's
    uint64_t time, random;
    size_t last_buffer;
    bool failed;

    uint64_t next_random() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return random;
    }
};

extern Machine* machine;
extern unsigned char* stacks;
extern size_t stacks_bytes;
constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t GUARD_BYTES = 4096; // around dynamic shared memory

// Ends the launch with a message that names block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void suspend(State state);
void access(const void* address, unsigned bytes, bool write);
void forget_writer(const void* address); // an atomic access: ordered by itself
void complete_collective(Block& block, unsigned first, unsigned mask);

} // namespace emu
