// Matrix products of a warp, and what feeds them. Lane = 4 g + t.
#pragma once
#include "memory.cuh"

#ifdef HLRC_EMU
__device__ __forceinline__ void hlrc_emu_mma(int kind, unsigned (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const unsigned in[10] = {a[0], a[1], a[2], a[3], b[0], b[1], d[0], d[1], d[2], d[3]};
    hlrc_emu_collective(kind, HLRC_FULL_WARP, in, 10, 0, d, 4);
}
__device__ __forceinline__ void hlrc_emu_mma(int kind, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    unsigned bits[4];
    for (int i = 0; i < 4; i++) bits[i] = __float_as_uint(d[i]);
    hlrc_emu_mma(kind, bits, a, b);
    for (int i = 0; i < 4; i++) d[i] = __uint_as_float(bits[i]);
}
#endif

// D[16][8] += A[16][16] B[16][8], f16 → f32. a: rows g, g+8, g, g+8; columns 2t, 2t+1 (then + 8).
// b: rows 2t, 2t+1 (then + 8) of column g. d: row g columns 2t, 2t+1, then row g+8.
__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef HLRC_EMU
    hlrc_emu_mma(HLRC_EMU_MMA_F16, d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef HLRC_EMU
    hlrc_emu_mma(HLRC_EMU_MMA_BF16, d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// D[16][8] += A[16][32] B[32][8], s8 → s32. a: rows g, g+8, g, g+8; columns 4t..4t+3 (then + 16).
// b: rows 4t..4t+3 (then + 16) of column g.
__device__ __forceinline__ void mma_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef HLRC_EMU
    unsigned bits[4] = {(unsigned)d[0], (unsigned)d[1], (unsigned)d[2], (unsigned)d[3]};
    hlrc_emu_mma(HLRC_EMU_MMA_S8, bits, a, b);
    for (int i = 0; i < 4; i++) d[i] = (int)bits[i];
#else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// The same with A unsigned.
__device__ __forceinline__ void mma_u8s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef HLRC_EMU
    unsigned bits[4] = {(unsigned)d[0], (unsigned)d[1], (unsigned)d[2], (unsigned)d[3]};
    hlrc_emu_mma(HLRC_EMU_MMA_U8S8, bits, a, b);
    for (int i = 0; i < 4; i++) d[i] = (int)bits[i];
#else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8×8 matrices of 16-bit values from shared memory: lane l gives the address of row l % 8 of
// matrix l / 8; r[m] is row g, columns 2t and 2t+1 of matrix m.
__device__ __forceinline__ void load_matrix_x4(unsigned (&r)[4], const void* row) {
#ifdef HLRC_EMU
    unsigned in[4];
    hlrc_emu_row(row, in);
    hlrc_emu_collective(HLRC_EMU_MATRIX, HLRC_FULL_WARP, in, 4, 0, r, 4);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}
// The same, each matrix transposed.
__device__ __forceinline__ void load_matrix_x4_transposed(unsigned (&r)[4], const void* row) {
#ifdef HLRC_EMU
    unsigned in[4];
    hlrc_emu_row(row, in);
    hlrc_emu_collective(HLRC_EMU_MATRIX, HLRC_FULL_WARP, in, 4, 1, r, 4);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// Three-input logic by truth table: bit 4a+2b+c of `table`.
template <int table>
__device__ __forceinline__ unsigned lop3(unsigned a, unsigned b, unsigned c) {
#ifdef HLRC_EMU
    unsigned r = 0;
    for (int i = 0; i < 8; i++)
        if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
#else
    unsigned r;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(table));
    return r;
#endif
}
