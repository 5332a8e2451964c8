// How token losses become one. The definition is in recast_ref/reference/losses.py.
#pragma once

#include "prefix.h"

namespace recast {

enum class Aggregate : int32_t { kTokenMean, kSeqMeanTokenMean, kSeqMeanTokenSum };

// The weight of every token of a row that has `count` unmasked tokens, of `tokens` in all of `rows` such rows.
RECAST_HD double token_weight(Aggregate aggregate, double count, double tokens, double rows) {
  if (count == 0) return 0;  // nothing unmasked: no token to weigh
  switch (aggregate) {
    case Aggregate::kTokenMean: return 1 / tokens;
    case Aggregate::kSeqMeanTokenMean: return 1 / (count * rows);
    default: return 1 / rows;
  }
}

}  // namespace recast
