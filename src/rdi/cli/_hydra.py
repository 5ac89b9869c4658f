"""Run one command under Hydra, and turn everything that a user can mend into one line and exit status 2."""

from __future__ import annotations

import errno
import functools
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from rdi.errors import Interrupted, UserError

logger = logging.getLogger("rdi")


def conf_dir() -> Path:
    """The conf/ folder: inside the package (wheel), else at the repository root (editable install)."""
    packaged = Path(str(files("rdi") / "conf"))
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "conf"


def module(command: str) -> Any:
    """The module of a command; `import` is a keyword, hence the suffix."""
    return importlib.import_module(f"rdi.cli.{command}{'_' if command == 'import' else ''}")


def run(command: str, argv: list[str]) -> None:
    """Compose the config of `command` from conf/ and `argv` and run it."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rdi.cli import _schema

    _schema.register()
    _console()
    # Hydra warns when a user's searchpath entry is absent or a version is old: not the user's concern here
    warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    sys.argv = [sys.argv[0], *argv]
    debug = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing
    failures: list[BaseException] = []
    task = _guarded(module(command).run, failures)
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException, UserError, Interrupted) as error:
        failures.append(error)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = "1" if debug else "0"
    if not failures:
        return
    failure = failures[0]
    if debug:
        raise failure
    if isinstance(failure, Interrupted):
        print(f"\nrdi {command}: {failure}", file=sys.stderr)
        raise SystemExit(130)
    print(f"rdi {command}: error: {one_line(failure)}", file=sys.stderr)
    raise SystemExit(2)


def one_line(error: BaseException) -> str:
    """What is wrong and what to type next, out of an exception of ours, of Hydra's or of OmegaConf's."""
    if isinstance(error, UserError):
        return str(error)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if "Available options" in str(error):
        start = next(i for i, line in enumerate(lines) if "Available options" in line)
        options = [line for line in lines[start + 1 :] if " " not in line]
        message += f"; choose one of {', '.join(options)}"
    if error.__cause__ is not None and str(error.__cause__).strip():
        message += f" ({str(error.__cause__).strip().splitlines()[0]})"
    if "is not in struct" in message or "not in '" in message:
        message += " " + " ".join(line for line in lines[1:] if line.startswith("To append"))
        message = message.split(" To append")[0] + "; see the options with --help or --cfg job"
    if "Ambiguous value" in message:
        message += "; add -m to run every value, or quote a list as 'key=[1,2]'"
    return message


def _guarded(function: Callable[[Any], Any], failures: list[BaseException]) -> Callable[[Any], Any]:
    """The command with its mistakes collected (single run) or raised (multirun), and bugs logged."""

    @functools.wraps(function)
    def job(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from rdi.cli import _schema

        try:
            return function(_schema.validated(cfg))
        except (UserError, Interrupted) as error:
            failure: UserError | Interrupted = error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                _log_traceback()
                raise
            failure = UserError(
                f"cannot write: {error.strerror}{f' ({error.filename})' if error.filename else ''}; "
                "make room or choose another folder, then run the same command again"
            )
        except Exception:
            _log_traceback()
            raise
        finally:
            _close_log_files()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            if isinstance(failure, UserError):
                logger.error("job %s failed: %s", HydraConfig.get().job.num, failure)
            raise failure
        failures.append(failure)
        return None

    return job


class _LogFile(logging.FileHandler):
    """The log.txt of a run folder; a class of its own so that it can be found and closed."""


def log_to(path: Path) -> None:
    """From now to the end of the job, log to this file too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)


def _log_traceback() -> None:
    for handler in logger.handlers:
        if isinstance(handler, _LogFile) and handler.stream is not None:
            handler.stream.write(traceback.format_exc())


def _close_log_files() -> None:
    for handler in list(logger.handlers):
        if isinstance(handler, _LogFile):
            logger.removeHandler(handler)
            handler.close()


def _console() -> None:
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


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
