// y = epilogue((Q + S + U V) x) for M tokens in one launch: the linear of decoding.
//
// kernel: fused_linear abi=3
// defines: FORMAT=0..5 BITS=0,2,3,4,8..16 GROUP=0,32,64,128,256 ZEROS=0,1 M=1..8 ACT=0,1 XIN=0..3 XSCALE=0,1 LOWRANK=0,1 VFORMAT=0,4,8,16,32 UFORMAT=0,4,8,16,32 SPARSE=0,1 ACTIVATION=0..5 GLU=0,1 BIAS=0,1 RESIDUAL=0,1 SOFTCAP=0,1 EXPERTS=0..2 SPLIT=0,1 STAGES=2..8 WARPS=5..16 ROTATED=0..2
// args: x:const f32* xq:const s8* xs:const f32* xsum:const i32* gain:const f32* beta:const f32* xscale:const f32* xr:const f32* q:const u8* scales:const f16* zeros:const u8* v:const u8* v_scales:const f16* v_tiles:const u32* v_index:const u32* u:const u8* u_scales:const f16* u_tiles:const u32* u_index:const u32* s:const u32* s_offsets:const u32* bias:const f32* residual:const f32* ids:const i32* weights:const f32* h:f32* partial:f32* counter:u32* y:f32* y_terms:f32* rows:i32 cols:i32 tiles:i32 ldx:i32 ldy:i32 ldr:i32 rank:i32 top_k:i32 ldxr:i32 ldt:i32 eps:f32 scale:f32 softcap:f32
// block: 512
//
// How it works. All units of weights (16 rows × 256 columns) of the launch stand in one line, row
// tile after row tile; each warp of the grid takes an equal run of them, which is contiguous in
// memory, and streams it through a ring of STAGES units in shared memory: a lane copies with
// cp.async what it will read itself, so that no barrier stands in the loop. Codes become operands
// A of an integer mma with one AND a register (packs.cuh); the activations, rounded to int8 with a
// scale per 32, are operand B. Sums of a row tile are put down where a warp leaves it, and added in
// the order of the warps behind one barrier at the end; what a tile that is split between blocks
// (SPLIT) lacks comes from later blocks through `partial`, in the order of the blocks. Nothing is
// added atomically: results do not depend on scheduling, and those of a token not on M.
// Of WARPS warps (16, or fewer where shared memory is short) 4 see to the other terms where there are any:
// eighths of rows of V, each by one warp of the grid, S x, and, when all of h is there, U h. The others never
// wait for them but where inputs are rounded. What they read is loaded before inputs are there; V x is made
// beside the rounding where it is short, and one release of a block publishes it; the warp that is last to
// see all of h sets the counters back.
//
// Q x is in int8 (ACT 0) or f16 (ACT 1), float weights, U V x and S x in f32. Trellis codes are f16
// integers, and products with int8 activations as exact as those of int8.
//
// ROTATED: Q is kept in other coordinates than the rest. 1: its input is xr, rows ldxr apart, that of
// U V and S is x. 2: the results too: y gets scale · Q xr, y_terms (rows ldt apart) gets scale ·
// (S + U V) x + residual; the launch that turns y back adds both. XIN is 0 or 3, and of the
// epilogue only scale and residual are left.
//
// y = a(scale · … ) in this order: + bias, activation (GLU: a(gate) · up), · scale, softcap
// tanh(y / c) · c, + residual.
//
// Packs: packs.cuh (q, scales, zeros), trellis.cuh (q, a scale per row tile; `zeros` is the table of
// columns), terms.cuh (u, v, s). GLU: row tile 2j is rows 16 j.. of the
// gate, 2j + 1 those of up; y has half as many rows. Bias is in the order of the packed rows.
// EXPERTS: tiles of all experts follow one another, `tiles` each. 1 (M = 1, grid.y = tokens ·
// top_k): row `slot` of y is expert ids[slot] of row slot / top_k of x. 2 (M = top_k, grid.y =
// tokens): row t of y is the sum over j of weights[t, j] · expert ids[t, j] of row t · top_k + j.
//
// Launch: block 32 · WARPS (512 unless WARPS is less); grid.x · grid.y at most what is resident at once where SPLIT or LOWRANK (blocks
// wait for one another). Dynamic shared memory, rounded up to 16 at each +, with
// P = (GLU ? 2 : 1) · (EXPERTS == 2 ? M : 1), R = SPLIT ? ceil(ceil(tiles · P' · units / grid.x) /
// units) + 1 : P · ceil(tiles / (GLU ? 2 : 1) / grid.x), P' = (EXPERTS == 2 ? M : 1):
//   W · STAGES · UNIT_BYTES (W = LOWRANK or SPARSE ? (FORMAT == 5 ? 1 : WARPS − 4) : WARPS) + M · X_STRIDE + TABLE_BYTES + (R + WARPS) · 64 · M
//   + (LOWRANK or SPARSE: (R + WARPS) · 64 · (EXPERTS == 2 ? 1 : M)) + 128 + 96 · M
// UNIT_BYTES is 4096 for trellis codes, whose units are smaller at fewer than 8 bits: up to four lie
// in a ring then.
// counter: (2 + grid.x) · grid.y words, 0 before the first launch and after each. partial (SPLIT):
// grid.x · grid.y · P · 16 · M floats. h: [rows of x (EXPERTS: slots), 8, rank].
//
// Bytes: every weight once; x once a block.
//
// Ideas: weights as operand A, QTIP and EXL3; streams in fragment order, Marlin; partial tiles in
// a fixed order, stream-K; terms beside the quantized matrix in one launch, SpQR and Nunchaku.
#ifndef SPLIT
#define SPLIT 0
#endif
#ifndef ROTATED
#define ROTATED 0
#endif
#include "common/activation.cuh"
#include "common/stream.cuh"
#include "common/terms.cuh"

