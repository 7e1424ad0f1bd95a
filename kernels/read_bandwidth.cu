// Reads memory and keeps a sum: what bandwidth a device has. Not part of plans; `bench` uses it.
//
// Every thread reads 16 bytes at a time, 8 loads under way; the sum is stored only if it has a value
// that it does not have, so that loads are kept and nothing is written.
// Bytes: 16 · count read.
//
// kernel: read_bandwidth abi=1
// defines:
// args: x:const u8* y:u32* count:i32
// block: 256
#include "common/memory.cuh"

extern "C" __global__ void __launch_bounds__(256) read_bandwidth(const uint4* __restrict__ x, unsigned* __restrict__ y, int count) {
    unsigned sum = 0;
    const int stride = (int)(gridDim.x * blockDim.x), first = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    int i = first;
    for (; i < count - 7 * stride; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = load_stream(x + i + j * stride);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < count; i += stride) {
        const uint4 v = load_stream(x + i);
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x9e3779b9u) *y = sum;
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(read_bandwidth)
#endif
