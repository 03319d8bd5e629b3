#include "resize_core.h"

// i: elements of the output, height and width of the input, height and width of the output, align_corners
template <typename T>
ONNXBENCH_DEVICE void resize(const T* __restrict__ x, T* __restrict__ y, const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at >= p.i[0]) return;
  long long in_h = p.i[1], in_w = p.i[2], out_h = p.i[3], out_w = p.i[4];
  long long column = at % out_w, row = at / out_w % out_h, plane = at / (out_w * out_h);
  onnxbench_store(y + at, resize_bicubic(x + plane * in_h * in_w, in_h, in_w, out_h, out_w, row, column, p.i[5] != 0));
}

ONNXBENCH_KERNEL dynamic_resize_float32(const float* x, const void*, float* y, onnxbench_params p) { resize(x, y, p); }
ONNXBENCH_KERNEL dynamic_resize_float16(const onnxbench_half* x, const void*, onnxbench_half* y, onnxbench_params p) {
  resize(x, y, p);
}
ONNXBENCH_KERNEL dynamic_resize_bfloat16(const onnxbench_bfloat16* x, const void*, onnxbench_bfloat16* y,
                                         onnxbench_params p) {
  resize(x, y, p);
}
