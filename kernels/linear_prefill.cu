// A linear of many tokens on tensor cores: y[t] = softcap(scale · act(W x[t] + bias)) + residual[t], W = Q + S + U·V.
//
// x: f16 [tokens, ldx], zero from `cols` to the next multiple of 64. Packs of Q, U and S as fused_linear
// reads them. Weights are decoded in registers to f16 integers (code - zero point), products are summed
// in f32 within a group and scaled there; U·h are further steps of 16 ranks, h [tokens, rank] f32 being
// what low_rank_inner has made of V; S is multiplied in f16 as it is. Activations of a column-scaled
// matrix are multiplied with `xscale`. Trellis codes (common/trellis.cuh; `zeros` is the table of
// columns) are decoded from where they lie. GLU: row tile 2j are gates, 2j + 1 what they let through;
// y has half the rows then.
//
// A block makes 8 row tiles of 128 tokens (64 with SPARSE or EXPERTS): 8 warps, each two row tiles of half
// of the tokens, so that weights are decoded once for 64 tokens and a tile of x is read for 32 rows. Tiles of
// x, 64 columns wide, come by asynchronous copies, three at a time; units of 32 bytes of a row are swapped
// by the row's number, so that the 16 lanes that load at a time meet in no bank. Codes and scales of the
// next tile are on their way while one is multiplied. Each half of the block copies and waits for its own
// tokens alone: a scheduler has a warp of either, and one multiplies while the other waits or scales. S is
// spread out, a tile of 128 x 64 at a time, and multiplied like Q. scalars[0]: tokens; more are left alone.
// grid (ceil(tiles / 8), ceil(tokens / 128 or 64)). tiles is even with GLU.
//
// EXPERTS 1, 2: grid.z = experts. Expert e has the slots (token · top_k + j) that stand in `slots` from
// starts[e] to starts[e + 1], as moe_sort puts them, in place of tokens: their row of x is their token's
// (1) or their own (2), rows of h and y are their own. Tiles of expert e stand behind those of e - 1 in
// all packs, `tiles` each. scalars is not read.
// Bytes: Q once per 128 (64) tokens (L2 serves repeats), x once per 128 rows, y.
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
#include "common/prefill_codes.cuh"
#include "common/trellis.cuh"
#include "common/unpack.cuh"

#define TOKENS (SPARSE || EXPERTS ? 64 : 128)
#define TILES 8
#define STAGES 3
#define STAGE_BYTES (TOKENS * 128)
#define COPIES (TOKENS / 32)   // of 16 bytes, of a thread and tile of x
#define COLUMNS (TOKENS / 16)  // of mma, 8 tokens each, of a warp
#define OUT_STRIDE (TILES * 16 + 4)
#define OUT_BYTES (64 * OUT_STRIDE * 4)
#define SPREAD_BYTES (SPARSE ? TILES * 16 * 128 : 0) // S of a tile of columns, as rows of x lie
#define TILE_BYTES (STAGES * STAGE_BYTES + SPREAD_BYTES)
#define SHARED_BYTES (TILE_BYTES > OUT_BYTES ? TILE_BYTES : OUT_BYTES)
#define SPARSE_COLUMNS 4096
// Tiles of columns whose codes and scales are in registers: what was used is loaded again, so many tiles on.
#define AHEAD (FORMAT != 0 || BITS == 8 || GROUP == 32 || TOKENS == 64 ? 1 : BITS == 4 ? 3 : 2)
#define BLOCKS (TOKENS == 64 && !APART && (FORMAT != 0 || GROUP != 32 && BITS != 3 && BITS != 8) ? 2 : 1) // of a multiprocessor
#define SUMMED (FORMAT == 0 && GROUP != 0) // groups have a scale of their own
#define APART (SPARSE && !SUMMED && (FORMAT == 0 || FORMAT == 4)) // S is not multiplied with the scales of rows

__device__ __forceinline__ float low_half(unsigned w) { return f16_value(w & 0xffffu); }
__device__ __forceinline__ float high_half(unsigned w) { return f16_value(w >> 16); }

