// Products of one unit of weights with the activations of all tokens, into sums in registers.
//
// Sums: rows g and g + 8; for codes tokens 2t and 2t + 1 (one token where there is one), for float
// weights every token, over this lane's columns alone.
#pragma once
#include "activations.cuh"
#include "mma.cuh"

#if CODED
#define SUMS (M == 1 ? 1 : 2)
#else
#define SUMS M
#endif

// Where a lane reads activations.
struct Placed {
    const unsigned char* x; // of its token, at its columns
    const float4* table;    // at its tokens
};

__device__ __forceinline__ Placed placed_for(const unsigned char* x, int stride, const float4* table, int lane) {
    const int t = lane % 4;
    Placed p;
#if CODED
    const int g = lane / 4;
    // Columns of the product beyond the tokens are never read: any token will do for them.
    p.x = x + (size_t)(g < M ? g : M - 1) * stride + (FORMAT == 4 && ACT == 1 ? 8 : ACT == 0 ? 16 : 32) * t;
    p.table = table + (M == 1 ? 0 : 2 * (2 * t < M ? t : (M - 1) / 2));
#else
    p.x = x + 16 * t;
    p.table = table;
#endif
    return p;
}

#if FORMAT == 0 && ACT == 0
// sums += scale · (codes · activations − zero point · Σ activations), exact inside a block of 32.
template <bool FULL>
__device__ __forceinline__ void multiply_unit(const unsigned char* unit, int index, int chunks, int groups, const Placed& placed,
                                              int stride, int lane, float (&sums)[2][SUMS]) {
    (void)stride;
    [[maybe_unused]] const int g = lane / 4;
    float2 zeros = make_float2(1.0f, 1.0f);
    float group_sums[2][SUMS];
#pragma unroll
    for (int chunk = 0; chunk < UNIT_CHUNKS; chunk++) {
        if (!FULL && chunk >= chunks) break;
        const Chunk codes = load_chunk(unit, chunk, FULL ? UNIT_CHUNKS : chunks, lane);
#pragma unroll
        for (int inner = 0; inner < CHUNK_TILES; inner++) {
            const int here = chunk * CHUNK_TILES + inner, tile = index * UNIT_TILES + here; // tile of the unit, of the row
            const uint4 x = *(const uint4*)(placed.x + tile * 64);
            float4 entry[SUMS];
#pragma unroll
            for (int c = 0; c < SUMS; c++) entry[c] = placed.table[tile * TABLE_TOKENS + c];
#pragma unroll
            for (int half_tile = 0; half_tile < 2; half_tile++) {
                unsigned a[4];
                unpack(codes, 2 * inner + half_tile, a);
                const unsigned b[2] = {half_tile ? x.z : x.x, half_tile ? x.w : x.y};
                int d[4] = {0, 0, 0, 0};
#if BITS == 8
                mma_s8(d, a, b);
#else
                mma_u8s8(d, a, b);
#endif
                // Column where a group of scales starts in the unit.
                const int column = 64 * here + 32 * half_tile;
                const bool starts = GROUP == 0 || column % (GROUP ? GROUP : 1) == 0;
#if ZEROS && GROUP != 0
                if (starts && (FULL || column / GROUP < groups))
                    zeros = zero_points(unit + UNIT_ZEROS + column / GROUP * ZERO_BYTES, g);
#endif
#pragma unroll
                for (int r = 0; r < 2; r++)
#pragma unroll
                    for (int c = 0; c < SUMS; c++) {
                        const float scale = half_tile ? entry[c].y : entry[c].x;
                        const float product = (float)d[2 * r + c];
                        // Zero-point terms of a tile come with its first block, or with each.
                        float before = half_tile ? (GROUP == 32 ? entry[c].w : 0.0f) : entry[c].z;
                        if (ZEROS) before *= GROUP == 0 ? 0.0f : r ? zeros.y : zeros.x;
                        const bool none = half_tile && GROUP != 32;
                        float& sum = GROUP == 0 ? sums[r][c] : group_sums[r][c];
                        if (GROUP != 0 && starts)
                            sum = fmaf(product, scale, before);
                        else
                            sum = fmaf(product, scale, none || (ZEROS && GROUP == 0) ? sum : sum + before);
                    }
#if GROUP != 0
                const bool ends = (column + 32) % GROUP == 0, last = !FULL && here + 1 == chunks * CHUNK_TILES && half_tile;
                if (ends || last) {
                    const int group = column / GROUP;
                    if (FULL || group < groups) { // beyond the columns there is no scale
                        const float2 scale = unit_scales(unit, group, g);
#pragma unroll
                        for (int c = 0; c < SUMS; c++) {
                            sums[0][c] = fmaf(group_sums[0][c], scale.x, sums[0][c]);
                            sums[1][c] = fmaf(group_sums[1][c], scale.y, sums[1][c]);
                        }
                    }
                }
#endif
            }
        }
    }
}
#elif FORMAT == 0
// Four codes of a row as f16, less the zero point (in `minus`, with 1024).
__device__ __forceinline__ void codes_to_f16(unsigned codes, __half2 minus, unsigned& low, unsigned& high) {
#if BITS == 8
    codes ^= 0x80808080u; // signed to unsigned
#endif
    // 0x6400 is 1024, whose last place is 1.
    const unsigned first = __byte_perm(codes, 0x64646464u, 0x4140), second = __byte_perm(codes, 0x64646464u, 0x4342);
    low = subtract_halves(first, half2_bits(minus)), high = subtract_halves(second, half2_bits(minus));
}

