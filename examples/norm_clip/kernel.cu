#include "onnxbench_kernel.h"

// One thread makes one element: it measures its row. n.i: elements, length of a row; n.f: the limit.
template <typename T>
ONNXBENCH_DEVICE void clip(const T* x, T* y, const onnxbench_params& n) {
  long long at = ONNXBENCH_THREAD();
  if (at >= n.i[0]) return;
  const T* row = x + at / n.i[1] * n.i[1];
  float sum = 0.0f;
  for (long long i = 0; i < n.i[1]; ++i) sum += onnxbench_load(row + i) * onnxbench_load(row + i);
  float length = sqrtf(sum);
  onnxbench_store(y + at, onnxbench_load(x + at) * (length > n.f[0] ? n.f[0] / length : 1.0f));
}

ONNXBENCH_KERNEL norm_clip_float32(const float* x, float* y, onnxbench_params n) { clip(x, y, n); }
ONNXBENCH_KERNEL norm_clip_float16(const onnxbench_half* x, onnxbench_half* y, onnxbench_params n) { clip(x, y, n); }
ONNXBENCH_KERNEL norm_clip_bfloat16(const onnxbench_bfloat16* x, onnxbench_bfloat16* y, onnxbench_params n) {
  clip(x, y, n);
}
