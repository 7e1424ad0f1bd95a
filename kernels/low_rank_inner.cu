// The inner activations of a low-rank term for many tokens: h[t] = V x[t].
//
// x: f16 [tokens, ldx]. V is a list of blocks of rows (v_tiles, 6 words each: offset in h, rows, first
// column, columns, offset in v (16 bytes), offset in v_scales), rows along their columns, padded to
// 16 bytes: VFORMAT 8 s8 with a scale per 64 columns, 4 nibbles (low one first, less 8) with a scale
// per 32, 16 f16, 32 f32. h: f32 [tokens, rank]; rows of a block are padded to 16 there, and those are 0.
// scalars[0]: tokens; more are left alone.
//
// EXPERTS 1, 2: grid.z = experts; `slots`, `starts` and rows of x as linear_prefill has them, rows of h are
// the slots'. Expert e has the blocks v_index[e] to v_index[e + 1].
//
// A block makes 16 rows of h for 16 tokens on tensor cores: each of its 8 warps takes every eighth unit of 32
// columns out of global memory, and their sums are added in the order of the warps. Products are exact
// (f32 V: in two halves, 22 bits), sums f32. grid (rank / 16, ceil(tokens / 16)).
// Bytes: V once per 16 tokens (from L2), x once per 16 rows.
//
// kernel: low_rank_inner abi=2
// defines: VFORMAT=4|8|16|32 EXPERTS=0..2
// args: x:const f16* v:const u8* v_scales:const f16* v_tiles:const u32* v_index:const u32* h:f32*
// args: scalars:const i32* slots:const i32* starts:const i32* ldx:i32 rank:i32 top_k:i32
// block: 256
#ifndef EXPERTS
#define EXPERTS 0
#endif
#include "common/half.cuh"
#include "common/mma.cuh"

#define UNIT 32

// Columns k .. k + 7 of a row of V as pairs of halves, codes less their zero point; zeros from `cols` on.
// rest: what f32 loses (VFORMAT 32).
__device__ __forceinline__ void load_v(const unsigned char* row, bool real, int k, int cols, unsigned (&pairs)[4], unsigned (&rest)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = rest[i] = 0u;
    if (!real || k >= cols) return;
#if VFORMAT == 8
    const uint2 w = *(const uint2*)(row + k);
    const __half2 offset = __float2half2_rn(1152.0f);
    from_bytes(w.x ^ 0x80808080u, offset, &pairs[0], &pairs[1]);
    from_bytes(w.y ^ 0x80808080u, offset, &pairs[2], &pairs[3]);
#elif VFORMAT == 4
    const unsigned w = *(const unsigned*)(row + k / 2), low = w & 0x0f0f0f0fu, high = w >> 4 & 0x0f0f0f0fu;
    const __half2 offset = __float2half2_rn(1032.0f);
    from_bytes(__byte_perm(low, high, 0x5140), offset, &pairs[0], &pairs[1]);
    from_bytes(__byte_perm(low, high, 0x7362), offset, &pairs[2], &pairs[3]);
#elif VFORMAT == 16
    const unsigned short* at = (const unsigned short*)row + k;
    if (k + 8 <= cols) {
        const uint4 w = *(const uint4*)at;
        pairs[0] = w.x, pairs[1] = w.y, pairs[2] = w.z, pairs[3] = w.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (k + i < cols) pairs[i / 2] |= (unsigned)at[i] << 16 * (i & 1);
    }
#else
    const float* at = (const float*)row + k;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float first = k + 2 * i < cols ? at[2 * i] : 0.0f, second = k + 2 * i + 1 < cols ? at[2 * i + 1] : 0.0f;
        pairs[i] = round_halves(first, second);
        const float2 kept = f16x2(pairs[i]);
        rest[i] = round_halves(first - kept.x, second - kept.y);
    }