// sums += scale · (codes − zero point) · activations, all in f16 with sums in f32.
template <bool FULL>
__device__ __forceinline__ void multiply_unit(const unsigned char* unit, int index, int chunks, int groups, const Placed& placed,
                                              int stride, int lane, float (&sums)[2][SUMS]) {
    (void)stride;
    [[maybe_unused]] const int g = lane / 4;
    float2 zeros = make_float2((float)MIDPOINT, (float)MIDPOINT);
    if (BITS == 8) zeros = make_float2(0.0f, 0.0f);
    if (ZEROS && GROUP == 0) zeros = make_float2(0.0f, 0.0f); // taken off at the end
    float d[4];
#pragma unroll
    for (int chunk = 0; chunk < UNIT_CHUNKS; chunk++) {
        if (!FULL && chunk >= chunks) break;
        const Chunk codes = load_chunk(unit, chunk, FULL ? UNIT_CHUNKS : chunks, lane);
#pragma unroll
        for (int inner = 0; inner < CHUNK_TILES; inner++) {
            const int here = chunk * CHUNK_TILES + inner, tile = index * UNIT_TILES + here;
            const uint4 x0 = *(const uint4*)(placed.x + tile * 128), x1 = *(const uint4*)(placed.x + tile * 128 + 16);
#pragma unroll
            for (int half_tile = 0; half_tile < 2; half_tile++) {
                const int column = 64 * here + 32 * half_tile, block = 2 * inner + half_tile;
                const bool starts = GROUP == 0 ? column == 0 : column % (GROUP ? GROUP : 1) == 0;
                const bool ends = GROUP != 0 && (column + 32) % (GROUP ? GROUP : 1) == 0;
#if ZEROS && GROUP != 0
                if (starts && (FULL || column / GROUP < groups))
                    zeros = zero_points(unit + UNIT_ZEROS + column / GROUP * ZERO_BYTES, g);
#endif
                if (starts) d[0] = d[1] = d[2] = d[3] = 0.0f;
                unsigned a[4];
                unpack(codes, block, a);
                const float factor = (float)code_factor(block), middle = 1024.0f + (BITS == 8 ? 128.0f : 0.0f);
                const __half2 minus0 = __float2half2_rn(fmaf(zeros.x, factor, middle)), minus1 = __float2half2_rn(fmaf(zeros.y, factor, middle));
#pragma unroll
                for (int i = 0; i < 2; i++) { // halves of the block
                    unsigned operand[4];
                    codes_to_f16(a[2 * i], minus0, operand[0], operand[2]);
                    codes_to_f16(a[2 * i + 1], minus1, operand[1], operand[3]);
                    const uint4 x = half_tile ? x1 : x0;
                    const unsigned b[2] = {i ? x.z : x.x, i ? x.w : x.y};
                    mma_f16(d, operand, b);
                }
                const bool last = !FULL && here + 1 == chunks * CHUNK_TILES && half_tile;
#if GROUP != 0
                if (ends || last) {
                    const int group = column / GROUP;
                    if (FULL || group < groups) {
                        const float2 scale = unit_scales(unit, group, g);
#pragma unroll
                        for (int c = 0; c < SUMS; c++) {
                            sums[0][c] = fmaf(d[c], scale.x, sums[0][c]);
                            sums[1][c] = fmaf(d[2 + c], scale.y, sums[1][c]);
                        }
                    }
                }
#else
                (void)ends;
                if (last || column + 32 == UNIT_COLUMNS) {
#pragma unroll
                    for (int c = 0; c < SUMS; c++) sums[0][c] += d[c], sums[1][c] += d[2 + c];
                }
#endif
            }
        }
    }
}
#elif FORMAT == 4
// 32 columns: two tiles, the second of which may be missing.
struct Block {
#if ACT == 0
    int d[4];
    float scale[SUMS];
    // Starts from what the mean of all codes is worth, so that integers are exact.
    __device__ __forceinline__ void start(const Placed& placed, int block) {
        d[1] = d[3] = 0;
#pragma unroll
        for (int c = 0; c < SUMS; c++) {
            const float4 entry = placed.table[block / 2 * TABLE_TOKENS + c];
            scale[c] = block % 2 ? entry.y : entry.x;
            d[c] = d[2 + c] = __float_as_int(block % 2 ? entry.w : entry.z);
        }
    }
    __device__ __forceinline__ void multiply(const unsigned (&product)[2][4], const unsigned char* x) { multiply_bytes(product, *(const uint4*)x, d); }
    __device__ __forceinline__ void add_to(float (&sums)[2][SUMS]) const {
#pragma unroll
        for (int c = 0; c < SUMS; c++) {
            sums[0][c] = fmaf((float)d[c], scale[c], sums[0][c]);
            sums[1][c] = fmaf((float)d[2 + c], scale[c], sums[1][c]);
        }
    }
#else
    float d[4];
    __device__ __forceinline__ void start(const Placed&, int) { d[0] = d[1] = d[2] = d[3] = 0.0f; }
    __device__ __forceinline__ void multiply(const unsigned (&product)[2][4], const unsigned char* x) {
        const uint2 columns = *(const uint2*)x;
        const unsigned b[2] = {columns.x, columns.y};
        unsigned a[4];
        trellis_fragment(product, a);
        mma_f16(d, a, b);
    }
    __device__ __forceinline__ void add_to(float (&sums)[2][SUMS]) const {
#pragma unroll
        for (int c = 0; c < SUMS; c++) sums[0][c] += d[c], sums[1][c] += d[2 + c];
    }
#endif
};
#define TILE_INPUTS (ACT == 0 ? 64 : 32) // bytes of a token at a tile of 16 columns

