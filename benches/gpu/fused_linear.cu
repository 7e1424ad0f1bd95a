// Checks and times kernels/fused_linear.cu on a GPU.
//
//   fused_linear check CUBIN CASE…           outputs against f64, twice, poisoned
//   fused_linear time CUBIN CASE…            microseconds per launch, percent of read bandwidth
//   fused_linear bandwidth                   bytes per second that a plain read reaches
//
// A case is NAME=VALUE … (see linear_case.hpp), cases are parted by --. `run.py` drives it.
#include <cuda_runtime.h>

#include "linear_launch.hpp"
#include "timing.hpp"

static cudaKernel_t load(const char* path) {
    cudaLibrary_t library;
    CHECK(cudaLibraryLoadFromFile(&library, path, nullptr, nullptr, 0, nullptr, nullptr, 0));
    cudaKernel_t kernel;
    CHECK(cudaLibraryGetKernel(&kernel, library, "fused_linear"));
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
static void launch(cudaKernel_t kernel, FusedPointers& p, int grid, int grid_y, size_t shared, int threads, cudaStream_t stream, bool dependent) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid, grid_y), config.blockDim = dim3(threads), config.dynamicSmemBytes = shared, config.stream = stream;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute, config.numAttrs = dependent ? 1 : 0;
    CHECK(cudaLaunchKernelExC(&config, (const void*)kernel, p.arguments().data()));
}
static int resident_blocks(cudaKernel_t kernel, size_t shared, int threads) {
    int blocks = 0;
    if (cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, (const void*)kernel, threads, shared));
    return blocks;
}

// The larger; NaN if one is.
static double worse(double a, double b) { return std::isnan(a) || a > b ? a : b; }

static bool check(cudaKernel_t kernel, const Settings& s) {
    LinearCase c(s);
    const int grid = (int)s["grid"], grid_y = fused_grid_y(s), super = fused_super(s);
    const size_t shared = fused_shared(s, c.cols, c.tiles, grid);
    FusedPointers p{};
    p.x = device(c.x), p.xq = device(c.xq), p.xs = device(c.xs), p.xsum = device(c.xsum), p.gain = device(c.gain), p.beta = device(c.beta);
    p.xscale = device(c.xscale), p.xr = device(c.xr), p.q = device(c.q), p.scales = device(c.scales), p.zeros = device(c.zeros);
    p.v = device(c.v), p.v_scales = device(c.v_scales), p.v_tiles = device(c.v_tiles), p.v_index = device(c.v_index);
    p.u = device(c.u), p.u_scales = device(c.u_scales), p.u_tiles = device(c.u_tiles), p.u_index = device(c.u_index);
    p.s = device(c.entries), p.s_offsets = device(c.entry_offsets), p.bias = device(c.bias), p.residual = device(c.residual);
    p.ids = device(c.ids), p.weights = device(c.weights);
    const size_t outputs = (size_t)c.outputs * c.out_rows;
    p.h = device(std::vector<float>((size_t)8 * c.rank * (s["EXPERTS"] == 1 ? c.outputs : c.x_rows) + 1, NAN));
    p.partial = device(std::vector<float>((size_t)grid * grid_y * super * 16 * s["M"], NAN));
    p.counter = device(std::vector<uint32_t>((size_t)(2 + grid) * grid_y, 0));
    p.y = device(std::vector<float>(outputs, NAN)), p.y_terms = device(std::vector<float>(outputs, NAN));
    p.rows = c.rows, p.cols = c.cols, p.tiles = c.tiles, p.ldx = c.cols, p.ldy = p.ldr = c.out_rows, p.rank = c.rank, p.top_k = (int)s["top_k"];
    p.ldxr = c.cols, p.ldt = c.out_rows;
    p.eps = (float)c.eps, p.scale = (float)c.scale, p.softcap = (float)c.softcap;
    if (!resident_blocks(kernel, shared, 32 * (int)s["WARPS"])) {
        printf("FAIL %zu bytes of shared memory do not fit\n", shared);
        return false;
    }
    std::vector<float> first, out(outputs);
    bool same = true;
    double error = 0;
    for (int pass = 0; pass < 3; pass++) {
        CHECK(cudaMemset(p.y, 0xff, outputs * 4));
        launch(kernel, p, grid, grid_y, shared, 32 * (int)s["WARPS"], 0, false);
        CHECK(cudaDeviceSynchronize());
        CHECK(cudaMemcpy(out.data(), p.y, outputs * 4, cudaMemcpyDeviceToHost));
        error = worse(error, relative_error(out, c.y));
        if (!c.y_terms.empty()) {
            std::vector<float> rest(outputs);
            CHECK(cudaMemcpy(rest.data(), p.y_terms, outputs * 4, cudaMemcpyDeviceToHost));
            error = worse(error, relative_error(rest, c.y_terms));
        }
        if (pass) same &= !memcmp(first.data(), out.data(), outputs * 4);
        first = out;
    }
    const bool coded = s["FORMAT"] == 0 || s["FORMAT"] == 4;
    const double tolerance = coded && s["ACT"] == 1 ? 6e-4 : coded && (s["XIN"] == 1 || s["XIN"] == 2) ? 2e-3 : 5e-6;
    const bool good = error <= tolerance && same;
    printf("%s error %.2e%s", good ? "ok" : "FAIL", error, same ? "" : " not reproducible");
    for (const auto& v : s.values) printf(" %s=%ld", v.first.c_str(), v.second);
    printf("\n");
    for (const void* at : {p.x, p.xq, p.xs, p.xsum, p.gain, p.beta, p.xscale, p.xr, p.q, p.scales, p.zeros, p.v, p.v_scales, p.v_tiles, p.v_index, p.u,
                           p.u_scales, p.u_tiles, p.u_index, p.s, p.s_offsets, p.bias, p.residual, p.ids, p.weights})
        CHECK(cudaFree((void*)at));
    for (void* at : {p.h, p.partial, p.counter, p.y, p.y_terms}) CHECK(cudaFree(at));
    return good;
}

