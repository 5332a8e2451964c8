// Scores, regimes, GRPO advantages, repair, contrast and anchors: one warp a group, one launch an op.
#include "../core/pair.h"
#include "device.cuh"

namespace recast {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;

int64_t blocks_for(int64_t warps) { return ceil_div(warps, kWarps); }

__device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int64_t first_warp() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; }
__device__ __forceinline__ int64_t all_warps() { return int64_t{gridDim.x} * kWarps; }

__device__ __forceinline__ void refuse_bad_reward(double reward) {
  RECAST_REFUSE_UNLESS(std::abs(reward) <= 1.7976931348623157e308, "rewards: expected finite values");
}

struct Response {
  double reward = 0, score = 0, key = 0;
};

__device__ __forceinline__ double read_key(const Matrix& keys, int64_t q, int64_t i) {
  if (!keys.data) return 0;
  const double key = read(keys, q, i);
  RECAST_REFUSE_UNLESS(key == key, "tie_break: expected values that can be ranked");
  return key;
}

__device__ __forceinline__ Response response(const Groups& groups, int64_t q, int64_t i) {
  const Response out{read(groups.rewards, q, i), read(groups.scores, q, i), read_key(groups.keys, q, i)};
  refuse_bad_reward(out.reward);
  RECAST_REFUSE_UNLESS(out.score == out.score, "scores: expected values that can be ranked");
  return out;
}

__device__ __forceinline__ Worth worth(const Sids& sids, int64_t q, int64_t i) {
  return worth_of(sids.predictions + (q * sids.g + i) * sids.m * sids.levels, sids.m,
                  sids.targets + q * sids.k * sids.levels, sids.k, sids.levels);
}

__device__ __forceinline__ Response response(const Sids& sids, int64_t q, int64_t i) {
  const Worth both = worth(sids, q, i);
  return {both.reward, both.score, read_key(sids.keys, q, i)};
}

__device__ __forceinline__ bool is_repairable(const Groups& groups, int64_t q) {
  return !groups.repairable || groups.repairable[q];
}

__device__ __forceinline__ bool is_repairable(const Sids& sids, int64_t q) {
  for (int64_t i = 0; i < sids.k; ++i) {
    if (is_real(sids.targets + (q * sids.k + i) * sids.levels, sids.levels)) return true;
  }
  return false;
}

// The best of the 32 picks; of equal ones, that with the lowest index.
__device__ __forceinline__ Pick best_in_warp(Pick mine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Pick other;
    other.index = __shfl_xor_sync(kAllLanes, mine.index, offset);
    other.value = __shfl_xor_sync(kAllLanes, mine.value, offset);
    other.key = __shfl_xor_sync(kAllLanes, mine.key, offset);
    const bool equal = other.value == mine.value && other.key == mine.key;
    if (other.index >= 0 && (mine.index < 0 || better(other.value, other.key, mine.value, mine.key) ||
                             (equal && other.index < mine.index))) {
      mine = other;
    }
  }
  return mine;
}

