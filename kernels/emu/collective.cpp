// Shuffles, votes and matrix products of a warp, computed when its last lane arrives.
#include "state.h"

#include <algorithm>

#define __forceinline__ inline
struct float2 { float x, y; };
static float __uint_as_float(unsigned x) { float f; memcpy(&f, &x, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned x; memcpy(&x, &f, 4); return x; }
#include <cmath>
#include "half.h"

namespace emu {

// `m16n8k16`: A[16][16] row-major in a[4], B[16][8] in b[2], C and D[16][8]; lane = 4 g + t.
static void mma_float(Thread* lanes, bool bf16) {
    float a[16][16], b[16][8];
    const auto decode = [&](unsigned short h) { return bf16 ? hlrc_emu_bf16_to_f32(h) : hlrc_emu_f16_to_f32(h); };
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, t = l % 4;
        for (int half = 0; half < 2; half++) {
            const auto part = [&](unsigned w) { return decode((unsigned short)(w >> (16 * half))); };
            a[g][2 * t + half] = part(lanes[l].in[0]);
            a[g + 8][2 * t + half] = part(lanes[l].in[1]);
            a[g][2 * t + 8 + half] = part(lanes[l].in[2]);
            a[g + 8][2 * t + 8 + half] = part(lanes[l].in[3]);
            b[2 * t + half][g] = part(lanes[l].in[4]);
            b[2 * t + 8 + half][g] = part(lanes[l].in[5]);
        }
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            const int row = l / 4 + (i / 2) * 8, col = l % 4 * 2 + i % 2;
            double sum = __uint_as_float(lanes[l].in[6 + i]);
            for (int k = 0; k < 16; k++) sum += (double)a[row][k] * b[k][col];
            lanes[l].out[i] = __float_as_uint((float)sum);
        }
}

// `m16n8k32`: A[16][32], B[32][8] of bytes.
static void mma_int(Thread* lanes, bool unsigned_a) {
    int a[16][32], b[32][8];
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, t = l % 4;
        for (int j = 0; j < 4; j++) {
            const auto byte = [&](unsigned w) { return (int)(signed char)(w >> (8 * j)); };
            const auto first = [&](unsigned w) { return unsigned_a ? byte(w) & 255 : byte(w); };
            a[g][4 * t + j] = first(lanes[l].in[0]);
            a[g + 8][4 * t + j] = first(lanes[l].in[1]);
            a[g][16 + 4 * t + j] = first(lanes[l].in[2]);
            a[g + 8][16 + 4 * t + j] = first(lanes[l].in[3]);
            b[4 * t + j][g] = byte(lanes[l].in[4]);
            b[16 + 4 * t + j][g] = byte(lanes[l].in[5]);
        }
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            const int row = l / 4 + (i / 2) * 8, col = l % 4 * 2 + i % 2;
            unsigned sum = lanes[l].in[6 + i];
            for (int k = 0; k < 32; k++) sum += (unsigned)(a[row][k] * b[k][col]);
            lanes[l].out[i] = sum;
        }
}

// `ldmatrix.x4`: lane l gave row l % 8 of matrix l / 8, 8 values of 16 bits each.
static void matrix(Thread* lanes, bool transposed) {
    const auto value = [&](int m, int row, int col) { return lanes[m * 8 + row].in[col / 2] >> (16 * (col % 2)) & 0xffffu; };
    for (int l = 0; l < 32; l++)
        for (int m = 0; m < 4; m++) {
            const int row = l / 4, col = l % 4 * 2;
            lanes[l].out[m] = transposed ? value(m, col, row) | value(m, col + 1, row) << 16 : value(m, row, col) | value(m, row, col + 1) << 16;
        }
}

void complete_collective(Block& block, unsigned first, unsigned mask) {
    Thread* lanes = &block.thread[first];
    const int kind = machine->thread->kind;
    if (kind >= HLRC_EMU_MMA_F16 && mask != ~0u) fail("a matrix product needs all 32 lanes, the mask is %08x", mask);
    switch (kind) {
    case HLRC_EMU_SYNC: block.warp_epoch[first / 32]++; return;
    case HLRC_EMU_MMA_F16: return mma_float(lanes, false);
    case HLRC_EMU_MMA_BF16: return mma_float(lanes, true);
    case HLRC_EMU_MMA_S8: return mma_int(lanes, false);
    case HLRC_EMU_MMA_U8S8: return mma_int(lanes, true);
    case HLRC_EMU_MATRIX: return matrix(lanes, machine->thread->param != 0);
    default: break;
    }
    unsigned all = 0;
    bool any = false;
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        const unsigned v = lanes[i].in[0];
        switch (kind) {
        case HLRC_EMU_BALLOT: all |= (v != 0) << i; break;
        case HLRC_EMU_REDUCE_ADD: all += v; break;
        case HLRC_EMU_REDUCE_MIN: all = any ? (unsigned)std::min((int)all, (int)v) : v; break;
        case HLRC_EMU_REDUCE_MAX: all = any ? (unsigned)std::max((int)all, (int)v) : v; break;
        default: break;
        }
        any = true;
    }
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        Thread& t = lanes[i];
        if (kind != HLRC_EMU_SHUFFLE) {
            t.out[0] = all;
            continue;
        }
        if (!(mask >> t.param & 1)) fail("a shuffle reads lane %d, which mask %08x leaves out", t.param, mask);
        for (int w = 0; w < t.words; w++) t.out[w] = lanes[t.param].in[w];
    }
}
} // namespace emu
