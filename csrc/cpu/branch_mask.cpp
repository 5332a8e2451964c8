// branch_mask: one pass a row.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../core/checks.h"

namespace recast {
namespace {

at::Tensor branch_mask(const at::Tensor& positive_tokens, const at::Tensor& negative_tokens) {
  check_branches(positive_tokens, negative_tokens);
  const auto positive = positive_tokens.contiguous(), negative = negative_tokens.contiguous();
  auto out = at::empty(positive.sizes(), positive.options().dtype(at::kBool));
  const int64_t length = positive.size(-1);
  if (out.numel() == 0) return out;
  const int64_t *p = positive.const_data_ptr<int64_t>(), *n = negative.const_data_ptr<int64_t>();
  bool* o = out.mutable_data_ptr<bool>();
  at::parallel_for(0, positive.numel() / length, 1 + 16384 / length, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      bool left = false;
      for (int64_t i = row * length; i < (row + 1) * length; ++i) o[i] = left = left || p[i] != n[i];
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CPU, m) { m.impl("branch_mask", branch_mask); }

}  // namespace recast