#define TERMS (LOWRANK || SPARSE)
// Warps that stream Q; the others see to the terms meanwhile.
#define STREAM_WARPS (TERMS ? (FORMAT == 5 ? 1 : WARPS - 4) : WARPS)
#define TERM_WARPS (WARPS - STREAM_WARPS)
#define TERMS_AHEAD (TERM_TOKENS == 1 && FORMAT != 4 && BITS != 3) // registers for what terms begin with, meanwhile
#define INNER_EARLY 8 // words of V that a lane multiplies beside the rounding of inputs, at most

extern "C" __global__ void __launch_bounds__(THREADS, 1)
fused_linear(const float* __restrict__ x, const signed char* __restrict__ xq, const float* __restrict__ xs, const int* __restrict__ xsum,
             const float* __restrict__ gain, const float* __restrict__ beta, const float* __restrict__ xscale, const float* __restrict__ xr,
             const unsigned char* __restrict__ q, const half* __restrict__ scales, const unsigned char* __restrict__ zeros,
             const unsigned char* __restrict__ v, const half* __restrict__ v_scales, const unsigned* __restrict__ v_tiles, const unsigned* __restrict__ v_index,
             const unsigned char* __restrict__ u, const half* __restrict__ u_scales, const unsigned* __restrict__ u_tiles, const unsigned* __restrict__ u_index,
             const unsigned* __restrict__ s, const unsigned* __restrict__ s_offsets, const float* __restrict__ bias, const float* residual,
             const int* __restrict__ ids, const float* __restrict__ weights, float* h, float* partial, unsigned* counter, float* y, float* y_terms,
             int rows, int cols, int tiles, int ldx, int ldy, int ldr, int rank, int top_k, int ldxr, int ldt, float eps, float scale, float softcap) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int block = (int)blockIdx.x, blocks = (int)gridDim.x, slot = (int)blockIdx.y;
    const Pack pack(cols, zeros);
    const int units = pack.units, lines = tiles * VIRTUAL;
    // Units and super tiles of this block, and rows whose sums it has. Divisions by what is known at run time
    // alone cost 0.1 us each, since nothing can start before them.
    const int super_units = SUPER * units;
