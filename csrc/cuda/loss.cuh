// One token's loss, and its weight, as the kernels of the policy loss see them.
#pragma once

#include "../core/token_loss.h"
#include "device.cuh"

namespace recast {

__device__ __forceinline__ double weight_of(const LossInputs& in, const RowSums& sums, const Totals& totals) {
  return token_weight(in.aggregate, sums.tokens, totals.tokens, totals.rows);
}

// What the loss of token i of row b depends on, beside its log-prob. Values of the inputs' dtype, exact as doubles.
struct TokenArguments {
  double old_logp, advantage, ref_logp;
};

__device__ __forceinline__ TokenArguments arguments_of(const LossInputs& in, int64_t b, int64_t i) {
  const Dtype dtype = in.is_double ? Dtype::kDouble : Dtype::kFloat;
  return {read(in.old_logps, dtype, i), read(in.advantages, dtype, in.per_token ? i : b),
          in.ref_logps ? read(in.ref_logps, dtype, i) : 0};
}

template <typename T>
__device__ __forceinline__ TokenLoss<T> loss_of(const LossInputs& in, const TokenArguments& x, T logp) {
  auto loss = policy_term<T>(logp, static_cast<T>(x.old_logp), static_cast<T>(x.advantage), static_cast<T>(1 - in.clip_low),
                             static_cast<T>(1 + in.clip_high), static_cast<T>(in.dual_clip));
  if (in.ref_logps) kl_term<T>(logp, static_cast<T>(x.ref_logp), loss);
  return loss;
}

template <typename T>
__device__ __forceinline__ TokenLoss<T> loss_at(const LossInputs& in, int64_t b, int64_t i) {
  return loss_of<T>(in, arguments_of(in, b, i), static_cast<const T*>(in.logps)[i]);
}

// d loss / d logp of a token, for these gradients of the loss and of its two parts.
template <typename T>
__device__ __forceinline__ double slope(const LossInputs& in, const TokenLoss<T>& loss, double weight, double grad_loss,
                                        double grad_policy, double grad_kl) {
  double g = (grad_loss + grad_policy) * loss.policy_grad;
  if (in.ref_logps) g += (grad_loss * in.kl_coef + grad_kl) * loss.kl_grad;
  return weight * g;
}

}  // namespace recast
