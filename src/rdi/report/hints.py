"""Words of a newcomer: what is meant is done where that is plain; else one line says how it is written here."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from rdi.errors import UserError

_SYNONYMS = {
    "backbone": "model net network arch architecture",
    "data": "dataset",
    "optim.lr": "learning_rate",
    "optim.epochs": "epoch",
    "optim.iterations": "iters max_steps",
    "optim.optimizer.weight_decay": "wd",
    "optim": "opt recipe",
    "batch_size": "bs batchsize",
    "threat.eps": "epsilon",
    "threat.step_size": "alpha",
    "samples": "num_samples n_samples",
    "threshold": "policy thresholds",
    "suite": "attacks",
    "device": "gpu cuda",
    "run": "output output_dir out log_dir dir folder path resume runs",
    "checkpoint": "ckpt weights",
    "tracking": "wandb logger",
    "threads": "workers num_workers",
    "precision": "amp",
    "data.split_seed": "split_seed",
    "data.root": "root",
}
SYNONYMS = {theirs: ours for ours, words in _SYNONYMS.items() for theirs in words.split()}
"""Term of other projects -> term here."""
OF_THE_TRAINING = (
    "backbone",
    "exits",
    "defense",
    "compression",
    "gates",
    "optim",
    "normalise",
    "precision",
    "channels_last",
    "data",
)
"""Options that a finished run brings along."""
PLACE = {
    "pareto": "runs=[{}]",
    "report": "runs=[{}]",
    "list": "runs=[{}]",
    "import": "weights={}",
    "table": "name={}",
}
"""Command -> option that names its object, where that is not run=."""
INSTEAD = {
    "threshold": "`rdi evaluate run=... threshold=...` fits and stores one",
    "corruption": "give it to `rdi attack`, with run=... of a finished run",
    "attack": "give it to `rdi attack`, with run=... of a finished run",
    "suite": "give it to `rdi attack`, with run=... of a finished run",
}
"""Group -> what to do in a command that does not have it."""
PLAIN = re.compile(r"Error merging override ([^=]+)=.*?\((.*)\)$")
KINDS = {
    "is not Optional": "cannot be null: leave it out, or give it a value",
    "is not a ListConfig": "must be a list, got {value}: write it in brackets, as [{value}]",
    "Cannot convert 'list' to string": "must be one text, got a list: {value}",
    "is not a valid bool": "must be true or false, got {value}",
}
"""Part of what OmegaConf has against a value -> the same in words of the command line."""
ONE_VALUE = "{0} is one value: write {0}=..."
LENGTHS = ("optim.epochs", "optim.iterations")
"""Two ways to say how long to train; a recipe has set one of them."""


EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/ray": "ray",
}
"""Choices that come with an extra of ours."""


NO_NAMES = ("nan", "inf", "null", "true", "false")
"""Words that Hydra reads as values."""


def arranged(
    command: str, words: Sequence[str], options: Collection[str], conf: Path, texts: Collection[str] = ()
) -> list[str]:
    """Return the overrides as Hydra takes them: lists in brackets, home folders spelt out, one length of training.

    options: of the command. texts: those that are texts, or lists of them, which stay as they were typed.
    conf: the folder of the config groups.
    Raises UserError for a word without `=`, and for a list where one choice belongs: of several Hydra takes the last.
    """
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and key and not key.startswith("~"):
            raise UserError(f"{key[:200]} is no option; options are key=value: {meant(command, key, options, conf)}")
        if key != "suite" and (key == "sweep" or (conf / key).is_dir()) and (names := _choices(value)):
            every = f", or add -m {key}={','.join(names)} to run every one" if len(names) > 1 and key != "sweep" else ""
            raise UserError(f"{key}=... takes one choice, as {key}={names[0]}{every}; got {value[:100]}")
        if key == "runs" and command in ("pareto", "report", "list") and value and value[0] not in "[$'\"":
            word = f"runs=[{value}]"
        elif value.startswith("~/"):
            word = f"{key}={Path(value).expanduser()}"
        if equals and not value.isascii() and not set(value) & set("[]{}()'\"\\,$"):
            word = f"{word.partition('=')[0]}='{word.partition('=')[2]}'"  # Hydra's grammar knows ASCII alone
        elif equals and key in texts:
            word = f"{word.partition('=')[0]}={_as_typed(word.partition('=')[2])}"
        found.append(word)
    return settled(found)


def _as_typed(value: str) -> str:
    """Quote the texts of a value, one or several, that Hydra would write otherwise: 1e5, 1_000, true."""
    start, inner, end = ("[", value[1:-1], "]") if value[:1] + value[-1:] == "[]" else ("", value, "")
    if set(inner) & set("[]{}()'\"\\$ "):
        return value
    return start + ",".join(f"'{text}'" if _read_otherwise(text) else text for text in inner.split(",")) + end


def _read_otherwise(text: str) -> bool:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return str(kind(text)) != text
    return text.lower() in ("true", "false")


def _choices(value: str) -> list[str]:
    """The names in `[one,another]`; none where something else stands, which Hydra refuses."""
    names = [name.strip() for name in value[1:-1].split(",")] if value[:1] + value[-1:] == "[]" else []
    return names if all(name.isidentifier() and name.lower() not in NO_NAMES for name in names) else []


def meant(command: str, word: str, options: Collection[str], conf: Path) -> str:
    """Say what a word without `=` may have been meant to be."""
    if command in ("table", "import"):
        return f"did you mean {PLACE[command].format(word)}?"
    groups = sorted({path.parent.name for path in conf.glob(f"*/{glob_escaped(word)}.yaml")} & {*options})
    if groups:
        return f"did you mean {groups[0]}={word}?"
    key = word if word in options else SYNONYMS.get(word, word)
    if key.partition(".")[0] in options or (command in ("train", "run", "bench") and word.isidentifier()):
        return f"write {key}=... with a value"
    return f"did you mean {PLACE.get(command, 'run={}').format(word)}?"


def flag(command: str, word: str, behind: str | None) -> str:
    """Say how a flag (`--run`, `--run=runs/a`) is written here. behind: the word after it, or None."""
    name, equals, value = word.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if not equals:
        value = behind if behind is not None and "=" not in behind and not behind.startswith("-") else "..."
    key = SYNONYMS.get(name, name)
    if key == "run" and command in ("pareto", "report", "list"):
        key, value = "runs", f"[{value}]"
    return f"write {key}={value}"


def settled(words: Iterable[str]) -> list[str]:
    """Return the overrides, with the other length of training taken out of the recipe where one alone was typed."""
    words = list(words)
    keys = [word.lstrip("+").partition("=")[0] for word in words]
    typed = [key for key in LENGTHS if any(name == key for name in keys)]
    if len(typed) == 1 and f"{typed[0]}=null" not in words:
        words.append(f"{next(key for key in LENGTHS if key != typed[0])}=null")
    return words


def beside(option: str, leaves: Sequence[str]) -> list[str]:
    """Return the options beside an unknown one, or in the nearest group that there is. leaves: as of `unknown`."""
    group = option.rpartition(".")[0]
    while "." in group and group not in leaves:
        group = group.rpartition(".")[0]
    return sorted(leaf for leaf in leaves if leaf.rpartition(".")[0] == group)


def unknown(option: str, known: Sequence[str], leaves: Sequence[str]) -> str:
    """Say what to type instead of an option that there is not.

    known: the options beside it, or in the nearest group that there is; leaves: all options of the command.
    """
    if close := difflib.get_close_matches(option, known, n=1, cutoff=0.8):
        return f"did you mean {close[0]}?"
    meant = SYNONYMS.get(option, option)
    if meant != option and meant in leaves:
        return f"did you mean {meant}?"
    top = meant.partition(".")[0]
    if top in OF_THE_TRAINING and "run" in leaves and top not in leaves:
        return f"a finished run knows its own {top}: leave it out"
    name = meant.rpartition(".")[2]
    within = [leaf for leaf in leaves if leaf.rpartition(".")[2] == name]
    within.sort(key=lambda leaf: (not leaf.startswith("threat."), leaf.count("."), leaf))
    if "." in option and not known:
        if top not in leaves:
            return f"there is no {top} either: see the options with --help"
        parts = option.split(".")
        if value := next((v for n in range(len(parts) - 1, 1, -1) if (v := ".".join(parts[:n])) in leaves), None):
            return ONE_VALUE.format(value)
        instead = f"{within[0]}=... holds for every attack; or " if within and within[0].startswith("threat.") else ""
        return f"nothing is set there: {instead}give {top}=... as well, or see the options with --help"
    return f"did you mean {within[0]}?" if within else f"there are {', '.join(known)}"


def elsewhere(group: str) -> str:
    """Say what is to be said of a group that the command does not have."""
    other = (
        "a finished run knows its own" if group in OF_THE_TRAINING else "see the options of this command with --help"
    )
    return f"there is no {group}=... here: {INSTEAD.get(group, other)}"


def glob_escaped(word: str) -> str:
    """Return `word` as a pattern that matches itself alone; a path matches nothing."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in word.replace("/", "\0"))


