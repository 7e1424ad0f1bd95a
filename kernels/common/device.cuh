// The base of every kernel: device language by nvcc or NVRTC, or by the emulation.
#pragma once
#ifdef HLRC_EMU
#include "../emu/hlrc_emu.h"
#else
#ifdef __CUDACC_RTC__ // has no headers of its own for these
#include "half_rtc.cuh"
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#endif
// Dynamic shared memory of a launch, as bytes.
#define HLRC_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// Every lane of a warp takes part.
#define HLRC_FULL_WARP 0xffffffffu
#define HLRC_INFINITY __uint_as_float(0x7f800000u)
