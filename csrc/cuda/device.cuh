// What the kernels share: launching, values of any dtype, sums over a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#undef NDEBUG  // a bad value must stop the kernel in every build
#include <cassert>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

// A value that no host code could look at without waiting for the device. As in PyTorch's own indexing, the message goes to
// stderr and the next call on this device raises.
#ifndef RECAST_REFUSE_UNLESS
#define RECAST_REFUSE_UNLESS(condition, message) assert((condition) && message)
#endif

namespace recast {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, cudaStream_t stream,
            Arguments&&... arguments) {
  if (blocks == 0) return;
  constexpr int64_t kMostBlocks = 0x7fffffff;  // the kernels loop
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (error != cudaSuccess) throw std::runtime_error(std::string("recast: a kernel was not launched: ") + cudaGetErrorString(error));
}

// The shared memory that a launch asks for.
__device__ __forceinline__ uint4* dynamic_shared() {
  extern __shared__ uint4 recast_dynamic_shared[];
  return recast_dynamic_shared;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body with a value of the type that dtype stands for.
template <typename Body>
void with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat: return body(float{});
    case Dtype::kDouble: return body(double{});
    case Dtype::kHalf: return body(__half{});
    default: return body(__nv_bfloat16{});
  }
}

// Arithmetic is in float32, or float64 for float64.
template <typename T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T narrow(double x);
template <>
__device__ __forceinline__ float narrow<float>(double x) {
  return static_cast<float>(x);
}
template <>
__device__ __forceinline__ double narrow<double>(double x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(double x) {
  return __double2half(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(double x) {
  return __double2bfloat16(x);
}

template <typename T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ __forceinline__ double read(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat: return static_cast<const float*>(data)[i];
    case Dtype::kDouble: return static_cast<const double*>(data)[i];
    case Dtype::kHalf: return widen(static_cast<const __half*>(data)[i]);
    default: return widen(static_cast<const __nv_bfloat16*>(data)[i]);
  }
}

__device__ __forceinline__ void write(void* data, Dtype dtype, int64_t i, double value) {
  switch (dtype) {
    case Dtype::kFloat: static_cast<float*>(data)[i] = narrow<float>(value); break;
    case Dtype::kDouble: static_cast<double*>(data)[i] = value; break;
    case Dtype::kHalf: static_cast<__half*>(data)[i] = narrow<__half>(value); break;
    default: static_cast<__nv_bfloat16*>(data)[i] = narrow<__nv_bfloat16>(value);
  }
}

__device__ __forceinline__ double read(const Matrix& x, int64_t q, int64_t i) {
  return read(x.data, x.dtype, q * x.row + i * x.column);
}

// The same tree for every launch, so that the same inputs give the same bits.
__device__ __forceinline__ double sum_in_warp(double x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

__device__ __forceinline__ double most_in_warp(double x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = std::fmax(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// All threads of the block get the sum. shared: one double a warp.
__device__ __forceinline__ double sum_in_block(double x, double* shared) {
  x = sum_in_warp(x);
  __syncthreads();  // an earlier sum has been read by all
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < blockDim.x / kWarp; ++i) sum += shared[i];
  return sum;
}

}  // namespace recast
