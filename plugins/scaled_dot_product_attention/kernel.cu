#include "attention_core.h"

#define LANES 16  // threads that look at the scores of one row together

// i: heads, queries, keys, size of a query, size of a value, masks (0: none, 1: one for all heads)

// A block for 32 queries. The scores are made twice, first for the sums of the softmax and then for the weights, so
// that none need be kept: only the weights are written. Scores go through shared memory, so that neighbouring threads
// read masks and write weights that are neighbours.
template <typename T>
ONNXBENCH_DEVICE void weigh(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ mask,
                            T* __restrict__ weights, const onnxbench_params& p) {
  ONNXBENCH_SHARED factors space;
  ONNXBENCH_SHARED four scores[ROWS][COLUMNS / 4 + 4];  // four more, so that two rows lie in different banks
  ONNXBENCH_SHARED running parts[ROWS][LANES], whole[ROWS];
  ONNXBENCH_OWN(float, sums, THREADS, 16);
  long long queries = p.i[1], keys = p.i[2], size = p.i[3];
  long long tiles = (queries + ROWS - 1) / ROWS, head = blockIdx.x / tiles;
  long long first = blockIdx.x % tiles * ROWS;
  int rows = at_most(queries - first, ROWS);
  const T *rows_of = query + (head * queries + first) * size, *keys_of = key + head * keys * size;
  const T* mask_of = p.i[5] ? mask + ((p.i[5] > 1 ? head * queries : 0) + first) * keys : nullptr;
  T* weights_of = weights + (head * queries + first) * keys;
  float scale = 1.0f / sqrtf((float)size);
  ONNXBENCH_PART(thread, THREADS) {
    for (int row = thread / LANES; row < ROWS; row += THREADS / LANES) parts[row][thread % LANES] = {0.0f, 0.0f};
  }
  for (int pass = 0; pass < 2; ++pass) {
    for (long long from = 0; from < keys; from += COLUMNS) {
      int columns = at_most(keys - from, COLUMNS);
      multiply<true>(rows_of, rows, keys_of + from * size, columns, size, size, space, sums);
      ONNXBENCH_PART(thread, THREADS) {
        for (int i = 0; i < 4; ++i) {
          four made;
          for (int j = 0; j < 4; ++j) made.at[j] = sums[ONNXBENCH_AT(thread)][i * 4 + j] * scale;
          scores[thread / 16 * 4 + i][thread % 16] = made;
        }
      }
      ONNXBENCH_PART(thread, THREADS) {
#pragma unroll 1
        for (int row = thread / LANES; row < rows; row += THREADS / LANES) {
          float seen[4];
          for (int j = 0; j < 4; ++j) {
            int column = thread % LANES + j * LANES;
            bool is_there = column < columns;
            seen[j] = is_there ? scores[row][column / 4].at[column % 4] : nothing();
            if (is_there && mask_of) seen[j] += onnxbench_load(mask_of + row * keys + from + column);
            if (is_there && pass == 1)
              onnxbench_store(weights_of + row * keys + from + column,
                              expf(seen[j] - whole[row].largest) * whole[row].sum);
          }
          running& part = parts[row][thread % LANES];
          if (pass == 0) part = with_scores(part, seen);
        }
      }
    }
    if (pass == 1) break;
    // From here on a sum is what to multiply with. A row that sees no key has the powers of NaN, whatever that is.
    ONNXBENCH_PART(thread, THREADS) {
      if (thread < ROWS) {
        running all = parts[thread][0];
        for (int lane = 1; lane < LANES; ++lane) all = joined(all, parts[thread][lane]);
        whole[thread] = {all.sum == 0.0f ? nothing() : all.largest, 1.0f / all.sum};
      }
    }
  }
}

// A block for 32 queries and 64 elements of their values.
template <typename T>
ONNXBENCH_DEVICE void mix(const T* __restrict__ value, const T* __restrict__ weights, T* __restrict__ output,
                          const onnxbench_params& p) {
  ONNXBENCH_SHARED factors space;
  ONNXBENCH_OWN(float, sums, THREADS, 16);
  long long queries = p.i[1], keys = p.i[2], width = p.i[4];
  long long tiles = (queries + ROWS - 1) / ROWS, parts = (width + COLUMNS - 1) / COLUMNS;
  long long head = blockIdx.x / parts / tiles, first = blockIdx.x / parts % tiles * ROWS;
  long long left = blockIdx.x % parts * COLUMNS;
  int rows = at_most(queries - first, ROWS), columns = at_most(width - left, COLUMNS);
  multiply<false>(weights + (head * queries + first) * keys, rows, value + head * keys * width + left, columns, keys,
                  width, space, sums);
  T* output_of = output + (head * queries + first) * width + left;
  ONNXBENCH_PART(thread, THREADS) {
    for (int i = 0; i < 16; ++i) {
      int row = thread / 16 * 4 + i / 4, column = thread % 16 * 4 + i % 4;
      if (row < rows && column < columns)
        onnxbench_store(output_of + row * width + column, sums[ONNXBENCH_AT(thread)][i]);
    }
  }
}

#define ATTENTION(name, T)                                                                                      \
  ONNXBENCH_KERNEL_OF(THREADS) attention_weights_##name(const T* query, const T* key, const T*, const T* mask,  \
                                                        T*, T* weights, onnxbench_params p) {                   \
    weigh(query, key, mask, weights, p);                                                                        \
  }                                                                                                             \
  ONNXBENCH_KERNEL_OF(THREADS) attention_output_##name(const T*, const T*, const T* value, const T*, T* output, \
                                                       T* weights, onnxbench_params p) {                        \
    mix(value, weights, output, p);                                                                             \
  }
ATTENTION(float32, float)
ATTENTION(float16, onnxbench_half)
ATTENTION(bfloat16, onnxbench_bfloat16)
