// The clipped policy loss and the KL of one token, and their derivatives. Shared by the CPU and the CUDA kernels.
// The definition is in recast_ref/reference/losses.py; at a corner, where two branches are equal, the derivative is
// their mean, as PyTorch's maximum and minimum have it.
#pragma once

#include <cmath>

#include "prefix.h"

namespace recast {

template <typename T>
struct TokenLoss {
  T policy;
  T policy_grad;  // d policy / d logp
  T kl;
  T kl_grad;  // d kl / d logp
  bool clipped;
};

template <typename T>
RECAST_HD T clamp(T x, T low, T high) {
  return x < low ? low : (x > high ? high : x);  // NaN stays NaN
}

template <typename T>
RECAST_HD TokenLoss<T> policy_term(T logp, T old_logp, T advantage, T low, T high, T dual_clip) {
  const T gap = logp - old_logp;
  const T ratio = std::exp(clamp<T>(gap, -20, 20));
  const T ratio_grad = (gap >= -20 && gap <= 20) ? ratio : T(0);
  const T unclipped = -advantage * ratio;
  const T clipped = -advantage * clamp<T>(ratio, low, high);
  const T unclipped_grad = -advantage * ratio_grad;
  const T clipped_grad = (ratio >= low && ratio <= high) ? unclipped_grad : T(0);

  TokenLoss<T> out{};
  out.clipped = clipped > unclipped;
  if (unclipped == clipped) {
    out.policy = unclipped;
    out.policy_grad = (unclipped_grad + clipped_grad) / 2;
  } else {
    // Not (clipped > unclipped): a NaN must come out as one.
    out.policy = unclipped > clipped ? unclipped : (clipped > unclipped ? clipped : unclipped + clipped);
    out.policy_grad = unclipped > clipped ? unclipped_grad : clipped_grad;
  }
  if (advantage < 0) {
    const T bound = -advantage * dual_clip;
    if (out.policy == bound) out.policy_grad /= 2;
    if (out.policy > bound) {
      out.policy = bound;
      out.policy_grad = 0;
    }
  }
  return out;
}

template <typename T>
RECAST_HD void kl_term(T logp, T ref_logp, TokenLoss<T>& out) {
  const T gap = ref_logp - logp;
  const T x = clamp<T>(gap, -20, 20);
  const T ratio = std::exp(x);
  const T kl = ratio - x - 1;
  out.kl = clamp<T>(kl, -10, 10);
  const bool inside = gap >= -20 && gap <= 20 && kl >= -10 && kl <= 10;
  out.kl_grad = inside ? 1 - ratio : T(0);
}

}  // namespace recast
