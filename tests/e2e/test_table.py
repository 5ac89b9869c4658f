"""A table of the paper from its first run to its page of cells, on the embedded data."""

import json

import pytest

from rdi.records import EvalRecord, WorstRecord, read

OPTIONS = "options=['threads=1','samples=8','optim.iterations=2','data.size=16']"
LINE = f'table name=smallcnn profile=smoke rows=[standard,max-average] "{OPTIONS}"'


def test_a_table_runs_what_is_missing_and_is_made_of_records(rdi, tmp_path):
    first = rdi(LINE)
    assert first.status == 0, first.err
    assert "0 of 2 experiments are finished" in first.err
    folder = tmp_path / "runs" / "tables" / "smoke" / "smallcnn-max_avg-seed0"
    record = read(folder / "evals" / "entropy__test-average.json", EvalRecord)
    worst = read(folder / "evals" / "entropy__test-worst.json", WorstRecord)
    out = tmp_path / "reports" / "smallcnn-smoke"
    line = next(line for line in (out / "smallcnn.md").read_text().splitlines() if line.startswith("| max-average "))
    shown = [cell.strip() for cell in line.strip("|").split("|")]
    assert shown[6] == f"{100 * record.accuracy:.1f}"
    assert shown[9] == f"{100 * worst.accuracy:.1f}"
    assert "99.52" in (out / "smallcnn.md").read_text()
    assert r"\toprule" in (out / "smallcnn.tex").read_text()
    assert (out / "smallcnn.csv").read_text().count("\n") == 6
    sources = json.loads((out / "smallcnn.json").read_text())["records"]
    assert str(folder.relative_to(tmp_path) / "manifest.json") in sources

    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = rdi(LINE)
    assert again.status == 0, again.err
    assert "2 of 2 experiments are finished: skipped" in again.err
    text = (out / "index.html").read_text()
    assert "RDI-SmallCNN on MNIST, four defenses" in text
    assert '<a href="../../runs/tables/smoke/smallcnn-max_avg-seed0/manifest.json">max-average</a>' in text
    assert text.index('id="table"') < text.index("99.52") < text.index("<svg")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == stamps
    assert again.out == first.out[first.out.rindex("\nRDI-SmallCNN") :]


def test_the_field_in_one_table_and_what_starts_from_what(rdi, tmp_path):
    """A chain of three: dense, l0, ATMC; a network with exits from one without; both columns of the table's own."""
    rows = "rows=['RDI from the dense one','BAP, 30 %','ATMC 8 bit, 10 %, from AL0']"
    found = rdi(f'table name=field_smallcnn profile=smoke "{rows}" "{OPTIONS}"')
    assert found.status == 0, found.err
    assert "0 of 5 experiments are finished" in found.err
    assert "has no exits: the heads of the first 2 begin anew" in found.err
    out = tmp_path / "reports" / "field_smallcnn-smoke" / "field_smallcnn.md"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines() if "|" in line
    ]
    cells = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert float(cells["RDI from the dense one"]["MACs (M) under slowdown"]) > 0
    assert all(float(row["training (s)"]) >= 0 for row in cells.values() if row["seeds"] == "1")
    assert float(cells["BAP, 30 %"]["non-zeros %"]) <= 30
    shares = cells["ATMC 8 bit, 10 %, from AL0"]["in full/square/sparse factor %"].split("/")
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.2)


def test_one_experiment_that_fails_does_not_stop_the_others(rdi, tmp_path):
    (tmp_path / "runs" / "tables" / "smoke").mkdir(parents=True)
    (tmp_path / "runs" / "tables" / "smoke" / "smallcnn-standard-seed0").write_text("in the way")
    result = rdi(LINE)
    assert result.status == 2
    assert "1 of 2 experiments failed, the first (standard)" in result.errors[0]
    assert "| standard " in (tmp_path / "reports" / "smallcnn-smoke" / "smallcnn.md").read_text()
    assert (tmp_path / "runs" / "tables" / "smoke" / "smallcnn-max_avg-seed0" / "done").is_file()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("table name=nothing", "no table 'nothing': name=... is one of attacks, "),
        ("table name=smallcnn profile=huge", "has no profile 'huge': choose one of paper, fast, cpu, smoke"),
        (
            "table name=smallcnn profile=smoke rows=[main,best]",
            'no row "best" in table smallcnn: choose of "standard", "main"',
        ),
        ("table name=smallcnn profile=smoke \"options=['optim.itterations=2']\"", "optim.itterations"),
    ],
)
def test_mistakes(line, words, rdi, tmp_path):
    result = rdi(line)
    assert result.status == 2
    assert words in result.errors[-1]
    assert not (tmp_path / "runs" / "tables").exists()
