"""Who asks for bf16 on a processor without it is told, once, that it is slower there."""

import logging
import platform

import pytest
import torch
from torch import nn

from rdi import emulation
from rdi.attacks.engine import Engine
from rdi.exits import MultiExitNet
from rdi.training_settings import autocast

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    """Set what torch says of the processor."""

    def of(instructions, machine="x86_64"):
        emulation._say.cache_clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
        monkeypatch.setattr(platform, "machine", lambda: machine)

    yield of
    emulation._say.cache_clear()


def network():
    return MultiExitNet([nn.Flatten()], [nn.Linear(4, 2)])


@pytest.mark.parametrize(
    ("instructions", "machine", "slow"),
    [("AVX2", "x86_64", True), ("NO AVX", "AMD64", True), ("AVX512", "x86_64", False), ("DEFAULT", "arm64", False)],
)
def test_processors_without_bfloat16_are_known(processor, instructions, machine, slow):
    processor(instructions, machine)
    assert emulation.emulated(CPU) is slow
    assert not emulation.emulated(torch.device("meta"))


def test_training_and_crafting_in_bf16_say_so_once(processor, caplog):
    processor("AVX2")
    with caplog.at_level(logging.WARNING, "rdi"):
        with autocast(CPU, "float32"):
            Engine().copy(network())
        assert not caplog.messages
        for _ in range(2):
            Engine(precision="bf16").copy(network())
        assert len(caplog.messages) == 1
        assert "no bf16 instructions" in caplog.text
        processor("AVX2")
        with autocast(CPU, "bf16"):
            assert len(caplog.messages) == 2
        processor("AVX512")
        with autocast(CPU, "bf16"):
            assert len(caplog.messages) == 2
