"""conf/README.md is what `make results` makes of conf/, and says what Hydra composes."""

import re

import pytest

from pages import conf, reference
from rdi.cli import COMMANDS, _help, _hydra, _schema, _sweeps

CONF = _hydra.conf_dir()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """No RDI_DATA of whoever runs the tests; what a command registers before it composes."""
    monkeypatch.delenv("RDI_DATA", raising=False)
    _schema.register()
    _sweeps.register(CONF)


@pytest.fixture(scope="module")
def page():
    return (CONF / "README.md").read_text()


def test_the_committed_page_is_made_from_conf(page):
    assert page == conf.page(), "run `make results`"


@pytest.mark.parametrize(
    "path", sorted(CONF.glob("*/*.yaml")) + sorted(CONF.glob("hydra/*/*.yaml")), ids=lambda p: p.stem
)
def test_every_choice_has_a_line(path, page):
    group = path.parent.relative_to(CONF).as_posix()
    assert re.search(rf"^- `{group}={path.stem}`: \S", page, re.MULTILINE)


def test_every_group_of_every_command_has_a_part(page):
    for command in COMMANDS:
        for group in _help.Explained(command, [], CONF).groups:
            part = re.search(rf"^## {group}\n\n(.*)\n", page, re.MULTILINE)
            assert part is not None
            assert f"`rdi {command}`" in part[1]


@pytest.mark.parametrize(
    "chosen",
    [
        "attack=routed_apgd",
        "attack=transfer",
        "defense=paired",
        "data=cifar10_jpeg",
        "threat=linf8",
        "exits=lean",
        "threshold=random",
    ],
)
def test_options_and_defaults_are_those_that_hydra_composes(chosen):
    group, name = chosen.split("=")
    found = reference.read(CONF, group, name)
    options = _help.Explained("train", [chosen], CONF).options()
    composed = {one.key: one for one in options if one.key.split(".")[0] == group}
    assert {key: one.value for key, one in composed.items()} == found.options
    for key, words in found.said.items():
        assert all(one.said == words for known, one in composed.items() if known == key)
