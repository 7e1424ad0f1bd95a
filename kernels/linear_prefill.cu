// A linear of many tokens on tensor cores: y[t] = softcap(scale · act(W x[t] + bias)) + residual[t], W = Q + S + U·V.
//
// x: f16 [tokens, ldx], zero from `cols` to the next multiple of 64. Packs of Q, U and S as fused_linear
// reads them. Weights are decoded in registers to f16 integers (code - zero point), products are summed
// in f32 within a group and scaled there; U·h are further steps of 16 ranks, h [tokens, rank] f32 being
// what low_rank_inner has made of V; S is added in f32, row by row. Activations of a column-scaled
// matrix are multiplied with `xscale`. Trellis codes (common/trellis.cuh; `zeros` is the table of
// columns) are decoded from where they lie. GLU: row tile 2j are gates, 2j + 1 what they let through;
// y has half the rows then.
//
// A block makes 4 row tiles of 64 tokens: 8 warps, each a row tile of 32 tokens. Tiles of x, 64 columns
// wide, come by asynchronous copies, three at a time. scalars[0]: tokens; more are left alone.
// grid (ceil(tiles / 4), ceil(tokens / 64)). tiles is even with GLU.
//
// EXPERTS 1, 2: grid.z = experts. Expert e has the slots (token · top_k + j) that stand in `slots` from
// starts[e] to starts[e + 1], as moe_sort puts them, in place of tokens: their row of x is their token's
// (1) or their own (2), rows of h and y are their own. Tiles of expert e stand behind those of e - 1 in
// all packs, `tiles` each. scalars is not read.
// Bytes: Q once per 64 tokens (L2 serves repeats), x once per 64 rows, y.
// Source of the decoding: Marlin's trick of f16 1024 + code, arXiv 2408.11743.
//
// kernel: linear_prefill abi=2
// defines: FORMAT=0..5 BITS=0|2|3|4|8..16 GROUP=0|32|64|128|256 ZEROS=0|1 XSCALE=0|1 LOWRANK=0|1
// defines: VFORMAT=0|4|8|16|32 UFORMAT=0|4|8|16|32 SPARSE=0|1 ACTIVATION=0..5 GLU=0|1 BIAS=0|1
// defines: RESIDUAL=0|1 SOFTCAP=0|1 EXPERTS=0..2
// args: x:const f16* xscale:const f32* q:const u8* scales:const f16* zeros:const u8*
// args: v:const u8* v_scales:const f16* v_tiles:const u32* v_index:const u32*
// args: u:const u8* u_scales:const f16* u_tiles:const u32* u_index:const u32*
// args: s:const u32* s_offsets:const u32* bias:const f32* residual:const f32* h:f32* y:f32*
// args: scalars:const i32* slots:const i32* starts:const i32* rows:i32 cols:i32 tiles:i32 ldx:i32 ldy:i32
// args: ldr:i32 rank:i32 top_k:i32 scale:f32 softcap:f32
// block: 256
#ifndef EXPERTS
#define EXPERTS 0
#endif
#include "common/activation.cuh"
#include "common/half.cuh"
#include "common/mma.cuh"
#include "common/trellis.cuh"
#include "common/unpack.cuh"

#define TOKENS 64
#define TILES 4
#define STAGES 3
#define STRIDE 80 // halves: rows of a tile 8 banks apart
#define STAGE_BYTES (TOKENS * STRIDE * 2)
#define SPARSE_COLUMNS 4096
#define ROWS_PER_WARP (TILES * 16 / 8)

__device__ __forceinline__ unsigned half2_of(float low, float high) {
    return (unsigned)__half_as_ushort(__float2half_rn(low)) | (unsigned)__half_as_ushort(__float2half_rn(high)) << 16;
}
__device__ __forceinline__ float low_half(unsigned w) { return __half2float(__ushort_as_half((unsigned short)(w & 0xffffu))); }
__device__ __forceinline__ float high_half(unsigned w) { return __half2float(__ushort_as_half((unsigned short)(w >> 16))); }

