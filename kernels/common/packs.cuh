// Packs of matrices: where the weights of a lane lie, and how they become operands of mma.
//
// A tile has 16 rows and 64 columns. Lane l = 4 g + t owns rows g and g + 8 and the columns
// 16 i + 4t + b (i, b in 0..4), in registers of an A fragment: register j is row g + 8 (j % 2),
// columns 16 (j / 2) + 4t + b of a block of 32. Codes of several blocks share a register's word
// at different bits, so that one AND brings out a block: as u8, times a power of two that the
// block's activations are divided with.
//
// Trellis codes have tiles of their own (trellis.cuh); a unit of theirs is 256 columns too, of as
// many bytes as their bits say.
//
// Defines: FORMAT (0 codes, 1 f16, 2 bf16, 3 f32, 4 trellis, 5 nothing) BITS (8 4 3 2; trellis: 8 to
// 16) GROUP (0 = row, 32, 64, 128, 256) ZEROS (0, 1).
#pragma once
#include "half.cuh"
#include "memory.cuh"
#include "trellis.cuh"

#if FORMAT == 0
#if BITS == 2 || BITS == 3
#define CHUNK_TILES 2
#else
#define CHUNK_TILES 1
#endif
#define UNIT_TILES 4
#define CHUNK_BYTES (CHUNK_TILES * 128 * BITS)
#elif FORMAT == 4
#define CHUNK_TILES 1
#define UNIT_TILES 4
#define CHUNK_BYTES 1024 // at 8 bits
#elif FORMAT == 5
#define CHUNK_TILES 1
#define UNIT_TILES 4
#define CHUNK_BYTES 0
#else
#define CHUNK_TILES 1
#define UNIT_TILES 1
#define CHUNK_BYTES 2048
#endif
#define UNIT_CHUNKS (UNIT_TILES / CHUNK_TILES)
#define UNIT_COLUMNS (64 * UNIT_TILES)
// Units of a tile of f32: its halves of 32 columns.
#define TILE_UNITS (FORMAT == 3 ? 2 : 1)
#define UNIT_CODES (UNIT_CHUNKS * CHUNK_BYTES)

#if FORMAT == 0 && GROUP != 0
#define UNIT_GROUPS (UNIT_COLUMNS / GROUP)
#else
#define UNIT_GROUPS 0
#endif
#define ZERO_BYTES (ZEROS ? (BITS == 8 ? 16 : 8) : 0)
// A unit in shared memory: codes, then scales (32 bytes a group), then zero points.
#define UNIT_SCALES UNIT_CODES
#define UNIT_ZEROS (UNIT_SCALES + 32 * UNIT_GROUPS)
#define UNIT_BYTES ((UNIT_ZEROS + ZERO_BYTES * UNIT_GROUPS + 15) / 16 * 16)

// Units on their way per warp where the plan does not say: 8 KiB, 2 to 4 units. More do not help
// (docs/kernel-notes.md).
#ifndef STAGES
#define STAGES (UNIT_CODES == 0 || UNIT_CODES > 2048 ? 2 : 4)
#endif
// Sizes of a matrix of this pack.
struct Pack {
    int tiles;  // column tiles, padded to whole chunks
    int units;  // per row tile
    int groups; // per row
    size_t row; // bytes of a row tile
    // `columns` is the table of trellis codes.
    __device__ __forceinline__ explicit Pack(int cols, const unsigned char* columns) {
        tiles = (cols + 64 * CHUNK_TILES - 1) / (64 * CHUNK_TILES) * CHUNK_TILES;
        units = FORMAT == 5 ? 1 : (tiles * TILE_UNITS + UNIT_TILES - 1) / UNIT_TILES;
#if UNIT_GROUPS
        groups = (cols + GROUP - 1) / GROUP;
#else
        groups = 0;
#endif
#if FORMAT == 4
        row = load_columns(columns, 0).row_bytes();
#else
        (void)columns;
        row = (size_t)(tiles * TILE_UNITS / CHUNK_TILES) * CHUNK_BYTES;
#endif
    }
    __device__ __forceinline__ int chunks(int unit) const { return min(UNIT_CHUNKS, tiles * TILE_UNITS / CHUNK_TILES - unit * UNIT_CHUNKS); }
    __device__ __forceinline__ int groups_of(int unit) const { return min(UNIT_GROUPS, groups - unit * UNIT_GROUPS); }
};

#if FORMAT == 0
// What a lane holds of a chunk.
struct Chunk {
    uint4 w[BITS == 8 ? 2 : 1];
    uint2 high; // third bits
};

// `chunks` is that of the whole unit.
__device__ __forceinline__ Chunk load_chunk(const unsigned char* unit, int chunk, int chunks, int lane) {
    Chunk c;
#if BITS == 8
    c.w[0] = *(const uint4*)(unit + chunk * 1024 + lane * 16);
    c.w[1] = *(const uint4*)(unit + chunk * 1024 + 512 + lane * 16);
#else
    c.w[0] = *(const uint4*)(unit + chunk * 512 + lane * 16);
#endif
#if BITS == 3
    c.high = *(const uint2*)(unit + chunks * 512 + (lane * chunks + chunk) * 8);
#endif
    return c;
}

