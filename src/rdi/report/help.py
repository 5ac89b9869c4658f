"""The help of a command: every option with its default and what it means, in columns of a terminal."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from rdi.errors import UserError
from rdi.report.comments import Commented

WIDTH = 80
TEXT = 30
"""Column where explanations begin."""
HYDRA = {
    "hydra/launcher": "how the jobs of -m are run: one after the other (basic), or at once",
    "hydra/sweeper": "how -m chooses its jobs: every combination (grid, the default), or a search (tune)",
}
"""Groups of every command that are not in its own config."""
PLUGINS = {
    "hydra/launcher/basic": "one job after the other, in this process: the default",
    "hydra/launcher/joblib": "several processes of this machine at once: pip install 'rdi[joblib]'",
    "hydra/launcher/ray": "on a Ray cluster, or one that it starts here: pip install 'rdi[ray]'",
    "hydra/launcher/submitit_local": "as on SLURM, with processes of this machine: pip install 'rdi[slurm]'",
    "hydra/launcher/submitit_slurm": "a SLURM job each: pip install 'rdi[slurm]'",
    "hydra/sweeper/basic": "Hydra's own: every combination, but not one of a file of sweeps/",
}
"""Choices whose files are not ours -> what each is."""
NODE = ("_partial_", "_recursive_", "_convert_", "_args_")


@dataclass(frozen=True)
class Option:
    """key, as typed; value, as the YAML writes it; said: what it means; by: the choice that brought it along, or ""."""

    key: str
    value: str
    said: str
    by: str = ""


class Explained(Protocol):
    """The options of a command.

    own: comments of its config; chosen: group -> choice.
    """

    command: str
    own: Commented
    chosen: dict[str, str | None]

    @property
    def groups(self) -> dict[str, str | None]:
        """Return the command's own groups -> what each of them chooses."""

    def choices(self, group: str) -> dict[str, str]:
        """Return the choices of a group -> what each is."""

    def options(self) -> Iterator[Option]:
        """Yield all options but those inside a suite."""

    def suite(self) -> Iterator[Option]:
        """Yield the options of the attacks of the suite."""


def as_typed(key: str, value: Any) -> list[tuple[str, str]]:
    """Return an option as it is typed; a mapping in braces is typed part by part."""
    if isinstance(value, dict):
        return [one for k, v in value.items() if k not in NODE for one in as_typed(f"{key}.{k}", v)]
    if isinstance(value, str):
        return [(key, value)]
    shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
    return [(key, shown.replace(", ", ",") if isinstance(value, list) else shown)]


def page(explained: Explained, about: str) -> list[str]:
    """Render the help of a command: its options, its groups with their choices, the options of what is chosen."""
    command, options = explained.command, list(explained.options())
    of_group = [one for one in options if one.key.split(".")[0] in explained.groups]
    lines = [
        *textwrap.wrap(f"rdi {command}: {about}", WIDTH),
        "",
        f"usage: rdi {command} [OPTION=VALUE ...]{' [GROUP=CHOICE ...]' if explained.groups else ''}",
        *(f"  {line}" for example in explained.own.examples for line in _example(example)),
        "",
        "options and their defaults (8 grey levels of 255 are '${px:8}'):",
        *_lines([one for one in options if one not in of_group]),
    ]
    if explained.groups:
        lines += ["", "groups: what is chosen now, and the choices"]
        for group in explained.groups:
            lines += _group(explained, group)
    if of_group:
        lines += ["", "options of what is chosen now (GROUP=CHOICE --help GROUP: of another choice)"]
        lines += _lines(of_group)
    lines += ["", "more:"]
    for typed, said in {
        f"rdi {command} --cfg job": "the composed config, without running anything",
        f"rdi {command} -m a=1,2": "every combination, one job each; --help hydra/launcher: how they run",
        **({f"rdi {command} --help GROUP": "one group: its choices and its options"} if explained.groups else {}),
    }.items():
        lines += _two(typed, said, 2)
    return lines


def topic(explained: Explained, topic: str) -> list[str]:
    """Render help on one group, or on the options that begin with `topic`. Raises UserError when there is neither."""
    everything = [*explained.options(), *explained.suite()]
    mine = [one for one in everything if one.key == topic or one.key.startswith(f"{topic}.")]
    known = topic in explained.groups or topic in HYDRA
    if not (mine or known):
        names = [*explained.groups, *HYDRA, *dict.fromkeys(one.key.split(".")[0] for one in everything)]
        close = difflib.get_close_matches(topic, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise UserError(f"rdi {explained.command} has no group and no option {topic}: {hint}")
    lines = _group(explained, topic) if known else []
    if mine:
        lines += [*([""] if known else []), "options and their defaults:", *_lines(mine)]
    return lines


def _group(explained: Explained, group: str) -> list[str]:
    """A group with its choice, and all choices."""
    chosen = explained.chosen.get(group)
    if group == "hydra/sweeper" and chosen == "basic":
        chosen = "grid"  # stored under Hydra's own name for its default, see _sweeps.register
    lines = _two(
        f"{group}={'null' if chosen is None else chosen}", explained.groups.get(group) or HYDRA.get(group, ""), 2
    )
    for name, header in explained.choices(group).items():
        lines += _two(name, header, 6)
    return lines


def _lines(options: Sequence[Option]) -> list[str]:
    """Options in two columns; parts of one mapping, which share an explanation, stand above it."""
    lines = []
    for index, one in enumerate(options):
        shared = index + 1 < len(options) and options[index + 1].said == one.said and _siblings(one, options[index + 1])
        value = "" if one.value == "???" else one.value
        said = f"required: {one.said}" if one.value == "???" else one.said
        said += f" (by {one.by})" if one.by and said else ""
        lines += _two(f"{one.key}={value}", "" if shared else said, 2)
    return lines


def _siblings(one: Option, other: Option) -> bool:
    return "." in one.key and one.key.rpartition(".")[0] == other.key.rpartition(".")[0]


def _two(left: str, right: str, indent: int) -> list[str]:
    """`left`, and `right` beside it; below, where `left` is too long."""
    *before, head = textwrap.wrap(
        left, WIDTH - indent - 4, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2)
    )
    body = textwrap.wrap(right, WIDTH - TEXT)
    if not body:
        return [*before, head]
    if before or len(head) + 2 > TEXT:
        return [*before, head, *(" " * TEXT + line for line in body)]
    return [f"{head:<{TEXT}}{body[0]}", *(" " * TEXT + line for line in body[1:])]


def _example(example: str) -> list[str]:
    """A command and, below it where the line would be too long, what it does; a long command goes on after a \\."""
    command, *said = (part.strip() for part in example.split("   ", 1))
    line = f"{command}   {said[0]}" if said else command
    if len(line) + 2 <= WIDTH:
        return [line]
    lines = textwrap.wrap(command, WIDTH - 6, break_on_hyphens=False, subsequent_indent="    ")
    typed = [*(f"{line} \\" for line in lines[:-1]), lines[-1]]
    return [*typed, *textwrap.wrap("".join(said), WIDTH - 4, initial_indent="    ", subsequent_indent="    ")]
