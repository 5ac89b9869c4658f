"""ThreatModel models, the names of banks, which carry what sets a bank apart, and the fixed order of both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdi.checks import LINF, NORMS, choice, distance
from rdi.errors import UserError

if TYPE_CHECKING:  # which take long to import, and every command names banks
    from rdi.records import BankManifest, EvalRecord, Manifest, Plain

CLEAN = "clean"
"""The bank of the images as they are."""
WORST = "worst"
"""Name of the worst case over banks, among the names of banks."""
AT = "@"
"""Between an attack and what sets its bank apart: ATTACK[@THRESHOLDS][@[NORM]epsEPS][@LABEL]."""
WORD = re.compile(r"(l2|l1|)eps([0-9.]+(?:e-?[0-9]+)?)")
"""A threat model as names carry it."""
ORDER = (
    *("main_fgsm", "average_fgsm", "max_avg_fgsm"),
    *("single", "main", "average", "ensemble", "max_avg", "min_max"),
    *("main_wrm", "average_wrm", "max_avg_wrm"),
    *("soft", "confident_wrong", "routed", "slowdown", "joint"),
    *("average_apgd", "average_apgd_dlr", "soft_apgd", "confident_wrong_apgd", "targeted", "square", "decision"),
    *("autoattack", "autoattack_mean", "autoattack_exits"),
)
"""Attacks in the order of the suites; others follow by name."""


@dataclass(frozen=True)
class ThreatModel:
    """A threat model: change an image by at most eps in a norm of rdi.checks.NORMS. Equal to six digits."""

    eps: float
    norm: str = LINF

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", float(f"{self.eps:.6g}") + 0.0)  # -0.0 is 0.0

    def __str__(self) -> str:
        return f"{NORMS[self.norm]} eps {pixels(self.eps)}"

    def __lt__(self, other: ThreatModel) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, float]:
        return list(NORMS).index(self.norm), self.eps

    @property
    def word(self) -> str:
        """The threat model as names of banks and files carry it: eps0.1, l2eps0.5."""
        return f"{'' if self.norm == LINF else self.norm}eps{self.eps:.6g}"

    @property
    def size(self) -> str:
        """The radius as people write it, with the norm where that is not L-infinity: 8/255, L2 0.5."""
        return pixels(self.eps) if self.norm == LINF else f"{NORMS[self.norm]} {pixels(self.eps)}"

    def options(self, own: ThreatModel) -> str:
        """Return what one types for it beside a run of the threat model `own`, whose norm and step need no word."""
        if self.norm == own.norm:
            return f"threat.eps={self.eps:.6g}"
        return f"threat.norm={self.norm} threat.eps={self.eps:.6g} threat.step_size=..."

    @classmethod
    def read(cls, word: str) -> ThreatModel | None:
        """Return the threat model of a word as `word` is one; None for another word."""
        found = WORD.fullmatch(word)
        return cls(float(found[2]), found[1] or LINF) if found else None


def threat(settings: Mapping[str, Plain]) -> ThreatModel | None:
    """Return the threat model of a bank with these settings; None of clean images."""
    eps = settings.get("eps")
    return ThreatModel(float(eps), str(settings.get("norm", LINF))) if isinstance(eps, int | float) else None


def configured(options: Mapping[str, Any]) -> ThreatModel:
    """Return the threat model that the options `threat` of a config name; without a norm it is L-infinity."""
    return ThreatModel(float(options["eps"]), options.get("norm", LINF))


def trained(manifest: Manifest) -> ThreatModel:
    """Return a run's own threat model."""
    return configured(manifest.config["threat"])


def pixels(value: float) -> str:
    """Format a pixel distance as people write it: 0.3, 8/255; six digits where it is neither. A count as a count."""
    if isinstance(value, int):
        return f"{value:,}"
    if float(f"{value:.4g}") == float(f"{value:.6g}"):
        return f"{value:.4g}"
    levels = round(value * 255)
    # two threat models that differ are never written alike
    return f"{levels}/255" if f"{levels / 255:.6g}" == f"{value:.6g}" else f"{value:.6g}"


def bank_name(
    attack: str, threat: ThreatModel, own: ThreatModel, thresholds: str | None = None, label: str | None = None
) -> str:
    """Return the name of the bank of an attack.

    attack: as its config and its exit call it.
    threat: threat model of the attack.
    own: the run's threat model, under which a name carries none.
    thresholds: those that the attack aims at; None: at none.
    label: the user's, to keep two banks of one attack.
    Raises UserError for a label that is no plain word, and for an attack with a name that is taken.
    """
    if attack in (CLEAN, WORST):
        raise UserError(f"an attack cannot be called {attack!r}: rename its file in conf/attack")
    if label is not None and not re.fullmatch(r"(?!eps)[A-Za-z0-9][A-Za-z0-9._+-]*", label):
        raise UserError(f"label must be a word of letters, digits and ._+- that does not begin with eps, got {label!r}")
    if label is not None and WORD.fullmatch(label):
        raise UserError(f"label={label} is how names say a threat model: choose another word")
    apart = (thresholds, None if threat == own else threat.word, label)
    return AT.join([attack, *(word for word in apart if word is not None)])


def display_name(name: str, thresholds: str, settings: Mapping[str, Plain] | None = None) -> str:
    """Return a bank's name in a table of the policy `thresholds`, which need not be said.

    settings: of the bank, which say whether it aims at a policy at all: else the word is a label. None: not known.
    """
    attack, *apart = name.split(AT)
    aimed = settings is None or settings.get("policy") is not None
    return AT.join([attack, *(apart[1:] if aimed and apart[:1] == [thresholds] else apart)])


