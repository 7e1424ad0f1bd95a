// What goes into a decode linear: M tokens, normalised, rounded and laid out in shared memory in
// the order in which lanes read them.
//
// Defines: those of packs.cuh, and M (1 to 8) ACT (0 int8, 1 exact) XIN (0 f32, 1 RMS norm,
// 2 layer norm, 3 int8 codes) XSCALE (0, 1).
#pragma once
#include "packs.cuh"
#include "reduce.cuh"

#ifndef WARPS
#define WARPS 16
#endif
#define THREADS (32 * WARPS)

// Activations of all tokens as one `mma` operand, and what scales them. ACT 0: codes s8, in each
// 64 columns byte 16 t + 4 i + b is column 16 i + 4 t + b. ACT 1 with codes as weights: f16 in the
// same order, divided with the token's power of two. Trellis: plain order, codes four times each, or
// quotients as f16. Float weights: f32 in plain order.
// Bytes of a token, padded so that those of neighbours meet in no bank.
#if FORMAT == 5
#define X_STRIDE(tiles) 0
#elif FORMAT == 4
#define X_STRIDE(tiles) (ACT == 1 ? (tiles) * 128 + 32 : (tiles) * 256 + 64)
#elif FORMAT != 0
#define X_STRIDE(tiles) ((tiles) * 256 + 16)
#elif ACT == 1
#define X_STRIDE(tiles) ((tiles) * 128 + 16)
#else
#define X_STRIDE(tiles) ((tiles) * 64 + ((tiles) % 2 ? 0 : 64))
#endif
// Tokens of a table entry; a lane reads two neighbours.
#define TABLE_TOKENS (M == 1 ? 1 : (M + 1) / 2 * 2)
#define CODED (FORMAT == 0 || FORMAT == 4)
#define TABLE_BYTES(tiles) (CODED && ACT == 0 ? (tiles) * TABLE_TOKENS * 16 : 0)

struct Input {
    const float* x; // [M, ld]
    const float* gain;
    const float* beta;
    int ld, cols;
    bool vectors; // rows are aligned to 16 bytes
    float* inverse; // [M] in shared memory: of the deviation
    float* mean;    // [M]
};

// Four neighbouring floats, 0 beyond the columns.
__device__ __forceinline__ float4 load4(const float* row, int k, int cols, bool vectors) {
    if (vectors) return k < cols ? *(const float4*)(row + k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(k < cols ? row[k] : 0.0f, k + 1 < cols ? row[k + 1] : 0.0f, k + 2 < cols ? row[k + 2] : 0.0f, k + 3 < cols ? row[k + 3] : 0.0f);
}
// Four neighbouring inputs as the linear sees them, 0 beyond the columns; k is a multiple of 4
// where `vectors`.
__device__ __forceinline__ float4 input4(const Input& in, int m, int k, bool vectors) {
    float4 v = load4(in.x + (size_t)m * in.ld, k, in.cols, vectors);
#if XIN == 1 || XIN == 2
    const float4 gain = load4(in.gain, k, in.cols, vectors);
    const float inverse = in.inverse[m];
#if XIN == 2
    const float mean = in.mean[m];
    float4 beta = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (in.beta) beta = load4(in.beta, k, in.cols, vectors);
    // Gain and shift are 0 beyond the columns, and so is what comes out.
    v.x = fmaf((v.x - mean) * inverse, gain.x, beta.x), v.y = fmaf((v.y - mean) * inverse, gain.y, beta.y);
    v.z = fmaf((v.z - mean) * inverse, gain.z, beta.z), v.w = fmaf((v.w - mean) * inverse, gain.w, beta.w);
#else
    v.x = v.x * inverse * gain.x, v.y = v.y * inverse * gain.y, v.z = v.z * inverse * gain.z, v.w = v.w * inverse * gain.w;
#endif
#endif
    return v;
}
// The same as Q sees them: times the scales of columns.
__device__ __forceinline__ float4 scaled4(const Input& in, const float* xscale, int m, int k, bool vectors) {
    float4 v = input4(in, m, k, vectors);
#if XSCALE
    const float4 scale = load4(xscale, k, in.cols, vectors);
    v.x *= scale.x, v.y *= scale.y, v.z *= scale.z, v.w *= scale.w;
#endif
    return v;
}
// One input.
__device__ __forceinline__ float input1(const Input& in, int m, int k) {
    float v = in.x[(size_t)m * in.ld + k];
#if XIN == 2
    v = fmaf((v - in.mean[m]) * in.inverse[m], in.gain[k], in.beta ? in.beta[k] : 0.0f);
#elif XIN == 1
    v = v * in.inverse[m] * in.gain[k];
#endif
    return v;
}

// Sums over the block of one number per token, left in out[m] by thread m: a barrier must follow
// before others read it or `scratch`, M * WARPS floats, is used again.
__device__ __forceinline__ void sum_tokens(const float (&v)[M], float* scratch, float* out) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < M; m++) {
        const float s = warp_sum(v[m]);
        if (lane == 0) scratch[m * WARPS + warp] = s;
    }
    __syncthreads();
    if (threadIdx.x < M) {
        float s = 0.0f;
        for (int w = 0; w < WARPS; w++) s += scratch[threadIdx.x * WARPS + w];
        out[threadIdx.x] = s;
    }
}

