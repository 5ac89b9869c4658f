"""The user's own config folder: RDI_CONF_DIR is searched before ours, as is what `--config-dir DIR` names."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from rdi.errors import UserError


class UserConf(SearchPathPlugin):
    """Puts RDI_CONF_DIR in front of the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the user's own folder of configs to Hydra's search path."""
        if folder := os.environ.get("RDI_CONF_DIR"):
            search_path.prepend("user", f"file://{Path(folder).expanduser().resolve()}")


def register() -> None:
    """Make the folder known to Hydra. Safe to call twice. Raises UserError when RDI_CONF_DIR is no folder."""
    folder = os.environ.get("RDI_CONF_DIR")
    if folder and not Path(folder).expanduser().is_dir():
        raise UserError(f"RDI_CONF_DIR={folder} is not a folder: create it, or unset RDI_CONF_DIR")
    if UserConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(UserConf)