// A barrier of the four warps that make the same tokens (in emulation of the block, which is more).
__device__ __forceinline__ void half_barrier() {
#if defined(HLRC_EMU) || SPARSE
    __syncthreads();
#else
    asm volatile("bar.sync %0, 128;" ::"r"(1 + ((int)threadIdx.x >> 7)) : "memory");
#endif
}

// Row of y and h of the launch's (EXPERTS: the expert's) token `t`, and its row of x.
__device__ __forceinline__ size_t row_of_y(const int* slots, int t) {
    (void)slots;
    return (size_t)(EXPERTS ? slots[t] : t);
}
__device__ __forceinline__ size_t row_of_x(const int* slots, int top_k, int t) {
    const size_t row = row_of_y(slots, t);
    return EXPERTS == 1 ? row / (size_t)top_k : row;
}

// Where 16 bytes of a row of a tile of x are: units of 32 bytes are swapped by the row's number.
__device__ __forceinline__ int place_of_x(int token, int part) { return token * 128 + ((part ^ (token & 3) << 1) * 16); }

// A tile of x of the half's tokens to shared memory; zeros beyond the tokens. Copy i of a thread is of the
// half's token 16 i + (thread of the half) / 8.
__device__ __forceinline__ void load_x(unsigned char* stage, const __half* const (&from)[COPIES], int real, int k0) {
    const int token = (int)(threadIdx.x >> 7) * (TOKENS / 2) + (int)(threadIdx.x & 127) / 8, part = (int)threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < COPIES; i++) async_copy16_or_zero(stage + place_of_x(token + 16 * i, part), from[i] + k0, i < real);
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS)
linear_prefill(const __half* __restrict__ x, const float* __restrict__ xscale, const unsigned char* __restrict__ q, const __half* __restrict__ scales,
               const unsigned char* __restrict__ zeros, const unsigned char* v, const __half* v_scales, const unsigned* v_tiles,
               const unsigned* v_index, const unsigned char* __restrict__ u, const __half* __restrict__ u_scales,
               const unsigned* __restrict__ u_tiles, const unsigned* __restrict__ u_index, const unsigned* __restrict__ s,
               const unsigned* __restrict__ s_offsets, const float* __restrict__ bias, const float* residual, float* h, float* y,
               const int* __restrict__ scalars, const int* __restrict__ slots, const int* __restrict__ starts, int rows, int cols, int tiles, int ldx,
               int ldy, int ldr, int rank, int top_k, float scale, float softcap) {
    __shared__ __align__(16) unsigned char stages[SHARED_BYTES];
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
    const int column = (warp >> 2) * (TOKENS / 2); // of the block's tokens
    size_t packed_tile[2]; // behind the last there is none: the last again, which is not stored
#pragma unroll
    for (int i = 0; i < 2; i++) packed_tile[i] = packed_before + (size_t)min((int)blockIdx.x * TILES + (warp & 3) * 2 + i, tiles - 1);
    const int column_tiles = (cols + 63) / 64;
    float sum[2][COLUMNS][4]; // [row tile][tokens 8 n .. 8 n + 7][rows g, g, g + 8, g + 8 of tokens 2t, 2t + 1]
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS * 4; i++) (&sum[0][0][0])[i] = 0.0f;
#if SPARSE
    // Row tile `warp` of the block's 8, its row `lane` for the first 16 lanes: entries that are to come, and the next.
    const int chunks = (cols + SPARSE_COLUMNS - 1) / SPARSE_COLUMNS;
    const int sparse_tile = (int)blockIdx.x * TILES + warp;
    unsigned at = 0, end = 0, entry = 0;
    unsigned char* const spread = stages + STAGES * STAGE_BYTES;
