// The stream of Q in fused_linear: who has which units of weights, their copies, and the sums of row tiles.
//
// Defines: those of products.cuh, and GLU (0, 1) EXPERTS (0 to 2) SPLIT (0, 1).
#pragma once
#include "products.cuh"

#define VIRTUAL (EXPERTS == 2 ? M : 1) // rows of x that each meet weights of their own
#define PAIR (GLU ? 2 : 1)
#define SUPER (PAIR * VIRTUAL)

// Start of the part of `index` when n items are shared out among `parts`.
__device__ __forceinline__ int share(int n, int parts, int index) { return index * (n / parts) + min(index, n % parts); }

struct Weights {
    const unsigned char* q;
    const unsigned char* scales;
    const unsigned char* zeros;
    const int* experts; // ids of this block's rows of x
    int tiles;          // row tiles of a matrix
};
// Row tile in the pack of a row of the launch.
__device__ __forceinline__ size_t packed_tile(const Weights& w, int row) {
#if EXPERTS == 2
    return (size_t)w.experts[row % VIRTUAL] * w.tiles + row / VIRTUAL;
#elif EXPERTS == 1
    return (size_t)w.experts[0] * w.tiles + row;
#else
    return (size_t)row;
#endif
}
#if FORMAT == 4
// A warp's place in the line of units, which are of as many bytes as their columns' bits say.
struct Cursor {
    const unsigned char* q;
    Columns columns;
    int row, unit;
};
__device__ __forceinline__ void seek(Cursor& c, const Weights& w, const Pack& pack, int) {
    c.columns = load_columns(w.zeros, c.unit);
    c.q = w.q + packed_tile(w, c.row) * pack.row + c.columns.start();
}
__device__ __forceinline__ void copy_and_advance(Cursor& c, unsigned char* to, const Weights& w, const Pack& pack, int, int lane) {
    const int bytes = c.columns.bytes();
    copy_unit(to, c.q, lane, bytes);
    c.q += bytes; // row tiles follow one another
    c.unit = c.unit + 1 == pack.units ? 0 : c.unit + 1;
    c.columns = load_columns(w.zeros, c.unit);
}
#else
// A lane's place in the line of units.
struct Cursor {
    Source from;
    int row, unit;
};
__device__ __forceinline__ void seek(Cursor& c, const Weights& w, const Pack& pack, int lane) {
    const size_t tile = packed_tile(w, c.row);
    c.from.q = w.q + tile * pack.row + (size_t)c.unit * UNIT_CODES + lane * 16;
#if UNIT_GROUPS
    const size_t group = tile * pack.groups + (size_t)c.unit * UNIT_GROUPS;
    c.from.scales = w.scales + group * 32 + lane * 4;
#if ZEROS
    c.from.zeros = w.zeros + group * ZERO_BYTES + lane * 4;
#endif
#endif
}
__device__ __forceinline__ void copy_and_advance(Cursor& c, unsigned char* to, const Weights& w, const Pack& pack, int rows, int lane) {
    if (++c.unit == pack.units) { // the last of a row may be short
        copy_unit<false>(to, c.from, lane, pack.chunks(pack.units - 1), pack.groups_of(pack.units - 1));
        c.unit = 0;
        if (++c.row < rows) seek(c, w, pack, lane);
    } else {
        copy_unit<true>(to, c.from, lane, UNIT_CHUNKS, UNIT_GROUPS);
        c.from.q += UNIT_CODES;
        c.from.scales += 32 * UNIT_GROUPS;
        c.from.zeros += ZERO_BYTES * UNIT_GROUPS;
    }
}
#endif

// Super tiles of a block where it shares none with another.
struct Supers {
    int first, end, most; // most of any block
};
__device__ __forceinline__ Supers own_supers(int supers, int block, int blocks) {
    const int each = supers / blocks, more = supers - each * blocks, first = block * each + min(block, more);
    return {first, first + each + (block < more ? 1 : 0), each + (more ? 1 : 0)};
}
// The same number, made anew from here on: what follows from it needs no register meanwhile.
__device__ __forceinline__ int anew(int n) {
#ifndef HLRC_EMU
    asm volatile("" : "+r"(n));
#endif
    return n;
}
#if SPLIT
// Units of a block; several blocks share a row tile.
struct Range {
    int first, end;
};
__device__ __forceinline__ Range block_range(int rows, int units, int block, int blocks) {
    return {share(rows * units, blocks, block), share(rows * units, blocks, block + 1)};
}
#endif

// Puts sums of a row tile down as [M, 16].
__device__ __forceinline__ void put_sums(float (&sums)[2][SUMS], float* slot, int lane) {
    const int g = lane / 4, t = lane % 4;
#if CODED
#pragma unroll
    for (int c = 0; c < SUMS; c++) {
        const int m = SUMS * t + c;
        if (m < M) slot[m * 16 + g] = sums[0][c], slot[m * 16 + g + 8] = sums[1][c];
        sums[0][c] = sums[1][c] = 0.0f;
    }
#else
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float v = sums[r][m];
            v += __shfl_xor_sync(HLRC_FULL_WARP, v, 1);
            v += __shfl_xor_sync(HLRC_FULL_WARP, v, 2);
            if (t == 0) slot[m * 16 + g + 8 * r] = v;
            sums[r][m] = 0.0f;
        }
#endif
}

// Sum over the warps that a row tile's items, `per_row` each, were shared out to, in their order.
template <int COUNT>
__device__ __forceinline__ float gather_sums(const float* slots, int width, int first, int end, int row, int per_row, int first_row, int at) {
    float v = 0.0f;
#pragma unroll
    for (int w = 0; w < COUNT; w++) {
        const int from = first + share(end - first, COUNT, w), to = first + share(end - first, COUNT, w + 1);
        if (from < to && from < (row + 1) * per_row && to > row * per_row) v += slots[(size_t)(row - first_row + w) * width + at];
    }
    return v;
}
