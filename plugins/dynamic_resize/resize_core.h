// Bicubic resampling of one element, as PyTorch's interpolate(mode="bicubic") does it: A = -0.75, edges repeated.
#pragma once
#include "onnxbench_kernel.h"

ONNXBENCH_DEVICE void cubic_weights(float t, float* w) {
  const float a = -0.75f;
  float u = t + 1.0f, v = 1.0f - t, z = 2.0f - t;
  w[0] = ((a * u - 5.0f * a) * u + 8.0f * a) * u - 4.0f * a;
  w[1] = ((a + 2.0f) * t - (a + 3.0f)) * t * t + 1.0f;
  w[2] = ((a + 2.0f) * v - (a + 3.0f)) * v * v + 1.0f;
  w[3] = ((a * z - 5.0f * a) * z + 8.0f * a) * z - 4.0f * a;
}

ONNXBENCH_DEVICE float source_position(long long at, long long in, long long out, bool align_corners) {
  if (align_corners) return out > 1 ? (float)at * ((float)(in - 1) / (float)(out - 1)) : 0.0f;
  return ((float)at + 0.5f) * ((float)in / (float)out) - 0.5f;
}

ONNXBENCH_DEVICE long long clamped(long long at, long long size) {
  return at < 0 ? 0 : at >= size ? size - 1 : at;
}

template <typename T>
ONNXBENCH_DEVICE float resize_bicubic(const T* plane, long long in_h, long long in_w, long long out_h, long long out_w,
                                      long long y, long long x, bool align_corners) {
  float fy = source_position(y, in_h, out_h, align_corners), fx = source_position(x, in_w, out_w, align_corners);
  float top = floorf(fy), left = floorf(fx), wy[4], wx[4];
  cubic_weights(fy - top, wy);
  cubic_weights(fx - left, wx);
  float sum = 0.0f;
  for (int i = 0; i < 4; ++i) {
    const T* row = plane + clamped((long long)top - 1 + i, in_h) * in_w;
    float part = 0.0f;
    for (int j = 0; j < 4; ++j) part += wx[j] * onnxbench_load(row + clamped((long long)left - 1 + j, in_w));
    sum += wy[i] * part;
  }
  return sum;
}
