// Codes of linear_prefill in registers: what a lane has of a tile of 16 rows and 64 columns, by the defines
// FORMAT, BITS, GROUP and ZEROS.
#pragma once
#include "device.cuh"

#if FORMAT == 0
#define WORDS (BITS == 8 ? 2 : 1)
// What a lane has of a column tile (2 and 3 bits: of two), with the scales and zero points of its groups.
struct Codes {
    uint4 v[WORDS];
    uint2 third;
    unsigned scales[2], zeros[2];
};
// Where a row tile's codes, scales and zero points are.
struct Packed {
    const unsigned char* codes;
    const __half* scales;
    const unsigned char* zeros;
};
// The first group of a column tile, or the one behind it.
__device__ __forceinline__ size_t group_of(int cols, int column_tile, int i) {
    const int every = GROUP == 0 ? 1 : GROUP;
    return (size_t)min(column_tile * 64 / every + i, (cols + every - 1) / every - 1);
}
// Loads the codes of block `block` where they are apart (8 bits), else all with block 1; zero points with block 1.
__device__ __forceinline__ void load_codes(Codes& to, const Packed& from, int cols, int column_tile, int block, int lane) {
#if BITS == 8
    to.v[block] = *(const uint4*)(from.codes + (size_t)column_tile * 1024 + block * 512 + lane * 16);
#endif
    if (block == 0) return;
#if BITS == 4
    to.v[0] = *(const uint4*)(from.codes + (size_t)column_tile * 512 + lane * 16);
#elif BITS == 2
    to.v[0] = *(const uint4*)(from.codes + (size_t)(column_tile >> 1) * 512 + lane * 16);
#elif BITS == 3
    const int unit = column_tile >> 2, pair = column_tile >> 1 & 1, pairs = min(2, (cols + 127) / 128 - 2 * unit);
    const unsigned char* at = from.codes + (size_t)unit * 1536;
    to.v[0] = *(const uint4*)(at + pair * 512 + lane * 16);
    to.third = *(const uint2*)(at + pairs * 512 + lane * 8 * pairs + pair * 8);
#endif
#if GROUP && ZEROS
    const int g = lane >> 2;
#pragma unroll
    for (int i = 0; i < (GROUP == 32 ? 2 : 1); i++) {
        const size_t group = group_of(cols, column_tile, i);
        to.zeros[i] = BITS == 8 ? *(const unsigned short*)(from.zeros + group * 16 + 2 * g) : from.zeros[group * 8 + g];
    }
#endif
    (void)cols;
}
__device__ __forceinline__ void load_scales(Codes& to, const Packed& from, int cols, int column_tile, int lane) {
#if GROUP
#pragma unroll
    for (int i = 0; i < (GROUP == 32 ? 2 : 1); i++) to.scales[i] = *(const unsigned*)(from.scales + group_of(cols, column_tile, i) * 16 + 2 * (lane >> 2));
#endif
    (void)to, (void)from, (void)cols, (void)column_tile, (void)lane;
}
// Unsigned codes of block `block` (32 columns) of column tile `column_tile`: word j is row g + 8 (j % 2),
// columns 16 (j / 2) + 4t ...
__device__ __forceinline__ void block_codes(const Codes& from, int column_tile, int block, unsigned (&w)[4]) {
#if BITS == 8
    const uint4 v = from.v[block];
    w[0] = v.x ^ 0x80808080u, w[1] = v.y ^ 0x80808080u, w[2] = v.z ^ 0x80808080u, w[3] = v.w ^ 0x80808080u;
#elif BITS == 4
    const uint4 v = from.v[0];
    const int shift = 4 * block;
    w[0] = v.x >> shift & 0x0f0f0f0fu, w[1] = v.y >> shift & 0x0f0f0f0fu, w[2] = v.z >> shift & 0x0f0f0f0fu, w[3] = v.w >> shift & 0x0f0f0f0fu;
#else
    const uint4 v = from.v[0];
    const int m = 2 * (column_tile & 1) + block, shift = 2 * m;
    w[0] = v.x >> shift & 0x03030303u, w[1] = v.y >> shift & 0x03030303u, w[2] = v.z >> shift & 0x03030303u, w[3] = v.w >> shift & 0x03030303u;
#if BITS == 3
    const int third = (shift + 2) & 7;
    w[0] |= (from.third.x >> third & 0x01010101u) << 2, w[1] |= (from.third.x >> (third + 1) & 0x01010101u) << 2;
    w[2] |= (from.third.y >> third & 0x01010101u) << 2, w[3] |= (from.third.y >> (third + 1) & 0x01010101u) << 2;
#endif
#endif
    (void)column_tile;
}
#endif
