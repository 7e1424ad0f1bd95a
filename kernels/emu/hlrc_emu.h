// CUDA's device language as plain C++: the same kernel source runs on the CPU.
//
// Every CUDA thread is a fiber; the blocks of a grid are interleaved, each with its own shared
// memory. The kernel's translation unit is compiled with `-fsanitize=thread` but not linked with
// that tool: runtime.cpp receives the hooks, so every load and store, plain or through a wrapper,
// is counted, checked against the launch's buffers and checked for data races (barriers,
// __syncwarp, fences and atomics order accesses; shuffles do not, as in CUDA's memory model).
//
// Rules for kernels: `__shared__` variables stand in the body of a `__global__` function;
// dynamic shared memory is named by HLRC_DYNAMIC_SHARED; atomics, acquire loads, asynchronous
// copies and mma go through common/*.cuh.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "launch.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// Kept in a section of its own, which is exchanged when another block runs.
#define __shared__ __attribute__((section("hlrc_shared"))) static
#define HLRC_DYNAMIC_SHARED(name) unsigned char* const name = hlrc_emu_dynamic_shared()

// What a thread asks of the runtime.
extern "C" {
// Constant within a fiber, so that a compiler may keep it.
unsigned hlrc_emu_index(int which) __attribute__((const)); // 0..2 threadIdx, 3..5 blockIdx, 6..8 blockDim, 9..11 gridDim
unsigned char* hlrc_emu_dynamic_shared() __attribute__((const));
void hlrc_emu_barrier(const char* file, int line);
// One collective of a warp: operands in, results out; see `Kind` in collective.h.
void hlrc_emu_collective(int kind, unsigned mask, const unsigned* in, int words, int param, unsigned* out, int results);
void hlrc_emu_row(const void* address, unsigned* words); // 16 bytes of shared memory, as an access of this lane
unsigned hlrc_emu_atomic(int op, void* address, unsigned value, unsigned compare); // 32 bits
unsigned long long hlrc_emu_atomic_add64(void* address, unsigned long long value);
unsigned hlrc_emu_acquire(const void* address);                                     // 32 bits; yields
void hlrc_emu_release(void* address, unsigned value);
void hlrc_emu_fence();
void hlrc_emu_yield();
void hlrc_emu_async_copy(void* shared, const void* global, int bytes, int valid);
void hlrc_emu_async_commit();
void hlrc_emu_async_wait(int groups);
void hlrc_emu_trap(const char* message);
}

struct HlrcEmuX { unsigned x, y, z; };
__forceinline__ HlrcEmuX hlrc_emu_dim(int base) {
    return {hlrc_emu_index(base), hlrc_emu_index(base + 1), hlrc_emu_index(base + 2)};
}
#define threadIdx (hlrc_emu_dim(0))
#define blockIdx (hlrc_emu_dim(3))
#define blockDim (hlrc_emu_dim(6))
#define gridDim (hlrc_emu_dim(9))
#define warpSize 32

#define __syncthreads() hlrc_emu_barrier(__FILE__, __LINE__)

// Vector types, aligned as CUDA aligns them: a misaligned wide access is an error.
#define HLRC_EMU_VECTOR(T, name, bytes)                                                             \
    struct __attribute__((aligned(2 * bytes))) name##2 { T x, y; };                                 \
    struct __attribute__((aligned(4 * bytes <= 16 ? 4 * bytes : 16))) name##4 { T x, y, z, w; };    \
    __forceinline__ name##2 make_##name##2(T x, T y) { return {x, y}; }                             \
    __forceinline__ name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
HLRC_EMU_VECTOR(signed char, char, 1)
HLRC_EMU_VECTOR(unsigned char, uchar, 1)
HLRC_EMU_VECTOR(short, short, 2)
HLRC_EMU_VECTOR(unsigned short, ushort, 2)
HLRC_EMU_VECTOR(int, int, 4)
HLRC_EMU_VECTOR(unsigned, uint, 4)
HLRC_EMU_VECTOR(float, float, 4)

#include "intrinsics.h"
#include "half.h"

// Launcher of one kernel: arguments are read from an array of pointers to values.
template <class... A, size_t... I>
__attribute__((no_sanitize_thread)) void hlrc_emu_call(void (*f)(A...), void* const* a, std::index_sequence<I...>) {
    f(*static_cast<A*>(a[I])...);
}
template <class... A>
__attribute__((no_sanitize_thread)) void hlrc_emu_apply(void (*f)(A...), void* const* a) {
    hlrc_emu_call(f, a, std::index_sequence_for<A...>{});
}
extern "C" char __start_hlrc_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_hlrc_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));
#define HLRC_EMU_EXPORT(kernel)                                                                     \
    static __attribute__((no_sanitize_thread)) void hlrc_emu_body(void* const* a) { hlrc_emu_apply(&kernel, a); } \
    extern "C" __attribute__((visibility("default"), no_sanitize_thread)) int hlrc_emu_run(HlrcEmuLaunch* launch, void* const* arguments) { \
        const HlrcEmuImage image = {__start_hlrc_shared, __stop_hlrc_shared, __ehdr_start, _end};   \
        return hlrc_emu_launch(launch, &image, &hlrc_emu_body, arguments);                          \
    }
