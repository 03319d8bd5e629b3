// Rotated boxes, x and y of the center, width, height, angle in radians, and how far two of them overlap.
#pragma once
#include "onnxbench_nms.h"

struct rotated { float x, y, width, height, cosine, sine; };
struct point { float x, y; };

// Cosine and sine of an angle to 2e-7, if it is no larger than 10000: the angle less its quarter turns, in three steps so
// that no digit is lost, and a polynomial. The compiler's own would be most of the kernel, for angles that no box has.
ONNXBENCH_DEVICE point on_circle(float angle) {
  float turns = rintf(angle * 0.636619772f);
  float rest = ((angle - turns * 1.5703125f) - turns * 4.83751297e-4f) - turns * 7.54978995e-8f, square = rest * rest;
  float sine = rest + rest * square * (-1.66666546e-1f + square * (8.33216087e-3f - square * 1.95152959e-4f));
  float cosine = 1.0f - 0.5f * square
      + square * square * (4.16666457e-2f + square * (-1.38873162e-3f + square * 2.44331571e-5f));
  int quarter = (int)turns & 3;
  float x = quarter & 1 ? sine : cosine, y = quarter & 1 ? cosine : sine;
  return {quarter == 1 || quarter == 2 ? -x : x, quarter & 2 ? -y : y};
}

// Writes the part of a convex polygon where nx * x + ny * y is not above a limit, and returns how many corners it has.
ONNXBENCH_DEVICE int clipped(const point* corners, int count, float nx, float ny, float limit, point* made) {
  int size = 0;
#pragma unroll 1
  for (int at = 0; at < count; ++at) {
    point a = corners[at], b = corners[at + 1 < count ? at + 1 : 0];
    float from = limit - nx * a.x - ny * a.y, to = limit - nx * b.x - ny * b.y;
    if (from >= 0.0f) made[size++] = a;
    if ((from > 0.0f && to < 0.0f) || (from < 0.0f && to > 0.0f)) {
      float share = from / (from - to);
      made[size++] = {a.x + share * (b.x - a.x), a.y + share * (b.y - a.y)};
    }
  }
  return size;
}

// The area that two boxes share: the corners of one, seen from the middle of the other along its sides, which cut off
// what lies beyond them. Each of the four can add a corner, so there are at most eight.
ONNXBENCH_DEVICE float shared_area(const rotated& a, const rotated& b) {
  float dx = a.x - b.x, dy = a.y - b.y, x = dx * b.cosine + dy * b.sine, y = dy * b.cosine - dx * b.sine;
  float cosine = a.cosine * b.cosine + a.sine * b.sine, sine = a.sine * b.cosine - a.cosine * b.sine;
  float ux = cosine * a.width * 0.5f, uy = sine * a.width * 0.5f;
  float vx = -sine * a.height * 0.5f, vy = cosine * a.height * 0.5f;
  point one[8] = {{x + ux + vx, y + uy + vy}, {x - ux + vx, y - uy + vy},
                  {x - ux - vx, y - uy - vy}, {x + ux - vx, y + uy - vy}};
  point two[8];
  int count = 4;
#pragma unroll 1
  for (int axis = 0; axis < 2; ++axis) {
    float across = axis ? 0.0f : 1.0f, down = 1.0f - across, limit = (axis ? b.height : b.width) * 0.5f;
    count = clipped(one, count, across, down, limit, two);
    count = clipped(two, count, -across, -down, limit, one);
  }
  float twice = 0.0f;
  for (int at = 2; at < count; ++at)
    twice += (one[at - 1].x - one[0].x) * (one[at].y - one[0].y) - (one[at].x - one[0].x) * (one[at - 1].y - one[0].y);
  return fabsf(twice) * 0.5f;
}

// The boxes of one class: number `place` begins at place * stride.
template <typename T>
struct rotated_boxes {
  const T* first;
  long long stride;

  ONNXBENCH_DEVICE_MEMBER rotated load(long long place) const {
    const T* at = first + place * stride;
    point turn = on_circle(onnxbench_load(at + 4));
    return {onnxbench_load(at), onnxbench_load(at + 1), onnxbench_load(at + 2), onnxbench_load(at + 3), turn.x, turn.y};
  }

  // Intersection over union; 0 where the circles around them do not meet, and of a box without an area.
  ONNXBENCH_DEVICE_MEMBER float overlap(const rotated& a, const rotated& b) const {
    float dx = a.x - b.x, dy = a.y - b.y, reach = radius(a) + radius(b);
    if (!(dx * dx + dy * dy <= reach * reach)) return 0.0f;
    float shared = shared_area(a, b), all = a.width * a.height + b.width * b.height - shared;
    return all > 0.0f ? shared / all : 0.0f;
  }

  ONNXBENCH_DEVICE_MEMBER static float radius(const rotated& box) {
    return 0.5f * sqrtf(box.width * box.width + box.height * box.height);
  }
};
