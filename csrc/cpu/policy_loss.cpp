// The clipped policy loss with KL: one pass forward, one pass backward, nothing kept between them.
// Sums are in double, row by row and then over the rows in order, so that they do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../core/loss_checks.h"
#include "../core/token_loss.h"

namespace recast {
namespace {

// Calls body(i, row, loss) for each unmasked token i = row * T + t of the rows begin .. end.
template <typename T, typename Body>
void each_token(const LossTensors& in, const LossOptions& options, int64_t begin, int64_t end, const Body& body) {
  const T *logps = in.logps.const_data_ptr<T>(), *old_logps = in.old_logps.const_data_ptr<T>();
  const T* advantages = in.advantages.const_data_ptr<T>();
  const T* ref = in.ref_logps ? in.ref_logps->const_data_ptr<T>() : nullptr;
  const bool* mask = in.mask.const_data_ptr<bool>();
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = row * in.t; i < (row + 1) * in.t; ++i) {
      if (!mask[i]) continue;
      auto loss = policy_term<T>(logps[i], old_logps[i], advantages[in.per_token ? i : row], static_cast<T>(1 - options.clip_low),
                                 static_cast<T>(1 + options.clip_high), static_cast<T>(options.dual_clip));
      if (ref) kl_term<T>(logps[i], ref[i], loss);
      body(i, row, loss);
    }
  }
}

// The weight of every token of a row in the aggregate, from the number of unmasked tokens in each row.
std::vector<double> row_weights(const LossTensors& in) {
  std::vector<double> weights(in.b);
  const bool* mask = in.mask.const_data_ptr<bool>();
  double tokens = 0, rows = 0;
  for (int64_t row = 0; row < in.b; ++row) {
    int64_t count = 0;
    for (int64_t i = row * in.t; i < (row + 1) * in.t; ++i) count += mask[i];
    weights[row] = static_cast<double>(count);
    tokens += static_cast<double>(count);
    rows += count > 0;
  }
  for (double& weight : weights) weight = token_weight(in.aggregate, weight, tokens, rows);
  return weights;
}

int64_t row_grain(const LossTensors& in) { return 1 + 4096 / (in.t + 1); }

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> policy_loss(
    const at::Tensor& logps, const at::Tensor& old_logps, const at::Tensor& advantages, const at::Tensor& mask,
    const Optional& ref_logps, double clip_low, double clip_high, double dual_clip, double kl_coef,
    c10::string_view aggregate) {
  const LossTensors in(logps, old_logps, advantages, mask, ref_logps, {aggregate.data(), aggregate.size()});
  const LossOptions options{clip_low, clip_high, dual_clip, kl_coef};
  options.check(ref_logps.has_value());
  const auto weights = row_weights(in);
  struct Sums {
    double policy = 0, kl = 0, clipped = 0, tokens = 0;
  };
  std::vector<Sums> sums(in.b);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, in.b, row_grain(in), [&](int64_t begin, int64_t end) {
      each_token<T>(in, options, begin, end, [&](int64_t, int64_t row, const TokenLoss<T>& loss) {
        sums[row].policy += loss.policy;
        sums[row].kl += loss.kl;
        sums[row].clipped += loss.clipped;
        sums[row].tokens += 1;
      });
    });
  };
  in.is_double() ? run(0.0) : run(0.0f);

  Sums all;
  for (int64_t row = 0; row < in.b; ++row) {
    all.policy += weights[row] * sums[row].policy;
    all.kl += weights[row] * sums[row].kl;
    all.clipped += sums[row].clipped;
    all.tokens += sums[row].tokens;
  }
  const double clip_fraction = all.tokens > 0 ? all.clipped / all.tokens : 0;
  const double loss = kl_coef != 0 ? all.policy + kl_coef * all.kl : all.policy;
  const auto scalar = [&](double value) { return at::scalar_tensor(value, in.logps.options()); };
  return {scalar(loss), scalar(all.policy), scalar(all.kl), scalar(clip_fraction)};
}

at::Tensor policy_loss_backward(const at::Tensor& grad_loss, const at::Tensor& grad_policy, const at::Tensor& grad_kl,
                                const at::Tensor& logps, const at::Tensor& old_logps, const at::Tensor& advantages,
                                const at::Tensor& mask, const Optional& ref_logps, double clip_low, double clip_high,
                                double dual_clip, double kl_coef, c10::string_view aggregate) {
  const LossTensors in(logps, old_logps, advantages, mask, ref_logps, {aggregate.data(), aggregate.size()});
  const LossOptions options{clip_low, clip_high, dual_clip, kl_coef};
  const auto weights = row_weights(in);
  const double g_loss = grad_loss.item().toDouble(), g_policy = grad_policy.item().toDouble();
  const double g_kl = grad_kl.item().toDouble();
  auto gradient = at::zeros({in.b, in.t}, in.logps.options());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    T* out = gradient.mutable_data_ptr<T>();
    at::parallel_for(0, in.b, row_grain(in), [&](int64_t begin, int64_t end) {
      each_token<T>(in, options, begin, end, [&](int64_t i, int64_t row, const TokenLoss<T>& loss) {
        double g = (g_loss + g_policy) * loss.policy_grad;
        if (in.ref_logps) g += (g_loss * kl_coef + g_kl) * loss.kl_grad;
        out[i] = static_cast<T>(weights[row] * g);
      });
    });
  };
  in.is_double() ? run(0.0) : run(0.0f);
  return gradient.to(logps.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CPU, m) {
  m.impl("policy_loss", policy_loss);
  m.impl("policy_loss_backward", policy_loss_backward);
}

}  // namespace recast
