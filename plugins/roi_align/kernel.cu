#include "onnxbench_roi.h"

// i: elements of the output, images, channels, height and width of the input, height and width of the output,
// sampling_ratio, aligned, 1 for the largest sample; f: spatial_scale
template <typename T>
ONNXBENCH_DEVICE void align(const T* __restrict__ input, const T* __restrict__ rois, T* __restrict__ output,
                            const onnxbench_params& p) {
  long long at = ONNXBENCH_THREAD();
  if (at >= p.i[0]) return;
  unsigned channels = (unsigned)p.i[2], bins_down = (unsigned)p.i[5], bins_across = (unsigned)p.i[6];
  unsigned each = channels * bins_down * bins_across;
  long long number = at / each;
  unsigned rest = (unsigned)(at - number * each), column = rest % bins_across, row = rest / bins_across % bins_down;
  const T* roi = rois + number * 5;
  float image = onnxbench_load(roi), box[4], shift = p.i[8] ? 0.5f : 0.0f;
  bool valid = image >= 0.0f && image < (float)p.i[1];
  for (int i = 0; i < 4; ++i) {
    box[i] = onnxbench_load(roi + 1 + i) * p.f[0] - shift;
    valid = valid && is_finite(box[i]);
  }
  float value = 0.0f;
  if (valid) {
    long long plane = (long long)image * channels + rest / (bins_across * bins_down);
    value = pooled_bin(input + plane * p.i[3] * p.i[4], (int)p.i[3], (int)p.i[4], box, (int)bins_down,
                       (int)bins_across, (int)row, (int)column, (int)p.i[7], p.i[8] != 0, p.i[9] != 0);
  }
  onnxbench_store(output + at, value);
}

ONNXBENCH_KERNEL roi_align_float32(const float* input, const float* rois, float* output, onnxbench_params p) {
  align(input, rois, output, p);
}
ONNXBENCH_KERNEL roi_align_float16(const onnxbench_half* input, const onnxbench_half* rois, onnxbench_half* output,
                                   onnxbench_params p) {
  align(input, rois, output, p);
}
ONNXBENCH_KERNEL roi_align_bfloat16(const onnxbench_bfloat16* input, const onnxbench_bfloat16* rois,
                                    onnxbench_bfloat16* output, onnxbench_params p) {
  align(input, rois, output, p);
}
