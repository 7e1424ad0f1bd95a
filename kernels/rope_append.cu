// Many tokens of one sequence on their way to attention_prefill: queries are normed and rotated in
// place, keys normed, rotated and appended to the KV cache, values appended.
//
// Parameters, norm, rotation and cache as in attention_decode; scalars: [tokens, past, sequence].
// grid (heads + 2 · kv_heads, ceil(tokens / 4)): a warp per head of a token.
// Bytes: qkv once read, queries and cache written.
//
// kernel: rope_append abi=1
// defines: HEAD_DIM=1..512 KV=0|1 PAGED=0|1 QK_NORM=0|1 ROPE=0..2
// args: qkv:f32* q_gain:const f32* k_gain:const f32* inv_freq:const f32* k_cache:u8* v_cache:u8*
// args: k_scales:f16* v_scales:f16* pages:const i32* scalars:const i32*
// args: ldqkv:i32 q_offset:i32 k_offset:i32 v_offset:i32 heads:i32 kv_heads:i32 rotary_dim:i32
// args: capacity:i32 page:i32 max_pages:i32 norm_eps:f32 rope_factor:f32
// block: 128
#include "common/rotary.cuh"

extern "C" __global__ void __launch_bounds__(128)
rope_append(float* qkv, const float* __restrict__ q_gain, const float* __restrict__ k_gain, const float* __restrict__ inv_freq,
            unsigned char* k_cache, unsigned char* v_cache, __half* k_scales, __half* v_scales, const int* __restrict__ pages,
            const int* __restrict__ scalars, int ldqkv, int q_offset, int k_offset, int v_offset, int heads, int kv_heads, int rotary_dim,
            int capacity, int page, int max_pages, float norm_eps, float rope_factor) {
    __shared__ float room[4 * HEAD_DIM];
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5;
    const int token = (int)blockIdx.y * 4 + warp, head = (int)blockIdx.x;
    if (token >= scalars[0]) return; // a whole warp; no barrier follows
    const int position = scalars[1] + token, sequence = scalars[2];
    const bool is_query = head < heads, is_key = !is_query && head < heads + kv_heads;
    const int index = is_query ? head : is_key ? head - heads : head - heads - kv_heads;
    float* at = qkv + (size_t)token * (size_t)ldqkv + (size_t)((is_query ? q_offset : is_key ? k_offset : v_offset) + index * HEAD_DIM);
    float* values = room + warp * HEAD_DIM;
    for (int d = lane; d < HEAD_DIM; d += 32) values[d] = at[d];
    if (is_query) {
        prepare_head<HEAD_DIM, ROPE, QK_NORM != 0>(values, q_gain, norm_eps, inv_freq, rotary_dim, position, rope_factor);
        for (int d = lane; d < HEAD_DIM; d += 32) at[d] = values[d];
        return;
    }
    const size_t row = cache_row<PAGED != 0>(pages, sequence, position, capacity, page, max_pages);
    if (is_key) {
        prepare_head<HEAD_DIM, ROPE, QK_NORM != 0>(values, k_gain, norm_eps, inv_freq, rotary_dim, position, rope_factor);
        store_head<HEAD_DIM, KV>(values, k_cache, k_scales, row, kv_heads, index);
    } else {
        store_head<HEAD_DIM, KV>(values, v_cache, v_scales, row, kv_heads, index);
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(rope_append)
#endif
