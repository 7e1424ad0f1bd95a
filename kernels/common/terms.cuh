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
#define INNER_PARTS_LOG 3
// Tokens that a loop over a term sees to at once, so that sums fit into registers.
#define TERM_GROUP (TERM_TOKENS > 2 ? 2 : TERM_TOKENS)
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

// Asks for what `low_rank_inner` reads.
__device__ __forceinline__ void prefetch_inner(const unsigned char* v, const half* v_scales, const unsigned*& tile, int i, int part, int parts_log, int lane) {
    while (i >= (int)(tile[0] + (tile[1] + 15) / 16 * 16)) tile += 6;
    const unsigned start = tile[4];
    [[maybe_unused]] const unsigned scales = tile[5];
    const int row = i - (int)tile[0], cols = (int)tile[3], words = (cols + V_VALUES - 1) / V_VALUES;
    const int first = words * part >> parts_log, end = words * (part + 1) >> parts_log;
    if (row >= (int)tile[1]) return;
    prefetch_range((const uint4*)v + start + (size_t)row * words + first, (size_t)(end - first) * 16, lane, 32);
#if VFORMAT <= 8
    const int width = VFORMAT == 8 ? 64 : 32;
    prefetch_range(v_scales + scales + (size_t)row * ((cols + width - 1) / width) + first * V_VALUES / width, (size_t)(end - first) * V_VALUES / width * 2 + 2, lane, 32);
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
                                               const unsigned*& tile, float* h, int rank, int i, int part, int parts_log, int lane) {
    while (i >= (int)(tile[0] + (tile[1] + 15) / 16 * 16)) tile += 6;
    const int row = i - (int)tile[0], col0 = (int)tile[2], cols = (int)tile[3];
    float sums[TERM_GROUP];
#pragma unroll
    for (int m = 0; m < TERM_GROUP; m++) sums[m] = 0.0f;
    if (row < (int)tile[1]) {
        const int words = (cols + V_VALUES - 1) / V_VALUES, end = words * (part + 1) >> parts_log;
        const uint4* w = (const uint4*)v + tile[4] + (size_t)row * words;
#if VFORMAT <= 8
        const int width = VFORMAT == 8 ? 64 : 32;
        const half* scales = v_scales + tile[5] + (size_t)row * ((cols + width - 1) / width);
#endif
        // Words on their way, and inputs, as registers allow.
        constexpr int QUADS = V_VALUES / 4, ROOM = XIN == 1 || XIN == 2 ? 4 : 8, BATCH = TERM_TOKENS > 1 || QUADS > ROOM ? 1 : ROOM / QUADS < 4 ? ROOM / QUADS : 4;
        constexpr bool AHEAD = TERM_TOKENS == 1 && QUADS <= ROOM;
        for (int first = (words * part >> parts_log) + lane; first < end; first += 32 * BATCH) {
            uint4 word[BATCH];
            float scale[BATCH];
            float4 x[BATCH][QUADS];
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
                if (AHEAD)
#pragma unroll
                    for (int quad = 0; quad < QUADS; quad++) x[b][quad] = input4(in, first_token, col0 + c * V_VALUES + 4 * quad, VECTORS);
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int c = min(first + 32 * b, end - 1);
                float part_sums[TERM_GROUP];
#pragma unroll
                for (int m = 0; m < TERM_GROUP; m++) part_sums[m] = 0.0f;
#pragma unroll
                for (int quad = 0; quad < QUADS; quad++) {
                    const int k = c * V_VALUES + 4 * quad;
                    float4 f = factor4(word[b], quad);
                    // Beyond the block's columns is padding.
                    f.x = k < cols ? f.x : 0.0f, f.y = k + 1 < cols ? f.y : 0.0f;
                    f.z = k + 2 < cols ? f.z : 0.0f, f.w = k + 3 < cols ? f.w : 0.0f;
#pragma unroll
                    for (int m = 0; m < TERM_GROUP; m++) {
                        const float4 v = AHEAD ? x[b][quad] : input4(in, first_token + min(m, tokens - 1), col0 + k, VECTORS);
                        part_sums[m] = fmaf(f.w, v.w, fmaf(f.z, v.z, fmaf(f.y, v.y, fmaf(f.x, v.x, part_sums[m]))));
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
        if (lane < (parts_log ? 1 : INNER_PARTS) && m < tokens) h[((size_t)m * INNER_PARTS + part + lane) * rank + i] = lane ? 0.0f : s;
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

// Steps of 16 ranks of a row tile of U, as a lane (g, t) holds them: ranks 4t.. + 3 of rows g and g + 8. Of
// u_tiles 4 words are one factor: its first step in u, offset in h, steps, offset in scales;
// u_index [tiles + 1] says which a tile has. The first steps are loaded while h is not there yet.
constexpr int OUTER_WORDS = UFORMAT / 4, OUTER_STEPS = TERM_TOKENS > 1 || OUTER_WORDS == 8 ? 1 : OUTER_WORDS == 4 ? 2 : 4;
struct Outer {
    unsigned next, end; // factors
    unsigned start, inner, steps, scales;
    unsigned words[OUTER_STEPS][OUTER_WORDS];
    unsigned scale[UFORMAT == 4 ? (OUTER_STEPS + 1) / 2 : 1];
};
__device__ __forceinline__ void load_steps(Outer& o, const unsigned char* u, const half* u_scales, unsigned first, int lane) {
    [[maybe_unused]] const int g = lane / 4;
#pragma unroll
    for (int s = 0; s < OUTER_STEPS; s++) {
        const unsigned char* const from = u + (size_t)(o.start + min(first + s, max(o.steps, 1u) - 1)) * (32 * UFORMAT) + lane * UFORMAT;
#if UFORMAT == 32
        const uint4 low = ((const uint4*)from)[0], high = ((const uint4*)from)[1];
        const unsigned all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#elif UFORMAT == 16
        const uint4 w = *(const uint4*)from;
        const unsigned all[4] = {w.x, w.y, w.z, w.w};
#elif UFORMAT == 8
        const uint2 w = *(const uint2*)from;
        const unsigned all[2] = {w.x, w.y};
#else
        const unsigned all[1] = {*(const unsigned*)from};
        if (s % 2 == 0) o.scale[s / 2] = *(const unsigned*)(u_scales + o.scales + min(first + s, max(o.steps, 1u) - 1) / 2 * 16 + 2 * g);
#endif
#pragma unroll
        for (int i = 0; i < OUTER_WORDS; i++) o.words[s][i] = all[i];
    }
#if UFORMAT == 8
    o.scale[0] = *(const unsigned*)(u_scales + o.scales + 2 * g);
#endif
}
// Which factors a tile has, and the next of them, if there is one.
__device__ __forceinline__ void load_factors(Outer& o, const unsigned* u_index, size_t tile) { o.next = u_index[tile], o.end = u_index[tile + 1]; }
__device__ __forceinline__ void load_factor(Outer& o, const unsigned* u_tiles) {
    const bool there = o.next < o.end;
    const uint4 entry = *(const uint4*)(u_tiles + 4 * (size_t)(there ? o.next : 0)); // some factor: what follows is read, not used
    o.next += there;
    o.start = entry.x, o.inner = entry.y, o.steps = there ? entry.z : 0, o.scales = entry.w;
}
// Four ranks of rows g and g + 8 of a loaded step.
__device__ __forceinline__ void outer_values(const Outer& o, int s, unsigned step, float4 (&f)[2]) {
    const unsigned(&w)[OUTER_WORDS] = o.words[s];
    (void)step;
#if UFORMAT == 32
    f[0] = make_float4(__uint_as_float(w[0]), __uint_as_float(w[1]), __uint_as_float(w[2]), __uint_as_float(w[3]));
    f[1] = make_float4(__uint_as_float(w[4]), __uint_as_float(w[5]), __uint_as_float(w[6]), __uint_as_float(w[7]));
#elif UFORMAT == 16
    const float2 a = f16x2(w[0]), b = f16x2(w[1]), c = f16x2(w[2]), d = f16x2(w[3]);
    f[0] = make_float4(a.x, a.y, b.x, b.y), f[1] = make_float4(c.x, c.y, d.x, d.y);
#elif UFORMAT == 8
#pragma unroll
    for (int r = 0; r < 2; r++) f[r] = make_float4((float)(signed char)w[r], (float)(signed char)(w[r] >> 8), (float)(signed char)(w[r] >> 16), (float)((int)w[r] >> 24));
#else
    // A scale for 32 ranks, two steps; where one step is loaded at a time, its own.
    const float2 scale = f16x2(o.scale[s / 2]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float by = r ? scale.y : scale.x;
        const unsigned codes = w[0] >> (4 * r);
        f[r] = make_float4(by * (float)((int)(codes & 15u) - 8), by * (float)((int)(codes >> 8 & 15u) - 8), by * (float)((int)(codes >> 16 & 15u) - 8),
                           by * (float)((int)(codes >> 24 & 15u) - 8));
    }
#endif
}

// Adds U h of a row tile, whose first steps are loaded, to a lane's sums of rows g and g + 8.
__device__ __forceinline__ void low_rank_outer(Outer& o, const unsigned char* u, const half* u_scales, const unsigned* u_tiles, const float* h, int rank,
                                               int tokens, int lane, float (&sums)[2][TERM_GROUP]) {
    while (o.steps > 0) {
        float part[2][TERM_GROUP];
#pragma unroll
        for (int m = 0; m < TERM_GROUP; m++) part[0][m] = part[1][m] = 0.0f;
        for (unsigned first = 0; first < o.steps; first += OUTER_STEPS) {
            if (first) load_steps(o, u, u_scales, first, lane);
            // Other blocks wrote h: from L2. A lane loads one of the 8 parts of four ranks.
            const float* const from = h + o.inner + lane % 4 * 4 + (size_t)(lane / 4) * rank;
            float4 x[OUTER_STEPS][TERM_GROUP];
#pragma unroll
            for (int s = 0; s < OUTER_STEPS; s++)
#pragma unroll
                for (int m = 0; m < TERM_GROUP; m++)
                    x[s][m] = __ldcg((const float4*)(from + (size_t)min(m, tokens - 1) * INNER_PARTS * rank + 16 * min(first + s, o.steps - 1)));
#pragma unroll
            for (int s = 0; s < OUTER_STEPS; s++) {
                float4 f[2];
                outer_values(o, s, first + s, f);
#pragma unroll
                for (int m = 0; m < TERM_GROUP; m++) {
                    float4 v = x[s][m];
                    // The same order of parts in every lane.
#pragma unroll
                    for (int d = 4; d < 32; d *= 2) {
                        v.x += __shfl_xor_sync(HLRC_FULL_WARP, v.x, d), v.y += __shfl_xor_sync(HLRC_FULL_WARP, v.y, d);
                        v.z += __shfl_xor_sync(HLRC_FULL_WARP, v.z, d), v.w += __shfl_xor_sync(HLRC_FULL_WARP, v.w, d);
                    }
                    if (first + s < o.steps)
#pragma unroll
                        for (int r = 0; r < 2; r++)
                            part[r][m] = fmaf(f[r].w, v.w, fmaf(f[r].z, v.z, fmaf(f[r].y, v.y, fmaf(f[r].x, v.x, part[r][m]))));
                }
            }
        }
#if UFORMAT == 8
        const float2 scale = f16x2(o.scale[0]);
#else
        const float2 scale = make_float2(1.0f, 1.0f);
#endif
#pragma unroll
        for (int m = 0; m < TERM_GROUP; m++) {
            sums[0][m] = fmaf(part[0][m], scale.x, sums[0][m]);
            sums[1][m] = fmaf(part[1][m], scale.y, sums[1][m]);
        }
        load_factor(o, u_tiles);
        if (o.steps > 0) load_steps(o, u, u_scales, 0, lane);
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
