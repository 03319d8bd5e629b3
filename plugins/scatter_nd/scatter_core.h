// Where an element of the updates goes.
#pragma once
#include "onnxbench_kernel.h"

// place: `depth` indices into dimensions of these sizes, below 0 from the end. Returns the number of the slice that they
// mean, -1 if there is none.
template <typename I>
ONNXBENCH_DEVICE long long slice_of(const I* place, long long depth, const long long* sizes) {
  long long number = 0;
  for (long long axis = 0; axis < depth; ++axis) {
    long long at = place[axis];
    if (at < 0) at += sizes[axis];
    if (at < 0 || at >= sizes[axis]) return -1;
    number = number * sizes[axis] + at;
  }
  return number;
}
