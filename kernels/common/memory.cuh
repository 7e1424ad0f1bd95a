// Loads and stores with a purpose: streamed weights, values that other blocks publish, copies to
// shared memory that run beside arithmetic.
#pragma once
#include "device.cuh"

// Weights are read once: they should not push anything else out of the caches.
template <class T>
__device__ __forceinline__ T load_stream(const T* p) {
    return __ldcs(p);
}

// 32 bits that another block stores with `store_release` or adds to with `add_release`: what that
// block wrote before is visible afterwards (to this thread; to the block behind a barrier).
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
#ifdef HLRC_EMU
    return hlrc_emu_acquire(p);
#else
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
#endif
}
__device__ __forceinline__ void store_release(unsigned* p, unsigned v) {
#ifdef HLRC_EMU
    hlrc_emu_release(p, v);
#else
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}
// Adds and returns the old value; orders what this thread (and, behind a barrier, its block) wrote
// before, and what it reads after.
__device__ __forceinline__ unsigned add_acquire_release(unsigned* p, unsigned v) {
#ifdef HLRC_EMU
    hlrc_emu_fence();
    const unsigned old = atomicAdd(p, v);
    hlrc_emu_fence();
    return old;
#else
    unsigned old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
#endif
}
__device__ __forceinline__ void add_release(unsigned* p, unsigned v) {
#ifdef HLRC_EMU
    hlrc_emu_fence();
    atomicAdd(p, v);
#else
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}

#ifndef HLRC_EMU
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#endif

// Copies 16 bytes to shared memory; visible to this thread behind `async_wait`, to others behind a
// barrier as well. Both pointers are multiples of 16.
__device__ __forceinline__ void async_copy16(void* shared, const void* global) {
#ifdef HLRC_EMU
    hlrc_emu_async_copy(shared, global, 16, 16);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#endif
}
// The same, and zeros where `valid` is false; nothing is read then.
__device__ __forceinline__ void async_copy16_or_zero(void* shared, const void* global, bool valid) {
#ifdef HLRC_EMU
    hlrc_emu_async_copy(shared, global, 16, valid ? 16 : 0);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
#endif
}
__device__ __forceinline__ void async_copy4(void* shared, const void* global) {
#ifdef HLRC_EMU
    hlrc_emu_async_copy(shared, global, 4, 4);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#endif
}
__device__ __forceinline__ void async_copy8(void* shared, const void* global) {
#ifdef HLRC_EMU
    hlrc_emu_async_copy(shared, global, 8, 8);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#endif
}
// Ends a group of copies.
__device__ __forceinline__ void async_commit() {
#ifdef HLRC_EMU
    hlrc_emu_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most N of the latest groups are under way.
template <int N>
__device__ __forceinline__ void async_wait() {
#ifdef HLRC_EMU
    hlrc_emu_async_wait(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Asks for the line of an address in L2, ahead of its load.
__device__ __forceinline__ void prefetch(const void* p) {
#ifndef HLRC_EMU
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    (void)p;
#endif
}
// Programmatic dependent launch (sm_90 and up, where the launch asks for it). Waits until the grid
// before this one is done and what it wrote is visible; weights may be read earlier.
__device__ __forceinline__ void wait_previous_grid() {
#if !defined(HLRC_EMU) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets blocks of the next grid start where there is room.
__device__ __forceinline__ void start_next_grid() {
#if !defined(HLRC_EMU) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
