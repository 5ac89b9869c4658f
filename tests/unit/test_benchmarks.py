"""The benchmark: baselines that compute what ours compute, honest arithmetic, and tables that say what was missed."""

import importlib.util
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rdi import records
from rdi.attacks.engine import Engine
from rdi.benchmarks import accuracy, attacks, deploy, energy, inference, ranks, roofline, thresholds, timing, training
from rdi.benchmarks.machine import matrix_rate, peak_memory
from rdi.data.base import Split
from rdi.emulation import precisions
from rdi.errors import UserError
from rdi.records import BenchRecord, BenchRow, Environment
from rdi.report import benchmarks
from rdi.runs import bench as measuring
from rdi.thresholds import Entropy, ThresholdPolicy

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def there(name):
    """Whether a row of this name is measured here."""
    return "bf16" not in name or "bf16" in precisions(CPU)


@pytest.fixture
def subject(tiny, batch):
    x, y = batch(count=6)
    return attacks.Subject(tiny(), x, y, eps=0.1, step_size=0.03, steps=3, repeats=2)


def test_contestants_take_turns_and_ratios_are_taken_round_by_round(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    durations = {"slow": iter([100, 8, 6, 20]), "fast": iter([100, 2, 2, 4])}

    def work(name):
        def run():
            order.append(name)
            clock[0] += next(durations[name])

        return run

    times = timing.race({name: work(name) for name in durations}, repeats=3, device=CPU)
    warm_up, *rounds = [order[i : i + 2] for i in range(0, 8, 2)]
    assert warm_up == ["slow", "fast"]
    assert rounds == [["slow", "fast"], ["fast", "slow"], ["slow", "fast"]]
    assert times.seconds == {"slow": (8, 6, 20), "fast": (2, 2, 4)}
    assert times.ratio("slow", "fast") == timing.Spread(4, 3, 5)
    assert times.median("slow") == 8
    assert times.rounds == 3


def test_short_rounds_go_on_until_they_took_the_time_asked_for(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def work():
        clock[0] += 0.5

    assert timing.race({"a": work, "b": work}, repeats=2, device=CPU, at_least=3.5).rounds == 4
    assert timing.race({"a": work, "b": work}, repeats=5, device=CPU, at_least=3.5).rounds == 5


def test_parts_of_a_round_take_turns_and_are_summed(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def answer(name, seconds):
        def run(batch):
            order.append((name, batch.tolist()))
            clock[0] += seconds

        return run

    monkeypatch.setattr(timing, "PART", 4)
    batches = torch.arange(6).split(2)
    works = {name: timing.parts(answer(name, seconds), batches) for name, seconds in (("slow", 3), ("fast", 1))}
    assert [len(work) for work in works.values()] == [2, 2]
    times = timing.race({**works, "once": lambda: answer("once", 5)(torch.zeros(0))}, repeats=1, device=CPU)
    assert times.seconds == {"slow": (9.0,), "fast": (3.0,), "once": (5.0,)}
    assert [name for name, _ in order[7:]] == ["slow", "slow", "fast", "fast", "once", "fast", "slow"]
    assert [batch for name, batch in order[7:] if name == "slow"] == [[0, 1], [2, 3], [4, 5]]


def test_a_warm_up_of_its_own_is_run_instead_of_the_contestants():
    seen = []
    timing.race({"a": lambda: seen.append("a")}, warm_up={"a": lambda: seen.append("warm")}, repeats=2, device=CPU)
    assert seen == ["warm", "a", "a"]


@pytest.mark.parametrize("index", range(4), ids=["first exit", "main", "average", "max_avg"])
def test_the_textbook_loops_compute_what_ours_compute(index, subject):
    comparison = attacks.comparisons(subject)[index]
    plain = comparison.plain(3)
    ours = attacks.Crafter(subject, Engine(fold=False, channels_last=False), comparison.ours)
    # a gradient next to zero may change its sign where a processor sums in another order
    assert float((ours(3) != plain).float().mean()) < 0.01
    assert not torch.equal(plain, comparison.plain(2))


def test_what_a_step_runs_is_counted_for_every_attack(subject):
    counted = {comparison.name: comparison.forward for comparison in attacks.comparisons(subject)}
    # three 3x3 convolutions on 8x8 images, 1 -> 4 -> 4 -> 4 channels, and heads of 16 x 4
    convolutions = [64 * 9 * 4, 64 * 9 * 16, 64 * 9 * 16]
    assert counted == {
        "single, first exit": convolutions[0],
        "main": sum(convolutions),
        "average": sum(convolutions) + 3 * 64,
        "max_avg": sum(sum(convolutions[: k + 1]) for k in range(3)),
    }


def test_every_attack_gets_a_row_per_engine(subject):
    rows = attacks.against_textbook(subject)
    assert len(rows) == 4 * len(attacks.engines(CPU))
    for row in rows:
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.values["share_of_matrix_rate"] > 0
    exact = [row for row in rows if row.name.endswith("float32")]
    assert [row.values["pixels_equal_after_one_step"] for row in exact] == pytest.approx([1] * 4, abs=0.01)
    targets = {row.name: row.target for row in rows if row.target}
    wanted = {"max_avg, float32, folded": 2.0, "max_avg, bf16, folded": 4.5}
    assert targets == {name: target for name, target in wanted.items() if there(name)}
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_rows_in_bf16_are_left_out_where_it_is_emulated(subject, monkeypatch):
    monkeypatch.setattr("rdi.emulation.emulated", lambda device: True)
    rows = [*attacks.against_textbook(subject), *roofline.rows(subject, "standard")]
    assert len(rows) > 10
    assert not [row.name for row in rows if "bf16" in row.name]


def test_torchattacks_climbs_the_same_objective(subject):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = subject.model, subject.x, subject.y
    theirs = torchattacks.PGD(attacks._ExitsLast(model), eps=0.1, alpha=0.03, steps=3, random_start=False)
    plain = attacks.textbook.pgd(model, x, y, attacks.textbook.mean_loss, x, eps=0.1, step_size=0.03, steps=3)
    torch.testing.assert_close(theirs(x, y[:, None].expand(-1, 3)), plain)
    rows = attacks.against_torchattacks(subject)
    assert [row.target for row in rows] == [None, 1.3, 2.5][: len(attacks.engines(CPU))]


def test_peak_memory_is_what_the_work_takes_at_its_peak():
    def work():
        large = torch.ones(64 << 20, dtype=torch.uint8)
        del large
        torch.ones(8 << 20, dtype=torch.uint8)

    peak = peak_memory(work, CPU)
    if peak is None:
        pytest.skip("this kernel does not tell the peak of a process")
    assert 60 < peak / 2**20 < 100


def test_the_nested_pass_takes_more_memory_than_one_exit_at_a_time_and_a_bound_helps(paper_net, batch):
    x, y = batch(count=32, shape=(3, 32, 32), classes=10)
    subject = attacks.Subject(paper_net("resnet14", (3, 32, 32)), x, y, eps=0.1, step_size=0.03, steps=1, repeats=1)
    unbound, bound = attacks.memory(subject)
    assert unbound.values["peak_mib"] > bound.values["peak_mib"]
    assert unbound.ratio > 1


def test_matrix_rate_counts_multiply_adds(monkeypatch):
    monkeypatch.setattr("rdi.benchmarks.machine.SIDE", {"cpu": 100})
    monkeypatch.setattr("rdi.benchmarks.machine.race", lambda *rest, **more: timing.Times({"product": (0.5,)}))
    assert matrix_rate(CPU, torch.float32, 1) == 2_000_000


def test_training_rows_leave_the_network_alone_and_step_on_copies(subject):
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    rows = training.rows(subject)
    assert {row.name for row in rows} >= {
        f"{d}, {p}" for d in ("standard", "max_avg", "fast (max_avg)") for p in precisions(CPU)
    }
    assert {row.name: row.target for row in rows if row.target} == ({"max_avg, bf16": 4.0} if there("bf16") else {})
    assert all(row.values["data_and_augmentation_share"] > 0 for row in rows)
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())


def test_ranks_make_the_step_that_one_process_makes(subject, monkeypatch):
    """The timing is left out: each contestant is called once."""
    losses = []

    def once(contestants, **_):
        losses.append([work() for work in contestants.values()])
        return timing.Times({name: (float(second),) for second, name in enumerate(contestants, 1)})

    monkeypatch.setattr(ranks, "race", once)
    monkeypatch.setattr(ranks, "precisions", lambda device: ("float32",))
    monkeypatch.setattr(ranks.os, "sched_getaffinity", lambda _: {0, 1})
    threads = torch.get_num_threads()
    rows = ranks.rows(subject)
    assert [(row.name, row.ratio, row.target) for row in rows] == [
        (f"{name}, float32, 2 ranks of 1 thread, BatchNorm {batchnorm}", 0.5, 1.0)
        for name in ("max_avg", "fast (max_avg)")
        for batchnorm in ("synchronised", "local")
    ]
    for one, shared in losses[::2]:
        assert shared == pytest.approx([one] * 2, rel=1e-4)
    for one, shared in losses[1::2]:  # each rank normalises by its own half
        assert shared != pytest.approx([one] * 2, rel=1e-4)
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(ranks.os, "sched_getaffinity", lambda _: {0})
    assert ranks.rows(subject) == []


def test_savings_of_time_are_put_beside_savings_of_macs(tiny):
    net = tiny(exits=4, shape=(1, 16, 16))
    rows = inference.rows(net, torch.rand(40, 1, 16, 16), [1, 40], repeats=2)
    assert len(rows) == 2 * 2 * len(inference.MIXES)
    by_name = {(row.name, row.batch_size): row for row in rows}
    early, late = by_name["early, folded", 40], by_name["all at the last, folded", 40]
    assert early.values["macs_saved"] > by_name["late, folded", 40].values["macs_saved"]
    # every head runs and nobody leaves: that costs more than the plain backbone, so there is no share of a saving
    assert late.values["macs_saved"] < 0
    assert late.ratio is None
    assert early.ratio == pytest.approx(early.values["time_saved"] / early.values["macs_saved"])


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_wanted_mix_is_the_mix_that_leaves(ratio, tiny):
    net, x = tiny(exits=4), torch.rand(400, 1, 8, 8)
    with torch.no_grad():
        exits = inference.policy(net, x, ratio).choose(net(x))
    shares = torch.bincount(exits, minlength=4) / 400
    assert shares.tolist() == pytest.approx(inference.geometric_shares(4, ratio), abs=0.01)


def test_the_threshold_sweep_says_its_seconds():
    row = thresholds.row(3, points=5, repeats=1, attacks=1)
    assert row.values["most_seconds"] >= row.values["seconds"] > 0


def test_the_strength_rows_compare_the_same_images_from_the_same_starts(tiny, batch):
    net = tiny()
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = net(images / 255)[:, -1].argmax(1)
    split = Split(name="test", images=images, labels=labels, indices=torch.arange(10).numpy())
    rows = accuracy.rows(net, ThresholdPolicy(Entropy(), [0.0, 0.0]), split, {"eps": 0.1, "step_size": 0.05}, 3, 4)
    exact = next(row for row in rows if row.name == "max_avg, float32")
    assert exact.values["robust_accuracy"] == exact.values["baseline_robust_accuracy"] < 1
    assert exact.values["only_ours_fools"] == exact.values["only_baseline_fools"] == 0
    assert {row.values["samples"] for row in rows} == {10}


def record(*rows):
    return BenchRecord(
        environment=Environment(versions={"torch": "2.0"}, device="cpu: x", threads=2, commit=None, dirty=None),
        started="now",
        seconds=1.0,
        config={"steps": 20, "seed": 0},
        choices={"backbone": "resnet38"},
        shape=(3, 32, 32),
        exits=7,
        parameters=1000,
        repeats=3,
        rows=rows,
    )


def attack_row(ratio):
    return BenchRow(
        group="attacks",
        name="max_avg, bf16",
        against="textbook loop",
        batch_size=64,
        ratio=ratio,
        ratio_low=ratio - 0.1,
        ratio_high=ratio + 0.1,
        target=4.5,
        values={"baseline_seconds": 10.0, "seconds": 2.0, "share_of_matrix_rate": 0.5, "pixels_equal": 1.0},
    )


@pytest.mark.parametrize(("ratio", "verdict"), [(4.6, "reached"), (4.4, "MISSED")])
def test_tables_say_whether_a_target_was_reached(ratio, verdict):
    text = benchmarks.render(record(attack_row(ratio)))
    assert f"{ratio:.2f} ({ratio - 0.1:.2f}-{ratio + 0.1:.2f})" in text
    assert f">= 4.5, {verdict}" in text


def test_a_difference_in_strength_that_is_not_allowed_stands_out():
    values = {"samples": 1000.0, "baseline_robust_accuracy": 0.45, "allowed_difference": 0.002}
    values |= {"only_ours_fools": 0.0, "only_baseline_fools": 3.0}
    row = attack_row(1.0)
    kept = {**records.to_dict(row), "group": "accuracy", "values": {**values, "robust_accuracy": 0.452}}
    missed = {**kept, "values": {**values, "robust_accuracy": 0.453}}
    text = benchmarks.render(record(BenchRow(**kept), BenchRow(**missed)))
    assert "+0.20 (allowed 0.2: kept)" in text
    assert "+0.30 (allowed 0.2: EXCEEDED)" in text


def test_a_record_survives_the_disk(tmp_path):
    records.write(tmp_path / "bench.json", record(attack_row(4.6)))
    assert records.read(tmp_path / "bench.json", BenchRecord) == record(attack_row(4.6))
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(UserError, match="BenchRecord"):
        records.read(tmp_path / "bench.json", BenchRecord)


def test_the_roofline_charges_every_multiply_add_to_its_layer(subject):
    found = {row.name: row for row in roofline.rows(subject, "standard", "float32")}
    count = len(subject.x)
    # three 3x3 convolutions on 8x8 images, 1 -> 4 -> 4 -> 4 channels, and heads of 16 x 4
    first, later, head = 64 * 9 * 4, 64 * 9 * 16, 16 * 4

    def macs(name):
        return round(found[name].values["macs_per_second"] * found[name].values["seconds"])

    assert macs("all convolution, forward") == count * (first + 2 * later)
    # of the images no gradient is asked for
    assert macs("all convolution, backward") == count * (first + 2 * 2 * later)
    assert macs("all matrix product") == count * 3 * 3 * head
    assert macs("convolution, forward, 4 to 4, 3x3, at 8x8") == count * 2 * later
    kinds = [row.values["share"] for name, row in found.items() if name.startswith("all ")]
    assert sum(kinds) == pytest.approx(1)
    whole = found["standard, float32: whole step"]
    assert macs(whole.name) == sum(macs(name) for name in found if name.startswith("all "))


def test_energy_is_read_where_the_machine_shows_it(tmp_path):
    assert energy.joules(energy.microjoules(tmp_path), energy.microjoules(tmp_path)) is None
    for zone, name, used in (("0", "package-0", 2_000_000), ("0:0", "core", 9), ("1", "package-1", 500_000)):
        (tmp_path / f"intel-rapl:{zone}").mkdir()
        (tmp_path / f"intel-rapl:{zone}" / "name").write_text(f"{name}\n")
        (tmp_path / f"intel-rapl:{zone}" / "energy_uj").write_text(f"{used}\n")
    before = energy.microjoules(tmp_path)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("750000\n")
    assert energy.joules(before, energy.microjoules(tmp_path)) == 0.25
    assert energy.joules(energy.microjoules(tmp_path), before) is None, "a counter began again"


def test_a_network_with_one_exit_has_one_exit_mix():
    assert measuring.mixes(1, None, None) == {"all at the last": None}
    assert measuring.mixes(2, None, None) == inference.MIXES


def test_what_is_slower_than_all_exits_is_said_to_be_missed():
    values = {"macs_saved": 0.0, "time_saved": 0.0, "images_per_second": 9.0, "proportional": 0.0}
    rows = [
        replace(attack_row(1.0), group="inference", values={**values, "slower_than_all_exits": share})
        for share in (0.02, 0.1)
    ]
    text = " ".join(benchmarks.render(record(*rows), "github").split())
    assert "| 10.0, MISSED (at most 3) |" in text
    assert "| 2.0 |" in text


def test_a_stream_of_one_batch_has_no_row(tiny, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # which takes a minute
    x = torch.rand(deploy.FEWEST, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    found = deploy.rows(tiny(exits=2), x, [deploy.FEWEST], 1, mixes={"even": 1.0})
    assert not [row.name for row in found if "stream" in row.name]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["deploy"], r"nothing to measure: .*\(deploy measures static graphs, and this network has gates\)"),
        (["accuracy"], r"nothing to measure: .*\(accuracy is measured with run=\.\.\. and quick=false only\)"),
    ],
)
def test_rows_that_cannot_be_measured_are_named_before_anything_is(rows, said):
    options = measuring.Bench(
        run="gated", name="x", rows=rows, quick=True, shape=[1, 8, 8], classes=3, steps=1, batch_size=2, repeats=1,
        batch_sizes=[2], samples=5, seed=0,
    )  # fmt: skip
    run = SimpleNamespace(network=SimpleNamespace(gated=True))
    with pytest.raises(UserError, match=said):
        measuring.measure_all(options, asdict(options), {}, run)


def test_deployment_has_a_row_for_everything_it_compares(tiny, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # which takes a minute
    x = torch.rand(deploy.FEWEST, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(energy, "microjoules", lambda: {"package-0": 0})
    mixes = {"early": 0.5, "late": 2.0, "all at the last": None, "as clean": [0.25, 0.75]}
    monkeypatch.setattr(deploy, "emulated", lambda device: False)
    *found, half = deploy.rows(tiny(exits=2), x, [32], repeats=1, mixes=mixes)
    assert (half.name, half.against) == ("static, compiled, bf16", "static, bf16")
    assert half.ratio > 0
    openvino = importlib.util.find_spec("openvino") is not None
    there = [pair for pair in deploy.COMPARED if "one graph" not in pair[0] and (openvino or "OpenVINO" not in pair[0])]
    expected = [(f"{name}, {mix}", against) for mix in mixes for name, against in there]
    assert [(row.name, row.against) for row in found] == expected
    assert all(row.ratio > 0 for row in found)
    assert all(0 < row.values["p50_ms"] <= row.values["p99_ms"] for row in found)
    assert {row.values["joules_per_image"] for row in found} == {0.0}
    saved = {row.name: row.values.get("macs_saved") for row in found}
    assert saved["adaptive, early"] > saved["adaptive, late"] > saved["adaptive, all at the last"]
    assert saved["static, compiled, early"] is None
    text = benchmarks.render(record(*found))
    assert "onnxruntime runner, as clean" in text


def test_single_images_have_a_row_of_one_graph_and_a_floor_of_what_is_saved(tiny, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # which takes a minute
    x = torch.rand(deploy.FEWEST, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(deploy, "emulated", lambda device: True)
    found = {(row.name, row.against): row for row in deploy.rows(tiny(exits=2), x, [1], 1, mixes={"even": 1.0})}
    row = found["onnxruntime, one graph, even", "static, onnxruntime, one graph"]
    saved = row.values["macs_saved"]
    assert saved > 0
    assert row.target == pytest.approx(1 / (1 - 0.7 * saved)), "the ratio at which 0.7 of what is saved is reached"
    assert row.values["time_saved_per_macs_saved"] == pytest.approx((1 - 1 / row.ratio) / saved)
    assert row.values["rounds"] == deploy.CARE
    assert found["onnxruntime runner, even", "adaptive"].target is None
