#include "deform_core.h"

// A product of matrices, weights by samples, whose samples are never stored: a block makes 64 places by 64 channels of
// the output, 16 channels of one tap at a time, and each of its threads 4 by 4 of them. Both factors lie in shared
// memory by fours, which a thread reads at once. Neighbouring weights of a tap are far apart in the model, so they are
// first put next to each other.
#define THREADS 256
#define PLACES 64
#define OUTPUTS 64
#define DEPTH 16

// i: places of the output (images, height and width), channels, height and width of the input, height and width of the
// output, its channels, kernel, stride, padding and dilation, each height * 2^32 + width, groups, groups of offsets
struct alignas(16) four {
  float at[4];
};

// From weights (outputs, channels, taps) of each group to (taps, channels, outputs), in float32.
template <typename T>
ONNXBENCH_DEVICE void arrange(const T* __restrict__ weight, float* __restrict__ arranged, const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD(), taps = (p.i[7] >> 32) * (p.i[7] & 0xffffffff);
  long long channels = p.i[1] / p.i[11], outputs = p.i[6] / p.i[11];
  if (at >= p.i[6] * channels * taps) return;
  long long made = at % outputs, rest = at / outputs, channel = rest % channels, tap = rest / channels % taps;
  long long group = rest / channels / taps;
  arranged[at] = onnxbench_load(weight + ((group * outputs + made) * channels + channel) * taps + tap);
}

