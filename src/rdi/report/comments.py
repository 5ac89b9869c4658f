"""Read the comments of conf/: of each option, of each choice of a group, and how a command is typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

PACKAGE = "@package"


@dataclass(frozen=True)
class Commented:
    """The comments of one YAML file.

    header: what the file is, one line, "" where it does not say. examples: commands, as typed. options: dotted key,
    as the file nests it -> what it means; a mapping in braces counts as one option. groups: group of the defaults
    list -> what it chooses, None where there is no comment.
    """

    header: str = ""
    examples: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str | None] = field(default_factory=dict)


def read(text: str) -> Commented:
    """Read the comments of a YAML file of conf/. Raises yaml.YAMLError for what is none."""
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    header, examples = _top(lines)
    if not isinstance(root, yaml.MappingNode):
        return Commented(header, examples)
    groups: dict[str, str | None] = {}
    for key, value in root.value:
        if key.value == "defaults" and isinstance(value, yaml.SequenceNode) and not value.flow_style:
            groups = dict(_groups(value, lines))
    return Commented(header, examples, dict(_options(root, lines, "")), groups)


def _top(lines: list[str]) -> tuple[str, tuple[str, ...]]:
    """Header and examples out of the comment that a file begins with."""
    found = []
    for line in lines:
        if not line.startswith("#"):
            break
        if PACKAGE not in line:
            found.append(line.removeprefix("#").strip())
    examples = [line for line in found if line.startswith("rdi ")]
    said = [re.split(r" {3,}", line, maxsplit=1)[-1] if line in examples else line for line in found]
    headers = [line for line in said if line and not line.startswith("rdi ")]
    return headers[0].rstrip(":") if headers else "", tuple(examples)


def _groups(defaults: yaml.SequenceNode, lines: list[str]) -> Iterator[tuple[str, str | None]]:
    """The groups of a defaults list; what is included or overridden there is no choice of its own."""
    for item in defaults.value:
        if isinstance(item, yaml.MappingNode):
            [(key, value)] = item.value
            if not key.value.startswith("override ") and "@" not in key.value:
                yield key.value, _beside(lines, value.end_mark)


def _options(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        if not prefix and key.value in ("defaults", "hydra"):
            continue
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        said = _beside(lines, key.end_mark if block else value.end_mark) or _above(lines, key.start_mark.line)
        if said:
            yield f"{prefix}{key.value}", said
        if block and isinstance(value, yaml.MappingNode):
            yield from _options(value, lines, f"{prefix}{key.value}.")


def _beside(lines: list[str], mark: yaml.Mark) -> str | None:
    """The comment after a place in a line."""
    rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
    found = re.match(r":?\s+#\s*(.*)", rest)
    return found[1].strip() if found else None


def _above(lines: list[str], line: int) -> str | None:
    """The comment in the lines before this one, unless the file begins with it."""
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    if first in (0, line):
        return None
    return " ".join(text.strip().removeprefix("#").strip() for text in lines[first:line])
