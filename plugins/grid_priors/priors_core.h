// Where an anchor lies in a cell of a feature map.
#pragma once
#include "onnxbench_kernel.h"

// at: number of the element of the result, (row, column, anchor, side); sides are x0, y0, x1, y1.
template <typename T>
ONNXBENCH_DEVICE float prior(const T* anchors, long long at, long long count, long long width, long long stride_h,
                             long long stride_w) {
  long long side = at % 4, anchor = at / 4 % count, cell = at / 4 / count;
  long long move = side % 2 ? cell / width * stride_h : cell % width * stride_w;
  return onnxbench_load(anchors + anchor * 4 + side) + (float)move;
}
