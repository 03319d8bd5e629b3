// Non-maximum suppression that bundles share, whatever a box is. A block of threads works on each class of each image:
// it sorts the candidates, and each that is kept removes those after it that overlap it. Nothing depends on how many
// threads a block has, and no two of them write to one place.
#pragma once
#include "onnxbench_kernel.h"

// A candidate as a number that sorts by score, the largest first when descending, then by place, the smallest first.
// 0 is no candidate.
ONNXBENCH_DEVICE unsigned long long onnxbench_candidate(float score, long long place) {
  unsigned bits = (unsigned)__float_as_int(score + 0.0f);  // -0 is 0
  bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
  return ((unsigned long long)bits << 32) | (0xffffffffu - (unsigned)place);
}
ONNXBENCH_DEVICE long long onnxbench_place(unsigned long long candidate) {
  return (long long)(0xffffffffu - (unsigned)candidate);
}
ONNXBENCH_DEVICE float onnxbench_score(unsigned long long candidate) {
  unsigned bits = (unsigned)(candidate >> 32);
  return __int_as_float((int)(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu)));
}

// What the launches hand on: room for a candidate for each box of each class, the kept ones of each class, and how many
// these are.
struct onnxbench_candidates {
  unsigned long long *keys, *kept;
  long long *counts, room;

  ONNXBENCH_DEVICE_MEMBER onnxbench_candidates(void* memory, long long classes, long long boxes, long long most) {
    room = most < boxes ? most : boxes;
    keys = (unsigned long long*)memory;
    kept = keys + classes * boxes;
    counts = (long long*)(kept + classes * room);
  }
};

// Returns how many threads before this one say yes, and how many of the block do. At most 1024 threads.
ONNXBENCH_DEVICE int onnxbench_rank(bool yes, int* all) {
  ONNXBENCH_SHARED int sums[2][1024];
  int at = (int)threadIdx.x, size = (int)blockDim.x, from = 0;
  sums[0][at] = yes ? 1 : 0;
  ONNXBENCH_SYNC();
  for (int step = 1; step < size; step *= 2, from ^= 1) {
    sums[from ^ 1][at] = sums[from][at] + (at >= step ? sums[from][at - step] : 0);
    ONNXBENCH_SYNC();
  }
  int before = sums[from][at] - (yes ? 1 : 0);
  *all = sums[from][size - 1];
  ONNXBENCH_SYNC();
  return before;
}

// Sorts n numbers, the largest first, by a bitonic network of which the comparisons with what lies beyond n are left out.
ONNXBENCH_DEVICE void onnxbench_sort(unsigned long long* keys, long long n) {
  long long half = 1;
  while (half < n) half *= 2;
  half /= 2;
  for (long long size = 2; size / 2 < n; size *= 2) {
    for (long long step = size / 2; step > 0; step /= 2) {
      for (long long pair = threadIdx.x; pair < half; pair += blockDim.x) {
        long long inside = pair & (step - 1), base = (pair - inside) * 2;
        long long low = base + inside, high = step == size / 2 ? base + size - 1 - inside : low + step;
        if (high < n && keys[low] < keys[high]) {
          unsigned long long key = keys[low];
          keys[low] = keys[high];
          keys[high] = key;
        }
      }
      ONNXBENCH_SYNC();
    }
  }
}

// Writes the candidates of one class that are kept, the best first, and returns how many: at most `most`.
// scores: of `count` boxes, `stride` apart; keys: room for `count` candidates; topk: how many of the best take part, all
// if it is not above 0; boxes: has load(place) and overlap(box, box).
template <typename T, typename Boxes>
ONNXBENCH_DEVICE long long onnxbench_suppress(const T* scores, long long count, long long stride, float least,
                                              float overlap, long long topk, long long most, const Boxes& boxes,
                                              unsigned long long* keys, unsigned long long* kept) {
  long long found = 0, made = 0;
  for (long long tile = 0; tile < count; tile += blockDim.x) {
    long long at = tile + threadIdx.x;
    float score = at < count ? onnxbench_load(scores + at * stride) : least;
    bool takes_part = score > least;
    int all, before = onnxbench_rank(takes_part, &all);
    if (takes_part) keys[found + before] = onnxbench_candidate(score, at);
    found += all;
  }
  ONNXBENCH_SYNC();
  onnxbench_sort(keys, found);
  if (topk > 0 && topk < found) found = topk;
  for (long long at = 0; at < found && made < most; ++at) {
    unsigned long long best = keys[at];  // nobody writes here any more: only what comes after a kept one is removed
    if (!best) continue;
    if (threadIdx.x == 0) kept[made] = best;
    ++made;
    auto box = boxes.load(onnxbench_place(best));
    for (long long other = at + 1 + threadIdx.x; other < found; other += blockDim.x)
      if (keys[other] && boxes.overlap(box, boxes.load(onnxbench_place(keys[other]))) > overlap) keys[other] = 0;
    ONNXBENCH_SYNC();
  }
  return made;
}

// Writes the best of all classes of an image, at most `most`, and returns how many. kept: `room` candidates of each
// class, of which there are counts[class]; keys: room for all. The place of each is then class * boxes + box.
ONNXBENCH_DEVICE long long onnxbench_merge(const unsigned long long* kept, const long long* counts, long long classes,
                                           long long room, long long boxes, long long most, unsigned long long* keys) {
  long long all = 0;
  for (long long label = 0; label < classes; ++label) {
    for (long long at = threadIdx.x; at < counts[label]; at += blockDim.x) {
      unsigned long long key = kept[label * room + at];
      keys[all + at] = key - (unsigned long long)(label * boxes);
    }
    all += counts[label];
  }
  ONNXBENCH_SYNC();
  onnxbench_sort(keys, all);
  return all < most ? all : most;
}

// Writes the boxes of an image that are kept, Width numbers each and the score, zeros where there are fewer, with their
// labels (-1 where there is none) and, if index is not null, their places. A block of threads works on each image.
// p.i: images, boxes, classes, classes of the boxes (1: all have the same), any, boxes of an image that are kept, any,
// whether to clip to 0 .. 1.
template <int Width, typename T>
ONNXBENCH_DEVICE void onnxbench_gather(const T* __restrict__ boxes, T* __restrict__ dets, long long* labels,
                                       long long* index, void* memory, const onnxbench_params& p) {
  onnxbench_candidates space(memory, p.i[0] * p.i[2], p.i[1], p.i[5]);
  long long image = blockIdx.x, count = p.i[1], classes = p.i[2], keep = p.i[5];
  unsigned long long* keys = space.keys + image * classes * count;
  long long made = onnxbench_merge(space.kept + image * classes * space.room, space.counts + image * classes, classes,
                                   space.room, count, keep, keys);
  for (long long row = threadIdx.x; row < keep; row += blockDim.x) {
    long long to = image * keep + row;
    bool is_there = row < made;
    long long place = is_there ? onnxbench_place(keys[row]) : -1, label = is_there ? place / count : -1;
    long long box = is_there ? place % count : -1;
    const T* from = boxes + ((image * count + box) * p.i[3] + (p.i[3] > 1 ? label : 0)) * Width;
    for (int part = 0; part < Width; ++part) {
      float value = is_there ? onnxbench_load(from + part) : 0.0f;
      onnxbench_store(dets + to * (Width + 1) + part, p.i[7] ? fmaxf(fminf(value, 1.0f), 0.0f) : value);
    }
    onnxbench_store(dets + to * (Width + 1) + Width, is_there ? onnxbench_score(keys[row]) : 0.0f);
    labels[to] = label;
    if (index) index[to] = p.i[3] > 1 ? place : box;
  }
}
