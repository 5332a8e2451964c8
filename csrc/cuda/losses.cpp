// The losses for CUDA tensors: arguments are checked, outputs and workspaces allocated, kernels launched.
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../core/loss_checks.h"
#include "host.h"

namespace recast {
namespace {

at::Tensor bytes(const at::Tensor& like, int64_t count) { return at::empty({count}, like.options().dtype(at::kByte)); }

template <typename T>
T* space(const at::Tensor& bytes) {
  return reinterpret_cast<T*>(bytes.mutable_data_ptr<uint8_t>());
}

void check_dims(const at::Tensor& logits) {
  TORCH_CHECK_VALUE(logits.dim() - 1 <= kMostDims, "logits: expected at most ", kMostDims + 1, " dimensions on a CUDA device, got ",
                    logits.sizes(), "; flatten them");
}

LogitRows rows_of(const at::Tensor& x) {
  LogitRows out{};
  out.data = const_cast<void*>(x.const_data_ptr());
  out.dtype = dtype_of(x.scalar_type());
  out.size = x.size(-1);
  out.count = 1;
  out.dims = static_cast<int>(x.dim()) - 1;
  for (int d = 0; d < out.dims; ++d) {
    out.count *= x.size(d);
    out.sizes[d] = x.size(d);
    out.strides[d] = x.stride(d);
  }
  return out;
}

// Logits whose rows are read where they lie; tokens and mask contiguous.
struct RowTensors {
  at::Tensor logits, tokens;
  Optional mask;

  RowTensors(const at::Tensor& logits_, const at::Tensor& tokens_, const Optional& mask_)
      : logits(with_whole_rows(logits_)), tokens(tokens_.contiguous()),
        mask(mask_ ? Optional(mask_->contiguous()) : std::nullopt) {}

  LogitRows rows() const {
    LogitRows out = rows_of(logits);
    out.tokens = tokens.const_data_ptr<int64_t>();
    out.mask = bools(mask);
    return out;
  }
};

std::tuple<at::Tensor, at::Tensor> token_logps(const at::Tensor& logits, const at::Tensor& tokens, const Optional& mask,
                                               bool /*inplace_backward*/) {
  check_logits(logits, tokens, mask);
  check_dims(logits);
  const OnDeviceOf device(logits);
  const RowTensors x(logits, tokens, mask);
  auto logps = at::empty(tokens.sizes(), logits.options().dtype(wide(logits.scalar_type())));
  auto lse = at::empty(lse_sizes(tokens), logits.options().dtype(at::kDouble));
  const LogitRows rows = x.rows();
  const auto parts = bytes(logits, rows.count * parts_of(rows.count, rows.size) * static_cast<int64_t>(sizeof(Part)));
  logps_of_rows(rows, space<Part>(parts), logps.mutable_data_ptr(), static_cast<LogSumExp*>(lse.mutable_data_ptr()), device.stream);
  return {logps, lse};
}

void write_gradient(const at::Tensor& grad_, const RowTensors& x, const at::Tensor& lse_, const at::Tensor& gradient) {
  const OnDeviceOf device(gradient);
  const auto grad = grad_.to(at::kDouble).contiguous(), lse = lse_.contiguous();
  gradient_of_rows(x.rows(), grad.const_data_ptr<double>(), static_cast<const LogSumExp*>(lse.const_data_ptr()),
                   rows_of(gradient), device.stream);
}

at::Tensor token_logps_backward(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& tokens,
                                const at::Tensor& lse, const Optional& mask) {
  check_saved(grad, logits, tokens, lse, mask);
  const RowTensors x(logits, tokens, mask);
  auto gradient = at::empty(logits.sizes(), logits.options());
  write_gradient(grad, x, lse, gradient);
  return gradient;
}

void token_logps_backward_(const at::Tensor& grad, at::Tensor logits, const at::Tensor& tokens, const at::Tensor& lse,
                           const Optional& mask) {
  check_saved(grad, logits, tokens, lse, mask);
  check_dims(logits);
  check_inplace(logits);
  write_gradient(grad, RowTensors(logits, tokens, mask), lse, logits);
  logits.unsafeGetTensorImpl()->bump_version();  // what saved these logits must not be used again
}

LossInputs inputs_of(const LossTensors& x, const LossOptions& options) {
  return {x.b,
          x.t,
          x.is_double(),
          x.per_token,
          x.logps.const_data_ptr(),
          x.old_logps.const_data_ptr(),
          x.advantages.const_data_ptr(),
          x.ref_logps ? x.ref_logps->const_data_ptr() : nullptr,
          x.mask.const_data_ptr<bool>(),
          options.clip_low,
          options.clip_high,
          options.dual_clip,
          options.kl_coef,
          x.aggregate};
}

// What the kernels of one call leave for each other.
struct Workspace {
  at::Tensor sums_, totals_;

  Workspace(const at::Tensor& like, int64_t b)
      : sums_(bytes(like, b * static_cast<int64_t>(sizeof(RowSums)))), totals_(bytes(like, sizeof(Totals))) {}

