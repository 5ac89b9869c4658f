"""conf/README.md: every group, its choices and their options with defaults, out of conf/ itself: `make results`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rdi.report import comments, help

TOP = "Made by `make results` from the comments of the files in this folder; a test compares it whole. Do not edit."
HOW = """`rdi COMMAND GROUP=CHOICE GROUP.OPTION=VALUE` picks a choice of a group and sets one of its options. \
`rdi COMMAND --help` lists the groups of one command and its other options, `--help GROUP` one group. `null` means \
not set: the text says what happens then. `...` has no default and must be given. `${a.b}` is the value of option \
`a.b`. Lists are typed as `[0.5,0.6]`. A choice of your own is the file GROUP/NAME.yaml in the folder \
`--config-dir` or `RDI_CONF_DIR`."""
THREAT = """The threat model is L-infinity: each pixel, in [0, 1], changes by at most `threat.eps`. With \
`threat.norm=l2` or `l1` the whole perturbation is at most `threat.eps` long in that norm; `eps` and `step_size` must \
then be given in it, or a choice that has them: `threat=l2_05`. Each data set comes with a threat model, as below; \
what you type wins: `threat=linf8`, or `threat.eps='${px:8}'` for 8 grey levels of 255. All attacks take `eps`, \
`norm` and `step_size` from `threat`: with `threat.steps` gradient steps in training, `threat.test_steps` in a suite. \
`rdi attack run=...` takes the threat model of the run's training unless you type another; results of each eps stay \
apart."""
BALL = ("eps", "step_size", "steps", "test_steps")


@dataclass
class Choice:
    """A choice of a group. options: as they are typed -> value; said: option -> what it means."""

    header: str
    options: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)


def read(conf: Path, group: str, name: str) -> Choice:
    """Read a choice, with what its defaults list includes."""
    text = (conf / group / f"{name}.yaml").read_text(encoding="utf-8")
    node, said = _composed(conf, group, name)
    if comments.PACKAGE not in text:
        node, said = {group: node}, {f"{group}.{key}": words for key, words in said.items()}
    return Choice(comments.read(text).header, dict(_leaves(node, said, "")), said)


def _composed(conf: Path, group: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a choice and its comments; a later part of its defaults list has the last word."""
    text = (conf / group / f"{name}.yaml").read_text(encoding="utf-8")
    own: dict[str, Any] = yaml.safe_load(text) or {}
    listed = own.pop("defaults", [])
    node: dict[str, Any] = {}
    said: dict[str, str] = {}
    for item in [*listed, *([] if "_self_" in listed else ["_self_"])]:
        key, chosen = next(iter(item.items())) if isinstance(item, Mapping) else (item, item.partition("@")[0])
        where, _, place = key.partition("@")
        if where.startswith("override "):
            continue
        if where == "_self_":
            part, words = own, comments.read(text).options
        else:
            apart = "" if isinstance(item, str) else where[1:]
            part, words = _composed(conf, apart if where.startswith("/") else group, chosen.removeprefix("/"))
        if place:
            part, words = {place: part}, {f"{place}.{key}": word for key, word in words.items()}
        node, said = _merged(node, part), {**said, **words}
    return node, said


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found


def _leaves(node: Mapping[str, Any], said: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    """Options as they are typed, with their values; what a node builds is no option of its own."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if name.startswith("_") or key == "hydra":
            continue
        if isinstance(value, dict) and key not in said:
            yield from _leaves(value, said, f"{key}.")
        else:
            yield from help.as_typed(key, value)


def page(
    conf: Path, commands: Mapping[str, Mapping[str, str | None]], choices: Callable[[str], Mapping[str, str]]
) -> str:
    """Render the text of conf/README.md.

    commands: name -> its groups -> what each of them chooses.
    choices: of a group, those of plugins too -> what each is.
    """
    groups: dict[str, str] = {}
    for mine in commands.values():
        for group, words in mine.items():
            groups.setdefault(group, words or "")
    parts = ["# Groups, choices, options", TOP, HOW, "## Where eps comes from", THREAT, _balls(conf)]
    for group, words in (groups | help.HYDRA).items():
        users = [command for command, mine in commands.items() if group in mine]
        by = "every command, with `-m`" if group in help.HYDRA else ", ".join(f"`rdi {name}`" for name in users)
        parts += [f"## {group}", f"{words[:1].upper()}{words[1:]}. Of {by}."]
        parts += _group(conf, group, choices(group))
    return "\n\n".join(parts) + "\n"


def _balls(conf: Path) -> str:
    lines = [
        "| `data=` | `threat=` | `threat.eps` | `threat.step_size` | `threat.steps` | `threat.test_steps` |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted((conf / "data").glob("*.yaml")):
        threat = _threat(conf, path.stem)
        options = read(conf, "threat", threat).options
        cells = [path.stem, threat, *(options[f"threat.{key}"] for key in BALL)]
        lines.append(f"| {' | '.join(map(_code, cells))} |")
    return "\n".join(lines)


def _threat(conf: Path, data: str) -> str:
    """The threat model that a data choice names, or the one that its defaults list extends."""
    listed = yaml.safe_load((conf / "data" / f"{data}.yaml").read_text(encoding="utf-8"))["defaults"]
    named = [item["override /threat"] for item in listed if isinstance(item, Mapping) and "override /threat" in item]
    return str(named[0]) if named else _threat(conf, next(item for item in listed if item != "_self_"))


def _group(conf: Path, group: str, names: Mapping[str, str]) -> Iterator[str]:
    """The choices of a group, a line each, and what their options mean."""
    own = {name for name in names if (conf / group / f"{name}.yaml").is_file() and group not in ("suite", "sweep")}
    found = {name: read(conf, group, name) for name in own}
    lines = []
    for name, header in names.items():
        line = f"- `{group}={name}`" + (f": {_plain(header)}" if header else "")
        if group == "suite":
            line += f" ({', '.join(f'`{key}`' for key in _composed(conf, group, name)[0])})"
        if name in found and (options := _own(group, found[name].options)):
            line += ". " + " ".join(
                _code(f"{key}={'...' if value == '???' else value}") for key, value in options.items()
            )
        lines.append(line)
    yield "\n".join(lines)
    said: dict[str, dict[str, None]] = {}
    for name in names:
        if name in found:
            for key, words in _own(group, found[name].said).items():
                said.setdefault(key, {})[words] = None
    if said:
        rows = [f"| {_code(key)} | {_plain('; or: '.join(words))} |" for key, words in said.items()]
        yield "\n".join(["| option | what it means |", "|---|---|", *rows])


def _own(group: str, options: Mapping[str, str]) -> dict[str, str]:
    """The options of the group itself: those of the threat model stand apart."""
    prefix = "" if "/" in group else f"{group}."
    return {key: value for key, value in options.items() if key.startswith(prefix)}


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return "".join(f"\\{letter}" if letter in "\\`*_<>[]|#$" else letter for letter in text)


def _code(text: str) -> str:
    """`text` as code, in a table too."""
    return "`" + text.replace("|", "\\|") + "`"
