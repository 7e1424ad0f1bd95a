// Activations to f16 or to 8 bits.
//
// y = x · xscale (xscale may be null) per token, as f16 with zeros up to ldy, or as q8 codes, scales
// and sums (common/q8.cuh). grid.x: tokens; those beyond scalars[0] are left alone. grid.y: blocks that
// share a token's columns.
// Bytes: 4 · width read, 2 or 1.25 · width written, per token.
//
// kernel: quantize abi=1
// defines: OUT=1|2
// args: x:const f32* xscale:const f32* y16:f16* yq:s8* ys:f32* ysum:i32* scalars:const i32*
// args: width:i32 ldx:i32 ldy:i32
// block: 256
#include "common/memory.cuh"
#include "common/q8.cuh"

extern "C" __global__ void __launch_bounds__(256)
quantize(const float* __restrict__ x, const float* __restrict__ xscale, __half* __restrict__ y16, signed char* __restrict__ yq,
         float* __restrict__ ys, int* __restrict__ ysum, const int* __restrict__ scalars, int width, int ldx, int ldy) {
    start_next_grid();
    wait_previous_grid();
    const int token = (int)blockIdx.x;
    if (scalars && token >= scalars[0]) return;
    const float* row = x + (size_t)token * (size_t)ldx;
    const auto value = [&](int k) { return xscale ? row[k] * xscale[k] : row[k]; };
#if OUT == 1
    for (int k = (int)(blockIdx.y * blockDim.x + threadIdx.x); k < ldy; k += (int)(gridDim.y * blockDim.x))
        y16[(size_t)token * (size_t)ldy + (size_t)k] = __float2half_rn(k < width ? value(k) : 0.0f);
#else
    const int padded = (width + 63) & ~63, blocks = padded / 32;
    q8_token(width, value, (unsigned*)yq + (size_t)token * (size_t)(padded / 4), ys + (size_t)token * (size_t)blocks,
             ysum + (size_t)token * (size_t)blocks);
#endif
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(quantize)
#endif
