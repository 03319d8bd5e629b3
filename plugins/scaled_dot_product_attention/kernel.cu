#include "attention_core.h"

// i: heads, queries, keys, size of a query, size of a value, masks (0: none, 1: one for all heads)

// A block for 8 queries. The scores are made twice, first for the sums of the softmax and then for the weights, so that
// none need be kept: only the weights are written.
template <typename T>
ONNXBENCH_DEVICE void weigh(const T* __restrict__ query, const T* __restrict__ key, const T* mask,
                            T* __restrict__ weights, const onnxbench_params& p) {
  ONNXBENCH_SHARED float scores[TILE_SIZE];
  ONNXBENCH_SHARED running sums[TILE_SIZE];
  long long queries = p.i[1], keys = p.i[2], size = p.i[3];
  long long tiles = (queries + TILE_ROWS - 1) / TILE_ROWS, head = blockIdx.x / tiles;
  long long first = blockIdx.x % tiles * TILE_ROWS, rows = queries - first;
  const T *own = query + (head * queries + first) * size, *keys_of = key + head * keys * size;
  const T* mask_of = p.i[5] ? mask + ((p.i[5] > 1 ? head * queries : 0) + first) * keys : nullptr;
  float scale = 1.0f / sqrtf((float)size);
  for (int at = threadIdx.x; at < TILE_SIZE; at += blockDim.x) sums[at] = {0.0f, 0.0f};
  for (int pass = 0; pass < 2; ++pass) {
    for (long long from = 0; from < keys; from += TILE_COLUMNS) {
      multiply_tile<true>(own, rows, keys_of + from * size, keys - from, size, size, scores);
      for (int at = threadIdx.x; at < TILE_SIZE; at += blockDim.x) {
        int row = at / TILE_COLUMNS;
        long long column = from + at % TILE_COLUMNS;
        if (row >= rows || column >= keys) continue;
        float score = scores[at] * scale;
        if (mask_of) score += onnxbench_load(mask_of + row * keys + column);
        if (pass == 0) sums[at] = with_score(sums[at], score);
        else onnxbench_store(weights + (head * queries + first + row) * keys + column,
                             expf(score - sums[row].largest) / sums[row].sum);
      }
    }
    if (pass == 1) break;
    // Each thread has seen the keys of its own column. What all of a row have seen is put where its first ones are.
    ONNXBENCH_SYNC();
    for (int step = TILE_COLUMNS / 2; step > 0; step /= 2) {
      for (int at = threadIdx.x; at < TILE_ROWS * step; at += blockDim.x) {
        int place = at / step * TILE_COLUMNS + at % step;
        sums[place] = joined(sums[place], sums[place + step]);
      }
      ONNXBENCH_SYNC();
    }
    running row_sum = {0.0f, 0.0f};
    if (threadIdx.x == 0)
      for (int row = 0; row < TILE_ROWS; ++row) {
        row_sum = sums[row * TILE_COLUMNS];
        if (row_sum.sum == 0.0f) row_sum.largest = -__int_as_float(0x7f800000);
        sums[row] = row_sum;
      }
    ONNXBENCH_SYNC();
  }
}

// A block for 8 queries and 32 elements of their values.
template <typename T>
ONNXBENCH_DEVICE void mix(const T* __restrict__ value, const T* __restrict__ weights, T* __restrict__ output,
                          const onnxbench_params& p) {
  ONNXBENCH_SHARED float sums[TILE_SIZE];
  long long queries = p.i[1], keys = p.i[2], width = p.i[4];
  long long tiles = (queries + TILE_ROWS - 1) / TILE_ROWS, parts = (width + TILE_COLUMNS - 1) / TILE_COLUMNS;
  long long head = blockIdx.x / parts / tiles, first = blockIdx.x / parts % tiles * TILE_ROWS;
  long long left = blockIdx.x % parts * TILE_COLUMNS, rows = queries - first, columns = width - left;
  multiply_tile<false>(weights + (head * queries + first) * keys, rows, value + head * keys * width + left, columns,
                       keys, width, sums);
  for (int at = threadIdx.x; at < TILE_SIZE; at += blockDim.x) {
    int row = at / TILE_COLUMNS, column = at % TILE_COLUMNS;
    if (row < rows && column < columns)
      onnxbench_store(output + (head * queries + first + row) * width + left + column, sums[at]);
  }
}

#define ATTENTION(name, T)                                                                                   \
  ONNXBENCH_KERNEL attention_weights_##name(const T* query, const T* key, const T*, const T* mask, T*,       \
                                            T* weights, onnxbench_params p) {                                \
    weigh(query, key, mask, weights, p);                                                                     \
  }                                                                                                          \
  ONNXBENCH_KERNEL attention_output_##name(const T*, const T*, const T* value, const T*, T* output,          \
                                           T* weights, onnxbench_params p) {                                 \
    mix(value, weights, output, p);                                                                          \
  }
ATTENTION(float32, float)
ATTENTION(float16, onnxbench_half)
ATTENTION(bfloat16, onnxbench_bfloat16)
