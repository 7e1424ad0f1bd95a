// Checks and times kernels/attention_decode.cu on a GPU; one variant, which its defines make.
//
//   attention KV_HEADS POSITION [M [check]]    outputs and the new key against f64, twice, poisoned;
//                                              microseconds per launch, percent of read bandwidth
//                                              (BYTES_PER_SECOND) but with `check`
//
// `attention.py` drives it.
#include <cuda_runtime.h>

#include "../../kernels/attention_decode.cu"
#include "linear_case.hpp"
#include "timing.hpp"

constexpr int DIM = HEAD_DIM, GROUPS = (HEAD_DIM + 31) / 32, VALUE_BYTES = KV ? 1 : 2;
template <class T>
static T* device(const std::vector<T>& from) {
    T* p;
    CHECK(cudaMalloc(&p, from.size() * sizeof(T) + 16));
    CHECK(cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
struct Half { // of a cache
    std::vector<uint8_t> values;
    std::vector<uint16_t> scales;
    explicit Half(size_t rows, Random& rng) : values(rows * DIM * VALUE_BYTES), scales(KV ? rows * GROUPS : 1) {
        for (uint16_t& s : scales) s = to_f16(0.005 + 0.01 * rng.uniform());
        for (size_t i = 0; i < rows * DIM; i++) {
            if (KV) {
                values[i] = (uint8_t)(rng.below(255) - 127);
            } else {
                const uint16_t h = to_f16(rng.uniform() * 4 - 2);
                memcpy(&values[2 * i], &h, 2);
            }
        }
    }
    double at(size_t row, int d) const {
        if (KV) return (int8_t)values[row * DIM + d] * from_f16(scales[row * GROUPS + d / 32]);
        uint16_t h;
        memcpy(&h, &values[2 * (row * DIM + d)], 2);
        return from_f16(h);
    }
};

int main(int argc, char** argv) {
    if (argc < 3) return fprintf(stderr, "usage: attention KV_HEADS POSITION [M [check]]\n"), 2;
    const int kv_heads = atoi(argv[1]), position = atoi(argv[2]), m = argc > 3 ? atoi(argv[3]) : 1;
    const int heads = kv_heads * GROUP_Q, capacity = position + 1, width = (heads + 2 * kv_heads) * DIM;
    Random rng(17);
    const size_t rows = (size_t)m * capacity * kv_heads;
    Half k(rows, rng), v(rows, rng);
    std::vector<float> qkv((size_t)m * width), freq(DIM / 2);
    for (float& f : qkv) f = (float)rng.normal();
    for (int i = 0; i < DIM / 2; i++) freq[i] = (float)std::pow(10000.0, -2.0 * i / DIM);
    const std::vector<int> positions(m, position);
    int l2;
    CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, 0));
    const size_t bytes = 2 * (k.values.size() + (KV ? k.scales.size() * 2 : 0));
    const int copies = (int)std::min<size_t>(64, std::max<size_t>(3, (4 * (size_t)l2 + bytes - 1) / bytes)), launches = std::max(24, copies);
    std::vector<uint8_t*> ks, vs;
    for (int i = 0; i < copies; i++) ks.push_back(device(k.values)), vs.push_back(device(v.values));
    __half *k_scales = (__half*)device(k.scales), *v_scales = (__half*)device(v.scales);
    float *qkv_d = device(qkv), *freq_d = device(freq), *partial = device(std::vector<float>((size_t)m * heads * SPLITS * (DIM + 2), NAN));
    const int* positions_d = device(positions);
    unsigned* counter = device(std::vector<unsigned>((size_t)m * kv_heads, 0));
    std::vector<float> y((size_t)m * heads * DIM, NAN), first;
    float* y_d = device(y);
    const float scale = 1.0f / std::sqrt((float)DIM);
    const auto launch = [&](int i, cudaStream_t stream, bool dependent) {
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(kv_heads, SPLITS, m), config.blockDim = dim3(THREADS), config.stream = stream;
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization, attribute.val.programmaticStreamSerializationAllowed = 1;
        config.attrs = &attribute, config.numAttrs = dependent ? 1 : 0;
        CHECK(cudaLaunchKernelEx(&config, attention_decode, (const float*)qkv_d, (const float*)nullptr, (const float*)nullptr, (const float*)freq_d, ks[i], vs[i],
                                 k_scales, v_scales, (const int*)nullptr, positions_d, partial, counter, y_d, width, 0, heads * DIM, (heads + kv_heads) * DIM,
                                 heads * DIM, heads, kv_heads, ROPE ? DIM : 0, capacity, 0, 0, 0, 1e-6f, 1.0f, scale, 20.0f));
    };
    bool good = true;
    for (int pass = 0; pass < 2; pass++) {
        CHECK(cudaMemset(y_d, 0xff, y.size() * 4));
        launch(0, 0, false);
        CHECK(cudaDeviceSynchronize());
        CHECK(cudaMemcpy(y.data(), y_d, y.size() * 4, cudaMemcpyDeviceToHost));
        if (pass) good &= !memcmp(first.data(), y.data(), y.size() * 4);
        first = y;
    }
    // The cache with its new row, as it is now; the row against f64.
    const auto fetch = [](Half& h, const uint8_t* values, const __half* scales) {
        CHECK(cudaMemcpy(h.values.data(), values, h.values.size(), cudaMemcpyDeviceToHost));
        CHECK(cudaMemcpy(h.scales.data(), scales, h.scales.size() * 2, cudaMemcpyDeviceToHost));
    };
    fetch(k, ks[0], k_scales), fetch(v, vs[0], v_scales);
    const auto rotated = [&](const float* x) {
        std::vector<double> head(x, x + DIM);
        for (int i = 0; ROPE == 1 && i < DIM / 2; i++) {
            const double angle = (double)((float)position * freq[i]), c = std::cos(angle), s = std::sin(angle), a = head[i], b = head[i + DIM / 2];
            head[i] = a * c - b * s, head[i + DIM / 2] = b * c + a * s;
        }
        return head;
    };
    double error = 0, row_error = 0;
    for (int s = 0; s < m; s++)
        for (int h = 0; h < heads; h++) {
            const int kv = h / GROUP_Q;
            const std::vector<double> q = rotated(&qkv[(size_t)s * width + h * DIM]), new_key = rotated(&qkv[(size_t)s * width + (heads + kv) * DIM]);
            const auto row = [&](int p) { return ((size_t)s * capacity + p) * kv_heads + kv; };
            for (int d = 0; d < DIM; d++) {
                row_error = std::fmax(row_error, std::fabs(k.at(row(position), d) - new_key[d]));
                row_error = std::fmax(row_error, std::fabs(v.at(row(position), d) - qkv[(size_t)s * width + (heads + kv_heads + kv) * DIM + d]));
            }
            std::vector<double> score(position + 1), out(DIM, 0.0);
            double most = -INFINITY, total = 0;
            for (int p = 0; p <= position; p++) {
                double dot = 0;
                for (int d = 0; d < DIM; d++) dot += q[d] * k.at(row(p), d);
                score[p] = SOFTCAP ? 20 * std::tanh(scale * dot / 20) : scale * dot, most = std::fmax(most, score[p]);
            }
            for (int p = 0; p <= position; p++) {
                const double weight = std::exp(score[p] - most);
                total += weight;
                for (int d = 0; d < DIM; d++) out[d] += weight * v.at(row(p), d);
            }
            double square = 0, off = 0;
            for (int d = 0; d < DIM; d++) {
                const double want = out[d] / total, have = y[((size_t)s * heads + h) * DIM + d];
                square += want * want, off += (have - want) * (have - want);
            }
            const double relative = std::sqrt(off / square);
            error = std::isnan(relative) || relative > error ? relative : error;
        }
    good &= error < 5e-6 && row_error < (KV ? 0.03 : 2e-3);

    if (argc > 4) return printf("%s error %.1e row %.1e\n", good ? "ok" : "FAIL", error, row_error), good ? 0 : 1;
    double best[2];
    for (int dependent = 0; dependent < 2; dependent++)
        best[dependent] = seconds_of_launch(launches, 9, [&](int i, cudaStream_t stream) { launch(i % copies, stream, dependent); });
    const char* given = getenv("BYTES_PER_SECOND");
    const double ceiling = given ? atof(given) : 4.5e12;
    printf("%s error %.1e row %.1e  us %.2f pdl %.2f  bytes %zu percent %.1f pdl %.1f  HEAD_DIM=%d GROUP_Q=%d KV=%d SPLITS=%d kv_heads=%d position=%d m=%d\n", good ? "ok" : "FAIL",
           error, row_error, best[0] * 1e6, best[1] * 1e6, bytes, 100 * bytes / best[0] / ceiling, 100 * bytes / best[1] / ceiling, DIM, GROUP_Q, KV, SPLITS, kv_heads,
           position, m);
    return good ? 0 : 1;
}
