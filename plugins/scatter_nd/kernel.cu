#include "scatter_core.h"

// i: elements of the data, elements of the updates, indices of a place, places, sizes of the dimensions of the data
template <typename T>
ONNXBENCH_DEVICE void copy(const T* __restrict__ data, T* __restrict__ output, const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at < p.i[0]) output[at] = data[at];
}

template <typename T, typename I>
ONNXBENCH_DEVICE void replace(const I* __restrict__ indices, const T* __restrict__ updates, T* __restrict__ output,
                              const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at >= p.i[1]) return;
  long long size = p.i[1] / p.i[3], slice = slice_of(indices + at / size * p.i[2], p.i[2], p.i + 4);
  if (slice >= 0) output[slice * size + at % size] = updates[at];
}

#define SCATTER(name, T, I)                                                                                   \
  ONNXBENCH_KERNEL scatter_nd_copy_##name(const T* data, const I*, const T*, T* output, onnxbench_params p) { \
    copy(data, output, p);                                                                                    \
  }                                                                                                           \
  ONNXBENCH_KERNEL scatter_nd_replace_##name(const T*, const I* indices, const T* updates, T* output,         \
                                             onnxbench_params p) {                                            \
    replace(indices, updates, output, p);                                                                     \
  }
SCATTER(float32_int32, float, int)
SCATTER(float32_int64, float, long long)
SCATTER(float16_int32, onnxbench_half, int)
SCATTER(float16_int64, onnxbench_half, long long)
SCATTER(bfloat16_int32, onnxbench_bfloat16, int)
SCATTER(bfloat16_int64, onnxbench_bfloat16, long long)
SCATTER(int32_int32, int, int)
SCATTER(int32_int64, int, long long)
SCATTER(int64_int32, long long, int)
SCATTER(int64_int64, long long, long long)
