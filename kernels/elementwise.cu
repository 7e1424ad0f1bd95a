// Elementwise operations on rows.
//
// OP 0: y = a + b; 1: a · b; 2: factor · a; 3: factor · tanh(a / factor); 4: act(a);
// 5: act(a) · b; 6: factor · a + b; 7: y[0] = the row of the last token, a[scalars[0] - 1] (grid.x 1).
// grid.x: tokens; grid.y: any number of blocks shares a row.
// Tokens beyond scalars[0] (null: none) are left alone. y may be a or b.
// Bytes: 4 · width per operand and result.
//
// kernel: elementwise abi=1
// defines: OP=0..7 ACTIVATION=0..5
// args: a:const f32* b:const f32* y:f32* scalars:const i32* width:i32 lda:i32 ldb:i32 ldy:i32
// args: factor:f32
// block: 256
#include "common/activation.cuh"
#include "common/memory.cuh"

extern "C" __global__ void __launch_bounds__(256)
elementwise(const float* a, const float* b, float* y, const int* __restrict__ scalars, int width, int lda, int ldb, int ldy, float factor) {
    start_next_grid();
    wait_previous_grid();
    const int token = (int)blockIdx.x;
    if (scalars && token >= scalars[0]) return;
    const float* left = a + (size_t)(OP == 7 ? scalars[0] - 1 : token) * (size_t)lda;
    const float* right = b + (size_t)token * (size_t)ldb;
    float* out = y + (size_t)token * (size_t)ldy;
    for (int k = (int)(blockIdx.y * blockDim.x + threadIdx.x); k < width; k += (int)(gridDim.y * blockDim.x)) {
        const float v = left[k];
        float r;
        if (OP == 0) r = v + right[k];
        if (OP == 1) r = v * right[k];
        if (OP == 2) r = v * factor;
        if (OP == 3) r = factor * tanhf(v / factor);
        if (OP == 4) r = activate<ACTIVATION>(v);
        if (OP == 5) r = activate<ACTIVATION>(v) * right[k];
        if (OP == 6) r = factor * v + right[k];
        if (OP == 7) r = v;
        out[k] = r;
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(elementwise)
#endif
