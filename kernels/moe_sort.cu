// Slots of a prefill's tokens grouped by expert, so that each expert is one matrix product.
//
// ids [tokens, top_k] as moe_route gives them. slots [tokens · top_k]: (token · top_k + j) sorted by
// expert, then by slot; starts [experts + 1]: where each expert's slots begin. A counting sort in one
// block, without atomics that decide an order: several threads share an expert, each has a stretch of
// the slots, and sums run over experts, then stretches. Tokens beyond scalars[0] (null: `tokens`) are
// left out.
// Bytes: ids read twice for 1024 experts, from the first-level cache but for once; slots and starts written.
//
// kernel: moe_sort abi=1
// defines:
// args: ids:const i32* slots:i32* starts:i32* scalars:const i32* tokens:i32 experts:i32 top_k:i32
// block: 1024
#include "common/device.cuh"

#define THREADS 1024

extern "C" __global__ void __launch_bounds__(THREADS)
moe_sort(const int* __restrict__ ids, int* __restrict__ slots, int* starts, const int* __restrict__ scalars, int tokens, int experts, int top_k) {
    __shared__ int counts[THREADS];
    const int tid = (int)threadIdx.x, count = (scalars ? scalars[0] : tokens) * top_k;
    int base = 0; // slots of experts before this group of 1024
    for (int e0 = 0; e0 < experts; e0 += THREADS) {
        const int group = min(THREADS, experts - e0), parts = THREADS / group;
        const int part = tid / group, mine = e0 + tid % group; // lanes of a warp look at the same slots
        const int stretch = ((count + parts - 1) / parts + 3) / 4 * 4;
        const int from = min(part * stretch, count), to = part < parts ? min(from + stretch, count) : from;
        const int whole = from + (to - from) / 4 * 4;
        int n = 0;
        for (int i = from; i < whole; i += 4) {
            const uint4 four = *(const uint4*)(ids + i);
            n += ((int)four.x == mine) + ((int)four.y == mine) + ((int)four.z == mine) + ((int)four.w == mine);
        }
        for (int i = whole; i < to; i++) n += ids[i] == mine;
        const int place = part < parts ? tid % group * parts + part : tid;
        __syncthreads(); // sums of the group before have been read
        counts[place] = n;
        for (int d = 1; d < THREADS; d *= 2) { // inclusive sums
            __syncthreads();
            const int other = tid >= d ? counts[tid - d] : 0;
            __syncthreads();
            counts[tid] += other;
        }
        __syncthreads();
        int at = base + counts[place] - n;
        if (part == 0) starts[mine] = at;
        base += counts[THREADS - 1];
        if (n > 0)
            for (int i = from; i < to; i++)
                if (ids[i] == mine) slots[at++] = i;
    }
    if (tid == 0) starts[experts] = base;
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(moe_sort)
#endif
