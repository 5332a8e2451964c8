// What the host side and the kernels say to each other: plain data and launchers, without torch, so that a kernel compiles
// in a second and on a machine that has no torch for CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../core/aggregate.h"
#include "../core/log_sum_exp.h"

namespace recast {

enum class Dtype : int32_t { kFloat, kDouble, kHalf, kBFloat16 };

constexpr int kMostDims = 6;

// A (Q, G) tensor of any floating dtype and stride; no data: absent.
struct Matrix {
  const void* data = nullptr;
  int64_t row = 0, column = 0;
  Dtype dtype = Dtype::kFloat;
};

// ---- selection

struct Groups {
  int64_t q, g;
  Matrix rewards, scores, keys;
  const bool* repairable;  // or null: all are
};

// Contiguous SIDs: predictions (Q, G, M, L), targets (Q, K, L).
struct Sids {
  int64_t q, g, m, k, levels;
  const int64_t *predictions, *targets;
  Matrix keys;
};

// Where the answer goes; what is null is not written. Contiguous.
struct Selected {
  bool repairs, contrasts;
  int64_t *slot, *positive, *negative;
  void* advantages;
  Dtype advantages_dtype;
  double weight, negative_weight;
  void* rewards;  // after repair
  void* scores;
  Dtype rewards_dtype, scores_dtype;
};

void select_groups(const Groups&, const Selected&, cudaStream_t);
void select_from_sids(const Sids&, const Selected&, cudaStream_t);
void score_sids(const Sids&, bool hits, float* out, cudaStream_t);
void count_regimes(int64_t q, int64_t g, const Matrix& rewards, int64_t* out, cudaStream_t);
void normalize_groups(int64_t q, int64_t g, const Matrix& rewards, bool normalize, double eps, void* out, cudaStream_t);
// Contiguous targets (Q, K, L).
struct Anchors {
  int64_t q, k, levels;
  const int64_t* targets;
  Matrix values, keys;
};

void choose_anchors(const Anchors&, int64_t* out, cudaStream_t);
// logps: one row.
void weigh_anchors(int64_t count, const Matrix& logps, double alpha, double largest, void* out, cudaStream_t);
void mark_branches(int64_t rows, int64_t length, const int64_t* positive, const int64_t* negative, bool* out, cudaStream_t);

// ---- losses

// Rows of logits that lie anywhere: row i begins at data + offset(i) elements. No mask: all rows count.
struct LogitRows {
  void* data;
  Dtype dtype;
  int64_t count, size;
  int dims;
  int64_t sizes[kMostDims], strides[kMostDims];
  const int64_t* tokens;
  const bool* mask;
};

// The log-sum-exp of a part of a row.
struct Part {
  double sum;  // of exp(x - largest)
  double largest;
};

// How many parts each row is cut into, so that few rows keep the whole device busy.
int64_t parts_of(int64_t rows, int64_t size);

// logps: float32, or float64 for float64 logits. parts: workspace of count * parts_of(count, size).
void logps_of_rows(const LogitRows&, Part* parts, void* logps, LogSumExp* lse, cudaStream_t);
// gradient: like logits in dtype and shape, rows at offsets of its own; it may be the logits.
void gradient_of_rows(const LogitRows&, const double* grad, const LogSumExp* lse, const LogitRows& gradient, cudaStream_t);

// Contiguous (B, T), all of one dtype, float32 or float64.
struct LossInputs {
  int64_t b, t;
  bool is_double, per_token;
  const void *logps, *old_logps, *advantages, *ref_logps;
  const bool* mask;
  double clip_low, clip_high, dual_clip, kl_coef;
  Aggregate aggregate;
};

struct RowSums {
  double policy, kl, clipped, tokens;
};

struct Totals {
  double tokens, rows;  // rows that have an unmasked token
};

// Workspace: sums of B rows, one totals.
void count_tokens(const LossInputs&, RowSums* sums, Totals* totals, cudaStream_t);
// Four scalars in the dtype of the inputs; after count_tokens.
struct LossOutputs {
  void *loss, *policy, *kl, *clip_fraction;
};
void sum_losses(const LossInputs&, RowSums* sums, const Totals* totals, const LossOutputs&, cudaStream_t);
// After count_tokens. The incoming gradients are scalars on the device; gradient: (B, T).
void gradient_of_losses(const LossInputs&, const RowSums* sums, const Totals* totals, const void* grad_loss,
                        const void* grad_policy, const void* grad_kl, void* gradient, cudaStream_t);

// Is it worth giving each row one block?
bool enough_rows_for_one_visit(int64_t rows);
// Forward and backward of rows in one visit: writes logps (float32 or float64) and leaves d loss / d logits in the place of
// the logits. After count_tokens; the logps of the inputs are not read.
void logps_and_gradient_of_rows(const LogitRows&, const LossInputs&, const RowSums* sums, const Totals* totals, void* logps,
                                cudaStream_t);
// values *= *factor, which is a scalar on the device; nothing is touched if it is 1.
void scale_rows(const LogitRows&, const void* factor, bool factor_is_double, cudaStream_t);

}  // namespace recast
