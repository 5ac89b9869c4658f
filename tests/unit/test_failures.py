"""What is the machine's and no bug is told as one line; bugs are left alone."""

import errno
import os

import numpy as np
import pytest
import torch

from rdi.failures import explained
from rdi.report.hints import shortened


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - {errno.EPIPE, errno.ESHUTDOWN, errno.ENOMEM}))
def test_every_error_of_the_operating_system_is_one_line(number):
    error = OSError(number, os.strerror(number), "some/file")
    said = str(explained(error, "train"))
    assert "some/file" in said
    assert os.strerror(number) in said
    assert "; " in said
    assert "\n" not in said


MEMORY = [
    MemoryError(),
    RuntimeError("could not create a primitive"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("std::bad_alloc"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=repr)
def test_short_memory_asks_for_smaller_batches(error):
    assert "smaller optim.batch_size=" in str(explained(error, "train"))
    said = str(explained(error, "attack"))
    assert "smaller batch_size=" in said
    assert "\n" not in said


def test_what_torch_and_numpy_really_say_of_short_memory():
    for greedy in (lambda: torch.empty(2**50), lambda: np.empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            greedy()
        assert "out of memory" in str(explained(caught.value, "health"))


@pytest.mark.parametrize(
    "bug", [KeyError("x"), RuntimeError("shapes differ"), ValueError("no"), BrokenPipeError(32, "x")]
)
def test_a_bug_is_no_failure_of_the_machine(bug):
    assert explained(bug, "train") is None


def test_a_long_word_loses_its_middle_and_the_line_keeps_the_rest():
    line = f"seed={'a' * 3000}z must be a number"
    assert len(shortened(line)) < 400
    assert shortened(line).endswith("z must be a number")
    assert shortened("a short line") == "a short line"
