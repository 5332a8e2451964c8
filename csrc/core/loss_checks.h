// The checked arguments of the policy loss, for both kinds of kernel.
#pragma once

#include <ATen/ops/_assert_async.h>

#include <string_view>

#include "aggregate.h"
#include "checks.h"

namespace recast {

inline Aggregate aggregate_of(std::string_view name) {
  if (name == "token-mean") return Aggregate::kTokenMean;
  if (name == "seq-mean-token-mean") return Aggregate::kSeqMeanTokenMean;
  TORCH_CHECK_VALUE(name == "seq-mean-token-sum", "aggregate: unknown");
  return Aggregate::kSeqMeanTokenSum;
}

struct LossOptions {
  double clip_low, clip_high, dual_clip, kl_coef;

  void check(bool has_ref) const {
    const auto at_least_zero = [](double x) { return std::isfinite(x) && x >= 0; };
    TORCH_CHECK_VALUE(at_least_zero(clip_low), "clip_low: expected a finite number >= 0");
    TORCH_CHECK_VALUE(at_least_zero(clip_high), "clip_high: expected a finite number >= 0");
    TORCH_CHECK_VALUE(std::isfinite(dual_clip) && dual_clip > 1, "dual_clip: expected a finite number > 1");
    TORCH_CHECK_VALUE(at_least_zero(kl_coef), "kl_coef: expected a finite number >= 0");
    TORCH_CHECK_VALUE(kl_coef == 0 || has_ref, "ref_logps: needed for kl_coef > 0");
  }
};

// The checked arguments, in one dtype and contiguous.
struct LossTensors {
  at::Tensor logps, old_logps, advantages, mask;
  Optional ref_logps;
  bool per_token;
  int64_t b, t;
  Aggregate aggregate;

  LossTensors(const at::Tensor& logps_, const at::Tensor& old_, const at::Tensor& advantages_, const at::Tensor& mask_,
         const Optional& ref_, std::string_view how)
      : aggregate(aggregate_of(how)) {
    TORCH_CHECK_VALUE(logps_.dim() == 2, "logps: expected shape (B, T), got ", logps_.sizes());
    check_floating(logps_, "logps");
    check_floating(old_, "old_logps");
    check_floating(advantages_, "advantages");
    check_sizes(old_, logps_.sizes(), "old_logps");
    check_sizes(mask_, logps_.sizes(), "mask");
    check_device(old_, logps_, "old_logps");
    check_device(advantages_, logps_, "advantages");
    check_device(mask_, logps_, "mask");
    b = logps_.size(0), t = logps_.size(1);
    per_token = advantages_.dim() != 1;
    check_sizes(advantages_, per_token ? logps_.sizes() : at::IntArrayRef(b), "advantages");
    TORCH_CHECK_TYPE(!at::isComplexType(mask_.scalar_type()), "mask: expected bool, or only 0 and 1");
    bool wide = logps_.scalar_type() == at::kDouble || old_.scalar_type() == at::kDouble ||
                advantages_.scalar_type() == at::kDouble;
    if (ref_) {
      check_floating(*ref_, "ref_logps");
      check_sizes(*ref_, logps_.sizes(), "ref_logps");
      check_device(*ref_, logps_, "ref_logps");
      wide |= ref_->scalar_type() == at::kDouble;
    }
    const auto type = wide ? at::kDouble : at::kFloat;
    logps = logps_.to(type).contiguous();
    old_logps = old_.to(type).contiguous();
    advantages = advantages_.to(type).contiguous();
    if (ref_) ref_logps = ref_->to(type).contiguous();
    mask = mask_.to(at::kBool).contiguous();
    if (mask_.scalar_type() != at::kBool) {
      const auto same = mask.to(mask_.scalar_type()).eq(mask_).all();
      if (same.is_cuda()) {  // the host must not wait for it
        at::_assert_async(same, "mask: expected only 0 and 1");
      } else {
        TORCH_CHECK_VALUE(same.item<bool>(), "mask: expected only 0 and 1");
      }
    }
  }

  bool is_double() const { return logps.scalar_type() == at::kDouble; }
};

}  // namespace recast
