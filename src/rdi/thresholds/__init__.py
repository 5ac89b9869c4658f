"""Exit policies: a score, a rule that fits thresholds on the calibration split, and the policy that results."""

from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.rules import FixedRule, Rule, ShareRule
from rdi.thresholds.scores import Confidence, Entropy, Margin, Score

__all__ = [
    "Confidence",
    "Entropy",
    "FixedRule",
    "Margin",
    "Policy",
    "Rule",
    "Score",
    "ShareRule",
    "ThresholdPolicy",
]
