// Checks and times kernels/linear_prefill.cu, with low_rank_inner in front of it, on a GPU.
//
//   prefill check CUBIN INNER CASE…     outputs against f64, twice, poisoned
//   prefill time CUBIN INNER CASE…      microseconds of both launches, TFLOP/s of the product
//
// A case is NAME=VALUE … (see linear_case.hpp; M tokens, of which a block makes `block_tokens`, and
// `block_tiles` row tiles), cases are parted by --. `prefill.py` drives it.
#include <cuda_runtime.h>

#include "linear_case.hpp"
#include "timing.hpp"

static cudaKernel_t load(const char* path, const char* name) {
    cudaLibrary_t library;
    CHECK(cudaLibraryLoadFromFile(&library, path, nullptr, nullptr, 0, nullptr, nullptr, 0));
    cudaKernel_t kernel;
    CHECK(cudaLibraryGetKernel(&kernel, library, name));
    return kernel;
}
template <class T>
static T* device(const std::vector<T>& from) {
    if (from.empty()) return nullptr;
    T* p;
    CHECK(cudaMalloc(&p, from.size() * sizeof(T)));
    CHECK(cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
static uint8_t* filled(size_t bytes, Random& rng, uint32_t keep = ~0u, uint32_t set = 0) {
    std::vector<uint32_t> words((bytes + 3) / 4);
    for (uint32_t& w : words) w = (rng.bits() & keep) | set;
    return (uint8_t*)device(words);
}

struct Pointers {
    const void *x, *xscale, *q, *scales, *zeros, *v, *v_scales, *v_tiles, *v_index, *u, *u_scales, *u_tiles, *u_index, *s, *s_offsets, *bias, *residual;
    void *h, *y;
    const void *scalars, *slots, *starts;
    int rows, cols, tiles, ldx, ldy, ldr, rank, top_k;
    float scale, softcap;
};
struct Kernels {
    cudaKernel_t product, inner;
};
static void launch(const Kernels& k, Pointers& p, int tokens, const Settings& s, cudaStream_t stream) {
    const int block_tokens = (int)s["block_tokens"], block_tiles = (int)s["block_tiles"];
    if (p.rank) {
        void* a[] = {&p.x, &p.v, &p.v_scales, &p.v_tiles, &p.v_index, &p.h, &p.scalars, &p.slots, &p.starts, &p.ldx, &p.rank, &p.top_k};
        CHECK(cudaLaunchKernel((const void*)k.inner, dim3(p.rank / 16, (tokens + 15) / 16), dim3(256), a, 0, stream));
    }
    std::vector<void*> a;
    for (const void** i = &p.x; i <= &p.residual; i++) a.push_back((void*)i);
    for (void** i = &p.h; i <= &p.y; i++) a.push_back((void*)i);
    for (const void** i = &p.scalars; i <= &p.starts; i++) a.push_back((void*)i);
    for (int* i = &p.rows; i <= &p.top_k; i++) a.push_back(i);
    a.push_back(&p.scale), a.push_back(&p.softcap);
    CHECK(cudaLaunchKernel((const void*)k.product, dim3((p.tiles + block_tiles - 1) / block_tiles, (tokens + block_tokens - 1) / block_tokens), dim3(256), a.data(), 0, stream));
}
static void print(const Settings& s) {
    for (const auto& v : s.values) printf(" %s=%ld", v.first.c_str(), v.second);
    printf("\n");
    fflush(stdout);
}

static bool check(const Kernels& k, const Settings& s) {
    LinearCase c(s);
    const int tokens = (int)s["M"], ldx = (c.cols + 63) / 64 * 64;
    std::vector<uint16_t> x((size_t)tokens * ldx, 0);
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < c.cols; i++) x[(size_t)t * ldx + i] = to_f16(c.x[(size_t)t * c.cols + i]);
    Pointers p{};
    p.x = device(x), p.xscale = device(c.xscale), p.q = device(c.q), p.scales = device(c.scales), p.zeros = device(c.zeros);
    p.v = device(c.v), p.v_scales = device(c.v_scales), p.v_tiles = device(c.v_tiles), p.v_index = device(c.v_index);
    p.u = device(c.u), p.u_scales = device(c.u_scales), p.u_tiles = device(c.u_tiles), p.u_index = device(c.u_index);
    p.s = device(c.entries), p.s_offsets = device(c.entry_offsets), p.bias = device(c.bias), p.residual = device(c.residual);
    const size_t outputs = (size_t)tokens * c.out_rows;
    p.rank = s["LOWRANK"] ? c.rank : 0;
    p.h = device(std::vector<float>((size_t)tokens * c.rank + 1, NAN)), p.y = device(std::vector<float>(outputs, NAN));
    p.scalars = device(std::vector<int>{tokens, 0, 0});
    p.rows = c.rows, p.cols = c.cols, p.tiles = c.tiles, p.ldx = ldx, p.ldy = p.ldr = c.out_rows, p.top_k = 1; // the kernel makes whole tiles: rows of cases are multiples of 16
    p.scale = (float)c.scale, p.softcap = (float)c.softcap;
    std::vector<float> first, out(outputs);
    bool same = true;
    double error = 0;
    for (int pass = 0; pass < 2; pass++) {
        CHECK(cudaMemset(p.y, 0xff, outputs * 4));
        launch(k, p, tokens, s, 0);
        CHECK(cudaDeviceSynchronize());
        CHECK(cudaMemcpy(out.data(), p.y, outputs * 4, cudaMemcpyDeviceToHost));
        const double e = relative_error(out, c.y);
        error = std::isnan(e) || e > error ? e : error;
        if (pass) same &= !memcmp(first.data(), out.data(), outputs * 4);
        first = out;
    }
    // Inputs are rounded to f16 here, not in the reference.
    const bool good = error <= 6e-4 && same;
    printf("%s error %.2e%s", good ? "ok" : "FAIL", error, same ? "" : " not reproducible");
    print(s);
    return good;
}

static void time_case(const Kernels& k, const Settings& s) {
    const long bits = s["BITS"], group = s["GROUP"], format = s["FORMAT"], m = s["M"], widest = s["widest"] ? s["widest"] : 2;
    const int rows = (int)s["rows"], cols = (int)s["cols"], tiles = rows / 16, rank = s["LOWRANK"] ? (int)s["rank"] : 0;
    const long groups = format == 0 ? (group ? cols / group : 1) : 0;
    const size_t q = format == 4 ? (size_t)tiles * (cols / 16) * 32 * widest : (size_t)tiles * (cols / 64) * (format == 0 ? 128 * bits : format == 3 ? 4096 : 2048);
    int l2;
    CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, 0));
    const int copies = (int)std::max<size_t>(3, (4 * (size_t)l2 + q - 1) / q);
    Random rng(3);
    std::vector<uint16_t> x((size_t)m * cols);
    for (uint16_t& h : x) h = to_f16(rng.normal());
    Pointers p{};
    p.x = device(x), p.y = device(std::vector<float>((size_t)m * rows)), p.scalars = device(std::vector<int>{(int)m, 0, 0});
    p.rows = rows, p.cols = cols, p.tiles = tiles, p.ldx = cols, p.ldy = p.ldr = rows / (s["GLU"] ? 2 : 1), p.rank = rank, p.top_k = 1, p.scale = 1.0f, p.softcap = 30.0f;
    p.scales = filled(format == 4 ? (size_t)tiles * 2 + 4 : (size_t)tiles * groups * 32 + 4, rng, 0x03ff03ffu, 0x20002000u);
    p.zeros = s["ZEROS"] ? filled((size_t)tiles * groups * (bits == 8 ? 16 : 8), rng) : nullptr;
    p.residual = device(std::vector<float>((size_t)m * rows, 1.0f)), p.bias = device(std::vector<float>(rows, 1.0f));
    std::vector<uint32_t> columns, v_tiles = {0, (uint32_t)rank, 0, (uint32_t)cols, 0, 0}, u_tiles, u_index(1, 0), entries, offsets(1, 0);
    for (int unit = 0; format == 4 && unit < cols / 256; unit++) {
        const uint32_t even = (uint32_t)widest * 0x11111111u;
        columns.insert(columns.end(), {(uint32_t)(unit * 16 * widest), even, even, (uint32_t)widest | (uint32_t)(cols / 16 * widest) << 8});
    }
    if (format == 4) p.zeros = device(columns);
    if (rank) {
        for (int tile = 0; tile < tiles; tile++) {
            u_tiles.insert(u_tiles.end(), {(uint32_t)(tile * (rank / 16)), 0, (uint32_t)(rank / 16), (uint32_t)(tile * 16)});
            u_index.push_back((uint32_t)tile + 1);
        }
        p.v = filled((size_t)rank * cols, rng), p.v_scales = filled((size_t)rank * (cols / 64) * 2, rng, 0x03ff03ffu, 0x10001000u), p.v_tiles = device(v_tiles);
        p.u = filled((size_t)rows * rank, rng), p.u_scales = filled((size_t)rows * 2, rng, 0x03ff03ffu, 0x10001000u), p.u_tiles = device(u_tiles), p.u_index = device(u_index);
        p.h = device(std::vector<float>((size_t)m * rank));
    }
    for (int tile = 0; s["SPARSE"] && tile < tiles; tile++)
        for (int from = 0; from < cols; from += 4096) {
            const int width = std::min(4096, cols - from), each = (int)(width * s["per_mille"] / 1000);
            for (int i = 0; i < 8; i++) entries.push_back((uint32_t)(each * (2 * i + 1)) | (uint32_t)(each * (2 * i + 2)) << 16);
            for (int r = 0; r < 16; r++)
                for (int i = 0; i < each; i++) entries.push_back((uint32_t)to_f16(0.1 * rng.normal()) << 16 | (uint32_t)r << 12 | (uint32_t)((int64_t)i * width / each + rng.below(width / each)));
            offsets.push_back((uint32_t)entries.size());
        }
    if (s["SPARSE"]) p.s = device(entries), p.s_offsets = device(offsets);
    // Codes of all copies out of one run of random bytes, each from another place.
    uint8_t* codes;
    const size_t apart = (q + 255) / 256 * 256;
    CHECK(cudaMalloc(&codes, apart * copies));
    {
        std::vector<uint32_t> words(1 << 20);
        for (uint32_t& w : words) w = format == 1 || format == 2 ? (rng.bits() & 0x83ff83ffu) | 0x28002800u : rng.bits();
        for (size_t at = 0; at < apart * copies; at += words.size() * 4)
            CHECK(cudaMemcpy(codes + at, words.data(), std::min(words.size() * 4, apart * copies - at), cudaMemcpyHostToDevice));
    }
    const int launches = std::max(8, copies);
    const double seconds = seconds_of_launch(launches, 7, [&](int i, cudaStream_t stream) {
        p.q = format == 5 ? nullptr : codes + apart * (i % copies);
        launch(k, p, (int)m, s, stream);
    });
    printf("time us %.1f tflops %.1f", seconds * 1e6, 2e-12 * rows * cols * m / seconds);
    print(s);
    CHECK(cudaFree(codes));
}

int main(int argc, char** argv) {
    const bool timing = argc > 4 && !strcmp(argv[1], "time");
    if (argc < 5 || (!timing && strcmp(argv[1], "check"))) return fprintf(stderr, "usage: prefill check|time CUBIN INNER NAME=VALUE … [-- …]\n"), 2;
    const Kernels kernels = {load(argv[2], "linear_prefill"), load(argv[3], "low_rank_inner")};
    bool good = true;
    for (int i = 4; i < argc; i++) {
        Settings s;
        for (; i < argc && strcmp(argv[i], "--"); i++) s.set(argv[i]);
        if (timing) time_case(kernels, s);
        else good &= check(kernels, s);
    }
    return good ? 0 : 1;
}
