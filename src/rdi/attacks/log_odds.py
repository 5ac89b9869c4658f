"""Distance of a sample from each exit's threshold, as a difference of log-odds: one unit for all scores."""

from __future__ import annotations

import torch

from rdi.thresholds.policy import ThresholdPolicy

# how close to the surest and the unsurest score a sample is told apart; a threshold may lie closer than any sample
SUREST, UNSUREST = 1e-30, 1e-7


def exit_log_odds(policy: ThresholdPolicy, logits_NKC: torch.Tensor) -> torch.Tensor:
    """Return log_odds_NL of staying at each of the first L = min(K, E-1) exits; negative where the sample may leave.

    With the score mapped to r in [0, 1], 0 the surest there is and 1 equal logits, and the threshold likewise to t:
    ln(r / (1 - r)) - ln(t / (1 - t)). In this unit nats, confidences and margins are alike wherever the threshold
    lies, and the gradient does not vanish where an exit is very sure, as long as the score itself tells it apart
    (confidences end at 1 - 6e-8).
    """
    score = policy.score
    count = min(logits_NKC.shape[1], policy.exits - 1)
    uniform = logits_NKC.new_zeros(logits_NKC.shape[2])
    # one logit far above the others: as sure as this score can be
    one_hot = uniform.index_fill(0, torch.zeros(1, dtype=torch.long, device=uniform.device), 1e4)
    surest, unsurest = score(one_hot), score(uniform)
    r = (surest - score(logits_NKC[:, :count])) / (surest - unsurest)
    t = (surest - surest.new_tensor(policy.values[:count])) / (surest - unsurest)
    sample = r.clamp_min(SUREST).log() - (1 - r).clamp_min(UNSUREST).log()
    threshold = t.clamp_min(SUREST / 10).log() - (1 - t).clamp_min(UNSUREST / 10).log()
    return sample - threshold