#if APART
    float rest[2][COLUMNS][4];
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS * 4; i++) (&rest[0][0][0])[i] = 0.0f;
#define REST rest
#else
#define REST sum
#endif
#endif
    const __half* from[COPIES];
    int copies = 0; // that have a token
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        const int token = first_token + (warp >> 2) * (TOKENS / 2) + (int)(threadIdx.x & 127) / 8 + 16 * i;
        copies += token < tokens ? 1 : 0;
        from[i] = x + (token < tokens ? row_of_x(slots, top_k, token) : 0) * (size_t)ldx + (size_t)((int)threadIdx.x % 8 * 8);
    }
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < column_tiles) load_x(stages + stage * STAGE_BYTES, from, copies, stage * 64);
        async_commit();
    }
#if FORMAT == 0
    const int groups = GROUP == 0 ? 1 : (cols + GROUP - 1) / (GROUP == 0 ? 1 : GROUP);
    Packed packed[2];
    Codes ring[AHEAD][2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        packed[i].codes = q + packed_tile[i] * tile_bytes<FORMAT, BITS>(cols);
        packed[i].scales = scales + packed_tile[i] * (size_t)groups * 16;
        packed[i].zeros = zeros + packed_tile[i] * (size_t)groups * (BITS == 8 ? 16 : 8);
#pragma unroll
        for (int c = 0; c < AHEAD; c++) {
            const int column_tile = min(c, column_tiles - 1);
            load_codes(ring[c][i], packed[i], cols, column_tile, 0, lane);
            load_codes(ring[c][i], packed[i], cols, column_tile, 1, lane);
            load_scales(ring[c][i], packed[i], cols, column_tile, lane);
        }
    }
#if !SUMMED
    float zero_of_row[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        zero_of_row[i][0] = zero_of_row[i][1] = (float)(1 << (BITS - 1));
#if ZEROS
        zero_of_row[i][0] = (float)(BITS == 8 ? packed[i].zeros[2 * g] : packed[i].zeros[g] & 15);
        zero_of_row[i][1] = (float)(BITS == 8 ? packed[i].zeros[2 * g + 1] : packed[i].zeros[g] >> 4);
#endif
    }
#endif
#elif FORMAT == 4
    const unsigned char* packed[2];
#pragma unroll
    for (int i = 0; i < 2; i++) packed[i] = q + packed_tile[i] * load_columns(zeros, 0).row_bytes();
    Columns columns = load_columns(zeros, 0);
#elif FORMAT != 5
    const unsigned char* packed[2];
#pragma unroll
    for (int i = 0; i < 2; i++) packed[i] = q + packed_tile[i] * tile_bytes<FORMAT, 16>(cols);
#endif

    for (int c0 = 0; c0 < column_tiles; c0 += AHEAD)
