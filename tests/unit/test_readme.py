"""What the README says in tables is what the committed records say."""

from pathlib import Path

from rdi.records import BenchRecord, EvalRecord, HealthRecord, Thresholds, WorstRecord, read
from rdi.report import benchmarks, suites, tables

ROOT = Path(__file__).resolve().parents[2]


def table_lines(text):
    """Lines of Markdown tables, spaces evened out, without the rules under headers."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith("|-") and not line.startswith("|:")]


def test_the_performance_section_is_made_from_the_records():
    section = (ROOT / "README.md").read_text().split("\n## Performance\n")[1].split("\n## ")[0]
    stored = sorted((ROOT / "results" / "bench").glob("*.json"))
    measured = {line for path in stored for line in table_lines(benchmarks.render(read(path, BenchRecord), "github"))}
    shown = table_lines(section)
    assert len(shown) > 20
    assert [line for line in shown if line not in measured] == []
    for path in stored:
        assert f"results/bench/{path.name}" in section, "every record is named"


BUDGET_HEADERS = (
    "share of the plain MACs",
    "expected MACs (M)",
    "on test",
    "",
    "expected clean %",
    "on test",
    "",
    "worst attack %",
)


def budget_row(fitted, clean, worst):
    """What a policy within a budget promised for clean images, what it gives on test, and its worst case there."""
    promise = fitted.expected["clean"]
    return [
        str(fitted.rule["share"]),
        f"{promise.mean_macs_low / 1e6:.2f}-{promise.mean_macs_high / 1e6:.2f}",
        f"{clean.mean_macs / 1e6:.2f}",
        tables.kept(clean.mean_macs, promise.mean_macs_low, promise.mean_macs_high),
        f"{tables.percent(promise.accuracy_low)}-{tables.percent(promise.accuracy_high)}",
        tables.percent(clean.accuracy),
        tables.kept(clean.accuracy, promise.accuracy_low, promise.accuracy_high),
        f"{tables.percent(worst.accuracy)} (of {len(worst.attacks)})",
    ]


def judged(folder, threshold):
    """Lines of the tables that `rdi evaluate` makes of a folder's records."""
    records, worst = [], None
    for path in folder.glob(f"evals/{threshold}__test-*.json"):
        if path.stem.endswith("-worst"):
            worst = read(path, WorstRecord)
        else:
            records.append(read(path, EvalRecord))
    text = tables.text(*tables.evaluation_rows(records, worst), "github")
    return table_lines(text) + (table_lines(suites.transfer(worst.transfer, "github")) if worst.transfer else [])


def test_the_results_are_made_from_the_records():
    section = (ROOT / "README.md").read_text().split("\n## Results\n")[1].split("\n## ")[0]
    known = {
        line
        for folder, threshold in (
            ("official-resnet38", "paper_resnet38"),
            ("official-resnet38", "entropy"),
            ("mnist-max_avg", "paper_smallcnn"),
        )
        for line in judged(ROOT / "results" / folder, threshold)
    }
    official = ROOT / "results" / "official-resnet38"
    rows = [
        budget_row(
            read(path, Thresholds),
            read(official / "evals" / f"{path.stem}__test-clean.json", EvalRecord),
            read(official / "evals" / f"{path.stem}__test-worst.json", WorstRecord),
        )
        for path in official.glob("thresholds/budget-*.json")
    ]
    known |= set(table_lines(tables.text(BUDGET_HEADERS, rows, "github")))
    shown = table_lines(section)
    assert len(shown) > 40
    assert [line for line in shown if line not in known] == []


def test_the_health_report_is_the_record():
    section = (ROOT / "README.md").read_text().split("\n## Is the evaluation sound?\n")[1].split("\n## ")[0]
    record = read(ROOT / "results" / "official-resnet38" / "health" / "paper_resnet38.json", HealthRecord)
    rows = [f"| {c.name} | {c.meaning} | {'ok' if c.passed else 'RED'}: {c.figure} |" for c in record.checks]
    assert table_lines(section)[1:] == table_lines("\n".join(rows))