// Two operands of a lane's row out of four unsigned bytes: code - zero as f16, `offset` = 1024 + zero.
__device__ __forceinline__ void from_bytes(unsigned codes, __half2 offset, unsigned* first, unsigned* second) {
    *first = subtract_halves(__byte_perm(codes, 0x64646464u, 0x4140), half2_bits(offset));
    *second = subtract_halves(__byte_perm(codes, 0x64646464u, 0x4342), half2_bits(offset));
}

#if FORMAT == 0
// Unsigned codes of block `block` (32 columns) of a column tile: word j is row g + 8 (j % 2), columns
// 16 (j / 2) + 4t ...
__device__ __forceinline__ void load_codes(const unsigned char* tile, int cols, int column_tile, int block, int lane, unsigned (&w)[4]) {
#if BITS == 8
    const uint4 v = *(const uint4*)(tile + (size_t)column_tile * 1024 + block * 512 + lane * 16);
    w[0] = v.x ^ 0x80808080u, w[1] = v.y ^ 0x80808080u, w[2] = v.z ^ 0x80808080u, w[3] = v.w ^ 0x80808080u;
#elif BITS == 4
    const uint4 v = *(const uint4*)(tile + (size_t)column_tile * 512 + lane * 16);
    const int shift = 4 * block;
    w[0] = v.x >> shift & 0x0f0f0f0fu, w[1] = v.y >> shift & 0x0f0f0f0fu, w[2] = v.z >> shift & 0x0f0f0f0fu, w[3] = v.w >> shift & 0x0f0f0f0fu;
#else
    const int m = 2 * (column_tile & 1) + block, shift = 2 * m;
#if BITS == 2
    const uint4 v = *(const uint4*)(tile + (size_t)(column_tile >> 1) * 512 + lane * 16);
#else
    const int unit = column_tile >> 2, pair = column_tile >> 1 & 1, pairs = min(2, (cols + 127) / 128 - 2 * unit);
    const unsigned char* at = tile + (size_t)unit * 1536;
    const uint4 v = *(const uint4*)(at + pair * 512 + lane * 16);
    const uint2 h = *(const uint2*)(at + pairs * 512 + lane * 8 * pairs + pair * 8);
#endif
    w[0] = v.x >> shift & 0x03030303u, w[1] = v.y >> shift & 0x03030303u, w[2] = v.z >> shift & 0x03030303u, w[3] = v.w >> shift & 0x03030303u;
#if BITS == 3
    const int third = (shift + 2) & 7;
    w[0] |= (h.x >> third & 0x01010101u) << 2, w[1] |= (h.x >> (third + 1) & 0x01010101u) << 2;
    w[2] |= (h.y >> third & 0x01010101u) << 2, w[3] |= (h.y >> (third + 1) & 0x01010101u) << 2;
#endif
#endif
}
#endif

// Row of y and h of the launch's (EXPERTS: the expert's) token `t`, and its row of x.
__device__ __forceinline__ size_t row_of_y(const int* slots, int t) {
    (void)slots;
    return (size_t)(EXPERTS ? slots[t] : t);
}
__device__ __forceinline__ size_t row_of_x(const int* slots, int top_k, int t) {
    const size_t row = row_of_y(slots, t);
    return EXPERTS == 1 ? row / (size_t)top_k : row;
}

// A tile of x to shared memory; zeros beyond the tokens.
__device__ __forceinline__ void load_x(unsigned char* stage, const __half* x, const int* slots, int top_k, int ldx, int first_token, int tokens, int k0) {
    for (int i = (int)threadIdx.x; i < TOKENS * 8; i += 256) {
        const int t = i / 8, part = i % 8;
        const bool real = first_token + t < tokens;
        async_copy16_or_zero(stage + t * STRIDE * 2 + part * 16, x + (real ? row_of_x(slots, top_k, first_token + t) : 0) * (size_t)ldx + (size_t)(k0 + part * 8), real);
    }
}

