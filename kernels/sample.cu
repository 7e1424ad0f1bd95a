// The next token of each sequence from its logits.
//
// params [tokens, 3] f32: temperature, top_p, u in [0, 1); top_k [tokens] (0: all).
// Temperature 0: the largest logit, the lowest id of equals. Else weights exp((l - largest) /
// temperature); the top_k largest logits stay (lower ids of equals), of those the fewest with a share
// of top_p; the token at share u of their weights is drawn, in descending order where something was
// cut, else in the order of ids. Weights are integers in units of 2^-40, so sums are exact and the
// choice does not depend on any order. A logit that is NaN or +inf, or none above -inf, gives -1.
//
// Thresholds are found by radix: histograms of weights by 11 bits of the logits, from the top.
// grid.x: tokens. Bytes: 4 · rows per pass, from L2; 1 pass greedy, up to 12 with top-k and top-p.
//
// kernel: sample abi=1
// defines:
// args: logits:const f32* token:i32* params:const f32* top_k:const i32* rows:i32 ldl:i32
// block: 1024
#include "common/memory.cuh"
#include "common/reduce.cuh"

#define THREADS 1024
#define WARPS (THREADS / 32)
#define BINS 2048
typedef unsigned long long Weight;

// Larger floats have larger keys.
__device__ __forceinline__ unsigned key_of(float v) {
    const unsigned bits = __float_as_uint(v);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ Weight warp_total(Weight v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(HLRC_FULL_WARP, v, d);
    return v;
}

struct Room { // shared memory
    Weight bins[BINS];
    Weight warps[WARPS];
    Weight before; // weight above the chosen bin
    int bin, id;
};

// Candidates: keys above `key`, and those equal to it with ids up to `id`.
struct Cut {
    unsigned key;
    int id;
    __device__ __forceinline__ bool keeps(unsigned k, int i) const { return k > key || (k == key && i <= id); }
};

// Sum of weight(key, id) over all ids.
template <class Of>
__device__ __forceinline__ Weight sum_all(const float* row, int rows, Room* room, Of weight) {
    Weight mine = 0;
    for (int i = (int)threadIdx.x; i < rows; i += THREADS) mine += weight(key_of(row[i]), i);
    mine = warp_total(mine);
    if ((threadIdx.x & 31) == 0) room->warps[threadIdx.x >> 5] = mine;
    __syncthreads();
    Weight total = 0;
    for (int w = 0; w < WARPS; w++) total += room->warps[w];
    __syncthreads();
    return total;
}

// The largest key such that keys at and above it weigh at least `target` (>= 1, at most the total);
// *above: what those above it weigh.
template <class Of>
__device__ __forceinline__ unsigned find_key(const float* row, int rows, Room* room, Weight target, Weight* above, Of weight) {
    const int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5;
    unsigned prefix = 0;
    Weight higher = 0;
#pragma unroll 1
    for (int pass = 0; pass < 3; pass++) {
        const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, digits = pass == 2 ? 1024 : BINS;
        const unsigned known = pass == 0 ? 0u : ~0u << (pass == 1 ? 21 : 10);
        for (int b = tid; b < BINS; b += THREADS) room->bins[b] = 0;
        __syncthreads();
#pragma unroll 1 // registers are short with 1024 threads
        for (int i = tid; i < rows; i += THREADS) {
            const unsigned k = key_of(row[i]);
            if ((k & known) != prefix) continue;
            const Weight w = weight(k, i);
            if (w) atomicAdd(&room->bins[k >> shift & (unsigned)(digits - 1)], w);
        }
        __syncthreads();
        // What lies above each thread's two bins: sums of higher warps, then of higher lanes.
        const Weight low = room->bins[2 * tid], high = room->bins[2 * tid + 1];
        const Weight all = warp_total(low + high);
        if (lane == 0) room->warps[warp] = all;
        __syncthreads();
        Weight over = higher;
        for (int w = warp + 1; w < WARPS; w++) over += room->warps[w];
        Weight suffix = low + high; // of this lane and higher ones
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const Weight other = __shfl_down_sync(HLRC_FULL_WARP, suffix, d);
            if (lane + d < 32) suffix += other;
        }
        over += suffix - (low + high);
        if (over < target && over + high >= target) {
            room->bin = 2 * tid + 1;
            room->before = over;
        } else if (over + high < target && over + high + low >= target) {
            room->bin = 2 * tid;
            room->before = over + high;
        }
        __syncthreads();
        prefix |= (unsigned)room->bin << shift;
        higher = room->before;
        __syncthreads();
    }
    *above = higher;
    return prefix;
}