#if SPLIT
    const Range range = block_range(lines, units, block, blocks);
    const int first_row = range.first / units, last_row = range.end > range.first ? (range.end - 1) / units : first_row;
    // Those that start here: their results are written here.
    const int first_super = (range.first + super_units - 1) / super_units, end_super = (range.end + super_units - 1) / super_units;
    const int slots = ((lines * units + blocks - 1) / blocks + units - 1) / units + 1 + WARPS;
#else
    const Supers own = own_supers(tiles / PAIR, block, blocks);
    const int first_super = own.first, end_super = own.end, first_row = first_super * SUPER, slots = SUPER * own.most + WARPS;
    const struct { int first, end; } range = {first_super * super_units, end_super * super_units};
#endif

    // Shared memory.
    HLRC_DYNAMIC_SHARED(shared);
    const int stride = X_STRIDE(pack.tiles);
    unsigned char* ring = shared;
    unsigned char* placed = ring + STREAM_WARPS * STAGES * UNIT_BYTES;
    float4* table = (float4*)(placed + M * stride);
    float* sums_slots = (float*)((unsigned char*)table + TABLE_BYTES(pack.tiles));
    float* term_slots = sums_slots + slots * 16 * M;
    float* scratch = term_slots + (TERMS ? slots * 16 * TERM_TOKENS : 0); // [M, WARPS], at least 32
    float* inverse = scratch + (M == 1 ? 32 : M * WARPS);
    float* mean = inverse + M;
    float* powers = mean + M;
    float* corrections = powers + M;

#if TERMS
    const int term_row = first_super * SUPER, term_rows = (end_super - first_super) * SUPER;
    const int runs = SPARSE ? (cols + SPARSE_COLUMNS - 1) / SPARSE_COLUMNS : 1;
#endif

    // The stream starts before anything that an earlier grid made is needed; experts are.
    start_next_grid();
#if EXPERTS
    wait_previous_grid();
    ids += EXPERTS == 2 ? slot * top_k : slot;
    counter += (size_t)slot * (2 + blocks);
    partial += (size_t)slot * blocks * SUPER * 16 * M;
    h += (size_t)slot * rank * INNER_PARTS * (EXPERTS == 2 ? M : 1);
#endif
    const Weights w = {q, (const unsigned char*)scales, zeros, ids, tiles};
#if TERMS
    // The items of a warp of terms: runs of entries of row tiles, or row tiles. What does not depend on inputs is
    // loaded here: behind the stream's bytes each load takes 1 to 3 us (docs/kernel-notes.md, version 8).
    const int from = share(term_rows * runs, TERM_WARPS, min(warp, TERM_WARPS)), to = share(term_rows * runs, TERM_WARPS, min(warp + 1, TERM_WARPS));
    const int from_line = SPARSE ? from / runs : from;
#if LOWRANK
    Outer outer = {};
    const int parts_log = cols >= INNER_LONG ? INNER_PARTS_LOG : 0, items = (rank * VIRTUAL) << parts_log;
#endif
#if SPARSE
    Run now = {}, next = {}, later = {}, last = {};
    int ahead_line = 0, ahead_run = 0; // of the run whose place is loaded next
    const auto load_place = [&](Run& r) {
        const bool there = ahead_line * runs + ahead_run < to;
        load_offsets(r, s_offsets + packed_tile(w, term_row + (there ? ahead_line : 0)) * runs + ahead_run, there);
        if (++ahead_run == runs) ahead_run = 0, ahead_line++;
    };
