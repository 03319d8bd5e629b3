// What a kernel of an onnxbench bundle is written with. The same source is compiled for a GPU (nvcc, NVRTC) and, to be
// tested without one, as C++ for the CPU, where each thread is a turn of a loop, or a thread of the CPU if those of a
// block work together (ONNXBENCH_SHARED, ONNXBENCH_SYNC). No header of CUDA is needed.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ONNXBENCH_KERNEL extern "C" __global__ void
#define ONNXBENCH_KERNEL_OF(threads) extern "C" __global__ void __launch_bounds__(threads)
#define ONNXBENCH_DEVICE __device__ __forceinline__
#define ONNXBENCH_DEVICE_MEMBER __device__ __forceinline__
#define ONNXBENCH_SHARED __shared__
#define ONNXBENCH_SYNC() __syncthreads()
#define ONNXBENCH_OWN(type, name, threads, size) type name[1][size]
#define ONNXBENCH_AT(thread) 0
#define ONNXBENCH_PART(thread, threads) \
  for (int thread = (int)threadIdx.x, onnxbench_turn = 0; onnxbench_turn < 1; ++onnxbench_turn, __syncthreads())
#else
#include <math.h>
#include <cstring>
struct onnxbench_dim { unsigned x, y, z; };
static thread_local onnxbench_dim blockIdx{0, 0, 0}, threadIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};
#define ONNXBENCH_KERNEL extern "C" void
#define ONNXBENCH_KERNEL_OF(threads) extern "C" void
#define ONNXBENCH_DEVICE static inline
#define ONNXBENCH_DEVICE_MEMBER inline
#define ONNXBENCH_SHARED static
#ifndef ONNXBENCH_SYNC
#define ONNXBENCH_SYNC()
#endif
#define ONNXBENCH_OWN(type, name, threads, size) static type name[threads][size]
#define ONNXBENCH_AT(thread) thread
#define ONNXBENCH_PART(thread, threads) for (int thread = threadIdx.x ? threads : 0; thread < threads; ++thread)
#define __restrict__
static inline float __int_as_float(int bits) { float value; std::memcpy(&value, &bits, 4); return value; }
static inline int __float_as_int(float value) { int bits; std::memcpy(&bits, &value, 4); return bits; }
#endif

// ONNXBENCH_KERNEL_OF(256) is ONNXBENCH_KERNEL for blocks of no more threads than that, so that the compiler gives each
// no more registers than there are for so many.
//
// Where a block has to have a certain number of threads, what they do together is written in parts, each of which all
// threads do before any goes on: ONNXBENCH_PART(thread, 256) { ... }. On the CPU a part is a loop that the first thread
// of the block runs. What a thread keeps from part to part lies in ONNXBENCH_OWN(float, sums, 256, 8), as
// sums[ONNXBENCH_AT(thread)][i], what they share in ONNXBENCH_SHARED arrays; whatever else is outside of parts must be
// the same in all threads.

struct onnxbench_params { long long i[16]; float f[8]; };

// float16 and bfloat16 as bits, computed with as float, rounded to nearest even.
struct onnxbench_half { unsigned short bits; };
struct onnxbench_bfloat16 { unsigned short bits; };

ONNXBENCH_DEVICE float onnxbench_load(const float* at) { return *at; }
ONNXBENCH_DEVICE void onnxbench_store(float* at, float value) { *at = value; }

ONNXBENCH_DEVICE float onnxbench_load(const onnxbench_bfloat16* at) { return __int_as_float((int)((unsigned)at->bits << 16)); }
ONNXBENCH_DEVICE void onnxbench_store(onnxbench_bfloat16* at, float value) {
  unsigned bits = (unsigned)__float_as_int(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) { at->bits = (unsigned short)((bits >> 16) | 0x40u); return; }
  at->bits = (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
ONNXBENCH_DEVICE float onnxbench_load(const onnxbench_half* at) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(at->bits));
  return value;
}
ONNXBENCH_DEVICE void onnxbench_store(onnxbench_half* at, float value) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(at->bits) : "f"(value));
}
#else
ONNXBENCH_DEVICE float onnxbench_load(const onnxbench_half* at) {
  unsigned bits = at->bits, sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 1023u;
  if (exponent == 31u) return __int_as_float((int)(sign | 0x7f800000u | (mantissa << 13)));
  if (exponent == 0u) {
    float value = (float)mantissa * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -value : value;
  }
  return __int_as_float((int)(sign | ((exponent + 112u) << 23) | (mantissa << 13)));
}
ONNXBENCH_DEVICE void onnxbench_store(onnxbench_half* at, float value) {
  unsigned bits = (unsigned)__float_as_int(value), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  unsigned made;
  if (rest > 0x7f800000u) made = 0x7e00u;                          // NaN
  else if (rest >= 0x477ff000u) made = 0x7c00u;                    // rounds to infinity
  else if (rest >= 0x38800000u) made = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;  // normal
  else if (rest < 0x33000000u) made = 0u;                          // rounds to zero
  else {                                                           // subnormal
    unsigned shift = 126u - (rest >> 23), mantissa = (rest & 0x7fffffu) | 0x800000u;
    unsigned kept = mantissa >> shift, left = mantissa & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    made = kept + (left > half || (left == half && (kept & 1u)) ? 1u : 0u);
  }
  at->bits = (unsigned short)(sign | made);
}
#endif

#define ONNXBENCH_THREAD() ((long long)blockIdx.x * blockDim.x + threadIdx.x)
