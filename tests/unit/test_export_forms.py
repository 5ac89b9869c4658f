"""Exports in fewer bits are other networks, and say so; one file for one image answers as the runner."""

import numpy as np
import pytest
import torch
from torch import nn

from rdi.attacks import Average, Routed
from rdi.attacks.steps import Wasserstein
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.exporting.precision import bf16, converted
from rdi.exporting.runner import Runner
from rdi.exporting.single import FILE, single_file
from rdi.exporting.stages import export_stages
from rdi.exporting.write import export
from rdi.runs.rejudging import rebuilt
from rdi.thresholds import AgreementPolicy, Confidence, EnsemblePolicy, Entropy, Margin, PatiencePolicy, ShareRule

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def small():
    """A network of three exits, images, and the ONNX files of its stages."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stages = [nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 8, 3, 1, 1), nn.ReLU())]
        heads = [nn.Sequential(nn.Flatten(), nn.Linear(width, 3)) for width in (64, 64, 128)]
        net = MultiExitNet(stages, heads).eval()
        images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    return net, images, list(export_stages(net, (1, 8, 8)))


@torch.no_grad()
def policies(net, images):
    logits = net(images / 255)
    mean = EnsemblePolicy(PatiencePolicy(3, 1), "arithmetic", [1.0, 2.0, 3.0])
    inner = ShareRule(score=Entropy()).fit_logits(mean.answers(logits))
    yield EnsemblePolicy(inner, "arithmetic", [1.0, 2.0, 3.0])
    for score in (Entropy(), Confidence(), Margin()):
        yield ShareRule(score=score).fit_logits(logits)
    yield AgreementPolicy(ShareRule(score=Confidence()).fit_logits(AgreementPolicy(inner).answers(logits)))


def test_one_file_answers_one_image_as_the_policy(small):
    net, images, stages = small
    with torch.no_grad():
        logits = net(images / 255)
    for policy in policies(net, images):
        session = onnxruntime.InferenceSession(single_file(stages, policy, 3))
        found = [session.run(None, {"image": image[None].numpy() / np.float32(255)}) for image in images]
        exits = policy.choose(logits)
        assert len(exits.unique()) > 1
        assert [k.item() for _, k, _ in found] == exits.tolist(), str(policy)
        assert [label.item() for label, _, _ in found] == policy.predict(logits, exits).tolist()
        answers = policy.answers(logits)[torch.arange(len(exits)), exits]
        np.testing.assert_allclose(np.concatenate([out for *_, out in found]), answers, rtol=1e-3, atol=1e-4)


def test_later_stages_lie_inside_the_branches(small):
    net, images, stages = small
    graph = onnx.load_from_string(single_file(stages, next(policies(net, images)), 3)).graph
    for _ in range(2):
        kinds = [node.op_type for node in graph.node]
        assert kinds.count("If") == 1
        (nested,) = (node for node in graph.node if node.op_type == "If")
        graph = next(entry.g for entry in nested.attribute if entry.name == "else_branch")
        assert "Conv" in kinds or "Relu" in kinds
    assert "If" not in [node.op_type for node in graph.node]


def test_a_threshold_is_asked_with_few_operators_and_answers_are_made_where_an_image_leaves(small):
    net, images, stages = small
    with torch.no_grad():
        policy = ShareRule(score=Entropy()).fit_logits(net(images / 255))
    graph = onnx.load_from_string(single_file(stages, policy, 3)).graph
    for _ in range(2):
        asked = [node.op_type for node in graph.node if node.name.startswith("decision_")]
        assert 5 <= len(asked) <= 8, "of the last logits alone"
        assert not {"ArgMax", "Concat"} & set(asked)
        (branches,) = (node.attribute for node in graph.node if node.op_type == "If")
        leave, graph = (
            next(entry.g for entry in branches if entry.name == f"{name}_branch") for name in ("then", "else")
        )
        assert "ArgMax" in [node.op_type for node in leave.node]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fewer_bits_are_another_network_and_say_so(precision, small, tmp_path):
    net, images, _ = small
    policy = next(policies(net, images))
    found = export(
        net,
        policy,
        images,
        tmp_path / "export",
        precision=precision,
        calibration=images,
        single=True,
        judge=lambda run, found: {
            "clean": {"accuracy": run(images.numpy()).labels.tolist() == found["labels"], "of_the_network": 1.0},
            "worst_case": {"images": 0},
            "certified": {"says": "none"},
        },
    )
    with torch.no_grad():
        size = float(net(images / 255).abs().max())
    assert 0 < found["largest_logit_difference"] < 0.2 * size
    assert found["judged"]["clean"]["accuracy"] is True, "judged on the export as it is written"
    run = Runner(tmp_path / "export")
    assert (run.policy["precision"], found["precision"]) == (precision, precision)
    stored = np.load(tmp_path / "export" / "examples.npz")
    assert run(stored["images"]).exits.tolist() == stored["exits"].tolist(), "the examples are of the export itself"
    session = onnxruntime.InferenceSession(tmp_path / "export" / FILE)
    one = [session.run(None, {"image": image[None].numpy() / np.float32(255)}) for image in images[:16]]
    same = [k.item() == exit_ for (_, k, _), exit_ in zip(one, stored["exits"], strict=True)]
    assert np.mean(same) >= 0.5, "inside branches the runtime may fuse other operators, and round otherwise"
    labels = [label.item() == label_ for (label, _, _), label_ in zip(one, stored["labels"], strict=True)]
    both = [a and b for a, b in zip(same, labels, strict=True)]
    page = (tmp_path / "export" / "README.md").read_text()
    assert f"`{FILE}` is all of it in one graph, for one image at a time" in page
    assert found["single"] == {"images": 16, "labels_and_exits_equal": sum(both)}
    assert f"`{FILE}`, on the examples: {sum(both)} of 16 with the label and exit of the stages." in page
    graph = onnx.load(tmp_path / "export" / "stage_2.onnx").graph
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    if precision == "bf16":
        assert kinds == {onnx.TensorProto.BFLOAT16}
    else:
        assert kinds == {onnx.TensorProto.INT8}
        scales = [len(onnx.numpy_helper.to_array(t).ravel()) for t in graph.initializer if t.name.endswith("_scale")]
        assert 8 in scales, "one scale per output channel"
        weights = [onnx.numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) > 1]
        assert max(abs(w.astype(int)).max() for w in weights) <= 64, "processors without VNNI saturate with 8 bits"


def test_bfloat16_rounds_as_torch():
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1e30, 1e-40])])
    bits = values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert bf16(values.numpy()).tolist() == bits.tolist()


def test_no_images_to_calibrate_on_are_refused(small):
    with pytest.raises(UserError, match="precision=int8 needs calibration images, and there are none"):
        converted(small[2], "int8", np.zeros((0, 1, 8, 8), np.float32))


def test_an_attack_is_rebuilt_from_what_its_bank_says_or_not_at_all(small):
    policy = next(policies(small[0], small[1]))
    ball = {"eps": 0.1, "step_size": 0.025, "steps": 3}
    for attack in (Average(**ball, restarts=2), Routed(**ball, warmup=0.25).for_policy(policy)):
        again = rebuilt(attack.identity(), policy)
        assert again is not None
        assert again.identity() == attack.identity()
    assert rebuilt(Average(**ball, rule=Wasserstein()).identity(), policy) is None
    assert rebuilt(Routed(**ball).for_policy(PatiencePolicy(3, 1)).identity(), policy) is None, (
        "aimed at another policy"
    )
    assert rebuilt({"attack": "Mine", **ball}, policy) is None
