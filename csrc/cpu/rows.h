// Groups and rows as the selection kernels see them.
#pragma once

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "../core/checks.h"
#include "../core/pair.h"

namespace recast {

// Reads rows of a (Q, G) tensor of any floating dtype and stride as doubles: every value is kept exactly, so that one
// kernel serves all dtypes and ties are what they are in the tensor's own.
class RowReader {
 public:
  explicit RowReader(const at::Tensor& x)
      : data_(static_cast<const char*>(x.const_data_ptr())),
        row_(x.stride(0)), column_(x.stride(1)), columns_(x.size(1)), type_(x.scalar_type()) {}

  void read(int64_t q, double* out) const {
    RECAST_DISPATCH(type_, [&] {
      const auto* row = reinterpret_cast<const scalar_t*>(data_) + q * row_;
      if (column_ == 1) {  // the usual case, which the compiler makes vectors of
        for (int64_t i = 0; i < columns_; ++i) out[i] = static_cast<double>(row[i]);
        return;
      }
      for (int64_t i = 0; i < columns_; ++i) out[i] = static_cast<double>(row[i * column_]);
    });
  }

 private:
  const char* data_;
  int64_t row_, column_, columns_;
  at::ScalarType type_;
};

// Is any of them NaN? Without a branch on each, so that the compiler makes vectors of it.
inline bool any_nan(const double* x, int64_t count) {
  int64_t nans = 0;
  for (int64_t i = 0; i < count; ++i) nans += x[i] != x[i];
  return nans > 0;
}

inline bool all_finite(const double* x, int64_t count) {
  int64_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad += !(std::abs(x[i]) <= std::numeric_limits<double>::max());
  return bad == 0;
}

// Calls body(q, rewards, scores, keys or nullptr, repairable) for every group, in parallel, after checking its values.
template <typename Body>
void for_each_group(const GroupTensors& groups, const Body& body) {
  const int64_t q_count = groups.rewards.size(0), g = groups.rewards.size(1);
  const RowReader rewards(groups.rewards), scores(groups.scores);
  const std::optional<RowReader> keys =
      groups.tie_break ? std::optional<RowReader>(RowReader(*groups.tie_break)) : std::nullopt;
  const bool* repairable = groups.repairable ? groups.repairable->const_data_ptr<bool>() : nullptr;
  at::parallel_for(0, q_count, 1 + 4096 / (g + 1), [&](int64_t begin, int64_t end) {
    std::vector<double> buffer(3 * g);
    double *r = buffer.data(), *u = r + g, *k = u + g;
    for (int64_t q = begin; q < end; ++q) {
      rewards.read(q, r);
      scores.read(q, u);
      if (keys) keys->read(q, k);
      TORCH_CHECK_VALUE(all_finite(r, g), "rewards: expected finite values");
      TORCH_CHECK_VALUE(!any_nan(u, g), "scores: expected values that can be ranked");
      TORCH_CHECK_VALUE(!keys || !any_nan(k, g), "tie_break: expected values that can be ranked");
      body(q, r, u, keys ? k : nullptr, repairable ? repairable[q] : true);
    }
  });
}

inline void set(at::Tensor& x, int64_t q, int64_t i, double value) {
  RECAST_DISPATCH(x.scalar_type(), [&] { x.mutable_data_ptr<scalar_t>()[q * x.size(1) + i] = static_cast<scalar_t>(value); });
}

}  // namespace recast
