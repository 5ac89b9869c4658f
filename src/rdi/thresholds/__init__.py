"""Exit policies: a score, a rule that fits a policy on the calibration split, and the policy that results."""

from rdi.thresholds.agreement import AgreementPolicy, AgreementRule
from rdi.thresholds.budget import BudgetRule
from rdi.thresholds.calibration import Bank, Calibration
from rdi.thresholds.combined import CombinedPolicy, CombinedRule
from rdi.thresholds.ensemble import EnsemblePolicy, EnsembleRule
from rdi.thresholds.patience import PatiencePolicy, PatienceRule
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.randomised import RandomisedPolicy, RandomisedRule
from rdi.thresholds.risk import RiskRule
from rdi.thresholds.rules import FixedRule, Rule, ShareRule
from rdi.thresholds.scores import Confidence, Entropy, Margin, Score

__all__ = [
    "AgreementPolicy",
    "AgreementRule",
    "Bank",
    "BudgetRule",
    "Calibration",
    "CombinedPolicy",
    "CombinedRule",
    "Confidence",
    "EnsemblePolicy",
    "EnsembleRule",
    "Entropy",
    "FixedRule",
    "Margin",
    "PatiencePolicy",
    "PatienceRule",
    "Policy",
    "RandomisedPolicy",
    "RandomisedRule",
    "RiskRule",
    "Rule",
    "Score",
    "ShareRule",
    "ThresholdPolicy",
]
