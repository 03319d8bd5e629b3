// Boxes x0, y0, x1, y1 and how far two of them overlap.
#pragma once
#include "onnxbench_nms.h"

struct corners { float x0, y0, x1, y1; };

// The boxes of one class: number `place` begins at place * stride.
template <typename T>
struct corner_boxes {
  const T* first;
  long long stride;

  ONNXBENCH_DEVICE_MEMBER corners load(long long place) const {
    const T* at = first + place * stride;
    return {onnxbench_load(at), onnxbench_load(at + 1), onnxbench_load(at + 2), onnxbench_load(at + 3)};
  }

  // Intersection over union; 0 where they do not meet. A box that ends before it begins has no area.
  ONNXBENCH_DEVICE_MEMBER float overlap(const corners& a, const corners& b) const {
    float width = fminf(a.x1, b.x1) - fmaxf(a.x0, b.x0), height = fminf(a.y1, b.y1) - fmaxf(a.y0, b.y0);
    if (!(width > 0.0f && height > 0.0f)) return 0.0f;
    float shared = width * height;
    return shared / (area(a) + area(b) - shared);
  }

  ONNXBENCH_DEVICE_MEMBER static float area(const corners& box) {
    return box.x1 < box.x0 || box.y1 < box.y0 ? 0.0f : (box.x1 - box.x0) * (box.y1 - box.y0);
  }
};
