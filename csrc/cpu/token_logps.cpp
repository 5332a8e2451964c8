// Log-probs of chosen tokens, and their gradient, without ever making a log-softmax.
// Forward reads each row once from memory (and once more from cache) and keeps two numbers for it, its log-sum-exp in two parts;
// backward is one pass that writes -g * softmax, with g added at the token.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "../core/log_sum_exp.h"
#include "rows.h"
#include "vector.h"

namespace recast {
namespace {

constexpr int64_t kAhead = 8192;  // bytes that backward asks for ahead of its work
constexpr int64_t kBlock = 4096;  // elements that stay in the first-level cache between the two looks at them

template <typename T>
RECAST_INLINE LogSumExp log_sum_exp(const T* row, int64_t size) {
  const float lowest = -std::numeric_limits<float>::infinity();
  float largest = lowest;
  double sum = 0;  // of exp(x - largest)
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, size);
    const int64_t whole = begin + (end - begin) / kLanes * kLanes;
    // Four at a time, so that each comparison does not wait for the one before.
    Floats most = Floats{} + lowest, most1 = most, most2 = most, most3 = most;
    int64_t at = begin;
    for (; at + 4 * kLanes <= whole; at += 4 * kLanes) {
      const Floats x = load(row + at), x1 = load(row + at + kLanes);
      const Floats x2 = load(row + at + 2 * kLanes), x3 = load(row + at + 3 * kLanes);
      most = x > most ? x : most;
      most1 = x1 > most1 ? x1 : most1;
      most2 = x2 > most2 ? x2 : most2;
      most3 = x3 > most3 ? x3 : most3;
    }
    for (; at < whole; at += kLanes) {
      const Floats x = load(row + at);
      most = x > most ? x : most;
    }
    most = most1 > most ? most1 : most;
    most2 = most3 > most2 ? most3 : most2;
    most = most2 > most ? most2 : most;
    float block_largest = lowest;
    for (int64_t lane = 0; lane < kLanes; ++lane) block_largest = std::max(block_largest, most[lane]);
    for (int64_t i = whole; i < end; ++i) block_largest = std::max(block_largest, static_cast<float>(row[i]));
    if (block_largest > largest) {
      sum *= std::exp(static_cast<double>(largest) - block_largest);
      largest = block_largest;
    }
    const float origin = largest == lowest ? 0.0f : largest;  // -inf - -inf would be NaN
    Floats parts = {};
    for (int64_t i = begin; i < whole; i += kLanes) {
      __builtin_prefetch(row + i + kBlock);  // the next block comes while this one is worked on
      parts += exp_of_nonpositive(load(row + i) - origin);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += parts[lane];
    for (int64_t i = whole; i < end; ++i) sum += std::exp(static_cast<float>(row[i]) - origin);
  }
  return {largest, std::log(sum)};
}

template <>
RECAST_INLINE LogSumExp log_sum_exp(const double* row, int64_t size) {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t i = 0; i < size; ++i) largest = std::max(largest, row[i]);
  const double origin = std::isinf(largest) && largest < 0 ? 0.0 : largest;
  double parts[kLanes] = {};  // nothing is wider than double: a sum of sums rounds less
  for (int64_t begin = 0; begin < size; begin += kLanes) {
    const int64_t count = std::min(kLanes, size - begin);
    for (int64_t lane = 0; lane < count; ++lane) parts[lane] += std::exp(row[begin + lane] - origin);
  }
  for (double part : parts) sum += part;
  return {largest, std::log(sum)};
}

// gradient[i] = -g * exp(row[i] - lse); gradient may be row.
template <typename T>
RECAST_INLINE void minus_softmax(const T* row, int64_t size, LogSumExp lse, double g, T* gradient) {
  const float high = static_cast<float>(lse.largest), low = static_cast<float>(lse.rest), scale = static_cast<float>(-g);
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    // The hardware looks too little ahead: without this the arithmetic waits for memory.
    __builtin_prefetch(reinterpret_cast<const char*>(row + i) + kAhead, 1);
    const Floats x = (load(row + i) - high) - low;
    store(gradient + i, exp_of_nonpositive(x) * scale);
  }
  for (int64_t i = whole; i < size; ++i) {
    gradient[i] = static_cast<T>(scale * std::exp((static_cast<float>(row[i]) - high) - low));
  }
}

