"""Run one command under Hydra, and turn everything that a user can mend into one line and exit status 2."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rdi import failures as known_failures
from rdi import signals
from rdi.cli._console import one_line
from rdi.errors import Interrupted, ReaderGone, UserError
from rdi.logs import close_log_files, log_quietly, log_traceback, start
from rdi.packaged import packaged

logger = logging.getLogger("rdi")
INTERRUPTED = "interrupted; the same command starts again"
conf_dir: Callable[[], Path] = partial(packaged, "conf")
"""The folder of config files."""


def module(command: str) -> Any:
    """The module of a command; `import` is a keyword, hence the suffix. Garbage is collected from here on."""
    found = importlib.import_module(f"rdi.cli.{command}{'_' if command == 'import' else ''}")
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    return found


def run(command: str, argv: list[str]) -> None:
    """Compose the config of `command` from conf/ and `argv` and run it."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rdi.cli import _sweeps

    prepare()
    signals.reset()
    debug = os.environ.get("HYDRA_FULL_ERROR")
    failures: list[BaseException] = []
    job = _Job(failures)
    typed = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing
    try:
        _sweeps.register(conf_dir())
        _sweeps.register_user_conf()
        if not {"-h", "--help"}.isdisjoint(argv):
            from rdi.cli import COMMANDS, _help

            _help.show(command, COMMANDS[command], [word for word in argv if word not in ("-h", "--help")], conf_dir())
            return
        sys.argv = [sys.argv[0], *_arranged(command, argv)]
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(job.task(command))()
    except (KeyboardInterrupt, Interrupted) as error:
        failures.insert(0, Interrupted(str(error) or INTERRUPTED))
    except (HydraException, OmegaConfBaseException, UserError) as error:
        failures.append(error)
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        if job.begun and not signals.signalled():
            raise
        # Hydra's own, about the command line: a list of numbers where a choice belongs, and the like
        odd = _no_choices(argv)
        what = f"{odd[0]} names none of its choices" if odd else str(error) or "Hydra refuses what was typed"
        failures.append(UserError(f"{what}; see the choices with --help"))
    except BrokenPipeError:
        raise
    except Exception as error:
        if signals.signalled():
            pass
        elif known := known_failures.explained(error, command):  # Hydra's own folders
            failures.append(known)
        else:
            raise
    finally:
        sys.argv = typed
        os.environ.pop("HYDRA_FULL_ERROR")
        if debug is not None:
            os.environ["HYDRA_FULL_ERROR"] = debug
        _offer_upload()
    if signals.signalled() and not any(isinstance(failure, Interrupted) for failure in failures):
        failures.insert(0, Interrupted(INTERRUPTED))
    if failures:
        _leave(command, failures, debug == "1")


def _offer_upload() -> None:
    """Say how to upload what wandb was told offline, if anything."""
    if "rdi.tracking" in sys.modules:
        from rdi import tracking

        if command := tracking.upload_command(tracking.left_offline()):
            print(f"wandb is offline; to upload: {command}", file=sys.stderr)


def task(command: str) -> Callable[[Any], Any]:
    """The command as Hydra's launchers call it, for jobs that another command starts."""
    return _Job([]).task(command)


def as_rank(command: str, cfg: Any) -> Any:
    """Run the command as one of the ranks that another process started, each in a process of its own."""
    from rdi.cli import _ranks

    prepare()
    return attempt(command, partial(_ranks.joined, module(command).run, command), cfg)


def prepare() -> None:
    """Prepare this process to compose configs or run jobs; also in a launcher's own processes."""
    from rdi.cli import _schema

    start()
    # Hydra warns when a version is old and the like: not the user's concern here
    warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    # an odd file is reported as a mistake in one line, or it loads
    warnings.filterwarnings("ignore", message=".*weights_only Unpickler.*", category=UserWarning)
    _schema.register()


def _leave(command: str, failures: list[BaseException], debug: bool) -> NoReturn:
    """Say what went wrong and end with status 2, 130 after a signal, or 1 when a job of a sweep met a bug."""
    from rdi.cli import _sweeps
    from rdi.runs import rank_group

    first = failures[0]
    if debug:
        raise first
    if rank_group.silent(first, one_line(first)):
        raise SystemExit(130 if isinstance(first, Interrupted) else 2)
    if isinstance(first, Interrupted):
        print(f"rdi {command}: {one_line(first)}", file=sys.stderr)
        raise SystemExit(130)
    print(f"rdi {command}: error: {one_line(first)}", file=sys.stderr)
    raise SystemExit(1 if isinstance(first, _sweeps.SweepFailed) and first.bug else 2)


