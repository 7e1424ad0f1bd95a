// Low-rank and sparse terms of a decode linear, in f32.
//
// Defines: those of activations.cuh, and LOWRANK (0, 1) VFORMAT UFORMAT (8 and 4 bits, 16, 32)
// SPARSE (0, 1).
#pragma once
#include "activations.cuh"

#define SPARSE_COLUMNS 4096
#define TERM_TOKENS (EXPERTS == 2 ? 1 : M) // rows of x that meet one row of a term

// Parts that h has room for: a row of V is cut into as many, each of some of its words, the sum of one
// warp, unless it is short. Then it is one warp's, and the other parts are 0.
#define INNER_PARTS 8
#define INNER_LONG 2048 // columns
// Tokens that a loop over a term sees to at once, so that sums fit into registers.
#define TERM_GROUP (TERM_TOKENS > 2 ? 2 : TERM_TOKENS)
// Loads on their way in loops over terms, as registers allow.
[[maybe_unused]] constexpr int OUTER_UNROLL = TERM_TOKENS == 1 ? 2 : 1;

// Asks for bytes ahead of their loads: thread `index` of `count`.
__device__ __forceinline__ void prefetch_range(const void* p, size_t bytes, int index, int count) {
    for (size_t at = (size_t)index * 128; at < bytes; at += (size_t)count * 128) prefetch((const unsigned char*)p + at);
}

#if LOWRANK
// Values of V per 16 bytes.
#define V_VALUES (128 / VFORMAT)

// Four values of 16 bytes of V.
__device__ __forceinline__ float4 factor4(const uint4& w, int quad) {
    const unsigned words[4] = {w.x, w.y, w.z, w.w};
#if VFORMAT == 32
    (void)quad;
    return make_float4(__uint_as_float(words[0]), __uint_as_float(words[1]), __uint_as_float(words[2]), __uint_as_float(words[3]));
#elif VFORMAT == 16
    const float2 a = f16x2(words[2 * quad]), b = f16x2(words[2 * quad + 1]);
    return make_float4(a.x, a.y, b.x, b.y);
#elif VFORMAT == 8
    const int s = (int)words[quad];
    return make_float4((float)(signed char)s, (float)(signed char)(s >> 8), (float)(signed char)(s >> 16), (float)(s >> 24));
#else
    const int s = (int)(words[quad / 2] >> (16 * (quad % 2)));
    return make_float4((float)((s & 15) - 8), (float)((s >> 4 & 15) - 8), (float)((s >> 8 & 15) - 8), (float)((s >> 12 & 15) - 8));
#endif
}

