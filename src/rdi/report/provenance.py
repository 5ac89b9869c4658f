"""Say where the figures of a report come from: runs, settings of attacks, files with their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rdi.records import Environment, Plain
from rdi.report import tables
from rdi.report.page import Cell, Table
from rdi.report.views import Source, View, titled


def tables_of(views: Sequence[View], files: Mapping[str, Source]) -> list[Table]:
    """Return all tables of the section.

    files: of the report itself.
    """
    return [_runs(views), *(_attacks(view, len(views) == 1) for view in views), _sources(views, files)]


def _runs(views: Sequence[View]) -> Table:
    columns = [_facts_of(view) for view in views]
    rows: list[list[str | Cell]] = [[key, *(column[key] for column in columns)] for key in columns[0]]
    names = [view.name for view in views]
    caption = "From each run's manifest.json, written when it was trained or imported."
    return Table("Runs, data and machine", caption, ["what", *names], rows, words=names)


def _facts_of(view: View) -> dict[str, str | Cell]:
    manifest = view.manifest
    choices = ", ".join(f"{group} {name}" for group, name in sorted(manifest.choices.items()))
    selection = manifest.selection
    return {
        "manifest": view.source.cell(view.path),
        "made by": f"rdi {manifest.command}, {manifest.started} to {manifest.ended or 'unfinished'}",
        "config": f"{choices} (identity {manifest.identity})",
        "seed": str(manifest.seed),
        "commit": commit(manifest.environment),
        "device": f"{manifest.environment.device}, threads {manifest.environment.threads}",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.environment.versions.items()),
        "network": f"{manifest.exits} exits, {manifest.parameters:,} parameters",
        "MACs per exit": _macs(manifest.costs.macs, manifest.costs.macs_plain),
        "paper MACs per exit": _macs(manifest.costs.macs_paper, manifest.costs.macs_plain_paper),
        "checkpoint": (
            f"sha256 {manifest.checkpoint_sha256}"
            + ("" if selection is None else f", kept {selection.kept} (step {selection.best_step})")
        ),
        "data": f"{manifest.data.name}, {'x'.join(map(str, manifest.data.shape))}, sha256 {manifest.data.fingerprint}",
        "samples": ", ".join(f"{name} {count:,}" for name, count in manifest.data.samples.items()),
        "threat model": ", ".join(
            f"{key} {value}" if isinstance(value, str) else f"{key} {value:.4g}"
            for key, value in manifest.config["threat"].items()
        ),
    }


def commit(environment: Environment) -> str:
    """Name the commit, and whether the checkout had changes."""
    if environment.commit is None:
        return "not in a git checkout"
    return f"{environment.commit[:12]}{' with uncommitted changes' if environment.dirty else ''}"


def _macs(exits: Sequence[int], plain: int) -> str:
    return f"{', '.join(f'{value / 1e6:.2f}' for value in exits)} M; backbone without exits {plain / 1e6:.2f} M"


def _attacks(view: View, alone: bool) -> Table:
    headers = [
        "attack",
        "images",
        "seed",
        "batch",
        "largest change",
        "seconds",
        "settings",
        "crafted on",
        "commit",
        "bank",
    ]
    rows: list[list[str | Cell]] = [
        [
            view.short(name),
            f"{bank.samples:,}",
            str(bank.seed),
            str(bank.batch_size),
            f"{bank.linf if bank.length is None else bank.length:.4g}",
            f"{bank.seconds:.1f}",
            _settings(bank.settings) or "none",
            f"{bank.environment.device}" + (f", {_settings(bank.engine)}" if bank.engine else ""),
            commit(bank.environment),
            source.cell(),
        ]
        for name, (bank, source) in view.banks.items()
    ]
    caption = (
        "How the images that were judged were made: from each bank's manifest.json. Test split of "
        f"{view.manifest.data.name}; largest change: of a pixel, measured."
    )
    return Table(
        titled("Attack settings", view, alone), caption, headers, rows, words=("settings", "crafted on", "commit")
    )


def _settings(settings: Mapping[str, Plain]) -> str:
    """Plain settings in words; numbers short."""
    return ", ".join(
        f"{key} {tables.plain(value)}" if key != "attack" else str(value) for key, value in settings.items()
    )


def _sources(views: Sequence[View], files: Mapping[str, Source]) -> Table:
    found = list(files.values())
    for view in views:
        found.append(view.source)
        found += [source for _, source in view.banks.values()]
        for judged in view.judged:
            found += [judged.source, *judged.sources.values()]
    return read_files(found)


def read_files(sources: Iterable[Source]) -> Table:
    """List the files that a page was made from."""
    rows: list[list[str | Cell]] = [[source.path, source.cell(source.sha256)] for source in sources]
    caption = "Every file that this page was made from, with the sha256 that it had."
    return Table("Records", caption, ["file", "sha256"], rows, words=("sha256",))
