// Mean and variance of many numbers, gathered in any order without loss: those of a thread by Welford's way, all by
// Chan's. Numbers are taken as distances from the first of their plane, so that a mean far from 0 takes nothing away.
#pragma once
#include "onnxbench_kernel.h"

#define THREADS 256

// How many numbers there are, their mean, and the sum of the squares of their distances from it.
struct moments {
  float count, mean, squares;
};

ONNXBENCH_DEVICE void include(moments& so_far, float value) {
  so_far.count += 1.0f;
  float distance = value - so_far.mean;
  so_far.mean += distance / so_far.count;
  so_far.squares += distance * (value - so_far.mean);
}

ONNXBENCH_DEVICE moments together(const moments& a, const moments& b) {
  if (b.count == 0.0f) return a;
  if (a.count == 0.0f) return b;
  float count = a.count + b.count, part = b.count / count, distance = b.mean - a.mean;
  return {count, a.mean + distance * part, a.squares + b.squares + distance * distance * a.count * part};
}

// What each thread has gathered becomes one, in the first place of an array that the threads of a block share.
ONNXBENCH_DEVICE void gather(moments* each) {
  for (int half = THREADS / 2; half > 0; half /= 2) {
    ONNXBENCH_PART(thread, THREADS) {
      if (thread < half) each[thread] = together(each[thread], each[thread + half]);
    }
  }
}

template <typename T>
ONNXBENCH_DEVICE moments moments_of(const T* plane, long long from, long long to, int thread) {
  moments made = {0.0f, 0.0f, 0.0f};
  float first = from < to ? onnxbench_load(plane) : 0.0f;
  for (long long i = from + thread; i < to; i += THREADS) include(made, onnxbench_load(plane + i) - first);
  return made;
}

// Values become (value - first - mean) * factor + shift.
struct normalization {
  float factor, mean, shift;
};

ONNXBENCH_DEVICE normalization normalization_of(const moments& all, float scale, float bias, float epsilon) {
  return {scale / sqrtf(all.squares / all.count + epsilon), all.mean, bias};
}

template <typename T>
ONNXBENCH_DEVICE void normalize(const T* plane, T* made, long long from, long long to, const normalization& by,
                                int thread) {
  float first = from < to ? onnxbench_load(plane) : 0.0f;
  for (long long i = from + thread; i < to; i += THREADS)
    onnxbench_store(made + i, (onnxbench_load(plane + i) - first - by.mean) * by.factor + by.shift);
}
