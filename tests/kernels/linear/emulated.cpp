// Runs cases of the fused linear in emulation: emulated KERNEL.so CASE [-- CASE …], where a case is
// NAME=VALUE …: the kernel's defines, rows, cols, grid, seed, schedule, resident, … (Settings).
//
// A line per case: ok or FAIL, error against f64, bytes loaded over the floor. Fails on the first
// case that differs; checked too: padding of y untouched, counters back at 0, a second launch equal
// to the first one bit by bit.
#include <dlfcn.h>

#include <memory>

#include "../../../benches/gpu/linear_launch.hpp"
#include "../../../kernels/emu/launch.h"

typedef int (*Run)(HlrcEmuLaunch*, void* const*);

struct Buffers {
    std::vector<std::unique_ptr<std::vector<uint8_t>>> storage;
    std::vector<HlrcEmuBuffer> list;
    template <class T>
    void* add(const char* name, const std::vector<T>& from, bool writable = false) {
        if (from.empty()) return nullptr;
        storage.push_back(std::make_unique<std::vector<uint8_t>>(from.size() * sizeof(T) + 256));
        uint8_t* base = (uint8_t*)(((uintptr_t)storage.back()->data() + 255) & ~(uintptr_t)255);
        memcpy(base, from.data(), from.size() * sizeof(T));
        HlrcEmuBuffer b{};
        b.name = name, b.base = base, b.bytes = from.size() * sizeof(T), b.writable = writable;
        list.push_back(b);
        return base;
    }
    const HlrcEmuBuffer* find(const char* name) const {
        for (const auto& b : list)
            if (!strcmp(b.name, name)) return &b;
        return nullptr;
    }
};

// The allowed error: rounding of sums in f32; a norm's last place may move an activation to the
// next code; f16 activations.
static double tolerance(const Settings& s) {
    const bool coded = s["FORMAT"] == 0 || s["FORMAT"] == 4;
    if (coded && s["ACT"] == 1) return 6e-4;
    if (coded && (s["XIN"] == 1 || s["XIN"] == 2)) return 2e-3;
    return 5e-6;
}

