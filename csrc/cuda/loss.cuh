// One token's loss, and its weight, as the kernels of the policy loss see them.
#pragma once

#include "../core/token_loss.h"
#include "device.cuh"

namespace recast {

__device__ __forceinline__ double weight_of(const LossInputs& in, const RowSums& sums, const Totals& totals) {
  return token_weight(in.aggregate, sums.tokens, totals.tokens, totals.rows);
}

// The loss of token i of row b, for a log-prob that has just been worked out.
template <typename T>
__device__ __forceinline__ TokenLoss<T> loss_at(const LossInputs& in, int64_t b, int64_t i, T logp) {
  const T advantage = static_cast<const T*>(in.advantages)[in.per_token ? i : b];
  auto loss = policy_term<T>(logp, static_cast<const T*>(in.old_logps)[i], advantage, static_cast<T>(in.clip_low),
                             static_cast<T>(in.clip_high), static_cast<T>(in.dual_clip));
  if (in.ref_logps) kl_term<T>(logp, static_cast<const T*>(in.ref_logps)[i], loss);
  return loss;
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
