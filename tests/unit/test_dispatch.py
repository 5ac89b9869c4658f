"""What the console script does before and around a command; whole commands are in tests/e2e."""

import contextlib
import os
import signal
import time
from functools import partial

import pytest

from rdi import memory, signals
from rdi.cli import COMMANDS, _hydra, main
from rdi.errors import UserError
from rdi.runs import devices, provenance
from rdi.runs.identity import UNCOMPRESSED, difference, identity


@pytest.fixture(autouse=True)
def no_signal_left():
    """A signal that a test sent stops no training of the tests behind it."""
    yield
    signals.reset()


def test_help_names_every_command_and_no_arguments_mean_help(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in COMMANDS)
    main([])
    assert capsys.readouterr().out == shown


def test_every_command_has_a_module_with_run():
    assert all(callable(_hydra.module(command).run) for command in COMMANDS)


@pytest.mark.parametrize(
    ("typed", "hint"), [("trian", "did you mean `rdi train`"), ("xyz", "choose one of run, train")]
)
def test_a_command_that_does_not_exist_exits_with_2_and_a_hint(typed, hint, capsys):
    with pytest.raises(SystemExit) as caught:
        main([typed])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1


def test_the_version_is_that_of_the_package(capsys):
    main(["--version"])
    assert capsys.readouterr().out.startswith("rdi 0.")


def test_the_first_difference_of_two_configs_is_named():
    old = {"run": "a", "data": {"root": "x", "test": 9}, "seed": 0, "threat": {"eps": 0.1, "steps": 5}}
    assert difference(old, {**old, "run": "b"}) == "", "where it lies is no difference"
    assert difference(old, {**old, "data": {"root": "y", "test": 9}}) == ""
    assert difference(old, {**old, "seed": 1}) == "seed: 0 -> 1"
    assert difference(old, {**old, "threat": {"eps": 0.1, "steps": 6}}) == "threat.steps: 5 -> 6"
    assert difference(old, {**old, "extra": 1}) == "extra: None -> 1"


def test_an_option_that_older_runs_did_not_have_leaves_them_what_they_are():
    old = {"data": {"test": 9}, "seed": 0}
    new = {**old, "data": {"test": 9, "validation": 0}, "split": "test", "compression": UNCOMPRESSED}
    assert identity(old) == identity(new)
    held = {**new, "data": {"test": 9, "validation": 5}}
    assert identity(held) != identity(new)
    assert difference(old, held) == "data.validation: None -> 5"


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_the_first_signal_sets_the_flag_and_the_handlers_come_back(number, request):
    # under nohup SIGHUP is ignored, and stays so
    request.addfinalizer(partial(signal.signal, number, signal.getsignal(number)))
    signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    signals.reset()
    before = signal.getsignal(number)
    with signals.stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert signal.getsignal(number) == before, "the second signal ends the process"
    assert signal.getsignal(number) == before
    signals.reset()


@pytest.mark.parametrize("patient", [False, True])
def test_who_waits_for_a_step_to_end_is_told_so_once(patient, monkeypatch, caplog):
    monkeypatch.setattr(signals, "PATIENCE", 0.05)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # survives the second one where it is not patient
    signals.reset()
    try:
        with signals.stop_on_signals(patient=patient) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):
                if caplog.messages:
                    break
                time.sleep(0.05)
            assert stop()
        more = "" if patient else "; another signal ends at once and loses what is not saved"
        assert caplog.messages == [f"stopping after this step or batch{more}"]
        with signals.stop_on_signals(patient=patient):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert len(caplog.messages) == 1, "a step that ended in time is not waited for"
    finally:
        signal.signal(signal.SIGTERM, before)
        signals.reset()


def test_a_signal_is_not_forgotten_when_its_exception_is_lost():
    signals.reset()
    with signals.interrupts():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.signalled()
        with signals.stop_on_signals() as stop:
            assert stop()
    signals.reset()


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.interrupts(), signals.stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_unwinds_where_nothing_else_handles_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="the same command starts again"), signals.interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_devices_that_are_not_there_are_refused_in_one_line():
    assert devices.select("cpu", None).type == "cpu"
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(UserError, match=f"device={name} is not here") as caught:
            devices.select(name, None)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="threads must be at least 1"):
        devices.select("cpu", 0)


def test_freed_memory_is_kept_on_linux_and_nothing_happens_elsewhere(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False


def test_the_environment_of_a_number_is_recorded():
    found = provenance.environment(devices.select("cpu", None))
    assert {"python", "torch", "numpy", "hydra-core"} <= set(found.versions)
    assert found.device.startswith("cpu")
    assert found.threads == 1


def test_a_signal_waits_for_the_outermost_block_that_must_not_be_half_done():
    done = []

    def signalled_inside():
        with signals.interrupts(), signals.deferred():
            with signals.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt, match="terminated"):
        signalled_inside()
    assert done == ["inner", "outer"]
