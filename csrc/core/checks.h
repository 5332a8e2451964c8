// What every kernel checks. The messages that users see come from recast_ref/_checks.py: recast_ref.fast catches these errors and
// lets the checks of the reference say what is wrong, so that both paths speak alike.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#define RECAST_DISPATCH(type, ...)                                                                           \
  AT_DISPATCH_SWITCH(type, "recast", AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) AT_DISPATCH_CASE(at::kDouble, __VA_ARGS__) \
                                         AT_DISPATCH_CASE(at::kHalf, __VA_ARGS__) AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

namespace recast {

using Optional = std::optional<at::Tensor>;

inline bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

inline void check_floating(const at::Tensor& x, const char* name) {
  TORCH_CHECK_TYPE(is_supported(x.scalar_type()), name, ": expected a floating-point dtype, got ", x.scalar_type());
}

inline void check_int64(const at::Tensor& x, const char* name) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kLong, name, ": expected torch.int64, got ", x.scalar_type());
}

inline void check_sizes(const at::Tensor& x, at::IntArrayRef sizes, const char* name) {
  TORCH_CHECK_VALUE(x.sizes() == sizes, name, ": expected shape ", sizes, ", got ", x.sizes());
}

inline void check_device(const at::Tensor& x, const at::Tensor& first, const char* name) {
  TORCH_CHECK_VALUE(x.device() == first.device(), name, ": expected device ", first.device(), ", got ", x.device());
}

inline void check_sids(const at::Tensor& predictions, const at::Tensor& targets, int64_t most_levels) {
  check_int64(predictions, "predictions");
  check_int64(targets, "targets");
  TORCH_CHECK_VALUE(predictions.dim() == 4, "predictions: expected shape (Q, G, M, L), got ", predictions.sizes());
  const int64_t levels = predictions.size(3);
  TORCH_CHECK_VALUE(targets.dim() == 3 && targets.size(0) == predictions.size(0) && targets.size(2) == levels,
                    "targets: expected shape (Q, K, L), got ", targets.sizes());
  TORCH_CHECK_VALUE(levels >= 1 && levels <= most_levels, "predictions: expected 1 to ", most_levels, " codes, got ", levels);
  int64_t unit = 1;  // of the sum of phi, which must not overflow
  for (int64_t l = 1; l < levels; ++l) unit *= 10;
  TORCH_CHECK_VALUE(predictions.size(2) <= std::numeric_limits<int64_t>::max() / unit, "predictions: too many SIDs, got ",
                    predictions.size(2));
  check_device(targets, predictions, "targets");
}

inline void check_tie_break(const Optional& tie_break, const at::Tensor& first, at::IntArrayRef sizes) {
  if (!tie_break) return;
  check_floating(*tie_break, "tie_break");
  check_sizes(*tie_break, sizes, "tie_break");
  check_device(*tie_break, first, "tie_break");
}

inline void check_rewards(const at::Tensor& rewards) {
  check_floating(rewards, "rewards");
  TORCH_CHECK_VALUE(rewards.dim() == 2, "rewards: expected shape (Q, G), got ", rewards.sizes());
}

// The checked arguments of repair, contrast and recast.
struct GroupTensors {
  at::Tensor rewards, scores;
  Optional repairable, tie_break;

  GroupTensors(const at::Tensor& rewards_, const at::Tensor& scores_, const Optional& repairable_, const Optional& tie_break_)
      : rewards(rewards_), scores(scores_), repairable(repairable_), tie_break(tie_break_) {
    check_rewards(rewards);
    check_floating(scores, "scores");
    check_sizes(scores, rewards.sizes(), "scores");
    check_device(scores, rewards, "scores");
    if (repairable) {
      TORCH_CHECK_TYPE(repairable->scalar_type() == at::kBool, "repairable: expected torch.bool");
      check_sizes(*repairable, {rewards.size(0)}, "repairable");
      check_device(*repairable, rewards, "repairable");
      repairable = repairable->contiguous();
    }
    check_tie_break(tie_break, rewards, rewards.sizes());
  }
};

// A weight must not overflow or vanish in the dtype of the advantages.
inline void check_weight(double value, at::ScalarType type, bool may_be_zero) {
  RECAST_DISPATCH(type, [&] {
    const double stored = static_cast<double>(static_cast<scalar_t>(value));
    TORCH_CHECK_VALUE(std::isfinite(stored) && value >= 0 && (stored > 0 || (may_be_zero && value == 0)),
                      "weight: expected a number that the dtype can hold");
  });
}

