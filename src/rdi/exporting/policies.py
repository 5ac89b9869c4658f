"""Exit policies as plain values that a device can follow, and as text that a C programmer can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdi.errors import UserError
from rdi.thresholds import (
    AgreementPolicy,
    Confidence,
    EnsemblePolicy,
    Entropy,
    Margin,
    PatiencePolicy,
    Policy,
    RandomisedPolicy,
    ThresholdPolicy,
)
from rdi.thresholds.gaps import EDGE

SCORES: dict[type, str] = {Entropy: "entropy", Confidence: "confidence", Margin: "margin"}
DEFINITIONS = {
    "entropy": "the entropy of p in nats, `-sum(p[i] * log p[i])` over the classes with p[i] > 0",
    "confidence": "the largest p",
    "margin": "the largest p minus the second largest",
}


def decision_of(policy: Policy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (decision, combine) of a policy as policy.json holds them.

    combine: how logits are combined before the decision, in this order; empty where each exit answers alone.
    Raises UserError for a policy that is no threshold on a known score and no patience, or is randomised.
    """
    combine: list[dict[str, Any]] = []
    inner = policy
    while isinstance(inner, EnsemblePolicy | AgreementPolicy):
        if isinstance(inner, EnsemblePolicy):
            weights = [1.0] * inner.exits if inner.weights is None else list(inner.weights)
            combine.append({"kind": "mean", "mean": inner.mean, "weights": weights})
        else:
            combine.append({"kind": "agreement", "agreeing": inner.agreeing})
        inner = inner.policy
    if type(inner) is ThresholdPolicy and type(inner.score) in SCORES:
        return {"rule": "threshold", "score": SCORES[type(inner.score)], "thresholds": _finite(inner.values)}, combine
    if type(inner) is PatiencePolicy:
        return {"rule": "patience", "patience": inner.patience}, combine
    if isinstance(inner, RandomisedPolicy):
        raise UserError(
            f"the exit policy ({policy}) cannot be exported: it draws its thresholds anew for every image, so that no "
            "answer of the export could be compared; choose others with thresholds=..."
        )
    raise UserError(
        f"the exit policy ({policy}) cannot be exported: thresholds on entropy, confidence or margin can, patience, "
        "and ensembles and agreements of them; choose others with thresholds=..."
    )


def _finite(values: Sequence[float]) -> list[float]:
    """Return thresholds as JSON holds them: no score is beyond EDGE, so that nothing changes."""
    return [min(max(value, -EDGE), EDGE) for value in values]


def describe(decision: dict[str, Any], combine: Sequence[dict[str, Any]], exits: int) -> str:
    """Describe the policy step by step, in words and C-like lines, for a program in any language."""
    last = exits - 1
    steps = [
        "for each image, features = the image, as float32 in [0, 1], channels first (uint8 / 255.0f)",
        f"for k = 0 .. {last}:",
        "    features, a0[k] = stage_k(features)                // the logits",
    ]
    for n, step in enumerate(combine):
        steps += [f"    {line}" for line in _combination(step, n, last)]
    answer = f"a{len(combine)}[k]"
    first = first_exit(combine)
    if exits > 1:
        steps.append(f"    if k == {last}: leave")
        if decision["rule"] == "patience":
            steps.append(
                f"    if k >= {max(first, decision['patience'])} and argmax({answer}) was the same at "
                f"k, k-1, .., k-{decision['patience']}: leave"
            )
        else:
            sign = "<" if decision["score"] == "entropy" else ">"
            when = f"k >= {first} and " if first else ""
            steps.append(f"    p = softmax({answer})                                // in float32")
            steps.append(f"    if {when}(double) score(p) {sign} (double) t[k]: leave             // strictly")
    else:
        steps.append("    leave")
    steps.append(f"on leaving: label = argmax({answer}), exit = k")
    lines = ["```c", *steps, "```"]
    if exits > 1 and decision["rule"] == "threshold":
        lines += ["", f"score(p) = {DEFINITIONS[decision['score']]}; t = {_listed(decision['thresholds'])}."]
    return "\n".join(lines)


def first_exit(combine: Sequence[dict[str, Any]]) -> int:
    """Return the first exit at which an image may leave: one with enough before it to agree with."""
    return max((step["agreeing"] - 1 for step in combine if step["kind"] == "agreement"), default=0)


def _combination(step: dict[str, Any], n: int, last: int) -> list[str]:
    """Return the lines that make a(n+1)[k] of an[0] .. an[k]."""
    lines = [f"q{n}[k] = a{n}[k] - logsumexp(a{n}[k])                   // per class, at least -1e30"]
    made, q = f"a{n + 1}[k]", f"q{n}[j]"
    if step["kind"] == "mean":
        lines.append(f"w{n} = {_listed(step['weights'])}")
        weights = f"w{n}[j], j <= k"
        if step["mean"] == "geometric":
            return [*lines, f"{made} = sum(w{n}[j] * {q}, j <= k) / sum({weights})"]
        return [*lines, f"{made} = log(sum(w{n}[j] * exp({q}), j <= k) / sum({weights}))"]
    before = step["agreeing"] - 1
    return [
        *lines,
        f"if k == {last}: {made} = a{n}[k]",
        f"else if k < {before}: {made} = q{n}[k]",
        f"else:                                              // what the exits k-{before} .. k have in common",
        f"    least = min({q}, k-{before} <= j <= k)                   // per class",
        f"    missing = sum(exp(q{n}[k]) - exp(least)) / classes    // at least 1e-30",
        f"    {made} = log(exp(least) + missing)",
    ]


def _listed(values: list[float]) -> str:
    return "{" + ", ".join(repr(value) for value in values) + "}"
