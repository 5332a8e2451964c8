// group_regimes and group_advantages: each group is read once, with sums in double.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "rows.h"

namespace recast {
namespace {

template <typename Body>
void each_rewards(const at::Tensor& rewards, const Body& body) {
  check_rewards(rewards);
  const RowReader reader(rewards);
  const int64_t g = rewards.size(1);
  at::parallel_for(0, rewards.size(0), 1 + 4096 / (g + 1), [&](int64_t begin, int64_t end) {
    std::vector<double> r(g);
    for (int64_t q = begin; q < end; ++q) {
      reader.read(q, r.data());
      TORCH_CHECK_VALUE(all_finite(r.data(), g), "rewards: expected finite values");
      body(q, r);
    }
  });
}

at::Tensor group_regimes(const at::Tensor& rewards) {
  auto out = at::empty({rewards.dim() ? rewards.size(0) : 0}, rewards.options().dtype(at::kLong));
  int64_t* o = out.mutable_data_ptr<int64_t>();
  each_rewards(rewards, [&](int64_t q, const std::vector<double>& r) {
    o[q] = std::min<int64_t>(2, std::count_if(r.begin(), r.end(), [](double x) { return x > 0; }));
  });
  return out;
}

at::Tensor group_advantages(const at::Tensor& rewards, bool normalize, double eps) {
  check_eps(eps);
  auto out = at::empty(rewards.sizes(), rewards.options());
  each_rewards(rewards, [&](int64_t q, const std::vector<double>& r) {
    const int64_t g = r.size();
    double low = 0, unit = 1, mean = 0, std = 1;  // of a group of one
    if (g > 1) {
      const auto [least, most] = std::minmax_element(r.begin(), r.end());
      low = *least;
      if (*most > low) unit = *most - low;
      const auto place = [&](double x) { return (x - low) / unit; };  // see the reference
      for (double x : r) mean += place(x);
      mean /= g;
      double squares = 0;
      for (double x : r) squares += (place(x) - mean) * (place(x) - mean);
      std = std::sqrt(squares / (g - 1));
    }
    RECAST_DISPATCH(out.scalar_type(), [&] {
      scalar_t* row = out.mutable_data_ptr<scalar_t>() + q * g;
      int64_t bad = 0;
      for (int64_t i = 0; i < g; ++i) {
        const double gap = (r[i] - low) / unit - mean;
        row[i] = static_cast<scalar_t>(normalize ? gap / (std + eps / unit) : gap * unit);
        bad += !std::isfinite(static_cast<double>(row[i]));
      }
      TORCH_CHECK_VALUE(bad == 0, "rewards: expected values whose differences ", out.scalar_type(), " can hold");
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CPU, m) {
  m.impl("group_regimes", group_regimes);
  m.impl("group_advantages", group_advantages);
}

}  // namespace recast
