#include "onnxbench_roi.h"

// i: elements of the output, images, channels, height and width of the input, height and width of the output,
// sampling_ratio, aligned, clockwise; f: spatial_scale
template <typename T>
ONNXBENCH_DEVICE void align(const T* __restrict__ input, const T* __restrict__ rois, T* __restrict__ output,
                            const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at >= p.i[0]) return;
  unsigned channels = (unsigned)p.i[2], bins_down = (unsigned)p.i[5], bins_across = (unsigned)p.i[6];
  unsigned each = channels * bins_down * bins_across;
  long long number = at / each;
  unsigned rest = (unsigned)(at - number * each), column = rest % bins_across, row = rest / bins_across % bins_down;
  const T* roi = rois + number * 6;
  float image = onnxbench_load(roi), scale = p.f[0], shift = p.i[8] ? 0.5f : 0.0f, least = p.i[8] ? 0.0f : 1.0f;
  float x = onnxbench_load(roi + 1) * scale - shift, y = onnxbench_load(roi + 2) * scale - shift;
  float wide = onnxbench_load(roi + 3) * scale, tall = onnxbench_load(roi + 4) * scale;
  float angle = onnxbench_load(roi + 5);
  bool valid = image >= 0.0f && image < (float)p.i[1] && is_finite(x) && is_finite(y) && is_finite(wide) &&
               is_finite(tall) && is_finite(angle);
  float sum = 0.0f;
  if (valid) {
    wide = fmaxf(wide, least);
    tall = fmaxf(tall, least);
    int height = (int)p.i[3], width = (int)p.i[4];
    float sine = sinf(angle), cosine = cosf(angle);
    if (p.i[9]) sine = -sine;
    // Whatever is further from the middle than any point of the map is outside, along both sides of the region.
    float reach = fmaxf(fabsf(x), fabsf((float)width - x)) + fmaxf(fabsf(y), fabsf((float)height - y)) + 2.0f;
    roi_samples down = samples_of(-0.5f * tall, tall, (int)bins_down, (int)row, (int)p.i[7], -reach, reach);
    roi_samples across = samples_of(-0.5f * wide, wide, (int)bins_across, (int)column, (int)p.i[7], -reach, reach);
    const T* plane = input + ((long long)image * channels + rest / (bins_across * bins_down)) * height * width;
    for (int i = down.first; i < down.last; ++i) {
      float v = down.base + ((float)i + 0.5f) * down.step;
      for (int j = across.first; j < across.last; ++j) {
        float u = across.base + ((float)j + 0.5f) * across.step, dy, dx;
        int top, bottom, left, right;
        if (pixels_around(v * cosine - u * sine + y, height, &top, &bottom, &dy) &&
            pixels_around(v * sine + u * cosine + x, width, &left, &right, &dx))
          sum += between(plane + (long long)top * width, plane + (long long)bottom * width, left, right, dy, dx);
      }
    }
    sum /= fmaxf(down.count * across.count, 1.0f);
  }
  onnxbench_store(output + at, sum);
}

ONNXBENCH_KERNEL roi_align_rotated_float32(const float* input, const float* rois, float* output, onnxbench_params p) {
  align(input, rois, output, p);
}
ONNXBENCH_KERNEL roi_align_rotated_float16(const onnxbench_half* input, const onnxbench_half* rois,
                                           onnxbench_half* output, onnxbench_params p) {
  align(input, rois, output, p);
}
ONNXBENCH_KERNEL roi_align_rotated_bfloat16(const onnxbench_bfloat16* input, const onnxbench_bfloat16* rois,
                                            onnxbench_bfloat16* output, onnxbench_params p) {
  align(input, rois, output, p);
}