#endif
    // Three steps, each of loads whose addresses the one before has loaded.
    const auto load_places = [&] {
        if (from >= to) return;
#if SPARSE
        ahead_line = from_line, ahead_run = from - from_line * runs;
        load_place(now), load_place(next), load_place(later);
#endif
#if LOWRANK
        load_factors(outer, u_index, packed_tile(w, term_row + min(from_line, term_rows - 1)));
#endif
    };
    const auto load_heads = [&] {
        if (from >= to) return;
#if LOWRANK
        load_factor(outer, u_tiles);
#endif
#if SPARSE
        load_ends(now, s, lane), load_ends(next, s, lane);
#endif
    };
    const auto load_contents = [&] {
        if (from >= to) return;
#if LOWRANK
        load_steps(outer, u, u_scales, 0, lane);
#endif
#if SPARSE
        load_entries(now, s);
#endif
    };
    if (warp < TERM_WARPS) {
#if LOWRANK && !EXPERTS
        const unsigned* tile = v_tiles;
        for (int item = warp + block * TERM_WARPS; item < items; item += TERM_WARPS * blocks)
            prefetch_inner(v, v_scales, tile, item >> parts_log, item & ((1 << parts_log) - 1), parts_log, lane);
#endif
        if (TERMS_AHEAD) load_places(), load_heads(), load_contents();
#if SPARSE && !EXPERTS
        if (term_rows > 0) { // all of the block's entries, to L2
            const unsigned first = s_offsets[term_row * runs], end = s_offsets[(term_row + term_rows) * runs];
            prefetch_range(s + first, (size_t)(end - first) * 4, warp * 32 + lane, TERM_WARPS * 32);
        }
#endif
    }
#endif
    const int stream_warp = warp - TERM_WARPS;
    const int warp_first = range.first + share(range.end - range.first, STREAM_WARPS, max(stream_warp, 0));
    const int count = stream_warp < 0 ? 0 : range.first + share(range.end - range.first, STREAM_WARPS, stream_warp + 1) - warp_first;
    unsigned char* mine = ring + max(stream_warp, 0) * STAGES * UNIT_BYTES;
    Cursor ahead = {};
    ahead.row = first_row + (warp_first - first_row * units) / units, ahead.unit = warp_first - ahead.row * units;
    [[maybe_unused]] const int start_row = ahead.row;
    if (count > 0) seek(ahead, w, pack, lane);
#if FORMAT == 4
    // As many units on their way as there is room for, two to four.
    const int stage_bytes = 512 * load_columns(zeros, 0).widest(), stages = min(4, STAGES * UNIT_BYTES / stage_bytes);
#else
    constexpr int stage_bytes = UNIT_BYTES, stages = STAGES;
#endif
    const auto ask = [&](int from, int to) {
#pragma unroll
        for (int i = from; i < to; i++) {
            if (i < count) copy_and_advance(ahead, mine + i * stage_bytes, w, pack, lines, lane);
            async_commit();
        }
    };
    // Inputs that are rounded here are not to stand behind many weights (docs/kernel-notes.md, version 6).
    const int early = XIN == 3 ? stages : count > 5 ? 2 : 1;
    ask(0, early);

    // Activations.
#if !EXPERTS
    wait_previous_grid();
#endif
    Input in = {x, gain, beta, ldx, cols, (ldx & 3) == 0 && ((size_t)x & 15) == 0 && (cols & 3) == 0, inverse, mean};
#if EXPERTS
    in.x += (size_t)(EXPERTS == 2 ? slot * top_k : slot / top_k) * ldx;
#endif
    measure_inputs(in, eps, scratch);