template <>
RECAST_INLINE void minus_softmax(const double* row, int64_t size, LogSumExp lse, double g, double* gradient) {
  for (int64_t i = 0; i < size; ++i) gradient[i] = -g * std::exp(lse.logp(row[i]));
}

#define RECAST_KERNELS(NAME, TARGET)                                                          \
  template <typename T>                                                                       \
  TARGET LogSumExp log_sum_exp_##NAME(const T* row, int64_t size) {                           \
    return log_sum_exp(row, size);                                                            \
  }                                                                                           \
  template <typename T>                                                                       \
  TARGET void minus_softmax_##NAME(const T* row, int64_t size, LogSumExp lse, double g, T* out) { \
    minus_softmax(row, size, lse, g, out);                                                    \
  }
RECAST_LEVELS(RECAST_KERNELS)
#undef RECAST_KERNELS

template <typename T>
auto log_sum_exp_kernel() {
  switch (level()) {
#define RECAST_CASE(NAME, TARGET) \
  case Level::NAME:               \
    return log_sum_exp_##NAME<T>;
    RECAST_LEVELS(RECAST_CASE)
#undef RECAST_CASE
    default:
      return log_sum_exp_base<T>;
  }
}

template <typename T>
auto minus_softmax_kernel() {
  switch (level()) {
#define RECAST_CASE(NAME, TARGET) \
  case Level::NAME:               \
    return minus_softmax_##NAME<T>;
    RECAST_LEVELS(RECAST_CASE)
#undef RECAST_CASE
    default:
      return minus_softmax_base<T>;
  }
}

// Where each row of a (..., V) tensor begins. Slices such as logits[:, :-1] are read where they lie.
class Rows {
 public:
  explicit Rows(const at::Tensor& x) : sizes_(x.sizes().slice(0, x.dim() - 1)), strides_(x.strides().slice(0, x.dim() - 1)) {}

  int64_t offset(int64_t row) const {
    int64_t at = 0;
    for (int64_t d = static_cast<int64_t>(sizes_.size()) - 1; d >= 0; --d) {
      at += row % sizes_[d] * strides_[d];
      row /= sizes_[d];
    }
    return at;
  }

 private:
  at::IntArrayRef sizes_, strides_;
};

int64_t grain(int64_t size) { return 1 + 32768 / (size + 1); }

// Read once, and looked at where it is used: memory that is shared with others can change, between forward and backward too.
int64_t token_at(const int64_t* tokens, int64_t i, int64_t size) {
  const int64_t token = tokens[i];
  TORCH_CHECK_VALUE(token >= 0 && token < size, "tokens: expected values in [0, V=", size, "), got ", token);
  return token;
}