// The id of candidate number n (from 0) by id among those that `is` holds for: warps take stretches
// of ids. -1 where there are not so many.
template <class Is>
__device__ __forceinline__ int find_id(int rows, Room* room, Weight n, Is weight) {
    const int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int stretch = (rows + THREADS - 1) / THREADS * 32, from = warp * stretch, to = min(from + stretch, rows);
    Weight mine = 0;
    for (int i = from + lane; i < to; i += 32) mine += weight(i);
    mine = warp_total(mine);
    if (lane == 0) room->warps[warp] = mine;
    if (tid == 0) room->id = -1;
    __syncthreads();
    Weight before = 0;
    for (int w = 0; w < warp; w++) before += room->warps[w];
    if (before <= n && n < before + mine) { // one warp
        for (int base = from; base < to; base += 32) {
            const int i = base + lane;
            const Weight w = i < to ? weight(i) : 0;
            Weight upto = w; // of this lane and lower ones
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const Weight other = __shfl_up_sync(HLRC_FULL_WARP, upto, d);
                if (lane >= d) upto += other;
            }
            if (w && before + upto - w <= n && n < before + upto) room->id = i;
            before += __shfl_sync(HLRC_FULL_WARP, upto, 31);
        }
    }
    __syncthreads();
    const int id = room->id;
    __syncthreads();
    return id;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
sample(const float* __restrict__ logits, int* __restrict__ token, const float* __restrict__ params, const int* __restrict__ top_k, int rows,
       int ldl) {
    start_next_grid();
    wait_previous_grid();
    __shared__ Room room;
    __shared__ float best_value[WARPS];
    __shared__ int best_id[WARPS], bad[WARPS];
    const int t = (int)blockIdx.x, tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const float* row = logits + (size_t)t * (size_t)ldl;
    float largest = -HLRC_INFINITY;
    int best = 0x7fffffff, wrong = 0;
    for (int i = tid; i < rows; i += THREADS) {
        const float v = row[i];
        wrong |= !(v < HLRC_INFINITY);
        if (v > largest) {
            largest = v;
            best = i;
        }
    }
#pragma unroll
    for (int d = 16; d; d >>= 1) {
        const float other = __shfl_xor_sync(HLRC_FULL_WARP, largest, d);
        const int id = __shfl_xor_sync(HLRC_FULL_WARP, best, d);
        if (other > largest || (other == largest && id < best)) {
            largest = other;
            best = id;
        }
        wrong |= __shfl_xor_sync(HLRC_FULL_WARP, wrong, d);
    }
    if (lane == 0) {
        best_value[warp] = largest;
        best_id[warp] = best;
        bad[warp] = wrong;
    }
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        wrong |= bad[w];
        if (best_value[w] > largest || (best_value[w] == largest && best_id[w] < best)) {
            largest = best_value[w];
            best = best_id[w];
        }
    }
    const float temperature = params[3 * t], top_p = params[3 * t + 1], u = params[3 * t + 2];
    if (wrong || best == 0x7fffffff || temperature == 0.0f) { // the same for all threads
        if (tid == 0) token[t] = wrong || best == 0x7fffffff ? -1 : best;
        return;
    }
    const auto weight_of = [&](unsigned key) -> Weight {
        const float v = __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
        return (Weight)(expf((v - largest) / temperature) * 1099511627776.0f);
    };
    const int k = top_k ? top_k[t] : 0;
    const bool few = k > 0 && k < rows;
    Cut cut = {0u, 0x7fffffff}; // everything
    Weight above;
    if (few) {
        cut.key = find_key(row, rows, &room, (Weight)k, &above, [](unsigned, int) -> Weight { return 1; });
        cut.id = find_id(rows, &room, (Weight)k - above - 1, [&](int i) -> Weight { return key_of(row[i]) == cut.key; });
    }
    const auto kept = [&](unsigned key, int id) -> Weight { return cut.keeps(key, id) ? weight_of(key) : 0; };
    Weight total = sum_all(row, rows, &room, kept);
    if (top_p < 1.0f) {
        const Weight enough = max((Weight)1, min(total, (Weight)ceil((double)top_p * (double)total)));
        Cut narrow;
        narrow.key = find_key(row, rows, &room, enough, &above, kept);
        const Weight each = weight_of(narrow.key), equals = (enough - above + each - 1) / each;
        const unsigned only = narrow.key;
        narrow.id = find_id(rows, &room, equals - 1, [&](int i) -> Weight { return key_of(row[i]) == only; });
        total = above + equals * each;
        cut = narrow;
    }
    // The token at a share u: target is in 1..=total.
    const Weight target = min(total, (Weight)((double)u * (double)total) + 1);
    int chosen;
    if (few || top_p < 1.0f) {
        const unsigned key = find_key(row, rows, &room, target, &above, kept);
        chosen = find_id(rows, &room, (target - above - 1) / weight_of(key), [&](int i) -> Weight { return key_of(row[i]) == key; });
    } else {
        chosen = find_id(rows, &room, target - 1, [&](int i) -> Weight { return weight_of(key_of(row[i])); });
    }
    if (tid == 0) token[t] = chosen;
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(sample)
#endif