#endif
}
// The same of a row of x; `whole`: 16 bytes lie at a multiple of 16.
__device__ __forceinline__ void load_x(const __half* row, bool real, bool whole, int k, int cols, unsigned (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = 0u;
    if (!real) return;
    if (whole && k + 8 <= cols) {
        const uint4 w = *(const uint4*)(row + k);
        pairs[0] = w.x, pairs[1] = w.y, pairs[2] = w.z, pairs[3] = w.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (k + i < cols) pairs[i / 2] |= (unsigned)__half_as_ushort(row[k + i]) << 16 * (i & 1);
}

extern "C" __global__ void __launch_bounds__(256, 2)
low_rank_inner(const __half* __restrict__ x, const unsigned char* __restrict__ v, const __half* __restrict__ v_scales,
               const unsigned* __restrict__ v_tiles, const unsigned* __restrict__ v_index, float* __restrict__ h, const int* __restrict__ scalars,
               const int* __restrict__ slots, const int* __restrict__ starts, int ldx, int rank, int top_k) {
    __shared__ float sums[8 * 256];
    const int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
#if EXPERTS
    const int expert = (int)blockIdx.z, tokens = starts[expert + 1] - starts[expert];
    const int* const own = slots + starts[expert];
    const unsigned *tile = v_tiles + 6 * (size_t)v_index[expert], *const last = v_tiles + 6 * (size_t)v_index[expert + 1];
#else
    const int tokens = scalars[0];
    const unsigned* tile = v_tiles;
#endif
    const int first_token = (int)blockIdx.y * 16, first = (int)blockIdx.x * 16;
    if (first_token >= tokens || first >= rank) return; // the whole block
#if EXPERTS
    // An expert of fewer ranks than others: nothing of U reads what is behind.
    while (tile < last && first >= (int)(tile[0] + (tile[1] + 15u) / 16u * 16u)) tile += 6;
    if (tile >= last) return; // the whole block
#else
    while (first >= (int)(tile[0] + (tile[1] + 15u) / 16u * 16u)) tile += 6;
#endif
    const int row0 = first - (int)tile[0], count = (int)tile[1], column0 = (int)tile[2], cols = (int)tile[3];
    const size_t stride = ((size_t)cols * VFORMAT / 8 + 15) / 16 * 16;
    const unsigned char* block = v + (size_t)tile[4] * 16;
    const __half* from[2]; // rows of x of tokens g and g + 8
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int token = min(first_token + g + 8 * n, tokens - 1);
#if EXPERTS
        const size_t slot = (size_t)own[token], x_row = EXPERTS == 1 ? slot / (size_t)top_k : slot;
#else
        const size_t x_row = (size_t)token;
#endif
        from[n] = x + x_row * (size_t)ldx + (size_t)column0;
    }
    const bool whole = column0 % 8 == 0;
    float sum[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}}; // [tokens 8 n + 2t, + 1][rows g, g, g + 8, g + 8]
#pragma unroll 4
    for (int k0 = warp * UNIT; k0 < cols; k0 += 8 * UNIT) {
        unsigned a[2][4], rest[2][4], b[2][4];
        const int k = k0 + 8 * t;
#pragma unroll
        for (int i = 0; i < 2; i++) load_v(block + (size_t)(row0 + g + 8 * i) * stride, row0 + g + 8 * i < count, k, cols, a[i], rest[i]);
#pragma unroll
        for (int n = 0; n < 2; n++) load_x(from[n], first_token + g + 8 * n < tokens, whole, k, cols, b[n]);
        float scale[2] = {1.0f, 1.0f};
#if VFORMAT <= 8
        const int every = VFORMAT == 8 ? 64 : 32, groups = (cols + every - 1) / every;
#pragma unroll
        for (int i = 0; i < 2; i++) scale[i] = row0 + g + 8 * i < count ? __half2float(v_scales[(size_t)tile[5] + (size_t)(row0 + g + 8 * i) * (size_t)groups + (size_t)(k0 / every)]) : 0.0f;
#endif
#pragma unroll
        for (int n = 0; n < 2; n++) {
            float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int half = 0; half < 2; half++) { // 16 of the unit's columns: 4 of each lane's 8
                const unsigned x2[2] = {b[n][2 * half], b[n][2 * half + 1]};
#if VFORMAT == 32
                const unsigned less[4] = {rest[0][2 * half], rest[1][2 * half], rest[0][2 * half + 1], rest[1][2 * half + 1]};
                mma_f16(part, less, x2);
#endif
                const unsigned v2[4] = {a[0][2 * half], a[1][2 * half], a[0][2 * half + 1], a[1][2 * half + 1]};
                mma_f16(part, v2, x2);
            }
            sum[n][0] = __fmaf_rn(scale[0], part[0], sum[n][0]), sum[n][1] = __fmaf_rn(scale[0], part[1], sum[n][1]);
            sum[n][2] = __fmaf_rn(scale[1], part[2], sum[n][2]), sum[n][3] = __fmaf_rn(scale[1], part[3], sum[n][3]);
        }
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[warp * 256 + (8 * n + 2 * t + (i & 1)) * 16 + g + 8 * (i >> 1)] = sum[n][i];
    __syncthreads();
    const int token = first_token + tid / 16, r = tid % 16;
    if (token >= tokens) return;
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; w++) all += sums[w * 256 + tid];
#if EXPERTS
    const size_t row = (size_t)own[token];
#else
    const size_t row = (size_t)token;
#endif
    h[row * (size_t)rank + (size_t)(first + r)] = all;
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(low_rank_inner)
#endif