__global__ void fill_random(uint32_t* to, size_t words, uint32_t seed, uint32_t keep, uint32_t set) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < words; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t v = (uint32_t)i * 2654435761u + seed;
        v ^= v >> 15, v *= 2246822519u, v ^= v >> 13, v *= 3266489917u, v ^= v >> 16;
        to[i] = (v & keep) | set;
    }
}
static uint8_t* random_bytes(size_t bytes, uint32_t seed, uint32_t keep = ~0u, uint32_t set = 0) {
    uint32_t* p;
    bytes = (bytes + 255) / 256 * 256;
    CHECK(cudaMalloc(&p, bytes));
    fill_random<<<1024, 256>>>(p, bytes / 4, seed, keep, set);
    CHECK(cudaGetLastError());
    return (uint8_t*)p;
}

__global__ void read_all(const uint4* from, size_t count, uint32_t* out) {
    uint32_t sum = 0;
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (; i + 3 * step < count; i += 4 * step) {
        const uint4 a = __ldcs(from + i), b = __ldcs(from + i + step), c = __ldcs(from + i + 2 * step), d = __ldcs(from + i + 3 * step);
        sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < count; i += step) sum += from[i].x;
    if (sum == 0x12345) *out = sum;
}
static double bandwidth() {
    const size_t bytes = (size_t)4 << 30;
    uint8_t* p = random_bytes(bytes, 7);
    uint32_t* out;
    CHECK(cudaMalloc(&out, 4));
    int sms;
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    cudaEvent_t from, to;
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    double best = 0;
    for (int per_sm : {2, 4, 8})
        for (int i = 0; i < 5; i++) {
            CHECK(cudaEventRecord(from));
            read_all<<<sms * per_sm, 512>>>((const uint4*)p, bytes / 16, out);
            CHECK(cudaEventRecord(to));
            CHECK(cudaEventSynchronize(to));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, from, to));
            best = std::fmax(best, bytes / (ms * 1e-3));
        }
    CHECK(cudaFree(p));
    CHECK(cudaFree(out));
    return best;
}

// Sizes of one matrix of a case, without making it.
struct Bytes {
    size_t q, scales, zeros, v, v_scales, u, u_scales, s;
    size_t all() const { return q + scales + zeros + v + v_scales + u + u_scales + s; }
};