#if LOWRANK
    // Part p of row i of V, for row j of x, is item (j rank + i) parts + p; a warp of terms takes some. Few are
    // multiplied here, beside the rounding of inputs, many behind it.
    const int inner_words = (cols * VFORMAT / 8 + (512 << parts_log) - 1) >> (9 + parts_log);
    const bool early_inner = items * inner_words * TERM_TOKENS <= INNER_EARLY * TERM_WARPS * blocks;
    const unsigned arrivals = early_inner ? blocks : TERM_WARPS * blocks;
    const auto inner = [&] {
        const unsigned *list = nullptr, *tile = nullptr;
        bool aligned = false;
        for (int item = warp + block * TERM_WARPS, last_j = -1; item < items; item += TERM_WARPS * blocks) {
            const int part = item & ((1 << parts_log) - 1), j = VIRTUAL == 1 ? 0 : (item >> parts_log) / rank, i = (item >> parts_log) - j * rank;
            if (j != last_j) { // rows follow one another: so do their blocks
                list = tile = v_tiles + (EXPERTS ? 6 * (size_t)v_index[ids[j]] : 0);
                aligned = in.vectors && aligned_inner(list, rank);
                last_j = j;
            }
#pragma unroll 1
            for (int m = 0; m < TERM_TOKENS; m += TERM_GROUP) {
                const int tokens = min(TERM_GROUP, TERM_TOKENS - m);
                float* const to_h = h + (size_t)(j + m) * INNER_PARTS * rank;
                if (aligned)
                    low_rank_inner<true>(in, j + m, tokens, v, v_scales, tile, to_h, rank, i, part, parts_log, lane);
                else
                    low_rank_inner<false>(in, j + m, tokens, v, v_scales, tile, to_h, rank, i, part, parts_log, lane);
            }
        }
    };
    if (early_inner && stream_warp < 0) inner();
    const int skip = early_inner ? 32 * TERM_WARPS : 0;
#else
    const int skip = 0;
#endif
    Input seen = in; // by Q
#if ROTATED
    seen.x = xr, seen.ld = ldxr, seen.vectors = (ldxr & 3) == 0 && ((size_t)xr & 15) == 0 && (cols & 3) == 0;
#endif
    place_inputs(skip, [&] { ask(early, stages); }, seen, xscale, xq, xs, xsum, pack, placed, stride, table, powers, corrections, scratch);
    __syncthreads();
#if LOWRANK
    if (early_inner && threadIdx.x == 0) add_release(counter, 1);
#endif

#if TERMS
    if (stream_warp < 0) {
#if LOWRANK
        if (!early_inner) {
            inner();
            __syncwarp();
            if (lane == 0) add_release(counter, 1);
        }
        bool waited = false;
        const auto await_inner = [&] {
            if (!waited) {
                while (load_acquire(counter) < arrivals) {}
                __syncwarp(); // every lane has seen it
                // Counters are left at 0, by the warp that is last to see all of h.
                if (lane == 0 && atomicAdd(counter + 1, 1) + 1 == (unsigned)(TERM_WARPS * blocks)) store_release(counter, 0), store_release(counter + 1, 0);
            }
            waited = true;
        };
#endif
#pragma unroll 1
        for (int m = 0; m < TERM_TOKENS; m += TERM_GROUP) {
            const int tokens = min(TERM_GROUP, TERM_TOKENS - m);
            float outer_sums[2][TERM_GROUP], sparse_sums[TERM_GROUP];
            if (m > 0 || !TERMS_AHEAD) load_places(), load_heads(), load_contents();
            int line = term_row + from_line, run = from - from_line * runs;
            for (int item = from; item < to; item++) {
                const int j = EXPERTS == 2 ? line % VIRTUAL : 0;
                if (item == from || run == 0)
#pragma unroll
                    for (int i = 0; i < TERM_GROUP; i++) outer_sums[0][i] = outer_sums[1][i] = sparse_sums[i] = 0.0f;
#if SPARSE
                load_place(last);
                load_ends(later, s, lane);
                load_entries(next, s);
                multiply_run(now, in, j + m, tokens, s, run * SPARSE_COLUMNS, sparse_sums);
                now = next, next = later, later = last;
#endif
#if LOWRANK
                if (run + 1 == runs) { // entries before: h may not be there yet
                    await_inner();
                    low_rank_outer(outer, u, u_scales, u_tiles, h + (size_t)(j + m) * INNER_PARTS * rank, rank, tokens, lane, outer_sums);
                    if (item + runs < to) load_factors(outer, u_index, packed_tile(w, line + 1)), load_factor(outer, u_tiles), load_steps(outer, u, u_scales, 0, lane);
                }
#endif
                if (item + 1 == to || run + 1 == runs)
                    put_terms(outer_sums, sparse_sums, term_slots + (size_t)(line - term_row + warp) * 16 * TERM_TOKENS + 16 * m, tokens, lane);
                if (++run == runs) run = 0, line++;
            }
        }
#if LOWRANK
        await_inner();
#endif
    } else
