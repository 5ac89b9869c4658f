"""The console script `rdi`: a light dispatcher. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import gc
import io
import os
import sys

from rdi.errors import ReaderGone

COMMANDS = {
    "run": "train, attack, evaluate, draw the front and report, in one go",
    "train": "train a multi-exit network; the same command again goes on where it stopped",
    "attack": "attack a finished run and store every exit's logits",
    "evaluate": "judge stored logits under an exit policy: accuracy, cost, exit shares",
    "certify": "bound what any attack can do: certified accuracy and cost of an exit policy",
    "pareto": "operating points and fronts over one or more runs, with table and picture",
    "table": "a table of the paper (Triple Wins, ICLR 2020) beside the published figures; missing runs are trained",
    "report": "one page on one or more runs: tables, fronts, exits, images, and the record behind each number",
    "list": "list runs: state, headline figures, and the settings that differ",
    "health": "check the evaluation itself: do the attacks find what they should on this run?",
    "bench": "measure attacks, training and inference on this machine, as ratios to plain baselines",
    "import": "make a run folder of weights that were trained elsewhere",
    "export": "write a run as files for a device: one per stage, the exit policy, a runner without torch",
}

USAGE = """\
rdi - robust dynamic inference: train, attack and judge multi-exit networks

usage: rdi COMMAND [OPTION=VALUE ...]

commands:
{commands}

  rdi COMMAND --help         its options and choices
  rdi COMMAND --cfg job      the composed config, without running anything
  rdi COMMAND -m a=1,2 b=x,y every combination, one run each
  rdi COMMAND sweep=NAME     the combinations, or the search, of sweeps/NAME.yaml
  eval "$(rdi -sc install=bash)"   tab completion (also zsh, fish)
  rdi --version

examples:
  rdi run                                       the demo: SmallCNN on the embedded digits, about three minutes
  rdi train backbone=resnet38 attack=max_avg    the paper's ResNet-38 on CIFAR-10
  rdi attack run=runs/demo suite=paper samples=1000
  rdi evaluate run=runs/demo threshold=confidence
  rdi health run=runs/demo
"""


def usage() -> str:
    """Text of `rdi --help`."""
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script. Exit status: 0 done, 2 a mistake of the user, 130 interrupted, 1 a bug.

    `rdi health strict=true` also ends with 1 when a line is red.
    """
    from rdi import signals

    if argv is None:
        gc.disable()  # until the command is imported: there is no garbage in modules, and looking for it takes a second
    words = sys.argv[1:] if argv is None else argv
    prepare_streams()
    try:
        with signals.exits(" ".join(["rdi", *(word for word in words[:1] if word in COMMANDS)]), for_good=argv is None):
            try:
                dispatch(words)
            finally:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
    except (BrokenPipeError, ReaderGone):  # `rdi train --cfg job | head`
        mute()
        raise SystemExit(141) from None


def prepare_streams() -> None:
    """Standard streams that take every text: closed ones lead nowhere, and what a locale lacks is escaped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened would get this number, and our output
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
        if number and getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def mute() -> None:
    """Send the rest of the output nowhere, what is still buffered included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)


def dispatch(args: list[str]) -> None:
    """Run the command that `args` begins with."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"rdi {version('rdi')}")
        return
    from rdi.cli import _hydra

    if args[0] in ("-sc", "--shell-completion"):
        _hydra.completion(args, COMMANDS)
        return
    if args[0] not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean `rdi {close[0]}`?" if close else f"choose one of {', '.join(COMMANDS)}"
        print(f"rdi: error: no command {args[0]!r}: {hint}", file=sys.stderr)
        raise SystemExit(2)
    _hydra.run(args[0], args[1:])
