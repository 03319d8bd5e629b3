// A part of a product of matrices by a block of threads: 32 rows and 64 columns, from 16 products of each at a time.
// Both factors lie in shared memory by fours, which a thread reads at once; each of the 128 threads makes 4 by 4.
#pragma once
#include "onnxbench_kernel.h"

#define THREADS 128
#define ROWS 32
#define COLUMNS 64
#define DEPTH 16

struct alignas(16) four {
  float at[4];
};

// 16 products of the rows and of the columns of a part. One four more than there are, so that threads that load
// neighbours along the depth write to different banks.
struct factors {
  four left[DEPTH][ROWS / 4 + 1], right[DEPTH][COLUMNS / 4 + 1];
};

// Puts `steps` products of `rows` rows and `columns` columns there, and 0 beyond. Neighbouring threads read neighbouring
// elements: of a row of b, whichever way that lies.
template <bool turned, typename T>
ONNXBENCH_DEVICE void load_factors(const T* a, int rows, const T* b, int columns, int steps, long long depth,
                                   long long stride, factors& to, int thread) {
  int row = thread / DEPTH, step = thread % DEPTH;
  for (a += row * depth + step; row < ROWS; row += THREADS / DEPTH, a += THREADS / DEPTH * depth)
    to.left[step][row / 4].at[row % 4] = row < rows && step < steps ? onnxbench_load(a) : 0.0f;
  if (turned) {
    int column = thread / DEPTH;
    for (b += column * depth + step; column < COLUMNS; column += THREADS / DEPTH, b += THREADS / DEPTH * depth)
      to.right[step][column / 4].at[column % 4] = column < columns && step < steps ? onnxbench_load(b) : 0.0f;
  } else {
    int column = thread % COLUMNS;
    step = thread / COLUMNS;
    for (b += step * stride + column; step < DEPTH; step += THREADS / COLUMNS, b += THREADS / COLUMNS * stride)
      to.right[step][column / 4].at[column % 4] = column < columns && step < steps ? onnxbench_load(b) : 0.0f;
  }
}

ONNXBENCH_DEVICE int at_most(long long count, int most) { return count < most ? (int)count : most; }

// a: `rows` rows, `depth` long; b: `columns` rows of that length (turned), or `depth` rows of `stride` elements;
// sums: of each thread 4 by 4, whose rows begin at thread / 16 * 4 and whose columns at thread % 16 * 4. Rows and columns
// beyond what there is are 0.
template <bool turned, typename T>
ONNXBENCH_DEVICE void multiply(const T* a, int rows, const T* b, int columns, long long depth, long long stride,
                               factors& space, float (*sums)[16]) {
  ONNXBENCH_PART(thread, THREADS) {
    float* sum = sums[ONNXBENCH_AT(thread)];
    for (int i = 0; i < 16; ++i) sum[i] = 0.0f;
  }
  for (long long from = 0; from < depth; from += DEPTH) {
    ONNXBENCH_PART(thread, THREADS) {
      load_factors<turned>(a + from, rows, b + (turned ? from : from * stride), columns, at_most(depth - from, DEPTH),
                           depth, stride, space, thread);
    }
    ONNXBENCH_PART(thread, THREADS) {
      float* sum = sums[ONNXBENCH_AT(thread)];
      if (thread / 16 * 4 < rows && thread % 16 * 4 < columns)
        for (int step = 0; step < DEPTH; ++step) {
          four x = space.left[step][thread / 16], y = space.right[step][thread % 16];
          for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) sum[i * 4 + j] += x.at[i] * y.at[j];
        }
    }
  }
}

// A softmax that is not done yet: the largest score so far, and the sum of the powers relative to it, 0 if none counts.
struct running {
  float largest, sum;
};

ONNXBENCH_DEVICE float nothing() { return -__int_as_float(0x7f800000); }

ONNXBENCH_DEVICE running joined(running a, running b) {
  if (b.sum == 0.0f) return a;
  if (a.sum == 0.0f) return b;
  float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

// A score of -infinity counts for nothing; any other that is not finite makes all NaN.
ONNXBENCH_DEVICE running with_scores(running so_far, const float (&scores)[4]) {
  float largest = so_far.sum == 0.0f ? nothing() : so_far.largest;
  for (int i = 0; i < 4; ++i) largest = fmaxf(largest, scores[i]);
  float sum = so_far.sum == 0.0f ? 0.0f : so_far.sum * expf(so_far.largest - largest);
  for (int i = 0; i < 4; ++i) sum += scores[i] == nothing() ? 0.0f : expf(scores[i] - largest);
  return {largest, sum};
}
