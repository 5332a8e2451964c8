// What the compiler's sanitizers are told of fibers and of shared memory. Without a sanitizer, nothing.
//
// -fsanitize=thread finds races between the threads of a block, whatever the order they ran in: a fiber is a thread to it, and
// one comes before another only where __syncthreads says so. (An exchange within a warp orders no memory; nor does it on a GPU.)
// -fsanitize=address finds accesses outside of a tensor, and shared memory that the launch did not ask for; but no index beyond
// a __shared__ array of fixed size. Blocks run one after another: races between them are not found.
#pragma once

#include <cstddef>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define CUDA_ON_CPU_ITSELF __attribute__((no_sanitize("thread"), noinline))  // taking turns is no race
#else
#define CUDA_ON_CPU_ITSELF
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_on_cpu {

#ifdef __SANITIZE_THREAD__
using Thread = void*;
CUDA_ON_CPU_ITSELF inline Thread new_thread() { return __tsan_create_fiber(0); }
CUDA_ON_CPU_ITSELF inline Thread this_thread() { return __tsan_get_current_fiber(); }
CUDA_ON_CPU_ITSELF inline void go_on_as(Thread thread) { __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync); }
// What a thread did before() a place, others see who come after() it.
CUDA_ON_CPU_ITSELF inline void before(char& place) { __tsan_release(&place); }
CUDA_ON_CPU_ITSELF inline void after(char& place) { __tsan_acquire(&place); }
#else
struct Thread {};
inline Thread new_thread() { return {}; }
inline Thread this_thread() { return {}; }
inline void go_on_as(Thread) {}
inline void before(char&) {}
inline void after(char&) {}
#endif

#ifdef __SANITIZE_ADDRESS__
inline void forbid(void* begin, size_t bytes) { __asan_poison_memory_region(begin, bytes); }
inline void allow(void* begin, size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }
#else
inline void forbid(void*, size_t) {}
inline void allow(void*, size_t) {}
#endif

}  // namespace cuda_on_cpu
