"""`rdi health` from the command line: all figures, and red where gradients were masked on purpose."""

import pytest
from safetensors.torch import load_file, save_file

from rdi.records import HealthRecord, Manifest, Thresholds, read, write
from rdi.storage import sha256

LINE = "health run=runs/demo threads=1 quick=true samples=12 threat.test_steps=2 queries=4 draws=8"
CHECKS = (
    *(
        "passes agree",
        "enough images",
        "zero gradients",
        "order of attacks",
        "more steps",
        "more restarts",
        "larger eps",
        "large eps",
        "black-box",
    ),
    *("planted weakness", "silent successes", "judged again", "ball and range", "certified image fooled"),
)


def figures(out, name):
    """What the table says of a check, its wrapped lines joined."""
    lines = iter(out.splitlines())
    found = [next(line for line in lines if line.startswith(f"{name}  ")).removeprefix(name)]
    for line in lines:
        if not line.startswith("  "):
            break
        found.append(line)
    return " ".join(" ".join(found).split())


def test_every_line_has_its_figure_in_print_and_in_the_record(rdi, demo):
    done = rdi(LINE)
    assert done.status == 0, done.err
    record = read(demo / "health" / "entropy.json", HealthRecord)
    assert tuple(check.name for check in record.checks) == CHECKS
    assert (record.samples, record.settings["steps"], record.settings["queries"]) == (12, 2, 4)
    for check in record.checks:
        row = next(line for line in done.out.splitlines() if line.startswith(f"{check.name}  "))
        assert check.figure in figures(done.out, check.name)
        assert (" RED " in row, " ok " in row) == (not check.passed, check.passed)
        assert (f"- {check.name}: {check.meaning}" in " ".join(done.out.split())) == (not check.passed)
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    ("policy", "said"), [("ensemble", ""), ("random", "random is checked at its middle thresholds: ")]
)
def test_policies_that_lead_to_thresholds_are_looked_at_too(policy, said, rdi, demo):
    assert rdi(f"evaluate run=runs/demo tracking=none threshold={policy}").status == 0
    done = rdi(f"{LINE} thresholds={policy}")
    assert done.status == 0, done.err
    record = read(demo / "health" / f"{policy}.json", HealthRecord)
    assert (record.threshold, tuple(check.name for check in record.checks)) == (policy, CHECKS)
    assert said in done.err


def test_a_policy_without_thresholds_is_refused_in_one_line(rdi, demo):
    assert rdi("evaluate run=runs/demo tracking=none threshold=patience").status == 0
    done = rdi(f"{LINE} thresholds=patience")
    assert done.status == 2
    assert "patience has none (leaves when 2 exits in a row agree)" in done.errors[0]


def test_a_network_whose_gradients_were_masked_on_purpose_is_red(rdi, demo):
    """Logits a million times as large: the same answers, and a cross-entropy without slope."""
    path = demo / "checkpoint.safetensors"
    weights = load_file(path)
    for name in weights:
        if name in last_layers(weights):
            weights[name] *= 1e6
    save_file(weights, path, {"format": "pt"})
    manifest = demo / "manifest.json"
    stored = read(manifest, Manifest)
    write(manifest, type(stored)(**{**vars(stored), "checkpoint_sha256": sha256(path)}))
    # fitted on the old weights, kept: for the new ones no image would leave early
    limits = demo / "thresholds" / "entropy.json"
    fitted = read(limits, Thresholds)
    write(limits, type(fitted)(**{**vars(fitted), "checkpoint_sha256": sha256(path)}))
    done = rdi(f"{LINE} strict=true")
    assert done.status == 1, done.err
    assert "- zero gradients: Masked gradients" in done.out
    red = {check.name for check in read(demo / "health" / "entropy.json", HealthRecord).checks if not check.passed}
    assert "zero gradients" in red


def last_layers(weights):
    """Weight and bias of the last linear layer of every head."""
    found = {}
    for name, value in weights.items():
        part = name.split(".")
        if part[0] == "heads" and (value.ndim == 2 or part[-1] == "bias"):
            found[part[1], part[-1]] = name
    return set(found.values())
