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
// How it works. grid (kv_heads, SPLITS, M). A block takes a part of the keys, for all query heads of a
// key head, in groups of at most 8. Each of its warps takes 16 keys at a time, by itself: what the
// tensor cores want of keys and values is what 16-byte loads give, once dimensions and keys are named in
// another order, so that nothing goes through shared memory, and the next 16 are loaded while these are
// multiplied. Queries and probabilities are each a sum of two f16, which is exact to 22 bits; the halves of
// queries are rows 0..7 and 8..15 of operand A, those of probabilities two products. In the end warps are
// merged, then blocks, by the one that is last to finish, split after split.
// Keys before the token are asked for in front of the wait for the launch before: nothing in the same
// graph writes them.
//
// partial: f32 [M, heads, SPLITS, HEAD_DIM + 2]; counter: u32 [M, kv_heads], zero at first, never reset.
// Bytes: keys and values once (again from L2 for each 8 query heads of a key head).
// Source: online softmax, arXiv 1805.02867; split over the context as in Flash-Decoding.
//
// kernel: attention_decode abi=2
// defines: HEAD_DIM=1..512 GROUP_Q=1..128 KV=0|1 PAGED=0|1 QK_NORM=0|1 ROPE=0..2 SOFTCAP=0|1
// defines: SPLITS=1..64
// args: qkv:const f32* q_gain:const f32* k_gain:const f32* inv_freq:const f32* k_cache:u8*
// args: v_cache:u8* k_scales:f16* v_scales:f16* pages:const i32* positions:const i32*
// args: partial:f32* counter:u32* y:f32*
// args: ldqkv:i32 q_offset:i32 k_offset:i32 v_offset:i32 ldy:i32 heads:i32 kv_heads:i32
// args: rotary_dim:i32 capacity:i32 page:i32 max_pages:i32 window:i32 norm_eps:f32
// args: rope_factor:f32 scale:f32 softcap:f32
// block: 256
#include "common/kv.cuh"
#include "common/mma.cuh"
#include "common/rotary.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define STEP 16                          // keys of a warp at a time
#define HEADS 8                          // query heads at a time
#define BLOCKS ((HEAD_DIM + 31) / 32)    // of 32 dimensions: a lane has 8 of a key
#define WIDTH (32 * BLOCKS)
#define EACH (KV == 0 ? 8 : 4)           // dimensions of a lane in a part of the values
#define PART_DIMS (8 * EACH)             // scales of values belong to whole parts
#define PARTS ((HEAD_DIM + PART_DIMS - 1) / PART_DIMS)
#define KEY_WORDS (KV == 0 ? 4 : 2)
#define VALUE_WORDS (KV == 0 ? 4 : 1)
#define SCALE_WORDS ((BLOCKS + 1) / 2)
// Bytes of a row of queries, so that lanes of a quarter of a warp meet in no bank.
#define Q_STRIDE (64 * BLOCKS + (BLOCKS % 2 ? 0 : 64))
#define P_SCALE 1024.0f                  // keeps small probabilities normal in f16; cancels out
// Sums of two heads and a part, so that lanes that store them meet in no bank.
#define PAIR_FLOATS (2 * PART_DIMS + 2)
#define WORK (WARPS * (WIDTH > HEADS / 2 * PAIR_FLOATS ? WIDTH : HEADS / 2 * PAIR_FLOATS))
#define CHAINS (BLOCKS > 4 ? 1 : 2)      // of products that wait for each other, as registers allow

struct Cache {
    const unsigned char *k, *v;
    const __half *k_scales, *v_scales;
    const int* pages;
    int m, capacity, page, max_pages, kv_heads, kv_head;
    __device__ __forceinline__ size_t at(int key) const {
        return cache_row<PAGED != 0>(pages, m, key, capacity, page, max_pages) * (size_t)kv_heads + (size_t)kv_head;
    }
};
// What a lane (g, t) holds of 16 keys: dimensions 8t.. of each 32 of keys g and g + 8; dimensions EACH · g..
// of each part of the values of keys 2t, 2t + 1, 2t + 8 and 2t + 9, and the scales of those four.
struct Keys {
    unsigned words[2][BLOCKS][KEY_WORDS];
#if KV
    unsigned scales[4][SCALE_WORDS];
#endif
    __device__ __forceinline__ void load(const Cache& c, int first, int end, int lane) {
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const int key = first + 8 * n + g;
            const size_t at = key < end ? c.at(key) : 0;
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) load_raw<HEAD_DIM, KV>(c.k, at, 32 * b + 8 * t, key < end, words[n][b]);
        }