static void time_case(cudaKernel_t kernel, const Settings& s, double ceiling) {
    const long bits = s["BITS"], group = s["GROUP"], m = s["M"], format = s["FORMAT"];
    const int rows = (int)s["rows"], cols = (int)s["cols"], tiles = rows / 16, rank = s["LOWRANK"] ? (int)s["rank"] : 0;
    const long groups = format == 0 ? (group ? (cols + group - 1) / group : 1) : 0;
    const long widest = s["widest"] ? s["widest"] : 2; // bits per weight of a trellis
    const long chunk = format == 0 && bits < 4 ? 2 : 1, column_tiles = (cols + 64 * chunk - 1) / (64 * chunk) * chunk;
    Bytes b{};
    b.q = format == 5 ? 0 : format == 4 ? (size_t)tiles * (cols / 16) * 32 * widest : (size_t)tiles * column_tiles * (format == 0 ? 128 * bits : format == 3 ? 4096 : 2048);
    b.scales = format == 4 ? (size_t)tiles * 2 : (size_t)tiles * groups * 32;
    b.zeros = s["ZEROS"] ? (size_t)tiles * groups * (bits == 8 ? 16 : 8) : 0;
    if (rank) b.v = (size_t)rank * cols, b.v_scales = (size_t)rank * ((cols + 63) / 64) * 2, b.u = (size_t)rows * rank, b.u_scales = (size_t)rows * 2;
    // Outliers: the same number in each row of a chunk, at random columns.
    std::vector<uint32_t> entries, offsets(1, 0);
    if (s["SPARSE"]) {
        Random rng(5);
        for (int tile = 0; tile < tiles; tile++)
            for (int first = 0; first < cols; first += 4096) {
                const int width = std::min(4096, cols - first);
                const int each = (int)(width * s["per_mille"] / 1000);
                for (int i = 0; i < 8; i++) entries.push_back((uint32_t)(each * (2 * i + 1)) | (uint32_t)(each * (2 * i + 2)) << 16);
                for (int r = 0; r < 16; r++)
                    for (int i = 0; i < each; i++) entries.push_back((uint32_t)to_f16(0.1 * rng.normal()) << 16 | (uint32_t)r << 12 | (uint32_t)((int64_t)i * width / each + rng.below(width / each)));
                offsets.push_back((uint32_t)entries.size());
            }
        b.s = entries.size() * 4 + offsets.size() * 4;
    }
    int sms, l2;
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, 0));
    const int copies = (int)std::max<size_t>(3, (4 * (size_t)l2 + b.all() - 1) / b.all());
    // Shared memory depends on the grid; at first for a wide one.
    int grid = (int)s["grid"];
    if (!s.values.count("grid")) {
        const size_t guess = fused_shared(s, cols, tiles, sms);
        const int per_sm = std::max(1, std::min(resident_blocks(kernel, guess, 32 * (int)s["WARPS"]), s["per_sm"] ? (int)s["per_sm"] : 1));
        grid = sms * per_sm;
    }
    const size_t shared = fused_shared(s, cols, tiles, grid);
    const int resident = resident_blocks(kernel, shared, 32 * (int)s["WARPS"]);
    if (resident * sms < grid) {
        printf("skip: %zu bytes of shared memory, %d blocks fit", shared, resident * sms);
        for (const auto& v : s.values) printf(" %s=%ld", v.first.c_str(), v.second);
        printf("\n");
        return;
    }
    std::vector<uint32_t> v_tiles, u_tiles, u_index(1, 0);
    if (rank) {
        v_tiles = {0, (uint32_t)rank, 0, (uint32_t)cols, 0, 0};
        for (int tile = 0; tile < tiles; tile++) {
            u_tiles.insert(u_tiles.end(), {(uint32_t)(tile * (rank / 16)), 0, (uint32_t)(rank / 16), (uint32_t)(tile * 16)});
            u_index.push_back((uint32_t)tile + 1);
        }
    }
    std::vector<float> x((size_t)m * cols);
    Random rng(3);
    for (float& f : x) f = (float)rng.normal();
    FusedPointers shared_p{};
    shared_p.x = device(x), shared_p.v_tiles = device(v_tiles), shared_p.u_tiles = device(u_tiles), shared_p.u_index = device(u_index);
    const long width = (cols + 63) / 64 * 64;
    shared_p.xq = random_bytes((size_t)m * width, 9), shared_p.xs = device(std::vector<float>((size_t)m * width / 32, 0.01f)), shared_p.xsum = device(std::vector<int>((size_t)m * width / 32, 3));
    shared_p.gain = device(std::vector<float>(cols, 1.0f));
    shared_p.s_offsets = device(offsets);
    shared_p.h = random_bytes((size_t)m * std::max(rank, 1) * 32, 1), shared_p.partial = random_bytes((size_t)grid * fused_super(s) * 16 * m * 4, 1);
    shared_p.counter = device(std::vector<uint32_t>(2 + grid, 0)), shared_p.y = random_bytes((size_t)m * rows * 4, 1);
    shared_p.residual = random_bytes((size_t)m * rows * 4, 1, 0x007fffff, 0x3f000000), shared_p.bias = random_bytes((size_t)rows * 4, 1, 0x007fffff, 0x3f000000);
    shared_p.rows = rows, shared_p.cols = cols, shared_p.tiles = tiles, shared_p.ldx = cols, shared_p.ldy = shared_p.ldr = rows / (s["GLU"] ? 2 : 1);
    shared_p.rank = rank, shared_p.eps = 1e-5f, shared_p.scale = 1.0f, shared_p.softcap = 30.0f;
    std::vector<uint32_t> columns;
    for (int unit = 0; format == 4 && unit < cols / 256; unit++) {
        const uint32_t even = (uint32_t)widest * 0x11111111u;
        columns.insert(columns.end(), {(uint32_t)(unit * 16 * widest), even, even, (uint32_t)widest | (uint32_t)(cols / 16 * widest) << 8});
    }
    if (format == 4) shared_p.zeros = device(columns);
    std::vector<FusedPointers> all;
    for (int i = 0; i < copies; i++) {
        FusedPointers p = shared_p;
        p.q = b.q ? random_bytes(b.q, 100 + i, format == 1 ? 0x83ff83ffu : ~0u, format == 1 ? 0x28002800u : 0) : nullptr;
        p.scales = b.scales ? random_bytes(b.scales, 200 + i, 0x03ff03ffu, 0x20002000u) : nullptr;
        if (b.zeros) p.zeros = random_bytes(b.zeros, 300 + i);
        if (rank) {
            p.v = random_bytes(b.v, 400 + i), p.v_scales = random_bytes(b.v_scales, 500 + i, 0x03ff03ffu, 0x10001000u);
            p.u = random_bytes(b.u, 600 + i), p.u_scales = random_bytes(b.u_scales, 700 + i, 0x03ff03ffu, 0x10001000u);
        }
        if (s["SPARSE"]) p.s = device(entries);
        all.push_back(p);
    }
    CHECK(cudaDeviceSynchronize());
    const int launches = std::max(24, copies);
    double best[2];
    for (int dependent = 0; dependent < 2; dependent++)
        best[dependent] = seconds_of_launch(launches, 9, [&](int i, cudaStream_t stream) {
            launch(kernel, all[i % copies], grid, 1, shared, 32 * (int)s["WARPS"], stream, dependent);
        });
    printf("time us %.2f pdl %.2f bytes %zu percent %.1f pdl %.1f grid %d shared %zu", best[0] * 1e6, best[1] * 1e6, b.all(), 100 * b.all() / best[0] / ceiling,
           100 * b.all() / best[1] / ceiling, grid, shared);
    for (const auto& v : s.values) printf(" %s=%ld", v.first.c_str(), v.second);
    printf("\n");
    fflush(stdout);
    for (auto& p : all) {
        if (p.zeros != shared_p.zeros) CHECK(cudaFree((void*)p.zeros));
        for (const void* at : {p.q, p.scales, p.v, p.v_scales, p.u, p.u_scales, p.s}) CHECK(cudaFree((void*)at));
    }
    for (const void* at : {shared_p.x, shared_p.zeros, shared_p.v_tiles, shared_p.u_tiles, shared_p.u_index, shared_p.xq, shared_p.xs, shared_p.xsum, shared_p.gain, shared_p.s_offsets, shared_p.residual, shared_p.bias})
        CHECK(cudaFree((void*)at));
    for (void* at : {shared_p.h, shared_p.partial, shared_p.counter, shared_p.y}) CHECK(cudaFree(at));
}

int main(int argc, char** argv) {
    if (argc == 2 && !strcmp(argv[1], "bandwidth")) return printf("%.4e\n", bandwidth()), 0;
    const bool timing = argc > 3 && !strcmp(argv[1], "time");
    if (argc < 4 || (!timing && strcmp(argv[1], "check"))) return fprintf(stderr, "usage: fused_linear check|time CUBIN NAME=VALUE … [-- …] | bandwidth\n"), 2;
    const cudaKernel_t kernel = load(argv[2]);
    const char* given = getenv("BYTES_PER_SECOND");
    const double ceiling = timing ? (given ? atof(given) : bandwidth()) : 0;
    bool good = true;
    for (int i = 3; i < argc; i++) {
        Settings s;
        for (; i < argc && strcmp(argv[i], "--"); i++) s.set(argv[i]);
        if (timing) time_case(kernel, s, ceiling);
        else good &= check(kernel, s);
    }
    return good ? 0 : 1;
}
