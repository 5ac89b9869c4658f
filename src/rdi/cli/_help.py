"""`rdi COMMAND --help`: the options of a command as Hydra composes them, and what the comments of conf/ say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import OmegaConf

from rdi.packaged import packaged
from rdi.report import comments, help
from rdi.report.help import Option, as_typed
from rdi.runs.options import SCHEMAS

NAMES = (*SCHEMAS, "training")
"""Configs of commands, and what two of them share."""


class Explained:
    """The options of a command as `overrides` compose them. Raises UserError or Hydra's own for what does not compose.

    conf: the conf/ folder. extra: another folder to look for choices in, as --config-dir names it.
    """

    def __init__(self, command: str, overrides: Sequence[str], conf: Path, extra: str | None = None) -> None:
        search = create_config_search_path(f"file://{conf}")
        if extra:
            search.prepend("command-line", f"file://{Path(extra).resolve()}", anchor="schema")
        self.command = command
        self._loader = ConfigLoaderImpl(config_search_path=search)
        config = self._loader.load_configuration(command, [*overrides], RunMode.RUN)
        self.chosen: dict[str, str | None] = dict(config.hydra.runtime.choices)
        plain: Any = OmegaConf.to_container(config, resolve=False)
        self._config: dict[str, Any] = plain
        files = self._loader.compute_defaults_list(command, [*overrides], RunMode.RUN).defaults
        self._said: dict[str, tuple[str, str]] = {}
        """Dotted key -> what it means, and the file that says so; a later file has the last word."""
        for file in files:
            prefix = f"{file.package}." if file.package else ""
            for key, text in self.file(file.config_path).options.items():
                self._said[f"{prefix}{key}"] = (text, file.config_path or "")
        own, extended = self.file(command), [self.file(one.config_path) for one in files if one.config_path in NAMES]
        groups = {group: words for one in extended for group, words in one.groups.items()}
        options = {key: words for one in extended for key, words in one.options.items()}
        self.own = replace(own, groups=groups, options=options)

    def file(self, config_path: str | None) -> comments.Commented:
        """The comments of a config; nothing for one that is no file, or no YAML."""
        path, others = self._path(config_path or ""), comments.Commented(help.PLUGINS.get(config_path or "", ""))
        try:
            return others if path is None else comments.read(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return others

    def _path(self, config_path: str) -> Path | None:
        folders = [Path(source.path) for source in self._loader.get_sources() if source.scheme() == "file"]
        found = [folder / f"{config_path}.yaml" for folder in folders]
        if config_path.startswith("sweep/"):
            found.append(packaged("sweeps") / f"{config_path.removeprefix('sweep/')}.yaml")
        return next((path for path in found if path.is_file()), None)

    @property
    def groups(self) -> dict[str, str | None]:
        """The command's own groups -> what each of them chooses."""
        return self.own.groups

    def choices(self, group: str) -> dict[str, str]:
        """The choices of a group -> what each is."""
        return {name: self.file(f"{group}/{name}").header for name in self._loader.get_group_options(group)}

    def options(self) -> Iterator[Option]:
        """All options but those inside a suite, which are those of the attack group."""
        order = [key.partition(".")[0] for key in self.own.options]
        hidden = {"hydra", "suite", *({"optim"} - {*self.groups})}  # see conf/untrained.yaml
        keys = [key for key in self._config if key not in hidden]
        keys.sort(key=lambda key: order.index(key) if key in order else len(order))
        yield from self._walk({key: self._config[key] for key in keys}, "")

    def suite(self) -> Iterator[Option]:
        """The options of the attacks of the suite."""
        yield from self._walk({"suite": self._config.get("suite")}, "")

    def _walk(self, node: Mapping[str, Any], prefix: str) -> Iterator[Option]:
        for name, value in node.items():
            key = f"{prefix}{name}"
            inner = any(said.startswith(f"{key}.") for said in self._said)
            if isinstance(value, dict) and (inner or key not in self._said):
                yield from self._walk({k: v for k, v in value.items() if not k.startswith("_")}, f"{key}.")
            elif prefix or name not in self.groups:  # a group of which nothing is chosen has no options
                said, file = self._said.get(key, ("", ""))
                by = file.replace("/", "=", 1) if "/" in file and key.split(".")[0] not in self.groups else ""
                yield from (Option(typed, shown, said, by) for typed, shown in as_typed(key, value))


def show(command: str, about: str, argv: Sequence[str], conf: Path) -> None:
    """Print the help of `command`. about: what it does. argv: what was typed, --help apart.

    A word without = names a group, or the beginning of options, that all is wanted of.
    """
    from hydra._internal.utils import get_args_parser

    args, rest = get_args_parser().parse_known_args([*argv])
    words = [word for word in [*args.overrides, *rest] if not word.startswith("-")]
    topics = [word for word in words if "=" not in word and not word.startswith("~")]
    explained = Explained(command, [word for word in words if word not in topics], conf, args.config_dir)
    print("\n".join(help.topic(explained, topics[0]) if topics else help.page(explained, about)))