#if KV
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int key = first + 8 * (j / 2) + 2 * t + j % 2;
            load_scales<HEAD_DIM>(c.k_scales, key < end ? c.at(key) : 0, key < end, scales[j]);
        }
#endif
    }
};
struct Values {
    unsigned words[4][PARTS][VALUE_WORDS];
#if KV
    unsigned scales[4][SCALE_WORDS];
#endif
    __device__ __forceinline__ void load(const Cache& c, int first, int end, int lane) {
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int key = first + 8 * (j / 2) + 2 * t + j % 2;
            const size_t at = key < end ? c.at(key) : 0;
#pragma unroll
            for (int p = 0; p < PARTS; p++) load_raw<HEAD_DIM, KV>(c.v, at, PART_DIMS * p + EACH * g, key < end, words[j][p]);
#if KV
            load_scales<HEAD_DIM>(c.v_scales, at, key < end, scales[j]);
#endif
        }
    }
};
__device__ __forceinline__ float scale_of(const unsigned (&words)[SCALE_WORDS], int block) {
    const unsigned word = words[block / 2];
    return f16_value(block % 2 ? word >> 16 : word & 0xffffu);
}

// Scores of head g with the lane's four keys, before their power of two.
__device__ __forceinline__ void multiply_keys(const Keys& keys, const unsigned char* q_high, const unsigned char* q_low, int lane, float (&scores)[4]) {
    const int at = lane / 4 * Q_STRIDE + lane % 4 * 16;
    float d[2][CHAINS][4];
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int c = 0; c < CHAINS; c++) d[n][c][i] = 0.0f;
            scores[i] = 0.0f;
        }
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        const uint4 high = *(const uint4*)(q_high + at + 64 * b), low = *(const uint4*)(q_low + at + 64 * b);
        const unsigned a0[4] = {high.x, low.x, high.y, low.y}, a1[4] = {high.z, low.z, high.w, low.w};
