#include "moments_core.h"

#define CHUNK 16384
#define PIECE 4096

// i: elements of a plane, channels, chunks of a plane, pieces of a plane; f: epsilon

// A plane that fits into one chunk: a block for each.
template <typename T>
ONNXBENCH_DEVICE void whole(const T* __restrict__ input, const T* __restrict__ scale, const T* __restrict__ bias,
                            T* __restrict__ output, const onnxbench_params& p) {
  ONNXBENCH_SHARED moments each[THREADS];
  long long size = p.i[0], plane = blockIdx.x, channel = plane % p.i[1];
  ONNXBENCH_PART(thread, THREADS) { each[thread] = moments_of(input + plane * size, 0, size, thread); }
  gather(each);
  ONNXBENCH_PART(thread, THREADS) {
    normalization by =
        normalization_of(each[0], onnxbench_load(scale + channel), onnxbench_load(bias + channel), p.f[0]);
    normalize(input + plane * size, output + plane * size, 0, size, by, thread);
  }
}

// A larger one: a block for each chunk gathers, then one for each piece normalizes.
template <typename T>
ONNXBENCH_DEVICE void chunks(const T* __restrict__ input, moments* __restrict__ found, const onnxbench_params& p) {
  ONNXBENCH_SHARED moments each[THREADS];
  long long size = p.i[0], plane = blockIdx.x / p.i[2], from = blockIdx.x % p.i[2] * CHUNK;
  long long to = from + CHUNK < size ? from + CHUNK : size;
  ONNXBENCH_PART(thread, THREADS) { each[thread] = moments_of(input + plane * size, from, to, thread); }
  gather(each);
  ONNXBENCH_PART(thread, THREADS) {
    if (thread == 0) found[blockIdx.x] = each[0];
  }
}

template <typename T>
ONNXBENCH_DEVICE void pieces(const T* __restrict__ input, const T* __restrict__ scale, const T* __restrict__ bias,
                             T* __restrict__ output, const moments* __restrict__ found, const onnxbench_params& p) {
  ONNXBENCH_SHARED moments each[THREADS];
  long long size = p.i[0], plane = blockIdx.x / p.i[3], from = blockIdx.x % p.i[3] * PIECE, channel = plane % p.i[1];
  long long to = from + PIECE < size ? from + PIECE : size;
  ONNXBENCH_PART(thread, THREADS) {
    moments made = {0.0f, 0.0f, 0.0f};
    for (long long i = thread; i < p.i[2]; i += THREADS) made = together(made, found[plane * p.i[2] + i]);
    each[thread] = made;
  }
  gather(each);
  ONNXBENCH_PART(thread, THREADS) {
    normalization by =
        normalization_of(each[0], onnxbench_load(scale + channel), onnxbench_load(bias + channel), p.f[0]);
    normalize(input + plane * size, output + plane * size, from, to, by, thread);
  }
}

#define INSTANCE_NORM(name, T)                                                                                  \
  ONNXBENCH_KERNEL_OF(THREADS) instance_norm_whole_##name(const T* input, const T* scale, const T* bias,        \
                                                          T* output, void*, onnxbench_params p) {               \
    whole(input, scale, bias, output, p);                                                                       \
  }                                                                                                             \
  ONNXBENCH_KERNEL_OF(THREADS) instance_norm_chunks_##name(const T* input, const T*, const T*, T*, void* found, \
                                                           onnxbench_params p) {                                \
    chunks(input, (moments*)found, p);                                                                          \
  }                                                                                                             \
  ONNXBENCH_KERNEL_OF(THREADS) instance_norm_pieces_##name(const T* input, const T* scale, const T* bias,       \
                                                           T* output, void* found, onnxbench_params p) {        \
    pieces(input, scale, bias, output, (const moments*)found, p);                                               \
  }

INSTANCE_NORM(float32, float)
INSTANCE_NORM(float16, onnxbench_half)
INSTANCE_NORM(bfloat16, onnxbench_bfloat16)
