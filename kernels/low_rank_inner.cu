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
// A block makes 16 rows of h for 16 tokens: a thread for each, over tiles of 64 columns in shared memory.
// grid (rank / 16, ceil(tokens / 16)).
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
#include "common/device.cuh"

#define COLUMNS 64
#define STRIDE (COLUMNS + 1)

extern "C" __global__ void __launch_bounds__(256)
low_rank_inner(const __half* __restrict__ x, const unsigned char* __restrict__ v, const __half* __restrict__ v_scales,
               const unsigned* __restrict__ v_tiles, const unsigned* __restrict__ v_index, float* __restrict__ h, const int* __restrict__ scalars,
               const int* __restrict__ slots, const int* __restrict__ starts, int ldx, int rank, int top_k) {
    __shared__ float rows[16 * STRIDE], values[16 * STRIDE];
    const int tid = (int)threadIdx.x, r = tid / 16, t = tid % 16;
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
    const int token = first_token + t;
    size_t y_row = 0;
#if EXPERTS
    if (token < tokens) y_row = (size_t)own[token];
    // An expert of fewer ranks than others: nothing of U reads what is behind.
    while (tile < last && first >= (int)(tile[0] + (tile[1] + 15u) / 16u * 16u)) tile += 6;
    if (tile >= last) return; // the whole block
#else
    y_row = (size_t)token;
    while (first >= (int)(tile[0] + (tile[1] + 15u) / 16u * 16u)) tile += 6;
#endif
    const int row0 = first - (int)tile[0], count = (int)tile[1], column0 = (int)tile[2], cols = (int)tile[3];
    const size_t stride = ((size_t)cols * VFORMAT / 8 + 15) / 16 * 16;
    const unsigned char* block = v + (size_t)tile[4] * 16;
    float sum = 0.0f;
    for (int k0 = 0; k0 < cols; k0 += COLUMNS) {
        __syncthreads();
        for (int i = tid; i < 16 * COLUMNS; i += 256) {
            const int j = i / COLUMNS, k = k0 + i % COLUMNS;
            float value = 0.0f, input = 0.0f;
            if (row0 + j < count && k < cols) {
                const unsigned char* row = block + (size_t)(row0 + j) * stride;
#if VFORMAT == 8
                const size_t at = (size_t)tile[5] + (size_t)(row0 + j) * (size_t)((cols + 63) / 64) + (size_t)(k / 64);
                value = (float)(signed char)row[k] * __half2float(v_scales[at]);
#elif VFORMAT == 4
                const size_t at = (size_t)tile[5] + (size_t)(row0 + j) * (size_t)((cols + 31) / 32) + (size_t)(k / 32);
                value = (float)((row[k / 2] >> (4 * (k & 1)) & 15) - 8) * __half2float(v_scales[at]);
#elif VFORMAT == 16
                value = __half2float(((const __half*)row)[k]);
#else
                value = ((const float*)row)[k];
#endif
            }
            if (first_token + j < tokens && k < cols) {
#if EXPERTS
                const size_t slot = (size_t)own[first_token + j], x_row = EXPERTS == 1 ? slot / (size_t)top_k : slot;
#else
                const size_t x_row = (size_t)(first_token + j);
#endif
                input = __half2float(x[x_row * (size_t)ldx + (size_t)(column0 + k)]);
            }
            rows[j * STRIDE + i % COLUMNS] = value;
            values[j * STRIDE + i % COLUMNS] = input;
        }
        __syncthreads();
#pragma unroll 16
        for (int k = 0; k < COLUMNS; k++) sum = __fmaf_rn(rows[r * STRIDE + k], values[t * STRIDE + k], sum);
    }
    if (token < tokens) h[y_row * (size_t)rank + (size_t)(first + r)] = sum;
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(low_rank_inner)
#endif