extern "C" __global__ void __launch_bounds__(256, 1)
linear_prefill(const __half* __restrict__ x, const float* __restrict__ xscale, const unsigned char* __restrict__ q, const __half* __restrict__ scales,
               const unsigned char* __restrict__ zeros, const unsigned char* v, const __half* v_scales, const unsigned* v_tiles,
               const unsigned* v_index, const unsigned char* __restrict__ u, const __half* __restrict__ u_scales,
               const unsigned* __restrict__ u_tiles, const unsigned* __restrict__ u_index, const unsigned* __restrict__ s,
               const unsigned* __restrict__ s_offsets, const float* __restrict__ bias, const float* residual, float* h, float* y,
               const int* __restrict__ scalars, const int* __restrict__ slots, const int* __restrict__ starts, int rows, int cols, int tiles, int ldx,
               int ldy, int ldr, int rank, int top_k, float scale, float softcap) {
    __shared__ __align__(16) unsigned char stages[STAGES * STAGE_BYTES];
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
#if EXPERTS
    const int expert = (int)blockIdx.z, tokens = starts[expert + 1] - starts[expert];
    slots += starts[expert];
#else
    const int expert = 0, tokens = scalars[0];
#endif
    const int first_token = (int)blockIdx.y * TOKENS;
    if (first_token >= tokens) return; // the whole block
    const size_t packed_before = (size_t)expert * (size_t)tiles; // row tiles of the experts before
    const int row_tile = (int)blockIdx.x * TILES + (warp & 3), column = (warp >> 2) * 32; // of the block's tokens
    const bool real = row_tile < tiles;
    const int column_tiles = (cols + 63) / 64;
    float sum[4][4]; // [tokens 8 n .. 8 n + 7][rows g, g, g + 8, g + 8 of tokens 2t, 2t + 1]
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[n][i] = 0.0f;
#if SPARSE
    // Rows 8 warp .. 8 warp + 7 of the block's 64; this lane's tokens are `lane` and `lane + 32`.
    const int chunks = (cols + SPARSE_COLUMNS - 1) / SPARSE_COLUMNS;
    const int sparse_tile = (int)blockIdx.x * TILES + warp / 2;
    float entries[ROWS_PER_WARP][2];
    unsigned at[ROWS_PER_WARP], end[ROWS_PER_WARP];
#pragma unroll
    for (int r = 0; r < ROWS_PER_WARP; r++) entries[r][0] = entries[r][1] = 0.0f, at[r] = end[r] = 0u;
#endif
#if FORMAT == 0
    const size_t packed_tile = packed_before + (size_t)row_tile;
    const unsigned char* packed = q + packed_tile * tile_bytes<FORMAT, BITS>(cols);
    const int groups = GROUP == 0 ? 1 : (cols + GROUP - 1) / (GROUP == 0 ? 1 : GROUP);
    const __half* tile_scales = scales + packed_tile * (size_t)groups * 16;
#elif FORMAT == 4
    const unsigned char* packed = q + (packed_before + (size_t)row_tile) * load_columns(zeros, 0).row_bytes();
    Columns columns = load_columns(zeros, 0);
#elif FORMAT != 5
    const unsigned char* packed = q + (packed_before + (size_t)row_tile) * tile_bytes<FORMAT, 16>(cols);
#endif

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < column_tiles) load_x(stages + stage * STAGE_BYTES, x, slots, top_k, ldx, first_token, tokens, stage * 64);
        async_commit();
    }
    for (int c = 0; c < column_tiles; c++) {
        async_wait<STAGES - 2>();
        __syncthreads(); // everyone's part of tile c is there, and all are done with tile c - 1
        const int next = c + STAGES - 1;
        if (next < column_tiles) load_x(stages + next % STAGES * STAGE_BYTES, x, slots, top_k, ldx, first_token, tokens, next * 64);
        async_commit();
        const unsigned char* tile = stages + c % STAGES * STAGE_BYTES;
#if FORMAT != 5
        if (real) { // the same for the warp
#if FORMAT == 4
            if (c % 4 == 0) columns = load_columns(zeros, c / 4);
#endif
#pragma unroll
            for (int block = 0; block < 2; block++) {
#if FORMAT == 0
                unsigned w[4];
                load_codes(packed, cols, c, block, lane, w);
                const int group = GROUP == 0 ? 0 : min((c * 64 + block * 32) / (GROUP == 0 ? 1 : GROUP), groups - 1);
                float zero_g = (float)(1 << (BITS - 1)), zero_h = zero_g;
#if ZEROS
                const unsigned char* z = zeros + (packed_tile * (size_t)groups + (size_t)group) * (BITS == 8 ? 16 : 8);
                zero_g = (float)(BITS == 8 ? z[2 * g] : z[g] & 15), zero_h = (float)(BITS == 8 ? z[2 * g + 1] : z[g] >> 4);
#endif
                const __half2 offset_g = __float2half2_rn(1024.0f + zero_g), offset_h = __float2half2_rn(1024.0f + zero_h);
                float part[4][4];
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) part[n][i] = 0.0f;
#endif
#pragma unroll
                for (int half = 0; half < 2; half++) { // 16 columns
                    unsigned a[4];
#if FORMAT == 0
                    from_bytes(w[2 * half], offset_g, &a[0], &a[2]);
                    from_bytes(w[2 * half + 1], offset_h, &a[1], &a[3]);
#elif FORMAT == 4
                    const int bits = columns.bits(c % 4 * 4 + 2 * block + half);
                    if (bits == 0) continue; // beyond the columns
                    unsigned product[2][4];
                    trellis_products(bits, packed, lane, product);
                    trellis_fragment(product, a);
                    packed += 32 * bits;
#elif FORMAT == 3
                    const unsigned char* at16 = packed + (size_t)c * 4096 + (size_t)(2 * block + half) * 1024 + lane * 16;
                    const float4 top = *(const float4*)at16, bottom = *(const float4*)(at16 + 512);
                    a[0] = half2_of(top.x, top.y), a[2] = half2_of(top.z, top.w);
                    a[1] = half2_of(bottom.x, bottom.y), a[3] = half2_of(bottom.z, bottom.w);
#else
                    const uint4 f = *(const uint4*)(packed + (size_t)c * 2048 + (size_t)(2 * block + half) * 512 + lane * 16);
#if FORMAT == 2
                    a[0] = half2_of(__uint_as_float(f.x << 16), __uint_as_float(f.x & 0xffff0000u));
                    a[2] = half2_of(__uint_as_float(f.y << 16), __uint_as_float(f.y & 0xffff0000u));
                    a[1] = half2_of(__uint_as_float(f.z << 16), __uint_as_float(f.z & 0xffff0000u));
                    a[3] = half2_of(__uint_as_float(f.w << 16), __uint_as_float(f.w & 0xffff0000u));
#else
                    a[0] = f.x, a[2] = f.y, a[1] = f.z, a[3] = f.w;
#endif
#endif
                    const int k = block * 32 + half * 16 + 4 * t;
#pragma unroll
                    for (int n = 0; n < 4; n++) {
                        const uint2 xs = *(const uint2*)(tile + (column + n * 8 + g) * STRIDE * 2 + k * 2);
                        unsigned b[2] = {xs.x, xs.y};
#if XSCALE
                        const int at_k = c * 64 + k;
                        float f[4];
#pragma unroll
                        for (int i = 0; i < 4; i++) f[i] = at_k + i < cols ? xscale[at_k + i] : 0.0f;
                        b[0] = half2_of(low_half(xs.x) * f[0], high_half(xs.x) * f[1]);
                        b[1] = half2_of(low_half(xs.y) * f[2], high_half(xs.y) * f[3]);
#endif
#if FORMAT == 0
                        mma_f16(part[n], a, b);
#else
                        mma_f16(sum[n], a, b);
#endif
                    }
                }
#if FORMAT == 0
                const float scale_g = __half2float(tile_scales[(size_t)group * 16 + 2 * g]), scale_h = __half2float(tile_scales[(size_t)group * 16 + 2 * g + 1]);
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    sum[n][0] = __fmaf_rn(scale_g, part[n][0], sum[n][0]), sum[n][1] = __fmaf_rn(scale_g, part[n][1], sum[n][1]);
                    sum[n][2] = __fmaf_rn(scale_h, part[n][2], sum[n][2]), sum[n][3] = __fmaf_rn(scale_h, part[n][3], sum[n][3]);
                }
#endif
            }
        }
