// CUDA's intrinsics for emulation.
#pragma once
#include "collective.h"

template <class To, class From>
__forceinline__ To hlrc_emu_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
__forceinline__ int __float_as_int(float x) { return hlrc_emu_cast<int>(x); }
__forceinline__ unsigned __float_as_uint(float x) { return hlrc_emu_cast<unsigned>(x); }
__forceinline__ float __int_as_float(int x) { return hlrc_emu_cast<float>(x); }
__forceinline__ float __uint_as_float(unsigned x) { return hlrc_emu_cast<float>(x); }

// Arithmetic. Contraction is off in emulation, so plain operators round once each as well.
__forceinline__ float __fmul_rn(float a, float b) { return a * b; }
__forceinline__ float __fadd_rn(float a, float b) { return a + b; }
__forceinline__ float __fsub_rn(float a, float b) { return a - b; }
__forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
__forceinline__ float __fsqrt_rn(float a) { return sqrtf(a); }
__forceinline__ float __frcp_rn(float a) { return 1.0f / a; }
__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __expf(float a) { return expf(a); }
__forceinline__ float __logf(float a) { return logf(a); }
__forceinline__ float rsqrtf(float a) { return 1.0f / sqrtf(a); }
__forceinline__ int __float2int_rn(float a) { return (int)nearbyintf(a); }
__forceinline__ int __float2int_rd(float a) { return (int)floorf(a); }
__forceinline__ int __float2int_rz(float a) { return (int)a; }
__forceinline__ float __int2float_rn(int a) { return (float)a; }
__forceinline__ float __saturatef(float a) { return a < 0 ? 0 : a > 1 ? 1 : a; }

#define HLRC_EMU_MINMAX(T)                                                                          \
    __forceinline__ T min(T a, T b) { return b < a ? b : a; }                                       \
    __forceinline__ T max(T a, T b) { return a < b ? b : a; }
HLRC_EMU_MINMAX(int)
HLRC_EMU_MINMAX(unsigned)
HLRC_EMU_MINMAX(long long)
HLRC_EMU_MINMAX(unsigned long long)
HLRC_EMU_MINMAX(float)

// Bits.
__forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
__forceinline__ int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
__forceinline__ int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
__forceinline__ unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i);
    return r;
}
__forceinline__ unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = selector >> (4 * i) & 15u;
        unsigned byte = (unsigned)(both >> (8 * (s & 7u))) & 255u;
        if (s & 8u) byte = byte & 128u ? 255u : 0u; // the sign, spread
        r |= byte << (8 * i);
    }
    return r;
}
__forceinline__ unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
    return (unsigned)((((unsigned long long)hi << 32 | lo) << (shift & 31)) >> 32);
}
__forceinline__ unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) >> (shift & 31));
}
__forceinline__ int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
__forceinline__ unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
__forceinline__ int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(signed char)(a >> (8 * i)) * (int)(signed char)(b >> (8 * i));
    return c;
}
__forceinline__ unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += (a >> (8 * i) & 255u) * (b >> (8 * i) & 255u);
    return c;
}