#pragma unroll
    for (int turn = 0; turn < AHEAD; turn++) { // so that what is on its way stays in its registers
        const int c = c0 + turn;
        if (c >= column_tiles) break;
        async_wait<STAGES - 2>();
        half_barrier(); // everyone's part of tile c is there, and all are done with tile c - 1
        const int next = c + STAGES - 1;
        if (next < column_tiles) load_x(stages + next % STAGES * STAGE_BYTES, from, copies, next * 64);
        async_commit();
        const unsigned char* tile = stages + c % STAGES * STAGE_BYTES;
        const unsigned char* lane_tile = tile + (column + g) * 128 + t * 8; // of 8 bytes in each unit of 32
#if SPARSE
        {
            unsigned char* const mine = spread + warp * 16 * 128;
#pragma unroll
            for (int i = 0; i < 4; i++) *(uint4*)(mine + i * 512 + lane * 16) = make_uint4(0u, 0u, 0u, 0u);
            __syncwarp();
            const int first = c % (SPARSE_COLUMNS / 64) * 64;
            if (first == 0 && sparse_tile < tiles && lane < 16) {
                // A run starts with where each of the 16 rows' entries end; an empty run has nothing.
                const unsigned* offset = s_offsets + (packed_before + (size_t)sparse_tile) * (size_t)chunks + (size_t)(c / (SPARSE_COLUMNS / 64));
                const unsigned run = offset[0];
                const bool empty = offset[1] == run;
                const unsigned short* ends = (const unsigned short*)(s + run);
                at = empty ? 0u : run + 8u + (lane ? ends[lane - 1] : 0u);
                end = empty ? 0u : run + 8u + ends[lane];
                entry = at < end ? s[at] : 0u;
            }
            for (;;) { // entries ascend by column
                const int k = (int)(entry & 4095u) - first;
                const bool here = at < end && k < 64;
                if (!__any_sync(HLRC_FULL_WARP, here)) break;
                if (here) {
                    *(unsigned short*)(mine + place_of_x(lane, k / 8) + k % 8 * 2) = (unsigned short)(entry >> 16);
                    if (++at < end) entry = s[at];
                }
            }
        }
#endif
#if FORMAT != 5
#if FORMAT == 0
        Codes(&codes)[2] = ring[turn];
        const int later = min(c + AHEAD, column_tiles - 1);
#if SUMMED
        float part[2][COLUMNS][4];
#endif
#elif FORMAT == 4
        if (c % 4 == 0) columns = load_columns(zeros, c / 4);
#endif
#pragma unroll
        for (int block = 0; block < 2; block++) {
#if FORMAT == 0
            unsigned w[2][4];
            __half2 offset[2][2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                block_codes(codes[i], c, block, w[i]);
                float zero_g = (float)(1 << (BITS - 1)), zero_h = zero_g;
#if !SUMMED
                zero_g = zero_of_row[i][0], zero_h = zero_of_row[i][1];
#elif ZEROS
                const unsigned z = codes[i].zeros[GROUP == 32 ? block : 0];
                zero_g = (float)(BITS == 8 ? z & 255u : z & 15u), zero_h = (float)(BITS == 8 ? z >> 8 : z >> 4);
#endif
                offset[i][0] = __float2half2_rn(1024.0f + zero_g), offset[i][1] = __float2half2_rn(1024.0f + zero_h);
                load_codes(codes[i], packed[i], cols, later, block, lane);
            }
#if SUMMED
            if (GROUP == 32 || block == 0)
#pragma unroll
                for (int i = 0; i < 2 * COLUMNS * 4; i++) (&part[0][0][0])[i] = 0.0f;
#endif
#endif
#pragma unroll
            for (int half = 0; half < 2; half++) { // 16 columns
                const int step = 2 * block + half;
                unsigned a[2][4];
#if FORMAT == 4
                const int bits = columns.bits(c % 4 * 4 + step);
                if (bits == 0) continue; // beyond the columns
#endif
#pragma unroll
                for (int i = 0; i < 2; i++) {
#if FORMAT == 0
                    from_bytes(w[i][2 * half], offset[i][0], &a[i][0], &a[i][2]);
                    from_bytes(w[i][2 * half + 1], offset[i][1], &a[i][1], &a[i][3]);
#elif FORMAT == 4
                    unsigned product[2][4];
                    trellis_products(bits, packed[i], lane, product);
                    trellis_fragment(product, a[i]);
                    packed[i] += 32 * bits;
#elif FORMAT == 3
                    const unsigned char* at16 = packed[i] + (size_t)c * 4096 + (size_t)step * 1024 + lane * 16;
                    const float4 top = *(const float4*)at16, bottom = *(const float4*)(at16 + 512);
                    a[i][0] = round_halves(top.x, top.y), a[i][2] = round_halves(top.z, top.w);
                    a[i][1] = round_halves(bottom.x, bottom.y), a[i][3] = round_halves(bottom.z, bottom.w);
#else
                    const uint4 f = *(const uint4*)(packed[i] + (size_t)c * 2048 + (size_t)step * 512 + lane * 16);
#if FORMAT == 2
                    a[i][0] = round_halves(__uint_as_float(f.x << 16), __uint_as_float(f.x & 0xffff0000u));
                    a[i][2] = round_halves(__uint_as_float(f.y << 16), __uint_as_float(f.y & 0xffff0000u));
                    a[i][1] = round_halves(__uint_as_float(f.z << 16), __uint_as_float(f.z & 0xffff0000u));
                    a[i][3] = round_halves(__uint_as_float(f.w << 16), __uint_as_float(f.w & 0xffff0000u));
#else
                    a[i][0] = f.x, a[i][2] = f.y, a[i][1] = f.z, a[i][3] = f.w;
#endif
#endif
                }
#if XSCALE
                const int at_k = c * 64 + 16 * step + 4 * t;
                float f[4];
#pragma unroll
                for (int i = 0; i < 4; i++) f[i] = at_k + i < cols ? xscale[at_k + i] : 0.0f;
#endif
                const unsigned char* lane_x = lane_tile + (step ^ (g & 3)) * 32;
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) {
                    const uint2 xs = *(const uint2*)(lane_x + n * 1024);
                    unsigned b[2] = {xs.x, xs.y};
#if XSCALE
                    b[0] = round_halves(low_half(xs.x) * f[0], high_half(xs.x) * f[1]);
                    b[1] = round_halves(low_half(xs.y) * f[2], high_half(xs.y) * f[3]);
#endif
#pragma unroll
                    for (int i = 0; i < 2; i++) {
#if SUMMED
                        mma_f16(part[i][n], a[i], b);
#else
                        mma_f16(sum[i][n], a[i], b);
#endif
                    }
                }
            }
#if SUMMED
            if (GROUP == 32 || block == 1)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const unsigned both = codes[i].scales[GROUP == 32 ? block : 0];
                    const float scale_g = low_half(both), scale_h = high_half(both);
#pragma unroll
                    for (int n = 0; n < COLUMNS; n++) {
                        sum[i][n][0] = __fmaf_rn(scale_g, part[i][n][0], sum[i][n][0]), sum[i][n][1] = __fmaf_rn(scale_g, part[i][n][1], sum[i][n][1]);
                        sum[i][n][2] = __fmaf_rn(scale_h, part[i][n][2], sum[i][n][2]), sum[i][n][3] = __fmaf_rn(scale_h, part[i][n][3], sum[i][n][3]);
                    }
                    if (block == 1) load_scales(codes[i], packed[i], cols, later, lane);
                }
