"""Types of the configs' own fields. Group nodes are checked against the signature of what they build."""

from __future__ import annotations

from typing import Any, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from rdi.annotations import fits, words
from rdi.cli import _quick
from rdi.errors import UserError
from rdi.runs.limits import refuse_threat, refuse_values
from rdi.runs.options import SCHEMAS


def px(levels: float) -> float:
    """`${px:8}` is 8/255, a pixel distance in [0, 1] units. Raises UserError unless it is given a number."""
    if not isinstance(levels, int | float):
        raise UserError(f"${{px:{levels}}} is not a number of pixel levels: write for example ${{px:8}}")
    return levels / 255


def register() -> None:
    """Make schemas and resolvers known to Hydra. Safe to call twice."""
    _quick.register()
    OmegaConf.register_new_resolver("px", px, replace=True)
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        if f"{name}_schema.yaml" not in store.repo:  # to store one again takes milliseconds, at every command
            store.store(name=f"{name}_schema", node=schema)


def validated(cfg: DictConfig) -> DictConfig:
    """`cfg` again. Raises UserError for a key that its schema lacks (`+new=1`), a value that is missing, and one that
    no command can work with; the text names the key.
    """
    refuse_unknown(cfg, "")
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        first = missing[0]
        raise UserError(f"{first} is missing: give {first}=...")
    plain = OmegaConf.to_container(cfg, resolve=False)
    refuse_values(plain, "")
    for name, hint in get_type_hints(OmegaConf.get_type(cfg)).items():
        if get_origin(hint) is list and not fits(value := _list(cfg, name), hint):
            raise UserError(f"{name} must be {words(hint)}, got {value!r}: write {name}=[...]")
    if "threat" in cfg:
        threat: Any = OmegaConf.to_container(cfg._get_node("threat"), resolve=True)
        refuse_threat(threat)
    own = OmegaConf.select(cfg, "optim.optimizer.lr")
    if own is not None and own != cfg.optim.lr:
        raise UserError(f"optim.optimizer.lr={own} would be overwritten by the schedule: set optim.lr={own} instead")
    return cfg


def _list(cfg: DictConfig, name: str) -> Any:
    """The value of an option, plain and without interpolations, which know no types."""
    value = cfg[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def refuse_unknown(node: DictConfig, where: str) -> None:
    """Raise UserError for a key that a typed node, or one in it, has beyond its schema, or lacks (`~split`)."""
    known = set(getattr(OmegaConf.get_type(node), "__dataclass_fields__", ()))
    if gone := sorted(known - set(map(str, node))):
        raise UserError(f"{where}{gone[0]} cannot be deleted: leave ~{where}{gone[0]} out, or set it to another value")
    for key in map(str, node):
        if known and key not in known:
            raise UserError(f"{where}{key} is not an option here; the options are {', '.join(sorted(known))}")
        if known and OmegaConf.is_config(value := node._get_node(key)) and isinstance(value, DictConfig):
            refuse_unknown(value, f"{where}{key}.")
