// The log of the sum of the exponentials of a row. Shared by the CPU and the CUDA kernels.
#pragma once

#include "prefix.h"

namespace recast {

// In two parts: one number could not hold both of a row beyond 2 ** 53. NaN in a row with a NaN or +inf; of a row of nothing but
// -inf, largest is -inf, and every log-prob NaN.
struct LogSumExp {
  double largest;  // of the row
  double rest;     // the log of the sum of exp(x - largest)

  RECAST_HD double logp(double x) const { return (x - largest) - rest; }
};

}  // namespace recast
