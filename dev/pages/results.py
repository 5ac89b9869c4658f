"""The pages of results/ and the measured parts of the README, made from the records under results/: `make results`."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pages import headline, levers
from pages.networks import FURTHER, Network, further, networks
from rdi.records import BenchRecord, HealthRecord, read
from rdi.report import benchmarks, corruptions, suites, tables, terminal
from rdi.report.health import heading, word
from rdi.threats import CLEAN, caption

TOP = "Made by `make results` from the records in this folder; a test compares it whole. Do not edit."
COMMANDS = """```bash
rdi import checkpoint=rdi_resnet38_cifar10_official.pth.tar backbone=resnet38 data=cifar10_jpeg \\
    data.calibration=2000 data.calibration_from=test run=runs/official
rdi attack run=runs/official suite=paper samples=1000 engine.precision=bf16 batch_size=125
rdi evaluate run=runs/official threshold=paper_resnet38
rdi attack run=runs/official suite=full thresholds=paper_resnet38 samples=1000 engine.precision=bf16 batch_size=125
rdi attack run=runs/official attack=autoattack thresholds=paper_resnet38 samples=1000 engine.precision=bf16 \\
    batch_size=125
rdi evaluate run=runs/official thresholds=paper_resnet38
rdi evaluate run=runs/official threshold=entropy
rdi health run=runs/official thresholds=paper_resnet38
rdi evaluate -m run=runs/official threshold=budget threshold.share=0.5,0.6,0.7,0.8,0.9
rdi pareto runs=runs/official
rdi run run=runs/mnist-max_avg stages=[train] data=mnist attack=max_avg attack.steps=7 attack.step_size=0.08 \\
    attack.keep=last optim=fast optim.epochs=8 optim.lr=0.05 precision=bf16 channels_last=true \\
    calibration_samples=500 threshold=paper_smallcnn
rdi attack run=runs/mnist-max_avg suite=full samples=1000 engine.precision=bf16
rdi attack run=runs/mnist-max_avg attack=autoattack samples=1000 batch_size=125
rdi evaluate run=runs/mnist-max_avg threshold=paper_smallcnn
rdi health run=runs/mnist-max_avg samples=300
C="data=mnist backbone.dropout=0 exits=custom defense=certified attack=average attack.steps=5 \\
    optim.optimizer._target_=torch.optim.Adam ~optim.optimizer.momentum optim.optimizer.weight_decay=0 \\
    optim.schedule=one_cycle optim.warmup=0.1 calibration_samples=500 keep=last threads=1 channels_last=true"
S="$C exits.taps=[1] threat.eps=0.1 optim.batch_size=128 evaluations=4"
H="exits.heads=[{_target_: rdi.exits.PoolMLP, _partial_: true, grid: 6, hidden: 128}]"
rdi train run=runs/mnist-begun $S "$H" optim.lr=0.002 optim.iterations=5000 defense.eps=0.13 \\
    defense.clean_weight=0.5 defense.ramp=0.5
rdi train run=runs/mnist-certified $S "$H" start=runs/mnist-begun optim.lr=0.0012 optim.iterations=4500 \\
    defense.eps=0.115 defense.clean_weight=0.45 defense.warm_up=0 defense.ramp=0
rdi certify run=runs/mnist-certified
rdi attack run=runs/mnist-certified attack=average samples=1000
rdi evaluate run=runs/mnist-certified threshold=budget threshold.share=0.58    # gives budget-50fa13
rdi attack run=runs/mnist-certified suite=full samples=1000 thresholds=budget-50fa13
rdi evaluate run=runs/mnist-certified thresholds=budget-50fa13
rdi health run=runs/mnist-certified thresholds=budget-50fa13 samples=300
S="$C exits.taps=[2] threat.eps=0.3 optim.batch_size=64 evaluations=8"
H="exits.heads=[{_target_: rdi.exits.PoolMLP, _partial_: true, grid: 5, hidden: 200}]"
rdi train run=runs/mnist-certified03 $S "$H" optim.lr=0.0012 optim.iterations=16000 defense.eps=0.35 \\
    defense.clean_weight=0.5 defense.ramp=0.5 'defense.exit_weights=[2,1]'
rdi attack run=runs/mnist-certified03 attack=average samples=1000
rdi evaluate run=runs/mnist-certified03 threshold=budget threshold.share=0.773    # gives budget-cda883
rdi certify run=runs/mnist-certified03 thresholds=budget-cda883
rdi attack run=runs/mnist-certified03 suite=full samples=1000 thresholds=budget-cda883
rdi evaluate run=runs/mnist-certified03 thresholds=budget-cda883
rdi health run=runs/mnist-certified03 thresholds=budget-cda883 samples=300
S="backbone=resnet16 exits=lean_mlp data=cifar10_jpeg data.calibration=2000 data.validation=2000 defense=alp \\
    attack=average precision=bf16 channels_last=true keep=last calibration_samples=1000 threads=1"
rdi train run=runs/begun $S optim.epochs=24 evaluations=12 defense.terms.0.weight=0.82 defense.terms.1.weight=0.18 \\
    defense.terms.2.weight=0.2 defense.crafting.start_size=1.0 defense.crafting.step=1.25 \\
    defense.crafting.projected=true    # stopped by hand after its evaluation at epoch 10
rdi train run=runs/first $S start=runs/begun optim.epochs=12 optim.lr=0.12 optim.warmup=0.05 evaluations=6 \\
    defense.terms.0.weight=0.8 defense.terms.1.weight=0.2 defense.terms.2.weight=0.2
S="$S start=runs/first optim.epochs=14 optim.lr=0.12 optim.warmup=0.05 evaluations=7 defense.crafting.steps=2 \\
    defense.crafting.step=0.6 defense.crafting.start_size=1.0"
rdi train run=runs/second $S defense.terms.0.weight=0.8 defense.terms.1.weight=0.2 defense.terms.2.weight=0.2
rdi train run=runs/resnet16 $S start=runs/second optim.epochs=5 optim.lr=0.08 evaluations=5 \\
    defense.terms.0.weight=0.86 defense.terms.1.weight=0.14 defense.terms.2.weight=0.15
rdi train run=runs/resnet16-robust $S defense.terms.0.weight=0.4 defense.terms.1.weight=0.6 defense.terms.2.weight=0.4
rdi train run=runs/resnet16-plain $S exits=none start=runs/second optim.epochs=5 optim.lr=0.08 evaluations=5 \\
    defense.terms.0.weight=0.86 defense.terms.1.weight=0.14 defense.terms.2.weight=0.15
rdi attack run=runs/resnet16-plain suite=full samples=1000 engine.precision=bf16 batch_size=125
rdi evaluate run=runs/resnet16-plain
rdi health run=runs/resnet16-plain samples=100
rdi attack run=runs/resnet16 split=validation attack=targeted attack.steps=10 samples=500 thresholds=entropy
P="threshold=ensemble threshold@threshold.rule=budget threshold.rule.score._target_=rdi.thresholds.Margin"
rdi evaluate run=runs/resnet16 split=validation $P threshold.rule.macs=65800000
    # of resnet16-robust: 62200000, 'threshold.weights=[1,1,2]', which gives ensemble-009091
rdi attack run=runs/resnet16 suite=full samples=1000 thresholds=ensemble-41f03d engine.precision=bf16
rdi attack run=runs/resnet16 attack=autoattack samples=1000 thresholds=ensemble-41f03d batch_size=125
rdi evaluate run=runs/resnet16 thresholds=ensemble-41f03d
rdi health run=runs/resnet16 thresholds=ensemble-41f03d
rdi attack run=runs/resnet16-robust suite=full samples=1000 thresholds=ensemble-009091 engine.precision=bf16
rdi attack run=runs/resnet16-robust attack=autoattack samples=1000 thresholds=ensemble-009091 batch_size=125
rdi evaluate run=runs/resnet16-robust thresholds=ensemble-009091
rdi attack run=runs/resnet16 threat=l2_05 suite=full samples=1000 thresholds=ensemble-41f03d engine.precision=bf16
rdi evaluate run=runs/resnet16 thresholds=ensemble-41f03d
rdi attack run=runs/resnet16-robust corruption=common samples=1000
rdi evaluate run=runs/resnet16-robust thresholds=ensemble-009091
S="data=cifar10_jpeg data.calibration=2000 data.validation=2000 attack=average precision=bf16 channels_last=true \\
    keep=last calibration_samples=500 threads=1 optim=fast"
A="defense=alp defense.crafting.steps=2 defense.crafting.step=0.6 defense.crafting.start_size=1.0 \\
    defense.terms.0.weight=0.6 defense.terms.1.weight=0.4 defense.terms.2.weight=0.3"
rdi train run=runs/msdnet3 backbone=msdnet3 $S $A optim.epochs=6 optim.lr=0.1 optim.warmup=0.25 evaluations=3
rdi train run=runs/resnet38-gated backbone=resnet38 exits=lean $S $A gates=layers gates.share=0.7 \\
    start=dev/runs/resnet38-a optim.epochs=2 optim.lr=0.05 optim.warmup=0.1 evaluations=2
rdi train run=runs/resnet38-bap backbone=resnet38 exits=lean $S defense=bap compression=bap compression.ratio=0.3 \\
    start=dev/runs/resnet38-a optim.batch_size=64 optim.iterations=200 optim.epochs=null optim.lr=0.02 \\
    optim.warmup=0.1 evaluations=2
rdi attack run=runs/msdnet3 suite=full samples=300 batch_size=125 engine.precision=bf16
    # and the other two; 200 images of resnet38-bap
rdi evaluate run=runs/msdnet3
rdi health run=runs/msdnet3    # and the other two
rdi table name=smallcnn profile=cpu
rdi table name=compression_smallcnn profile=cpu
rdi table name=field_smallcnn profile=cpu
rdi run sweep=search
rdi bench
```"""
LEVERS = (
    "The same weights under other exit policies, without any training (`dev/levers.sh`). Each was attacked by "
    "attacks that know it, and all are judged under all of these attacks."
)
BESIDE = (
    "Made beside the run's own threat model, for the same exit policy, by `rdi attack run=... threat=... suite=...` "
    "and `rdi attack run=... corruption=common`. A worst case is over one threat model."
)
FIELD = "field"
"""Folder below results/ of the runs of other methods."""
OTHERS = (
    "Gated, pruned and multi-scale networks, trained here for as long as each says; columns as above. What they are "
    "and how long they were trained stands with each below: none has had the training of resnet16."
)
EARLY_EXIT = "early-exit.png"
BUDGET = ("share of the plain MACs", "expected MACs (M)", "on test", "", "expected clean %", "on test", "", "worst %")


def pages(root: Path) -> dict[Path, str]:
    """Render path -> text of every page that `make results` writes.

    root: of the repository.
    """
    results = root / "results"
    readme = root / "README.md"
    return {
        results / "README.md": results_page(results),
        results / "bench" / "README.md": bench_page(results / "bench"),
        readme: filled(readme.read_text(), {"demo": demo(results / "demo"), "headline": head(results, "results/")}),
    }


def pictures(root: Path) -> dict[Path, str | bytes]:
    """Render path -> content of every other file that `make results` writes."""
    results = root / "results"
    points = [headline.point(network) for network in networks(results)]
    return {results / name: content for name, content in headline.files(points).items()}


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """Replace, for every block once, what stands between `<!-- made: NAME -->` and `<!-- end -->` in `text`."""
    for name, block in blocks.items():
        mark = f"<!-- made: {name} -->\n"
        parts = re.split(f"(?<={mark}).*?(?=<!-- end -->)", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"the README has {len(parts) - 1} places for {name}")
        text = f"{parts[0]}{block}\n{parts[1]}"
    return text


def demo(folder: Path) -> str:
    """Return the first table that `make demo` prints of its evaluation, with the lines above and below."""
    run = Network.open(folder, "entropy")
    values = ", ".join(f"{value:.3g}" for value in run.thresholds.values)
    lines = [
        f"runs/demo: {caption(run.manifest, run.records)}",
        f"exit policy {run.thresholds.name}, fitted on {run.thresholds.samples} calibration images: "
        f"thresholds {values}",
        "",
        run.table("simple").partition("\n\n")[0],
        "",
        *[line for line in tables.footnote(run.manifest.costs).split("\n") if line.startswith("saved:")],
        *tables.predictions(run.thresholds.expected, run.records),
    ]
    return f"```\n{terminal.fit(chr(10).join(lines))}\n```"


def head(results: Path, at: str) -> str:
    """Render the headline: its picture, its table, and the conditions of each network.

    at: the folder of the picture.
    """
    picture = f"![clean accuracy and worst case of networks against their cost]({at}headline.svg)"
    return "\n".join([picture, "", compared(networks(results), headline.LEGEND)])


def compared(found: Sequence[Network], legend: str) -> str:
    """Render the table of several networks, the legend, and the conditions of each."""
    points = [headline.point(network) for network in found]
    table = re.sub(" {2,}", " ", re.sub("-{3,}", "--", headline.table(points, "github")))  # columns need no padding
    return "\n".join([table, "", legend, "", *headline.conditions(points)])


def results_page(results: Path) -> str:
    """Render results/README.md."""
    official = results / "official-resnet38"
    parts = ["# Results", TOP]
    parts.append(
        "Every accuracy is that of the deployed exit policy. Worst: right under every attack of the table, image by "
        "image. Intervals: Wilson's, for the sample of test images. MACs: mean per image, every head on the way, "
        "convolutions and linear, against the backbone without exits; paper MACs: own head only, convolutions only. "
        "Benchmarks: [bench/README.md](bench/README.md)."
    )
    field = networks(results / FIELD)
    parts += ["## Networks", head(results, "")]
    if field:
        parts += ["### Other methods of the field", compared(field, OTHERS)]
    for run in [*networks(results), *field]:
        parts += [f"## {run.title}", f"{run.conditions()}.", *filter(None, [run.note]), run.table()]
        if run.worst.transfer is not None:
            parts += [
                "Images made against one exit, judged by each exit alone:",
                suites.transfer(run.worst.transfer, "github"),
            ]
        if rows := further(run):
            parts += ["### Under other threat models, and corrupted", BESIDE, tables.text(FURTHER, rows, "github")]
        if run.corrupted is not None:
            said = corruptions.caption(run.corrupted)
            parts += [f"{said[0].upper()}{said[1:]}.", tables.text(*corruptions.rows(run.corrupted), "github")]
        if (run.folder / EARLY_EXIT).is_file():
            place = run.folder.relative_to(results) / EARLY_EXIT
            parts += [f"![share of images that have left against cost, per attack]({place})"]
        if run.folder == official:
            other = Network.open(official, "entropy")
            parts += ["### With equal shares and no offsets", f"{other.conditions()}.", other.table()]
            parts += ["### Within a budget of MACs", budget(official)]
            if (results / "levers").is_dir():
                parts += ["### Exit policies side by side", LEVERS, levers.table(results / "levers")]
            parts += ["![accuracy against mean MACs under each attack](official-resnet38/report/curves.png)"]
        checked = run.folder / "health" / f"{run.thresholds.name}.json"
        said = health(read(checked, HealthRecord)) if checked.is_file() else "`rdi health` has not been run on it."
        parts += ["### Is the evaluation sound?", said]
    parts.append("## Tables of the paper")
    for page in sorted((results / "tables" / "reports").iterdir()):
        name, profile, *stand_in = page.name.split("-", 2)
        said = f", {stand_in[0]} standing in" if stand_in else ""
        parts += [f"### `rdi table name={name} profile={profile}`{said}", (page / f"{name}.md").read_text().strip()]
        parts += [note.read_text().strip() for note in page.glob("notes.md")]
    parts += ["## A search", search(results / "search" / "reports" / "search")]
    parts += ["![the page of a search](search/page.png)", "## How they were made", COMMANDS]
    return "\n\n".join(parts) + "\n"


def budget(folder: Path) -> str:
    """Compare what policies within a budget promised for clean images with test, and their worst case there."""
    runs = [Network.open(folder, path.stem) for path in folder.glob("thresholds/budget-*.json")]
    rows = []
    for run in sorted(runs, key=lambda run: float(run.thresholds.rule["share"])):
        prediction, clean = run.thresholds.expected[CLEAN], run.record(CLEAN)
        rows.append(
            [
                str(run.thresholds.rule["share"]),
                f"{prediction.mean_macs_low / 1e6:.2f}-{prediction.mean_macs_high / 1e6:.2f}",
                f"{clean.mean_macs / 1e6:.2f}",
                tables.in_interval(clean.mean_macs, prediction.mean_macs_low, prediction.mean_macs_high),
                f"{tables.percent(prediction.accuracy_low)}-{tables.percent(prediction.accuracy_high)}",
                tables.percent(clean.accuracy),
                tables.in_interval(clean.accuracy, prediction.accuracy_low, prediction.accuracy_high),
                f"{tables.percent(run.worst.accuracy)} ({tables.worst_name(run.worst)})",
            ]
        )
    said = "`threshold=budget threshold.share=...`, fitted on the calibration images; expected: 95 % intervals."
    return f"{said}\n\n{tables.text(BUDGET, rows, 'github')}"


def health(record: HealthRecord) -> str:
    """Render every check of `rdi health` with its figure, and what a red one would mean."""
    rows = [[check.name, check.meaning, f"{word(check)}: {check.figure}"] for check in record.checks]
    body = tables.text(["check", "what a red line means", "found"], rows, "github", align="left")
    return f"`rdi health`: {heading(record)}.\n\n{body}"


def search(out: Path) -> str:
    """Render the front of a search."""
    rows = list(csv.DictReader((out / "front.csv").read_text().splitlines()))
    left = ("state", "split", "on_front", "run", "reason", "seconds")
    names = [name for name in rows[0] if name not in left]
    cells = [[_cell(name, row[name]) for name in names] for row in rows]
    split = rows[0]["split"]
    with (out / "trials.csv").open() as stream:
        trials = sum(1 for _ in csv.DictReader(stream))
    said = (
        f"`rdi run sweep=search`: {trials} trials, {len(rows)} on the front, compared on {split} images alone; the "
        "test columns were measured afterwards, for the front only. The page of the search is "
        "`search/reports/search/index.html`."
    )
    return f"{said}\n\n{tables.text([_title(name) for name in names], cells, 'github')}"


def _title(name: str) -> str:
    return name.replace("_accuracy", " %").replace("mean_macs", "MACs (M)").replace("test_", "test: ")


def _cell(name: str, text: str) -> str:
    if name.endswith("accuracy"):
        return tables.percent(float(text))
    if name.endswith("mean_macs"):
        return f"{float(text) / 1e6:.2f}"
    return f"{float(text):.3g}" if re.fullmatch(r"[0-9.e-]+", text) else text


def bench_page(folder: Path) -> str:
    """Render results/bench/README.md."""
    parts = ["# Benchmarks", TOP]
    parts.append(
        "`rdi bench` measures all contestants in turns; a ratio is the median over rounds, and a target that is missed "
        "says so. The textbook loop is the official code's way: the whole network at every step, weight gradients "
        "included, one exit after the other. Ours runs prefixes of a frozen copy with BatchNorm folded in, "
        "channels-last, all exits in one nested pass. Exit mixes: early, even, late: each exit takes half as many, as "
        "many, twice as many images as the one before; an image that goes to the end costs more than on the plain "
        "backbone. At best: if every stage took time in proportion to its images."
    )
    for path in sorted(folder.glob("*.json")):
        parts += [f"## {path.name}", benchmarks.render(read(path, BenchRecord), "github")]
    return "\n\n".join(parts) + "\n"


def main(root: Path) -> None:
    """Write the pages."""
    for path, content in {**pages(root), **pictures(root)}.items():
        path.write_bytes(content.encode() if isinstance(content, str) else content)


if __name__ == "__main__":
    main(Path(__file__).resolve().parents[2])