// Mean and inverse deviation of each token.
__device__ __forceinline__ void measure_inputs(const Input& in, float eps, float* scratch) {
#if XIN == 1 || XIN == 2
    float sums[M];
#if XIN == 2
#pragma unroll
    for (int m = 0; m < M; m++) {
        sums[m] = 0.0f;
        for (int k = threadIdx.x; k < in.cols; k += THREADS) sums[m] += in.x[(size_t)m * in.ld + k];
    }
    sum_tokens(sums, scratch, in.mean);
    if (threadIdx.x < M) in.mean[threadIdx.x] /= (float)in.cols;
    __syncthreads();
#endif
#pragma unroll
    for (int m = 0; m < M; m++) {
        sums[m] = 0.0f;
#if XIN == 2
        const float mean = in.mean[m];
#else
        const float mean = 0.0f;
#endif
        const float* x = in.x + (size_t)m * in.ld;
        if (in.vectors) {
            for (int k = 4 * threadIdx.x; k < in.cols; k += 16 * THREADS) {
                float4 v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) // beyond the columns: the mean, which adds nothing
                    v[i] = k + 4 * i * THREADS < in.cols ? *(const float4*)(x + k + 4 * i * THREADS) : make_float4(mean, mean, mean, mean);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float a = v[i].x - mean, b = v[i].y - mean, c = v[i].z - mean, d = v[i].w - mean;
                    sums[m] = fmaf(d, d, fmaf(c, c, fmaf(b, b, fmaf(a, a, sums[m]))));
                }
            }
        } else {
            for (int k = threadIdx.x; k < in.cols; k += THREADS) {
                const float a = x[k] - mean;
                sums[m] = fmaf(a, a, sums[m]);
            }
        }
    }
    sum_tokens(sums, scratch, in.inverse);
    if (threadIdx.x < M) in.inverse[threadIdx.x] = 1.0f / sqrtf(in.inverse[threadIdx.x] / (float)in.cols + eps);
    __syncthreads();
#endif
}

#if CODED && ACT == 0
__device__ __forceinline__ unsigned magnitude_bits(float4 v) {
    return max(max(__float_as_uint(v.x) & 0x7fffffffu, __float_as_uint(v.y) & 0x7fffffffu),
               max(__float_as_uint(v.z) & 0x7fffffffu, __float_as_uint(v.w) & 0x7fffffffu));
}
// Codes of four inputs. 1.5 * 2^23: the low bits of the sum are the number, rounded.
__device__ __forceinline__ unsigned codes4(float4 v, float inverse) {
    const unsigned low = __byte_perm(__float_as_uint(__fadd_rn(__fmul_rn(v.x, inverse), 12582912.0f)),
                                     __float_as_uint(__fadd_rn(__fmul_rn(v.y, inverse), 12582912.0f)), 0x0040);
    const unsigned high = __byte_perm(__float_as_uint(__fadd_rn(__fmul_rn(v.z, inverse), 12582912.0f)),
                                      __float_as_uint(__fadd_rn(__fmul_rn(v.w, inverse), 12582912.0f)), 0x0040);
    return __byte_perm(low, high, 0x5410);
}
// Rounds eight inputs with the 24 others of their block of 32, which three neighbouring lanes
// hold. As ggml's q8_0 activations: scale absmax / 127, to nearest even.
__device__ __forceinline__ void round8(float4 v0, float4 v1, unsigned (&codes)[2], float& scale, int& sum) {
    unsigned largest = max(magnitude_bits(v0), magnitude_bits(v1));
#pragma unroll
    for (int d = 1; d < 4; d *= 2) largest = max(largest, __shfl_xor_sync(HLRC_FULL_WARP, largest, d));
    const float top = __uint_as_float(largest); // NaN compares as largest and reaches the scale
    const bool some = !(top < 1e-30f);
    const float inverse = some ? __fdiv_rn(127.0f, top) : 0.0f;
    codes[0] = codes4(v0, inverse), codes[1] = codes4(v1, inverse);
    sum = __dp4a((int)codes[1], 0x01010101, __dp4a((int)codes[0], 0x01010101, 0));
    scale = some ? __fdiv_rn(top, 127.0f) : 0.0f;
#pragma unroll
    for (int d = 1; d < 4; d *= 2) sum += __shfl_xor_sync(HLRC_FULL_WARP, sum, d);
}

