// The clipped policy loss with KL. Sums are in double and in a fixed order: a block sums a row, one block sums the rows.
#include "loss.cuh"

namespace recast {
namespace {

constexpr int kThreads = 256;

__global__ void count_kernel(LossInputs in, RowSums* sums) {
  __shared__ double shared[kThreads / kWarp];
  for (int64_t b = blockIdx.x; b < in.b; b += gridDim.x) {
    double count = 0;
    for (int64_t i = b * in.t + threadIdx.x; i < (b + 1) * in.t; i += blockDim.x) count += in.mask[i];
    count = sum_in_block(count, shared);
    if (threadIdx.x == 0) sums[b] = {0, 0, 0, count};
  }
}

__global__ void totals_kernel(LossInputs in, const RowSums* sums, Totals* totals) {
  __shared__ double shared[kThreads / kWarp];
  double tokens = 0, rows = 0;
  for (int64_t b = threadIdx.x; b < in.b; b += blockDim.x) {
    tokens += sums[b].tokens;
    rows += sums[b].tokens > 0;
  }
  tokens = sum_in_block(tokens, shared);
  rows = sum_in_block(rows, shared);
  if (threadIdx.x == 0) *totals = {tokens, rows};
}

template <typename T>
__global__ void row_kernel(LossInputs in, RowSums* sums, const Totals* totals) {
  __shared__ double shared[kThreads / kWarp];
  for (int64_t b = blockIdx.x; b < in.b; b += gridDim.x) {
    const double weight = weight_of(in, sums[b], *totals);
    double policy = 0, kl = 0, clipped = 0;
    for (int64_t i = b * in.t + threadIdx.x; i < (b + 1) * in.t; i += blockDim.x) {
      if (!in.mask[i]) continue;
      const auto loss = loss_at<T>(in, b, i);
      policy += loss.policy;
      kl += loss.kl;
      clipped += loss.clipped;
    }
    policy = sum_in_block(policy, shared);
    kl = sum_in_block(kl, shared);
    clipped = sum_in_block(clipped, shared);
    if (threadIdx.x == 0) {
      sums[b].policy = weight * policy;
      sums[b].kl = weight * kl;
      sums[b].clipped = clipped;
    }
  }
}

template <typename T>
__global__ void finish_kernel(LossInputs in, const RowSums* sums, const Totals* totals, LossOutputs out) {
  __shared__ double shared[kThreads / kWarp];
  double policy = 0, kl = 0, clipped = 0;
  for (int64_t b = threadIdx.x; b < in.b; b += blockDim.x) {
    policy += sums[b].policy;
    kl += sums[b].kl;
    clipped += sums[b].clipped;
  }
  policy = sum_in_block(policy, shared);
  kl = sum_in_block(kl, shared);
  clipped = sum_in_block(clipped, shared);
  if (threadIdx.x == 0) {
    const auto set = [](void* scalar, double value) { *static_cast<T*>(scalar) = static_cast<T>(value); };
    set(out.loss, in.kl_coef != 0 ? policy + in.kl_coef * kl : policy);
    set(out.policy, policy);
    set(out.kl, kl);
    set(out.clip_fraction, totals->tokens > 0 ? clipped / totals->tokens : 0);
  }
}

template <typename T>
__global__ void gradient_kernel(LossInputs in, const RowSums* sums, const Totals* totals, const T* grad_loss,
                                const T* grad_policy, const T* grad_kl, T* gradient) {
  for (int64_t b = blockIdx.x; b < in.b; b += gridDim.x) {
    const double weight = weight_of(in, sums[b], *totals);
    for (int64_t i = b * in.t + threadIdx.x; i < (b + 1) * in.t; i += blockDim.x) {
      T out = 0;
      if (in.mask[i]) {
        const auto loss = loss_at<T>(in, b, i);
        out = static_cast<T>(slope(in, loss, weight, *grad_loss, *grad_policy, *grad_kl));
      }
      gradient[i] = out;
    }
  }
}

template <typename Body>
void with_loss_type(const LossInputs& in, const Body& body) {
  in.is_double ? body(double{}) : body(float{});
}

int threads_of(const LossInputs& in) {
  const int64_t wanted = ceil_div(in.t, kWarp) * kWarp;
  return static_cast<int>(wanted < kWarp ? kWarp : (wanted > kThreads ? kThreads : wanted));
}

}  // namespace

void count_tokens(const LossInputs& in, RowSums* sums, Totals* totals, cudaStream_t stream) {
  launch(count_kernel, in.b, threads_of(in), 0, stream, in, sums);
  launch(totals_kernel, 1, kThreads, 0, stream, in, sums, totals);
}

void sum_losses(const LossInputs& in, RowSums* sums, const Totals* totals, const LossOutputs& out, cudaStream_t stream) {
  with_loss_type(in, [&](auto zero) {
    using T = decltype(zero);
    launch(row_kernel<T>, in.b, threads_of(in), 0, stream, in, sums, totals);
    launch(finish_kernel<T>, 1, kThreads, 0, stream, in, sums, totals, out);
  });
}

void gradient_of_losses(const LossInputs& in, const RowSums* sums, const Totals* totals, const void* grad_loss,
                        const void* grad_policy, const void* grad_kl, void* gradient, cudaStream_t stream) {
  with_loss_type(in, [&](auto zero) {
    using T = decltype(zero);
    launch(gradient_kernel<T>, in.b, threads_of(in), 0, stream, in, sums, totals, static_cast<const T*>(grad_loss),
           static_cast<const T*>(grad_policy), static_cast<const T*>(grad_kl), static_cast<T*>(gradient));
  });
}

}  // namespace recast
