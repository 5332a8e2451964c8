// Forward and backward in one visit to each row. A block reads its row, works out the loss of its token and at once writes
// the gradient over the row: what it reads the second time is in shared memory as far as that reaches, and in the second-level
// cache for the rest. So a row crosses the memory bus once each way, where two separate passes would read it twice.
#include "logits.cuh"
#include "loss.cuh"

namespace recast {
namespace {

constexpr int kThreads = 1024;

struct Visit {  // what thread 0 tells the others of its block
  double lse, slope;
};

template <typename T>
__device__ __forceinline__ double slope_of_token(const LossInputs& in, const RowSums* sums, const Totals* totals, int64_t i,
                                                 double logp, void* logps) {
  const int64_t b = i / in.t;
  static_cast<T*>(logps)[i] = static_cast<T>(logp);
  const auto loss = loss_at<T>(in, b, i, static_cast<T>(logp));
  return static_cast<T>(slope(in, loss, weight_of(in, sums[b], *totals), 1, 0, 0));  // as policy_loss_backward hands it on
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    visit_kernel(LogitRows rows, LossInputs in, const RowSums* sums, const Totals* totals, void* logps, int64_t cached) {
  uint4* const cache = dynamic_shared();
  __shared__ Part shared[kWarp];
  __shared__ Visit visit;
  for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
    T* data = row_of<T>(rows, row);
    const Stretch<T> stretch(data, 0, rows.size);
    uint4* vectors = reinterpret_cast<uint4*>(data + stretch.place(0));
    if (!rows.mask[row]) {
      stretch.each_single([&](int64_t i) { data[i] = narrow<T>(Wide<T>(0)); });
      for (int64_t v = threadIdx.x; v < stretch.vectors; v += blockDim.x) __stcs(vectors + v, uint4{0, 0, 0, 0});
      continue;
    }
    RunningSum<Wide<T>> sum;
    stretch.each_single([&](int64_t i) { sum.add({data[i]}); });
    stretch.each_vector([&](int64_t v) { return vectors[v]; },
                        [&](int64_t v, const Vector<T>& x) {
                          if (v < cached) cache[v] = x.bits();
                          sum.add(x.values);
                        });
    const Part whole = join_in_block(sum, shared);
    const int64_t token = token_of(rows, row);
    if (threadIdx.x == 0) {
      const double lse = log_of(whole);
      // As token_logps would have handed it on.
      const double logp = static_cast<Wide<T>>(widen(data[token]) - lse);
      visit = {lse, in.is_double ? slope_of_token<double>(in, sums, totals, row, logp, logps)
                                 : slope_of_token<float>(in, sums, totals, row, logp, logps)};
    }
    __syncthreads();
    const RowGradient<T> gradient(visit.lse, visit.slope, token);
    stretch.each_single([&](int64_t i) { data[i] = gradient.of(data[i], i); });
    // Each thread takes the vectors that it has put into the cache itself.
    stretch.each_vector([&](int64_t v) { return v < cached ? cache[v] : vectors[v]; },
                        [&](int64_t v, const Vector<T>& x) { __stcs(vectors + v, gradient.of(x, stretch.place(v))); });
  }
}

template <typename T>
__global__ void scale_kernel(LogitRows rows, const void* factor_at, bool factor_is_double) {
  const double factor = factor_is_double ? *static_cast<const double*>(factor_at) : *static_cast<const float*>(factor_at);
  if (factor == 1) return;  // the usual case, which costs a launch and nothing else
  for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
    T* data = row_of<T>(rows, row);
    for (int64_t i = threadIdx.x; i < rows.size; i += blockDim.x) {
      data[i] = narrow<T>(static_cast<Wide<T>>(widen(data[i]) * factor));
    }
  }
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, which, device);
  if (error != cudaSuccess) throw std::runtime_error(std::string("recast: ") + cudaGetErrorString(error));
  return value;
}

}  // namespace

bool enough_rows_for_one_visit(int64_t rows) { return rows >= 2 * attribute(cudaDevAttrMultiProcessorCount); }

void logps_and_gradient_of_rows(const LogitRows& rows, const LossInputs& in, const RowSums* sums, const Totals* totals,
                                void* logps, cudaStream_t stream) {
  with_type(rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t vectors = rows.size / Vector<T>::kSize;
    const int threads = threads_for(vectors, kThreads);
    int64_t cached = 0;
    if (threads == kThreads) {  // one block a multiprocessor, which can have all of its shared memory
      constexpr int kOthers = 2048;  // bytes of the kernel's other shared variables, and some
      cached = (attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kOthers) / static_cast<int64_t>(sizeof(uint4));
      if (cached > vectors) cached = vectors;
    }
    const size_t bytes = cached * sizeof(uint4);
    const cudaError_t error =
        cudaFuncSetAttribute(visit_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) throw std::runtime_error(std::string("recast: ") + cudaGetErrorString(error));
    launch(visit_kernel<T>, rows.count, threads, bytes, stream, rows, in, sums, totals, logps, cached);
  });
}

void scale_rows(const LogitRows& rows, const void* factor, bool factor_is_double, cudaStream_t stream) {
  with_type(rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(scale_kernel<T>, rows.count, threads_for(rows.size, kThreads), 0, stream, rows, factor, factor_is_double);
  });
}

}  // namespace recast
