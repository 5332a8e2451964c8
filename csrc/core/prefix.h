// What a response is worth: prefix agreement of semantic IDs, as sets. Shared by the CPU and the CUDA kernels.
// The definition is in recast_ref/reference/scoring.py.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define RECAST_HD __host__ __device__ __forceinline__
#else
#define RECAST_HD inline
#endif

namespace recast {

constexpr int64_t kMostLevels = 15;  // phi is summed as an integer of L digits

// A SID with any code below 0 is padding: its sign bits, together, say so.
RECAST_HD bool is_real(const int64_t* sid, int64_t levels) {
  int64_t bits = 0;
  for (int64_t l = 0; l < levels; ++l) bits |= sid[l];
  return bits >= 0;
}

// How many leading codes agree. Without a branch on the codes, which no processor could predict.
RECAST_HD int64_t matched_codes(const int64_t* a, const int64_t* b, int64_t levels) {
  int64_t m = 0, agree = 1;
  for (int64_t l = 0; l < levels; ++l) {
    agree &= a[l] == b[l];
    m += agree;
  }
  return m;
}

RECAST_HD int64_t power_of_ten(int64_t exponent) {
  int64_t power = 1;
  for (int64_t i = 0; i < exponent; ++i) power *= 10;
  return power;
}

struct Worth {
  float score;   // u, the structural score
  float reward;  // r, 1 for a hit
};

// u of a set with this sum of phi * 10 ** (L - 1).
RECAST_HD float score_of(int64_t total, int64_t size, int64_t levels) {
  const double whole = static_cast<double>((size > 0 ? size : 1) * power_of_ten(levels - 1));
  return static_cast<float>(static_cast<double>(total) / whole);
}

// u and r of one response: predictions (M, L) against targets (K, L), contiguous.
RECAST_HD Worth worth_of(const int64_t* predictions, int64_t m, const int64_t* targets, int64_t k, int64_t levels) {
  int64_t total = 0;  // phi * 10 ** (L - 1) is an integer: the sum does not depend on the order
  int64_t size = 0;
  bool hit = false;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t* sid = predictions + i * levels;
    if (!is_real(sid, levels)) continue;
    bool copy = false;
    for (int64_t j = 0; j < i && !copy; ++j) copy = matched_codes(sid, predictions + j * levels, levels) == levels;
    if (copy) continue;
    ++size;
    int64_t best = 0;
    for (int64_t t = 0; t < k && best < levels; ++t) {
      const int64_t* target = targets + t * levels;
      const int64_t agree = matched_codes(sid, target, levels);
      if (agree > best && is_real(target, levels)) best = agree;
    }
    hit |= best == levels;
    if (best > 0) total += power_of_ten(best - 1);
  }
  return {score_of(total, size, levels), hit ? 1.0f : 0.0f};
}

}  // namespace recast
