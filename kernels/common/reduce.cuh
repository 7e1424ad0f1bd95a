// Sums and maxima over lanes and blocks in a fixed order.
#pragma once
#include "device.cuh"

// Every lane gets the sum; the tree is the same whatever the values.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(HLRC_FULL_WARP, v, d);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v = fmaxf(v, __shfl_xor_sync(HLRC_FULL_WARP, v, d));
    return v;
}
// Sum over a block of at most 32 whole warps; `scratch` holds 32 floats of shared memory, free
// again when the function returns. Every thread gets the sum.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    const int warps = (int)(blockDim.x + 31) / 32, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    v = warp_sum(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < warps; i++) sum += scratch[i];
    __syncthreads();
    return sum;
}
__device__ __forceinline__ float block_max(float v, float* scratch) {
    const int warps = (int)(blockDim.x + 31) / 32, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    v = warp_max(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    float largest = scratch[0];
    for (int i = 1; i < warps; i++) largest = fmaxf(largest, scratch[i]);
    __syncthreads();
    return largest;
}