inline void check_eps(double eps) { TORCH_CHECK_VALUE(std::isfinite(eps) && eps > 0, "eps: expected a finite number > 0"); }

inline void check_branches(const at::Tensor& positive_tokens, const at::Tensor& negative_tokens) {
  check_int64(positive_tokens, "positive_tokens");
  check_int64(negative_tokens, "negative_tokens");
  TORCH_CHECK_VALUE(positive_tokens.dim() >= 1, "positive_tokens: expected shape (..., T)");
  check_sizes(negative_tokens, positive_tokens.sizes(), "negative_tokens");
  check_device(negative_tokens, positive_tokens, "negative_tokens");
}

inline void check_anchors(const at::Tensor& targets, const at::Tensor& values, const Optional& tie_break) {
  check_int64(targets, "targets");
  TORCH_CHECK_VALUE(targets.dim() == 3, "targets: expected shape (Q, K, L), got ", targets.sizes());
  check_floating(values, "values");
  check_sizes(values, targets.sizes().slice(0, 2), "values");
  check_device(values, targets, "values");
  check_tie_break(tie_break, targets, values.sizes());
}

inline void check_anchor_weights(const at::Tensor& logps, double alpha, double largest) {
  check_floating(logps, "logps");
  TORCH_CHECK_VALUE(logps.dim() == 1, "logps: expected shape (Q,), got ", logps.sizes());
  TORCH_CHECK_VALUE(alpha >= 0 && alpha <= 1, "alpha: expected a number in [0, 1], got ", alpha);
  TORCH_CHECK_VALUE(std::isfinite(largest) && largest >= 1, "largest: expected a finite number >= 1, got ", largest);
}

inline void check_logits(const at::Tensor& logits, const at::Tensor& tokens, const Optional& mask) {
  check_floating(logits, "logits");
  check_int64(tokens, "tokens");
  TORCH_CHECK_VALUE(logits.dim() >= 2, "logits: expected shape (..., T, V), got ", logits.sizes());
  check_sizes(tokens, logits.sizes().slice(0, logits.dim() - 1), "tokens");
  check_device(tokens, logits, "tokens");
  TORCH_CHECK_VALUE(logits.size(-1) > 0 || tokens.numel() == 0, "logits: expected a vocabulary, got ", logits.sizes());
  if (!mask) return;
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "mask: expected torch.bool");
  check_sizes(*mask, tokens.sizes(), "mask");
  check_device(*mask, logits, "mask");
}

// Two numbers for each row: its largest logit, and the log of the sum of what the others are to it.
inline std::vector<int64_t> lse_sizes(const at::Tensor& tokens) {
  auto sizes = tokens.sizes().vec();
  sizes.push_back(2);
  return sizes;
}

// What backward of token_logps is given: what forward was, and what it left.
inline void check_saved(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& tokens, const at::Tensor& lse,
                        const Optional& mask) {
  check_logits(logits, tokens, mask);
  check_floating(grad, "grad");
  check_sizes(grad, tokens.sizes(), "grad");
  check_device(grad, logits, "grad");
  TORCH_CHECK_TYPE(lse.scalar_type() == at::kDouble, "lse: expected torch.float64");
  check_sizes(lse, lse_sizes(tokens), "lse");
  check_device(lse, logits, "lse");
}

inline at::ScalarType wide(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// A gradient can be written over logits only if each row lies whole in memory, and apart from all others.
inline void check_inplace(const at::Tensor& logits) {
  bool apart = logits.size(-1) <= 1 || logits.stride(-1) == 1;
  std::vector<std::pair<int64_t, int64_t>> steps;  // stride and size of the dimensions before the last
  for (int64_t d = 0; d + 1 < logits.dim(); ++d) {
    if (logits.size(d) > 1) steps.emplace_back(logits.stride(d), logits.size(d));
  }
  std::sort(steps.begin(), steps.end());
  int64_t reach = logits.size(-1);
  for (const auto& [stride, size] : steps) {
    apart &= stride >= reach;
    reach = stride * size;
  }
  TORCH_CHECK_VALUE(apart || logits.numel() == 0,
                    "logits: inplace_backward needs rows that are contiguous in memory and do not overlap; got strides ",
                    logits.strides(), " for shape ", logits.sizes());
}

// Rows that lie whole in memory, wherever they begin.
inline at::Tensor with_whole_rows(const at::Tensor& logits) {
  return logits.size(-1) <= 1 || logits.stride(-1) == 1 ? logits : logits.contiguous();
}

}  // namespace recast
