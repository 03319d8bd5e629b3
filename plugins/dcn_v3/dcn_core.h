// Sampling an image whose channels come last between its pixels; what is outside is 0.
#pragma once
#include "onnxbench_kernel.h"

template <typename T>
ONNXBENCH_DEVICE float pixel(const T* channel, int height, int width, int step, int y, int x) {
  return y >= 0 && y < height && x >= 0 && x < width ? onnxbench_load(channel + ((long long)y * width + x) * step) : 0.0f;
}

// step: from a pixel to the next. NaN is outside.
template <typename T>
ONNXBENCH_DEVICE float sampled(const T* channel, int height, int width, int step, float y, float x) {
  float top = floorf(y), left = floorf(x), dy = y - top, dx = x - left;
  int y0 = (int)top, x0 = (int)left;
  float value = (1.0f - dy) * (1.0f - dx) * pixel(channel, height, width, step, y0, x0);
  value += (1.0f - dy) * dx * pixel(channel, height, width, step, y0, x0 + 1);
  value += dy * (1.0f - dx) * pixel(channel, height, width, step, y0 + 1, x0);
  return value + dy * dx * pixel(channel, height, width, step, y0 + 1, x0 + 1);
}

ONNXBENCH_DEVICE bool is_seen(float at, int size) { return at > -1.0f && at < (float)size; }