// Entry of a tile and a token: scales of its two blocks over the factors of their codes, and what
// zero points of codes are worth. For symmetric groups of 32, of each block; for wider ones, of
// both together in z. With zero points those are still to be multiplied with it.
// Trellis: of each block the integer that its products start from.
__device__ __forceinline__ void table_entry(float4* table, int tile, int m, float scale0, float scale1, int sum0, int sum1,
                                            float& correction) {
#if FORMAT == 4
    (void)correction;
    table[tile * TABLE_TOKENS + m] = make_float4(scale0, scale1, __int_as_float(-MIDPOINT * sum0), __int_as_float(-MIDPOINT * sum1));
#else
    const int first = CHUNK_TILES == 2 ? 2 * (tile & 1) : 0;
    const float midpoint = ZEROS ? 1.0f : (float)MIDPOINT;
    float c0 = -midpoint * (scale0 * (float)sum0), c1 = -midpoint * (scale1 * (float)sum1);
    if (GROUP != 32) c0 += c1, c1 = 0.0f;
    correction += c0;
    table[tile * TABLE_TOKENS + m] = make_float4(scale0 / (float)code_factor(first), scale1 / (float)code_factor(first + 1), c0, c1);
#endif
}
#endif

#if FORMAT == 4 && ACT == 0
// Four codes, each four times.
__device__ __forceinline__ uint4 four_times(unsigned codes) {
    return make_uint4(__byte_perm(codes, 0, 0x0000), __byte_perm(codes, 0, 0x1111), __byte_perm(codes, 0, 0x2222), __byte_perm(codes, 0, 0x3333));
}
#endif

#if CODED
// Rounds and places the inputs of all tokens, by threads from `skip` on, a multiple of 32; adds zero-point
// terms to `total`. `between` runs when the first inputs are on their way.
template <bool VECTORS, class Between>
__device__ __forceinline__ void round_inputs(int skip, const Between& between, const Input& in, const float* xscale, const Pack& pack, unsigned char* placed, int stride,
                                             float4* table, const float* powers, float (&total)[M]) {
    const int eights = pack.tiles * 8;
    (void)table, (void)powers;
    // Several loads are on their way before the first is used: one thread's items, of eight
    // inputs, are `threads` apart in the line of all tokens' inputs.
    constexpr int BATCH = 2;
    const int thread = (int)threadIdx.x - skip, threads = THREADS - skip;
    if (thread < 0) return;
    int m = 0, e = thread;
    while (e >= eights && m < M) e -= eights, m++;
    if ((thread & ~31) >= M * eights) between();
    for (int first = thread & ~31; first < M * eights; first += BATCH * threads) { // whole warps
        float4 v[BATCH][2];
        int token[BATCH], eight[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            token[i] = m, eight[i] = e;
            v[i][0] = scaled4(in, xscale, min(m, M - 1), 8 * e, VECTORS);
            v[i][1] = scaled4(in, xscale, min(m, M - 1), 8 * e + 4, VECTORS);
            e += threads;
            while (e >= eights && m < M) e -= eights, m++;
        }
        if (first < threads) between();
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int tile = eight[i] / 8, part = eight[i] / 2 % 4, t = eight[i] % 2 * 2; // and t + 1
            const bool inside = token[i] < M;
            unsigned char* const row = placed + (size_t)token[i] * stride;
            float correction = 0.0f;
#if ACT == 0
            float scale;
            int sum;
            unsigned codes[2];
            round8(v[i][0], v[i][1], codes, scale, sum);
            const float scale1 = __shfl_xor_sync(HLRC_FULL_WARP, scale, 4);
            const int sum1 = __shfl_xor_sync(HLRC_FULL_WARP, sum, 4);
            if (inside) {
#if FORMAT == 4
                (void)part, (void)t;
                uint4* const to = (uint4*)(row + 32 * eight[i]);
                to[0] = four_times(codes[0]), to[1] = four_times(codes[1]);
#else
                unsigned* const to = (unsigned*)(row + tile * 64 + 16 * t + 4 * part);
                to[0] = codes[0], to[4] = codes[1];
#endif
                if (eight[i] % 8 == 0) table_entry(table, tile, token[i], scale, scale1, sum, sum1, correction);
            }
#else
            if (inside) {
                const int block = CHUNK_TILES == 2 ? 2 * (tile & 1) + part / 2 : part / 2;
                const float to = 1.0f / (powers[token[i]] * (float)code_factor(block)); // a power of two
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float4 x = v[i][h];
                    const uint2 halves = make_uint2(f16x2_bits(x.x * to, x.y * to), f16x2_bits(x.z * to, x.w * to));
                    const float2 low = f16x2(halves.x), high = f16x2(halves.y);
                    correction -= ((low.x + low.y) + (high.x + high.y)) * (float)code_factor(block);
                    *(uint2*)(row + (FORMAT == 4 ? 16 * eight[i] + 8 * h : tile * 128 + 32 * (t + h) + 8 * part)) = halves;
                }
            }
#endif
#pragma unroll
            for (int to = 0; to < M; to++) total[to] += to == token[i] ? correction : 0.0f;
        }
    }
}
#endif

