// Which element of the data an element of the result is.
#pragma once
#include "onnxbench_kernel.h"

// at: number of the element; length: rows of an image; count: rows that are kept of it; rest: elements of a row.
// Returns -1 for a row that is not there. Numbers below 0 count from the end.
template <typename I>
ONNXBENCH_DEVICE long long gathered_from(const I* indices, long long at, long long length, long long count,
                                         long long rest) {
  long long kept = at / rest, row = indices[kept];
  if (row < 0) row += length;
  if (row < 0 || row >= length) return -1;
  return (kept / count * length + row) * rest + at % rest;
}
