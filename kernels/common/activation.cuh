// Activation functions, by the plan's numbers.
#pragma once
#include "device.cuh"

#define HLRC_ACTIVATION_NONE 0
#define HLRC_ACTIVATION_SILU 1
#define HLRC_ACTIVATION_GELU 2
#define HLRC_ACTIVATION_GELU_TANH 3
#define HLRC_ACTIVATION_RELU 4
#define HLRC_ACTIVATION_TANH 5

template <int kind>
__device__ __forceinline__ float activate(float x) {
    if (kind == HLRC_ACTIVATION_SILU) return x / (1.0f + expf(-x));
    if (kind == HLRC_ACTIVATION_GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    // (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), without the cancellation.
    if (kind == HLRC_ACTIVATION_GELU_TANH) return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    if (kind == HLRC_ACTIVATION_RELU) return fmaxf(x, 0.0f);
    if (kind == HLRC_ACTIVATION_TANH) return tanhf(x);
    return x;
}
