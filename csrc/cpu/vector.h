// Sixteen floats at a time, in GNU vector types that the compiler turns into whatever instructions it may use. A function is
// compiled once for each level of x86-64 (RECAST_LEVELS) and picked at run time, so that a build runs anywhere.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#define RECAST_LEVELS(DO)                                                                             \
  DO(v4, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))) \
  DO(v3, __attribute__((target("avx2,fma"))))                                                         \
  DO(base, )
#else
#define RECAST_LEVELS(DO) DO(base, )
#endif
#define RECAST_INLINE inline __attribute__((always_inline))

namespace recast {

enum class Level { base, v3, v4 };

inline Level level() {
#if defined(__x86_64__)
  static const Level best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return Level::v4;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? Level::v3 : Level::base;
  }();
  return best;
#else
  return Level::base;
#endif
}

constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

RECAST_INLINE Floats load(const float* p) {
  Floats x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

RECAST_INLINE Floats load(const c10::BFloat16* p) {  // a bfloat16 is the upper half of a float
  Shorts half;
  std::memcpy(&half, p, sizeof half);
  const Words bits = __builtin_convertvector(half, Words) << 16;
  return (Floats)bits;
}

RECAST_INLINE Floats load(const c10::Half* p) {
  // By arithmetic on the bits: moving exponent and mantissa up and multiplying by 2 ** 112 is exact, subnormals included.
  Shorts half;
  std::memcpy(&half, p, sizeof half);
  const Words bits = __builtin_convertvector(half, Words);
  const Words sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
  const Floats scaled = (Floats)rest * 0x1p112f;
  const Words special = (Words)(rest >= (0x7c00u << 13));  // infinity or NaN
  return (Floats)(sign | (special & (rest | 0x7f800000u)) | (~special & (Words)scaled));
}

RECAST_INLINE void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }

RECAST_INLINE void store(c10::BFloat16* p, Floats x) {  // to nearest, ties to even; a NaN stays one
  const Words bits = (Words)x;
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words nan = (Words)(x != x);
  const Shorts half = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), Shorts);
  std::memcpy(p, &half, sizeof half);
}

RECAST_INLINE void store(c10::Half* p, Floats x) {  // likewise; what is too large becomes infinity
  const Words bits = (Words)x, size = bits & 0x7fffffffu;
  const Words normal = (size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
  const Words tiny = (Words)((Floats)size + 0.5f) - 0x3f000000u;  // adding 0.5 rounds to multiples of 2 ** -24, in the lowest bits
  const Words is_tiny = (Words)(size < (113u << 23)), is_large = (Words)(size >= (143u << 23)), nan = (Words)(x != x);
  Words rounded = (is_tiny & tiny) | (~is_tiny & normal);
  rounded = (is_large & 0x7c00u) | (~is_large & rounded) | (nan & 0x200u);
  const Shorts half = __builtin_convertvector(rounded | ((bits >> 16) & 0x8000u), Shorts);
  std::memcpy(p, &half, sizeof half);
}

// exp(x) for x <= 0 to about one unit in the last place; exp(-inf) = 0, NaN stays NaN.
RECAST_INLINE Floats exp_of_nonpositive(Floats x) {
  constexpr float kLowest = -87.33654f;  // below it the result is not a normal number: 0
  const float magic = 12582912.0f;  // 1.5 * 2 ** 23: adding it rounds to an integer, in the lowest bits
  const Floats shifted = x * 1.44269504f + magic;
  const Floats n = shifted - magic;
  const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  Floats p = r * 1.98756912e-4f + 1.39819994e-3f;
  p = p * r + 8.33345205e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666657e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const Ints power = (((Ints)shifted - (Ints)(Floats{} + magic)) + 127) << 23;
  const Floats result = p * (Floats)power;
  return x < kLowest ? Floats{} : result;  // a NaN has come through the arithmetic
}

}  // namespace recast