#if !(LOWRANK || SPARSE) // whose loops leave no registers for more
// A unit of K bits throughout: the usual case, with more decoded at once.
template <int K>
__device__ __forceinline__ void multiply_even(const unsigned char* unit, int index, const Placed& placed, int lane, float (&sums)[2][SUMS]) {
    const unsigned char* const x = placed.x + (size_t)index * 16 * TILE_INPUTS;
#pragma unroll 2
    for (int block = 0; block < 8; block++) {
        Block b;
        b.start(placed, index * 8 + block);
        unsigned first[2][4], second[2][4];
        trellis_products(K, unit + block * 64 * K, lane, first);
        trellis_products(K, unit + block * 64 * K + 32 * K, lane, second);
        b.multiply(first, x + 2 * block * TILE_INPUTS);
        b.multiply(second, x + (2 * block + 1) * TILE_INPUTS);
        b.add_to(sums);
    }
}
#endif
// Any unit: tiles of several widths, or fewer than 16 of them.
__device__ __forceinline__ void multiply_mixed(const unsigned char* unit, int index, const Columns& columns, const Placed& placed, int lane,
                                               float (&sums)[2][SUMS]) {
    const unsigned char* const x = placed.x + (size_t)index * 16 * TILE_INPUTS;
#pragma unroll 1
    for (int block = 0; block < 8 && columns.bits(2 * block); block++) {
        Block b;
        b.start(placed, index * 8 + block);
        const int bits = columns.bits(2 * block), others = columns.bits(2 * block + 1);
        unsigned first[2][4], second[2][4];
        trellis_products(bits, unit, lane, first);
        if (others) unit += 32 * bits;
        trellis_products(others ? others : bits, unit, lane, second);
        unit += 32 * others;
        b.multiply(first, x + 2 * block * TILE_INPUTS);
        if (others) b.multiply(second, x + (2 * block + 1) * TILE_INPUTS);
        b.add_to(sums);
    }
}
// sums += codes · activations of a unit.
__device__ __forceinline__ void multiply_unit(const unsigned char* unit, int index, const Columns& columns, const Placed& placed, int lane,
                                              float (&sums)[2][SUMS]) {
#if !(LOWRANK || SPARSE)
    const unsigned first = columns.words.y & 15u, even = first * 0x11111111u;
    switch (columns.words.y == even && columns.words.z == even ? (int)first : 0) {
    case 1: return multiply_even<1>(unit, index, placed, lane, sums);
    case 2: return multiply_even<2>(unit, index, placed, lane, sums);
    case 3: return multiply_even<3>(unit, index, placed, lane, sums);
    case 4: return multiply_even<4>(unit, index, placed, lane, sums);
    default: break;
    }
#endif
    multiply_mixed(unit, index, columns, placed, lane, sums);
}
#elif FORMAT != 5
// sums += weights · activations in f32, over this lane's columns.
template <bool FULL>
__device__ __forceinline__ void multiply_unit(const unsigned char* unit, int index, int chunks, int groups, const Placed& placed,
                                              int stride, int lane, float (&sums)[2][SUMS]) {
    (void)chunks, (void)groups;
    const unsigned char* const x_here = placed.x + index * (256 / TILE_UNITS);
#pragma unroll
    for (int i = 0; i < 4 / TILE_UNITS; i++) {
        float w[2][4];
#if FORMAT == 3
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float4 v = *(const float4*)(unit + (2 * i + r) * 512 + lane * 16);
            w[r][0] = v.x, w[r][1] = v.y, w[r][2] = v.z, w[r][3] = v.w;
        }
#else
        const uint4 v = *(const uint4*)(unit + i * 512 + lane * 16);
        const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
#if FORMAT == 1
            const float2 two = f16x2(words[j]);
#else
            const float2 two = bf16x2(words[j]);
#endif
            w[j / 2][2 * (j % 2)] = two.x, w[j / 2][2 * (j % 2) + 1] = two.y;
        }
#endif
#pragma unroll
        for (int m = 0; m < M; m++) {
            const float4 x = *(const float4*)(x_here + (size_t)m * stride + 64 * i);
#pragma unroll
            for (int r = 0; r < 2; r++)
                sums[r][m] = fmaf(w[r][3], x.w, fmaf(w[r][2], x.z, fmaf(w[r][1], x.y, fmaf(w[r][0], x.x, sums[r][m]))));
        }
    }
}
#endif