#endif
#if SPARSE
        if (sparse_tile < tiles) {
            const int chunk = c / (SPARSE_COLUMNS / 64), first = c % (SPARSE_COLUMNS / 64) * 64;
            if (first == 0) {
                // A run starts with where each of the 16 rows' entries end; an empty run has nothing.
                const unsigned* offset = s_offsets + (packed_before + (size_t)sparse_tile) * (size_t)chunks + (size_t)chunk;
                const unsigned run = offset[0];
                const bool empty = offset[1] == run;
                const unsigned short* ends = (const unsigned short*)(s + run);
#pragma unroll
                for (int r = 0; r < ROWS_PER_WARP; r++) {
                    const int row = (warp & 1) * ROWS_PER_WARP + r;
                    at[r] = empty ? 0u : run + 8u + (row ? ends[row - 1] : 0u);
                    end[r] = empty ? 0u : run + 8u + ends[row];
                }
            }
            const __half* mine = (const __half*)tile + lane * STRIDE;
#pragma unroll
            for (int r = 0; r < ROWS_PER_WARP; r++) {
                while (at[r] < end[r]) { // entries ascend by column
                    const unsigned e = s[at[r]];
                    const int k = (int)(e & 4095u) - first;
                    if (k >= 64) break;
                    const float value = high_half(e);
                    entries[r][0] = __fmaf_rn(value, __half2float(mine[k]), entries[r][0]);
                    entries[r][1] = __fmaf_rn(value, __half2float(mine[32 * STRIDE + k]), entries[r][1]);
                    at[r]++;
                }
            }
        }
