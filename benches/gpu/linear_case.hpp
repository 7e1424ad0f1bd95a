// A random linear: its matrix, its packs as kernels/common/packs.cuh and terms.cuh describe them,
// and its outputs in f64. Shared by the GPU bench and the emulation tests; knows no CUDA.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ULL + 0x1234567) {}
    uint32_t bits() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return (uint32_t)(state * 0x2545f4914f6cdd1dULL >> 32);
    }
    double uniform() { return (bits() + 0.5) / 4294967296.0; }
    double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()); }
    int below(int n) { return (int)(bits() % (uint32_t)n); }
};

inline uint16_t to_f16(double v) {
    float f = (float)v;
    uint32_t b;
    memcpy(&b, &f, 4);
    const uint32_t sign = b >> 16 & 0x8000, mag = b & 0x7fffffff;
    if (mag >= 0x47800000) return (uint16_t)(sign | 0x7c00);
    if (mag < 0x38800000) return (uint16_t)(sign | (uint32_t)std::nearbyint(std::fabs((double)f) * 16777216.0));
    const uint32_t r = mag + 0xfff + (mag >> 13 & 1);
    return (uint16_t)(sign | (r - 0x38000000) >> 13);
}
inline double from_f16(uint16_t h) {
    const int e = h >> 10 & 31, m = h & 1023;
    const double v = e ? std::ldexp(1024.0 + m, e - 25) : std::ldexp((double)m, -24);
    return h & 0x8000 ? -v : v;
}

// Defines of a kernel variant and sizes of a case, by name.
struct Settings {
    std::map<std::string, long> values;
    long operator[](const char* name) const {
        const auto it = values.find(name);
        if (it != values.end()) return it->second;
        static const std::map<std::string, long> otherwise = {{"WARPS", 16},  {"BITS", 4},   {"GROUP", 64}, {"M", 1},          
                                                              {"VFORMAT", 8}, {"UFORMAT", 8}, {"rows", 64},     {"cols", 256},
                                                              {"grid", 4},    {"top_k", 1},   {"experts", 1},   {"rank", 16},
                                                              {"tokens", 1},  {"per_mille", 5}, {"seed", 1},    {"blocks", 1}};
        const auto d = otherwise.find(name);
        return d == otherwise.end() ? 0 : d->second;
    }
    void set(const std::string& pair) {
        const size_t at = pair.find('=');
        if (at == std::string::npos) {
            fprintf(stderr, "`%s` is no NAME=VALUE\n", pair.c_str());
            exit(2);
        }
        values[pair.substr(0, at)] = atol(pair.c_str() + at + 1);
    }
};

struct LinearCase {
    Settings s;
    int rows, cols, tiles, column_tiles, groups, experts, tokens, x_rows, outputs, rank = 0;
    // Packed.
    std::vector<uint8_t> q, zeros, v, u;
    std::vector<uint16_t> scales, v_scales, u_scales;
    std::vector<uint32_t> v_tiles, v_index, u_tiles, u_index, entries, entry_offsets;
    std::vector<float> x, xr, gain, beta, xscale, bias, residual, weights, xs;
    std::vector<int8_t> xq;
    std::vector<int> xsum, ids;
    // Outputs in f64 [outputs, out rows].
    std::vector<double> y, y_terms;
    int out_rows;
    double eps = 1e-5, scale = 1.0, softcap = 0.0;

    explicit LinearCase(const Settings& settings) : s(settings) { build(); }

  private:
    std::vector<double> q_matrix, rest_matrix; // [experts, tiles * 16, cols]: Q, S + U V

    double& q_at(int e, int r, int c) { return q_matrix[((size_t)e * tiles * 16 + r) * cols + c]; }
    double& rest_at(int e, int r, int c) { return rest_matrix[((size_t)e * tiles * 16 + r) * cols + c]; }