def message(error: BaseException, known: Callable[[str, BaseException], str]) -> str:
    """Say what is wrong and what to type next, out of an exception of ours, of Hydra's or of OmegaConf's.

    known: says what there is in place of an unknown option, out of the exception that tells of it.
    """
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error.__cause__, UserError):  # of a class of ours that Hydra builds
        return " ".join(str(error.__cause__).split())
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if missing := next((name for name in EXTRAS if f"Could not find '{name}'" in message), None):
        return f"{missing} is not installed: pip install 'rdi[{EXTRAS[missing]}]'"
    if "No match in the defaults list" in message:
        return elsewhere(message.partition("'")[2].partition("'")[0])
    typed = str(getattr(error, "override", None) or "").partition("=")[0]
    if typed and typed not in message:
        message = f"{typed} cannot be read: {message}"
    if "Available options" in str(error):
        start = next(i for i, line in enumerate(lines) if "Available options" in line)
        options = [line for line in lines[start + 1 :] if " " not in line]
        return f"{message.removeprefix('In ').split(': ', 1)[-1]}; choose one of {', '.join(options)}"
    cause = error.__cause__
    if cause is not None and str(cause).strip():
        reason = str(cause).strip().splitlines()[0]
        if "is not in struct" in reason or "not in '" in reason:
            option = message.partition("'")[2].partition("'")[0]
            inner = re.search(r"Key '([^']*)'", reason)
            if inner and inner[1] not in option.split("."):
                return f"{option} has no {inner[1]} here: write ++{option}=... to put a node of another kind there"
            return f"there is no option {option}; {known(option, cause)}"
        message += f" ({reason})"
    if found := PLAIN.match(message):
        key, reason = found[1], found[2]
        if "'dict'" in reason:
            name = key.rpartition(".")[0] if "{}" in reason and "." in key else key
            return ONE_VALUE.format(name)
        if words := next((words for part, words in KINDS.items() if part in reason), None):
            return f"{key} {words.format(value=found[0].partition('=')[2].partition(' (')[0])}"
    if "could not be converted to" in message and "/255" in message:
        key, _, rest = message.partition("override ")[2].partition("=")
        message += f"; for n/255 write '{key}=${{px:{rest.partition('/')[0]}}}' on the command line"
    if "Missing mandatory value: " in message:
        key = message.rpartition("value: ")[2]
        return f"{key} is missing: give {key}=..."
    if "interpolation" in message.lower() and "UserError" not in message:
        message += "; write '${px:8}' for 8/255, or '${key}' for the value of another option"
    if "Ambiguous value" in message:
        message += "; add -m to run every value, or quote a list as 'key=[1,2]'"
    if message.startswith("LexerNoViableAltException: "):
        message = f"{message.partition(': ')[2]} cannot be read: it has a character that means something to Hydra"
    if "parsing override" in message or "expecting" in message or "cannot be read: it has" in message:
        message += "; options are key=value, in single quotes where the value has special characters"
    return message


def shortened(text: str) -> str:
    """Return `text` without the middle of words of more than 400 characters: the rest of the line informs."""

    def middle(found: re.Match[str]) -> str:
        word = found.group()
        return f"{word[:200]}...({len(word) - 300} more characters)...{word[-100:]}"

    return re.sub(r"\S{401,}", middle, text)