#endif
    {
        // The stream.
#if FORMAT != 5
        const Placed placed_here = placed_for(placed, stride, table, lane);
#endif
        float sums[2][SUMS];
#pragma unroll
        for (int c = 0; c < SUMS; c++) sums[0][c] = sums[1][c] = 0.0f;
        int sums_slot = start_row - first_row + stream_warp, unit = warp_first - start_row * units, stage = 0;
#if FORMAT == 4
        Columns columns = load_columns(zeros, unit);
#endif
        for (int i = 0; i < count; i++) {
#if FORMAT == 4
            if (stages == 4) async_wait<3>();
            else if (stages == 3) async_wait<2>();
            else async_wait<1>();
#else
            async_wait<STAGES - 1>();
#endif
            __syncwarp();
            unsigned char* here = mine + stage * stage_bytes;
#if FORMAT == 4
            multiply_unit(here, unit, columns, placed_here, lane, sums);
#elif FORMAT != 5
            const int chunks = pack.chunks(unit), groups = pack.groups_of(unit);
            if (chunks == UNIT_CHUNKS && groups == UNIT_GROUPS)
                multiply_unit<true>(here, unit, chunks, groups, placed_here, stride, lane, sums);
            else
                multiply_unit<false>(here, unit, chunks, groups, placed_here, stride, lane, sums);
#endif
            __syncwarp(); // scales are read
            if (i + stages < count) copy_and_advance(ahead, here, w, pack, lines, lane);
            async_commit();
            stage = stage + 1 == stages ? 0 : stage + 1;
            if (++unit == units || i + 1 == count) {
                put_sums(sums, sums_slots + (size_t)sums_slot * 16 * M, lane);
                unit = 0;
                sums_slot++;
            }
#if FORMAT == 4
            columns = load_columns(zeros, unit);
#endif
        }
    }
    __syncthreads();

#if SPLIT
    // What this block has of a super tile that starts in an earlier one.
    if (range.first % super_units && range.end > range.first) {
        const int super = range.first / super_units;
        float* out = partial + (size_t)block * SUPER * 16 * M;
        for (int e = threadIdx.x; e < SUPER * 16 * M; e += THREADS) {
            const int line = super * SUPER + e / (16 * M);
            const bool touched = line >= first_row && line <= last_row;
            out[e] = touched ? gather_sums<STREAM_WARPS>(sums_slots, 16 * M, range.first, range.end, line, units, first_row, e % (16 * M)) : 0.0f;
        }
        __syncthreads();
        if (threadIdx.x == 0) store_release(counter + 2 + block, 1);
    }
    // Later blocks have the rest of the last super tile that starts here.
    int helpers = block + 1;
    if (end_super > first_super)
        for (; helpers < blocks; helpers++) {
            const Range other = block_range(lines, units, helpers, blocks);
            if (other.first >= end_super * super_units || other.first == other.end) break;
            if (threadIdx.x == 0)
                while (load_acquire(counter + 2 + helpers) == 0) {}
        }
    __syncthreads();
#endif

    // Results: 16 outputs of a token lie side by side.
