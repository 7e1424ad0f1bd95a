// Heads of queries and keys on their way to attention: RMS norm, rotary embedding, the KV cache.
#pragma once
#include "reduce.cuh"

#define HLRC_ROPE_NONE 0
#define HLRC_ROPE_HALVES 1      // dimension i with i + rotary_dim / 2
#define HLRC_ROPE_INTERLEAVED 2 // 2i with 2i + 1

// Sine and cosine to 2 units in the last place for |x| up to 4e6: pi/2 is taken off in three parts,
// then minimax polynomials of [-pi/4, pi/4] (coefficients of Cephes' sinf and cosf). No table, no
// local memory.
__device__ __forceinline__ void sine_cosine(float x, float* sine, float* cosine) {
    const float turns = rintf(x * 0.63661977236758134f);
    float r = __fmaf_rn(-turns, 1.57079601287841796875f, x);
    r = __fmaf_rn(-turns, 3.1391647326017846e-07f, r);
    r = __fmaf_rn(-turns, 5.3903025299577648e-15f, r);
    const int quadrant = (int)turns;
    const float z = r * r;
    const float s = __fmaf_rn(__fmaf_rn(__fmaf_rn(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f) * z, r, r);
    const float c = __fmaf_rn(z, -0.5f, 1.0f) + (__fmaf_rn(__fmaf_rn(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f) * z) * z;
    const bool swapped = quadrant & 1;
    const float a = swapped ? c : s, b = swapped ? s : c;
    *sine = quadrant & 2 ? -a : a;
    *cosine = (quadrant + 1) & 2 ? -b : b;
}

// What a warp does to a head of `dim` values in shared memory: x / sqrt(mean(x²) + eps) · gain,
// then the rotation of the first `rotary_dim` values at `position`, times `factor` where rotated
// (cosines and sines carry it). Starts and ends with __syncwarp.
template <int dim, int rope, bool norm>
__device__ __forceinline__ void prepare_head(float* head, const float* gain, float eps, const float* inv_freq, int rotary_dim, int position,
                                             float factor) {
    const int lane = (int)threadIdx.x & 31;
    __syncwarp();
    if (norm) {
        float squares = 0.0f;
        for (int d = lane; d < dim; d += 32) squares += head[d] * head[d];
        const float scale = 1.0f / sqrtf(warp_sum(squares) / (float)dim + eps);
        for (int d = lane; d < dim; d += 32) head[d] = head[d] * scale * gain[d];
        __syncwarp();
    }
    if (rope != HLRC_ROPE_NONE) {
        const int pairs = rotary_dim / 2;
        for (int i = lane; i < pairs; i += 32) {
            float sine, cosine;
            sine_cosine((float)position * inv_freq[i], &sine, &cosine);
            sine *= factor;
            cosine *= factor;
            const int first = rope == HLRC_ROPE_HALVES ? i : 2 * i, second = rope == HLRC_ROPE_HALVES ? i + pairs : 2 * i + 1;
            const float a = head[first], b = head[second];
            head[first] = a * cosine - b * sine;
            head[second] = b * cosine + a * sine;
        }
        __syncwarp();
    }
}

// Where position p of a sequence lies: slot p mod capacity; with pages, page `pages[slot / page]`.
// Returns the index of a row of `kv_heads` heads.
template <bool paged>
__device__ __forceinline__ size_t cache_row(const int* pages, int sequence, int position, int capacity, int page, int max_pages) {
    const int slot = position < capacity ? position : position % capacity; // a division for windows alone
    if (!paged) return (size_t)sequence * (size_t)capacity + (size_t)slot;
    return (size_t)pages[(size_t)sequence * (size_t)max_pages + (size_t)(slot / page)] * (size_t)page + (size_t)(slot % page);
}

// A warp stores a head in shared memory to row `row` of a cache, and leaves in `head` what a reader
// of the cache will see. A lane reads what it wrote itself, or what a __syncwarp is behind. `kv` 0: f16 [row][kv_head][dim]; 1: s8 codes, a f16 scale per 32.
template <int dim, int kv>
__device__ __forceinline__ void store_head(float* head, unsigned char* cache, __half* scales, size_t row, int kv_heads, int kv_head) {
    const int lane = (int)threadIdx.x & 31;
    const size_t at = row * (size_t)kv_heads + (size_t)kv_head;
    if (kv == 0) {
        __half* out = (__half*)cache + at * dim;
        for (int d = lane; d < dim; d += 32) {
            const __half h = __float2half_rn(head[d]);
            out[d] = h;
            head[d] = __half2float(h);
        }
    } else {
        signed char* out = (signed char*)cache + at * dim;
        const int blocks = (dim + 31) / 32;
        for (int b = 0; b < blocks; b++) {
            const int d = 32 * b + lane;
            const float x = d < dim ? head[d] : 0.0f;
            const __half scale = __float2half_rn(warp_max(fabsf(x)) / 127.0f);
            const float s = __half2float(scale), inverse = s > 0.0f ? 1.0f / s : 0.0f;
            const int code = max(-127, min(127, __float2int_rn(x * inverse)));
            if (d < dim) {
                out[d] = (signed char)code;
                head[d] = (float)code * s;
            }
            if (lane == 0) scales[at * blocks + b] = scale;
        }
    }
    __syncwarp();
}
