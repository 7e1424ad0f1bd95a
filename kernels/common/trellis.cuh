// Trellis codes: tiles of 16 rows and 16 columns, each a cyclic string of 256 K bits.
//
// Weight i of a tile (row i / 16, column i % 16) is decided by the BITS bits from bit K i on, its
// state: the sum of the bytes of state * multiplier, less 510, in steps of 1 / 128 of the scale of
// its 16 rows. Tiles of a row tile follow one another, 32 K bytes each; K may differ from column
// block to column block. For each 256 columns four words (here `Columns`) say where their tiles
// start, in 32 bytes from the row tile's first; their Ks, 4 bits each, 0 where there is no column;
// the largest K of the matrix, and above 8 bits the sum of all Ks of a row.
//
// Lane 4g + t decodes columns 4t .. 4t + 3 of rows g and g + 8: 4 windows in 64 bits a row. Sums of
// bytes are left to the tensor cores: with int8 activations, each four times, products of states are
// operands A of m16n8k32 as they are. With f16 activations codes are f16 integers.
//
// Source: the bitshift trellis with a computed code, QTIP (arXiv 2406.11235); sums of bytes, EXL3.
//
// Defines: FORMAT (4: this one) BITS (8 to 16), log2 of the number of states.
#pragma once
#include "half.cuh"
#include "mma.cuh"

#if FORMAT == 4
// What one step of a code is worth.
#define TRELLIS_STEP (1.0f / 128.0f)

// As numeric::trellis::multiplier of the sources in Rust. K is a constant, or the same for the warp.
__device__ __forceinline__ unsigned trellis_multiplier(int K) {
    constexpr unsigned table[9][8] = {
        {0x869b8575u, 0xb8c0d23bu, 0xe35ea3ddu, 0xb2af926fu, 0xd925e5bfu, 0x5985c8b9u, 0x5985c8b9u, 0x5985c8b9u},
        {0x79655c7bu, 0x79655c7bu, 0x79655c7bu, 0x79655c7bu, 0x79655c7bu, 0x79655c7bu, 0x79655c7bu, 0x79655c7bu},
        {0x626a6173u, 0xb63a3c3fu, 0x21828e31u, 0x6ef1324fu, 0x68f7b9a9u, 0x769ed1cfu, 0x769ed1cfu, 0x769ed1cfu},
        {0xa621af6du, 0xa621af6du, 0xa621af6du, 0xa621af6du, 0xa621af6du, 0xa621af6du, 0xa621af6du, 0xa621af6du},
        {0xa5688aa5u, 0xac3bef75u, 0x6b68a9a1u, 0x8f312c33u, 0xb818f909u, 0x250b3c25u, 0x250b3c25u, 0x250b3c25u},
        {0x6b767173u, 0x444b46c5u, 0x6b6b5ea9u, 0x2fb2f0f3u, 0x6a57664bu, 0x0544fb45u, 0x0544fb45u, 0x0544fb45u},
        {0x789a7497u, 0x3e2b4cd1u, 0x1ca3e123u, 0xee92130fu, 0xe8f966c7u, 0x1d45f555u, 0x1d45f555u, 0x1d45f555u},
        {0x83dcd12du, 0x83dcd12du, 0x83dcd12du, 0x83dcd12du, 0x83dcd12du, 0x83dcd12du, 0x83dcd12du, 0x83dcd12du},
        {0xa5a2797bu, 0x83dcd12du, 0x83dcd12du, 0x83dcd12du, 0x89e8c929u, 0x83dcd12du, 0x83dcd12du, 0x83dcd12du},
    };
    constexpr int row = BITS - 8;
    return K < 5 ? (K < 3 ? (K == 1 ? table[row][0] : table[row][1]) : (K == 3 ? table[row][2] : table[row][3]))
                 : (K < 7 ? (K == 5 ? table[row][4] : table[row][5]) : (K == 7 ? table[row][6] : table[row][7]));
}

// Four words of the table of columns.
struct Columns {
    uint4 words;
    __device__ __forceinline__ size_t start() const { return (size_t)words.x * 32; } // bytes into the row tile
    __device__ __forceinline__ int bytes() const {
        const unsigned low = (words.y & 0x0f0f0f0fu) + (words.z & 0x0f0f0f0fu), high = (words.y >> 4 & 0x0f0f0f0fu) + (words.z >> 4 & 0x0f0f0f0fu);
        return 32 * (int)__dp4a(low + high, 0x01010101u, 0u);
    }
    __device__ __forceinline__ int bits(int block) const { return (int)((block < 8 ? words.y : words.z) >> 4 * (block & 7) & 15u); }
    __device__ __forceinline__ int widest() const { return (int)(words.w & 255u); }
    __device__ __forceinline__ size_t row_bytes() const { return (size_t)(words.w >> 8) * 32; }
};
__device__ __forceinline__ Columns load_columns(const unsigned char* table, int unit) {
    Columns c;
    c.words = *((const uint4*)table + unit);
    return c;
}

// Products of this lane's states in a tile of K bits: [row g, g + 8][column 4t + b]. The sum of a
// product's bytes is the code and 510. K is a constant, or the same for the warp.
__device__ __forceinline__ void trellis_products(int K, const unsigned char* tile, int lane, unsigned (&product)[2][4]) {
    constexpr unsigned mask = (1u << BITS) - 1u;
    const unsigned multiplier = trellis_multiplier(K);
    const unsigned* const words = (const unsigned*)tile;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int first = 4 * K * (lane + 32 * r), word = first >> 5; // bits; 4 (g + 8 r) + t is lane + 32 r
        const unsigned w0 = words[word], w1 = words[word + 1 < 8 * K ? word + 1 : 0];
        const unsigned low = __funnelshift_r(w0, w1, first & 31);
        unsigned high = w1 >> (first & 31);
        if (BITS == 16 && K == 7) // 65 bits
            high = __funnelshift_r(w1, words[word + 2 < 8 * K ? word + 2 : word + 2 - 8 * K], first & 31);
#pragma unroll
        for (int b = 0; b < 4; b++) product[r][b] = (__funnelshift_r(low, high, K * b) & mask) * multiplier;
    }
}

// d += bytes of products · activations, in int8: x are those of this lane's four columns, each four
// times, so that a product is a register of operand A as it is.
__device__ __forceinline__ void multiply_bytes(const unsigned (&product)[2][4], const uint4& x, int (&d)[4]) {
    const unsigned a[4] = {product[0][0], product[1][0], product[0][1], product[1][1]}, b[2] = {x.x, x.y};
    mma_u8s8(d, a, b);
    const unsigned a2[4] = {product[0][2], product[1][2], product[0][3], product[1][3]}, b2[2] = {x.z, x.w};
    mma_u8s8(d, a2, b2);
}

// Two codes as f16 out of two products.
__device__ __forceinline__ unsigned trellis_pair(unsigned first, unsigned second) {
    // 0x6400 is 1024, whose last place is 1; 0x65fe is 1534.
    const unsigned low = __dp4a(first, 0x01010101u, 0x6400u), high = __dp4a(second, 0x01010101u, 0x6400u);
    return subtract_halves(__byte_perm(low, high, 0x5410), 0x65fe65feu);
}
// The codes as an operand A of m16n8k16, columns permuted alike in A and B.
__device__ __forceinline__ void trellis_fragment(const unsigned (&product)[2][4], unsigned (&a)[4]) {
#pragma unroll
    for (int r = 0; r < 2; r++) a[r] = trellis_pair(product[r][0], product[r][1]), a[r + 2] = trellis_pair(product[r][2], product[r][3]);
}
#endif
