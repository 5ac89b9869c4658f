"""Exit policies as plain values that a device can follow, and as text that a C programmer can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdi.errors import UserError
from rdi.thresholds import Confidence, EnsemblePolicy, Entropy, Margin, PatiencePolicy, Policy, ThresholdPolicy
from rdi.thresholds.gaps import EDGE

SCORES: dict[type, str] = {Entropy: "entropy", Confidence: "confidence", Margin: "margin"}
DEFINITIONS = {
    "entropy": "the entropy of p in nats, `-sum(p[i] * log p[i])`",
    "confidence": "the largest p",
    "margin": "the largest p minus the second largest",
}


def decision_of(policy: Policy) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return (decision, ensemble) of a policy as policy.json holds them.

    Raises UserError for a policy that is no threshold on a known score and no patience, or is randomised.
    """
    ensemble = None
    inner = policy
    if isinstance(inner, EnsemblePolicy):
        weights = [1.0] * inner.exits if inner.weights is None else list(inner.weights)
        ensemble = {"mean": inner.mean, "weights": weights}
        inner = inner.policy
    if type(inner) is ThresholdPolicy and type(inner.score) in SCORES:
        return {"rule": "threshold", "score": SCORES[type(inner.score)], "thresholds": _finite(inner.values)}, ensemble
    if type(inner) is PatiencePolicy:
        return {"rule": "patience", "patience": inner.patience}, ensemble
    raise UserError(
        f"the exit policy ({policy}) cannot be exported: thresholds on entropy, confidence or margin can, patience, "
        "and ensembles of them; choose others with thresholds=..."
    )


def _finite(values: Sequence[float]) -> list[float]:
    """Return thresholds as JSON holds them: no score is beyond EDGE, so that nothing changes."""
    return [min(max(value, -EDGE), EDGE) for value in values]


def describe(decision: dict[str, Any], ensemble: dict[str, Any] | None, exits: int) -> str:
    """Describe the policy step by step, in words and C-like lines, for a program in any language."""
    steps = [
        "for each image, features = the image, as float32 in [0, 1], channels first (uint8 / 255.0f)",
        f"for k = 0 .. {exits - 1}:",
        "    features, logits[k] = stage_k(features)",
    ]
    if ensemble is None:
        steps.append("    a = logits[k]")
    else:
        steps.append("    log_p[k] = logits[k] - logsumexp(logits[k])        // at least -1e30")
        if ensemble["mean"] == "geometric":
            steps.append("    a = sum(w[j] * log_p[j], j <= k) / sum(w[j], j <= k)")
        else:
            steps.append("    a = log(sum(w[j] * exp(log_p[j]), j <= k) / sum(w[j], j <= k))")
    steps.append(f"    if k == {exits - 1}: leave" if exits > 1 else "    leave")
    if exits > 1:
        if decision["rule"] == "patience":
            steps.append(
                f"    if k >= {decision['patience']} and argmax(a) was the same at k, k-1, .., k-patience: leave"
            )
        else:
            sign = "<" if decision["score"] == "entropy" else ">"
            steps.append("    p = softmax(a)                                     // in float32")
            steps.append(f"    if (double) score(p) {sign} (double) t[k]: leave             // strictly")
    steps.append("on leaving: label = argmax(a), exit = k")
    lines = ["```c", *steps, "```"]
    if ensemble is not None:
        lines += [
            "",
            f"w = {_listed(ensemble['weights'])}: the exits so far answer together ({ensemble['mean']} mean).",
        ]
    if decision["rule"] == "patience":
        lines += ["", f"patience = {decision['patience']}."]
    elif exits > 1:
        lines += ["", f"score(p) = {DEFINITIONS[decision['score']]}; t = {_listed(decision['thresholds'])}."]
    return "\n".join(lines)


def _listed(values: list[float]) -> str:
    return "{" + ", ".join(repr(value) for value in values) + "}"