std::tuple<at::Tensor, at::Tensor> token_logps(const at::Tensor& logits_, const at::Tensor& tokens_,
                                               const Optional& mask_, bool /*inplace_backward*/) {
  check_logits(logits_, tokens_, mask_);
  const auto logits = with_whole_rows(logits_), tokens = tokens_.contiguous();
  const int64_t size = logits.size(-1), count = tokens.numel();
  const auto mask = mask_ ? Optional(mask_->contiguous()) : std::nullopt;
  auto logps = at::empty(tokens.sizes(), logits.options().dtype(wide(logits.scalar_type())));
  auto lse = at::empty(lse_sizes(tokens), logits.options().dtype(at::kDouble));
  const int64_t* chosen = tokens.const_data_ptr<int64_t>();
  const bool* kept = mask ? mask->const_data_ptr<bool>() : nullptr;
  auto* sums = static_cast<LogSumExp*>(lse.mutable_data_ptr());
  const Rows rows(logits);
  RECAST_DISPATCH(logits.scalar_type(), [&] {
    const auto log_sum_exp_of = log_sum_exp_kernel<scalar_t>();
    const scalar_t* data = logits.const_data_ptr<scalar_t>();
    at::parallel_for(0, count, grain(size), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double logp = 0;  // of a masked token: its row is not even read
        sums[i] = {0, 0};
        if (!kept || kept[i]) {
          const int64_t token = token_at(chosen, i, size);
          const scalar_t* row = data + rows.offset(i);
          sums[i] = log_sum_exp_of(row, size);
          logp = sums[i].logp(static_cast<double>(row[token]));
        }
        if (logps.scalar_type() == at::kDouble) {
          logps.mutable_data_ptr<double>()[i] = logp;
        } else {
          logps.mutable_data_ptr<float>()[i] = static_cast<float>(logp);
        }
      }
    });
  });
  return {logps, lse};
}

// gradient (contiguous or like logits) = grad * (one-hot - softmax); gradient may be logits.
void write_gradient(const at::Tensor& grad_, const at::Tensor& logits, const at::Tensor& tokens_, const at::Tensor& lse_,
                    const Optional& mask_, const at::Tensor& gradient) {
  const auto grad = grad_.to(at::kDouble).contiguous(), tokens = tokens_.contiguous(), lse = lse_.contiguous();
  const auto mask = mask_ ? Optional(mask_->contiguous()) : std::nullopt;
  const int64_t size = logits.size(-1);
  const double* g = grad.const_data_ptr<double>();
  const auto* sums = static_cast<const LogSumExp*>(lse.const_data_ptr());
  const int64_t* chosen = tokens.const_data_ptr<int64_t>();
  const bool* kept = mask ? mask->const_data_ptr<bool>() : nullptr;
  const Rows from(logits), to(gradient);
  RECAST_DISPATCH(logits.scalar_type(), [&] {
    const auto minus_softmax_of = minus_softmax_kernel<scalar_t>();
    const scalar_t* data = logits.const_data_ptr<scalar_t>();
    scalar_t* out = gradient.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, tokens.numel(), grain(size), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        scalar_t* target = out + to.offset(i);
        if (kept && !kept[i]) {
          std::fill(target, target + size, scalar_t(0));
          continue;
        }
        const int64_t token = token_at(chosen, i, size);
        const scalar_t* row = data + from.offset(i);
        // Not target[token] += g: in half precision the rounded softmax would come back as an error of the token's gradient.
        const double at_token = g[i] * -std::expm1(sums[i].logp(static_cast<double>(row[token])));
        minus_softmax_of(row, size, sums[i], g[i], target);
        target[token] = static_cast<scalar_t>(at_token);
      }
    });
  });
}

at::Tensor token_logps_backward(const at::Tensor& grad, const at::Tensor& logits_, const at::Tensor& tokens,
                                const at::Tensor& lse, const Optional& mask) {
  check_saved(grad, logits_, tokens, lse, mask);
  const auto logits = with_whole_rows(logits_);
  auto gradient = at::empty(logits.sizes(), logits.options());
  write_gradient(grad, logits, tokens, lse, mask, gradient);
  return gradient;
}

void token_logps_backward_(const at::Tensor& grad, at::Tensor logits, const at::Tensor& tokens, const at::Tensor& lse,
                           const Optional& mask) {
  check_saved(grad, logits, tokens, lse, mask);
  check_inplace(logits);
  write_gradient(grad, logits, tokens, lse, mask, logits);
  logits.unsafeGetTensorImpl()->bump_version();  // what saved these logits must not be used again
}

}  // namespace

TORCH_LIBRARY_IMPL(recast, CPU, m) {
  m.impl("token_logps", token_logps);
  m.impl("token_logps_backward", token_logps_backward);
  m.impl("token_logps_backward_", token_logps_backward_);
}

}  // namespace recast
