// RMS and layer norm of rows.
//
// y = x / sqrt(mean(x²) + eps) · gain (KIND 0), or (x − mean) / sqrt(var + eps) · gain + beta
// (KIND 1), + residual where RESIDUAL. `gain` includes the unit offset of models that have one; null
// is 1, a null beta 0. OUT 0: f32; 1: f16 with zeros up to ldy; 2: q8 (common/q8.cuh).
// The residual has the layout of f32 output. One block per row: a token, or a head with ldx = head_dim.
// Rows beyond scalars[0] (null: none) are left alone. Bytes: 4 · width read (x again from cache).
//
// kernel: normalize abi=1
// defines: KIND=0|1 RESIDUAL=0|1 OUT=0..2
// args: x:const f32* gain:const f32* beta:const f32* residual:const f32* y:f32* y16:f16* yq:s8*
// args: ys:f32* ysum:i32* scalars:const i32* width:i32 ldx:i32 ldy:i32 eps:f32
// block: 256
#include "common/memory.cuh"
#include "common/q8.cuh"
#include "common/reduce.cuh"

extern "C" __global__ void __launch_bounds__(256)
normalize(const float* x, const float* __restrict__ gain, const float* __restrict__ beta, const float* residual, float* y,
     __half* __restrict__ y16, signed char* __restrict__ yq, float* __restrict__ ys, int* __restrict__ ysum, const int* __restrict__ scalars,
     int width, int ldx, int ldy, float eps) {
    start_next_grid();
    wait_previous_grid();
    __shared__ float scratch[32];
    const int token = (int)blockIdx.x;
    if (scalars && token >= scalars[0]) return; // the same for all threads
    const float* row = x + (size_t)token * (size_t)ldx;
    float mean = 0.0f;
    if (KIND == 1) {
        float sum = 0.0f;
        for (int k = (int)threadIdx.x; k < width; k += (int)blockDim.x) sum += row[k];
        mean = block_sum(sum, scratch) / (float)width;
    }
    float squares = 0.0f;
    for (int k = (int)threadIdx.x; k < width; k += (int)blockDim.x) {
        const float d = row[k] - mean;
        squares += d * d;
    }
    const float factor = 1.0f / sqrtf(block_sum(squares, scratch) / (float)width + eps);
    const auto value = [&](int k) {
        float v = (row[k] - mean) * factor;
        if (gain) v *= gain[k];
        if (KIND == 1 && beta) v += beta[k];
        if (RESIDUAL) v += residual[(size_t)token * (size_t)ldy + (size_t)k];
        return v;
    };
#if OUT == 0
    // In place is fine: every thread reads what it writes, behind the sums of all.
    for (int k = (int)threadIdx.x; k < width; k += (int)blockDim.x) y[(size_t)token * (size_t)ldy + (size_t)k] = value(k);
#elif OUT == 1
    for (int k = (int)threadIdx.x; k < ldy; k += (int)blockDim.x)
        y16[(size_t)token * (size_t)ldy + (size_t)k] = __float2half_rn(k < width ? value(k) : 0.0f);
#else
    const int padded = (width + 63) & ~63, blocks = padded / 32;
    q8_token(width, value, (unsigned*)yq + (size_t)token * (size_t)(padded / 4), ys + (size_t)token * (size_t)blocks,
             ysum + (size_t)token * (size_t)blocks);
#endif
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(normalize)
#endif