// Part `part` of h[m, i] = V[i, :] x[m, :] for one row i, by a warp, for `tokens` rows of x from
// `first_token` on, at most TERM_GROUP. h is [rows of x, INNER_PARTS, rank], here from the first.
//
// Of v_tiles 6 words say where a block of rows lies: offset in h, rows, first column, columns,
// offset in v (16 bytes), offset in scales. Its rows are padded to 16 in h; those are 0. `tile` is a
// block at or in front of that of row i, and is left at it.
template <bool VECTORS>
__device__ __forceinline__ void low_rank_inner(const Input& in, int first_token, int tokens, const unsigned char* v, const half* v_scales,
                                               const unsigned*& tile, float* h, int rank, int i, int part, int parts, int lane) {
    while (i >= (int)(tile[0] + (tile[1] + 15) / 16 * 16)) tile += 6;
    const int row = i - (int)tile[0], col0 = (int)tile[2], cols = (int)tile[3];
    float sums[TERM_GROUP];
#pragma unroll
    for (int m = 0; m < TERM_GROUP; m++) sums[m] = 0.0f;
    if (row < (int)tile[1]) {
        const int words = (cols + V_VALUES - 1) / V_VALUES, end = words * (part + 1) / parts;
        const uint4* w = (const uint4*)v + tile[4] + (size_t)row * words;
#if VFORMAT <= 8
        const int width = VFORMAT == 8 ? 64 : 32;
        const half* scales = v_scales + tile[5] + (size_t)row * ((cols + width - 1) / width);
#endif
        constexpr int BATCH = TERM_TOKENS == 1 ? 2 : 1; // words on their way
        for (int first = words * part / parts + lane; first < end; first += 32 * BATCH) {
            uint4 word[BATCH];
            float scale[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int c = min(first + 32 * b, end - 1);
                const bool there = first + 32 * b < end;
                word[b] = load_stream(w + c);
#if VFORMAT <= 8
                scale[b] = there ? __half2float(scales[c * V_VALUES / width]) : 0.0f;
#else
                scale[b] = there ? 1.0f : 0.0f;
#endif
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int c = min(first + 32 * b, end - 1);
                float part_sums[TERM_GROUP];
#pragma unroll
                for (int m = 0; m < TERM_GROUP; m++) part_sums[m] = 0.0f;
#pragma unroll
                for (int quad = 0; quad < V_VALUES / 4; quad++) {
                    const int k = c * V_VALUES + 4 * quad;
                    float4 f = factor4(word[b], quad);
                    // Beyond the block's columns is padding.
                    f.x = k < cols ? f.x : 0.0f, f.y = k + 1 < cols ? f.y : 0.0f;
                    f.z = k + 2 < cols ? f.z : 0.0f, f.w = k + 3 < cols ? f.w : 0.0f;
#pragma unroll
                    for (int m = 0; m < TERM_GROUP; m++) {
                        const float4 x = input4(in, first_token + min(m, tokens - 1), col0 + k, VECTORS);
                        part_sums[m] = fmaf(f.w, x.w, fmaf(f.z, x.z, fmaf(f.y, x.y, fmaf(f.x, x.x, part_sums[m]))));
                    }
                }
#pragma unroll
                for (int m = 0; m < TERM_GROUP; m++) sums[m] = fmaf(part_sums[m], scale[b], sums[m]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < TERM_GROUP; m++) {
        const float s = warp_sum(sums[m]);
        if (lane < (parts == 1 ? INNER_PARTS : 1) && m < tokens) h[((size_t)m * INNER_PARTS + part + lane) * rank + i] = lane ? 0.0f : s;
    }
}
// Whether all blocks of V start at columns where four inputs can be loaded at once.
__device__ __forceinline__ bool aligned_inner(const unsigned* v_tiles, int rank) {
    bool aligned = true;
    for (const unsigned* tile = v_tiles; (int)tile[0] < rank; tile += 6) {
        aligned &= (tile[2] & 3u) == 0;
        if ((int)(tile[0] + (tile[1] + 15) / 16 * 16) >= rank) break;
    }
    return aligned;
}

__device__ __forceinline__ void prefetch_outer(const unsigned char* u, const unsigned* u_tiles, const unsigned* u_index, int first_tile,
                                               int end_tile, int index, int count) {
    if (u_index[first_tile] == u_index[end_tile]) return;
    const unsigned* const last = u_tiles + 4 * (size_t)(u_index[end_tile] - 1);
    const size_t from = u_tiles[4 * (size_t)u_index[first_tile]], to = last[0] + last[2];
    prefetch_range(u + from * 32 * UFORMAT, (to - from) * 32 * UFORMAT, index, count);
}

// Adds U h of a row tile: lane (g, t) gets its share of rows g and g + 8, over ranks 4t.. + 3 of
// each 16. Of u_tiles 4 words are one factor: its first step of 16 ranks in u, offset in h, steps,
// offset in scales; u_index [tiles + 1] says which a tile has.
__device__ __forceinline__ void low_rank_outer(const unsigned char* u, const half* u_scales, const unsigned* u_tiles, const unsigned* u_index,
                                               const float* h, int rank, int tile, int tokens, int lane, float (&sums)[2][TERM_GROUP]) {
    const int t = lane % 4;
#if UFORMAT <= 8
    const int g = lane / 4;
#endif
    for (unsigned e = u_index[tile]; e < u_index[tile + 1]; e++) {
        const unsigned* entry = u_tiles + 4 * (size_t)e;
        const unsigned steps = entry[2];
        const float* inner = h + entry[1] + 4 * t;
        float part[2][TERM_GROUP];
#pragma unroll
        for (int m = 0; m < TERM_GROUP; m++) part[0][m] = part[1][m] = 0.0f;
#pragma unroll OUTER_UNROLL
        for (unsigned s = 0; s < steps; s++) {
            const size_t at = (size_t)(entry[0] + s);
            float4 f[2];
#if UFORMAT == 32
            f[0] = *(const float4*)(u + at * 1024 + lane * 32);
            f[1] = *(const float4*)(u + at * 1024 + lane * 32 + 16);
#elif UFORMAT == 16
            const uint4 w = *(const uint4*)(u + at * 512 + lane * 16);
            const float2 a = f16x2(w.x), b = f16x2(w.y), c = f16x2(w.z), d = f16x2(w.w);
            f[0] = make_float4(a.x, a.y, b.x, b.y), f[1] = make_float4(c.x, c.y, d.x, d.y);
#elif UFORMAT == 8
            const int2 w = *(const int2*)(u + at * 256 + lane * 8);
            f[0] = make_float4((float)(signed char)w.x, (float)(signed char)(w.x >> 8), (float)(signed char)(w.x >> 16), (float)(w.x >> 24));
            f[1] = make_float4((float)(signed char)w.y, (float)(signed char)(w.y >> 8), (float)(signed char)(w.y >> 16), (float)(w.y >> 24));
#else
            const unsigned w = *(const unsigned*)(u + at * 128 + lane * 4);
            const float2 scale = f16x2(*(const unsigned*)(u_scales + entry[3] + (s / 2) * 16 + 2 * g));
            f[0] = make_float4((float)((int)(w & 15u) - 8), (float)((int)(w >> 8 & 15u) - 8), (float)((int)(w >> 16 & 15u) - 8), (float)((int)(w >> 24 & 15u) - 8));
            f[1] = make_float4((float)((int)(w >> 4 & 15u) - 8), (float)((int)(w >> 12 & 15u) - 8), (float)((int)(w >> 20 & 15u) - 8), (float)((int)(w >> 28) - 8));
            f[0] = make_float4(f[0].x * scale.x, f[0].y * scale.x, f[0].z * scale.x, f[0].w * scale.x);
            f[1] = make_float4(f[1].x * scale.y, f[1].y * scale.y, f[1].z * scale.y, f[1].w * scale.y);
#endif
#pragma unroll
            for (int m = 0; m < TERM_GROUP; m++) {
                // Other blocks wrote it: from L2. Parts are added in their order.
                const float* at = inner + (size_t)min(m, tokens - 1) * INNER_PARTS * rank + 16 * s;
                float4 x = __ldcg((const float4*)at);
#pragma unroll
                for (int p = 1; p < INNER_PARTS; p++) {
                    const float4 more = __ldcg((const float4*)(at + (size_t)p * rank));
                    x.x += more.x, x.y += more.y, x.z += more.z, x.w += more.w;
                }
#pragma unroll
                for (int r = 0; r < 2; r++)
                    part[r][m] = fmaf(f[r].w, x.w, fmaf(f[r].z, x.z, fmaf(f[r].y, x.y, fmaf(f[r].x, x.x, part[r][m]))));
            }
        }
#if UFORMAT == 8
        const float2 scale = f16x2(*(const unsigned*)(u_scales + entry[3] + 2 * g));
#else
        const float2 scale = make_float2(1.0f, 1.0f);
#endif
#pragma unroll
        for (int m = 0; m < TERM_GROUP; m++) {
            sums[0][m] = fmaf(part[0][m], scale.x, sums[0][m]);
            sums[1][m] = fmaf(part[1][m], scale.y, sums[1][m]);
        }
    }
}
#endif

#if SPARSE
// A run of sparse entries of a row tile, as a warp works on it: lane l has every second entry of
// row l / 2. The run's first 8 words say where the entries of its 16 rows end; an entry is f16
// value << 16 | row << 12 | column. Runs are loaded in steps, so that those of several runs can be
// on their way at once.
constexpr int RUN_BATCH = TERM_TOKENS == 1 ? 10 : 3; // entries of a lane that are loaded ahead
struct Run {
    unsigned offset, end_offset;  // in s
    int first, end;               // of this lane's entries, from the run's first
    unsigned entry[RUN_BATCH];
};
__device__ __forceinline__ void load_offsets(Run& r, const unsigned* offsets, bool there) {
    r.offset = there ? offsets[0] : 0u;
    r.end_offset = there ? offsets[1] : 0u;
}
__device__ __forceinline__ void load_ends(Run& r, const unsigned* s, int lane) {
    const int row = lane / 2;
    const bool some = r.end_offset > r.offset;
    const unsigned word = some ? s[r.offset + row / 2] : 0u, before = some && row ? s[r.offset + (row - 1) / 2] : 0u;
    r.end = (int)(row & 1 ? word >> 16 : word & 0xffffu);
    r.first = (int)((row - 1) & 1 ? before >> 16 : before & 0xffffu) + lane % 2;
}
__device__ __forceinline__ void load_entries(Run& r, const unsigned* s) {
#pragma unroll
    for (int b = 0; b < RUN_BATCH; b++) r.entry[b] = r.first + 2 * b < r.end ? s[r.offset + 8 + r.first + 2 * b] : 0u;
}
// sums += entries · x for `tokens` rows of x from `first_token` on.
__device__ __forceinline__ void multiply_run(Run& r, const Input& in, int first_token, int tokens, const unsigned* s, int first_column, float (&sums)[TERM_GROUP]) {
    while (r.first < r.end) {
#pragma unroll
        for (int b = 0; b < RUN_BATCH; b++) {
            const float value = f16_value(r.entry[b] >> 16);
            const int k = first_column + (int)(r.entry[b] & 4095u); // the run's first where there is no entry
#pragma unroll
            for (int m = 0; m < TERM_GROUP; m++) {
                const float x = input1(in, first_token + min(m, tokens - 1), k);
                sums[m] = r.first + 2 * b < r.end ? fmaf(value, x, sums[m]) : sums[m]; // x may be NaN
            }
        }
        r.first += 2 * RUN_BATCH;
        load_entries(r, s);
    }
}
#endif

#if LOWRANK || SPARSE
// Puts both down as [tokens, 16]: `outer` as low_rank_outer leaves it, `sparse` as sparse_run.
__device__ __forceinline__ void put_terms(const float (&outer)[2][TERM_GROUP], const float (&sparse)[TERM_GROUP], float* slot, int tokens, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < TERM_GROUP; m++) {
        float low = outer[0][m], high = outer[1][m], entries = sparse[m];
        low += __shfl_xor_sync(HLRC_FULL_WARP, low, 1), high += __shfl_xor_sync(HLRC_FULL_WARP, high, 1);
        low += __shfl_xor_sync(HLRC_FULL_WARP, low, 2), high += __shfl_xor_sync(HLRC_FULL_WARP, high, 2);
        entries += __shfl_xor_sync(HLRC_FULL_WARP, entries, 1);
        // Lane l has row l / 2 of the entries; rows g and g + 8 are with lanes 2 g and 2 g + 16.
        const float entries_low = __shfl_sync(HLRC_FULL_WARP, entries, 2 * g), entries_high = __shfl_sync(HLRC_FULL_WARP, entries, 2 * g + 16);
        if (t == 0 && m < tokens) slot[m * 16 + g] = low + entries_low, slot[m * 16 + g + 8] = high + entries_high;
    }
}
#endif