// The fragment of a chunk's block of 32 columns: codes times `code_factor(block)`, s8 for 8 bits
// (less 128), u8 for fewer. The block is a constant where it is called.
__device__ __forceinline__ void unpack(const Chunk& c, int block, unsigned (&a)[4]) {
#if BITS == 8
    a[0] = c.w[block].x, a[1] = c.w[block].y, a[2] = c.w[block].z, a[3] = c.w[block].w;
#else
    const unsigned w[4] = {c.w[0].x, c.w[0].y, c.w[0].z, c.w[0].w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
#if BITS == 4
        a[j] = w[j] & (0x0f0f0f0fu << (4 * block));
#elif BITS == 2
        a[j] = w[j] & (0x03030303u << (2 * block));
#else
        const unsigned h = (j & 2 ? c.high.y : c.high.x) >> (j & 1);
        if (block < 3)
            a[j] = (w[j] & (0x03030303u << (2 * block))) | (h & (0x04040404u << (2 * block)));
        else // a third bit above bits 6 and 7 has no room: two places down
            a[j] = ((w[j] >> 2) & 0x30303030u) | ((h << 6) & 0x40404040u);
#endif
    }
#endif
}
// What codes of a chunk's block are multiplied with.
__device__ __forceinline__ int code_factor(int block) {
#if BITS == 4
    return block ? 16 : 1;
#elif BITS == 2
    return 1 << (2 * block);
#elif BITS == 3
    return block < 2 ? 1 << (2 * block) : 16;
#else
    return 1;
#endif
}
// The zero point that codes as unpacked have in symmetric schemes.
#define MIDPOINT (BITS == 8 ? 0 : 1 << (BITS - 1))
#elif FORMAT == 4
__device__ __forceinline__ int code_factor(int) { return 1; }
#define MIDPOINT 510
#endif

// Where a lane reads its part of a matrix: 16 bytes of codes, 4 of scales and of zero points from
// here, and at the same place of every 512 and 128 bytes that follow.
struct Source {
    const unsigned char* q;
    const unsigned char* scales;
    const unsigned char* zeros;
};

#if FORMAT == 4
// Copies this lane's part of a unit of trellis codes to shared memory, without a commit.
__device__ __forceinline__ void copy_unit(unsigned char* to, const unsigned char* from, int lane, int bytes) {
#pragma unroll
    for (int at = 0; at < UNIT_BYTES; at += 512)
        if (at + lane * 16 < bytes) async_copy16(to + at + lane * 16, from + at + lane * 16);
}
#else
// Copies this lane's part of a unit to shared memory, without a commit. Codes are read by the lane
// that copied them; scales and zero points by others too.
template <bool FULL>
__device__ __forceinline__ void copy_unit(unsigned char* to, const Source& from, int lane, int chunks, int groups) {
#if FORMAT != 5
    unsigned char* const codes = to + lane * 16;
#pragma unroll
    for (int c = 0; c < UNIT_CHUNKS * (CHUNK_BYTES / 512); c++)
        if (FULL || c < chunks * (CHUNK_BYTES / 512)) async_copy16(codes + c * 512, from.q + c * 512);
#if FORMAT == 0 && BITS == 3
    // Third bits: 16 bytes a lane where there are two chunks, else 8.
    if (FULL || chunks == 2)
        async_copy16(codes + 1024, from.q + 1024);
    else
        async_copy8(to + 512 + lane * 8, from.q + 512 - lane * 8);
#endif
#if UNIT_GROUPS
    unsigned char* const words = to + lane * 4;
#pragma unroll
    for (int i = 0; i < UNIT_GROUPS * 32; i += 128)
        if ((FULL && i + 128 <= UNIT_GROUPS * 32) || i + lane * 4 < groups * 32) async_copy4(words + UNIT_SCALES + i, from.scales + i);
#if ZEROS
#pragma unroll
    for (int i = 0; i < UNIT_GROUPS * ZERO_BYTES; i += 128)
        if ((FULL && i + 128 <= UNIT_GROUPS * ZERO_BYTES) || i + lane * 4 < groups * ZERO_BYTES) async_copy4(words + UNIT_ZEROS + i, from.zeros + i);
#endif
#endif
#endif
}
#endif

#if FORMAT == 0
// Scales of rows g and g + 8 of a group of a unit in shared memory.
__device__ __forceinline__ float2 unit_scales(const unsigned char* unit, int group, int g) {
    return f16x2(*(const unsigned*)(unit + UNIT_SCALES + group * 32 + g * 4));
}
#if ZEROS
// The zero point of row r, as codes are unpacked.
__device__ __forceinline__ float row_zero(const unsigned char* zeros, int r) {
#if BITS == 8
    return (float)zeros[2 * (r % 8) + r / 8] - 128.0f;
#else
    return (float)(zeros[r % 8] >> (r < 8 ? 0 : 4) & 15);
#endif
}
// Those of rows g and g + 8.
__device__ __forceinline__ float2 zero_points(const unsigned char* zeros, int g) {
#if BITS == 8
    return make_float2((float)zeros[2 * g] - 128.0f, (float)zeros[2 * g + 1] - 128.0f);
#else
    const unsigned byte = zeros[g];
    return make_float2((float)(byte & 15u), (float)(byte >> 4));
#endif
}
#endif
#endif
