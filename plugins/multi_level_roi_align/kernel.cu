#include "onnxbench_roi.h"

#define LEVELS 7

// i: elements of the output, images, channels, height and width of the output, sampling_ratio, aligned + 2 for the
// largest sample, levels, finest_scale, then of each level height * 2^32 + width; f: roi_scale_factor, strides
template <typename T>
ONNXBENCH_DEVICE void align(const T* __restrict__ rois, const T* const* maps, T* __restrict__ output,
                            const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at >= p.i[0]) return;
  unsigned channels = (unsigned)p.i[2], bins_down = (unsigned)p.i[3], bins_across = (unsigned)p.i[4];
  unsigned each = channels * bins_down * bins_across;
  long long number = at / each;
  unsigned rest = (unsigned)(at - number * each), column = rest % bins_across, row = rest / bins_across % bins_down;
  const T* roi = rois + number * 5;
  float image = onnxbench_load(roi), box[4];
  for (int i = 0; i < 4; ++i) box[i] = onnxbench_load(roi + 1 + i);
  float width = box[2] - box[0], height = box[3] - box[1];

  // The level is the whole part of the logarithm to base 2, said without one: each power that is reached counts.
  float scale = sqrtf(width * height) / (float)p.i[8] + 1.0e-6f, power = 1.0f;
  int level = 0;
  for (int i = 1; i < (int)p.i[7]; ++i) {
    power *= 2.0f;
    if (scale >= power) level = i;
  }
  const T* map = maps[0];
  long long size = p.i[9];
  float stride = p.f[1];
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 1; i < LEVELS; ++i) {
    if (i != level) continue;
    map = maps[i];
    size = p.i[9 + i];
    stride = p.f[1 + i];
  }
  if (p.f[0] > 0.0f) {
    float x = (box[0] + box[2]) * 0.5f, y = (box[1] + box[3]) * 0.5f, half = p.f[0] * 0.5f;
    box[0] = x - width * half;
    box[1] = y - height * half;
    box[2] = x + width * half;
    box[3] = y + height * half;
  }
  bool aligned = (p.i[6] & 1) != 0, valid = image >= 0.0f && image < (float)p.i[1];
  float by = 1.0f / stride, shift = aligned ? 0.5f : 0.0f, value = 0.0f;
  for (int i = 0; i < 4; ++i) {
    box[i] = box[i] * by - shift;
    valid = valid && is_finite(box[i]);
  }
  if (valid) {
    int down = (int)(size >> 32), across = (int)(size & 0xffffffff);
    long long plane = (long long)image * channels + rest / (bins_across * bins_down);
    value = pooled_bin(map + plane * down * across, down, across, box, (int)bins_down, (int)bins_across, (int)row,
                       (int)column, (int)p.i[5], aligned, (p.i[6] & 2) != 0);
  }
  onnxbench_store(output + at, value);
}

#define MULTI_LEVEL(name, T)                                                                                         \
  ONNXBENCH_KERNEL name(const T* rois, const T* a, const T* b, const T* c, const T* d, const T* e, const T* f,       \
                        const T* g, T* output, onnxbench_params p) {                                                 \
    const T* maps[LEVELS] = {a, b, c, d, e, f, g};                                                                   \
    align(rois, maps, output, p);                                                                                    \
  }

MULTI_LEVEL(multi_level_roi_align_float32, float)
MULTI_LEVEL(multi_level_roi_align_float16, onnxbench_half)
MULTI_LEVEL(multi_level_roi_align_bfloat16, onnxbench_bfloat16)
