"""What is exported answers as the network, in onnxruntime, without torch; what does not fit is refused in a line."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rdi
from helpers.calibration import calibration
from helpers.composing import composed
from rdi import macs
from rdi.adaptive import AdaptivePredictor
from rdi.backbones import mobilenetv2, resnet, smallcnn
from rdi.cli._hydra import conf_dir
from rdi.config import build
from rdi.errors import UserError
from rdi.exits import MultiExitNet, attach, normalised
from rdi.exporting import parity, runner
from rdi.exporting.policies import decision_of
from rdi.exporting.runner import ExportError, Runner
from rdi.exporting.write import export
from rdi.storage import json_bytes, sha256
from rdi.thresholds import (
    AgreementPolicy,
    Confidence,
    EnsemblePolicy,
    Entropy,
    Margin,
    PatiencePolicy,
    RandomisedPolicy,
    ShareRule,
    ThresholdPolicy,
)

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

NETS = {
    "smallcnn": ((1, 20, 20), lambda shape: smallcnn(shape, 10), 1),
    "resnet20": ((3, 16, 16), lambda shape: resnet(shape, 10, depth=20), 3),
    "mobilenetv2": ((3, 16, 16), lambda shape: mobilenetv2(shape, 10), 3),
}
IMAGES = 24


def network(name, settle):
    """A backbone with some of the paper's exits, random weights everywhere, in eval mode; and uint8 images."""
    shape, make, every = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = make(shape)
        net = normalised(attach(backbone, backbone.paper_exits[::every]), [0.4] * shape[0], [0.3] * shape[0])
        for module in net.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        images = torch.randint(256, (IMAGES, *shape), dtype=torch.uint8)
    return settle(net, images / 255), images


def between(net, images, score):
    """Thresholds that use every exit and lie half-way between two images, so that rounding decides nothing."""
    with torch.no_grad():
        return ShareRule(score=score).fit_logits(net(images / 255))


@pytest.fixture(scope="module", params=NETS)
def exported(request, tmp_path_factory, settle):
    """(network, images, folder of its export) for each backbone."""
    net, images = network(request.param, settle)
    folder = tmp_path_factory.mktemp("export") / request.param
    found = export(net, between(net, images, Entropy()), images, folder)
    assert (found["labels_and_exits_equal"], found["unexplained"]) == (IMAGES, [])
    assert found["largest_logit_difference"] < 1e-3
    return net, images, folder


def with_policy(folder, policy, place):
    """The export with another exit policy in its policy.json."""
    copy = Path(shutil.copytree(folder, place / "copy", dirs_exist_ok=True))
    content = json.loads((copy / "policy.json").read_text())
    content["decision"], content["combine"] = decision_of(policy)
    (copy / "policy.json").write_bytes(json_bytes(content))
    return Runner(copy)


def judge(logits_NEL, policy):
    """Return (labels_N, exits_N) of stored logits of all exits, as if the images ran."""
    exits = logits_NEL.shape[1]
    answers = runner.combined(logits_NEL, policy["combine"], exits)
    left = np.full(len(logits_NEL), exits - 1)
    for k in range(exits - 2, -1, -1):
        left = np.where(runner.leaves(answers[:, : k + 1], policy, exits), k, left)
    return answers[np.arange(len(left)), left].argmax(axis=1), left


def policies(net, images):
    """One of every kind that exports, fitted so that every exit is used."""
    for score in (Entropy(), Confidence(), Margin()):
        yield between(net, images, score)
    yield PatiencePolicy(net.exits, 1)
    weights = [1.0 + k for k in range(net.exits)]
    for mean in ("geometric", "arithmetic"):
        empty = EnsemblePolicy(ThresholdPolicy(Entropy(), [0.0] * (net.exits - 1)), mean, weights)
        with torch.no_grad():
            inner = ShareRule(score=Entropy()).fit_logits(empty.answers(net(images / 255)))
        yield EnsemblePolicy(inner, mean, weights)
    if net.exits > 2:
        with torch.no_grad():
            together = AgreementPolicy(ThresholdPolicy(Entropy(), [0.0] * (net.exits - 1))).answers(net(images / 255))
        inner = ShareRule(score=Confidence()).fit_logits(together)
        yield from (AgreementPolicy(inner), EnsemblePolicy(AgreementPolicy(PatiencePolicy(net.exits, 1))))


