// Causal attention of many tokens of one sequence over its KV cache, which holds their keys already
// (rope_append), on tensor cores.
//
// scalars: [tokens, past, sequence]; the query at past + t sees keys max(0, p - window + 1)..=p.
// Queries, keys and probabilities are f16, sums f32. A block takes 64 queries of a head: each of its
// 4 warps 16 of them, over tiles of keys that arrive by asynchronous copies while the tile before is
// worked on. Where keys are dropped for later ones (capacity < context), `capacity` must hold the
// window and all tokens of the call.
// grid (ceil(tokens / 64), heads).
// Dynamic shared memory: 2 · (2 · KEYS + 64) · (dim + 8) bytes, dim = HEAD_DIM padded to 16,
// KEYS = 64 where dim <= 128, else 32.
// Bytes: keys and values once per 64 queries and head (L2 serves most of it).
// Source: FlashAttention-2, arXiv 2307.08691.
//
// kernel: attention_prefill abi=1
// defines: HEAD_DIM=1..256 GROUP_Q=1..128 KV=0|1 PAGED=0|1 SOFTCAP=0|1
// args: qkv:const f32* k_cache:const u8* v_cache:const u8* k_scales:const f16* v_scales:const f16*
// args: pages:const i32* scalars:const i32* y:f32* ldqkv:i32 q_offset:i32 ldy:i32 heads:i32
// args: kv_heads:i32 capacity:i32 page:i32 max_pages:i32 window:i32 scale:f32 softcap:f32
// block: 128
#include "common/kv.cuh"
#include "common/mma.cuh"
#include "common/rotary.cuh"

#define THREADS 128
#define QUERIES 64
#define DIM ((HEAD_DIM + 15) / 16 * 16)
#define KEYS (DIM <= 128 ? 64 : 32)
#define STRIDE (DIM + 8) // rows 16 bytes apart in banks

__device__ __forceinline__ unsigned pack_f16(float low, float high) {
    return (unsigned)__half_as_ushort(__float2half_rn(low)) | (unsigned)__half_as_ushort(__float2half_rn(high)) << 16;
}

