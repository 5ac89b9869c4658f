"""What makes Hydra compose faster changes nothing that it composes."""

import gc
import subprocess
import sys

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from helpers.commands import ROOT, environment
from rdi.cli import _quick, main
from rdi.cli import list as command

FILES = sorted([*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "sweeps").rglob("*.yaml")])


@pytest.fixture
def seen(monkeypatch):
    """Configs that `rdi list` ran with, Hydra's own part with them, and how many were composed."""
    found = {"configs": [], "composed": 0}
    compose = ConfigLoaderImpl._load_configuration_impl

    def counted(*arguments, **named):
        found["composed"] += 1
        return compose(*arguments, **named)

    def run(cfg):
        found["configs"].append({**OmegaConf.to_container(cfg), "hydra": OmegaConf.to_container(HydraConfig.get())})

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    monkeypatch.setattr(command, "run", run)
    return found


@pytest.mark.parametrize("words", [["runs=[a]"], ["hydra.mode=RUN"], ["-m", "csv=true,false"], ["-m", "csv=true"]])
def test_a_job_gets_the_config_that_hydra_composes(words, seen, monkeypatch, tmp_path):
    monkeypatch.setenv("RDI_SWEEP_DIR", str(tmp_path))
    main(["list", *words])
    monkeypatch.setattr(_quick, "get_mode", _quick._get_mode)
    main(["list", *words])
    half = len(seen["configs"]) // 2
    assert half == 1 + ("csv=true,false" in words)
    assert seen["configs"][:half] == seen["configs"][half:]


def test_one_job_is_composed_once(seen):
    main(["list", "runs=[a]"])
    assert seen["composed"] == 1
    assert Hydra.get_mode is _quick.get_mode


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_config_file_is_read_as_omegaconf_reads_it(path):
    text = path.read_text()
    assert yaml.load(text, _quick.yaml_loader()) == yaml.load(text, _quick._get_yaml_loader())
    assert _quick.yaml_loader() is _quick.yaml_loader()


def test_numbers_and_keys_are_omegaconfs():
    text = "{a: 1e-3, b: 1_000, c: 2020-01-01, d: .inf, e: '1', f: 1:30, g: off}"
    assert yaml.load(text, _quick.yaml_loader()) == yaml.load(text, _quick._get_yaml_loader())
    with pytest.raises(yaml.YAMLError, match="found duplicate key a"):
        yaml.load("a: 1\na: 2", _quick.yaml_loader())


def test_a_command_collects_garbage_once_it_is_imported():
    code = "import gc, sys, rdi.cli, rdi.cli.list as c; c.run = lambda cfg: print(gc.isenabled()); rdi.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "list"], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert gc.isenabled()
