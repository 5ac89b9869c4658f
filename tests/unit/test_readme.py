"""What the README says of speed is what the committed records say."""

from pathlib import Path

from rdi.records import BenchRecord, read
from rdi.report import benchmarks

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
