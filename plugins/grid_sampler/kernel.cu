#include "sampler_core.h"

// i: elements of the output, channels, height and width of the input, height and width of the output, mode, padding,
// align_corners
template <typename T>
ONNXBENCH_DEVICE void sample(const T* __restrict__ input, const T* __restrict__ grid, T* __restrict__ output,
                             const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at >= p.i[0]) return;
  long long channels = p.i[1], height = p.i[2], width = p.i[3], points = p.i[4] * p.i[5];
  long long plane = at / points, image = plane / channels;
  const T* point = grid + (image * points + at % points) * 2;
  onnxbench_store(output + at, sampled(input + plane * height * width, height, width, onnxbench_load(point),
                                       onnxbench_load(point + 1), p.i[6], p.i[7], p.i[8] != 0));
}

ONNXBENCH_KERNEL grid_sampler_float32(const float* input, const float* grid, float* output, onnxbench_params p) {
  sample(input, grid, output, p);
}
ONNXBENCH_KERNEL grid_sampler_float16(const onnxbench_half* input, const onnxbench_half* grid, onnxbench_half* output,
                                      onnxbench_params p) {
  sample(input, grid, output, p);
}
ONNXBENCH_KERNEL grid_sampler_bfloat16(const onnxbench_bfloat16* input, const onnxbench_bfloat16* grid,
                                       onnxbench_bfloat16* output, onnxbench_params p) {
  sample(input, grid, output, p);
}
