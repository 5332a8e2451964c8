// Reading and writing rows of logits: 16 bytes at a time, several loads under way, log-sum-exp in one pass.
#pragma once

#include "../core/log_sum_exp.h"
#include "device.cuh"

namespace recast {

__device__ __forceinline__ int64_t offset_of(const LogitRows& rows, int64_t row) {
  int64_t at = 0;
  for (int d = rows.dims - 1; d > 0; --d) {
    at += row % rows.sizes[d] * rows.strides[d];
    row /= rows.sizes[d];
  }
  return at + row * rows.strides[0];
}

template <typename T>
__device__ __forceinline__ T* row_of(const LogitRows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + offset_of(rows, row);
}

__device__ __forceinline__ int64_t token_of(const LogitRows& rows, int64_t row) {
  const int64_t token = rows.tokens[row];
  RECAST_REFUSE_UNLESS(token >= 0 && token < rows.size, "tokens: expected values in [0, V)");
  return token;
}

constexpr float kLog2E = 1.44269504f;

__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

__device__ __forceinline__ float exp_of(float x) { return power_of_two(x * kLog2E); }
__device__ __forceinline__ double exp_of(double x) { return std::exp(x); }

// Sixteen bytes of a row.
template <typename T>
struct Vector {
  static constexpr int kSize = sizeof(uint4) / sizeof(T);
  T values[kSize];

  static __device__ __forceinline__ Vector of(const uint4& bits) {
    Vector out;
    memcpy(&out, &bits, sizeof bits);
    return out;
  }
  __device__ __forceinline__ uint4 bits() const {
    uint4 out;
    memcpy(&out, this, sizeof out);
    return out;
  }
};

// A stretch of a row: elements until a 16-byte boundary, whole vectors, and what is left.
template <typename T>
struct Stretch {
  int64_t begin, end, head, vectors;  // vector v is at begin + head + v * kSize

  __device__ __forceinline__ Stretch(const T* row, int64_t begin_, int64_t end_) : begin(begin_), end(end_) {
    const int64_t past = reinterpret_cast<uintptr_t>(row + begin) % sizeof(uint4);
    head = (sizeof(uint4) - past) % sizeof(uint4) / sizeof(T);
    if (head > end - begin) head = end - begin;
    vectors = (end - begin - head) / Vector<T>::kSize;
  }
  __device__ __forceinline__ int64_t place(int64_t v) const { return begin + head + v * Vector<T>::kSize; }

  template <typename Body>
  __device__ __forceinline__ void each_single(const Body& body) const {
    for (int64_t i = begin + threadIdx.x; i < begin + head; i += blockDim.x) body(i);
    for (int64_t i = place(vectors) + threadIdx.x; i < end; i += blockDim.x) body(i);
  }

};

// use(v, load(v)) for the vectors 0 .. count, with four loads under way before the first use. A thread always gets the same.
template <typename T, typename Load, typename Use>
__device__ __forceinline__ void each_vector(int64_t count, const Load& load, const Use& use) {
  constexpr int kAhead = 4;
  const int64_t step = blockDim.x;
  for (int64_t v = threadIdx.x; v < count; v += kAhead * step) {
    uint4 bits[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (v + j * step < count) bits[j] = load(v + j * step);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (v + j * step < count) use(v + j * step, Vector<T>::of(bits[j]));
    }
  }
}

// The log-sum-exp as it is read: the sum is relative to the largest so far. -inf adds nothing; NaN and +inf end as NaN.
template <typename W>
struct RunningSum {
  W largest = -INFINITY;
  W sum = 0;

