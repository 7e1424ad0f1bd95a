// Activations in 8 bits: 32 along `in` share a scale absmax / 127; codes round to nearest even, as
// the CPU executor's do, bit for bit.
//
// Codes of a token lie in the order in which lanes of a warp read them: within 64 columns, byte
// 16 t + 4 i + b holds column 16 i + 4 t + b (t, i, b in 0..4). Columns beyond the width are 0.
#pragma once
#include "device.cuh"

// The 4 columns from k0 = 4 lane on of 128 that a warp rounds; lanes whose columns lie beyond the
// padded width take part with zeros.
struct Q8 {
    unsigned codes; // one byte each
    float scale;    // of the block of 32
    int sum;        // of the block's codes
};

__device__ __forceinline__ int q8_code(float x, float inverse) {
    // 1.5 * 2^23: the sum's low bits are the number, rounded to nearest even.
    return (int)(signed char)(__float_as_uint(__fadd_rn(__fmul_rn(x, inverse), 12582912.0f)) & 255u);
}

// Rounds 4 neighbouring columns; the 8 lanes that hold 32 of them exchange the largest magnitude.
__device__ __forceinline__ Q8 q8_round(const float (&x)[4]) {
    // Magnitudes compare as integers; NaN is largest and reaches the scale.
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) largest = max(largest, __float_as_uint(x[i]) & 0x7fffffffu);
#pragma unroll
    for (int d = 1; d < 8; d *= 2) largest = max(largest, __shfl_xor_sync(HLRC_FULL_WARP, largest, d));
    const float magnitude = __uint_as_float(largest);
    Q8 q = {0u, 0.0f, 0};
    if (!(magnitude < 1e-30f)) { // below, 1 / magnitude would overflow
        const float inverse = __fdiv_rn(127.0f, magnitude);
        q.scale = __fdiv_rn(magnitude, 127.0f);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int code = q8_code(x[i], inverse);
            q.codes |= ((unsigned)code & 255u) << (8 * i);
            q.sum += code;
        }
    }
#pragma unroll
    for (int d = 1; d < 8; d *= 2) q.sum += __shfl_xor_sync(HLRC_FULL_WARP, q.sum, d);
    return q;
}

// Word (of 4 codes) of a token that holds columns k..k+3, k a multiple of 4.
__device__ __forceinline__ int q8_word(int k) {
    const int within = k & 63;
    return (k >> 6) * 16 + ((within & 15) >> 2) * 4 + (within >> 4);
}

// Rounds a token whose column k is value(k), by all warps of the blocks along y. codes: words of the token,
// padded to 64 columns; scales and sums: one per 32 columns, padded likewise.
template <class Value>
__device__ __forceinline__ void q8_token(int width, Value value, unsigned* codes, float* scales, int* sums) {
    const int padded = (width + 63) & ~63;
    const int lane = (int)threadIdx.x & 31, own = (int)blockDim.x >> 5, warps = own * (int)gridDim.y;
    const int warp = (int)blockIdx.y * own + ((int)threadIdx.x >> 5);
    for (int k0 = warp * 128; k0 < padded; k0 += warps * 128) {
        const int k = k0 + 4 * lane;
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = k + i < width ? value(k + i) : 0.0f;
        const Q8 q = q8_round(x);
        if (k < padded) {
            codes[q8_word(k)] = q.codes;
            if ((lane & 7) == 0) {
                scales[k >> 5] = q.scale;
                sums[k >> 5] = q.sum;
            }
        }
    }
}
