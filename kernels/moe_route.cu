// Routing of a mixture of experts: softmax over all experts, the `top_k` with the largest logits
// (the lower index of equals), their probabilities, with NORMALIZE divided by their sum.
//
// ids and weights: [tokens, top_k]. One warp per token (grid.x); up to 1024 experts. Tokens beyond
// scalars[0] (null: none) are left alone. A token whose logits hold NaN gets weights of NaN.
// Bytes: 4 · experts per token.
//
// kernel: moe_route abi=1
// defines: NORMALIZE=0|1
// args: logits:const f32* ids:i32* weights:f32* scalars:const i32* experts:i32 top_k:i32 ldl:i32
// block: 32
#include "common/memory.cuh"
#include "common/reduce.cuh"

extern "C" __global__ void __launch_bounds__(32)
moe_route(const float* __restrict__ logits, int* __restrict__ ids, float* __restrict__ weights, const int* __restrict__ scalars, int experts,
          int top_k, int ldl) {
    start_next_grid();
    wait_previous_grid();
    const int token = (int)blockIdx.x, lane = (int)threadIdx.x;
    if (scalars && token >= scalars[0]) return;
    const float* row = logits + (size_t)token * (size_t)ldl;
    unsigned taken = 0; // bit i: expert 32 i + lane
    float largest = -HLRC_INFINITY;
    for (int e = lane; e < experts; e += 32) largest = fmaxf(largest, row[e]);
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int e = lane; e < experts; e += 32) sum += expf(row[e] - largest);
    sum = warp_sum(sum);
    float chosen = 0.0f;
    for (int j = 0; j < top_k; j++) {
        float best = -HLRC_INFINITY;
        int index = 0x7fffffff;
        for (int i = 0; 32 * i + lane < experts; i++) {
            const float v = row[32 * i + lane];
            if (!(taken >> i & 1u) && (v > best || index == 0x7fffffff)) {
                best = v;
                index = 32 * i + lane;
            }
        }
#pragma unroll
        for (int d = 16; d; d >>= 1) {
            const float other = __shfl_xor_sync(HLRC_FULL_WARP, best, d);
            const int at = __shfl_xor_sync(HLRC_FULL_WARP, index, d);
            if (at != 0x7fffffff && (index == 0x7fffffff || other > best || (other == best && at < index))) {
                best = other;
                index = at;
            }
        }
        index = __shfl_sync(HLRC_FULL_WARP, index, 0); // one choice, even among NaN
        best = __shfl_sync(HLRC_FULL_WARP, best, 0);
        if (index % 32 == lane) taken |= 1u << (index / 32);
        const float weight = expf(best - largest) / sum;
        chosen += weight;
        if (lane == 0) {
            ids[(size_t)token * (size_t)top_k + (size_t)j] = index;
            weights[(size_t)token * (size_t)top_k + (size_t)j] = weight;
        }
    }
    if (NORMALIZE && lane == 0)
        for (int j = 0; j < top_k; j++) weights[(size_t)token * (size_t)top_k + (size_t)j] /= chosen;
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(moe_route)
#endif