#pragma unroll
        for (int n = 0; n < 2; n++) {
            unsigned k[4];
            halves_of(keys.words[n][b], k);
            const unsigned b0[2] = {k[0], k[1]}, b1[2] = {k[2], k[3]};
            mma_f16(d[n][0], a0, b0);
            mma_f16(d[n][CHAINS - 1], a1, b1);
            if (KV == 0 && b + 1 < BLOCKS) continue;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float dot = d[n][0][i] + d[n][0][2 + i];
                if (CHAINS > 1) dot += d[n][CHAINS - 1][i] + d[n][CHAINS - 1][2 + i];
#if KV
                scores[2 * n + i] = fmaf(dot, scale_of(keys.scales[2 * n + i], b), scores[2 * n + i]);
#pragma unroll
                for (int c = 0; c < CHAINS; c++) d[n][c][i] = d[n][c][2 + i] = 0.0f;
#else
                scores[2 * n + i] = dot;
#endif
            }
        }
    }
}
// Two probabilities as pairs of the high and of the low f16.
__device__ __forceinline__ void split_halves(float x, float y, unsigned& high, unsigned& low) {
    high = f16x2_bits(x, y);
    const float2 rounded = f16x2(high);
    low = f16x2_bits(x - rounded.x, y - rounded.y);
}
// sums += values · p. Tile i of a part has dimensions EACH · g + 2i and + 1, heads 2t and 2t + 1.
__device__ __forceinline__ void multiply_values(const Values& values, const float (&p)[4], float (&sums)[PARTS][EACH / 2][4]) {
    unsigned high[2], low[2];
#if !KV
    split_halves(p[0], p[1], high[0], low[0]);
    split_halves(p[2], p[3], high[1], low[1]);
#endif
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
#if KV
        float scaled[4];
#pragma unroll
        for (int j = 0; j < 4; j++) scaled[j] = p[j] * scale_of(values.scales[j], part);
        split_halves(scaled[0], scaled[1], high[0], low[0]);
        split_halves(scaled[2], scaled[3], high[1], low[1]);
#endif
        unsigned v[4][EACH / 2];
#pragma unroll
        for (int j = 0; j < 4; j++) halves_of(values.words[j][part], v[j]);
#pragma unroll
        for (int i = 0; i < EACH / 2; i++) {
            const unsigned a[4] = {__byte_perm(v[0][i], v[1][i], 0x5410), __byte_perm(v[0][i], v[1][i], 0x7632),
                                   __byte_perm(v[2][i], v[3][i], 0x5410), __byte_perm(v[2][i], v[3][i], 0x7632)};
            mma_f16(sums[part][i], a, high);
            mma_f16(sums[part][i], a, low);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_decode(const float* __restrict__ qkv, const float* __restrict__ q_gain, const float* __restrict__ k_gain,
                 const float* __restrict__ inv_freq, unsigned char* k_cache, unsigned char* v_cache, __half* k_scales, __half* v_scales,
                 const int* __restrict__ pages, const int* __restrict__ positions, float* partial, unsigned* counter, float* __restrict__ y,
                 int ldqkv, int q_offset, int k_offset, int v_offset, int ldy, int heads, int kv_heads, int rotary_dim, int capacity, int page,
                 int max_pages, int window, float norm_eps, float rope_factor, float scale, float softcap) {
    start_next_grid();
    __shared__ __align__(16) unsigned char q_high[HEADS * Q_STRIDE], q_low[HEADS * Q_STRIDE];
    __shared__ __align__(16) float work[WORK];
    __shared__ float powers[HEADS], tops[WARPS * HEADS], totals[WARPS * HEADS], top[HEADS], total[HEADS];
    __shared__ float factors[HEADS * SPLITS];
    __shared__ int is_last;
    const int kv_head = (int)blockIdx.x, split = (int)blockIdx.y, m = (int)blockIdx.z;
    const int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane / 4, t = lane % 4;
    const int position = positions[m];
    const int first = window > 0 ? max(0, position - window + 1) : 0;
    const int count = position + 1 - first;
    const int part = ((count + SPLITS - 1) / SPLITS + STEP * WARPS - 1) / (STEP * WARPS) * (STEP * WARPS), live = (count + part - 1) / part;
    const int begin = first + split * part, end = min(begin + part, position + 1), mine = begin + STEP * warp;
    const bool owner = begin <= position && position < end; // appends the new key
    const bool alone = SPLITS == 1 || live == 1; // nothing to merge
    const Cache cache = {k_cache, v_cache, k_scales, v_scales, pages, m, capacity, page, max_pages, kv_heads, kv_head};
    Keys keys;
    Values values;
    keys.load(cache, mine, min(end, position), lane);
    values.load(cache, mine, min(end, position), lane);
    wait_previous_grid();

    const float* token = qkv + (size_t)m * (size_t)ldqkv;
    for (int h0 = 0; split < live && h0 < GROUP_Q; h0 += HEADS) {
        // A query by each warp, then the new key and value.
        float* const head = work + warp * WIDTH;
        for (int h = warp; h < HEADS; h += WARPS) {
            const bool real = h0 + h < GROUP_Q;
            __syncwarp(); // `head` is read
            for (int d = lane; d < WIDTH; d += 32)
                head[d] = real && d < HEAD_DIM ? token[q_offset + (kv_head * GROUP_Q + h0 + h) * HEAD_DIM + d] : 0.0f;
            if (real) prepare_head<HEAD_DIM, ROPE, QK_NORM != 0>(head, q_gain, norm_eps, inv_freq, rotary_dim, position, rope_factor);
            float largest = 0.0f;
            for (int d = lane; d < WIDTH; d += 32) largest = fmaxf(largest, fabsf(head[d] * scale));
            // The largest magnitude gets the exponent of 2^14.
            const int exponent = max(15, min(253, (int)(__float_as_uint(warp_max(largest)) >> 23)));
            const float power = __uint_as_float((unsigned)(exponent - 14) << 23), inverse = 1.0f / power;
            for (int d = lane; d < WIDTH; d += 32) {
                const float x = head[d] * scale * inverse;
                const unsigned high = f16_bits(x);
                ((unsigned short*)(q_high + h * Q_STRIDE))[d] = (unsigned short)high;
                ((unsigned short*)(q_low + h * Q_STRIDE))[d] = (unsigned short)f16_bits(x - f16_value(high));
            }
            if (lane == 0) powers[h] = power;
        }
        if (h0 == 0 && owner && warp >= WARPS - 2) {
            const bool is_key = warp == WARPS - 1;
            const size_t row = cache_row<PAGED != 0>(pages, m, position, capacity, page, max_pages);
            __syncwarp();
            for (int d = lane; d < WIDTH; d += 32) head[d] = d < HEAD_DIM ? token[(is_key ? k_offset : v_offset) + kv_head * HEAD_DIM + d] : 0.0f;
            if (is_key) prepare_head<HEAD_DIM, ROPE, QK_NORM != 0>(head, k_gain, norm_eps, inv_freq, rotary_dim, position, rope_factor);
            store_head<HEAD_DIM, KV>(head, is_key ? k_cache : v_cache, is_key ? k_scales : v_scales, row, kv_heads, kv_head);
        }
        __syncthreads();
        if (h0 > 0 || (mine <= position && position < min(end, mine + STEP))) { // the new key is there now
            keys.load(cache, mine, end, lane);
            values.load(cache, mine, end, lane);
        }

        float sums[PARTS][EACH / 2][4];
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int i = 0; i < EACH / 2; i++)
#pragma unroll
                for (int c = 0; c < 4; c++) sums[p][i][c] = 0.0f;
        float before = -HLRC_INFINITY, sum = 0.0f; // of head g; the sum of the lane's keys
        for (int key = mine; key < end; key += STEP * WARPS) {
            float s[4];
            multiply_keys(keys, q_high, q_low, lane, s);
            const int next = key + STEP * WARPS;
            if (next < end) keys.load(cache, next, end, lane);
            float now = before;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[j] *= powers[g];
                if (SOFTCAP) s[j] = softcap * tanhf(s[j] / softcap);
                if (key + 8 * (j / 2) + 2 * t + j % 2 >= end) s[j] = -HLRC_INFINITY;
                now = fmaxf(now, s[j]);
            }
            now = fmaxf(now, __shfl_xor_sync(HLRC_FULL_WARP, now, 1));
            now = fmaxf(now, __shfl_xor_sync(HLRC_FULL_WARP, now, 2));
            const float correction = expf(before - now);
            sum *= correction;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[j] = expf(s[j] - now) * P_SCALE;
                sum += s[j];
            }
            if (__any_sync(HLRC_FULL_WARP, now != before)) {
                const float c0 = __shfl_sync(HLRC_FULL_WARP, correction, 8 * t), c1 = __shfl_sync(HLRC_FULL_WARP, correction, 8 * t + 4);
#pragma unroll
                for (int p = 0; p < PARTS; p++)
#pragma unroll
                    for (int i = 0; i < EACH / 2; i++) sums[p][i][0] *= c0, sums[p][i][1] *= c1, sums[p][i][2] *= c0, sums[p][i][3] *= c1;
            }
            before = now;
            multiply_values(values, s, sums);
            if (next < end) values.load(cache, next, end, lane);
        }

        // Warps in their order.
        sum += __shfl_xor_sync(HLRC_FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(HLRC_FULL_WARP, sum, 2);
        if (t == 0) tops[warp * HEADS + g] = before, totals[warp * HEADS + g] = sum;
        __syncthreads();
        float factor[2];
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int h = 2 * t + c;
            float most = -HLRC_INFINITY, all = 0.0f;
            for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w * HEADS + h]);
            for (int w = 0; w < WARPS; w++) all += mine - STEP * warp + STEP * w < end ? expf(tops[w * HEADS + h] - most) * totals[w * HEADS + h] : 0.0f;
            factor[c] = mine < end ? expf(tops[warp * HEADS + h] - most) : 0.0f;
            if (warp == 0 && g == 0) top[h] = most, total[h] = all;
        }
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
#pragma unroll
            for (int i = 0; i < EACH / 2; i++)
