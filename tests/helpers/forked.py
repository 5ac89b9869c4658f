"""Commands in processes of their own that begin with torch imported: forked from one that imported it for all."""

import os
import runpy
import shlex
import subprocess
import sys
import threading
import warnings

import torch.multiprocessing as mp

from helpers.commands import environment

CONTEXT = mp.get_context("forkserver")
# torch imports its compiler at the first step of an optimizer
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "rdi.training", "rdi.cli.train"])


def _be(words, variables, place, ends):
    """Be `python -m rdi WORDS`."""
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(place)
    warnings.simplefilter("ignore")
    sys.argv = ["rdi", *words]
    runpy.run_module("rdi", run_name="__main__", alter_sys=True)


class Forked:
    """`rdi LINE`, with what tests need of subprocess.Popen. more: variables of its environment."""

    def __init__(self, line, **more):
        ours, theirs = zip(*(CONTEXT.Pipe(duplex=False) for _ in range(2)), strict=True)
        arguments = shlex.split(line), environment(**more), os.getcwd(), theirs
        # a daemon: what a failed test leaves behind is stopped at the end, and not waited for
        self.process = CONTEXT.Process(target=_be, args=arguments, daemon=True)
        self.process.start()
        self.pid, self.kill = self.process.pid, self.process.kill
        for end in theirs:
            end.close()
        self.stdout, self.stderr = self.streams = [os.fdopen(os.dup(end.fileno())) for end in ours]

    @property
    def returncode(self):
        """Exit status, -N after signal N, None while it runs."""
        return self.process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def communicate(self, timeout=None):
        """Wait for its end; what is left to read of stdout and stderr."""
        said = ["", ""]

        def read(number):
            said[number] = self.streams[number].read()

        readers = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(2)]
        for reader in readers:
            reader.start()
        for one in (*readers, self.process):
            one.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("rdi", timeout)
        return said