template <typename Source>
__global__ void select_kernel(Source source, Selected out) {
  const int64_t g = source.g;
  for (int64_t q = first_warp(); q < source.q; q += all_warps()) {
    // The first 32 responses stay in registers; those of wider groups are read, or scored, again.
    Response first;
    if (lane() < g) first = response(source, q, lane());
    const auto get = [&](int64_t i) { return i == lane() ? first : response(source, q, i); };

    int64_t slot = -1;
    if (out.repairs) {
      Pick lowest;
      bool hit = false;
      for (int64_t i = lane(); i < g; i += kWarp) {
        const Response r = get(i);
        hit |= r.reward > 0;
        lowest.offer(i, -r.score, r.key);
      }
      lowest = best_in_warp(lowest);
      if (!__any_sync(kAllLanes, hit) && is_repairable(source, q)) slot = lowest.index;
    }
    const auto repaired = [&](int64_t i) {
      Response r = get(i);
      if (i == slot) r.reward = r.score = 1;
      return r;
    };
    if (out.rewards) {
      for (int64_t i = lane(); i < g; i += kWarp) {
        const Response r = repaired(i);
        write(out.rewards, out.rewards_dtype, q * g + i, r.reward);
        write(out.scores, out.scores_dtype, q * g + i, r.score);
      }
    }
    if (lane() == 0 && out.slot) out.slot[q] = slot;
    if (!out.contrasts) continue;

    Pick positive, negative;
    for (int64_t i = lane(); i < g; i += kWarp) {
      const Response r = repaired(i);
      if (r.reward > 0) {
        positive.offer(i, r.reward, r.key);
      } else {
        negative.offer(i, r.score, r.key);
      }
    }
    positive = best_in_warp(positive);
    negative = best_in_warp(negative);
    const bool skipped = positive.index < 0 || negative.index < 0;
    for (int64_t i = lane(); i < g; i += kWarp) {
      const double advantage = skipped               ? 0
                               : i == positive.index ? out.weight
                               : i == negative.index ? -out.negative_weight
                                                     : 0;
      write(out.advantages, out.advantages_dtype, q * g + i, advantage);
    }
    if (lane() == 0) {
      out.positive[q] = skipped ? -1 : positive.index;
      out.negative[q] = skipped ? -1 : negative.index;
    }
  }
}

__global__ void score_kernel(Sids sids, bool hits, float* out) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < sids.q * sids.g; i += step) {
    const Worth both = worth(sids, i / sids.g, i % sids.g);
    out[i] = hits ? both.reward : both.score;
  }
}

__global__ void regimes_kernel(int64_t count, int64_t g, Matrix rewards, int64_t* out) {
  for (int64_t q = first_warp(); q < count; q += all_warps()) {
    double hits = 0;
    for (int64_t i = lane(); i < g; i += kWarp) {
      const double reward = read(rewards, q, i);
      refuse_bad_reward(reward);
      hits += reward > 0;
    }
    hits = sum_in_warp(hits);
    if (lane() == 0) out[q] = hits < 2 ? static_cast<int64_t>(hits) : 2;
  }
}

__global__ void normalize_kernel(int64_t count, int64_t g, Matrix rewards, bool normalize, double eps, void* out) {
  for (int64_t q = first_warp(); q < count; q += all_warps()) {
    double low = INFINITY, high = -INFINITY;
    for (int64_t i = lane(); i < g; i += kWarp) {
      const double reward = read(rewards, q, i);
      refuse_bad_reward(reward);
      low = std::fmin(low, reward);
      high = std::fmax(high, reward);
    }
    low = g > 1 ? -most_in_warp(-low) : 0;
    high = most_in_warp(high);
    const double unit = g > 1 && high > low ? high - low : 1;
    const auto place = [&](int64_t i) { return (read(rewards, q, i) - low) / unit; };  // see the reference
    double mean = 0, deviation = 1;  // of a group of one
    if (g > 1) {
      double sum = 0, squares = 0;
      for (int64_t i = lane(); i < g; i += kWarp) sum += place(i);
      mean = sum_in_warp(sum) / g;
      for (int64_t i = lane(); i < g; i += kWarp) squares += (place(i) - mean) * (place(i) - mean);
      deviation = std::sqrt(sum_in_warp(squares) / (g - 1));
    }
    for (int64_t i = lane(); i < g; i += kWarp) {
      const double gap = place(i) - mean;
      write(out, rewards.dtype, q * g + i, normalize ? gap / (deviation + eps / unit) : gap * unit);
      RECAST_REFUSE_UNLESS(std::isfinite(read(out, rewards.dtype, q * g + i)),
                           "rewards: expected values whose differences their dtype can hold");
    }
  }
}

