// Which response is repaired, and which two the update sees. Shared by the CPU and the CUDA kernels.
// The definitions are in recast_ref/reference/repairing.py and contrasting.py.
#pragma once

#include "prefix.h"

namespace recast {

// Is response i a better choice than the best so far? Larger value first, then larger tie key, then lower index; the
// responses are visited in order of their index, so that an equal one is not better.
RECAST_HD bool better(double value, double key, double best_value, double best_key) {
  return value > best_value || (value == best_value && key > best_key);
}

struct Pick {
  int64_t index = -1;
  double value = 0;
  double key = 0;

  RECAST_HD void offer(int64_t i, double v, double k) {
    if (index < 0 || better(v, k, value, key)) {
      index = i;
      value = v;
      key = k;
    }
  }
};

// The response with the lowest score, if the group has no hit; else -1.
RECAST_HD int64_t repair_slot(const double* rewards, const double* scores, const double* keys, int64_t g, bool repairable) {
  Pick lowest;
  if (!repairable) return -1;
  for (int64_t i = 0; i < g; ++i) {
    if (rewards[i] > 0) return -1;
    lowest.offer(i, -scores[i], keys ? keys[i] : 0);
  }
  return lowest.index;
}

struct Pair {
  int64_t positive;
  int64_t negative;
};

// The strongest positive and the hardest negative, both -1 if the group lacks one.
RECAST_HD Pair contrast_pair(const double* rewards, const double* scores, const double* keys, int64_t g) {
  Pick positive, negative;
  for (int64_t i = 0; i < g; ++i) {
    const double key = keys ? keys[i] : 0;
    if (rewards[i] > 0) {
      positive.offer(i, rewards[i], key);
    } else {
      negative.offer(i, scores[i], key);
    }
  }
  if (positive.index < 0 || negative.index < 0) return {-1, -1};
  return {positive.index, negative.index};
}

}  // namespace recast