def _arranged(command: str, argv: list[str]) -> list[str]:
    """`argv` with the overrides first, as Hydra's parser needs them.

    Raises UserError for a flag that this parser would refuse with a page of usage.
    """
    from hydra._internal.utils import get_args_parser

    from rdi.report import hints
    from rdi.runs.options import SCHEMAS

    def refuse(message: str) -> NoReturn:
        if "ignored explicit argument" in message:  # `--run=runs/a`: Hydra has a --run of its own
            no_flag(next(word for word in argv if word.startswith("-") and "=" in word))
        raise UserError(f"{message}: options are group=choice or key=value; see --help")

    def no_flag(word: str) -> NoReturn:
        behind = next(iter(argv[argv.index(word) + 1 :]), None)
        raise UserError(
            f"there is no flag {word.partition('=')[0]}; options are key=value: {hints.flag(command, word, behind)}"
        )

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    known, rest = parser.parse_known_args(argv)
    if flags := [word for word in rest if word.startswith("-")]:
        no_flag(flags[0])
    overrides = [*known.overrides, *rest]
    options = fields(SCHEMAS[command])
    texts = [option.name for option in options if str(option.type).startswith(("str", "list[str]"))]
    return [
        *hints.arranged(command, overrides, [option.name for option in options], conf_dir(), texts),
        *(word for word in argv if word not in overrides),
    ]


def _no_choices(words: Iterable[str]) -> list[str]:
    """The words that give a config group what no file can be called: a number, a list of lists, a mapping.

    Hydra's own options, which it reads before anything is composed, where there are none such.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found, own = [], []
    for word in words:
        key = word.lstrip("+~").partition("=")[0].partition("@")[0]
        if key.startswith("hydra."):
            own.append(word)
        if "=" not in word or not key or not (key == "sweep" or (conf_dir() / key).is_dir()):
            continue
        value = OverridesParser.create().parse_override(word).value()
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) for name in names):
            found.append(word)
    return found or own


class _Job:
    """Makes the function that Hydra calls. failures: where mistakes are collected; begun: whether a job started."""

    def __init__(self, failures: list[BaseException]) -> None:
        self.failures = failures
        self.begun = False

    def task(self, command: str) -> Callable[[Any], Any]:
        """The command with its mistakes collected (in a multirun raised, for the sweeper to collect) and bugs logged.

        The command's module, and torch with it, is imported by the first job: help and completion do not wait for it.
        """

        def work(cfg: Any) -> Any:
            from rdi.cli import _edge, _ranks

            return _ranks.run(module(command).run, command, _edge.named(command, cfg), partial(as_rank, command))

        def job(cfg: Any) -> Any:
            from hydra.core.hydra_config import HydraConfig
            from hydra.types import RunMode

            self.begun = True
            prepare()
            module(command)  # torch with it, while a signal still ends the process at once
            several = HydraConfig.get().mode == RunMode.MULTIRUN
            try:
                with signals.interrupts():
                    _refuse_after_a_signal()
                    returned = attempt(command, work, cfg)
                    _refuse_after_a_signal()  # no further job, and no claim that nothing happened
                    if several:
                        _remember(returned)
                    return returned
            except BrokenPipeError as error:
                raise ReaderGone from error  # no Exception: Hydra announces those on stderr
            except (UserError, Interrupted) as failure:
                if not isinstance(failure, Interrupted):
                    _refuse_after_a_signal()
                if not several:
                    self.failures.append(failure)
                    log_quietly(one_line(failure))
                    return None
                if isinstance(failure, Interrupted):
                    raise KeyboardInterrupt(str(failure)) from None  # no Exception: those let Hydra go on
                logger.error("job %s failed: %s", HydraConfig.get().job.num, one_line(failure))
                raise
            except Exception:
                _refuse_after_a_signal()
                log_traceback()
                if several:  # the sweep goes on, and at its end only the message is left
                    print(traceback.format_exc(), file=sys.stderr)
                raise
            finally:
                close_log_files()

        return job


def _remember(outcome: Any) -> None:
    """Note that a job of a sweep is finished, so that the next call need not compose it; without one it would."""
    from hydra.core.hydra_config import HydraConfig

    from rdi.cli import _sweeps

    hydra = HydraConfig.get()
    with contextlib.suppress(OSError):
        _sweeps.of(hydra).remember(list(hydra.overrides.task), outcome)


def _refuse_after_a_signal() -> None:
    """Raise KeyboardInterrupt if a signal came: what raised it may have lost it, and what went wrong is its work."""
    if signals.signalled():
        raise KeyboardInterrupt(INTERRUPTED)


def attempt(command: str, function: Callable[[Any], Any], cfg: Any) -> Any:
    """Call the command. Raises UserError also for configs that do not resolve, and for want of disk or memory."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from rdi.cli import _schema
    from rdi.trust import trusted

    try:
        _schema.validated(cfg)
        with trusted(cfg.trust, OmegaConf.to_container(cfg)):
            return function(cfg)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    except Exception as error:
        if isinstance(error, UserError) or (known := known_failures.explained(error, command)) is None:
            raise
        log_traceback()
        raise known from error


def completion(argv: list[str], commands: dict[str, str]) -> None:
    """Tab completion: Hydra's own, with the command name cut out of the line that is being completed."""
    if "query=" not in " ".join(argv):
        run("train", argv)  # install= and uninstall= print a script that is the same for every command
        return
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        start = words[1] if len(words) == 2 else ""
        print("\n".join(name for name in commands if name.startswith(start)))
        return
    command = words[1]
    if command in commands:
        cut = line.replace(f" {command}", "", 1)
        os.environ["COMP_POINT"] = str(len(cut))
        os.environ["COMP_LINE"] = cut
        run(command, argv)
