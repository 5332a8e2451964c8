// Log-probs of chosen tokens and their gradient, without a log-softmax. A row is one block's work, or several blocks' where
// there are few rows.
#include "logits.cuh"

namespace recast {
namespace {

constexpr int kThreads = 512;

// Parts begin at multiples of 16 elements, so that they are aligned alike.
__device__ __forceinline__ int64_t part_size(int64_t size, int64_t parts) { return ((size + parts - 1) / parts + 15) / 16 * 16; }

template <typename T>
__global__ void __launch_bounds__(kThreads) sum_kernel(LogitRows rows, int64_t parts, Part* out) {
  __shared__ Part shared[kThreads / kWarp];
  const int64_t length = part_size(rows.size, parts);
  for (int64_t job = blockIdx.x; job < rows.count * parts; job += gridDim.x) {
    const int64_t row = job / parts, begin = job % parts * length;
    if (rows.mask && !rows.mask[row]) continue;
    const T* data = row_of<T>(rows, row);
    RunningSum<Wide<T>> sum;
    if (begin < rows.size) {
      const Stretch<T> stretch(data, begin, begin + length < rows.size ? begin + length : rows.size);
      const uint4* vectors = reinterpret_cast<const uint4*>(data + stretch.place(0));
      stretch.each_single([&](int64_t i) { sum.add({data[i]}); });
      each_vector<T>(stretch.vectors, [&](int64_t v) { return vectors[v]; },
                     [&](int64_t, const Vector<T>& x) { sum.add(x.values); });
    }
    const Part part = join_in_block(sum, shared);
    if (threadIdx.x == 0) out[job] = part;
  }
}

template <typename T>
__global__ void logp_kernel(LogitRows rows, int64_t parts, const Part* sums, Wide<T>* logps, LogSumExp* lse) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < rows.count; row += step) {
    logps[row] = 0;
    lse[row] = {0, 0};
    if (rows.mask && !rows.mask[row]) continue;
    Part whole = sums[row * parts];
    for (int64_t i = 1; i < parts; ++i) whole = joined<Wide<T>>(whole, sums[row * parts + i]);
    lse[row] = log_of(whole);
    logps[row] = static_cast<Wide<T>>(lse[row].logp(widen(row_of<T>(rows, row)[token_of(rows, row)])));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_kernel(LogitRows rows, int64_t parts, const double* grad, const LogSumExp* lse, LogitRows gradient) {
  const int64_t length = part_size(rows.size, parts);
  for (int64_t job = blockIdx.x; job < rows.count * parts; job += gridDim.x) {
    const int64_t row = job / parts, begin = job % parts * length;
    if (begin >= rows.size) continue;
    const int64_t end = begin + length < rows.size ? begin + length : rows.size;
    const T* data = row_of<T>(rows, row);
    T* out = row_of<T>(gradient, row);
    if (rows.mask && !rows.mask[row]) {
      zero_row(out, Stretch<T>(out, begin, end));
      continue;
    }
    RowGradient<T> result(lse[row], grad[row], token_of(rows, row));
    const Stretch<T> stretch(data, begin, end);
    const uint4* vectors = reinterpret_cast<const uint4*>(data + stretch.place(0));
    uint4* to = reinterpret_cast<uint4*>(out + stretch.place(0));
    if (reinterpret_cast<uintptr_t>(to) % sizeof(uint4) != 0) {  // rows that are not aligned alike
      for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) out[i] = result.at(data[i], i);
    } else {
      stretch.each_single([&](int64_t i) { out[i] = result.at(data[i], i); });
      each_vector<T>(stretch.vectors, [&](int64_t v) { return vectors[v]; },
                     [&](int64_t v, const Vector<T>& x) { __stcs(to + v, result.at(x, stretch.place(v))); });
    }
    result.finish(out);
  }
}

}  // namespace

int64_t parts_of(int64_t rows, int64_t size) {
  constexpr int64_t kBlocks = 1024, kLeast = 4096;  // enough for any device; a part shorter than this is not worth a block
  const int64_t wanted = ceil_div(kBlocks, rows ? rows : 1), most = size / kLeast;
  return most < 1 ? 1 : (wanted < most ? wanted : most);
}

void logps_of_rows(const LogitRows& rows, Part* sums, void* logps, LogSumExp* lse, cudaStream_t stream) {
  const int64_t parts = parts_of(rows.count, rows.size);
  with_type(rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int threads = threads_for(rows.size / parts / Vector<T>::kSize, kThreads);
    launch(sum_kernel<T>, rows.count * parts, threads, 0, stream, rows, parts, sums);
    launch(logp_kernel<T>, ceil_div(rows.count, kWarp), kWarp, 0, stream, rows, parts, sums, static_cast<Wide<T>*>(logps), lse);
  });
}

void gradient_of_rows(const LogitRows& rows, const double* grad, const LogSumExp* lse, const LogitRows& gradient,
                      cudaStream_t stream) {
  const int64_t parts = parts_of(rows.count, rows.size);
  with_type(rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int threads = threads_for(rows.size / parts / Vector<T>::kSize, kThreads);
    launch(gradient_kernel<T>, rows.count * parts, threads, 0, stream, rows, parts, grad, lse, gradient);
  });
}

}  // namespace recast
