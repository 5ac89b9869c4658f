"""Configs as their commands see them."""

from hydra import compose, initialize_config_dir

from rdi.cli import _edge, _schema
from rdi.cli._hydra import conf_dir

CONF = conf_dir()


def composed(primary, *overrides):
    """Plain dictionary of a primary config as its command would see it."""
    _schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(primary, overrides=list(overrides))
    return _edge.resolved(_schema.validated(cfg))
