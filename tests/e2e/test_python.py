"""What `rdi.Run` gives a notebook is what the command line stored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import rdi as api
from rdi.records import Manifest, files, read


def test_a_run_is_what_the_command_line_made(demo):
    run = api.Run(demo)
    assert run.finished
    assert run.manifest == read(demo / "manifest.json", Manifest)
    assert run.data.samples() == run.manifest.data.samples
    assert (run.network.exits, run.network.training) == (run.manifest.exits, False)
    assert list(run.thresholds) == ["entropy"]
    assert run.policy().values == run.policy("entropy").values == run.thresholds["entropy"].values
    assert run.network is run.network, "loaded once"


def test_the_banks_of_a_run_are_its_network_s_logits_and_its_records_are_of_them(demo):
    run = api.Run(demo)
    banks = run.banks()
    assert next(iter(banks)) == "clean"
    assert list(run.records()) == list(banks)
    with torch.no_grad():
        logits = run.network(run.data.test.images[:4].float() / 255)
    torch.testing.assert_close(run.bank("clean").logits[:4], logits.cpu())
    for name, record in run.records().items():
        columns = banks[name].columns(run.policy())
        assert columns["correct"].mean() == pytest.approx(record.accuracy)
        shares = np.bincount(columns["exit"], minlength=run.network.exits) / len(columns["exit"])
        assert shares.tolist() == pytest.approx(list(record.exit_share))
        assert [(columns[f"exit{k}"] == columns["label"]).mean() for k in range(run.network.exits)] == pytest.approx(
            list(record.exit_accuracy)
        )
    [worst] = run.worst_cases()
    assert worst.attacks == tuple(name for name in banks if name != "clean")
    assert worst.accuracy <= min(record.accuracy for record in run.records().values())


def test_mistakes_with_a_run_are_one_line(demo):
    run = api.Run(demo)
    with pytest.raises(api.UserError, match="no run folder nowhere"):
        api.Run("nowhere")
    with pytest.raises(api.UserError, match=r"has no bank 'square' of test images \(there are: clean, "):
        run.bank("square")
    with pytest.raises(api.UserError, match="stored: entropy"):
        run.policy("margin")
    for ask in (run.records, run.worst_cases):
        with pytest.raises(api.UserError, match="was not judged by the thresholds 'entropy' on validation images"):
            ask(split="validation")
    with pytest.raises(api.UserError, match="device=cuda:99 is not here"):
        _ = api.Run(demo, "cuda:99").network
    bank = run.bank("clean")
    replace(bank, manifest=replace(bank.manifest, checkpoint_sha256="0" * 64)).save(demo / "banks" / "test-clean")
    with pytest.raises(api.UserError, match="is of other weights: delete it"):
        run.bank("clean")


def test_a_run_that_is_not_finished_can_be_looked_at_and_not_opened(demo):
    (demo / "done").unlink()
    run = api.Run(demo)
    assert not run.finished
    assert run.manifest.exits == len(run.manifest.costs.macs)
    for use in (lambda: run.network, lambda: api.Run.open(demo), lambda: api.load(demo)):
        with pytest.raises(api.UserError, match="is not finished"):
            use()


@pytest.mark.parametrize(
    "line",
    [
        "attack run=runs/demo tracking=none threads=1 attack=average threat.test_steps=1 samples=8 label=once",
        "evaluate run=runs/demo tracking=none",
        "report runs=[runs/demo] ratios=3",
    ],
)
def test_a_command_reads_the_manifest_of_its_run_once(line, rdi, demo, monkeypatch):
    opened, real = [], files.read_json

    def counted(path):
        opened.append(path.resolve())
        return real(path)

    monkeypatch.setattr(files, "read_json", counted)
    result = rdi(line)
    assert result.status == 0, result.err
    assert opened.count((demo / "manifest.json").resolve()) == 1
