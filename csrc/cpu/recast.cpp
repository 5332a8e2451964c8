// repair, contrast, recast, and recast_from_sids, which goes from SIDs to the pair with nothing in between.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "rows.h"

namespace recast {
namespace {

at::Tensor indices(const at::Tensor& like, int64_t q) { return at::empty({q}, like.options().dtype(at::kLong)); }

std::tuple<at::Tensor, at::Tensor, at::Tensor> repair(const at::Tensor& rewards, const at::Tensor& scores,
                                                      const Optional& repairable, const Optional& tie_break) {
  const GroupTensors groups(rewards, scores, repairable, tie_break);
  auto slot = indices(rewards, rewards.size(0));
  // Detached: selection has no gradient, and a clone inside this kernel would be recorded as one.
  auto r = rewards.detach().clone(at::MemoryFormat::Contiguous), u = scores.detach().clone(at::MemoryFormat::Contiguous);
  int64_t* slots = slot.mutable_data_ptr<int64_t>();
  for_each_group(groups, [&](int64_t q, const double* rq, const double* uq, const double* keys, bool usable) {
    slots[q] = repair_slot(rq, uq, keys, r.size(1), usable);
    if (slots[q] >= 0) {
      set(r, q, slots[q], 1);
      set(u, q, slots[q], 1);
    }
  });
  return {slot, r, u};
}

// What contrast and recast write for one group.
struct Output {
  at::Tensor slot, positive, negative, advantages;
  double weight, negative_weight;
  int64_t *slots, *positives, *negatives;

  Output(const at::Tensor& like, at::ScalarType type, int64_t q, int64_t g, double w, double w_neg)
      : slot(indices(like, q)), positive(indices(like, q)), negative(indices(like, q)),
        advantages(at::zeros({q, g}, like.options().dtype(type))), weight(w), negative_weight(w_neg),
        slots(slot.mutable_data_ptr<int64_t>()), positives(positive.mutable_data_ptr<int64_t>()),
        negatives(negative.mutable_data_ptr<int64_t>()) {
    check_weight(w, type, false);
    check_weight(w_neg, type, true);
  }

