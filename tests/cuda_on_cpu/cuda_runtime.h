// As much of CUDA as the kernels in csrc/cuda use, on the CPU: each thread of a block is a fiber, blocks run one after
// another. A place where the threads of a block wait for each other is a switch to the next fiber; if all wait and none can
// go on, the launch fails. Fibers take turns in an order that changes from launch to launch.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ thread_local  // one copy, as blocks do not overlap
#define RECAST_REFUSE_UNLESS(condition, message) \
  if (!(condition)) cuda_on_cpu::fail(message)

struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned x_ = 1) : x(x_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace recast {
inline thread_local uint4 recast_dynamic_shared[8192];
}

namespace cuda_on_cpu {

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 128 << 10;

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};

struct State {
  std::vector<Fiber> fibers{kMostThreads};
  ucontext_t scheduler;
  std::function<void()> body;
  dim3 thread, block, threads, blocks;
  Barrier all, warps[kMostThreads / kWarp];
  uint64_t exchanged[kMostThreads];
  int alive = 0;
  bool moved = false;
  std::string error;
  uint64_t shuffle = 1;
};

inline State& state() {
  static State it;
  return it;
}

inline void yield() {
  State& s = state();
  const int me = s.thread.x;
  swapcontext(&s.fibers[me].context, &s.scheduler);
  s.thread.x = me;
}

[[noreturn]] inline void fail(const char* message) {
  state().error = message;
  while (true) yield();  // the scheduler drops all fibers
}

inline void wait(Barrier& barrier, int count) {
  const int generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.generation;
    state().moved = true;
  }
  while (barrier.generation == generation) yield();
}

inline void run_fiber() {
  State& s = state();
  s.body();
  s.fibers[s.thread.x].done = true;
  s.moved = true;
  --s.alive;
  yield();
}

inline void run_block(int threads) {
  State& s = state();
  s.alive = threads;
  s.all = {};
  std::fill(std::begin(s.warps), std::end(s.warps), Barrier{});
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  for (int i = threads - 1; i > 0; --i) {
    s.shuffle = s.shuffle * 6364136223846793005u + 1442695040888963407u;
    std::swap(order[i], order[(s.shuffle >> 33) % (i + 1)]);
  }
  for (int i : order) {
    Fiber& fiber = s.fibers[i];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  while (s.alive > 0 && s.error.empty()) {
    s.moved = false;
    for (int i : order) {
      if (s.fibers[i].done || !s.error.empty()) continue;
      s.thread.x = i;
      swapcontext(&s.scheduler, &s.fibers[i].context);
    }
    if (!s.moved && s.error.empty()) s.error = "threads wait for each other at different places";
  }
}

template <typename T>
T exchange(T mine, int from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  State& s = state();
  const int me = s.thread.x;
  Barrier& warp = s.warps[me / kWarp];
  std::memcpy(&s.exchanged[me], &mine, sizeof mine);
  wait(warp, kWarp);
  T theirs;
  std::memcpy(&theirs, &s.exchanged[me / kWarp * kWarp + from], sizeof theirs);
  wait(warp, kWarp);
  return theirs;
}

}  // namespace cuda_on_cpu

inline dim3 &threadIdx = cuda_on_cpu::state().thread, &blockIdx = cuda_on_cpu::state().block;
inline dim3 &blockDim = cuda_on_cpu::state().threads, &gridDim = cuda_on_cpu::state().blocks;

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::state().all, blockDim.x); }

template <typename T>
T __shfl_xor_sync(unsigned, T x, int with) {
  return cuda_on_cpu::exchange(x, (threadIdx.x % cuda_on_cpu::kWarp) ^ with);
}

inline unsigned __ballot_sync(unsigned, bool x) {
  cuda_on_cpu::State& s = cuda_on_cpu::state();
  const int me = s.thread.x, first = me / cuda_on_cpu::kWarp * cuda_on_cpu::kWarp;
  s.exchanged[me] = x;
  wait(s.warps[me / cuda_on_cpu::kWarp], cuda_on_cpu::kWarp);
  unsigned bits = 0;
  for (int i = 0; i < cuda_on_cpu::kWarp; ++i) bits |= static_cast<unsigned>(s.exchanged[first + i] != 0) << i;
  wait(s.warps[me / cuda_on_cpu::kWarp], cuda_on_cpu::kWarp);
  return bits;
}

inline bool __any_sync(unsigned mask, bool x) { return __ballot_sync(mask, x) != 0; }
inline void __stcs(uint4* to, uint4 x) { *to = x; }
inline uint4 __ldcs(const uint4* from) { return *from; }

// ---- the runtime

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorAssert };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu::state().error.c_str(); }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

// Two multiprocessors with less memory than a long row needs, so that every way through the kernels is taken.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? 2 : 48 << 10;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes <= static_cast<int>(sizeof recast::recast_dynamic_shared) ? cudaSuccess : cudaErrorAssert;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  auto& s = cuda_on_cpu::state();
  s.error.clear();
  s.threads = config->blockDim;
  s.blocks = dim3(std::min(config->gridDim.x, 64u));  // fewer than asked for: the kernels must loop
  s.body = [=] { kernel(arguments...); };
  for (unsigned i = 0; i < s.blocks.x && s.error.empty(); ++i) {
    s.block = dim3(i);
    cuda_on_cpu::run_block(config->blockDim.x);
  }
  return s.error.empty() ? cudaSuccess : cudaErrorAssert;
}
