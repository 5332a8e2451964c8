// As much of CUDA as the kernels in csrc/cuda use, on the CPU: each thread of a block is a fiber, blocks run one after
// another. A place where the threads of a block wait for each other is a switch to the next fiber; if all wait and none can
// go on, the launch fails. Fibers take turns in an order that changes from launch to launch; sanitizers.h says what the
// compiler's sanitizers find beyond that.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "sanitizers.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ thread_local  // one copy, as blocks do not overlap
#define RECAST_REFUSE_UNLESS(condition, message) \
  if (!(condition)) cuda_on_cpu::refuse(message)

struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned x_ = 1) : x(x_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace recast {
inline thread_local uint4 recast_dynamic_shared[3072];
}

namespace cuda_on_cpu {

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 128 << 10;
constexpr size_t kShared = sizeof recast::recast_dynamic_shared;

struct Barrier {
  int arrived = 0, generation = 0;
  char order[2];  // places, taken in turns
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Thread thread = new_thread();
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
  const char* error = nullptr;
  bool refused = false;  // a value, where a GPU would stop with a device-side assert
  std::map<const void*, size_t> shared;  // what a kernel may ask for
  uint64_t shuffle = 1;
  Thread host;
  char began, ended;  // places
};

CUDA_ON_CPU_ITSELF inline State& state() {
  static State it;
  return it;
}

CUDA_ON_CPU_ITSELF inline void yield() {
  State& s = state();
  const int me = s.thread.x;
  before(s.ended);
  go_on_as(s.host);
  swapcontext(&s.fibers[me].context, &s.scheduler);
  s.thread.x = me;
}

CUDA_ON_CPU_ITSELF [[noreturn]] inline void refuse(const char* message) {
  state().error = message;
  state().refused = true;
  while (true) yield();  // the scheduler drops all fibers
}

CUDA_ON_CPU_ITSELF inline void wait(Barrier& barrier, int count) {
  const int generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.generation;
    state().moved = true;
  }
  while (barrier.generation == generation) yield();
}

CUDA_ON_CPU_ITSELF inline void run_fiber() {
  State& s = state();
  after(s.began);
  s.body();
  s.fibers[s.thread.x].done = true;
  s.moved = true;
  --s.alive;
  yield();
}

CUDA_ON_CPU_ITSELF inline void run_block(int threads) {
  State& s = state();
  s.alive = threads;
  s.host = this_thread();
  before(s.began);
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
    allow(fiber.stack.get(), kStack);  // it may have been dropped half way
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  while (s.alive > 0 && !s.error) {
    s.moved = false;
    for (int i : order) {
      if (s.fibers[i].done || s.error) continue;
      s.thread.x = i;
      go_on_as(s.fibers[i].thread);
      swapcontext(&s.scheduler, &s.fibers[i].context);
    }
    if (!s.moved && !s.error) s.error = "threads wait for each other at different places";
  }
  after(s.ended);
}

template <typename T>
CUDA_ON_CPU_ITSELF T exchange(T mine, int from) {
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

CUDA_ON_CPU_ITSELF inline void __syncthreads() {
  cuda_on_cpu::Barrier& barrier = cuda_on_cpu::state().all;
  char& order = barrier.order[barrier.generation % 2];
  cuda_on_cpu::before(order);
  cuda_on_cpu::wait(barrier, blockDim.x);
  cuda_on_cpu::after(order);
}

template <typename T>
T __shfl_xor_sync(unsigned, T x, int with) {
  return cuda_on_cpu::exchange(x, (threadIdx.x % cuda_on_cpu::kWarp) ^ with);
}

CUDA_ON_CPU_ITSELF inline unsigned __ballot_sync(unsigned, bool x) {
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
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerMultiprocessor };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu::state().error; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

// Two multiprocessors with less memory than a long row needs, so that every way through the kernels is taken. As on a GPU, CUDA
// keeps 1 KB for itself, and what a kernel's own variables take is not to be had either.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? 2 : static_cast<int>(cuda_on_cpu::kShared);
  return cudaSuccess;
}

inline cudaError_t cuda_on_cpu_refuses(const char* why) {
  cuda_on_cpu::state().error = why;
  return cudaErrorAssert;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || bytes > static_cast<int>(cuda_on_cpu::kShared) - 2048) return cuda_on_cpu_refuses("invalid value");
  cuda_on_cpu::state().shared[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  auto& s = cuda_on_cpu::state();
  s.error = nullptr;
  s.refused = false;
  if (config->dynamicSmemBytes > s.shared[reinterpret_cast<const void*>(kernel)]) return cuda_on_cpu_refuses("too much memory");
  s.threads = config->blockDim;
  s.blocks = dim3(std::min(config->gridDim.x, 2u));  // fewer than asked for: the kernels must loop
  s.body = [=] { kernel(arguments...); };
  char* const shared = reinterpret_cast<char*>(recast::recast_dynamic_shared);
  cuda_on_cpu::allow(shared, config->dynamicSmemBytes);
  cuda_on_cpu::forbid(shared + config->dynamicSmemBytes, cuda_on_cpu::kShared - config->dynamicSmemBytes);
  for (unsigned i = 0; i < s.blocks.x && !s.error; ++i) {
    s.block = dim3(i);
    cuda_on_cpu::run_block(config->blockDim.x);
  }
  if (s.refused) throw std::invalid_argument(s.error);  // a ValueError in Python, as that of the CPU's kernels
  return !s.error ? cudaSuccess : cudaErrorAssert;
}