  void write(int64_t q, int64_t repaired, const Pair& pair) {
    slots[q] = repaired;
    positives[q] = pair.positive;
    negatives[q] = pair.negative;
    if (pair.positive >= 0) {
      set(advantages, q, pair.positive, weight);
      set(advantages, q, pair.negative, -negative_weight);
    }
  }
};

// Repair in place, then contrast, of a group in double.
int64_t repair_group(double* rewards, double* scores, const double* keys, int64_t g, bool usable) {
  const int64_t slot = repair_slot(rewards, scores, keys, g, usable);
  if (slot >= 0) rewards[slot] = scores[slot] = 1;
  return slot;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> contrast(const at::Tensor& rewards, const at::Tensor& scores, double weight,
                                                        double negative_weight, const Optional& tie_break) {
  const GroupTensors groups(rewards, scores, std::nullopt, tie_break);
  Output out(rewards, rewards.scalar_type(), rewards.size(0), rewards.size(1), weight, negative_weight);
  for_each_group(groups, [&](int64_t q, const double* r, const double* u, const double* keys, bool) {
    out.write(q, -1, contrast_pair(r, u, keys, rewards.size(1)));
  });
  return {out.positive, out.negative, out.advantages};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> recast(const at::Tensor& rewards, const at::Tensor& scores,
                                                                  const Optional& repairable, double weight,
                                                                  double negative_weight, const Optional& tie_break) {
  const GroupTensors groups(rewards, scores, repairable, tie_break);
  Output out(rewards, rewards.scalar_type(), rewards.size(0), rewards.size(1), weight, negative_weight);
  for_each_group(groups, [&](int64_t q, double* r, double* u, const double* keys, bool usable) {
    const int64_t slot = repair_group(r, u, keys, rewards.size(1), usable);
    out.write(q, slot, contrast_pair(r, u, keys, rewards.size(1)));
  });
  return {out.slot, out.positive, out.negative, out.advantages};
}

// r and u of a group, as doubles.
void worths(const int64_t* p, int64_t g, int64_t m, const int64_t* t, int64_t k, int64_t levels, double* r, double* u) {
  for (int64_t i = 0; i < g; ++i) {
    const Worth worth = worth_of(p + i * m * levels, m, t, k, levels);
    r[i] = worth.reward;
    u[i] = worth.score;
  }
}

// The usual case again, one SID a response and one target, with float32 keys or none, and no branch that depends on the
// data: what decides between two responses (codes that agree, then tie key, then lower index) is packed into one number, so
// that a choice is a maximum.
constexpr int kIndexBits = 24, kLevelShift = 56;
constexpr int64_t kMostPacked = int64_t{1} << kIndexBits;

// Unsigned numbers in the order of the floats; -0 and 0 are one.
uint64_t in_order(float key) {
  key += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &key, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

int64_t index_of(uint64_t packed) { return kMostPacked - 1 - static_cast<int64_t>(packed & (kMostPacked - 1)); }

struct Choice {
  int64_t slot;
  Pair pair;
};

template <int64_t kLevels>
Choice choose_packed(const int64_t* p, int64_t g, const int64_t* t, const float* keys, int64_t key_stride) {
  const int64_t usable = is_real(t, kLevels);
  uint64_t positive = 0, negative = 0, lowest = 0;  // 0: none
  int64_t nans = 0;
  const auto place = [&](int64_t i) {
    const float key = keys ? keys[i * key_stride] : 0.0f;
    nans += key != key;
    return in_order(key) << kIndexBits | static_cast<uint64_t>(kMostPacked - 1 - i);
  };
  for (int64_t i = 0; i < g; ++i) {
    const int64_t* sid = p + i * kLevels;
    const uint64_t agree = matched_codes(sid, t, kLevels) * (usable & is_real(sid, kLevels));
    const uint64_t rest = place(i), closest = (agree + 1) << kLevelShift | rest;
    const uint64_t hit = -static_cast<uint64_t>(agree == kLevels);  // all ones or all zeros
    positive = std::max(positive, closest & hit);
    negative = std::max(negative, closest & ~hit);
    lowest = std::max(lowest, (kLevels - agree + 1) << kLevelShift | rest);
  }
  TORCH_CHECK_VALUE(nans == 0, "tie_break: expected values that can be ranked");
  if (positive) return negative ? Choice{-1, {index_of(positive), index_of(negative)}} : Choice{-1, {-1, -1}};
  if (!usable || g == 0) return {-1, {-1, -1}};
  const int64_t slot = index_of(lowest);
  if (index_of(negative) == slot) {  // all agree in as many codes: the hardest negative is the next by its key
    negative = 0;
    for (int64_t i = 0; i < g; ++i) {
      if (i != slot) negative = std::max(negative, uint64_t{1} << kLevelShift | place(i));
    }
  }
  return {slot, negative ? Pair{slot, index_of(negative)} : Pair{-1, -1}};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> recast_from_sids(const at::Tensor& predictions_,
                                                                            const at::Tensor& targets_, double weight,
                                                                            double negative_weight,
                                                                            const Optional& tie_break) {
  check_sids(predictions_, targets_, kMostLevels);
  const auto predictions = predictions_.contiguous(), targets = targets_.contiguous();
  const int64_t q_count = predictions.size(0), g = predictions.size(1), m = predictions.size(2);
  const int64_t levels = predictions.size(3), k = targets.size(1);
  check_tie_break(tie_break, predictions, {q_count, g});
  const auto keys = tie_break ? std::optional<RowReader>(*tie_break) : std::nullopt;
  Output out(predictions, at::kFloat, q_count, g, weight, negative_weight);
  const int64_t *p = predictions.const_data_ptr<int64_t>(), *t = targets.const_data_ptr<int64_t>();
  const bool packed = m == 1 && k == 1 && (levels == 3 || levels == 4) && g < kMostPacked &&
                      (!tie_break || tie_break->scalar_type() == at::kFloat);
  const auto choose = levels == 3 ? choose_packed<3> : choose_packed<4>;
  const float* floats = packed && tie_break ? tie_break->const_data_ptr<float>() : nullptr;
  at::parallel_for(0, q_count, 1 + 8192 / (g + 1), [&](int64_t begin, int64_t end) {
    std::vector<double> buffer(3 * g);
    double *r = buffer.data(), *u = r + g, *key = u + g;
    for (int64_t q = begin; q < end; ++q) {
      const int64_t *group = p + q * g * m * levels, *wanted = t + q * k * levels;
      if (packed) {
        const float* row = floats ? floats + q * tie_break->stride(0) : nullptr;
        const Choice choice = choose(group, g, wanted, row, floats ? tie_break->stride(1) : 0);
        out.write(q, choice.slot, choice.pair);
        continue;
      }
      bool usable = false;
      for (int64_t i = 0; i < k && !usable; ++i) usable = is_real(wanted + i * levels, levels);
      worths(group, g, m, wanted, k, levels, r, u);
      if (keys) {
        keys->read(q, key);
        TORCH_CHECK_VALUE(!any_nan(key, g), "tie_break: expected values that can be ranked");
      }
      const int64_t slot = repair_group(r, u, keys ? key : nullptr, g, usable);
      out.write(q, slot, contrast_pair(r, u, keys ? key : nullptr, g));
    }
  });
  return {out.slot, out.positive, out.negative, out.advantages};
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CPU, m) {
  m.impl("repair", repair);
  m.impl("contrast", contrast);
  m.impl("recast", recast);
  m.impl("recast_from_sids", recast_from_sids);
}

}  // namespace recast