// Lanes of a warp.
__forceinline__ int hlrc_emu_lane() {
    const unsigned linear = (hlrc_emu_index(2) * hlrc_emu_index(7) + hlrc_emu_index(1)) * hlrc_emu_index(6) + hlrc_emu_index(0);
    return (int)(linear & 31u);
}
template <class T>
__forceinline__ T hlrc_emu_shuffle(unsigned mask, T v, int source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "16, 32 or 64 bits");
    unsigned in[2] = {0, 0}, out[2];
    __builtin_memcpy(in, &v, sizeof v);
    hlrc_emu_collective(HLRC_EMU_SHUFFLE, mask, in, 2, source, out, 2);
    T r;
    __builtin_memcpy(&r, out, sizeof r);
    return r;
}
template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    const int lane = hlrc_emu_lane();
    return hlrc_emu_shuffle(mask, v, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
    const int lane = hlrc_emu_lane(), source = lane ^ bits;
    return hlrc_emu_shuffle(mask, v, source < (lane & ~(width - 1)) + width ? source : lane);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T v, int delta, int width = 32) {
    const int lane = hlrc_emu_lane(), source = lane + delta;
    return hlrc_emu_shuffle(mask, v, source < (lane & ~(width - 1)) + width ? source : lane);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T v, int delta, int width = 32) {
    const int lane = hlrc_emu_lane(), source = lane - delta;
    return hlrc_emu_shuffle(mask, v, source >= (lane & ~(width - 1)) ? source : lane);
}
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) { hlrc_emu_collective(HLRC_EMU_SYNC, mask, nullptr, 0, 0, nullptr, 0); }
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned in = predicate != 0, out;
    hlrc_emu_collective(HLRC_EMU_BALLOT, mask, &in, 1, 0, &out, 1);
    return out;
}
__forceinline__ int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
__forceinline__ int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
__forceinline__ int hlrc_emu_reduce(int kind, unsigned mask, int v) {
    unsigned in = (unsigned)v, out;
    hlrc_emu_collective(kind, mask, &in, 1, 0, &out, 1);
    return (int)out;
}
__forceinline__ int __reduce_add_sync(unsigned mask, int v) { return hlrc_emu_reduce(HLRC_EMU_REDUCE_ADD, mask, v); }
__forceinline__ int __reduce_min_sync(unsigned mask, int v) { return hlrc_emu_reduce(HLRC_EMU_REDUCE_MIN, mask, v); }
__forceinline__ int __reduce_max_sync(unsigned mask, int v) { return hlrc_emu_reduce(HLRC_EMU_REDUCE_MAX, mask, v); }

// Memory. Reads that a cache hint belongs to are plain loads here: the hooks count them.
template <class T> __forceinline__ T __ldg(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcs(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcg(const T* p) { return *p; }
template <class T> __forceinline__ T __ldca(const T* p) { return *p; }
template <class T> __forceinline__ void __stcs(T* p, T v) { *p = v; }
template <class T> __forceinline__ void __stcg(T* p, T v) { *p = v; }
__forceinline__ int atomicAdd(int* p, int v) { return (int)hlrc_emu_atomic(HLRC_EMU_ADD, p, (unsigned)v, 0); }
__forceinline__ unsigned atomicAdd(unsigned* p, unsigned v) { return hlrc_emu_atomic(HLRC_EMU_ADD, p, v, 0); }
__forceinline__ unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) { return hlrc_emu_atomic_add64(p, v); }
__forceinline__ float atomicAdd(float* p, float v) { return __uint_as_float(hlrc_emu_atomic(HLRC_EMU_ADD_FLOAT, p, __float_as_uint(v), 0)); }
__forceinline__ int atomicMin(int* p, int v) { return (int)hlrc_emu_atomic(HLRC_EMU_MIN, p, (unsigned)v, 0); }
__forceinline__ int atomicMax(int* p, int v) { return (int)hlrc_emu_atomic(HLRC_EMU_MAX, p, (unsigned)v, 0); }
__forceinline__ unsigned atomicMax(unsigned* p, unsigned v) { return hlrc_emu_atomic(HLRC_EMU_MAX_UNSIGNED, p, v, 0); }
__forceinline__ unsigned atomicOr(unsigned* p, unsigned v) { return hlrc_emu_atomic(HLRC_EMU_OR, p, v, 0); }
__forceinline__ int atomicExch(int* p, int v) { return (int)hlrc_emu_atomic(HLRC_EMU_EXCHANGE, p, (unsigned)v, 0); }
__forceinline__ unsigned atomicExch(unsigned* p, unsigned v) { return hlrc_emu_atomic(HLRC_EMU_EXCHANGE, p, v, 0); }
__forceinline__ int atomicCAS(int* p, int compare, int v) { return (int)hlrc_emu_atomic(HLRC_EMU_CAS, p, (unsigned)v, (unsigned)compare); }
__forceinline__ void __threadfence() { hlrc_emu_fence(); }
__forceinline__ void __threadfence_block() {}
__forceinline__ void __nanosleep(unsigned) { hlrc_emu_yield(); }
__forceinline__ void __trap() { hlrc_emu_trap("__trap()"); }
