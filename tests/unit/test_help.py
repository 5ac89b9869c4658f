"""Help: every option and every choice is explained, within the width of a terminal."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hydra_plugins.rdi_sweepers.grid import listed
from rdi.cli import COMMANDS, _help, _hydra, _schema, _sweeps, main, usage
from rdi.packaged import packaged
from rdi.report import comments, help

CONF = _hydra.conf_dir()
CHOICES = sorted(path for path in CONF.rglob("*/*.yaml"))
# options of a suite are those of its attacks
SAID_ELSEWHERE = ("suite/",)


@pytest.fixture
def explained(monkeypatch):
    """explained(command, *overrides): what help knows of a command."""
    monkeypatch.delenv("RDI_DATA", raising=False)
    _schema.register()
    _sweeps.register(CONF)
    return lambda command, *overrides: _help.Explained(command, overrides, CONF)


def unexplained(node, said, prefix=""):
    """Dotted keys of a mapping that neither have a comment nor lie in one that has."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if (key in ("defaults", "hydra") and not prefix) or key.startswith("_") or name in said:
            continue
        if isinstance(value, dict):
            yield from unexplained(value, said, f"{name}.")
        else:
            yield name


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_option_has_a_comment_and_every_choice_a_header(path):
    name = path.relative_to(CONF).as_posix()
    text = path.read_text()
    found = comments.read(text)
    assert found.header or path.parent == CONF, f"{name}: the first comment must say what it is"
    node = yaml.safe_load(text)
    if not name.startswith(SAID_ELSEWHERE):
        assert list(unexplained(node, found.options)) == []
    assert [group for group, said in found.groups.items() if not said] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_explained_in_80_columns(command, explained):
    found = explained(command)
    assert [one.key for one in found.options() if not one.said] == []
    lines = help.page(found, COMMANDS[command])
    assert max(map(len, lines)) <= 80
    assert all(any(line.strip().startswith(f"{group}=") for line in lines) for group in found.groups)


def test_help_shows_the_default_the_meaning_and_where_it_comes_from(explained):
    text = "\n".join(help.page(explained("train", "backbone=resnet38"), "train"))
    assert "threat.eps=${px:8}" in text
    assert "  threat=linf8 " in text  # as data=cifar10 chooses
    assert "optim.iterations=64000" in text
    assert "suite=" not in text  # of other commands


def test_help_of_a_group_is_its_choices_and_the_options_of_the_chosen_one(explained):
    lines = help.topic(explained("attack", "attack=square"), "attack")
    assert lines[0].split()[0] == "attack=square"
    assert any(line.split()[0] == "transfer" for line in lines if line)
    assert any(line.strip().startswith("attack.queries=1000") for line in lines)
    assert not any(line.strip().startswith("batch_size") for line in lines)


def test_one_option_can_be_asked_for(capsys):
    main(["train", "--help", "threat.eps"])
    assert "threat.eps=0.1" in capsys.readouterr().out


def test_a_group_that_there_is_not(capsys):
    with pytest.raises(SystemExit) as end:
        main(["attack", "--help", "atack"])
    assert end.value.code == 2
    assert "did you mean attack?" in capsys.readouterr().err


def test_choices_of_the_users_own_folder_are_explained_too(tmp_path, capsys):
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "mine.yaml").write_text("# my own attack\n_target_: my.Attack\nforce: 3  # how hard\n")
    main(["attack", "--config-dir", str(tmp_path), "attack=mine", "--help", "attack"])
    out = " ".join(capsys.readouterr().out.split())
    assert "mine my own attack" in out
    assert "attack.force=3 how hard" in out


def test_comments_are_read_beside_above_and_not_across():
    text = "# rdi x   does x\n# what it is:\n\n# above\n# in two lines\na: [1]\n"
    text += "b: 'x # y'  # beside\nc:\n  d: 1  # inner\ne: 2\n"
    found = comments.read(text)
    assert found.header == "does x"
    assert found.examples == ("rdi x   does x",)
    assert found.options == {"a": "above in two lines", "b": "beside", "c.d": "inner"}


def test_help_imports_no_torch():
    code = "import sys; from rdi.cli import main; main(['train', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("bench", "optim=fast"), "optim=fast"),
        (("bench", "optim.lr=1"), "optim.lr=1"),
        (("import", "checkpoint=x", "run=y", "data=mnist", "optim=cosine"), "optim=cosine"),
        (("evaluate", "run=x", "device=cpu"), "device"),
        (("evaluate", "run=x", "threads=1"), "threads"),
        (("health", "run=x", "threat.steps=3"), "threat.steps"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words, option, explained, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words])
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{option} has no effect" in said or f"there is no option {option}" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_says_that_an_option_has_no_effect(command, explained):
    found = explained(command)
    assert [one.key for one in found.options() if "no effect" in one.said] == []
    assert ("optim" in found.groups) == any(one.key.startswith("optim.") for one in found.options())


def examples():
    """The commands that `rdi --help`, the help of each command and the files of sweeps/ show."""
    files = [*sorted(CONF.glob("*.yaml")), *sorted(packaged("sweeps").glob("*.yaml"))]
    shown = [line.strip("# ") for path in files for line in path.read_text().splitlines() if line.startswith("# rdi ")]
    shown += [line.strip() for line in usage().splitlines() if line.startswith("  rdi ")]
    commands = [re.split(r"\s{2,}|\s#|\s>\s", line)[0] for line in shown if "COMMAND" not in line]
    return sorted({line for line in commands if not line.startswith("rdi -")})


@pytest.mark.parametrize("line", examples())
def test_every_example_that_help_shows_composes(line, monkeypatch):
    monkeypatch.delenv("RDI_DATA", raising=False)
    _schema.register()
    _sweeps.register(CONF)
    command, *words = shlex.split(line)[1:]
    assert command in COMMANDS
    overrides = OverridesParser.create().parse_overrides(_hydra._arranged(command, words))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, overrides=[listed(one)[0] for one in overrides])
    _schema.validated(config)
    options = [one.get_key_element().lstrip("+~").replace("/", ".") for one in overrides]
    assert all(OmegaConf.select(config, key) is not None for key in options if not key.startswith("hydra"))


def test_the_examples_are_many_and_of_every_command():
    assert {line.split()[1] for line in examples()} == {*COMMANDS}
