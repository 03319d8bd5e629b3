// What a kernel of an onnxbench bundle is written with. The same source is compiled for a GPU (nvcc, NVRTC) and, to be
// tested without one, as C++ for the CPU, where each thread is a turn of a loop. No header of CUDA is needed.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ONNXBENCH_KERNEL extern "C" __global__ void
#define ONNXBENCH_DEVICE __device__ __forceinline__
#define ONNXBENCH_SHARED(type, name, size) __shared__ type name[size]
#define ONNXBENCH_OWN(type, name, size) type name[1][size]
#define ONNXBENCH_MINE 0
#define ONNXBENCH_TOGETHER for (int onnxbench_turn = 0; onnxbench_turn < 1; ++onnxbench_turn, __syncthreads())
#else
#include <math.h>
#include <cstring>
struct onnxbench_dim { unsigned x, y, z; };
static thread_local onnxbench_dim blockIdx{0, 0, 0}, threadIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};
#define ONNXBENCH_KERNEL extern "C" void
#define ONNXBENCH_DEVICE static inline
#define __restrict__
#define ONNXBENCH_SHARED(type, name, size) static thread_local type name[size]
#define ONNXBENCH_OWN(type, name, size) static thread_local type name[256][size]
#define ONNXBENCH_MINE threadIdx.x
#define ONNXBENCH_TOGETHER for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
static inline float __int_as_float(int bits) { float value; std::memcpy(&value, &bits, 4); return value; }
static inline int __float_as_int(float value) { int bits; std::memcpy(&bits, &value, 4); return bits; }
#endif

// Kernels whose threads work together (Kernel.blocks) are made of parts, ONNXBENCH_TOGETHER { ... }: every thread does a
// part, and waits for the others. On the CPU a part is a loop over the threads. What threads share from part to part lies
// in ONNXBENCH_SHARED arrays, what each keeps for itself in ONNXBENCH_OWN arrays: name[ONNXBENCH_MINE][i]. Nothing else
// outside of the parts may differ between threads, and every thread of a block goes through all of them.

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

#define ONNXBENCH_THREAD() ((long long)blockIdx.x * blockDim.x + threadIdx.x)
