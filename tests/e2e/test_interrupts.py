"""A signal at any moment: exit status 130, one line, no traceback, no lock left behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers.commands import TINY, environment, start
from helpers.mistakes import snapshot


def ready():
    """How long the interpreter needs to reach the command line's first line: before that nobody can handle a signal."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import rdi.cli"], env=environment(), check=True)
    return time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["SIGINT", "SIGHUP"])
@pytest.mark.parametrize("line", ["train --cfg job", f"train run=run {TINY}", f"train -m run=a,b {TINY}"])
def test_a_signal_at_any_moment_is_one_line(line, number, tmp_path):
    chance = random.Random(f"{line} {number}")
    first = ready()
    for _ in range(3):
        process = start(line)
        time.sleep(2 * first + chance.random() * 4 * first)
        running = process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in err, err
        assert "_invalidate_flags_cache" not in err
        said = [text for text in err.splitlines() if text.startswith("rdi")]
        if running and process.returncode != 0:  # 0: it had come to its end
            assert process.returncode == 130, (process.returncode, out, err)
            assert len(said) == 1, err
            assert "interrupted" in said[0] or "terminated" in said[0] or "stopped" in said[0]
        assert not list(tmp_path.rglob(".lock"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_python_frees_its_modules_does_not_end_a_finished_command(number):
    program = f"""
import os, sys
class Late:
    def __del__(self, kill=os.kill, process=os.getpid()):
        kill(process, {int(number)})
late = Late()
sys.argv = ["rdi", "--version"]
from rdi.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done
    assert done.stdout.startswith("rdi ")
    assert not done.stderr


def results(folder):
    """What a command leaves, but for the log and the records that say how long it took."""
    timed = ("log.txt", "average_fgsm/manifest.json", "eps0.02.json")
    return {name: digest for name, digest in snapshot(folder).items() if not name.endswith(timed)}


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("certify run=runs/demo samples=4 threads=1 threat.eps=0.02", signal.SIGINT),
        ("evaluate run=runs/demo tracking=none threshold=confidence", signal.SIGTERM),
        ("attack run=runs/demo attack=average_fgsm samples=4 threads=1 tracking=none", signal.SIGHUP),
        ("pareto runs=[runs/demo] tracking=none ratios=2", signal.SIGINT),
    ],
)
def test_a_signal_while_a_file_is_put_in_place_costs_nothing(line, number, rdi, demo, monkeypatch, tmp_path):
    replace, calls = os.replace, []

    def counted(*places):
        replace(*places)
        calls.append(places)
        if len(calls) == stop:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(os, "replace", counted)
    shutil.copytree("runs", "before")
    stop = 0
    assert rdi(line).status == 0
    whole, moments = results(tmp_path), range(1, len(calls) + 1)
    assert moments
    stop = random.Random(f"{line} {number}").choice(moments)
    for left in ("runs", "reports"):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree("before", "runs")
    calls.clear()
    result = rdi(line)
    assert result.status == 130, (stop, result.err)
    assert len(result.errors) == 1, result.err
    assert not list(tmp_path.rglob(".lock"))
    stop = 0
    assert rdi(line).status == 0
    assert results(tmp_path) == whole
