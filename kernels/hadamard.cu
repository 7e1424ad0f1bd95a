// Block Hadamard rotation with signs: y = H·diag(s)·x per `block` values, or its inverse
// y = diag(s)·H·x with an epilogue y = act(y + bias) + residual.
//
// H is the orthonormal Walsh–Hadamard matrix of a power of two (at most 512) that divides `width`.
// Bit i of signs[i / 32] set means −1. OUT 0: f32; 1: f16, zeros from `width` to ldy.
// grid.x: tokens; grid.y: ceil(width / 1024). Tokens beyond scalars[0] (null: none) are left alone.
// Bytes: 4 · width read and written.
// Source: randomized Hadamard transforms as in QuIP#, arXiv 2402.04396.
//
// kernel: hadamard abi=1
// defines: INVERSE=0|1 BIAS=0|1 RESIDUAL=0|1 ACTIVATION=0..5 OUT=0|1
// args: x:const f32* signs:const u32* bias:const f32* residual:const f32* y:f32* y16:f16*
// args: scalars:const i32* width:i32 ldx:i32 ldy:i32 ldr:i32 block:i32
// block: 256
#include "common/activation.cuh"
#include "common/memory.cuh"

#define SEGMENT 1024

extern "C" __global__ void __launch_bounds__(256, 1)
hadamard(const float* x, const unsigned* __restrict__ signs, const float* __restrict__ bias, const float* residual, float* y,
         __half* __restrict__ y16, const int* __restrict__ scalars, int width, int ldx, int ldy, int ldr, int block) {
    start_next_grid();
    wait_previous_grid();
    __shared__ float values[SEGMENT];
    const int token = (int)blockIdx.x, start = (int)blockIdx.y * SEGMENT;
    if (scalars && token >= scalars[0]) return;
    const int count = min(SEGMENT, width - start);
    const auto sign = [&](int k, float v) { return signs[k >> 5] >> (k & 31) & 1u ? -v : v; };
    for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) {
        const float v = x[(size_t)token * (size_t)ldx + (size_t)(start + i)];
        values[i] = INVERSE ? v : sign(start + i, v);
    }
    for (int half = 1; half < block; half *= 2) {
        __syncthreads();
        for (int i = (int)threadIdx.x; i < count / 2; i += (int)blockDim.x) {
            const int at = (i / half) * 2 * half + i % half;
            const float a = values[at], b = values[at + half];
            values[at] = a + b;
            values[at + half] = a - b;
        }
    }
    __syncthreads();
    const float scale = 1.0f / sqrtf((float)block);
    for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) {
        const int k = start + i;
        float v = values[i] * scale;
        if (INVERSE) v = sign(k, v);
        if (BIAS) v += bias[k];
        v = activate<ACTIVATION>(v);
        if (RESIDUAL) v += residual[(size_t)token * (size_t)ldr + (size_t)k];
#if OUT == 0
        y[(size_t)token * (size_t)ldy + (size_t)k] = v;
#else
        y16[(size_t)token * (size_t)ldy + (size_t)k] = __float2half_rn(v);
#endif
    }
#if OUT == 1
    if (start + SEGMENT >= width)
        for (int k = width + (int)threadIdx.x; k < ldy; k += (int)blockDim.x) y16[(size_t)token * (size_t)ldy + (size_t)k] = __float2half_rn(0.0f);
#endif
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(hadamard)
#endif
