#include "gather_core.h"

// i: elements of the output, rows of an image, rows that are kept of it, elements of a row
template <typename T, typename I>
ONNXBENCH_DEVICE void gather(const T* __restrict__ data, const I* __restrict__ indices, T* __restrict__ output,
                             const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at >= p.i[0]) return;
  long long from = gathered_from(indices, at, p.i[1], p.i[2], p.i[3]);
  output[at] = from < 0 ? T{} : data[from];
}

#define GATHER(name, T, I)                                                                                 \
  ONNXBENCH_KERNEL gather_topk_##name(const T* data, const I* indices, T* output, onnxbench_params p) {    \
    gather(data, indices, output, p);                                                                      \
  }
GATHER(float32_int64, float, long long)
GATHER(float32_int32, float, int)
GATHER(float16_int64, onnxbench_half, long long)
GATHER(float16_int32, onnxbench_half, int)
GATHER(bfloat16_int64, onnxbench_bfloat16, long long)
GATHER(bfloat16_int32, onnxbench_bfloat16, int)
GATHER(int32_int64, int, long long)
GATHER(int32_int32, int, int)
GATHER(int64_int64, long long, long long)
GATHER(int64_int32, long long, int)
