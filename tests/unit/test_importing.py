"""The authors' names for the tensors of ResNet-38, written down by hand, land where they belong."""

import pytest
import torch

from rdi.backbones import resnet, smallcnn
from rdi.errors import UserError
from rdi.exits import PaperExits
from rdi.importing import official_state, our_names
from rdi.runs.foreign import import_state


def official_names(net, per_group):
    """Our tensors under the names of the released checkpoint, by walking the modules instead of renaming strings."""
    state = {}
    blocks = [block for stage in net.stages for block in stage]

    def put(prefix, module):
        for name, tensor in module.state_dict().items():
            if not name.endswith("num_batches_tracked"):  # released before BatchNorm counted its batches
                state[f"module.{prefix}.{name}"] = tensor.clone()

    put("conv1", blocks[0][0])
    put("bn1", blocks[0][1])
    for index, block in enumerate(blocks[1:]):
        prefix = f"group{index // per_group + 1}_layer{index % per_group}"
        for part in ("conv1", "bn1", "conv2", "bn2"):
            put(f"{prefix}.{part}", getattr(block, part))
        if not isinstance(block.shortcut, torch.nn.Identity):
            put(f"{prefix}.downsample", block.shortcut)
    for k, head in enumerate(net.heads[:-1]):
        for position, module in enumerate(head):
            put(f"branch_layer{k + 1}.{position}", module)
    put("fc", net.heads[-1][2])
    return state


@pytest.fixture(scope="module")
def released():
    torch.manual_seed(0)
    net = PaperExits()(resnet((3, 32, 32), 10, depth=38))
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 0.2)
    return net, official_names(net, per_group=6)


def fresh():
    torch.manual_seed(1)
    return PaperExits()(resnet((3, 32, 32), 10, depth=38))


def saved(tmp_path, content):
    path = tmp_path / "official.pth.tar"
    torch.save(content, path)
    return path


def taken_over(net, state):
    import_state(net, our_names(net, state))


def test_every_released_tensor_lands_in_its_place(released, tmp_path):
    source, state = released
    net = fresh()
    path = saved(tmp_path, {"iteration": 60_000, "state_dict": state, "best_prec1": 0})
    taken_over(net, official_state(path))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_a_state_dict_alone_and_names_without_module_are_fine_too(released, tmp_path):
    _, state = released
    loaded = official_state(saved(tmp_path, state))
    assert not any(name.startswith("module.") for name in loaded)
    again = official_state(saved(tmp_path, loaded))
    assert again.keys() == loaded.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "fc.bias" not in k}, "belong to another network"),
        (lambda s: {**s, "module.fc.bias": torch.zeros(100)}, "belong to another network"),
        (lambda s: {**s, "module.extra.weight": torch.zeros(1)}, "'extra.weight'"),
        (lambda s: {k: v for k, v in s.items() if "group3_layer5" not in k}, "17 residual blocks, this network 18"),
    ],
)
def test_checkpoints_of_other_networks_are_refused(change, message, released, tmp_path):
    state = official_state(saved(tmp_path, change(released[1])))
    with pytest.raises(UserError, match=message):
        taken_over(fresh(), state)


def test_another_backbone_is_refused(released, tmp_path):
    with pytest.raises(UserError, match="18 residual blocks"):
        our_names(PaperExits()(smallcnn((1, 28, 28), 10)), official_state(saved(tmp_path, released[1])))


class Danger:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("ran",))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, capsys):
    with pytest.raises(UserError, match="cannot be loaded safely"):
        official_state(saved(tmp_path, {"state_dict": {"fc.weight": Danger()}}))
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"fc.weight": 3}}, {"epoch": 3}])
def test_files_without_a_state_dict_are_refused(content, tmp_path):
    with pytest.raises(UserError, match="no state_dict of plain tensors"):
        official_state(saved(tmp_path, content))


def test_missing_and_truncated_files_are_refused(released, tmp_path):
    with pytest.raises(UserError, match="does not exist: give checkpoint=FILE"):
        official_state(tmp_path / "nowhere")
    path = saved(tmp_path, released[1])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded safely"):
        official_state(path)
