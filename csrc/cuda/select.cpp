// Selection for CUDA tensors: arguments are checked, outputs allocated, one kernel launched.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../core/prefix.h"
#include "host.h"

namespace recast {
namespace {

at::Tensor indices(const at::Tensor& like) { return at::empty({like.size(0)}, like.options().dtype(at::kLong)); }

Sids sids(const at::Tensor& predictions, const at::Tensor& targets, const Optional& tie_break) {
  return {predictions.size(0),
          predictions.size(1),
          predictions.size(2),
          targets.size(1),
          predictions.size(3),
          predictions.const_data_ptr<int64_t>(),
          targets.const_data_ptr<int64_t>(),
          matrix(tie_break)};
}

Groups groups_of(const GroupTensors& x) {
  return {x.rewards.size(0), x.rewards.size(1), matrix(x.rewards), matrix(x.scores), matrix(x.tie_break), bools(x.repairable)};
}

at::Tensor score(const at::Tensor& predictions_, const at::Tensor& targets_, bool hits) {
  check_sids(predictions_, targets_, kMostLevels);
  const OnDeviceOf device(predictions_);
  const auto predictions = predictions_.contiguous(), targets = targets_.contiguous();
  auto out = at::empty(predictions.sizes().slice(0, 2), predictions.options().dtype(at::kFloat));
  score_sids(sids(predictions, targets, std::nullopt), hits, out.mutable_data_ptr<float>(), device.stream);
  return out;
}

at::Tensor structural_scores(const at::Tensor& predictions, const at::Tensor& targets) {
  return score(predictions, targets, false);
}

at::Tensor hit_rewards(const at::Tensor& predictions, const at::Tensor& targets) { return score(predictions, targets, true); }

at::Tensor group_regimes(const at::Tensor& rewards) {
  check_rewards(rewards);
  const OnDeviceOf device(rewards);
  auto out = indices(rewards);
  count_regimes(rewards.size(0), rewards.size(1), matrix(rewards), out.mutable_data_ptr<int64_t>(), device.stream);
  return out;
}

at::Tensor group_advantages(const at::Tensor& rewards, bool normalize, double eps) {
  check_rewards(rewards);
  check_eps(eps);
  const OnDeviceOf device(rewards);
  auto out = at::empty(rewards.sizes(), rewards.options());
  normalize_groups(rewards.size(0), rewards.size(1), matrix(rewards), normalize, eps, out.mutable_data_ptr(), device.stream);
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> repair(const at::Tensor& rewards, const at::Tensor& scores,
                                                      const Optional& repairable, const Optional& tie_break) {
  const GroupTensors groups(rewards, scores, repairable, tie_break);
  const OnDeviceOf device(rewards);
  auto slot = indices(rewards);
  auto r = at::empty(rewards.sizes(), rewards.options()), u = at::empty(scores.sizes(), scores.options());
  Selected out{};
  out.repairs = true;
  out.slot = slot.mutable_data_ptr<int64_t>();
  out.rewards = r.mutable_data_ptr();
  out.scores = u.mutable_data_ptr();
  out.rewards_dtype = dtype_of(r.scalar_type());
  out.scores_dtype = dtype_of(u.scalar_type());
  select_groups(groups_of(groups), out, device.stream);
  return {slot, r, u};
}

// The outputs of contrast, recast and recast_from_sids.
struct Pairs {
  at::Tensor slot, positive, negative, advantages;
  Selected out{};

  Pairs(const at::Tensor& like, at::ScalarType type, bool repairs, double weight, double negative_weight)
      : slot(indices(like)), positive(indices(like)), negative(indices(like)),
        advantages(at::empty(like.sizes().slice(0, 2), like.options().dtype(type))) {
    check_weight(weight, type, false);
    check_weight(negative_weight, type, true);
    out.repairs = repairs;
    out.contrasts = true;
    out.slot = slot.mutable_data_ptr<int64_t>();
    out.positive = positive.mutable_data_ptr<int64_t>();
    out.negative = negative.mutable_data_ptr<int64_t>();
    out.advantages = advantages.mutable_data_ptr();
    out.advantages_dtype = dtype_of(type);
    out.weight = weight;
    out.negative_weight = negative_weight;
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> contrast(const at::Tensor& rewards, const at::Tensor& scores, double weight,
                                                        double negative_weight, const Optional& tie_break) {
  const GroupTensors groups(rewards, scores, std::nullopt, tie_break);
  const OnDeviceOf device(rewards);
  const Pairs pairs(rewards, rewards.scalar_type(), false, weight, negative_weight);
  select_groups(groups_of(groups), pairs.out, device.stream);
  return {pairs.positive, pairs.negative, pairs.advantages};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> recast(const at::Tensor& rewards, const at::Tensor& scores,
                                                                  const Optional& repairable, double weight,
                                                                  double negative_weight, const Optional& tie_break) {
  const GroupTensors groups(rewards, scores, repairable, tie_break);
  const OnDeviceOf device(rewards);
  const Pairs pairs(rewards, rewards.scalar_type(), true, weight, negative_weight);
  select_groups(groups_of(groups), pairs.out, device.stream);
  return {pairs.slot, pairs.positive, pairs.negative, pairs.advantages};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> recast_from_sids(const at::Tensor& predictions_,
                                                                            const at::Tensor& targets_, double weight,
                                                                            double negative_weight,
                                                                            const Optional& tie_break) {
  check_sids(predictions_, targets_, kMostLevels);
  check_tie_break(tie_break, predictions_, predictions_.sizes().slice(0, 2));
  const OnDeviceOf device(predictions_);
  const auto predictions = predictions_.contiguous(), targets = targets_.contiguous();
  const Pairs pairs(predictions, at::kFloat, true, weight, negative_weight);
  select_from_sids(sids(predictions, targets, tie_break), pairs.out, device.stream);
  return {pairs.slot, pairs.positive, pairs.negative, pairs.advantages};
}

at::Tensor branch_mask(const at::Tensor& positive_tokens, const at::Tensor& negative_tokens) {
  check_branches(positive_tokens, negative_tokens);
  const OnDeviceOf device(positive_tokens);
  const auto positive = positive_tokens.contiguous(), negative = negative_tokens.contiguous();
  auto out = at::empty(positive.sizes(), positive.options().dtype(at::kBool));
  if (out.numel() == 0) return out;
  const int64_t length = positive.size(-1);
  mark_branches(positive.numel() / length, length, positive.const_data_ptr<int64_t>(), negative.const_data_ptr<int64_t>(),
                out.mutable_data_ptr<bool>(), device.stream);
  return out;
}

at::Tensor choose_anchor(const at::Tensor& targets_, const at::Tensor& values, const Optional& tie_break) {
  check_anchors(targets_, values, tie_break);
  const OnDeviceOf device(targets_);
  const auto targets = targets_.contiguous();
  auto out = indices(targets);
  choose_anchors({targets.size(0), targets.size(1), targets.size(2), targets.const_data_ptr<int64_t>(), matrix(values),
                  matrix(tie_break)},
                 out.mutable_data_ptr<int64_t>(), device.stream);
  return out;
}

at::Tensor anchor_weights(const at::Tensor& logps, double alpha, double largest) {
  check_anchor_weights(logps, alpha, largest);
  const OnDeviceOf device(logps);
  auto out = at::empty(logps.sizes(), logps.options());
  const Matrix row{logps.const_data_ptr(), 0, logps.stride(0), dtype_of(logps.scalar_type())};
  weigh_anchors(logps.size(0), row, alpha, largest, out.mutable_data_ptr(), device.stream);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CUDA, m) {
  m.impl("structural_scores", structural_scores);
  m.impl("hit_rewards", hit_rewards);
  m.impl("group_regimes", group_regimes);
  m.impl("group_advantages", group_advantages);
  m.impl("repair", repair);
  m.impl("contrast", contrast);
  m.impl("recast", recast);
  m.impl("recast_from_sids", recast_from_sids);
  m.impl("branch_mask", branch_mask);
  m.impl("choose_anchor", choose_anchor);
  m.impl("anchor_weights", anchor_weights);
}

}  // namespace recast
