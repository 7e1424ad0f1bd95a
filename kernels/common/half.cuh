// f16 and bf16 bits to f32 and back.
#pragma once
#include "device.cuh"

__device__ __forceinline__ float f16_value(unsigned bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
__device__ __forceinline__ unsigned f16_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }
// Both halves of a word, the low one first.
__device__ __forceinline__ float2 f16x2(unsigned word) { return make_float2(f16_value(word & 0xffffu), f16_value(word >> 16)); }
__device__ __forceinline__ float2 bf16x2(unsigned word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ unsigned f16x2_bits(float x, float y) { return f16_bits(x) | f16_bits(y) << 16; }
// Two halves and their bits.
__device__ __forceinline__ __half2 bits_half2(unsigned word) {
    return __halves2half2(__ushort_as_half((unsigned short)(word & 0xffffu)), __ushort_as_half((unsigned short)(word >> 16)));
}
__device__ __forceinline__ unsigned half2_bits(__half2 h) {
    return __half_as_ushort(__low2half(h)) | (unsigned)__half_as_ushort(__high2half(h)) << 16;
}
// a - b of two pairs of halves as words: through the types of cuda_fp16.h a compiler takes words apart
// and puts them together again.
__device__ __forceinline__ unsigned subtract_halves(unsigned a, unsigned b) {
#ifdef HLRC_EMU
    return half2_bits(__hsub2(bits_half2(a), bits_half2(b)));
#else
    unsigned d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
#endif
}
// Two operands of a lane's row out of four unsigned bytes: code - zero as f16, `offset` = 1024 + zero.
__device__ __forceinline__ void from_bytes(unsigned codes, __half2 offset, unsigned* first, unsigned* second) {
    *first = subtract_halves(__byte_perm(codes, 0x64646464u, 0x4140), half2_bits(offset));
    *second = subtract_halves(__byte_perm(codes, 0x64646464u, 0x4342), half2_bits(offset));
}
// f16x2_bits in one instruction.
__device__ __forceinline__ unsigned round_halves(float x, float y) {
#ifdef HLRC_EMU
    return f16x2_bits(x, y);
#else
    unsigned d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(y), "f"(x));
    return d;
#endif
}