#endif
    }
    async_wait<0>();
#if FORMAT == 4
    const float step = real ? __half2float(scales[packed_before + (size_t)row_tile]) * TRELLIS_STEP : 0.0f;
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[n][i] *= step;
#endif
#if LOWRANK
    if (real) {
        const unsigned last = u_index[packed_before + (size_t)row_tile + 1];
        for (unsigned e = u_index[packed_before + (size_t)row_tile]; e < last; e++) {
            const unsigned first = u_tiles[4 * e], h0 = u_tiles[4 * e + 1], steps = u_tiles[4 * e + 2];
#if UFORMAT <= 8
            const __half* entry_scales = u_scales + u_tiles[4 * e + 3];
#endif
            for (unsigned step = 0; step < steps; step++) {
                const unsigned char* from = u + (size_t)(first + step) * (UFORMAT * 32);
                unsigned a[4];
#if UFORMAT == 4
                const unsigned w = *(const unsigned*)(from + lane * 4);
                const __half2 middle = __float2half2_rn(1032.0f);
                from_bytes(w & 0x0f0f0f0fu, middle, &a[0], &a[2]);
                from_bytes(w >> 4 & 0x0f0f0f0fu, middle, &a[1], &a[3]);
#elif UFORMAT == 8
                const uint2 w = *(const uint2*)(from + lane * 8);
                const __half2 middle = __float2half2_rn(1152.0f);
                from_bytes(w.x ^ 0x80808080u, middle, &a[0], &a[2]);
                from_bytes(w.y ^ 0x80808080u, middle, &a[1], &a[3]);
#elif UFORMAT == 16
                const uint4 w = *(const uint4*)(from + lane * 16);
                a[0] = w.x, a[2] = w.y, a[1] = w.z, a[3] = w.w;
#else
                const float4 top = *(const float4*)(from + lane * 32), bottom = *(const float4*)(from + lane * 32 + 16);
                a[0] = half2_of(top.x, top.y), a[2] = half2_of(top.z, top.w);
                a[1] = half2_of(bottom.x, bottom.y), a[3] = half2_of(bottom.z, bottom.w);
#endif
                float scale_g = 1.0f, scale_h = 1.0f;
#if UFORMAT == 8
                scale_g = __half2float(entry_scales[2 * g]), scale_h = __half2float(entry_scales[2 * g + 1]);
#elif UFORMAT == 4
                scale_g = __half2float(entry_scales[step / 2 * 16 + 2 * g]), scale_h = __half2float(entry_scales[step / 2 * 16 + 2 * g + 1]);
#endif
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const int token = first_token + column + n * 8 + g;
                    float4 inner = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (token < tokens) inner = *(const float4*)(h + row_of_y(slots, token) * (size_t)rank + (size_t)(h0 + 16 * step + 4 * t));
                    // In two parts, so that inner activations keep 22 bits.
                    const unsigned b[2] = {half2_of(inner.x, inner.y), half2_of(inner.z, inner.w)};
                    const unsigned rest[2] = {half2_of(inner.x - low_half(b[0]), inner.y - high_half(b[0])),
                                              half2_of(inner.z - low_half(b[1]), inner.w - high_half(b[1]))};
                    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                    mma_f16(part, a, rest);
                    mma_f16(part, a, b);
                    sum[n][0] = __fmaf_rn(scale_g, part[0], sum[n][0]), sum[n][1] = __fmaf_rn(scale_g, part[1], sum[n][1]);
                    sum[n][2] = __fmaf_rn(scale_h, part[2], sum[n][2]), sum[n][3] = __fmaf_rn(scale_h, part[3], sum[n][3]);
                }
            }
        }
    }
