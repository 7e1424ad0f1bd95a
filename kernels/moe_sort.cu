// Slots of a prefill's tokens grouped by expert, so that each expert is one matrix product.
//
// ids [tokens, top_k] as moe_route gives them. slots [tokens · top_k]: (token · top_k + j) sorted by
// expert, then by slot; starts [experts + 1]: where each expert's slots begin. A counting sort in one
// block, without atomics that decide an order. Tokens beyond scalars[0] (null: `tokens`) are left out.
// Bytes: ids read once per 1024 experts, slots and starts written.
//
// kernel: moe_sort abi=1
// defines:
// args: ids:const i32* slots:i32* starts:i32* scalars:const i32* tokens:i32 experts:i32 top_k:i32
// block: 1024
#include "common/device.cuh"

#define THREADS 1024
#define STRETCH 4096 // ids that are kept in shared memory at a time

extern "C" __global__ void __launch_bounds__(THREADS)
moe_sort(const int* __restrict__ ids, int* __restrict__ slots, int* starts, const int* __restrict__ scalars, int tokens, int experts, int top_k) {
    __shared__ int counts[THREADS];
    __shared__ int near[STRETCH];
    const int tid = (int)threadIdx.x, count = (scalars ? scalars[0] : tokens) * top_k;
    int base = 0; // slots of experts before this group of 1024
    for (int e0 = 0; e0 < experts; e0 += THREADS) {
        const int mine = e0 + tid; // an expert per thread
        int n = 0;
        for (int s0 = 0; s0 < count; s0 += STRETCH) {
            __syncthreads();
            for (int i = tid; i < STRETCH && s0 + i < count; i += THREADS) near[i] = ids[s0 + i];
            __syncthreads();
            for (int i = 0; i < STRETCH && s0 + i < count; i++) n += near[i] == mine;
        }
        counts[tid] = n;
        for (int d = 1; d < THREADS; d *= 2) { // inclusive sums
            __syncthreads();
            const int other = tid >= d ? counts[tid - d] : 0;
            __syncthreads();
            counts[tid] += other;
        }
        __syncthreads();
        int at = base + counts[tid] - n;
        if (mine < experts) starts[mine] = at;
        base += counts[THREADS - 1];
        for (int s0 = 0; s0 < count; s0 += STRETCH) {
            __syncthreads();
            for (int i = tid; i < STRETCH && s0 + i < count; i += THREADS) near[i] = ids[s0 + i];
            __syncthreads();
            for (int i = 0; i < STRETCH && s0 + i < count; i++)
                if (near[i] == mine) slots[at++] = s0 + i;
        }
        __syncthreads();
    }
    if (tid == 0) starts[experts] = base;
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(moe_sort)
#endif
