// Sampling a plane between its pixels, by weights that all planes at a place share; what is outside is 0.
#pragma once
#include "onnxbench_kernel.h"

// The pixel to the upper left, and what it and its neighbours count for: of a pixel that is outside, nothing.
struct sample_place {
  bool seen;
  int y, x;
  float weights[4];
};

// scale: what the sample is multiplied with. NaN, and a pixel or more outside, is nowhere.
ONNXBENCH_DEVICE sample_place place_of(float y, float x, float scale, int height, int width) {
  sample_place made = {false, 0, 0, {0.0f, 0.0f, 0.0f, 0.0f}};
  if (!(y > -1.0f && y < (float)height && x > -1.0f && x < (float)width)) return made;
  float top = floorf(y), left = floorf(x), dy = y - top, dx = x - left;
  made.seen = true;
  made.y = (int)top;
  made.x = (int)left;
  made.weights[0] = (1.0f - dy) * (1.0f - dx) * scale;
  made.weights[1] = (1.0f - dy) * dx * scale;
  made.weights[2] = dy * (1.0f - dx) * scale;
  made.weights[3] = dy * dx * scale;
  return made;
}

template <typename T>
ONNXBENCH_DEVICE float sampled(const T* plane, int height, int width, const sample_place& place) {
  const T* at = plane + (long long)place.y * width + place.x;
  bool above = place.y >= 0, below = place.y + 1 < height, before = place.x >= 0, behind = place.x + 1 < width;
  float sum = above && before ? place.weights[0] * onnxbench_load(at) : 0.0f;
  if (above && behind) sum += place.weights[1] * onnxbench_load(at + 1);
  if (below && before) sum += place.weights[2] * onnxbench_load(at + width);
  if (below && behind) sum += place.weights[3] * onnxbench_load(at + width + 1);
  return sum;
}