    void build() {
        Random rng(s["seed"]);
        rows = (int)s["rows"], cols = (int)s["cols"];
        const bool glu = s["GLU"], combine = s["EXPERTS"] == 2;
        tiles = (rows + 15) / 16;
        if (glu) tiles = 2 * ((rows / 2 + 15) / 16), rows = tiles * 16;
        experts = s["EXPERTS"] ? (int)s["experts"] : 1;
        tokens = s["EXPERTS"] ? (int)s["tokens"] : (int)s["M"];
        const int top_k = (int)s["top_k"];
        x_rows = combine ? tokens * top_k : tokens;
        outputs = s["EXPERTS"] == 1 ? tokens * top_k : tokens;
        q_matrix.assign((size_t)experts * tiles * 16 * cols, 0.0);
        rest_matrix.assign(q_matrix.size(), 0.0);
        if (s["FORMAT"] == 0) make_codes(rng);
        else if (s["FORMAT"] <= 3) make_floats(rng);
        else if (s["FORMAT"] == 4) make_trellis(rng);
        if (s["LOWRANK"]) make_low_rank(rng);
        if (s["SPARSE"]) make_sparse(rng);
        make_inputs(rng);
        multiply();
    }

    void make_codes(Random& rng) {
        const int bits = (int)s["BITS"], group = s["GROUP"] ? (int)s["GROUP"] : cols;
        const int chunk = bits == 2 || bits == 3 ? 2 : 1;
        column_tiles = (cols + 64 * chunk - 1) / (64 * chunk) * chunk;
        groups = (cols + group - 1) / group;
        const size_t row_bytes = (size_t)column_tiles * 128 * bits;
        q.assign((size_t)experts * tiles * row_bytes, 0);
        scales.assign((size_t)experts * tiles * groups * 16, 0);
        const int zero_bytes = bits == 8 ? 16 : 8;
        if (s["ZEROS"]) zeros.assign((size_t)experts * tiles * groups * zero_bytes, 0);
        for (int e = 0; e < experts; e++)
            for (int tile = 0; tile < tiles; tile++) {
                const size_t at = (size_t)e * tiles + tile;
                for (int r = 0; r < 16; r++) {
                    std::vector<int> code(column_tiles * 64, bits == 8 ? 128 : 0);
                    for (int gr = 0; gr < groups; gr++) {
                        const uint16_t sc = to_f16(0.01 + 0.02 * rng.uniform());
                        scales[(at * groups + gr) * 16 + 2 * (r % 8) + r / 8] = sc;
                        int z = 1 << (bits - 1);
                        if (s["ZEROS"]) {
                            z = rng.below(1 << bits);
                            uint8_t* to = &zeros[(at * groups + gr) * zero_bytes];
                            if (bits == 8) to[2 * (r % 8) + r / 8] = (uint8_t)z;
                            else to[r % 8] |= (uint8_t)(z << (r < 8 ? 0 : 4));
                        }
                        for (int c = gr * group; c < cols && c < (gr + 1) * group; c++) {
                            code[c] = rng.below(1 << bits);
                            q_at(e, tile * 16 + r, c) = (code[c] - z) * from_f16(sc);
                        }
                    }
                    for (int c = 0; c < column_tiles * 64; c++) put_code(&q[at * row_bytes], r, c, code[c], bits);
                }
            }
    }
    void put_code(uint8_t* row, int r, int c, int code, int bits) const {
        const int tile = c / 64, block = c / 32 % 2, k = c % 32, t = k % 16 / 4, b = k % 4;
        const int lane = 4 * (r % 8) + t, j = r / 8 + 2 * (k / 16);
        if (bits == 8) {
            row[(tile * 2 + block) * 512 + lane * 16 + 4 * j + b] = (uint8_t)(code - 128);
        } else if (bits == 4) {
            row[tile * 512 + lane * 16 + 4 * j + b] |= (uint8_t)(code << (4 * block));
        } else {
            const int m = c / 32 % 4, pair = tile / 2;
            uint8_t *low, *high = nullptr;
            if (bits == 2) {
                low = row + pair * 512;
            } else {
                const int unit = tile / 4, pairs = std::min(2, column_tiles / 2 - 2 * unit);
                low = row + unit * 1536 + pair % 2 * 512;
                high = row + unit * 1536 + pairs * 512 + lane * 8 * pairs + pair % 2 * 8 + (j / 2) * 4 + b;
            }
            low[lane * 16 + 4 * j + b] |= (uint8_t)((code & 3) << (2 * m));
            if (high) *high |= (uint8_t)((code >> 2) << (((2 * m + 2) & 7) + (j & 1)));
        }
    }
    // Any bits are codes. K of a block of 16 columns is `widest`, or where that is 0 drawn for each.
    void make_trellis(Random& rng) {
        const int states = (int)s["BITS"], units = (cols + 255) / 256, blocks = (cols + 15) / 16;
        column_tiles = (cols + 63) / 64;
        groups = 0;
        std::vector<int> bits(blocks), starts(1, 0);
        for (int& k : bits) k = s["widest"] ? (int)s["widest"] : 1 + rng.below(8);
        for (int k : bits) starts.push_back(starts.back() + k);
        const uint32_t widest = (uint32_t)*std::max_element(bits.begin(), bits.end());
        for (int unit = 0; unit < units; unit++) {
            uint32_t words[4] = {(uint32_t)starts[unit * 16], 0, 0, widest | (uint32_t)starts.back() << 8};
            for (int b = 0; b < 16 && unit * 16 + b < blocks; b++) words[1 + b / 8] |= (uint32_t)bits[unit * 16 + b] << 4 * (b % 8);
            const uint8_t* from = (const uint8_t*)words;
            zeros.insert(zeros.end(), from, from + 16);
        }
        q.resize((size_t)tiles * starts.back() * 32);
        for (uint8_t& byte : q) byte = (uint8_t)rng.bits();
        for (int tile = 0; tile < tiles; tile++) {
            scales.push_back(to_f16(0.01 + 0.02 * rng.uniform()));
            for (int b = 0; b < blocks; b++) {
                const uint8_t* at = &q[((size_t)tile * starts.back() + starts[b]) * 32];
                for (int i = 0; i < 256; i++) {
                    uint32_t state = 0;
                    for (int k = 0; k < states; k++) {
                        const int bit = (i * bits[b] + k) % (256 * bits[b]);
                        state |= (uint32_t)(at[bit / 8] >> bit % 8 & 1) << k;
                    }
                    const uint32_t product = state * trellis_multiplier(states, bits[b]);
                    int sum = -510;
                    for (int k = 0; k < 4; k++) sum += product >> 8 * k & 255;
                    if (b * 16 + i % 16 < cols) q_at(0, tile * 16 + i / 16, b * 16 + i % 16) = sum / 128.0 * from_f16(scales.back());
                }
            }
        }
    }
    // As numeric/trellis/scale.rs has them.
    static uint32_t trellis_multiplier(int states, int bits) {
        static const uint32_t table[9][8] = {
            {0x869b8575, 0xb8c0d23b, 0xe35ea3dd, 0xb2af926f, 0xd925e5bf, 0x5985c8b9, 0x5985c8b9, 0x5985c8b9},
            {0x79655c7b, 0x79655c7b, 0x79655c7b, 0x79655c7b, 0x79655c7b, 0x79655c7b, 0x79655c7b, 0x79655c7b},
            {0x626a6173, 0xb63a3c3f, 0x21828e31, 0x6ef1324f, 0x68f7b9a9, 0x769ed1cf, 0x769ed1cf, 0x769ed1cf},
            {0xa621af6d, 0xa621af6d, 0xa621af6d, 0xa621af6d, 0xa621af6d, 0xa621af6d, 0xa621af6d, 0xa621af6d},
            {0xa5688aa5, 0xac3bef75, 0x6b68a9a1, 0x8f312c33, 0xb818f909, 0x250b3c25, 0x250b3c25, 0x250b3c25},
            {0x6b767173, 0x444b46c5, 0x6b6b5ea9, 0x2fb2f0f3, 0x6a57664b, 0x0544fb45, 0x0544fb45, 0x0544fb45},
            {0x789a7497, 0x3e2b4cd1, 0x1ca3e123, 0xee92130f, 0xe8f966c7, 0x1d45f555, 0x1d45f555, 0x1d45f555},
            {0x83dcd12d, 0x83dcd12d, 0x83dcd12d, 0x83dcd12d, 0x83dcd12d, 0x83dcd12d, 0x83dcd12d, 0x83dcd12d},
            {0xa5a2797b, 0x83dcd12d, 0x83dcd12d, 0x83dcd12d, 0x89e8c929, 0x83dcd12d, 0x83dcd12d, 0x83dcd12d},
        };
        return table[states - 8][bits - 1];
    }
    void make_floats(Random& rng) {
        const int format = (int)s["FORMAT"];
        column_tiles = (cols + 63) / 64;
        groups = 0;
        const int bytes = format == 3 ? 4096 : 2048;
        q.assign((size_t)experts * tiles * column_tiles * bytes, 0);
        for (int e = 0; e < experts; e++)
            for (int r = 0; r < tiles * 16; r++)
                for (int c = 0; c < cols; c++) {
                    const float w = (float)(0.1 * rng.normal());
                    uint32_t raw;
                    memcpy(&raw, &w, 4);
                    const int i = c % 64 / 16, t = c % 16 / 4, b = c % 4, lane = 4 * (r % 8) + t, high = r % 16 / 8;
                    uint8_t* to = &q[(((size_t)e * tiles + r / 16) * column_tiles + c / 64) * bytes];
                    double value;
                    if (format == 3) {
                        memcpy(to + (2 * i + high) * 512 + lane * 16 + 4 * b, &raw, 4);
                        value = w;
                    } else {
                        const uint16_t half = format == 1 ? to_f16(w) : (uint16_t)(raw >> 16);
                        memcpy(to + i * 512 + lane * 16 + 8 * high + 2 * b, &half, 2);
                        raw = (uint32_t)half << 16;
                        float cut;
                        memcpy(&cut, &raw, 4);
                        value = format == 1 ? from_f16(half) : cut;
                    }
                    q_at(e, r, c) = value;
                }
    }
    // A factor [r, n] with its codes as values: V by rows, U by columns of 16 ranks.
    void make_low_rank(Random& rng) {
        const int vf = (int)s["VFORMAT"], uf = (int)s["UFORMAT"];
        // A hierarchy: the longer side of each block is halved, `depth` times.
        struct Leaf { int row0, rows, col0, cols; };
        std::vector<Leaf> leaves;
        if (s["depth"]) leaves.push_back({0, rows, 0, cols});
        for (long d = 0; d < s["depth"]; d++) {
            std::vector<Leaf> halves;
            for (const Leaf& l : leaves) {
                const bool by_rows = l.rows >= l.cols;
                const int half = (by_rows ? l.rows : l.cols) / 2;
                if (by_rows) halves.push_back({l.row0, half, l.col0, l.cols}), halves.push_back({l.row0 + half, l.rows - half, l.col0, l.cols});
                else halves.push_back({l.row0, l.rows, l.col0, half}), halves.push_back({l.row0, l.rows, l.col0 + half, l.cols - half});
            }
            leaves = halves;
        }
        const int blocks = leaves.empty() ? (int)s["blocks"] : (int)leaves.size();
        v_index.push_back(0);
        u_index.push_back(0);
        uint32_t steps_done = 0;
        for (int e = 0; e < experts; e++) {
            struct Part { int row0, rows, col0, cols, rank, h; std::vector<double> v; };
            std::vector<Part> parts;
            int h = 0;
            for (int b = 0; b < blocks; b++) {
                Part p;
                // The first block is the whole matrix, others are blocks inside of it.
                p.row0 = b ? rng.below(rows) : 0, p.rows = b ? 1 + rng.below(rows - p.row0) : rows;
                p.col0 = b ? rng.below(cols) : 0, p.cols = b ? 1 + rng.below(cols - p.col0) : cols;
                p.rank = b ? 1 + rng.below((int)s["rank"]) : (int)s["rank"];
                if (!leaves.empty()) {
                    const Leaf& l = leaves[b];
                    p.row0 = l.row0, p.rows = l.rows, p.col0 = l.col0, p.cols = l.cols, p.rank = (int)s["rank"];
                }
                p.h = h;
                h += (p.rank + 15) / 16 * 16;
                make_v(rng, p.rank, p.cols, vf, p.v, p.h, p.col0);
                parts.push_back(p);
            }
            if (rank && rank != h) { // experts share one width of h
                fprintf(stderr, "experts have different ranks\n");
                exit(2);
            }
            rank = h;
            v_index.push_back((uint32_t)v_tiles.size() / 6);
            for (int tile = 0; tile < tiles; tile++) {
                for (const Part& p : parts) {
                    if (tile * 16 + 16 <= p.row0 || tile * 16 >= p.row0 + p.rows) continue;
                    const int steps = (p.rank + 15) / 16;
                    u_tiles.insert(u_tiles.end(), {steps_done, (uint32_t)p.h, (uint32_t)steps, (uint32_t)u_scales.size()});
                    steps_done += steps;
                    std::vector<double> block((size_t)16 * steps * 16, 0.0);
                    make_u(rng, steps, uf, p.rank, tile * 16, p.row0, p.row0 + p.rows, block);
                    for (int r = 0; r < 16; r++)
                        for (int c = 0; c < p.cols; c++) {
                            double sum = 0;
                            for (int i = 0; i < p.rank; i++) sum += block[(size_t)r * steps * 16 + i] * p.v[(size_t)i * p.cols + c];
                            rest_at(e, tile * 16 + r, p.col0 + c) += sum;
                        }
                }
                u_index.push_back((uint32_t)u_tiles.size() / 4);
            }
        }
    }
    void make_v(Random& rng, int r, int n, int format, std::vector<double>& out, int h, int col0) {
        while (v.size() % 16) v.push_back(0);
        v_tiles.insert(v_tiles.end(), {(uint32_t)h, (uint32_t)r, (uint32_t)col0, (uint32_t)n, (uint32_t)(v.size() / 16), (uint32_t)v_scales.size()});
        out.assign((size_t)r * n, 0.0);
        const int width = format == 8 ? 64 : 32;
        for (int i = 0; i < r; i++) {
            const size_t start = v.size();
            const size_t bytes = ((size_t)n * format / 8 + (n * format % 8 ? 1 : 0) + 15) / 16 * 16;
            v.resize(start + bytes, format == 4 ? 0x88 : 0);
            double sc = 1;
            for (int c = 0; c < n; c++) {
                if (format <= 8 && c % width == 0) {
                    const uint16_t half = to_f16(0.001 + 0.002 * rng.uniform() * (format == 4 ? 16 : 1));
                    v_scales.push_back(half);
                    sc = from_f16(half);
                }
                if (format == 8) {
                    const int code = rng.below(255) - 127;
                    v[start + c] = (uint8_t)code;
                    out[(size_t)i * n + c] = code * sc;
                } else if (format == 4) {
                    const int code = rng.below(16);
                    uint8_t& byte = v[start + c / 2];
                    byte = c % 2 ? (byte & 15) | code << 4 : (byte & 0xf0) | code;
                    out[(size_t)i * n + c] = (code - 8) * sc;
                } else {
                    const float w = (float)(0.1 * rng.normal());
                    const uint16_t half = to_f16(w);
                    if (format == 16) memcpy(&v[start + 2 * c], &half, 2);
                    else memcpy(&v[start + 4 * c], &w, 4);
                    out[(size_t)i * n + c] = format == 16 ? from_f16(half) : w;
                }
            }
        }
    }
    void make_u(Random& rng, int steps, int format, int r, int row, int row0, int row1, std::vector<double>& out) {
        const size_t start = u.size();
        u.resize(start + (size_t)steps * 32 * format, format == 4 ? 0x88 : 0);
        const size_t scale_start = u_scales.size();
        if (format == 8) u_scales.resize(scale_start + 16, 0);
        if (format == 4) u_scales.resize(scale_start + (size_t)(steps + 1) / 2 * 16, 0);
        for (int i = 0; i < 16; i++) {
            if (row + i < row0 || row + i >= row1) continue;
            const int order = 2 * (i % 8) + i / 8;
            double sc = 1;
            for (int k = 0; k < r; k++) {
                if (format == 8 && k == 0) {
                    u_scales[scale_start + order] = to_f16(0.001 + 0.002 * rng.uniform());
                    sc = from_f16(u_scales[scale_start + order]);
                }
                if (format == 4 && k % 32 == 0) {
                    uint16_t& half = u_scales[scale_start + (size_t)k / 32 * 16 + order];
                    half = to_f16(0.01 + 0.02 * rng.uniform());
                    sc = from_f16(half);
                }
                const int lane = 4 * (i % 8) + k % 16 / 4, b = k % 4, high = i / 8;
                uint8_t* to = &u[start + (size_t)(k / 16) * 32 * format + (size_t)lane * format];
                double value;
                if (format == 8) {
                    const int code = rng.below(255) - 127;
                    to[4 * high + b] = (uint8_t)code;
                    value = code * sc;
                } else if (format == 4) {
                    const int code = rng.below(16);
                    to[b] = high ? (to[b] & 15) | code << 4 : (to[b] & 0xf0) | code;
                    value = (code - 8) * sc;
                } else {
                    const float w = (float)(0.1 * rng.normal());
                    const uint16_t half = to_f16(w);
                    if (format == 16) memcpy(to + 8 * high + 2 * b, &half, 2);
                    else memcpy(to + 16 * high + 4 * b, &w, 4);
                    value = format == 16 ? from_f16(half) : w;
                }
                out[(size_t)i * steps * 16 + k] = value;
            }
        }
    }
    void make_sparse(Random& rng) {
        const int chunks = (cols + 4095) / 4096;
        entry_offsets.push_back(0);
        for (int e = 0; e < experts; e++)
            for (int tile = 0; tile < tiles; tile++)
                for (int chunk = 0; chunk < chunks; chunk++) {
                    std::vector<uint32_t> run;
                    uint16_t ends[16];
                    const int end = std::min(cols, (chunk + 1) * 4096);
                    for (int r = 0; r < 16; r++) {
                        for (int c = chunk * 4096; c < end; c++) {
                            if (rng.below(1000) >= s["per_mille"]) continue;
                            const uint16_t half = to_f16(0.5 * rng.normal());
                            run.push_back((uint32_t)half << 16 | (uint32_t)r << 12 | (uint32_t)(c % 4096));
                            rest_at(e, tile * 16 + r, c) += from_f16(half);
                        }
                        ends[r] = (uint16_t)run.size();
                    }
                    if (!run.empty()) {
                        for (int i = 0; i < 8; i++) entries.push_back(ends[2 * i] | (uint32_t)ends[2 * i + 1] << 16);
                        entries.insert(entries.end(), run.begin(), run.end());
                    }
                    entry_offsets.push_back((uint32_t)entries.size());
                }
    }
    void make_inputs(Random& rng) {
        x.resize((size_t)x_rows * cols);
        for (float& f : x) f = (float)((rng.below(50) ? 1.0 : 8.0) * rng.normal());
        if (s["zero_input"]) std::fill(x.begin(), x.end(), 0.0f);
        if (s["large_input"]) for (float& f : x) f *= 1e6f;
        if (s["ROTATED"]) {
            xr.resize(x.size());
            for (float& f : xr) f = (float)rng.normal();
        }
        gain.resize(cols), beta.resize(cols), xscale.resize(cols);
        for (int c = 0; c < cols; c++) gain[c] = (float)(1 + 0.2 * rng.normal()), beta[c] = (float)(0.2 * rng.normal()), xscale[c] = (float)(0.5 + rng.uniform());
        bias.resize((size_t)tiles * 16);
        for (float& f : bias) f = (float)rng.normal();
        out_rows = s["GLU"] ? rows / 2 : rows;
        residual.resize((size_t)outputs * out_rows);
        for (float& f : residual) f = (float)rng.normal();
        const int top_k = (int)s["top_k"];
        ids.resize((size_t)tokens * top_k), weights.resize(ids.size());
        for (size_t i = 0; i < ids.size(); i++) ids[i] = rng.below(experts), weights[i] = (float)rng.uniform();
        if (s["SOFTCAP"]) softcap = 5.0;
        scale = 0.75;
    }
    static void round_block(const float* f, int8_t* codes, float& sc) {
        float top = 0;
        for (int i = 0; i < 32; i++) top = std::fmax(top, std::fabs(f[i]));
        sc = 0;
        memset(codes, 0, 32);
        if (top < 1e-30f) return;
        const float inverse = 127.0f / top;
        for (int i = 0; i < 32; i++) codes[i] = (int8_t)(int)std::nearbyintf(f[i] * inverse);
        sc = top / 127.0f;
    }
    static double activated(double v, int kind) {
        switch (kind) {
        case 1: return v / (1 + std::exp(-v));
        case 2: return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
        case 3: return 0.5 * v * (1 + std::tanh(0.79788456080286536 * (v + 0.044715 * v * v * v)));
        case 4: return v > 0 ? v : 0;
        case 5: return std::tanh(v);
        default: return v;
        }
    }
    void multiply() {
        const int width = (cols + 63) / 64 * 64, xin = (int)s["XIN"];
        std::vector<double> seen((size_t)x_rows * cols), rounded(seen.size());
        xq.assign((size_t)x_rows * width, 0), xs.assign((size_t)x_rows * width / 32, 0), xsum.assign(xs.size(), 0);
        for (int i = 0; i < x_rows; i++) {
            const float* in = &x[(size_t)i * cols];
            double mean = 0, square = 0;
            for (int c = 0; c < cols; c++) mean += in[c];
            mean = xin == 2 ? mean / cols : 0;
            for (int c = 0; c < cols; c++) square += (in[c] - mean) * (in[c] - mean);
            const float inverse = (float)(1 / std::sqrt(square / cols + (float)eps));
            std::vector<float> row(width, 0.0f);
            for (int c = 0; c < cols; c++) {
                float f = in[c];
                if (xin == 1) f = f * inverse * gain[c];
                if (xin == 2) f = std::fmaf((f - (float)mean) * inverse, gain[c], beta[c]);
                seen[(size_t)i * cols + c] = f;
                if (s["ROTATED"]) f = xr[(size_t)i * cols + c];
                row[c] = s["XSCALE"] ? f * xscale[c] : f;
            }
            for (int b = 0; b < width / 32; b++) {
                int8_t codes[32];
                float sc;
                round_block(&row[b * 32], codes, sc);
                int sum = 0;
                for (int k = 0; k < 32; k++) {
                    const int at = b % 2 * 32 + k;
                    xq[(size_t)i * width + b / 2 * 64 + at % 16 / 4 * 16 + at / 16 * 4 + at % 4] = codes[k];
                    sum += codes[k];
                    if (b * 32 + k < cols) rounded[(size_t)i * cols + b * 32 + k] = s["ACT"] == 0 && (s["FORMAT"] == 0 || s["FORMAT"] == 4) ? (double)codes[k] * sc : row[b * 32 + k];
                }
                xs[(size_t)i * width / 32 + b] = sc, xsum[(size_t)i * width / 32 + b] = sum;
            }
        }
        const int top_k = (int)s["top_k"], pair = s["GLU"] ? 2 : 1;
        y.assign((size_t)outputs * out_rows, 0.0);
        if (s["ROTATED"] == 2) { // no more than the products
            y_terms = y;
            for (int o = 0; o < outputs; o++)
                for (int r = 0; r < out_rows; r++) {
                    double sum = 0, rest = 0;
                    for (int c = 0; c < cols; c++) sum += q_at(0, r, c) * rounded[(size_t)o * cols + c], rest += rest_at(0, r, c) * seen[(size_t)o * cols + c];
                    y[(size_t)o * out_rows + r] = scale * sum;
                    y_terms[(size_t)o * out_rows + r] = scale * rest + (s["RESIDUAL"] ? residual[(size_t)o * out_rows + r] : 0.0);
                }
            return;
        }
        for (int o = 0; o < outputs; o++)
            for (int r = 0; r < out_rows; r++) {
                double value[2] = {0, 0};
                for (int p = 0; p < pair; p++) {
                    const int row = pair == 2 ? (r / 16 * 2 + p) * 16 + r % 16 : r;
                    auto dot = [&](int e, int xi) {
                        double sum = 0;
                        for (int c = 0; c < cols; c++)
                            sum += q_at(e, row, c) * rounded[(size_t)xi * cols + c] + rest_at(e, row, c) * seen[(size_t)xi * cols + c];
                        return sum;
                    };
                    if (s["EXPERTS"] == 2)
                        for (int j = 0; j < top_k; j++) value[p] += (double)weights[o * top_k + j] * dot(ids[o * top_k + j], o * top_k + j);
                    else
                        value[p] = dot(s["EXPERTS"] ? ids[o] : 0, s["EXPERTS"] ? o / top_k : o);
                    if (s["BIAS"]) value[p] += bias[row];
                }
                double out = activated(value[0], (int)s["ACTIVATION"]);
                if (pair == 2) out *= value[1];
                out *= scale;
                if (s["SOFTCAP"]) out = softcap * std::tanh(out / softcap);
                if (s["RESIDUAL"]) out += residual[(size_t)o * out_rows + r];
                y[(size_t)o * out_rows + r] = out;
            }
    }
};

// ‖out − y‖ / ‖y‖; NaN where anything is not finite.
inline double relative_error(const std::vector<float>& out, const std::vector<double>& y) {
    double square = 0, norm = 0;
    for (size_t i = 0; i < y.size(); i++) {
        if (!std::isfinite(out[i])) return NAN;
        square += (out[i] - y[i]) * (out[i] - y[i]), norm += y[i] * y[i];
    }
    return norm > 0 ? std::sqrt(square / norm) : std::sqrt(square);
}
