// Reading a KV cache: 8 values of a head at a time.
#pragma once
#include "device.cuh"

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
