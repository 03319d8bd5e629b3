#include "priors_core.h"

// i: elements of the output, anchors, width of the feature map, strides down and across
template <typename T>
ONNXBENCH_DEVICE void priors(const T* __restrict__ anchors, T* __restrict__ output, const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at < p.i[0]) onnxbench_store(output + at, prior(anchors, at, p.i[1], p.i[2], p.i[3], p.i[4]));
}

ONNXBENCH_KERNEL grid_priors_float32(const float* anchors, const void*, const void*, float* output,
                                     onnxbench_params p) {
  priors(anchors, output, p);
}
ONNXBENCH_KERNEL grid_priors_float16(const onnxbench_half* anchors, const void*, const void*, onnxbench_half* output,
                                     onnxbench_params p) {
  priors(anchors, output, p);
}
ONNXBENCH_KERNEL grid_priors_bfloat16(const onnxbench_bfloat16* anchors, const void*, const void*,
                                      onnxbench_bfloat16* output, onnxbench_params p) {
  priors(anchors, output, p);
}
