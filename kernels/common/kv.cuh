// Reading a KV cache: some neighbouring values of a head at a time.
#pragma once
#include "half.cuh"

// Values 8 piece .. 8 piece + 7 of the head at index `at` (row · kv_heads + head); zeros beyond `dim`.
// `kv` 0: f16; 1: s8 codes with a f16 scale per 32 values.
template <int dim, int kv>
__device__ __forceinline__ void load_piece(const unsigned char* cache, const __half* scales, size_t at, int piece, float (&out)[8]) {
    const size_t first = at * dim + (size_t)(8 * piece);
    if (kv == 0) {
        const __half* values = (const __half*)cache + first;
        if (dim % 8 == 0) {
            const uint4 v = *(const uint4*)values;
            const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                out[2 * i] = __half2float(__ushort_as_half((unsigned short)(words[i] & 0xffffu)));
                out[2 * i + 1] = __half2float(__ushort_as_half((unsigned short)(words[i] >> 16)));
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] = 8 * piece + i < dim ? __half2float(values[i]) : 0.0f;
        }
    } else {
        const signed char* codes = (const signed char*)cache + first;
        const float scale = __half2float(scales[at * ((dim + 31) / 32) + (size_t)(piece / 4)]);
        if (dim % 8 == 0) {
            const uint2 v = *(const uint2*)codes;
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] = scale * (float)(signed char)((i < 4 ? v.x : v.y) >> (8 * (i & 3)) & 255u);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] = 8 * piece + i < dim ? scale * (float)codes[i] : 0.0f;
        }
    }
}

// 4, 8 or 16 bytes, or zeros.
__device__ __forceinline__ void load_words(const void* from, bool there, unsigned (&words)[1]) { words[0] = there ? *(const unsigned*)from : 0u; }
__device__ __forceinline__ void load_words(const void* from, bool there, unsigned (&words)[2]) {
    const uint2 v = there ? *(const uint2*)from : make_uint2(0u, 0u);
    words[0] = v.x, words[1] = v.y;
}
__device__ __forceinline__ void load_words(const void* from, bool there, unsigned (&words)[4]) {
    const uint4 v = there ? *(const uint4*)from : make_uint4(0u, 0u, 0u, 0u);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}
// The same bytes of a cache, as they are: n values from dimension `first` on, of n · size = 4 · W bytes, of
// the head at index `at`; zeros where `there` is false, which is not read, and beyond `dim`.
template <int dim, int kv, int W>
__device__ __forceinline__ void load_raw(const unsigned char* cache, size_t at, int first, bool there, unsigned (&words)[W]) {
    constexpr int size = kv == 0 ? 2 : 1, n = 4 * W / size;
    const unsigned char* const from = cache + (at * dim + (size_t)first) * size;
    if (dim % n == 0) {
        load_words(from, there && first < dim, words);
    } else {
#pragma unroll
        for (int w = 0; w < W; w++) {
            words[w] = 0u;
#pragma unroll
            for (int i = 0; i < 4 / size; i++)
                if (there && first + w * 4 / size + i < dim)
                    words[w] |= (kv == 0 ? (unsigned)((const unsigned short*)from)[2 * w + i] : (unsigned)from[4 * w + i]) << (8 * size * i);
        }
    }
}
// Pairs of f16 of what `load_raw` gave: of codes the integers, exact.
__device__ __forceinline__ void halves_of(const unsigned (&words)[4], unsigned (&halves)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) halves[i] = words[i];
}
// 0x6480 is 1024 + 128, whose last place is 1; the sign bit of a code becomes part of an unsigned one.
template <int W>
__device__ __forceinline__ void halves_of(const unsigned (&words)[W], unsigned (&halves)[2 * W]) {
#pragma unroll
    for (int i = 0; i < W; i++) {
        const unsigned codes = words[i] ^ 0x80808080u;
        halves[2 * i] = subtract_halves(__byte_perm(codes, 0x64646464u, 0x4140), 0x64806480u);
        halves[2 * i + 1] = subtract_halves(__byte_perm(codes, 0x64646464u, 0x4342), 0x64806480u);
    }
}
// Scales of all blocks of 32 of a head, in words of two.
template <int dim>
__device__ __forceinline__ void load_scales(const __half* scales, size_t at, bool there, unsigned (&words)[((dim + 31) / 32 + 1) / 2]) {
    constexpr int blocks = (dim + 31) / 32;
    const __half* const from = scales + at * blocks;
#pragma unroll
    for (int w = 0; w < (blocks + 1) / 2; w++) {
        if (blocks % 2 == 0) {
            words[w] = there ? ((const unsigned*)from)[w] : 0u;
        } else {
            words[w] = there ? (unsigned)__half_as_ushort(from[2 * w]) : 0u;
            if (2 * w + 1 < blocks) words[w] |= (there ? (unsigned)__half_as_ushort(from[2 * w + 1]) : 0u) << 16;
        }
    }
}