def without_threat(name: str) -> str:
    """Return a bank's name without the threat model that it carries: the same for one attack at every eps."""
    attack, *apart = name.split(AT)
    return AT.join([attack, *(word for word in apart if ThreatModel.read(word) is None)])


def in_order(names: Iterable[str], thresholds: str | None = None) -> list[str]:
    """Sort names of banks as rows: clean first, the run's own threat before others, suites' order, name.

    thresholds: those that the rows are of: what was made for them stands before what was made for others.
    """
    return sorted(names, key=lambda name: _place(name if thresholds is None else display_name(name, thresholds)))


def _place(name: str) -> tuple[bool, tuple[int, float], int, list[tuple[int, str]]]:
    attack, *apart = name.split(AT)
    ball = next((found._order for word in apart if (found := ThreatModel.read(word)) is not None), (-1, 0.0))
    family = re.sub(r"_exit\d+$", "", attack)
    # exit 10 behind exit 9
    natural = [(int(digits or -1), word) for word, digits in re.findall(r"(\D*)(\d*)", name)]
    return name != CLEAN, ball, ORDER.index(family) if family in ORDER else len(ORDER), natural


def strength(settings: Iterable[Mapping[str, Plain]]) -> str:
    """Describe threat model and steps of attacks, as they were really made: eps 0.1, 20 steps of 0.025.

    settings: of the attacks' banks. Where they are of several threat models, all are named as such.
    """
    describe_banks = [one for one in settings if threat(one) is not None]
    balls = sorted({ball for one in describe_banks if (ball := threat(one)) is not None})
    if not balls:
        return "no attack"
    parts = [
        str(balls[0]) if len(balls) == 1 else f"{len(balls)} threat models: {' and '.join(str(ball) for ball in balls)}"
    ]
    if steps := span(_numbers(describe_banks, "steps")):
        sizes = span(_numbers(describe_banks, "step_size"))
        unit = "step" if steps == "1" else "steps"
        parts.append(f"{steps} {unit}" + (f" of {sizes}" if sizes else ""))
    return ", ".join(parts)


def _numbers(settings: Iterable[Mapping[str, Plain]], key: str) -> list[float]:
    return [value for one in settings if isinstance(value := one.get(key), int | float)]


def span(values: Iterable[float]) -> str:
    """Format smallest to largest, as 20 to 100, or the one that there is; empty for none."""
    found = sorted(set(values))
    if not found:
        return ""
    return pixels(found[0]) if len(found) == 1 else f"{pixels(found[0])} to {pixels(found[-1])}"


def caption(manifest: Manifest, banks: Iterable[BankManifest | EvalRecord]) -> str:
    """Describe network, data, images, threat model, steps and seeds of banks of a run, from their own records."""
    found = list(banks)
    seeds = {bank.seed for bank in found if bank.attack != CLEAN} | {manifest.seed}
    words = ", ".join(str(seed) for seed in sorted(seeds))
    return f"{manifest.backbone} on {manifest.data.name}, {describe_banks(found)}, seed {words}"


def describe_banks(banks: Iterable[BankManifest | EvalRecord]) -> str:
    """Describe images, threat model and steps of banks."""
    found = list(banks)
    attacked = [bank for bank in found if bank.attack != CLEAN]
    parts = [f"{bank.samples:,} clean {bank.split} images" for bank in found if bank.attack == CLEAN]
    if attacked:
        parts.append(f"{span(bank.samples for bank in attacked)} attacked")
    return ", ".join([*parts, strength(bank.settings for bank in attacked)])


def asked(eps: float | None, norm: str | None, own: ThreatModel) -> ThreatModel | None:
    """Return the threat model that the options threat.eps and threat.norm ask for; None where they ask for none.

    own: the run's, whose norm it is where none is given. Raises UserError for a radius out of range, and for another
    norm without a radius: the run's own means nothing in it.
    """
    if norm is not None:
        choice("threat.norm", norm, tuple(NORMS))
    if eps is None:
        if norm in (None, own.norm):
            return None
        raise UserError(f"threat.norm={norm} needs a radius in that norm, eps {own.size} is none: give threat.eps=...")
    return ThreatModel(distance("threat.eps", eps, norm or own.norm), norm or own.norm)


def choose(threats: Iterable[ThreatModel], own: ThreatModel, wanted: ThreatModel | None, run: str) -> ThreatModel:
    """Choose the threat model that is judged first, out of those that a run was attacked in.

    wanted: as the user typed it; None: the run's own, or the only one that there is.
    Raises UserError when that leaves several, or none.
    """
    there = sorted(set(threats))
    found = ", ".join(one.size for one in there)
    if wanted is not None:
        if wanted not in there:
            raise UserError(
                f"{run} was not attacked at eps {wanted.size}, but at {found or 'none'}: run "
                f"`rdi attack run={run} {wanted.options(own)}`"
            )
        return wanted
    if own in there or not there:
        return own
    if len(there) > 1:
        others = sorted({one.norm for one in there} - {own.norm})
        norm = f", and threat.norm={'|'.join(others)} for another norm" if others else ""
        raise UserError(
            f"{run} was attacked at eps {found} and not at its own {own.size}: choose one, threat.eps=...{norm}"
        )
    return there[0]