#pragma unroll
                for (int c = 0; c < 2; c++)
                    *(float2*)(work + (warp * HEADS / 2 + t) * PAIR_FLOATS + c * PART_DIMS + EACH * g + 2 * i) = make_float2(sums[p][i][c] * factor[c], sums[p][i][2 + c] * factor[c]);
            __syncthreads();
            for (int e = tid; e < HEADS * PART_DIMS; e += THREADS) {
                const int h = e / PART_DIMS, d = PART_DIMS * p + e % PART_DIMS, q_head = kv_head * GROUP_Q + h0 + h;
                float all = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; w++) all += work[(w * HEADS / 2 + h / 2) * PAIR_FLOATS + h % 2 * PART_DIMS + e % PART_DIMS];
                if (h0 + h >= GROUP_Q) continue;
                float* out = partial + (((size_t)m * (size_t)heads + (size_t)q_head) * SPLITS + (size_t)split) * (HEAD_DIM + 2);
                if (d < HEAD_DIM) {
                    if (alone) y[(size_t)m * (size_t)ldy + (size_t)(q_head * HEAD_DIM + d)] = all / total[h];
                    else out[d] = all;
                }
                if (!alone && d == 0) out[HEAD_DIM] = top[h], out[HEAD_DIM + 1] = total[h];
            }
            __syncthreads();
        }
    }
    if (alone) return;

    if (tid == 0) {
        const unsigned done = add_acquire_release(counter + (size_t)m * (size_t)kv_heads + (size_t)kv_head, 1u);
        is_last = (done + 1u) % SPLITS == 0u;
    }
    __syncthreads();
    if (!is_last) return;
    for (int h0 = 0; h0 < GROUP_Q; h0 += HEADS) {
        const float* parts = partial + ((size_t)m * (size_t)heads + (size_t)(kv_head * GROUP_Q + h0)) * SPLITS * (HEAD_DIM + 2);
        for (int h = warp; h < min(HEADS, GROUP_Q - h0); h += WARPS) {
            float most[(SPLITS + 31) / 32], sum[(SPLITS + 31) / 32], largest = -HLRC_INFINITY, all = 0.0f;
#pragma unroll
            for (int i = 0; i < (SPLITS + 31) / 32; i++) {
                const float* at = parts + (h * SPLITS + min(32 * i + lane, live - 1)) * (HEAD_DIM + 2) + HEAD_DIM;
                most[i] = 32 * i + lane < live ? __ldcg(at) : -HLRC_INFINITY;
                sum[i] = __ldcg(at + 1);
                largest = fmaxf(largest, most[i]);
            }
            largest = warp_max(largest);
#pragma unroll
            for (int i = 0; i < (SPLITS + 31) / 32; i++) {
                const float f = 32 * i + lane < live ? expf(most[i] - largest) : 0.0f;
                if (32 * i + lane < SPLITS) factors[h * SPLITS + 32 * i + lane] = f;
                all += f * sum[i];
            }
            all = warp_sum(all);
            if (lane == 0) total[h] = all;
        }
        __syncthreads();
        for (int e = tid; e < min(HEADS, GROUP_Q - h0) * HEAD_DIM; e += THREADS) {
            const int h = e / HEAD_DIM, d = e % HEAD_DIM;
            float all = 0.0f;
            for (int s0 = 0; s0 < live; s0 += 16) {
                float one[16];
#pragma unroll
                for (int s = 0; s < 16; s++) one[s] = __ldcg(parts + (h * SPLITS + min(s0 + s, live - 1)) * (HEAD_DIM + 2) + d);
#pragma unroll
                for (int s = 0; s < 16; s++) all += s0 + s < live ? factors[h * SPLITS + s0 + s] * one[s] : 0.0f;
            }
            y[(size_t)m * (size_t)ldy + (size_t)((kv_head * GROUP_Q + h0 + h) * HEAD_DIM + d)] = all / total[h];
        }
        __syncthreads();
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(attention_decode)
#endif