  template <typename T, int n>
  __device__ __forceinline__ void add(const T (&values)[n]) {
    W most = widen(values[0]);
#pragma unroll
    for (int i = 1; i < n; ++i) most = fmax(most, static_cast<W>(widen(values[i])));
    if (most > largest) {
      sum *= exp_of(largest - most);
      largest = most;
    }
    const W origin = largest == -INFINITY ? W(0) : largest;  // -inf - -inf would be NaN
#pragma unroll
    for (int i = 0; i < n; ++i) sum += exp_of(widen(values[i]) - origin);  // exactly 1 at the largest
  }
};

template <typename W>
__device__ __forceinline__ Part joined(const Part& a, const Part& b) {
  const double largest = fmax(a.largest, b.largest);
  if (largest == -INFINITY) return {a.sum + b.sum, largest};
  return {a.sum * exp_of(static_cast<W>(a.largest - largest)) + b.sum * exp_of(static_cast<W>(b.largest - largest)), largest};
}

// The same tree at every launch. All threads get the result. shared: one Part a warp.
template <typename W>
__device__ __forceinline__ Part join_in_block(const RunningSum<W>& mine, Part* shared) {
  const auto in_warp = [](Part x) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const Part other{__shfl_xor_sync(kAllLanes, x.sum, offset), __shfl_xor_sync(kAllLanes, x.largest, offset)};
      x = threadIdx.x & offset ? joined<W>(other, x) : joined<W>(x, other);  // the same order on both sides
    }
    return x;
  };
  const Part part = in_warp({mine.sum, mine.largest});
  __syncthreads();  // an earlier result has been read by all
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = part;
  __syncthreads();
  const int warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  return in_warp(lane < warps ? shared[lane] : Part{0, -INFINITY});
}

__device__ __forceinline__ LogSumExp log_of(const Part& part) { return {part.largest, std::log(part.sum)}; }

// The gradient of one row: -grad * softmax, and grad * (1 - p) at the token. In half precision, adding grad to the rounded
// softmax there would leave its rounding error. The thread that holds the token's logit remembers it and writes its gradient
// last: in place, nobody else could be sure to read the logit before it is overwritten.
template <typename T>
struct RowGradient {
  LogSumExp lse;
  double grad;
  int64_t token;
  Wide<T> high, low, scale;
  bool mine = false;
  Wide<T> logit = 0;

  __device__ __forceinline__ RowGradient(const LogSumExp& lse_, double grad_, int64_t token_)
      : lse(lse_), grad(grad_), token(token_), high(static_cast<Wide<T>>(lse_.largest)), low(static_cast<Wide<T>>(lse_.rest)),
        scale(static_cast<Wide<T>>(-grad_)) {}

  __device__ __forceinline__ T at(T x, int64_t i) {
    if (i == token) remember(x);
    return gradient_of(x);
  }
  __device__ __forceinline__ uint4 at(const Vector<T>& x, int64_t i) {
    // Hardly ever so: one look at a vector takes half as many instructions as a look at each element.
    if (static_cast<uint64_t>(token - i) < Vector<T>::kSize) {
#pragma unroll
      for (int j = 0; j < Vector<T>::kSize; ++j) {
        if (i + j == token) remember(x.values[j]);
      }
    }
    Vector<T> out;
#pragma unroll
    for (int j = 0; j < Vector<T>::kSize; ++j) out.values[j] = gradient_of(x.values[j]);
    return out.bits();
  }
  __device__ __forceinline__ void remember(T x) {
    mine = true;
    logit = widen(x);
  }
  __device__ __forceinline__ T gradient_of(T x) const { return narrow<T>(softmax(x) * scale); }
  __device__ __forceinline__ Wide<T> softmax(T x) const {
    // Not fmaf(x, kLog2E, -(high + low) * kLog2E), an instruction less: the product would be rounded, and of large logits show.
    if constexpr (sizeof(T) < sizeof(double)) return power_of_two(fmaf(widen(x) - high, kLog2E, -(low * kLog2E)));
    return exp_of((widen(x) - high) - low);
  }
  __device__ __forceinline__ void finish(T* row) const {
    if (mine) row[token] = narrow<T>(grad * -std::expm1(lse.logp(logit)));
  }
};

template <typename T>
__device__ __forceinline__ void zero_row(T* row, const Stretch<T>& stretch) {
  stretch.each_single([&](int64_t i) { row[i] = narrow<T>(Wide<T>(0)); });
  uint4* vectors = reinterpret_cast<uint4*>(row + stretch.place(0));
  for (int64_t v = threadIdx.x; v < stretch.vectors; v += blockDim.x) __stcs(vectors + v, uint4{0, 0, 0, 0});
}

inline int threads_for(int64_t vectors, int most) {
  const int64_t wanted = ceil_div(vectors, kWarp) * kWarp;
  return static_cast<int>(wanted < kWarp ? kWarp : (wanted > most ? most : wanted));
}

}  // namespace recast
