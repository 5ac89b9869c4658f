"""Weights from elsewhere: every tensor in its place whatever file it came in, and one line where that cannot be."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rdi.errors import UserError
from rdi.exits import normalised
from rdi.runs.foreign import import_state, read_state


def prefixed(state, *words):
    return {".".join([*words, name]): tensor for name, tensor in state.items()}


FILES = {
    "safetensors": lambda state, path: save_file(state, path),
    "torch": torch.save,
    "safetensors under another name": lambda state, path: save_file(prefixed(state, "module"), path),
    "DataParallel in a training's file": lambda state, path: torch.save(
        {"epoch": 3, "state_dict": prefixed(state, "module"), "optimizer": {"lr": 0.1}}, path
    ),
    "compiled DataParallel": lambda state, path: torch.save(
        {"model_state_dict": prefixed(state, "_orig_mod", "module")}, path
    ),
    "Lightning": lambda state, path: torch.save({"state_dict": prefixed(state, "model")}, path),
    "half precision, without counters": lambda state, path: torch.save(
        {name: tensor.half() for name, tensor in state.items() if "num_batches" not in name}, path
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_tensor_lands_in_its_place(kind, tiny, tmp_path):
    source, net, path = tiny(), tiny(seed=1), tmp_path / "mine.bin"
    FILES[kind](source.state_dict(), path)
    import_state(net, read_state(path))
    rounding = {"rtol": 1e-3, "atol": 1e-3} if "half" in kind else {"rtol": 0, "atol": 0}
    for name, tensor in source.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(net.state_dict()[name], tensor, **rounding)


def test_a_network_that_normalises_takes_weights_with_and_without_its_normalisation(tiny):
    source = tiny()
    twin = normalised(tiny(), [0.3], [0.2])
    for state in (source.state_dict(), twin.state_dict()):
        net = normalised(tiny(seed=1), [0.5], [0.25])
        import_state(net, state)
        x = torch.rand(2, 1, 8, 8)
        mean, std = (0.5, 0.25) if state.keys() == source.state_dict().keys() else (0.3, 0.2)
        torch.testing.assert_close(net.eval()(x), source((x - mean) / std))


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


BIAS = "heads.0.3.bias"
MISFITS = [
    (lambda s: without(s, BIAS), rf"missing in the file: {BIAS}\)"),
    (lambda s: without(without(s, BIAS), "heads.1.3.bias"), f"missing in the file: {BIAS} and 1 more"),
    (lambda s: {**s, "fc.weight": torch.zeros(1)}, "not known to the network: fc.weight"),
    (lambda s: {**s, BIAS: torch.zeros(10)}, f"{BIAS} is 10 in the file, 4 in the network"),
    (lambda s: {"conv1.weight": torch.zeros(1)}, r"missing in the file: stages.0.0.weight and \d+ more; not known to"),
    (lambda s: {**s, BIAS: torch.full((4,), torch.nan)}, f"{BIAS} holds NaN or infinity"),
    (lambda s: {**s, BIAS: torch.ones(4, dtype=torch.int8)}, f"{BIAS} is of torch.int8 in the file, and weights are"),
    (lambda s: {**s, BIAS: torch.ones(4, dtype=torch.complex64)}, f"{BIAS} is of torch.complex64 in the file"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_weights_that_do_not_fit_are_refused_in_one_line(change, message, tiny):
    net = tiny()
    with pytest.raises(UserError, match=message) as caught:
        import_state(net, change(tiny(seed=1).state_dict()))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, tiny().state_dict()[name]) for name, tensor in net.state_dict().items())


class Danger:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("ran",))


BROKEN = [
    (lambda path, net: torch.save(net, path), "cannot be loaded safely: it wants to run code"),
    (lambda path, net: torch.save({"state_dict": {"a": Danger()}}, path), "cannot be loaded safely"),
    (lambda path, net: path.write_bytes(pickle.dumps(Danger())), "cannot be loaded safely"),
    (lambda path, net: torch.save([1, 2], path), "no state_dict of plain tensors"),
    (lambda path, net: torch.save({"epoch": 3}, path), "no state_dict of plain tensors"),
    (lambda path, net: torch.save({"a": torch.eye(2).to_sparse()}, path), "no state_dict of plain tensors"),
    (lambda path, net: torch.save({"a": torch.eye(2, device="meta")}, path), "no state_dict of plain tensors"),
    (lambda path, net: torch.save({}, path), "holds no tensors"),
    (lambda path, net: path.write_bytes(b""), "cannot be loaded safely"),
    (lambda path, net: path.write_bytes(b"\x09" + b"\0" * 7 + b"{broken}"), "is damaged or not a safetensors file"),
    (lambda path, net: path.mkdir(), "is no file"),
    (lambda path, net: None, "does not exist: give weights=FILE"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN)
def test_files_that_are_no_weights_are_refused_and_run_nothing(make, message, tmp_path, capsys):
    path = tmp_path / "file.pt"
    make(path, nn.Linear(2, 2))
    with pytest.raises(UserError, match=message) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out
