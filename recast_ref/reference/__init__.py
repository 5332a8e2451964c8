"""Group RL, repair and contrast in plain PyTorch: the readable half of recast-ref.

Read the files in this order; each holds one idea.

1. ``scoring``      what a response is worth: the hit reward ``r`` and the structural score ``u``
2. ``grpo``         what a group teaches under GRPO, and when it teaches nothing
3. ``repairing``    an all-zero group gets an anchor built from the ground truth
4. ``contrasting``  the update narrows to the strongest positive and the hardest negative
5. ``recasting``    both together: ReCast (arXiv 2604.22169)
6. ``branching``    an option of ours: where the negative leaves the positive
7. ``losses``       the clipped policy loss that all of this feeds
8. ``anchoring``    of ours: which target becomes the anchor, and how far it is trusted
9. ``mixing``       of ours: GRPO where the group has a hit, an anchor where it has none

Letters used everywhere: ``Q`` prompts, ``G`` responses per prompt (the group), ``M`` predicted and ``K`` target SIDs,
``L`` codes per SID, ``B`` rows of a loss batch, ``T`` tokens, ``V`` vocabulary.

Everything is batched over prompts and runs on any device that has float64. Selection carries no gradient. Bad input raises
``TypeError`` (wrong type or dtype) or ``ValueError`` (wrong shape, device or value) naming the argument.
"""

from .anchoring import anchor_weights, choose_anchor, nearness
from .branching import branch_mask
from .contrasting import Contrast, contrast
from .grpo import group_advantages, group_regimes
from .losses import PolicyLoss, logits_loss, policy_loss, token_logps
from .mixing import Hybrid, hybrid
from .recasting import ReCast, recast, recast_from_sids
from .repairing import Repair, repair
from .scoring import hit_rewards, structural_scores

__all__ = [
    "structural_scores",
    "hit_rewards",
    "group_regimes",
    "group_advantages",
    "repair",
    "Repair",
    "contrast",
    "Contrast",
    "recast",
    "ReCast",
    "recast_from_sids",
    "branch_mask",
    "token_logps",
    "policy_loss",
    "logits_loss",
    "PolicyLoss",
    "choose_anchor",
    "nearness",
    "anchor_weights",
    "hybrid",
    "Hybrid",
]
