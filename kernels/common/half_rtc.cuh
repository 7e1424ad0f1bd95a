// f16 and bf16 for NVRTC, which has no cuda_fp16.h of its own: a user needs the driver and libnvrtc
// only. The same names and roundings, as far as kernels use them.
#pragma once

struct __align__(2) __half { unsigned short bits; };
struct __align__(4) __half2 { __half x, y; };
struct __align__(2) __nv_bfloat16 { unsigned short bits; };
typedef __half half;
typedef __half2 half2;

__device__ __forceinline__ float __half2float(__half h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h.bits));
    return f;
}
__device__ __forceinline__ __half __float2half_rn(float f) {
    __half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
    return h;
}
__device__ __forceinline__ __half __float2half(float f) { return __float2half_rn(f); }
__device__ __forceinline__ __half __ushort_as_half(unsigned short bits) {
    __half h;
    h.bits = bits;
    return h;
}
__device__ __forceinline__ unsigned short __half_as_ushort(__half h) { return h.bits; }
__device__ __forceinline__ float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float((unsigned)h.bits << 16); }
__device__ __forceinline__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 h;
    h.bits = bits;
    return h;
}
__device__ __forceinline__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }

__device__ __forceinline__ __half2 __halves2half2(__half x, __half y) {
    __half2 h;
    h.x = x;
    h.y = y;
    return h;
}
__device__ __forceinline__ __half2 __half2half2(__half x) { return __halves2half2(x, x); }
__device__ __forceinline__ __half2 __floats2half2_rn(float x, float y) { return __halves2half2(__float2half_rn(x), __float2half_rn(y)); }
__device__ __forceinline__ __half2 __float2half2_rn(float x) { return __half2half2(__float2half_rn(x)); }
__device__ __forceinline__ __half __low2half(__half2 h) { return h.x; }
__device__ __forceinline__ __half __high2half(__half2 h) { return h.y; }
__device__ __forceinline__ float __low2float(__half2 h) { return __half2float(h.x); }
__device__ __forceinline__ float __high2float(__half2 h) { return __half2float(h.y); }
__device__ __forceinline__ float2 __half22float2(__half2 h) { return make_float2(__half2float(h.x), __half2float(h.y)); }

__device__ __forceinline__ unsigned hlrc_half2_bits(__half2 h) { return (unsigned)h.x.bits | (unsigned)h.y.bits << 16; }
__device__ __forceinline__ __half2 hlrc_half2(unsigned bits) {
    return __halves2half2(__ushort_as_half((unsigned short)(bits & 0xffffu)), __ushort_as_half((unsigned short)(bits >> 16)));
}
#define HLRC_HALF2(name, instruction)                                                                     \
    __device__ __forceinline__ __half2 name(__half2 a, __half2 b) {                                       \
        unsigned r;                                                                                       \
        asm(instruction " %0, %1, %2;" : "=r"(r) : "r"(hlrc_half2_bits(a)), "r"(hlrc_half2_bits(b)));     \
        return hlrc_half2(r);                                                                             \
    }
HLRC_HALF2(__hadd2, "add.rn.f16x2")
HLRC_HALF2(__hsub2, "sub.rn.f16x2")
HLRC_HALF2(__hmul2, "mul.rn.f16x2")
__device__ __forceinline__ __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    unsigned r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(hlrc_half2_bits(a)), "r"(hlrc_half2_bits(b)), "r"(hlrc_half2_bits(c)));
    return hlrc_half2(r);
}
