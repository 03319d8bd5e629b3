#include "dcn_core.h"

// i: elements of the output, height and width of the input, height and width of the output, groups, channels of a
// group, kernel, stride, padding and dilation, each its height * 2^32 + its width; f: offset_scale
template <typename T>
ONNXBENCH_DEVICE void convolve(const T* __restrict__ value, const T* __restrict__ offset, const T* __restrict__ mask,
                               T* __restrict__ output, const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at >= p.i[0]) return;
  int height = (int)p.i[1], width = (int)p.i[2], channels = (int)(p.i[5] * p.i[6]);
  int kernel_h = (int)(p.i[7] >> 32), kernel_w = (int)(p.i[7] & 0xffffffff), taps = kernel_h * kernel_w;
  int dilation_h = (int)(p.i[10] >> 32), dilation_w = (int)(p.i[10] & 0xffffffff);
  long long place = at / channels, row = place / p.i[4];
  int channel = (int)(at - place * channels), group = channel / (int)p.i[6];
  int x = (int)(place - row * p.i[4]), image = (int)(row / p.i[3]), y = (int)(row - image * p.i[3]);
  // The middle of the kernel stays where it is, and the rest is scaled around it.
  float scale = p.f[0];
  int half_h = dilation_h * (kernel_h - 1) / 2, half_w = dilation_w * (kernel_w - 1) / 2;
  float top = (float)(half_h - (int)(p.i[9] >> 32) + y * (int)(p.i[8] >> 32)) - (float)half_h * scale;
  float left = (float)(half_w - (int)(p.i[9] & 0xffffffff) + x * (int)(p.i[8] & 0xffffffff)) - (float)half_w * scale;
  const T* plane = value + (long long)image * height * width * channels + channel;
  long long first = (place * (int)p.i[5] + group) * taps;
  float sum = 0.0f;
  for (int i = 0, tap = 0; i < kernel_w; ++i)
    for (int j = 0; j < kernel_h; ++j, ++tap) {
      float dx = onnxbench_load(offset + (first + tap) * 2), dy = onnxbench_load(offset + (first + tap) * 2 + 1);
      float at_y = top + ((float)(j * dilation_h) + dy) * scale, at_x = left + ((float)(i * dilation_w) + dx) * scale;
      if (is_seen(at_y, height) && is_seen(at_x, width))
        sum += sampled(plane, height, width, channels, at_y, at_x) * onnxbench_load(mask + first + tap);
    }
  onnxbench_store(output + at, sum);
}

ONNXBENCH_KERNEL dcn_v3_float32(const float* value, const float* offset, const float* mask, float* output,
                                onnxbench_params p) {
  convolve(value, offset, mask, output, p);
}
ONNXBENCH_KERNEL dcn_v3_float16(const onnxbench_half* value, const onnxbench_half* offset, const onnxbench_half* mask,
                                onnxbench_half* output, onnxbench_params p) {
  convolve(value, offset, mask, output, p);
}
ONNXBENCH_KERNEL dcn_v3_bfloat16(const onnxbench_bfloat16* value, const onnxbench_bfloat16* offset,
                                 const onnxbench_bfloat16* mask, onnxbench_bfloat16* output, onnxbench_params p) {
  convolve(value, offset, mask, output, p);
}
