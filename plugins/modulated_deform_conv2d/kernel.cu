#include "deform_core.h"

// A product of matrices, weights by samples, whose samples are never stored: a block makes 64 places by 64 channels of
// the output, 16 channels of one tap at a time, and each of its threads 4 by 4 of them.
#define THREADS 256
#define PLACES 64
#define OUTPUTS 64
#define DEPTH 16

// i: places of the output (images, height and width), channels, height and width of the input, height and width of the
// output, its channels, kernel, stride, padding and dilation, each height * 2^32 + width, groups, groups of offsets
template <typename T>
ONNXBENCH_DEVICE void convolve(const T* __restrict__ input, const T* __restrict__ offset, const T* __restrict__ mask,
                               const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ output,
                               const onnxbench_params& p) {
  ONNXBENCH_SHARED float samples[DEPTH][PLACES];
  ONNXBENCH_SHARED float weights[DEPTH][OUTPUTS + 2];  // two more, so that threads write to different banks
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
        for (int i = 0; i < DEPTH * PLACES / THREADS; ++i, map += plane)
          samples[deep + i][at] = where.seen && from + deep + i < to ? sampled(map, height, width, where) : 0.0f;

        int made = thread / 4, inner = thread % 4 * 4;
        const T* w = weight + ((long long)(group * outputs + first + made) * channels + from + inner) * taps + tap;
        for (int i = 0; i < 4; ++i, w += taps)
          weights[inner + i][made] = first + made < outputs && from + inner + i < to ? onnxbench_load(w) : 0.0f;
      }
      ONNXBENCH_PART(thread, THREADS) {
        int at = thread % 16, made = thread / 16 * 4;
        float* sum = sums[ONNXBENCH_AT(thread)];
        if (first + made < outputs)
          for (int k = 0; k < to - from; ++k) {
            float s[4], w[4];
            for (int i = 0; i < 4; ++i) {
              s[i] = samples[k][at + 16 * i];
              w[i] = weights[k][made + i];
            }
            for (int i = 0; i < 4; ++i)
              for (int j = 0; j < 4; ++j) sum[i * 4 + j] += w[i] * s[j];
          }
      }
    }
    from = to;
  }
  ONNXBENCH_PART(thread, THREADS) {
    for (int j = 0; j < 4; ++j) {
      long long place = start + thread % 16 + 16 * j, image = place / area;
      for (int i = 0; i < 4; ++i) {
        int made = first + thread / 16 * 4 + i, channel = group * outputs + made;
        if (place >= p.i[0] || made >= outputs) continue;
        float value = sums[ONNXBENCH_AT(thread)][i * 4 + j] + (bias ? onnxbench_load(bias + channel) : 0.0f);
        onnxbench_store(output + (image * p.i[6] + channel) * area + place - image * area, value);
      }
    }
  }
}

#define MODULATED_DEFORM_CONV2D(name, T)                                                                   \
  ONNXBENCH_KERNEL name(const T* input, const T* offset, const T* mask, const T* weight, const T* bias,    \
                        T* output, onnxbench_params p) {                                                   \
    convolve(input, offset, mask, weight, bias, output, p);                                                \
  }

MODULATED_DEFORM_CONV2D(modulated_deform_conv2d_float32, float)
MODULATED_DEFORM_CONV2D(modulated_deform_conv2d_float16, onnxbench_half)
MODULATED_DEFORM_CONV2D(modulated_deform_conv2d_bfloat16, onnxbench_bfloat16)