  RowSums* sums() const { return space<RowSums>(sums_); }
  Totals* totals() const { return space<Totals>(totals_); }
};

using Losses = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Losses finished(const LossInputs& in, const LossTensors& x, const Workspace& work, cudaStream_t stream) {
  const auto scalar = [&] { return at::empty({}, x.logps.options()); };
  const auto loss = scalar(), policy = scalar(), kl = scalar(), clip_fraction = scalar();
  sum_losses(in, work.sums(), work.totals(),
             {loss.mutable_data_ptr(), policy.mutable_data_ptr(), kl.mutable_data_ptr(), clip_fraction.mutable_data_ptr()},
             stream);
  return {loss, policy, kl, clip_fraction};
}

Losses policy_loss(const at::Tensor& logps, const at::Tensor& old_logps, const at::Tensor& advantages, const at::Tensor& mask,
                   const Optional& ref_logps, double clip_low, double clip_high, double dual_clip, double kl_coef,
                   c10::string_view aggregate) {
  const OnDeviceOf device(logps);
  const LossTensors x(logps, old_logps, advantages, mask, ref_logps, {aggregate.data(), aggregate.size()});
  const LossOptions options{clip_low, clip_high, dual_clip, kl_coef};
  options.check(ref_logps.has_value());
  const LossInputs in = inputs_of(x, options);
  const Workspace work(logps, x.b);
  count_tokens(in, work.sums(), work.totals(), device.stream);
  return finished(in, x, work, device.stream);
}

at::Tensor policy_loss_backward(const at::Tensor& grad_loss, const at::Tensor& grad_policy, const at::Tensor& grad_kl,
                                const at::Tensor& logps, const at::Tensor& old_logps, const at::Tensor& advantages,
                                const at::Tensor& mask, const Optional& ref_logps, double clip_low, double clip_high,
                                double dual_clip, double kl_coef, c10::string_view aggregate) {
  const OnDeviceOf device(logps);
  const LossTensors x(logps, old_logps, advantages, mask, ref_logps, {aggregate.data(), aggregate.size()});
  const LossInputs in = inputs_of(x, {clip_low, clip_high, dual_clip, kl_coef});
  const Workspace work(logps, x.b);
  count_tokens(in, work.sums(), work.totals(), device.stream);
  const auto type = x.logps.scalar_type();
  const auto g_loss = grad_loss.to(type), g_policy = grad_policy.to(type), g_kl = grad_kl.to(type);
  auto gradient = at::empty({x.b, x.t}, x.logps.options());
  gradient_of_losses(in, work.sums(), work.totals(), g_loss.const_data_ptr(), g_policy.const_data_ptr(),
                     g_kl.const_data_ptr(), gradient.mutable_data_ptr(), device.stream);
  return gradient.to(logps.scalar_type());
}

// The loss, with d loss / d logits in the place of the logits.
Losses logits_loss_(at::Tensor logits, const at::Tensor& tokens, const at::Tensor& old_logps, const at::Tensor& advantages,
                    const at::Tensor& mask, const Optional& ref_logps, double clip_low, double clip_high, double dual_clip,
                    double kl_coef, c10::string_view aggregate) {
  const auto kept = mask.to(at::kBool);
  check_logits(logits, tokens, kept);
  check_dims(logits);
  check_inplace(logits);
  const OnDeviceOf device(logits);
  const RowTensors rows(logits, tokens, kept);
  // What the loss of a token is worked out in; the values of its log-probs come later.
  const auto unknown = at::empty(tokens.sizes(), logits.options().dtype(wide(logits.scalar_type())));
  const LossTensors x(unknown, old_logps, advantages, mask, ref_logps, {aggregate.data(), aggregate.size()});
  const LossOptions options{clip_low, clip_high, dual_clip, kl_coef};
  options.check(ref_logps.has_value());
  const LossInputs in = inputs_of(x, options);
  const Workspace work(logits, x.b);
  count_tokens(in, work.sums(), work.totals(), device.stream);
  void* logps = const_cast<void*>(in.logps);
  if (enough_rows_for_one_visit(rows.tokens.numel())) {
    logps_and_gradient_of_rows(rows.rows(), in, work.sums(), work.totals(), logps, device.stream);
  } else {
    const auto [logps_, lse] = token_logps(logits, tokens, kept, true);
    x.logps.copy_(logps_);
    const auto one = at::ones({}, x.logps.options()), zero = at::zeros({}, x.logps.options());
    const auto slopes = at::empty({x.b, x.t}, x.logps.options());
    gradient_of_losses(in, work.sums(), work.totals(), one.const_data_ptr(), zero.const_data_ptr(), zero.const_data_ptr(),
                       slopes.mutable_data_ptr(), device.stream);
    write_gradient(slopes, rows, lse, logits);
  }
  logits.unsafeGetTensorImpl()->bump_version();
  return finished(in, x, work, device.stream);
}

void scale_(at::Tensor gradient, const at::Tensor& factor) {
  check_dims(gradient);
  check_inplace(gradient);
  const OnDeviceOf device(gradient);
  scale_rows(rows_of(gradient), factor.const_data_ptr(), factor.scalar_type() == at::kDouble, device.stream);
  gradient.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CUDA, m) {
  m.impl("token_logps", token_logps);
  m.impl("token_logps_backward", token_logps_backward);
  m.impl("token_logps_backward_", token_logps_backward_);
  m.impl("policy_loss", policy_loss);
  m.impl("policy_loss_backward", policy_loss_backward);
  m.impl("logits_loss_", logits_loss_);
  m.impl("scale_", scale_);
}

}  // namespace recast