// Fills shared memory from all threads; a barrier must follow. `corrections` [M] gets the sum of
// all zero-point terms of a token where rows share one zero point; `powers` [M] the token's power
// of two. `between` runs once, when the first inputs are on their way: copies that start there do not
// stand in front of them. Threads before `skip` do not round.
template <class Between>
__device__ __forceinline__ void place_inputs(int skip, const Between& between, const Input& in, const float* xscale, const signed char* xq, const float* xs,
                                             const int* xsum, const Pack& pack, unsigned char* placed, int stride, float4* table,
                                             float* powers, float* corrections, float* scratch) {
    (void)skip;
#if FORMAT == 5
    between();
#elif !CODED
    between();
    const int quads = pack.tiles * 16;
    for (int first = threadIdx.x; first < quads; first += 4 * THREADS)
        for (int m = 0; m < M; m++) {
            float4 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] = scaled4(in, xscale, m, 4 * (first + i * THREADS), in.vectors);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (first + i * THREADS < quads) *(float4*)(placed + (size_t)m * stride + 16 * (first + i * THREADS)) = v[i];
        }
#else
    float total[M];
#pragma unroll
    for (int m = 0; m < M; m++) total[m] = 0.0f;
#if ACT == 1
    const int quads = pack.tiles * 16;
    // The largest magnitude gets the exponent of 2^14.
    for (int m = 0; m < M; m++) {
        float largest = 0.0f;
        for (int q = threadIdx.x; q < quads; q += THREADS) {
            const float4 v = scaled4(in, xscale, m, 4 * q, in.vectors);
            largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
        }
        largest = block_max(largest, scratch);
        const int exponent = max(1, min(253, (int)(__float_as_uint(largest) >> 23))); // subnormal and infinite ones too
        if (threadIdx.x == 0) powers[m] = __uint_as_float((unsigned)max(1, exponent - 14) << 23);
    }
    __syncthreads();
#endif
#if XIN == 3 && ACT == 0
    const int width = (in.cols + 63) / 64 * 64;
    for (int item = threadIdx.x; item < M * pack.tiles * 4; item += THREADS) {
        const int m = item / (pack.tiles * 4), part = item % (pack.tiles * 4);
#if FORMAT == 4
        const uint4 codes = *(const uint4*)(xq + (size_t)m * width + 16 * part); // widths are padded alike
        uint4* const to = (uint4*)(placed + (size_t)m * stride + part / 4 * 256 + part % 4 * 16);
        to[0] = four_times(codes.x), to[4] = four_times(codes.y), to[8] = four_times(codes.z), to[12] = four_times(codes.w);
#else
        // Codes lie as they are wanted.
        async_copy16_or_zero(placed + (size_t)m * stride + 16 * part, 16 * part < width ? xq + (size_t)m * width + 16 * part : xq, 16 * part < width);
#endif
    }
#if FORMAT != 4
    async_commit();
#endif
    between();
    for (int item = threadIdx.x; item < M * pack.tiles; item += THREADS) {
        const int m = item / pack.tiles, tile = item % pack.tiles;
        const bool there = 64 * tile < width;
        const size_t at = (size_t)m * (width / 32) + 2 * tile;
        const float scale0 = there ? xs[at] : 0.0f, scale1 = there ? xs[at + 1] : 0.0f;
        const int sum0 = there ? xsum[at] : 0, sum1 = there ? xsum[at + 1] : 0;
        float correction = 0.0f;
        table_entry(table, tile, m, scale0, scale1, sum0, sum1, correction);
#pragma unroll
        for (int token = 0; token < M; token++) total[token] += token == m ? correction : 0.0f;
    }
#if FORMAT != 4
    async_wait<0>();
#endif
#else
    if (in.vectors)
        round_inputs<true>(skip, between, in, xscale, pack, placed, stride, table, powers, total);
    else
        round_inputs<false>(skip, between, in, xscale, pack, placed, stride, table, powers, total);
#endif
#if ZEROS && GROUP == 0
    sum_tokens(total, scratch, corrections);
#endif
#endif
}