#endif
    // Through shared memory: rows of tokens side by side, so that stores are whole and gates meet.
    float* out = (float*)stages; // [64 tokens][68]
    __syncthreads(); // all are done with the last tile of x
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[(column + n * 8 + 2 * t + (i & 1)) * 68 + (warp & 3) * 16 + g + 8 * (i >> 1)] = sum[n][i];
    __syncthreads();
#if SPARSE
#pragma unroll
    for (int r = 0; r < ROWS_PER_WARP; r++) {
        out[lane * 68 + warp * ROWS_PER_WARP + r] += entries[r][0];
        out[(lane + 32) * 68 + warp * ROWS_PER_WARP + r] += entries[r][1];
    }
    __syncthreads();
#endif
    const int width = TILES * 16 / (GLU ? 2 : 1), first_row = (int)blockIdx.x * width;
    const int last_row = tiles * 16 / (GLU ? 2 : 1);
    if (BIAS) bias += packed_before * 16;
    for (int i = (int)threadIdx.x; i < TOKENS * width; i += 256) {
        const int token = i / width, r = i % width, row = first_row + r;
        if (first_token + token >= tokens || row >= last_row) continue;
#if GLU
        const int own = r / 16 * 32 + r % 16; // of the block's rows
        float gate = out[token * 68 + own], value = out[token * 68 + own + 16];
        if (BIAS) gate += bias[(int)blockIdx.x * 64 + own], value += bias[(int)blockIdx.x * 64 + own + 16];
        value *= activate<ACTIVATION>(gate);
#else
        float value = out[token * 68 + r];
        if (BIAS) value += bias[row];
        value = activate<ACTIVATION>(value);
#endif
        value *= scale;
        if (SOFTCAP) value = softcap * tanhf(value / softcap);
        const size_t t0 = row_of_y(slots, first_token + token);
        if (RESIDUAL) value += residual[t0 * (size_t)ldr + (size_t)row];
        y[t0 * (size_t)ldy + (size_t)row] = value;
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(linear_prefill)
#endif
