// The launch of kernels/fused_linear.cu: its arguments in order and its shared memory.
#pragma once
#include "linear_case.hpp"

// Bytes of dynamic shared memory, by the formula of the kernel's header.
inline size_t fused_shared(const Settings& s, int cols, int tiles, int grid) {
    const long format = s["FORMAT"], bits = s["BITS"], group = s["GROUP"], m = s["M"];
    const bool codes = format == 0, trellis = format == 4, combine = s["EXPERTS"] == 2;
    const long chunk_tiles = codes && (bits == 2 || bits == 3) ? 2 : 1, unit_tiles = codes || trellis || format == 5 ? 4 : 1;
    const long chunk_bytes = codes ? chunk_tiles * 128 * bits : trellis ? 1024 : format == 5 ? 0 : 2048;
    const long unit_groups = codes && group ? unit_tiles * 64 / group : 0;
    const long zero_bytes = s["ZEROS"] ? (bits == 8 ? 16 : 8) : 0;
    const long unit_codes = unit_tiles / chunk_tiles * chunk_bytes;
    const long unit_bytes = (unit_codes + unit_groups * (32 + zero_bytes) + 15) / 16 * 16;
    const long stages = s["STAGES"] ? s["STAGES"] : unit_codes == 0 || unit_codes > 2048 ? 2 : 4;
    const long column_tiles = (cols + 64 * chunk_tiles - 1) / (64 * chunk_tiles) * chunk_tiles;
    const long units = format == 5 ? 1 : (column_tiles * (format == 3 ? 2 : 1) + unit_tiles - 1) / unit_tiles;
    const long x_bytes = format == 5 ? 0 : trellis ? column_tiles * (s["ACT"] ? 128 : 256) : !codes ? column_tiles * 256 : s["ACT"] ? column_tiles * 128 : column_tiles * 64;
    const long padding = !x_bytes ? 0 : trellis ? (s["ACT"] ? 32 : 64) : codes && !s["ACT"] ? (column_tiles % 2 ? 0 : 64) : 16;
    const long table = (codes || trellis) && !s["ACT"] ? column_tiles * (m == 1 ? 1 : (m + 1) / 2 * 2) * 16 : 0;
    const long pair = s["GLU"] ? 2 : 1, virtual_rows = combine ? m : 1, super = pair * virtual_rows;
    const bool terms = s["LOWRANK"] || s["SPARSE"];
    const long all = s["WARPS"], warps = terms ? format == 5 ? 1 : all - 4 : all;
    long slots;
    if (s["SPLIT"]) slots = ((tiles * virtual_rows * units + grid - 1) / grid + units - 1) / units + 1 + all;
    else slots = super * ((tiles / pair + grid - 1) / grid) + all;
    return warps * stages * unit_bytes + m * (x_bytes + padding) + table + slots * 64 * m + (terms ? slots * 64 * (combine ? 1 : m) : 0) + 128 + 96 * m;
}
inline int fused_super(const Settings& s) { return (s["GLU"] ? 2 : 1) * (s["EXPERTS"] == 2 ? (int)s["M"] : 1); }
inline int fused_grid_y(const Settings& s) {
    return s["EXPERTS"] == 1 ? (int)(s["tokens"] * s["top_k"]) : s["EXPERTS"] == 2 ? (int)s["tokens"] : 1;
}

// What the kernel's arguments point to, on whichever device.
struct FusedPointers {
    const void *x, *xq, *xs, *xsum, *gain, *beta, *xscale, *xr, *q, *scales, *zeros, *v, *v_scales, *v_tiles, *v_index, *u, *u_scales, *u_tiles,
        *u_index, *s, *s_offsets, *bias, *residual, *ids, *weights;
    void *h, *partial, *counter, *y, *y_terms;
    int rows, cols, tiles, ldx, ldy, ldr, rank, top_k, ldxr, ldt;
    float eps, scale, softcap;
    // Addresses of all arguments, as launches want them.
    std::vector<void*> arguments() {
        std::vector<void*> a;
        for (const void** p = &x; p <= &weights; p++) a.push_back((void*)p);
        for (void** p = &h; p <= &y_terms; p++) a.push_back(p);
        for (int* p = &rows; p <= &ldt; p++) a.push_back(p);
        for (float* p = &eps; p <= &softcap; p++) a.push_back(p);
        return a;
    }
};
