"""Exit policies of one network side by side: what each gives up and what it holds against attackers who know it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdi.records import EvalRecord, Thresholds, WorstRecord, read
from rdi.report import tables
from rdi.threats import CLEAN, strength

HEADERS = (
    "exit policy",
    "clean %",
    "worst %",
    "95 % CI",
    "strongest of its own attacks",
    "saved %",
    "under slowdown %",
    "images, attacked",
)
DATA = {"clean": "clean images", "adversarial": "attacked images", "mixed": "clean and attacked images"}


def describe_rule(rule: Mapping[str, Any]) -> str:
    """Describe a threshold rule in words.

    rule: its node, as records keep it.
    """
    kind = str(rule["_target_"]).rpartition(".")[2]
    if kind == "AgreementRule":
        return f"{rule['agreeing']} exits in a row must agree; {describe_rule(rule['rule'])}"
    if kind == "EnsembleRule":
        return f"running {rule['mean']} mean of the exits; {describe_rule(rule['rule'])}"
    score = str(rule.get("score", {}).get("_target_", "")).rpartition(".")[2].lower()
    if kind == "BudgetRule":
        limit = next(f"{key} {rule[key]:g}" for key in ("macs", "share", "accuracy") if rule[key] is not None)
        return f"{score}, {limit} on {DATA[rule['data']]}"
    # no entropy is below zero
    if kind == "FixedRule" and score == "entropy" and all(value < 0 for value in rule["values"]):
        return "the last exit for all"
    if kind == "ShareRule":
        own = rule["offsets"] != 0.0 or rule["scales"] != 1.0
        return f"{score}, equal shares{' with offsets by hand' if own else ''}"
    return f"{kind.removesuffix('Rule').lower()} ({score})" if score else kind.removesuffix("Rule").lower()


def table(folder: Path, style: str = "github") -> str:
    """Render one row per thresholds of the folder, the most robust first; below it what it was made of.

    folder: thresholds/NAME.json and, in evals/, NAME__test-ATTACK.json of clean images, of the attacks on NAME itself
        and of the worst case over all attacks.
    Raises ValueError for thresholds whose worst case is over other attacks than the first one's, but for those made for
        itself.
    """
    rows, attacks, settings = [], set(), []
    for path in sorted(folder.glob("thresholds/*.json")):
        name = path.stem
        worst = read(folder / "evals" / f"{name}__test-worst.json", WorstRecord)
        clean = read(folder / "evals" / f"{name}__test-{CLEAN}.json", EvalRecord)
        own = [read(one, EvalRecord) for one in sorted(folder.glob(f"evals/{name}__test-*@{name}.json"))]
        if not own:
            raise ValueError(f"{folder}: nobody has attacked the exit policy {name}: run dev/levers.sh")
        attacks.add(frozenset(worst.attacks))
        settings += [one.settings for one in own]
        hardest = min(own, key=lambda one: one.accuracy)
        slow = [one for one in own if one.attack == f"slowdown@{name}"]
        rows.append(
            (
                worst.accuracy,
                [
                    describe_rule(read(path, Thresholds).rule),
                    tables.percent(clean.accuracy),
                    tables.percent(worst.accuracy),
                    f"{tables.percent(worst.accuracy_low)}-{tables.percent(worst.accuracy_high)}",
                    f"{hardest.attack.partition('@')[0]} {tables.percent(hardest.accuracy)}",
                    tables.percent(clean.saving),
                    tables.percent(slow[0].saving) if slow else "-",
                    f"{clean.samples:,}, {worst.samples:,}",
                ],
            )
        )
    if len(attacks) != 1:
        raise ValueError(f"{folder}: the exit policies were not judged under the same attacks: run dev/levers.sh again")
    body = tables.text(HEADERS, [row for _, row in sorted(rows, key=lambda one: -one[0])], style)
    count = len(next(iter(attacks)))
    said = f"right under all {count} attacks, made for any of these policies or for none; {strength(settings)}"
    return f"{body}\n\nWorst: {said}."
