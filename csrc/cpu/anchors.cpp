// choose_anchor: one pass over the targets of each prompt. anchor_weights: three over the anchors, in double.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "rows.h"

namespace recast {
namespace {

at::Tensor choose_anchor(const at::Tensor& targets_, const at::Tensor& values, const Optional& tie_break) {
  check_anchors(targets_, values, tie_break);
  const auto targets = targets_.contiguous();
  const int64_t k = targets.size(1), levels = targets.size(2);
  auto out = at::empty({targets.size(0)}, targets.options());
  const int64_t* t = targets.const_data_ptr<int64_t>();
  int64_t* o = out.mutable_data_ptr<int64_t>();
  const RowReader reader(values);
  const auto keys = tie_break ? std::optional<RowReader>(*tie_break) : std::nullopt;
  at::parallel_for(0, targets.size(0), 1 + 4096 / (k * (levels + 1) + 1), [&](int64_t begin, int64_t end) {
    std::vector<double> buffer(2 * k);
    double *value = buffer.data(), *key = value + k;  // without keys: all 0
    for (int64_t q = begin; q < end; ++q) {
      reader.read(q, value);
      if (keys) keys->read(q, key);
      Pick best;
      for (int64_t i = 0; i < k; ++i) {
        if (!is_real(t + (q * k + i) * levels, levels)) continue;  // what stands beside padding is not looked at
        TORCH_CHECK_VALUE(value[i] == value[i], "values: expected values that can be ranked");
        TORCH_CHECK_VALUE(key[i] == key[i], "tie_break: expected values that can be ranked");
        best.offer(i, value[i], key[i]);
      }
      o[q] = best.index;
    }
  });
  return out;
}

at::Tensor anchor_weights(const at::Tensor& logps, double alpha, double largest) {
  check_anchor_weights(logps, alpha, largest);
  const int64_t count = logps.size(0);
  auto out = at::empty({count}, logps.options());
  std::vector<double> p(count);
  RECAST_DISPATCH(logps.scalar_type(), [&] {
    const scalar_t* x = logps.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<double>(x[i * logps.stride(0)]);
    TORCH_CHECK_VALUE(all_finite(p.data(), count), "logps: expected finite values");
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double& each : p) most = std::max(most, each *= alpha);
    for (double& each : p) sum += each = std::exp(each - most);  // seen from the likeliest: not all of them vanish
    scalar_t* o = out.mutable_data_ptr<scalar_t>();
    for (int64_t i = 0; i < count; ++i) o[i] = static_cast<scalar_t>(std::min(p[i] * (count / sum), largest));
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CPU, m) {
  m.impl("choose_anchor", choose_anchor);
  m.impl("anchor_weights", anchor_weights);
}

}  // namespace recast