def test_the_runner_answers_as_the_predictor_under_every_policy(exported, tmp_path):
    net, images, folder = exported
    for policy in policies(net, images):
        run = with_policy(folder, policy, tmp_path)
        ours = AdaptivePredictor(net, policy, compaction="always")(images / 255)
        if not isinstance(policy, PatiencePolicy):
            assert len(set(ours.exits.tolist())) > 1, "images leave at different exits"
        for given in (images.numpy(), images.numpy() / np.float32(255)):
            theirs = run(given)
            assert theirs.exits.tolist() == ours.exits.tolist(), str(policy)
            assert theirs.labels.tolist() == ours.labels.tolist(), str(policy)
            assert theirs.macs.tolist() == ours.macs.tolist()
        one = [run(images[n : n + 1].numpy()) for n in range(5)]
        assert [int(found.exits[0]) for found in one] == ours.exits[:5].tolist()


def test_the_files_say_what_they_are(exported):
    import onnx

    net, images, folder = exported
    policy = json.loads((folder / "policy.json").read_text())
    costs = AdaptivePredictor(net, between(net, images, Entropy())).costs(images.shape[1:]).macs
    assert np.cumsum([stage["macs"] for stage in policy["stages"]]).tolist() == list(costs)
    for k, stage in enumerate(policy["stages"]):
        assert (folder / stage["file"]).stat().st_size == stage["bytes"]
        graph = onnx.load(folder / stage["file"])
        assert [(one.domain, one.version) for one in graph.opset_import] == [("", policy["stage_format"]["opset"])]
        assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
        outputs = [one.name for one in graph.graph.output]
        assert outputs == (["logits"] if k == net.exits - 1 else ["next_features", "logits"])
        assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch is dynamic"
    page = (folder / "README.md").read_text()
    assert all(repr(value) in page for value in policy["decision"]["thresholds"])


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "rdi"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
"""


def without_torch(code, folder):
    """Run code in a folder, in a Python that has neither torch nor rdi."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_the_readme_run_without_torch(exported):
    net, images, folder = exported
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    policy = between(net, images, Entropy())
    ours = AdaptivePredictor(net, policy)(images[:16] / 255)
    arrays = [ours.labels, ours.exits, ours.macs]
    assert without_torch(code, folder).split() == " ".join(str(one.numpy()) for one in arrays).split()
    said = without_torch("import runner; print(runner.main())", folder)
    assert said.startswith("16 of 16 examples leave at the stored exit with the stored label")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny export, its network and images."""
    torch.manual_seed(0)
    stages = [nn.Conv2d(1, 4, 3, 2, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())]
    net = MultiExitNet(stages, [nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2)]).eval()
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    folder = tmp_path_factory.mktemp("small") / "export"
    export(net, between(net, images, Entropy()), images, folder)
    return net, images, folder


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), r"images must be \(N, 1x8x8\), channels first, got .*\(2, 3, 8, 8\)"),
        (np.zeros((2, 1, 9, 8), np.uint8), r"images must be \(N, 1x8x8\)"),
        (np.zeros((1, 8, 8), np.uint8), r"images must be \(N, 1x8x8\)"),
        (np.full((2, 1, 8, 8), 200.0), r"got 200 to 200: divide grey levels by 255, or give uint8"),
        (np.full((2, 1, 8, 8), np.nan), r"must lie in \[0, 1\]"),
        (np.full((2, 1, 8, 8), -0.1, np.float32), r"must lie in \[0, 1\]"),
        (np.zeros((2, 1, 8, 8), np.int64), r"float in \[0, 1\] or uint8, got int64"),
    ],
)
def test_other_images_are_refused(images, said, small):
    with pytest.raises(ExportError, match=said) as error:
        Runner(small[2])(images)
    assert "\n" not in str(error.value)


def test_a_network_in_training_is_exported_as_it_answers_and_left_in_training(small, tmp_path):
    net, images, _ = small
    policy = between(net, images, Entropy())
    net.train()
    try:
        found = export(net, policy, images, tmp_path / "export")
        assert all(module.training for module in net.modules())
    finally:
        net.eval()
    assert (found["labels_and_exits_equal"], found["unexplained"]) == (20, [])
    with np.load(tmp_path / "export" / "examples.npz") as stored, torch.no_grad():
        np.testing.assert_allclose(stored["logits"], net(images[:16] / 255).numpy(), atol=1e-5)


def test_weights_that_the_runner_does_not_take_are_refused_in_one_line(small, tmp_path):
    net, images, _ = small
    policy = EnsemblePolicy(between(net, images, Entropy()), "geometric", [1e-31, 1])
    with pytest.raises(UserError, match="weights of an ensemble may be 1e-30 to") as error:
        export(net, policy, images, tmp_path / "export")
    assert "\n" not in str(error.value)


def test_an_edit_on_purpose_is_taken_once_its_checksum_is_null(small, tmp_path):
    copy = Path(shutil.copytree(small[2], tmp_path / "copy"))
    content = json.loads((copy / "policy.json").read_text())
    (copy / "policy.json").write_text(json.dumps({**content, "classes": ["a", "b", "c"]}))
    with pytest.raises(ExportError, match="set its 'checksum' to null after a wanted edit"):
        Runner(copy)
    (copy / "policy.json").write_text(json.dumps({**content, "classes": ["a", "b", "c"], "checksum": None}))
    assert Runner(copy).policy["classes"] == ["a", "b", "c"]


def test_examples_of_unequal_number_are_one_line(small, tmp_path):
    copy = Path(shutil.copytree(small[2], tmp_path / "copy"))
    with np.load(copy / "examples.npz") as stored:
        np.savez(tmp_path / "fewer.npz", **{**stored, "labels": stored["labels"][:3]})
    shutil.copy(tmp_path / "fewer.npz", copy / "examples.npz")
    done = subprocess.run([sys.executable, copy / "runner.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "holds not one label and exit for each image" in done.stderr


@pytest.mark.parametrize("reading", [np.uint8, np.float32])
def test_many_images_are_answered_a_part_at_a_time(reading, small, monkeypatch):
    images = small[1].numpy() if reading is np.uint8 else small[1].numpy().astype(np.float32) / np.float32(255)
    whole, seen = Runner(small[2], threads=np.int64(1))(images), []
    monkeypatch.setattr(runner, "AT_ONCE", 7)
    parted = Runner(small[2])
    first = parted.stages[0]
    parted.stages[0] = lambda features: (seen.append(len(features)), first(features))[1]
    out = parted(images)
    assert seen == [7, 7, 6]
    for name in ("labels", "exits", "macs"):
        np.testing.assert_array_equal(getattr(out, name), getattr(whole, name))
    with pytest.raises(ExportError, match=r"got an array of shape \(20, 8, 8\)"):
        parted(images[:, 0])


def test_no_images_have_no_answers(small):
    out = Runner(small[2])(np.zeros((0, 1, 8, 8), np.uint8))
    assert out.labels.shape == out.exits.shape == out.macs.shape == (0,)


@pytest.mark.parametrize("threads", ["a", 0, 1.5, True, 5000])
def test_threads_are_a_number(threads, small):
    with pytest.raises(ExportError, match="threads must be 1 to 1024, or None for all"):
        Runner(small[2], threads=threads)


def test_a_folder_is_a_path():
    with pytest.raises(ExportError, match="folder must be the path of an export, got int"):
        Runner(3)


@pytest.mark.parametrize("images", [[[1], [1, 2]], torch.rand(2, 1, 8, 8, requires_grad=True)], ids=["ragged", "graph"])
def test_what_is_no_array_of_images_is_refused_in_one_line(images, small):
    with pytest.raises(ExportError, match="images must be an array: ") as error:
        Runner(small[2])(images)
    assert "\n" not in str(error.value)


def cut_short(folder):
    stage = folder / "stage_1.onnx"
    stage.write_bytes(stage.read_bytes()[:-100])


def edited(**changes):
    def edit(folder):
        content = json.loads((folder / "policy.json").read_text())
        content.pop("checksum")
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        (folder / "policy.json").write_text(json.dumps(content))

    return edit


def of_another(folder):
    content = json.loads((folder / "policy.json").read_text())
    content["stages"][0]["sha256"] = "00" * 32
    (folder / "policy.json").write_bytes(json_bytes(content))


def silently(folder):
    text = (folder / "policy.json").read_text()
    (folder / "policy.json").write_text(text.replace('"entropy"', '"margin"'))


def replaced_by_a_folder(folder):
    (folder / "policy.json").unlink()
    (folder / "policy.json").mkdir()


DAMAGE = {
    "a truncated stage": (cut_short, "stage_1.onnx is not the file that policy.json names"),
    "a missing stage": (lambda folder: (folder / "stage_0.onnx").unlink(), "stage_0.onnx is missing"),
    "no policy": (lambda folder: (folder / "policy.json").unlink(), "is no export, it has no policy.json"),
    "half a policy": (lambda folder: (folder / "policy.json").write_text("{"), "policy.json is damaged"),
    "no object": (lambda folder: (folder / "policy.json").write_text("[]"), "policy.json is damaged"),
    "an edited policy": (silently, "policy.json was edited"),
    "a policy of another export": (of_another, "stage_0.onnx is not the file that policy.json names"),
    "of other exits": (edited(decision={"thresholds": [1, 2, 3]}), "no policy for 2 exits"),
    "another score": (edited(decision={"score": "luck"}), "no policy for 2 exits"),
    "another version": (edited(version=1), "another program or version"),
    "files elsewhere": (edited(stages=[{"file": "../x"}, {"file": "y"}]), "names files that no export has"),
    "the folder above": (edited(stages=[{"file": ".."}, {"file": "y"}]), "names files that no export has"),
    "codes of a terminal": (edited(stages=[{"file": "\x1b[31m.onnx"}]), "names files that no export has"),
    "no stages": (edited(stages=[]), "no policy for 0 exits"),
    "a threshold of NaN": (edited(decision={"thresholds": [float("nan")]}), "no policy for 2 exits"),
    "a threshold of text": (edited(decision={"thresholds": ["x"]}), "no policy for 2 exits"),
    "a negative weight": (
        edited(combine=[{"kind": "mean", "mean": "geometric", "weights": [1, -1]}]),
        "no policy for 2 exits",
    ),
    "no classes": (edited(classes=[]), "no policy for 2 exits"),
    "images of no size": (edited(image={"shape": [1, 0, 8]}), "no policy for 2 exits"),
    "brackets without end": (
        lambda folder: (folder / "policy.json").write_text("[" * 100_000),
        "policy.json is damaged",
    ),
    "a folder for a policy": (replaced_by_a_folder, "is no export, it has no policy.json"),
    "an agreement of too many": (edited(combine=[{"kind": "agreement", "agreeing": 2}]), "no policy for 2 exits"),
    "a missing entry": (edited(decision=None), "policy.json is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_export_is_refused_in_one_line(damage, small, tmp_path):
    spoil, said = DAMAGE[damage]
    folder = Path(shutil.copytree(small[2], tmp_path / "export"))
    spoil(folder)
    with pytest.raises(ExportError, match=said) as error:
        Runner(folder)
    assert "\n" not in str(error.value)


def test_a_stage_of_another_network_is_noticed_when_it_runs(small, tmp_path):
    folder = Path(shutil.copytree(small[2], tmp_path / "export"))
    edited(classes=[*"abcdefg"])(folder)
    with pytest.raises(ExportError, match="gives no logits of 7 classes"):
        Runner(folder)(small[1].numpy())
    (folder / "examples.npz").write_bytes(b"no archive")
    done = subprocess.run([sys.executable, "runner.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "examples.npz" in done.stderr


class Parity(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_a_layer_that_does_not_export_is_named_by_its_stage(form, small, tmp_path):
    net, images, _ = small
    odd = MultiExitNet([net.stages[0], Parity()], list(net.heads)).eval()
    with pytest.raises(UserError, match=f"stage 1 does not export to {form}: .+") as error:
        export(odd, ThresholdPolicy(Entropy(), [0.5]), images, tmp_path / "export", format=form)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_a_network_that_only_runs_as_a_whole_is_exported(form, small, tmp_path):
    net, images, _ = small
    whole = rdi.as_multi_exit(net, images.shape[1:], outputs=lambda logits_NEC: {"exits": list(logits_NEC.unbind(1))})
    policy = between(net, images, Entropy())
    found = export(whole, policy, images, tmp_path / "export", format=form)
    assert (found["labels_and_exits_equal"], found["unexplained"]) == (len(images), [])
    out = Runner(tmp_path / "export", trust=form == "torch")(images.numpy())
    assert out.exits.tolist() == AdaptivePredictor(net, policy)(images / 255).exits.tolist()
    assert len(set(out.exits.tolist())) > 1, "some leave early"
    assert out.macs.tolist() == [macs.count(whole, images.shape[1:]).macs[-1]] * len(images), "all of it always runs"


def test_a_network_in_double_precision_is_not_exported(small, tmp_path):
    net, images, _ = small
    with pytest.raises(UserError, match=r"a network in torch.float64 cannot be exported: .* model.float\(\)"):
        export(copy.deepcopy(net).double(), between(net, images, Entropy()), images, tmp_path / "export")


def test_weights_outside_the_stage_files_are_not_read(small, tmp_path):
    """Their hashes stand nowhere, so they could be exchanged."""
    folder = tmp_path / "export"
    shutil.copytree(small[2], folder)
    model = onnx.load(folder / "stage_0.onnx")
    onnx.save(model, folder / "stage_0.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    policy = json.loads((folder / "policy.json").read_bytes())
    policy["stages"][0]["sha256"] = sha256(folder / "stage_0.onnx")
    (folder / "policy.json").write_bytes(json_bytes({**policy, "checksum": None}))
    assert (folder / "w.bin").stat().st_size
    with pytest.raises(ExportError, match=r"stage_0.onnx does not load in onnxruntime") as error:
        Runner(folder)
    assert "\n" not in str(error.value)


class Constant(nn.Module):
    """Tracers make a number of what `len` says."""

    def forward(self, x):
        return torch.zeros(3).expand(len(x), -1)


def test_a_stage_that_runs_otherwise_than_the_network_is_said_in_one_line(small, tmp_path):
    net, images, _ = small
    odd = MultiExitNet(list(net.stages), [Constant(), net.heads[1]]).eval()
    with pytest.raises(UserError, match=r"nothing is exported: .*x\.shape") as error:
        export(odd, ThresholdPolicy(Entropy(), [0.5]), images, tmp_path / "export")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "export").exists()


def test_a_policy_that_no_device_can_follow_is_refused(small, tmp_path):
    net, images, _ = small

    class Mine(Entropy):
        pass

    refused = {
        "it draws its thresholds anew": RandomisedPolicy(Entropy(), [0.1], [0.2]),
        "thresholds on entropy, confidence or margin can": ThresholdPolicy(Mine(), [0.1]),
    }
    for reason, policy in refused.items():
        with pytest.raises(UserError, match=f"cannot be exported: {reason}"):
            export(net, policy, images, tmp_path / "export")
    with pytest.raises(UserError, match="for 3 exits, the network has 2"):
        export(net, ThresholdPolicy(Entropy(), [0.1, 0.2]), images, tmp_path / "export")


RULES = {"budget": ["threshold.share=0.7"], "fixed": ["threshold.values=[0.5,0.6]"]}
THRESHOLDS = [*sorted(path.stem for path in (conf_dir() / "threshold").glob("[!p]*.yaml")), "patience"]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_every_exit_policy_of_the_library_runs_on_the_device_or_is_refused(name):
    given = calibration()
    policy = build(composed("train", f"threshold={name}", *RULES.get(name, []))["threshold"], "threshold").fit(given)
    if name == "random":
        with pytest.raises(UserError, match="cannot be exported: it draws its thresholds anew for every image"):
            decision_of(policy)
        return
    decision, combine = decision_of(policy)
    exits = policy.choose(given.logits)
    labels, left = judge(given.logits.numpy(), {"decision": decision, "combine": combine})
    near = parity.near_threshold(given.logits.numpy(), exits.numpy(), {"decision": decision, "combine": combine})
    assert near.sum() <= 4
    assert (left == exits.numpy())[~near].all()
    assert (labels == policy.predict(given.logits, exits).numpy())[~near].all()


def test_what_is_no_export_is_not_replaced(small, tmp_path):
    net, images, _ = small
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"exists and is no export: choose another folder with out=\.\.\."):
        export(net, ThresholdPolicy(Entropy(), [0.5]), images, tmp_path)
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which no export has and which would be lost"):
        export(net, ThresholdPolicy(Entropy(), [0.5]), images, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_the_same_by_torch_export(small, tmp_path):
    net, images, _ = small
    policy = between(net, images, Margin())
    found = export(net, policy, images, tmp_path / "export", format="torch")
    assert found["labels_and_exits_equal"] == len(images)
    with pytest.raises(ExportError, match=r"is a program, which may do anything: .* Runner\(folder, trust=True\)"):
        Runner(tmp_path / "export")
    assert 'Runner(".", trust=True)' in (tmp_path / "export" / "README.md").read_text()
    out = Runner(tmp_path / "export", trust=True)(images.numpy())
    assert out.exits.tolist() == AdaptivePredictor(net, policy)(images / 255).exits.tolist()
    floats = images.numpy().astype(np.float32) / np.float32(255)
    floats.flags.writeable = False
    for way in (slice(None), slice(None, None, -1)):
        assert Runner(tmp_path / "export", trust=True)(floats[way]).exits.tolist() == out.exits[way].tolist()


@pytest.mark.parametrize("shares", [[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0]])
def test_gaps_are_closed_in_place_but_never_in_the_callers_images(shares, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stages = [nn.Identity(), nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU()]
        net = MultiExitNet(stages, [nn.Sequential(nn.Flatten(), nn.Linear(width, 3)) for width in (64, 64, 64)]).eval()
        images = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        policy = ShareRule(score=Entropy(), shares=shares).fit_logits(net(images / 255))
    export(net, policy, images, tmp_path / "export", format="torch")
    given = images.numpy() / np.float32(255)
    before = given.copy()
    out = Runner(tmp_path / "export", trust=True)(given)
    ours = AdaptivePredictor(net, policy)(images / 255)
    assert out.exits.tolist() == ours.exits.tolist()
    assert out.labels.tolist() == ours.labels.tolist()
    assert np.bincount(out.exits, minlength=3).tolist() == [16 * share for share in shares]
    np.testing.assert_array_equal(given, before)


def test_the_last_rows_that_stay_fill_the_gaps():
    for leave in np.random.default_rng(0).random((50, 12)) < np.linspace(0, 1, 50)[:, None]:
        order, moved = runner.closed_up(leave)
        assert sorted(order) == np.flatnonzero(~leave).tolist()
        assert np.flatnonzero(order != np.arange(len(order))).tolist() == moved.tolist()
        rows = np.arange(12.0)
        found = runner.without_gaps(rows, order, moved, images=np.zeros(1))
        assert found.tolist() == order.tolist()
        assert np.shares_memory(found, rows) or not len(order)


def test_images_at_a_threshold_are_listed(small, tmp_path):
    net, images, _ = small
    with torch.no_grad():
        scores = Entropy()(net(images / 255))[:, 0]
    value = float(scores.sort().values[7])
    found = export(net, ThresholdPolicy(Entropy(), [value]), images, tmp_path / "export")
    at = int((scores == value).nonzero()[0])
    assert at in found["near_threshold"]
    assert found["unexplained"] == []
    far = parity.near_threshold(
        np.array([[[9.0, 0.0], [9.0, 0.0]]], np.float32), np.array([1]), Runner(tmp_path / "export").policy
    )
    assert far.tolist() == [False]


def test_the_scores_are_those_of_the_library():
    logits = 4 * torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    for score in (Entropy(), Confidence(), Margin()):
        name = type(score).__name__.lower()
        np.testing.assert_allclose(runner.score(logits.numpy(), name), score(logits).numpy(), rtol=1e-4, atol=1e-6)


def test_the_runner_is_imported_without_torch():
    code = "import sys, rdi.exporting.runner; print('torch' in sys.modules)"
    source = str(Path(rdi.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
