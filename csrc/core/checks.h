// What every kernel checks. The messages that users see come from the reference: recast_ref.fast catches these errors
// and lets recast_ref.reference say what is wrong, so that both paths speak alike.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <optional>

namespace recast {

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

inline void check_sids(const at::Tensor& predictions, const at::Tensor& targets, int64_t most_levels) {
  check_int64(predictions, "predictions");
  check_int64(targets, "targets");
  TORCH_CHECK_VALUE(predictions.dim() == 4, "predictions: expected shape (Q, G, M, L), got ", predictions.sizes());
  const int64_t levels = predictions.size(3);
  TORCH_CHECK_VALUE(targets.dim() == 3 && targets.size(0) == predictions.size(0) && targets.size(2) == levels,
                    "targets: expected shape (Q, K, L), got ", targets.sizes());
  TORCH_CHECK_VALUE(levels >= 1 && levels <= most_levels, "predictions: expected 1 to ", most_levels, " codes, got ", levels);
}

}  // namespace recast
