// What follows a linear. Defines: ACTIVATION (0 none, 1 SiLU, 2 GELU, 3 GELU by tanh, 4 ReLU,
// 5 tanh).
#pragma once
#include "device.cuh"

__device__ __forceinline__ float activate(float v) {
#if ACTIVATION == 1
    return v / (1.0f + expf(-v));
#elif ACTIVATION == 2
    return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
#elif ACTIVATION == 3
    return 0.5f * v * (1.0f + tanhf(0.79788456080286536f * fmaf(0.044715f * v * v, v, v)));
#elif ACTIVATION == 4
    return fmaxf(v, 0.0f);
#elif ACTIVATION == 5
    return tanhf(v);
#else
    return v;
#endif
}