#if FORMAT == 4 && !SPLIT // whose loop leaves no registers
    const Supers results = own_supers(tiles / PAIR, anew(block), blocks);
    const struct { int first, end; } units_here = {results.first * super_units, results.end * super_units};
    const int row_here = results.first * SUPER;
#else
    [[maybe_unused]] const struct { int first, end; } results = {first_super, end_super}, units_here = {range.first, range.end};
    [[maybe_unused]] const int row_here = first_row;
#endif
    constexpr int OUT_TOKENS = EXPERTS == 2 ? 1 : M;
    for (int e = threadIdx.x; e < (results.end - results.first) * 16 * OUT_TOKENS; e += THREADS) {
        const int super = results.first + e / (16 * OUT_TOKENS), m = e / 16 % OUT_TOKENS, r = e % 16;
        float value[PAIR];
        [[maybe_unused]] float rest = 0.0f; // of the terms, where they have other coordinates
#pragma unroll
        for (int p = 0; p < PAIR; p++) {
            value[p] = 0.0f;
#pragma unroll
            for (int j = 0; j < VIRTUAL; j++) {
                [[maybe_unused]] const int line = super * SUPER + p * VIRTUAL + j, at = (EXPERTS == 2 ? j : m) * 16 + r;
                float sum = 0.0f;
#if FORMAT != 5
#if SPLIT
                if (line <= last_row)
#endif
                    sum = gather_sums<STREAM_WARPS>(sums_slots, 16 * M, units_here.first, units_here.end, line, units, row_here, at);
#if SPLIT
                if (super + 1 == end_super)
                    for (int b = block + 1; b < helpers; b++)
                        sum += __ldcg(partial + ((size_t)b * SUPER + p * VIRTUAL + j) * 16 * M + at);
#endif
#if FORMAT == 0 && GROUP == 0
                const size_t tile = packed_tile(w, line);
#if ZEROS
                sum = fmaf(row_zero(zeros + tile * ZERO_BYTES, r), corrections[at / 16], sum);
#endif
                sum *= __half2float(scales[tile * 16 + 2 * (r % 8) + r / 8]);
#elif FORMAT == 4
                sum *= __half2float(scales[packed_tile(w, line)]) * TRELLIS_STEP;
#endif
#if CODED && ACT == 1
                sum *= powers[at / 16];
#endif
#endif
#if TERMS
                const float other = gather_sums<TERM_WARPS>(term_slots, 16 * TERM_TOKENS, term_row * runs, (term_row + term_rows) * runs, line, runs, term_row, m * 16 + r);
                if (ROTATED == 2) rest += other;
                else sum += other;
#endif
                if (EXPERTS == 2) sum *= weights[slot * top_k + j];
                value[p] += sum;
            }
#if BIAS
            value[p] += bias[(super * PAIR + p) * 16 + r];
#endif
        }
        float out = activate<ACTIVATION>(value[0]);
#if GLU
        out *= value[1];
#endif
        out *= scale;
#if SOFTCAP
        out = softcap * tanhf(out / softcap);
#endif
        const int out_row = super * 16 + r, token = EXPERTS ? slot : m;
        if (out_row < rows / PAIR) {
#if ROTATED == 2
            rest *= scale;
#if RESIDUAL
            rest += residual[(size_t)token * ldr + out_row];
#endif
            y_terms[(size_t)token * ldt + out_row] = rest;
#elif RESIDUAL
            out += residual[(size_t)token * ldr + out_row];
#endif
            y[(size_t)token * ldy + out_row] = out;
        }
    }
#if SPLIT
    // Counters are left at 0; nobody reads those of this launch any more.
    if (threadIdx.x == 0)
        for (int b = block + 1; b < helpers; b++) store_release(counter + 2 + b, 0);
#endif
}

#ifdef HLRC_EMU
HLRC_EMU_EXPORT(fused_linear)
#endif
