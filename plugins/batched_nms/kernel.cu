#include "nms_core.h"

// i: images, boxes, classes, classes of the boxes (1: all have the same), boxes of a class that take part, boxes of an
// image that are kept, background class, whether to clip
// f: scores and overlaps above which something counts

// A block for each class of each image.
template <typename T>
ONNXBENCH_DEVICE void suppress(const T* __restrict__ boxes, const T* __restrict__ scores, void* memory,
                               const onnxbench_params& p) {
  onnxbench_candidates space(memory, p.i[0] * p.i[2], p.i[1], p.i[5]);
  long long block = blockIdx.x, count = p.i[1], classes = p.i[2], image = block / classes, label = block % classes;
  long long made = 0;
  if (label != p.i[6]) {
    corner_boxes<T> own{boxes + (image * count * p.i[3] + (p.i[3] > 1 ? label : 0)) * 4, p.i[3] * 4};
    made = onnxbench_suppress(scores + image * count * classes + label, count, classes, p.f[0], p.f[1], p.i[4],
                              space.room, own, space.keys + block * count, space.kept + block * space.room);
  }
  if (threadIdx.x == 0) space.counts[block] = made;
}

#define NMS(name, T)                                                                                             \
  ONNXBENCH_KERNEL_OF(512) batched_nms_class_##name(const T* boxes, const T* scores, T*, long long*, long long*, \
                                                    void* space, onnxbench_params p) {                           \
    suppress(boxes, scores, space, p);                                                                           \
  }                                                                                                              \
  ONNXBENCH_KERNEL_OF(512) batched_nms_image_##name(const T* boxes, const T*, T* dets, long long* labels,        \
                                                    long long* index, void* space, onnxbench_params p) {         \
    onnxbench_gather<4>(boxes, dets, labels, index, space, p);                                                   \
  }
NMS(float32, float)
NMS(float16, onnxbench_half)
NMS(bfloat16, onnxbench_bfloat16)