// Keys (or values) k0..k0+KEYS to shared memory; zeros beyond `end` and HEAD_DIM.
__device__ __forceinline__ void load_tile(__half* to, const unsigned char* cache, const __half* scales, const int* pages, int sequence, int k0,
                                          int end, int capacity, int page, int max_pages, int kv_heads, int kv_head) {
    for (int i = (int)threadIdx.x; i < KEYS * (DIM / 8); i += THREADS) {
        const int j = i / (DIM / 8), piece = i % (DIM / 8), key = k0 + j;
        __half* at = to + j * STRIDE + 8 * piece;
        const bool real = key < end && 8 * piece < HEAD_DIM;
        const size_t row = real ? cache_row<PAGED != 0>(pages, sequence, key, capacity, page, max_pages) * (size_t)kv_heads + (size_t)kv_head : 0;
#if KV == 0 && HEAD_DIM % 8 == 0
        async_copy16_or_zero(at, (const __half*)cache + row * HEAD_DIM + (real ? 8 * piece : 0), real);
#else
        float v[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        if (real) load_piece<HEAD_DIM, KV>(cache, scales, row, piece, v);
        uint4 packed;
        packed.x = pack_f16(v[0], v[1]);
        packed.y = pack_f16(v[2], v[3]);
        packed.z = pack_f16(v[4], v[5]);
        packed.w = pack_f16(v[6], v[7]);
        *(uint4*)at = packed;
#endif
    }
    async_commit();
}

extern "C" __global__ void __launch_bounds__(THREADS)
attention_prefill(const float* __restrict__ qkv, const unsigned char* __restrict__ k_cache, const unsigned char* __restrict__ v_cache,
                  const __half* __restrict__ k_scales, const __half* __restrict__ v_scales, const int* __restrict__ pages,
                  const int* __restrict__ scalars, float* __restrict__ y, int ldqkv, int q_offset, int ldy, int heads, int kv_heads, int capacity,
                  int page, int max_pages, int window, float scale, float softcap) {
    HLRC_DYNAMIC_SHARED(shared);
    __half* keys = (__half*)shared;
    __half* values = keys + KEYS * STRIDE;
    __half* queries = values + KEYS * STRIDE;
    const int tokens = scalars[0], past = scalars[1], sequence = scalars[2];
    const int q0 = (int)blockIdx.x * QUERIES, head = (int)blockIdx.y, kv_head = head / GROUP_Q;
    if (q0 >= tokens) return; // the whole block
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int end = past + min(q0 + QUERIES, tokens); // keys that some query sees
    const int begin = window > 0 ? max(0, past + q0 - window + 1) / KEYS * KEYS : 0;

    load_tile(keys, k_cache, k_scales, pages, sequence, begin, end, capacity, page, max_pages, kv_heads, kv_head);
    load_tile(values, v_cache, v_scales, pages, sequence, begin, end, capacity, page, max_pages, kv_heads, kv_head);
    for (int i = (int)threadIdx.x; i < QUERIES * (DIM / 2); i += THREADS) {
        const int r = i / (DIM / 2), d = i % (DIM / 2) * 2;
        const float* from = qkv + (size_t)(q0 + r) * (size_t)ldqkv + (size_t)(q_offset + head * HEAD_DIM);
        const bool real = q0 + r < tokens;
        *(unsigned*)(queries + r * STRIDE + d) = pack_f16(real && d < HEAD_DIM ? from[d] : 0.0f, real && d + 1 < HEAD_DIM ? from[d + 1] : 0.0f);
    }

    float out[DIM / 8][4];
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[n][i] = 0.0f;
    float largest[2] = {-HLRC_INFINITY, -HLRC_INFINITY}, sums[2] = {0.0f, 0.0f}; // rows g and g + 8
    const int query = past + q0 + warp * 16 + g;                                  // position of row g

    for (int k0 = begin; k0 < end; k0 += KEYS) {
        const int next = k0 + KEYS;
        async_wait<1>(); // keys
        __syncthreads();
        float s[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
#pragma unroll
        for (int kk = 0; kk < DIM; kk += 16) {
            unsigned a[4];
            load_matrix_x4(a, queries + (warp * 16 + (lane & 15)) * STRIDE + kk + (lane >> 4) * 8);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                unsigned b[4];
                load_matrix_x4(b, keys + (n * 8 + (lane & 7) + (lane >> 4) * 8) * STRIDE + kk + (lane >> 3 & 1) * 8);
                const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
                mma_f16(s[n], a, left);
                mma_f16(s[n + 1], a, right);
            }
        }
        __syncthreads(); // all are done with these keys
        if (next < end) load_tile(keys, k_cache, k_scales, pages, sequence, next, end, capacity, page, max_pages, kv_heads, kv_head);
        else async_commit();

#pragma unroll
        for (int r = 0; r < 2; r++) { // rows g, g + 8
            const int p = query + 8 * r;
            float most = largest[r];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int key = k0 + 8 * n + 2 * t + i;
                    float v = s[n][2 * r + i] * scale;
                    if (SOFTCAP) v = softcap * tanhf(v / softcap);
                    if (key > p || (window > 0 && key <= p - window)) v = -HLRC_INFINITY;
                    s[n][2 * r + i] = v;
                    most = fmaxf(most, v);
                }
            most = fmaxf(most, __shfl_xor_sync(HLRC_FULL_WARP, most, 1));
            most = fmaxf(most, __shfl_xor_sync(HLRC_FULL_WARP, most, 2));
            const float base = most == -HLRC_INFINITY ? 0.0f : most; // no key yet
            const float correction = expf(largest[r] - base);
            largest[r] = most;
            float total = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float e = expf(s[n][2 * r + i] - base);
                    s[n][2 * r + i] = e;
                    total += e;
                }
            sums[r] = sums[r] * correction + total; // of this lane's keys
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                out[n][2 * r] *= correction;
                out[n][2 * r + 1] *= correction;
            }
        }

        async_wait<1>(); // values
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < KEYS; kk += 16) {
            const float *left = s[kk / 8], *right = s[kk / 8 + 1];
            const unsigned a[4] = {pack_f16(left[0], left[1]), pack_f16(left[2], left[3]), pack_f16(right[0], right[1]), pack_f16(right[2], right[3])};
#pragma unroll
            for (int n = 0; n < DIM / 8; n += 2) {
                unsigned b[4];
                load_matrix_x4_transposed(b, values + (kk + (lane & 15)) * STRIDE + n * 8 + (lane >> 4) * 8);
                const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
                mma_f16(out[n], a, first);
                mma_f16(out[n + 1], a, second);
            }
        }
        __syncthreads(); // all are done with these values
        if (next < end) load_tile(values, v_cache, v_scales, pages, sequence, next, end, capacity, page, max_pages, kv_heads, kv_head);
        else async_commit();
    }
    async_wait<0>();

#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = sums[r];
        total += __shfl_xor_sync(HLRC_FULL_WARP, total, 1);
        total += __shfl_xor_sync(HLRC_FULL_WARP, total, 2);
        const int token = q0 + warp * 16 + g + 8 * r;
        if (token >= tokens) continue;
        float* to = y + (size_t)token * (size_t)ldy + (size_t)(head * HEAD_DIM);
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int d = 8 * n + 2 * t + i;
                if (d < HEAD_DIM) to[d] = out[n][2 * r + i] / total;
            }
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(attention_prefill)
#endif
