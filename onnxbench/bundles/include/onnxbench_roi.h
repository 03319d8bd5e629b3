// Sampling a feature map in the bins of a region, as RoI align does it, in float32.
#pragma once
#include "onnxbench_kernel.h"

// The samples of one bin along one axis: sample i lies at base + (i + 0.5) * step. Those before first and from last on
// lie outside of what can be seen.
struct roi_samples {
  float base, step, count;
  int first, last;
};

ONNXBENCH_DEVICE bool is_finite(float value) { return value - value == 0.0f; }

// from, length: the region along the axis, in pixels; ratio: samples in a bin, 0: one for each pixel that is begun; low,
// high: what can be seen.
ONNXBENCH_DEVICE roi_samples samples_of(float from, float length, int bins, int bin, int ratio, float low, float high) {
  float width = length / (float)bins;
  roi_samples made;
  made.count = ratio > 0 ? (float)ratio : ceilf(width);
  made.base = from + (float)bin * width;
  made.step = width / made.count;
  // One more on both sides than calculated, for what rounding does to it; each sample is looked at again.
  float room = made.step > 0.0f ? (low - made.base) / made.step - 1.5f : 0.0f;
  float end = made.step > 0.0f ? (high - made.base) / made.step + 1.5f : made.count;
  made.first = (int)fminf(fmaxf(floorf(room), 0.0f), made.count < 2.0e9f ? made.count : 2.0e9f);
  made.last = (int)fminf(fmaxf(ceilf(end), 0.0f), made.count < 2.0e9f ? made.count : 2.0e9f);
  return made;
}

// Where a coordinate lies between two pixels; false: it is outside, by more than one pixel.
ONNXBENCH_DEVICE bool pixels_around(float at, int size, int* low, int* high, float* part) {
  if (!(at >= -1.0f && at <= (float)size) || size == 0) return false;
  at = fmaxf(at, 0.0f);
  *low = (int)at;
  if (*low >= size - 1) {
    *low = *high = size - 1;
    *part = 0.0f;
  } else {
    *high = *low + 1;
    *part = at - (float)*low;
  }
  return true;
}

template <typename T>
ONNXBENCH_DEVICE float between(const T* upper, const T* lower, int left, int right, float dy, float dx) {
  float value = (1.0f - dy) * (1.0f - dx) * onnxbench_load(upper + left);
  value += (1.0f - dy) * dx * onnxbench_load(upper + right);
  value += dy * (1.0f - dx) * onnxbench_load(lower + left);
  return value + dy * dx * onnxbench_load(lower + right);
}

// The average or the largest of the samples of a bin; what is outside counts as 0, and no samples give 0.
template <typename T>
ONNXBENCH_DEVICE float pooled(const T* __restrict__ plane, int height, int width, const roi_samples& down,
                              const roi_samples& across, bool largest) {
  float sum = 0.0f, best = 0.0f;
  bool none = down.first == 0 && across.first == 0 && (float)down.last == down.count &&
              (float)across.last == across.count;
  for (int i = down.first; i < down.last; ++i) {
    int top, bottom;
    float dy;
    bool inside = pixels_around(down.base + ((float)i + 0.5f) * down.step, height, &top, &bottom, &dy);
    if (!inside) {
      best = none ? 0.0f : best < 0.0f ? 0.0f : best;
      none = false;
      continue;
    }
    const T *upper = plane + (long long)top * width, *lower = plane + (long long)bottom * width;
    for (int j = across.first; j < across.last; ++j) {
      int left, right;
      float dx, value = 0.0f;
      if (pixels_around(across.base + ((float)j + 0.5f) * across.step, width, &left, &right, &dx))
        value = between(upper, lower, left, right, dy, dx);
      sum += value;
      if (none || value > best || value != value) best = value;
      none = false;
    }
  }
  return largest ? best : sum / fmaxf(down.count * across.count, 1.0f);
}

// One element of the pooled map of a region: x1, y1, x2, y2 as they stand on the map of an image.
template <typename T>
ONNXBENCH_DEVICE float pooled_bin(const T* __restrict__ plane, int height, int width, const float* box, int bins_down,
                                  int bins_across, int row, int column, int ratio, bool aligned, bool largest) {
  float least = aligned ? 0.0f : 1.0f, tall = fmaxf(box[3] - box[1], least), wide = fmaxf(box[2] - box[0], least);
  roi_samples down = samples_of(box[1], tall, bins_down, row, ratio, -1.0f, (float)height);
  roi_samples across = samples_of(box[0], wide, bins_across, column, ratio, -1.0f, (float)width);
  return pooled(plane, height, width, down, across, largest);
}
