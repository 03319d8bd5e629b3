// Sampling a plane at a point, as PyTorch's grid_sample does it, in its CUDA kernels' order of operations.
// Modes: 0 bilinear, 1 nearest, 2 bicubic. Padding: 0 zeros, 1 border, 2 reflection.
#pragma once
#include "onnxbench_kernel.h"

// From -1 .. 1 to pixels: -1 and 1 are the centers of the outermost pixels, or their outer edges.
ONNXBENCH_DEVICE float to_pixels(float at, long long size, bool align_corners) {
  return align_corners ? (at + 1.0f) / 2.0f * (float)(size - 1) : ((at + 1.0f) * (float)size - 1.0f) / 2.0f;
}

// fmaxf and fminf give the other argument for NaN, so NaN becomes 0.
ONNXBENCH_DEVICE float into_border(float at, long long size) { return fminf((float)(size - 1), fmaxf(at, 0.0f)); }

ONNXBENCH_DEVICE float reflected(float at, long long size, bool align_corners) {
  float low = align_corners ? 0.0f : -0.5f, span = align_corners ? (float)(size - 1) : (float)size;
  if (span <= 0.0f) return 0.0f;
  float distance = fabsf(at - low), rest = fmodf(distance, span), flips = floorf(distance / span);
  return fmodf(flips, 2.0f) == 0.0f ? rest + low : span - rest + low;
}

// What no integer can hold, NaN among it, is far outside.
ONNXBENCH_DEVICE float safe(float at) { return at > -2147483648.0f && at < 2147483520.0f ? at : -100.0f; }

ONNXBENCH_DEVICE float padded(float at, long long size, long long padding, bool align_corners) {
  if (padding == 2) at = reflected(at, size, align_corners);
  if (padding != 0) at = into_border(at, size);
  return safe(at);
}

template <typename T>
ONNXBENCH_DEVICE float pixel(const T* plane, long long height, long long width, long long y, long long x) {
  return y >= 0 && y < height && x >= 0 && x < width ? onnxbench_load(plane + y * width + x) : 0.0f;
}

template <typename T>
ONNXBENCH_DEVICE float padded_pixel(const T* plane, long long height, long long width, float y, float x,
                                    long long padding, bool align_corners) {
  return pixel(plane, height, width, (long long)padded(y, height, padding, align_corners),
               (long long)padded(x, width, padding, align_corners));
}

ONNXBENCH_DEVICE void cubic_weights(float t, float* w) {
  const float a = -0.75f;
  float u = t + 1.0f, v = 1.0f - t, z = 2.0f - t;
  w[0] = ((a * u - 5.0f * a) * u + 8.0f * a) * u - 4.0f * a;
  w[1] = ((a + 2.0f) * t - (a + 3.0f)) * t * t + 1.0f;
  w[2] = ((a + 2.0f) * v - (a + 3.0f)) * v * v + 1.0f;
  w[3] = ((a * z - 5.0f * a) * z + 8.0f * a) * z - 4.0f * a;
}

// gx and gy are the point as the grid says it.
template <typename T>
ONNXBENCH_DEVICE float sampled(const T* plane, long long height, long long width, float gx, float gy, long long mode,
                               long long padding, bool align_corners) {
  float x = to_pixels(gx, width, align_corners), y = to_pixels(gy, height, align_corners);
  if (mode == 2) {
    float left = floorf(x), top = floorf(y), wx[4], wy[4], sum = 0.0f;
    cubic_weights(x - left, wx);
    cubic_weights(y - top, wy);
    for (int i = 0; i < 4; ++i) {
      float row = 0.0f;
      for (int j = 0; j < 4; ++j)
        row += wx[j] * padded_pixel(plane, height, width, top - 1.0f + i, left - 1.0f + j, padding, align_corners);
      sum += wy[i] * row;
    }
    return sum;
  }
  x = padded(x, width, padding, align_corners);
  y = padded(y, height, padding, align_corners);
  if (mode == 1) return pixel(plane, height, width, (long long)rintf(y), (long long)rintf(x));
  float left = floorf(x), top = floorf(y), right = x - left, bottom = y - top;
  long long x0 = (long long)left, y0 = (long long)top;
  float sum = (1.0f - bottom) * (1.0f - right) * pixel(plane, height, width, y0, x0);
  sum += (1.0f - bottom) * right * pixel(plane, height, width, y0, x0 + 1);
  sum += bottom * (1.0f - right) * pixel(plane, height, width, y0 + 1, x0);
  return sum + bottom * right * pixel(plane, height, width, y0 + 1, x0 + 1);
}
