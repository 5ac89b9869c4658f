"""A signal at any moment: exit status 130, one line, no traceback, no lock left behind."""

import random
import signal
import subprocess
import sys
import time

import pytest

from helpers.commands import TINY, environment, start


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
