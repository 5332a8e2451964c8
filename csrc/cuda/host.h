// From tensors to what the kernels take. What depends on values is checked by the kernels: the host never waits.
#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../core/checks.h"
#include "kernels.h"

namespace recast {

// The device of the inputs, and its current stream, for as long as this lives.
struct OnDeviceOf {
  c10::cuda::CUDAGuard guard;
  cudaStream_t stream;

  explicit OnDeviceOf(const at::Tensor& x) : guard(x.device()), stream(c10::cuda::getCurrentCUDAStream(x.get_device()).stream()) {}
};

inline Dtype dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Dtype::kFloat;
    case at::kDouble: return Dtype::kDouble;
    case at::kHalf: return Dtype::kHalf;
    default: return Dtype::kBFloat16;
  }
}

inline Matrix matrix(const Optional& x) {
  if (!x) return {};
  return {x->const_data_ptr(), x->stride(0), x->stride(1), dtype_of(x->scalar_type())};
}

inline const bool* bools(const Optional& x) { return x ? x->const_data_ptr<bool>() : nullptr; }

}  // namespace recast
