// One token of each of M sequences: norm and rotation of queries and key, append to the KV cache,
// softmax attention over the cache, split over the context and merged in a fixed order.
//
// qkv [M, ldqkv] f32 holds `heads` query heads at q_offset, `kv_heads` key and value heads at
// k_offset and v_offset. QK_NORM: RMS norm per head with q_gain, k_gain [HEAD_DIM] (unit offset
// included). ROPE 1 halves, 2 interleaved, with inv_freq [rotary_dim / 2]; rope_factor scales cosines
// and sines. The token at positions[m] sees keys max(0, p - window + 1)..=p (window 0: all); its
// score is softcap·tanh(s / softcap) where SOFTCAP, s = scale · q·k. Position p lies in slot
// p mod capacity, with PAGED in page pages[m · max_pages + slot / page].
// KV 0: f16 [sequence][slot][kv_head][HEAD_DIM]; 1: s8, scales [...][ceil(HEAD_DIM / 32)], which the
// new key and value go through as well, so that a token sees what later ones will.
//
// grid (kv_heads, SPLITS, M). A block takes a part of the keys, for all query heads of a key head, in
// groups of at most 8; the block that is last to finish merges the parts, split after split.
// partial: f32 [M, heads, SPLITS, HEAD_DIM + 2]; counter: u32 [M, kv_heads], zero at first, never reset.
// Bytes: keys and values once (again from L2 for each 8 query heads of a key head).
// Source: online softmax, arXiv 1805.02867; split over the context as in Flash-Decoding.
//
// kernel: attention_decode abi=1
// defines: HEAD_DIM=1..512 GROUP_Q=1..128 KV=0|1 PAGED=0|1 QK_NORM=0|1 ROPE=0..2 SOFTCAP=0|1
// defines: SPLITS=1..64
// args: qkv:const f32* q_gain:const f32* k_gain:const f32* inv_freq:const f32* k_cache:u8*
// args: v_cache:u8* k_scales:f16* v_scales:f16* pages:const i32* positions:const i32*
// args: partial:f32* counter:u32* y:f32*
// args: ldqkv:i32 q_offset:i32 k_offset:i32 v_offset:i32 ldy:i32 heads:i32 kv_heads:i32
// args: rotary_dim:i32 capacity:i32 page:i32 max_pages:i32 window:i32 norm_eps:f32
// args: rope_factor:f32 scale:f32 softcap:f32
// block: 128
#include "common/kv.cuh"
#include "common/memory.cuh"
#include "common/rotary.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)
#define TILE 64                                       // keys at a time
#define HEADS (GROUP_Q < 8 ? GROUP_Q : 8)             // query heads at a time
#define Q_ROWS ((GROUP_Q + HEADS - 1) / HEADS * HEADS) // padded
#define PIECES ((HEAD_DIM + 7) / 8)
#define KEY_GROUPS (THREADS / PIECES) // threads that share a piece of the values
#define Q_WIDTH (8 * PIECES)

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_decode(const float* __restrict__ qkv, const float* __restrict__ q_gain, const float* __restrict__ k_gain,
                 const float* __restrict__ inv_freq, unsigned char* k_cache, unsigned char* v_cache, __half* k_scales, __half* v_scales,
                 const int* __restrict__ pages, const int* __restrict__ positions, float* partial, unsigned* counter, float* __restrict__ y,
                 int ldqkv, int q_offset, int k_offset, int v_offset, int ldy, int heads, int kv_heads, int rotary_dim, int capacity, int page,
                 int max_pages, int window, float norm_eps, float rope_factor, float scale, float softcap) {
    start_next_grid();
    wait_previous_grid();
    __shared__ __align__(16) float q[Q_ROWS * Q_WIDTH];
    __shared__ __align__(16) float new_key[Q_WIDTH], new_value[Q_WIDTH];
    __shared__ float scores[HEADS * TILE];
    __shared__ float largest[HEADS], sums[HEADS], correction[HEADS];
    __shared__ float values[KEY_GROUPS * Q_WIDTH];
    __shared__ int is_last;
    const int kv_head = (int)blockIdx.x, split = (int)blockIdx.y, m = (int)blockIdx.z;
    const int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int position = positions[m];
    const int first = window > 0 ? max(0, position - window + 1) : 0;
    const int count = position + 1 - first;
    const int part = ((count + SPLITS - 1) / SPLITS + TILE - 1) / TILE * TILE;
    const int begin = first + split * part, end = min(begin + part, position + 1);
    const bool owner = begin <= position && position < end; // appends the new key

    // Queries, and the new key and value, by one warp each.
    const float* token = qkv + (size_t)m * (size_t)ldqkv;
    if (begin < end) {
        for (int h = warp; h < Q_ROWS; h += WARPS) {
            float* head = q + h * Q_WIDTH;
            const bool real = h < GROUP_Q;
            for (int d = lane; d < Q_WIDTH; d += 32)
                head[d] = real && d < HEAD_DIM ? token[q_offset + (kv_head * GROUP_Q + h) * HEAD_DIM + d] : 0.0f;
            if (!real) continue; // the same for the warp
            prepare_head<HEAD_DIM, ROPE, QK_NORM != 0>(head, q_gain, norm_eps, inv_freq, rotary_dim, position, rope_factor);
            for (int d = lane; d < HEAD_DIM; d += 32) head[d] *= scale;
        }
        if (owner && warp == 0) {
            const size_t row = cache_row<PAGED != 0>(pages, m, position, capacity, page, max_pages);
            for (int d = lane; d < Q_WIDTH; d += 32) new_key[d] = d < HEAD_DIM ? token[k_offset + kv_head * HEAD_DIM + d] : 0.0f;
            prepare_head<HEAD_DIM, ROPE, QK_NORM != 0>(new_key, k_gain, norm_eps, inv_freq, rotary_dim, position, rope_factor);
            store_head<HEAD_DIM, KV>(new_key, k_cache, k_scales, row, kv_heads, kv_head);
            for (int d = lane; d < Q_WIDTH; d += 32) new_value[d] = d < HEAD_DIM ? token[v_offset + kv_head * HEAD_DIM + d] : 0.0f;
            store_head<HEAD_DIM, KV>(new_value, v_cache, v_scales, row, kv_heads, kv_head);
        }
    }
    __syncthreads();

    const int my_piece = tid % PIECES, my_group = tid / PIECES; // of the values; groups beyond take none
    for (int h0 = 0; h0 < GROUP_Q; h0 += HEADS) {
        float sum[HEADS][8];
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int i = 0; i < 8; i++) sum[h][i] = 0.0f;
        if (tid < HEADS) {
            largest[tid] = -HLRC_INFINITY;
            sums[tid] = 0.0f;
        }
        for (int tile = begin; tile < end; tile += TILE) {
            // Scores: four lanes share a key, each with every fourth piece.
            for (int j = tid / 4; j < TILE; j += THREADS / 4) {
                const int key = tile + j;
                float dot[HEADS];
#pragma unroll
                for (int h = 0; h < HEADS; h++) dot[h] = 0.0f;
                if (key < end) {
                    const size_t at = cache_row<PAGED != 0>(pages, m, key, capacity, page, max_pages) * (size_t)kv_heads + (size_t)kv_head;
                    for (int piece = tid & 3; piece < PIECES; piece += 4) {
                        float k[8];
                        if (key == position) {
#pragma unroll
                            for (int i = 0; i < 8; i++) k[i] = new_key[8 * piece + i];
                        } else {
                            load_piece<HEAD_DIM, KV>(k_cache, k_scales, at, piece, k);
                        }
#pragma unroll
                        for (int h = 0; h < HEADS; h++) {
                            const float4* head = (const float4*)(q + (h0 + h) * Q_WIDTH + 8 * piece);
                            const float4 a = head[0], b = head[1];
                            dot[h] += a.x * k[0] + a.y * k[1] + a.z * k[2] + a.w * k[3] + b.x * k[4] + b.y * k[5] + b.z * k[6] + b.w * k[7];
                        }
                    }
                }
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    dot[h] += __shfl_xor_sync(HLRC_FULL_WARP, dot[h], 1);
                    dot[h] += __shfl_xor_sync(HLRC_FULL_WARP, dot[h], 2);
                    if (SOFTCAP) dot[h] = softcap * tanhf(dot[h] / softcap);
                    if ((tid & 3) == 0) scores[h * TILE + j] = key < end ? dot[h] : -HLRC_INFINITY;
                }
            }
            __syncthreads();
            // Softmax so far: a warp per head.
            for (int h = warp; h < HEADS; h += WARPS) {
                const float a = scores[h * TILE + lane], b = scores[h * TILE + 32 + lane], before = largest[h];
                const float now = fmaxf(before, warp_max(fmaxf(a, b)));
                const float pa = expf(a - now), pb = expf(b - now), total = warp_sum(pa + pb);
                scores[h * TILE + lane] = pa;
                scores[h * TILE + 32 + lane] = pb;
                __syncwarp(); // every lane has read `largest`
                if (lane == 0) {
                    correction[h] = expf(before - now);
                    sums[h] = sums[h] * correction[h] + total;
                    largest[h] = now;
                }
            }
            __syncthreads();
            if (my_group < KEY_GROUPS) {
#pragma unroll
                for (int h = 0; h < HEADS; h++)
#pragma unroll
                    for (int i = 0; i < 8; i++) sum[h][i] *= correction[h];
                for (int j = my_group; j < TILE && tile + j < end; j += KEY_GROUPS) {
                    const int key = tile + j;
                    float v[8];
                    if (key == position) {
#pragma unroll
                        for (int i = 0; i < 8; i++) v[i] = new_value[8 * my_piece + i];
                    } else {
                        const size_t at = cache_row<PAGED != 0>(pages, m, key, capacity, page, max_pages) * (size_t)kv_heads + (size_t)kv_head;
                        load_piece<HEAD_DIM, KV>(v_cache, v_scales, at, my_piece, v);
                    }
#pragma unroll
                    for (int h = 0; h < HEADS; h++) {
                        const float p = scores[h * TILE + j];
#pragma unroll
                        for (int i = 0; i < 8; i++) sum[h][i] += p * v[i];
                    }
                }
            }
            __syncthreads();
        }
        // Sums of the groups of threads, in order.
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            if (my_group < KEY_GROUPS) {
#pragma unroll
                for (int i = 0; i < 8; i++) values[my_group * Q_WIDTH + 8 * my_piece + i] = sum[h][i];
            }
            __syncthreads();
            if (h0 + h < GROUP_Q) {
                const int head = kv_head * GROUP_Q + h0 + h;
                float* out = partial + (((size_t)m * (size_t)heads + (size_t)head) * SPLITS + (size_t)split) * (HEAD_DIM + 2);
                for (int d = tid; d < HEAD_DIM; d += THREADS) {
                    float total = 0.0f;
                    for (int g = 0; g < KEY_GROUPS; g++) total += values[g * Q_WIDTH + d];
                    if (SPLITS == 1) y[(size_t)m * (size_t)ldy + (size_t)(head * HEAD_DIM + d)] = total / sums[h];
                    else out[d] = total;
                }
                if (SPLITS > 1 && tid == 0) {
                    out[HEAD_DIM] = largest[h];
                    out[HEAD_DIM + 1] = sums[h];
                }
            }
            __syncthreads();
        }
    }
    if (SPLITS == 1) return;

    if (tid == 0) {
        const unsigned before = add_acquire_release(counter + (size_t)m * (size_t)kv_heads + (size_t)kv_head, 1u);
        is_last = (before + 1u) % SPLITS == 0u;
    }
    __syncthreads();
    if (!is_last) return;
    for (int i = tid; i < GROUP_Q * HEAD_DIM; i += THREADS) {
        const int head = kv_head * GROUP_Q + i / HEAD_DIM, d = i % HEAD_DIM;
        const float* parts = partial + ((size_t)m * (size_t)heads + (size_t)head) * SPLITS * (HEAD_DIM + 2);
        float most = -HLRC_INFINITY, total = 0.0f, weight = 0.0f;
        for (int s = 0; s < SPLITS; s++) most = fmaxf(most, __ldcg(parts + s * (HEAD_DIM + 2) + HEAD_DIM));
        for (int s = 0; s < SPLITS; s++) {
            const float* p = parts + s * (HEAD_DIM + 2);
            const float factor = expf(__ldcg(p + HEAD_DIM) - most);
            total += factor * __ldcg(p + d);
            weight += factor * __ldcg(p + HEAD_DIM + 1);
        }
        y[(size_t)m * (size_t)ldy + (size_t)(head * HEAD_DIM + d)] = total / weight;
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(attention_decode)
#endif
