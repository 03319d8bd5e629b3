#include "rotated_core.h"

// i: images, boxes, classes, classes of the boxes (1: all have the same), boxes of a class that take part, boxes that
// are kept, background class, whether to clip, from class to class and from box to box in the scores
// f: scores and overlaps above which something counts

// A block for each class of each image.
template <typename T>
ONNXBENCH_DEVICE void suppress(const T* __restrict__ boxes, const T* __restrict__ scores, void* memory,
                               const onnxbench_params& p) {
  onnxbench_candidates space(memory, p.i[0] * p.i[2], p.i[1], p.i[5]);
  long long block = blockIdx.x, count = p.i[1], classes = p.i[2], image = block / classes, label = block % classes;
  long long made = 0;
  if (label != p.i[6]) {
    rotated_boxes<T> own{boxes + (image * count * p.i[3] + (p.i[3] > 1 ? label : 0)) * 5, p.i[3] * 5};
    made = onnxbench_suppress(scores + image * count * classes + label * p.i[8], count, p.i[9], p.f[0], p.f[1], p.i[4],
                              space.room, own, space.keys + block * count, space.kept + block * space.room);
  }
  if (threadIdx.x == 0) space.counts[block] = made;
}

// A block for each class of each image, which writes its boxes after those of the blocks before it, and one more, which
// says how many there are in all.
ONNXBENCH_DEVICE void list(long long* index, long long* total, void* memory, const onnxbench_params& p) {
  long long count = p.i[1], classes = p.i[2], block = blockIdx.x, before = 0;
  onnxbench_candidates space(memory, p.i[0] * classes, count, p.i[5]);
  for (long long other = 0; other < block; ++other) before += space.counts[other];
  if (block == p.i[0] * classes) {
    if (threadIdx.x == 0) *total = before;
    return;
  }
  for (long long at = threadIdx.x; at < space.counts[block]; at += blockDim.x) {
    long long* to = index + (before + at) * 3;
    to[0] = block / classes;
    to[1] = block % classes;
    to[2] = onnxbench_place(space.kept[block * space.room + at]);
  }
}

#define NMS(name, T)                                                                                            \
  ONNXBENCH_KERNEL_OF(256) nms_rotated_class_##name(const T* boxes, const T* scores, void*, void*, void* space, \
                                                    onnxbench_params p) {                                       \
    suppress(boxes, scores, space, p);                                                                          \
  }                                                                                                             \
  ONNXBENCH_KERNEL_OF(256) nms_rotated_list_##name(const T*, const T*, long long* index, long long* total,      \
                                                   void* space, onnxbench_params p) {                           \
    list(index, total, space, p);                                                                               \
  }                                                                                                             \
  ONNXBENCH_KERNEL_OF(256) batched_rotated_nms_image_##name(const T* boxes, const T*, T* dets,                  \
                                                            long long* labels, void* space,                     \
                                                            onnxbench_params p) {                               \
    onnxbench_gather<5>(boxes, dets, labels, nullptr, space, p);                                                \
  }
NMS(float32, float)
NMS(float16, onnxbench_half)
NMS(bfloat16, onnxbench_bfloat16)
