// Rows out of the packs of fused_linear (tiles of 16 rows by 64 columns; kernels/README.md).
#pragma once
#include "device.cuh"

#define HLRC_FORMAT_CODES 0
#define HLRC_FORMAT_F16 1
#define HLRC_FORMAT_BF16 2
#define HLRC_FORMAT_F32 3

// Bytes of a row tile.
template <int format, int bits>
__device__ __forceinline__ size_t tile_bytes(int cols) {
    const size_t c64 = (size_t)(cols + 63) / 64, c128 = (size_t)(cols + 127) / 128;
    if (format == HLRC_FORMAT_F32) return c64 * 4096;
    if (format != HLRC_FORMAT_CODES) return c64 * 2048;
    return bits == 8 ? c64 * 1024 : bits == 4 ? c64 * 512 : bits == 3 ? c128 * 768 : c128 * 512;
}

// Code of row r (0..16), column k of a row tile, unsigned.
template <int bits>
__device__ __forceinline__ int unpack_code(const unsigned char* tile, int cols, int r, int k) {
    const int j = (r >> 3) + 2 * (k >> 4 & 1), lane = (r & 7) * 4 + (k >> 2 & 3), byte = k & 3;
    if (bits == 8) return ((int)(signed char)tile[(size_t)(k >> 5) * 512 + lane * 16 + j * 4 + byte]) + 128;
    if (bits == 4) return tile[(size_t)(k >> 6) * 512 + lane * 16 + j * 4 + byte] >> (4 * (k >> 5 & 1)) & 15;
    const int block = k >> 5 & 3; // of 128 columns
    if (bits == 2) return tile[(size_t)(k >> 7) * 512 + lane * 16 + j * 4 + byte] >> (2 * block) & 3;
    const int unit = k >> 8, pair = k >> 7 & 1, pairs = min(2, (cols + 127) / 128 - 2 * unit);
    const unsigned char* at = tile + (size_t)unit * 1536;
    const int low = at[pair * 512 + lane * 16 + j * 4 + byte] >> (2 * block) & 3;
    const int high = at[pairs * 512 + lane * 8 * pairs + pair * 8 + (j >> 1) * 4 + byte] >> (((2 * block + 2) & 7) + (j & 1)) & 1;
    return low + 4 * high;
}

// Value of row r, column k of a row tile of floats.
template <int format>
__device__ __forceinline__ float unpack_float(const unsigned char* tile, int r, int k) {
    const size_t part = (size_t)(k >> 6) * 4 + (size_t)(k >> 4 & 3);
    const int lane = (r & 7) * 4 + (k >> 2 & 3);
    if (format == HLRC_FORMAT_F32) return *(const float*)(tile + part * 1024 + (r >> 3) * 512 + lane * 16 + (k & 3) * 4);
    const unsigned short bits = *(const unsigned short*)(tile + part * 512 + lane * 16 + (r >> 3) * 8 + (k & 3) * 2);
    return format == HLRC_FORMAT_BF16 ? __bfloat162float(__ushort_as_bfloat16(bits)) : __half2float(__ushort_as_half(bits));
}
