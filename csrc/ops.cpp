// The schema of every op, once. Kernels are in cpu/ and cuda/; fake kernels and autograd are in recast_ref/fast/ops.py.
#include <torch/library.h>

TORCH_LIBRARY(recast, m) {
  m.def("structural_scores(Tensor predictions, Tensor targets) -> Tensor");
  m.def("hit_rewards(Tensor predictions, Tensor targets) -> Tensor");
  m.def("group_regimes(Tensor rewards) -> Tensor");
  m.def("group_advantages(Tensor rewards, bool normalize, float eps) -> Tensor");
  m.def("repair(Tensor rewards, Tensor scores, Tensor? repairable, Tensor? tie_break)"
        " -> (Tensor slot, Tensor rewards, Tensor scores)");
  m.def("contrast(Tensor rewards, Tensor scores, float weight, float negative_weight, Tensor? tie_break)"
        " -> (Tensor positive, Tensor negative, Tensor advantages)");
  m.def("recast(Tensor rewards, Tensor scores, Tensor? repairable, float weight, float negative_weight, Tensor? tie_break)"
        " -> (Tensor slot, Tensor positive, Tensor negative, Tensor advantages)");
  m.def("recast_from_sids(Tensor predictions, Tensor targets, float weight, float negative_weight, Tensor? tie_break)"
        " -> (Tensor slot, Tensor positive, Tensor negative, Tensor advantages)");
  m.def("branch_mask(Tensor positive_tokens, Tensor negative_tokens) -> Tensor");
  m.def("choose_anchor(Tensor targets, Tensor values, Tensor? tie_break) -> Tensor");
  m.def("anchor_weights(Tensor logps, float alpha, float largest) -> Tensor");

  m.def("token_logps(Tensor logits, Tensor tokens, Tensor? mask, bool inplace_backward) -> (Tensor logps, Tensor lse)");
  m.def("token_logps_backward(Tensor grad, Tensor logits, Tensor tokens, Tensor lse, Tensor? mask) -> Tensor");
  m.def("token_logps_backward_(Tensor grad, Tensor(a!) logits, Tensor tokens, Tensor lse, Tensor? mask) -> ()");
  m.def("policy_loss(Tensor logps, Tensor old_logps, Tensor advantages, Tensor mask, Tensor? ref_logps, float clip_low,"
        " float clip_high, float dual_clip, float kl_coef, str aggregate)"
        " -> (Tensor loss, Tensor policy, Tensor kl, Tensor clip_fraction)");
  m.def("policy_loss_backward(Tensor grad_loss, Tensor grad_policy, Tensor grad_kl, Tensor logps, Tensor old_logps,"
        " Tensor advantages, Tensor mask, Tensor? ref_logps, float clip_low, float clip_high, float dual_clip,"
        " float kl_coef, str aggregate) -> Tensor");

  // CUDA only: forward leaves d loss / d logits in the place of the logits, backward multiplies it by what comes in.
  m.def("logits_loss_(Tensor(a!) logits, Tensor tokens, Tensor old_logps, Tensor advantages, Tensor mask, Tensor? ref_logps,"
        " float clip_low, float clip_high, float dual_clip, float kl_coef, str aggregate)"
        " -> (Tensor loss, Tensor policy, Tensor kl, Tensor clip_fraction)");
  m.def("scale_(Tensor(a!) gradient, Tensor factor) -> ()");
}
