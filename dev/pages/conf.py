"""conf/README.md, out of conf/ itself: `make results`."""

from __future__ import annotations

from pages import reference
from rdi.cli import COMMANDS, _help, _hydra, _schema, _sweeps


def page() -> str:
    """The text of conf/README.md."""
    conf = _hydra.conf_dir()
    _schema.register()
    _sweeps.register(conf)
    explained = {name: _help.Explained(name, [], conf) for name in COMMANDS}
    # `rdi run` knows the choices that plugins of Hydra bring along
    return reference.page(conf, {name: one.groups for name, one in explained.items()}, explained["run"].choices)


if __name__ == "__main__":
    (_hydra.conf_dir() / "README.md").write_text(page(), encoding="utf-8")
