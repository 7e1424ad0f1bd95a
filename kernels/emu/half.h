// f16 and bf16 for emulation: conversions round to nearest, ties to even.
#pragma once

__forceinline__ float hlrc_emu_f16_to_f32(unsigned short h) {
    const unsigned sign = (unsigned)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 1023u;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = (float)mantissa * 5.9604644775390625e-8f; // 2^-24
    return sign ? -small : small;
}
__forceinline__ unsigned short hlrc_emu_f32_to_f16(float f) {
    const unsigned bits = __float_as_uint(f), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (unsigned short)(sign | 0x7fffu); // what CUDA makes of NaN
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u); // 65520 and above
    if (magnitude < 0x38800000u) { // subnormal: the sum's low bits are the number, rounded
        const float shifted = __uint_as_float(magnitude) + 0.5f; // ulp of [0.5, 1) is 2^-24
        return (unsigned short)(sign | (__float_as_uint(shifted) - 0x3f000000u));
    }
    const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (unsigned short)(sign | (rounded - 0x38000000u) >> 13);
}
__forceinline__ float hlrc_emu_bf16_to_f32(unsigned short h) { return __uint_as_float((unsigned)h << 16); }
__forceinline__ unsigned short hlrc_emu_f32_to_bf16(float f) {
    const unsigned bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

struct __attribute__((aligned(2))) __half { unsigned short bits; };
struct __attribute__((aligned(4))) __half2 { __half x, y; };
struct __attribute__((aligned(2))) __nv_bfloat16 { unsigned short bits; };
struct __attribute__((aligned(4))) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __half half;
typedef __half2 half2;

__forceinline__ float __half2float(__half h) { return hlrc_emu_f16_to_f32(h.bits); }
__forceinline__ __half __float2half_rn(float f) { return {hlrc_emu_f32_to_f16(f)}; }
__forceinline__ __half __float2half(float f) { return __float2half_rn(f); }
__forceinline__ __half __ushort_as_half(unsigned short bits) { return {bits}; }
__forceinline__ unsigned short __half_as_ushort(__half h) { return h.bits; }
__forceinline__ __half2 __halves2half2(__half x, __half y) { return {x, y}; }
__forceinline__ __half2 __half2half2(__half x) { return {x, x}; }
__forceinline__ __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
__forceinline__ __half2 __float2half2_rn(float x) { return __floats2half2_rn(x, x); }
__forceinline__ __half __low2half(__half2 h) { return h.x; }
__forceinline__ __half __high2half(__half2 h) { return h.y; }
__forceinline__ float __low2float(__half2 h) { return __half2float(h.x); }
__forceinline__ float __high2float(__half2 h) { return __half2float(h.y); }
__forceinline__ float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
// Sums and products of two f16 are exact in f64, so one rounding follows.
__forceinline__ __half hlrc_emu_f64_to_f16(double d) {
    float f = (float)d; // round to odd, then to f16: no double rounding
    if ((double)f != d && !(__float_as_uint(f) & 1u)) {
        const bool away = fabs((double)f) > fabs(d);
        f = __uint_as_float(__float_as_uint(f) + (away ? -1u : 1u));
    }
    return __float2half_rn(f);
}
__forceinline__ __half __hadd(__half a, __half b) { return hlrc_emu_f64_to_f16((double)__half2float(a) + __half2float(b)); }
__forceinline__ __half __hsub(__half a, __half b) { return hlrc_emu_f64_to_f16((double)__half2float(a) - __half2float(b)); }
__forceinline__ __half __hmul(__half a, __half b) { return hlrc_emu_f64_to_f16((double)__half2float(a) * __half2float(b)); }
__forceinline__ __half __hfma(__half a, __half b, __half c) { return hlrc_emu_f64_to_f16((double)__half2float(a) * __half2float(b) + __half2float(c)); }
__forceinline__ __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
__forceinline__ __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
__forceinline__ __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
__forceinline__ __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
__forceinline__ float __bfloat162float(__nv_bfloat16 h) { return hlrc_emu_bf16_to_f32(h.bits); }
__forceinline__ __nv_bfloat16 __float2bfloat16_rn(float f) { return {hlrc_emu_f32_to_bf16(f)}; }
__forceinline__ __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }
__forceinline__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
__forceinline__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
