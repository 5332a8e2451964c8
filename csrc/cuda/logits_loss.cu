// Forward and backward in one visit to each row. A block reads its row, works out the loss of its token and at once writes
// the gradient over the row: what it reads the second time is in shared memory as far as that reaches, and in the second-level
// cache for the rest. So a row crosses the memory bus once each way, where two separate passes would read it twice.
#include "logits.cuh"
#include "loss.cuh"

namespace recast {
namespace {

constexpr int kThreads = 1024;

// What the last thread, whose warp has the least of the row to read, reads before it takes part, and keeps to itself.
struct Early {
  int64_t token;
  double logit, weight;
  TokenArguments arguments;
};

struct Visit {  // what it tells the others
  int64_t token;
  LogSumExp lse;
  double slope;
};

template <typename T>
__device__ __forceinline__ double slope_of_token(const LossInputs& in, const Early& early, int64_t i, double logp, void* logps) {
  static_cast<T*>(logps)[i] = static_cast<T>(logp);
  const auto loss = loss_of<T>(in, early.arguments, static_cast<T>(logp));
  return static_cast<T>(slope(in, loss, early.weight, 1, 0, 0));  // as policy_loss_backward hands it on
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    visit_kernel(LogitRows rows, LossInputs in, const RowSums* sums, const Totals* totals, void* logps, int64_t most_cached) {
  uint4* const cache = dynamic_shared();
  __shared__ Part shared[kWarp];
  __shared__ Early early;
  __shared__ Visit visit;
  const bool last = threadIdx.x == blockDim.x - 1;
  for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
    T* data = row_of<T>(rows, row);
    const Stretch<T> stretch(data, 0, rows.size);
    if (!rows.mask[row]) {
      zero_row(data, stretch);
      continue;
    }
    if (last) {
      const int64_t b = row / in.t;
      early.token = token_of(rows, row);
      early.logit = widen(data[early.token]);
      early.weight = weight_of(in, sums[b], *totals);
      early.arguments = arguments_of(in, b, row);
    }
    uint4* vectors = reinterpret_cast<uint4*>(data + stretch.place(0));
    const int64_t cached = stretch.vectors < most_cached ? stretch.vectors : most_cached;
    RunningSum<Wide<T>> sum;
    stretch.each_single([&](int64_t i) { sum.add({data[i]}); });
    each_vector<T>(cached, [&](int64_t v) { return __ldcs(vectors + v); },
                   [&](int64_t v, const Vector<T>& x) {
                     cache[v] = x.bits();
                     sum.add(x.values);
                   });
    each_vector<T>(stretch.vectors - cached, [&](int64_t v) { return vectors[cached + v]; },
                   [&](int64_t, const Vector<T>& x) { sum.add(x.values); });
    const Part whole = join_in_block(sum, shared);
    if (last) {
      const LogSumExp lse = log_of(whole);
      const double logp = static_cast<Wide<T>>(lse.logp(early.logit));  // as token_logps would have handed it on
      visit = {early.token, lse, in.is_double ? slope_of_token<double>(in, early, row, logp, logps)
                                              : slope_of_token<float>(in, early, row, logp, logps)};
    }
    __syncthreads();
    RowGradient<T> gradient(visit.lse, visit.slope, visit.token);
    stretch.each_single([&](int64_t i) { data[i] = gradient.at(data[i], i); });
    // Backwards, as what was read last is likeliest to be in the second-level cache still; what each thread has put into
    // shared memory itself can wait.
    const int64_t end = stretch.vectors - 1;
    each_vector<T>(stretch.vectors - cached, [&](int64_t v) { return vectors[end - v]; },
                   [&](int64_t v, const Vector<T>& x) { __stcs(vectors + end - v, gradient.at(x, stretch.place(end - v))); });
    each_vector<T>(cached, [&](int64_t v) { return cache[v]; },
                   [&](int64_t v, const Vector<T>& x) { __stcs(vectors + v, gradient.at(x, stretch.place(v))); });
    gradient.finish(data);
  }
}

template <typename T>
__global__ void scale_kernel(LogitRows rows, const void* factor_at, bool factor_is_double) {
  const double factor = factor_is_double ? *static_cast<const double*>(factor_at) : *static_cast<const float*>(factor_at);
  if (factor == 1) return;  // the usual case, which costs a launch and nothing else
  for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
    T* data = row_of<T>(rows, row);
    const Stretch<T> stretch(data, 0, rows.size);
    uint4* vectors = reinterpret_cast<uint4*>(data + stretch.place(0));
    const auto scaled = [&](T x) { return narrow<T>(static_cast<Wide<T>>(widen(x) * factor)); };
    stretch.each_single([&](int64_t i) { data[i] = scaled(data[i]); });
    each_vector<T>(stretch.vectors, [&](int64_t v) { return vectors[v]; },
                   [&](int64_t v, Vector<T> x) {
                     for (T& value : x.values) value = scaled(value);
                     vectors[v] = x.bits();
                   });
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
    // A long row has a multiprocessor to itself, with all of the shared memory. Rows that need less share one, so that one is
    // read while another is written.
    constexpr int64_t kVector = sizeof(uint4);
    constexpr int64_t kOthers = 3072;  // bytes of the kernel's other shared variables, of what CUDA keeps, and some
    const int64_t room = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor), most = (room - kOthers) / kVector;
    const int64_t needed = ceil_div(rows.size, Vector<T>::kSize), cached = needed < most ? needed : most;
    const int64_t bytes = cached * kVector, each = bytes + kOthers;
    const int blocks = 4 * each <= room ? 4 : 2 * each <= room ? 2 : 1;
    // A limit that does not depend on the rows: other threads of the host, and graphs, may launch for longer ones.
    const cudaError_t error = cudaFuncSetAttribute(visit_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(most * kVector));
    if (error != cudaSuccess) throw std::runtime_error(std::string("recast: ") + cudaGetErrorString(error));
    launch(visit_kernel<T>, rows.count, threads_for(cached, kThreads / blocks), bytes, stream, rows, in, sums, totals, logps,
           cached);
  });
}

void scale_rows(const LogitRows& rows, const void* factor, bool factor_is_double, cudaStream_t stream) {
  with_type(rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kMostBlocks = 1024;  // to return at once must cost little
    launch(scale_kernel<T>, rows.count < kMostBlocks ? rows.count : kMostBlocks, 256, 0, stream, rows, factor, factor_is_double);
  });
}

}  // namespace recast
