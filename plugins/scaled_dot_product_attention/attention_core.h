// A part of a product of matrices by a block of threads: 8 rows and 32 columns, from 32 products of each at a time, which
// the threads load into shared memory first. Right with any number of threads; made for 256, one for each element.
#pragma once
#include "onnxbench_kernel.h"

#define TILE_ROWS 8
#define TILE_COLUMNS 32
#define TILE_DEPTH 32
#define TILE_SIZE (TILE_ROWS * TILE_COLUMNS)

// a: `rows` rows, `depth` long; b: `columns` rows of that length (turned), or `depth` rows of `stride` elements.
// Rows and columns beyond what there is are 0.
template <bool turned, typename T>
ONNXBENCH_DEVICE void multiply_tile(const T* a, long long rows, const T* b, long long columns, long long depth,
                                    long long stride, float* result) {
  ONNXBENCH_SHARED float left[TILE_ROWS][TILE_DEPTH], right[TILE_DEPTH][TILE_COLUMNS + 1];
  for (int at = threadIdx.x; at < TILE_SIZE; at += blockDim.x) result[at] = 0.0f;
  for (long long from = 0; from < depth; from += TILE_DEPTH) {
    ONNXBENCH_SYNC();
    for (int at = threadIdx.x; at < TILE_ROWS * TILE_DEPTH; at += blockDim.x) {
      int row = at / TILE_DEPTH, step = at % TILE_DEPTH;
      left[row][step] = row < rows && from + step < depth ? onnxbench_load(a + row * depth + from + step) : 0.0f;
    }
    for (int at = threadIdx.x; at < TILE_DEPTH * TILE_COLUMNS; at += blockDim.x) {
      // Neighbouring threads read neighbouring elements: of a row of b, whichever way that lies.
      int step = turned ? at % TILE_DEPTH : at / TILE_COLUMNS, column = turned ? at / TILE_DEPTH : at % TILE_COLUMNS;
      const T* of = turned ? b + column * depth + from + step : b + (from + step) * stride + column;
      right[step][column] = column < columns && from + step < depth ? onnxbench_load(of) : 0.0f;
    }
    ONNXBENCH_SYNC();
    int steps = depth - from < TILE_DEPTH ? (int)(depth - from) : TILE_DEPTH;
    for (int at = threadIdx.x; at < TILE_SIZE; at += blockDim.x) {
      float sum = result[at];
      for (int step = 0; step < steps; ++step)
        sum += left[at / TILE_COLUMNS][step] * right[step][at % TILE_COLUMNS];
      result[at] = sum;
    }
  }
}

// A softmax that is not done yet: the largest score so far, and the sum of the powers relative to it.
struct running { float largest, sum; };

ONNXBENCH_DEVICE running joined(running a, running b) {
  if (b.sum == 0.0f) return a;
  if (a.sum == 0.0f) return b;
  float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

// A score of -infinity counts for nothing; any other that is not finite makes all NaN.
ONNXBENCH_DEVICE running with_score(running so_far, float score) {
  return score == -__int_as_float(0x7f800000) ? so_far : joined(so_far, {score, 1.0f + (score - score)});
}