#endif
        }
#endif
#if SPARSE
        __syncthreads(); // S is spread out
#pragma unroll
        for (int step = 0; step < 4; step++) {
            unsigned a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const unsigned char* row = spread + ((warp & 3) * 32 + i * 16 + g) * 128 + (step ^ (g & 3)) * 32 + t * 8;
                const uint2 top = *(const uint2*)row, bottom = *(const uint2*)(row + 8 * 128);
                a[i][0] = top.x, a[i][1] = bottom.x, a[i][2] = top.y, a[i][3] = bottom.y;
            }
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                const uint2 xs = *(const uint2*)(lane_tile + (step ^ (g & 3)) * 32 + n * 1024);
                const unsigned b[2] = {xs.x, xs.y};
#pragma unroll
                for (int i = 0; i < 2; i++) mma_f16(REST[i][n], a[i], b);
            }
        }
#endif
    }
    async_wait<0>();
#if FORMAT == 4
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float step = __half2float(scales[packed_tile[i]]) * TRELLIS_STEP;
#pragma unroll
        for (int j = 0; j < COLUMNS * 4; j++) (&sum[i][0][0])[j] *= step;
    }
#elif FORMAT == 0 && !SUMMED
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float scale_g = __half2float(packed[i].scales[2 * g]), scale_h = __half2float(packed[i].scales[2 * g + 1]);
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) sum[i][n][0] *= scale_g, sum[i][n][1] *= scale_g, sum[i][n][2] *= scale_h, sum[i][n][3] *= scale_h;
    }