template <typename T>
ONNXBENCH_DEVICE void convolve(const T* __restrict__ input, const T* __restrict__ offset, const T* __restrict__ mask,
                               const float* __restrict__ arranged, const T* __restrict__ bias, T* __restrict__ output,
                               const onnxbench_params& p) {
  ONNXBENCH_SHARED four samples[DEPTH][PLACES / 4];
  ONNXBENCH_SHARED four weights[DEPTH][OUTPUTS / 4];
  ONNXBENCH_OWN(float, sums, THREADS, 16);
  ONNXBENCH_OWN(int, own, THREADS, 3);  // image, row and column of the place that a thread samples; no image: -1

  int height = (int)p.i[2], width = (int)p.i[3], rows = (int)p.i[4], columns = (int)p.i[5];
  int kernel_h = (int)(p.i[7] >> 32), kernel_w = (int)(p.i[7] & 0xffffffff), taps = kernel_h * kernel_w;
  int groups = (int)p.i[11], channels = (int)p.i[1] / groups, outputs = (int)p.i[6] / groups;
  int shared_channels = (int)(p.i[1] / p.i[12]), tiles = (outputs + OUTPUTS - 1) / OUTPUTS;
  int tile = (int)(blockIdx.x % (unsigned)(tiles * groups)), group = tile / tiles, first = tile % tiles * OUTPUTS;
  long long start = (long long)(blockIdx.x / (unsigned)(tiles * groups)) * PLACES;
  long long plane = (long long)height * width, area = (long long)rows * columns;

  ONNXBENCH_PART(thread, THREADS) {
    for (int i = 0; i < 16; ++i) sums[ONNXBENCH_AT(thread)][i] = 0.0f;
    long long place = start + thread % PLACES, image = place / area;
    int rest = (int)(place - image * area);
    own[ONNXBENCH_AT(thread)][0] = place < p.i[0] ? (int)image : -1;
    own[ONNXBENCH_AT(thread)][1] = rest / columns;
    own[ONNXBENCH_AT(thread)][2] = rest % columns;
  }
  for (int from = 0; from < channels;) {
    int absolute = group * channels + from, offsets = absolute / shared_channels;
    int to = from + DEPTH < channels ? from + DEPTH : channels, end = (offsets + 1) * shared_channels - group * channels;
    if (to > end) to = end;
    for (int tap = 0; tap < taps; ++tap) {
      ONNXBENCH_PART(thread, THREADS) {
        int image = own[ONNXBENCH_AT(thread)][0], y = own[ONNXBENCH_AT(thread)][1], x = own[ONNXBENCH_AT(thread)][2];
        int at = thread % PLACES, deep = thread / PLACES * (DEPTH * PLACES / THREADS);
        sample_place where = {false, 0, 0, {0.0f, 0.0f, 0.0f, 0.0f}};
        if (image >= 0) {
          long long row = ((long long)image * p.i[12] + offsets) * taps + tap, here = (long long)y * columns + x;
          float dy = onnxbench_load(offset + row * 2 * area + here);
          float dx = onnxbench_load(offset + (row * 2 + 1) * area + here);
          int base_y = y * (int)(p.i[8] >> 32) - (int)(p.i[9] >> 32) + tap / kernel_w * (int)(p.i[10] >> 32);
          int base_x = x * (int)(p.i[8] & 0xffffffff) - (int)(p.i[9] & 0xffffffff) +
                       tap % kernel_w * (int)(p.i[10] & 0xffffffff);
          where = place_of((float)base_y + dy, (float)base_x + dx, onnxbench_load(mask + row * area + here), height,
                           width);
        }
        const T* map = input + ((long long)image * p.i[1] + absolute + deep) * plane;
#pragma unroll 2  // all four at once take more registers than three blocks of a multiprocessor have
        for (int i = 0; i < DEPTH * PLACES / THREADS; ++i, map += plane)
          samples[deep + i][at / 4].at[at % 4] =
              where.seen && from + deep + i < to ? sampled(map, height, width, where) : 0.0f;

        int made = thread % OUTPUTS, inner = thread / OUTPUTS * (DEPTH * OUTPUTS / THREADS);
        const float* w =
            arranged + (((long long)group * taps + tap) * channels + from + inner) * outputs + first + made;
        for (int i = 0; i < DEPTH * OUTPUTS / THREADS; ++i, w += outputs)
          weights[inner + i][made / 4].at[made % 4] = first + made < outputs && from + inner + i < to ? *w : 0.0f;
      }
      ONNXBENCH_PART(thread, THREADS) {
        float* sum = sums[ONNXBENCH_AT(thread)];
        if (first + thread / 16 * 4 < outputs)
          for (int k = 0; k < to - from; ++k) {
            four s = samples[k][thread % 16], w = weights[k][thread / 16];
            for (int i = 0; i < 4; ++i)
              for (int j = 0; j < 4; ++j) sum[i * 4 + j] += w.at[i] * s.at[j];
          }
      }
    }
    from = to;
  }
  ONNXBENCH_PART(thread, THREADS) {
    for (int j = 0; j < 4; ++j) {
      long long place = start + thread % 16 * 4 + j, image = place / area;
      for (int i = 0; i < 4; ++i) {
        int made = first + thread / 16 * 4 + i, channel = group * outputs + made;
        if (place >= p.i[0] || made >= outputs) continue;
        float value = sums[ONNXBENCH_AT(thread)][i * 4 + j] + (bias ? onnxbench_load(bias + channel) : 0.0f);
        onnxbench_store(output + (image * p.i[6] + channel) * area + place - image * area, value);
      }
    }
  }
}

#define MODULATED_DEFORM_CONV2D(name, T)                                                                      \
  ONNXBENCH_KERNEL modulated_deform_conv2d_weights_##name(const T*, const T*, const T*, const T* weight,      \
                                                          const T*, T*, void* arranged, onnxbench_params p) { \
    arrange(weight, (float*)arranged, p);                                                                     \
  }                                                                                                           \
  ONNXBENCH_KERNEL_OF(THREADS) modulated_deform_conv2d_##name(const T* input, const T* offset, const T* mask, \
                                                              const T*, const T* bias, T* output,             \
                                                              void* arranged, onnxbench_params p) {           \
    convolve(input, offset, mask, (const float*)arranged, bias, output, p);                                   \
  }

MODULATED_DEFORM_CONV2D(float32, float)
MODULATED_DEFORM_CONV2D(float16, onnxbench_half)
MODULATED_DEFORM_CONV2D(bfloat16, onnxbench_bfloat16)