static bool run_case(Run run, const Settings& s) {
    LinearCase c(s);
    const int grid = (int)s["grid"], grid_y = fused_grid_y(s), m = (int)s["M"], super = fused_super(s);
    const int pad = 5, ldy = c.out_rows + pad;
    const bool q8 = s["XIN"] == 3, terms = s["LOWRANK"] || s["SPARSE"];
    const int extra = (int)s["ldx_extra"], ldx = c.cols + extra;
    std::vector<float> x((size_t)c.x_rows * ldx, NAN);
    for (int i = 0; i < c.x_rows; i++) memcpy(&x[(size_t)i * ldx], &c.x[(size_t)i * c.cols], c.cols * sizeof(float));
    x.resize(x.size() - extra); // the last row ends where it ends
    Buffers b;
    FusedPointers p{};
    const std::vector<float> none;
    p.x = b.add("x", q8 && !terms && !s["ACT"] ? none : x);
    if (q8) p.xq = b.add("xq", c.xq), p.xs = b.add("xs", c.xs), p.xsum = b.add("xsum", c.xsum);
    if (s["XIN"] == 1 || s["XIN"] == 2) p.gain = b.add("gain", c.gain);
    if (s["XIN"] == 2) p.beta = b.add("beta", c.beta);
    if (s["XSCALE"]) p.xscale = b.add("xscale", c.xscale);
    if (s["ROTATED"]) p.xr = b.add("xr", c.xr);
    p.q = b.add("q", c.q), p.scales = b.add("scales", c.scales), p.zeros = b.add("zeros", c.zeros);
    p.v = b.add("v", c.v), p.v_scales = b.add("v_scales", c.v_scales), p.v_tiles = b.add("v_tiles", c.v_tiles);
    if (s["EXPERTS"]) p.v_index = b.add("v_index", c.v_index);
    p.u = b.add("u", c.u), p.u_scales = b.add("u_scales", c.u_scales), p.u_tiles = b.add("u_tiles", c.u_tiles), p.u_index = b.add("u_index", c.u_index);
    p.s = b.add("s", c.entries), p.s_offsets = b.add("s_offsets", c.entry_offsets);
    if (s["BIAS"]) p.bias = b.add("bias", c.bias);
    std::vector<float> residual((size_t)c.outputs * ldy, NAN);
    for (int o = 0; o < c.outputs; o++) memcpy(&residual[(size_t)o * ldy], &c.residual[(size_t)o * c.out_rows], c.out_rows * sizeof(float));
    if (s["RESIDUAL"]) p.residual = b.add("residual", residual);
    if (s["EXPERTS"]) p.ids = b.add("ids", c.ids);
    if (s["EXPERTS"] == 2) p.weights = b.add("weights", c.weights);
    const uint32_t poison = 0x7fc12345;
    float poisoned;
    memcpy(&poisoned, &poison, 4);
    const std::vector<float> h((size_t)8 * c.rank * (s["EXPERTS"] == 1 ? c.outputs : c.x_rows), poisoned);
    const std::vector<float> partial(s["SPLIT"] ? (size_t)grid * grid_y * super * 16 * m : 0, poisoned);
    const std::vector<uint32_t> counter(s["SPLIT"] || s["LOWRANK"] ? (size_t)(2 + grid) * grid_y : 0, 0);
    const std::vector<float> y((size_t)c.outputs * ldy, poisoned);
    p.h = b.add("h", h, true), p.partial = b.add("partial", partial, true), p.counter = b.add("counter", counter, true), p.y = b.add("y", y, true);
    if (s["ROTATED"] == 2) p.y_terms = b.add("y_terms", y, true);
    p.rows = c.rows, p.cols = c.cols, p.tiles = c.tiles, p.ldx = ldx, p.ldy = ldy, p.ldr = ldy, p.rank = c.rank, p.top_k = (int)s["top_k"];
    p.ldxr = c.cols, p.ldt = ldy;
    p.eps = (float)c.eps, p.scale = (float)c.scale, p.softcap = (float)c.softcap;
    const std::vector<void*> arguments = p.arguments();

    HlrcEmuLaunch l{};
    l.grid[0] = grid, l.grid[1] = grid_y, l.grid[2] = 1;
    l.block[0] = 32 * (uint32_t)s["WARPS"], l.block[1] = l.block[2] = 1;
    l.dynamic_shared = fused_shared(s, c.cols, c.tiles, grid);
    l.shared_limit = s["shared_limit"] ? s["shared_limit"] : 232448;
    l.schedule = (uint32_t)s["schedule"];
    const bool waits = s["SPLIT"] || s["LOWRANK"];
    l.resident = s["resident"] ? (uint32_t)s["resident"] : waits ? grid * grid_y : 3;
    l.seed = (uint64_t)s["seed"];
    l.buffers = b.list.data(), l.buffer_count = b.list.size();

    std::vector<float> first;
    const char* failed = nullptr;
    double error = 0, ratio = 0;
    for (int pass = 0; pass < 2 && !failed; pass++) {
        float *out = (float*)p.y, *terms_out = (float*)p.y_terms;
        std::fill(out, out + y.size(), poisoned);
        if (terms_out) std::fill(terms_out, terms_out + y.size(), poisoned);
        if (run(&l, arguments.data())) {
            failed = l.error;
            break;
        }
        std::vector<float> result;
        for (int o = 0; o < c.outputs; o++)
            for (int r = 0; r < ldy; r++) {
                const float f = out[(size_t)o * ldy + r];
                uint32_t bits;
                memcpy(&bits, &f, 4);
                if (r < c.out_rows) result.push_back(f);
                else if (bits != poison) failed = "y is written beyond its rows";
            }
        error = relative_error(result, c.y);
        if (terms_out) {
            std::vector<float> rest;
            for (int o = 0; o < c.outputs; o++) rest.insert(rest.end(), terms_out + (size_t)o * ldy, terms_out + (size_t)o * ldy + c.out_rows);
            error += relative_error(rest, c.y_terms);
        }
        if (!failed && !(error <= tolerance(s))) failed = "wrong results";
        if (pass && memcmp(first.data(), result.data(), result.size() * 4)) failed = "a second launch gave other results";
        first = result;
        for (size_t i = 0; i < counter.size(); i++)
            if (((uint32_t*)p.counter)[i]) failed = "a counter is not 0 at the end";
        const HlrcEmuBuffer* codes = b.find("q");
        if (!failed && codes && !s["EXPERTS"] && codes->loaded != codes->bytes) failed = "codes are not read exactly once";
        uint64_t loaded = 0, floor = 0;
        for (const char* name : {"q", "scales", "zeros", "v", "v_scales", "u", "u_scales", "s"})
            if (const HlrcEmuBuffer* at = b.find(name)) floor += at->bytes;
        // What comes from memory: sectors of 32 bytes, once for each block that wants them; codes
        // of a block are read once, so all of their loads count.
        for (const auto& at : b.list)
            if (!at.writable && strncmp(at.name, "x", 1) && strcmp(at.name, "gain") && strcmp(at.name, "beta"))
                loaded += std::max<uint64_t>(strcmp(at.name, "q") ? 0 : at.loaded, 32 * at.sectors_by_block);
        ratio = floor ? (double)loaded / floor : 1;
        l.seed += 1000;
    }
    printf("%s error %.2e bytes/floor %.4f shared %zu", failed ? "FAIL" : "ok", error, ratio, (size_t)l.dynamic_shared);
    for (const auto& v : s.values) printf(" %s=%ld", v.first.c_str(), v.second);
    printf("%s%s\n", failed ? ": " : "", failed ? failed : "");
    fflush(stdout);
    return !failed;
}

int main(int argc, char** argv) {
    if (argc < 3) return fprintf(stderr, "usage: emulated KERNEL.so NAME=VALUE … [-- NAME=VALUE …]\n"), 2;
    void* library = dlopen(argv[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    const Run run = (Run)dlsym(library, "hlrc_emu_run");
    if (!run) return fprintf(stderr, "%s\n", dlerror()), 2;
    bool good = true;
    for (int i = 2; i < argc && good; i++) {
        Settings s;
        for (; i < argc && strcmp(argv[i], "--"); i++) s.set(argv[i]);
        good = run_case(run, s);
    }
    return good ? 0 : 1;
}