#endif
#if APART
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS * 4; i++) (&sum[0][0][0])[i] += (&rest[0][0][0])[i];
#endif
#if LOWRANK
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const unsigned last = u_index[packed_tile[i] + 1];
        for (unsigned e = u_index[packed_tile[i]]; e < last; e++) {
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
                a[0] = round_halves(top.x, top.y), a[2] = round_halves(top.z, top.w);
                a[1] = round_halves(bottom.x, bottom.y), a[3] = round_halves(bottom.z, bottom.w);
#endif
                float scale_g = 1.0f, scale_h = 1.0f;
#if UFORMAT == 8
                scale_g = __half2float(entry_scales[2 * g]), scale_h = __half2float(entry_scales[2 * g + 1]);
#elif UFORMAT == 4
                scale_g = __half2float(entry_scales[step / 2 * 16 + 2 * g]), scale_h = __half2float(entry_scales[step / 2 * 16 + 2 * g + 1]);
#endif
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) {
                    const int token = first_token + column + n * 8 + g;
                    float4 inner = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (token < tokens) inner = *(const float4*)(h + row_of_y(slots, token) * (size_t)rank + (size_t)(h0 + 16 * step + 4 * t));
                    // In two parts, so that inner activations keep 22 bits.
                    const unsigned b[2] = {round_halves(inner.x, inner.y), round_halves(inner.z, inner.w)};
                    const unsigned rest[2] = {round_halves(inner.x - low_half(b[0]), inner.y - high_half(b[0])),
                                              round_halves(inner.z - low_half(b[1]), inner.w - high_half(b[1]))};
                    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                    mma_f16(part, a, rest);
                    mma_f16(part, a, b);
                    sum[i][n][0] = __fmaf_rn(scale_g, part[0], sum[i][n][0]), sum[i][n][1] = __fmaf_rn(scale_g, part[1], sum[i][n][1]);
                    sum[i][n][2] = __fmaf_rn(scale_h, part[2], sum[i][n][2]), sum[i][n][3] = __fmaf_rn(scale_h, part[3], sum[i][n][3]);
                }
            }
        }
    }
#endif
    const int width = TILES * 16 / (GLU ? 2 : 1), first_row = (int)blockIdx.x * width;
    const int last_row = tiles * 16 / (GLU ? 2 : 1);
    if (BIAS) bias += packed_before * 16;
    // Through shared memory, 64 tokens at a time: rows of tokens side by side, so that stores are whole and gates meet.
    float* out = (float*)stages; // [64][OUT_STRIDE]
#pragma unroll
    for (int half = 0; half < TOKENS / 64; half++) {
        __syncthreads(); // all are done with the last tile of x, or with the tokens before
        if (TOKENS == 64 || warp >> 2 == half)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        out[(column % 64 + n * 8 + 2 * t + (j & 1)) * OUT_STRIDE + (warp & 3) * 32 + i * 16 + g + 8 * (j >> 1)] = sum[i][n][j];
        __syncthreads();
        for (int i = (int)threadIdx.x; i < 64 * width; i += 256) {
            const int own_token = i / width, token = first_token + 64 * half + own_token, r = i % width, row = first_row + r;
            if (token >= tokens || row >= last_row) continue;
#if GLU
            const int own = r / 16 * 32 + r % 16; // of the block's rows
            float gate = out[own_token * OUT_STRIDE + own], value = out[own_token * OUT_STRIDE + own + 16];
            if (BIAS) gate += bias[(int)blockIdx.x * (TILES * 16) + own], value += bias[(int)blockIdx.x * (TILES * 16) + own + 16];
            value *= activate<ACTIVATION>(gate);
#else
            float value = out[own_token * OUT_STRIDE + r];
            if (BIAS) value += bias[row];
            value = activate<ACTIVATION>(value);
#endif
            value *= scale;
            if (SOFTCAP) value = softcap * tanhf(value / softcap);
            const size_t t0 = row_of_y(slots, token);
            if (RESIDUAL) value += residual[t0 * (size_t)ldr + (size_t)row];
            y[t0 * (size_t)ldy + (size_t)row] = value;
        }
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(linear_prefill)
#endif