__global__ void anchor_kernel(Anchors anchors, int64_t* out) {
  for (int64_t q = first_warp(); q < anchors.q; q += all_warps()) {
    Pick best;
    for (int64_t i = lane(); i < anchors.k; i += kWarp) {
      // What stands beside padding is not looked at.
      if (!is_real(anchors.targets + (q * anchors.k + i) * anchors.levels, anchors.levels)) continue;
      const double value = read(anchors.values, q, i);
      RECAST_REFUSE_UNLESS(value == value, "values: expected values that can be ranked");
      best.offer(i, value, read_key(anchors.keys, q, i));
    }
    best = best_in_warp(best);
    if (lane() == 0) out[q] = best.index;
  }
}

// One warp for all: there is one number a prompt, and each needs the sum of all.
__global__ void weights_kernel(int64_t count, Matrix logps, double alpha, double largest, void* out) {
  double most = -INFINITY;
  for (int64_t i = lane(); i < count; i += kWarp) {
    const double logp = read(logps, 0, i);
    RECAST_REFUSE_UNLESS(std::abs(logp) <= 1.7976931348623157e308, "logps: expected finite values");
    most = std::fmax(most, alpha * logp);
  }
  most = most_in_warp(most);
  const auto share = [&](int64_t i) { return std::exp(alpha * read(logps, 0, i) - most); };
  double sum = 0;
  for (int64_t i = lane(); i < count; i += kWarp) sum += share(i);
  const double unit = count / sum_in_warp(sum);
  for (int64_t i = lane(); i < count; i += kWarp) write(out, logps.dtype, i, std::fmin(share(i) * unit, largest));
}

__global__ void branch_kernel(int64_t rows, int64_t length, const int64_t* positive, const int64_t* negative, bool* out) {
  for (int64_t row = first_warp(); row < rows; row += all_warps()) {
    bool left = false;  // before this stretch of 32 tokens
    for (int64_t begin = 0; begin < length; begin += kWarp) {
      const int64_t i = row * length + begin + lane();
      const bool inside = begin + lane() < length;
      const unsigned differ = __ballot_sync(kAllLanes, inside && positive[i] != negative[i]);
      if (inside) out[i] = left || (differ << (kWarp - 1 - lane())) != 0;  // this token or one before it
      left |= differ != 0;
    }
  }
}

}  // namespace

void select_groups(const Groups& groups, const Selected& out, cudaStream_t stream) {
  launch(select_kernel<Groups>, blocks_for(groups.q), kThreads, 0, stream, groups, out);
}

void select_from_sids(const Sids& sids, const Selected& out, cudaStream_t stream) {
  launch(select_kernel<Sids>, blocks_for(sids.q), kThreads, 0, stream, sids, out);
}

void score_sids(const Sids& sids, bool hits, float* out, cudaStream_t stream) {
  launch(score_kernel, ceil_div(sids.q * sids.g, kThreads), kThreads, 0, stream, sids, hits, out);
}

void count_regimes(int64_t q, int64_t g, const Matrix& rewards, int64_t* out, cudaStream_t stream) {
  launch(regimes_kernel, blocks_for(q), kThreads, 0, stream, q, g, rewards, out);
}

void normalize_groups(int64_t q, int64_t g, const Matrix& rewards, bool normalize, double eps, void* out, cudaStream_t stream) {
  launch(normalize_kernel, blocks_for(q), kThreads, 0, stream, q, g, rewards, normalize, eps, out);
}

void choose_anchors(const Anchors& anchors, int64_t* out, cudaStream_t stream) {
  launch(anchor_kernel, blocks_for(anchors.q), kThreads, 0, stream, anchors, out);
}

void weigh_anchors(int64_t count, const Matrix& logps, double alpha, double largest, void* out, cudaStream_t stream) {
  launch(weights_kernel, count > 0, kWarp, 0, stream, count, logps, alpha, largest, out);
}

void mark_branches(int64_t rows, int64_t length, const int64_t* positive, const int64_t* negative, bool* out,
                   cudaStream_t stream) {
  launch(branch_kernel, blocks_for(rows), kThreads, 0, stream, rows, length, positive, negative, out);
}

}  // namespace recast
