// What the experts of a token made, weighted and added: y[m] = residual[m] + Σ_j weights[m, j] · x[m · top_k + j].
//
// The sum runs over j in order. residual may be null. grid.x: tokens; grid.y: any number of blocks
// shares a row. Tokens beyond scalars[0] (null: none) are left alone.
// Bytes: 4 · width · (top_k + 2) per token.
//
// kernel: moe_combine abi=1
// defines:
// args: x:const f32* weights:const f32* residual:const f32* y:f32* scalars:const i32* width:i32
// args: top_k:i32 ldx:i32 ldy:i32 ldr:i32
// block: 256
#include "common/device.cuh"
#include "common/memory.cuh"

extern "C" __global__ void __launch_bounds__(256)
moe_combine(const float* __restrict__ x, const float* __restrict__ weights, const float* residual, float* y, const int* __restrict__ scalars,
            int width, int top_k, int ldx, int ldy, int ldr) {
    start_next_grid();
    wait_previous_grid();
    const int m = (int)blockIdx.x;
    if (scalars && m >= scalars[0]) return;
    for (int k = (int)(blockIdx.y * blockDim.x + threadIdx.x); k < width; k += (int)(gridDim.y * blockDim.x)) {
        float sum = 0.0f;
        for (int j = 0; j < top_k; j++)
            sum += weights[(size_t)m * (size_t)top_k + (size_t)j] * x[((size_t)m * (size_t)top_k + (size_t)j) * (size_t)ldx + (size_t)k];
        if (residual) sum += residual[(size_t)m * (size_t)ldr + (size_t)k];
        y[(size_t)m * (size_t)ldy + (size_t)k] = sum;
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(moe_combine)
#endif
