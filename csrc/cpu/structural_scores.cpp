// structural_scores and hit_rewards: one loop over the responses, no (Q, G, M, K, L) intermediate.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../core/checks.h"
#include "../core/prefix.h"

namespace recast {
namespace {

template <typename Get>
at::Tensor each_response(const at::Tensor& predictions_, const at::Tensor& targets_, const Get& get) {
  check_sids(predictions_, targets_, kMostLevels);
  const auto predictions = predictions_.contiguous(), targets = targets_.contiguous();
  const int64_t q = predictions.size(0), g = predictions.size(1), m = predictions.size(2), levels = predictions.size(3);
  const int64_t k = targets.size(1);
  auto out = at::empty({q, g}, predictions.options().dtype(at::kFloat));
  const int64_t *p = predictions.const_data_ptr<int64_t>(), *t = targets.const_data_ptr<int64_t>();
  float* o = out.mutable_data_ptr<float>();
  at::parallel_for(0, q * g, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) o[i] = get(worth_of(p + i * m * levels, m, t + i / g * k * levels, k, levels));
  });
  return out;
}

at::Tensor structural_scores(const at::Tensor& predictions, const at::Tensor& targets) {
  return each_response(predictions, targets, [](const Worth& worth) { return worth.score; });
}

at::Tensor hit_rewards(const at::Tensor& predictions, const at::Tensor& targets) {
  return each_response(predictions, targets, [](const Worth& worth) { return worth.reward; });
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CPU, m) {
  m.impl("structural_scores", structural_scores);
  m.impl("hit_rewards", hit_rewards);
}

}  // namespace recast
