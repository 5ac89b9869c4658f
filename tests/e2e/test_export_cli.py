"""`rdi export` on a run of the digits, and the README's lines from an export to labels, without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rdi as package
from helpers.commands import ROOT
from rdi.exporting.runner import Runner

pytest.importorskip("onnxruntime")

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "rdi"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
"""


def test_from_a_run_to_labels_without_torch(demo, rdi):
    result = rdi(f"export run={demo} threads=1")
    assert result.status == 0, result.err
    folder = demo / "exports" / "onnx"
    parity = json.loads((folder / "parity.json").read_text())
    assert f"{folder}: {parity['labels_and_exits_equal']} of 400 test images" in result.out
    assert (parity["images"], parity["unexplained"]) == (400, [])
    run = package.Run(demo, "cpu")
    logits = run.bank("clean").logits  # of all 400, as the network gave them when it was judged
    exits = run.policy().choose(logits)
    assert parity["exits"] == exits.tolist()
    assert parity["labels"] == run.policy().predict(logits, exits).tolist()

    section = (ROOT / "README.md").read_text().partition("## Deploy")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    labels = np.array(re.findall(r"\d+", done.stdout.partition("]")[0]), int)
    assert labels.tolist() == np.load(folder / "examples.npz")["labels"].tolist() == parity["labels"][:16]

    again = rdi(f"export run={demo} threads=1 samples=20 thresholds=entropy out=there")
    assert again.status == 0, again.err
    assert Runner(Path("there")).policy["origin"]["thresholds"] == "entropy"


def test_exports_of_several_policies_lie_side_by_side(demo, rdi):
    assert rdi(f"evaluate run={demo} threshold=confidence").status == 0
    result = rdi(f"export -m run={demo} threads=1 samples=20 thresholds=confidence,entropy")
    assert result.status == 0, result.err
    for folder, name in (("onnx", "entropy"), ("onnx-confidence", "confidence")):
        assert Runner(demo / "exports" / folder).policy["origin"]["thresholds"] == name


def test_a_quantised_network_is_judged_anew(demo, rdi):
    result = rdi(f"export run={demo} threads=1 samples=60 precision=int8 attacked=20 single=true")
    assert result.status == 0, result.err
    folder = demo / "exports" / "onnx-int8"
    parity = json.loads((folder / "parity.json").read_text())
    judged, split = parity["judged"], package.Run(demo, "cpu").data.test.sample(60)
    assert judged["clean"]["accuracy"] == np.mean(np.array(parity["labels"]) == split.labels.numpy())
    said = " ".join(result.out.split())  # lines are broken at 80 columns
    assert "int8 is another network, judged anew (in brackets: the network in float32)" in said
    worst = judged["worst_case"]
    assert worst["images"] == 16, "the demonstration's banks hold no more"
    assert set(worst["attacks"]) | set(worst["left_out"]) == set(package.Run(demo, "cpu").banks()) - {"clean"}
    assert worst["accuracy"] <= min(one["accuracy"] for one in worst["attacks"].values())
    assert "attacks that know the exported network were not run" in said
    assert judged["certified"]["accuracy"] is None
    assert "certified accuracy: none" in said
    out = Runner(folder)(np.load(folder / "examples.npz")["images"])
    assert out.labels.tolist() == np.load(folder / "examples.npz")["labels"].tolist()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("format=tflite", "format must be one of onnx, torch; got 'tflite'"),
        ("thresholds=luck", "has no thresholds 'luck'; stored: entropy"),
        ("thresholds=../luck", "must be a plain name, without /"),
        ("precision=int4", "precision must be one of float32, bf16, int8; got 'int4'"),
        ("precision=int8 format=torch", "precision=int8 is made with format=onnx only, got format=torch"),
        ("single=true format=torch", "single=true is made with format=onnx only, got format=torch"),
        ("attacked=5", "attacked is for precision=bf16 and int8"),
        ("attacked=0", "attacked must be at least 1, got 0"),
        ("samples=0", "samples must be at least 1, got 0"),
        ("out=runs", "runs exists and is no export: choose another folder with out=..."),
    ],
)
def test_a_mistake_is_one_line(typed, said, demo, rdi):
    result = rdi(f"export run={demo} {typed}")
    assert (result.status, len(result.errors)) == (2, 1), result.err
    assert said in result.errors[0]
    assert not (demo / "exports").exists()
